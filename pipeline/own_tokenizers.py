"""A tokenizer of the user's own, made and tried."""

from __future__ import annotations

from engines.errors import CheckpointError
from pipeline.model_files import found_folder
from pipeline.own_classes import made
from pipeline.settings import EnsembleSettings
from stages.blame import told
from stages.errors import TokenizerError
from stages.own import Tokenizer
from stages.plain_tokens import PlainTokens

_PLACE = ("tokenizer", "class")


def own_tokenizer(settings: EnsembleSettings) -> Tokenizer:
    """One of the class, which has tokenized a text. It is offered the tokenizer's folder, the model's where the file
    names no other. Raises SettingsError."""
    path = settings.tokenizer.class_
    assert path is not None
    try:
        offered = {"source": found_folder(settings.tokenizer_source)}
    except CheckpointError as err:
        raise settings.mistake(*settings.tokenizer_place, message=str(err)) from err
    tokenizer: Tokenizer = made(settings, path, _PLACE, settings.tokenizer.options, offered)
    if not callable(tokenizer):
        message = f"{path} has no __call__(texts), which gives the token ids of each: see docs/own-classes.md"
        raise settings.mistake(*_PLACE, message=message)
    longest = getattr(tokenizer, "model_max_length", None)
    if longest is not None and (not isinstance(longest, int) or longest < 1):
        raise settings.mistake(*_PLACE, message=f"{path}: model_max_length is {longest!r}: a whole number is wanted")
    try:
        PlainTokens(tokenizer, path.attribute).of_windows(["a", ""])
    except TokenizerError as err:
        raise settings.mistake(*_PLACE, message=str(err)) from err
    except Exception as err:  # a user's own code raises anything
        raise settings.mistake(*_PLACE, message=f"{path} fails on the text 'a': {told(err)}: correct it") from err
    return tokenizer
