"""TensorRT plans: built from an ensemble's models, checked against them, kept, and opened as an engine."""
