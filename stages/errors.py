"""What can go wrong in a stage beyond a single record (which is `schemas.errors.BadRecord`)."""


class TokenizerError(Exception):
    """Raised when a tokenizer can't be loaded or its settings contradict it; one line for the user."""
