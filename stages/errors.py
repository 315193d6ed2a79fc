"""What can go wrong in a stage beyond a single record (which is `schemas.errors.BadRecord`)."""


class StageError(Exception):
    """Raised when a stage's own code fails whatever the text: nobody's text is blamed, the worker stops."""


class TokenizerError(Exception):
    """Raised when a tokenizer can't be loaded or its settings contradict it; one line for the user."""
