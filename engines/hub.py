"""Models of the Hugging Face hub, by their names there: `org/name`, or `org/name@revision`.

What is in the hub's cache (`HF_HOME`) is taken from there without asking anybody; else it is fetched, once: configs,
tokenizers and safetensors, none of the other formats a repository may hold. A revision pins what is run: without one it
is the cache's `main`, whenever that was fetched.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from engines.errors import CheckpointError

log = logging.getLogger("penstock.hub")

_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})(@(?P<revision>[\w./-]{1,100}))?")
# A sentence-transformers folder has its modules' in folders of their own.
_WANTED = ("*.json", "*.txt", "*.model", "*.safetensors")
_UNWANTED = ("onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*", "coreml/*", "flax*", "tf_*")


def is_hub_name(source: str) -> bool:
    """Whether it may be one: it looks like a path of two parts too."""
    return _NAME.fullmatch(source) is not None


def hub_folder(source: str) -> Path:
    """The folder of a model in the hub's cache, fetched if it isn't there. Raises CheckpointError."""
    matched = _NAME.fullmatch(source)
    assert matched is not None, "asked before"
    # Half a second of imports, for who names no hub's model.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def fetch(*, local: bool) -> Path:
        return Path(
            snapshot_download(
                matched["repo"],
                revision=matched["revision"],
                allow_patterns=[*_WANTED],
                ignore_patterns=[*_UNWANTED],
                local_files_only=local,
            )
        )

    try:
        folder = fetch(local=True)
        if (folder / "config.json").is_file():
            return folder
    except LocalEntryNotFoundError:
        pass
    log.info("fetching %s from the Hugging Face hub", source)
    where = f"model {source!r}: no such folder, and"
    try:
        folder = fetch(local=False)
    except GatedRepoError as err:
        raise CheckpointError(f"{where} the hub gives it to who has asked for it only: set HF_TOKEN") from err
    except RevisionNotFoundError as err:
        raise CheckpointError(f"{where} the hub has no revision {matched['revision']!r} of it: correct it") from err
    except RepositoryNotFoundError as err:
        raise CheckpointError(
            f"{where} the hub has none of this name, or not for all: correct it, or set HF_TOKEN"
        ) from err
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as err:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise CheckpointError(
            f"{where} the hub can't be reached ({reason[:200]}): correct the path, or fetch it where there "
            "is a network and name the folder"
        ) from err
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"model {source!r}: the hub's {matched['repo']} has no config.json: it is no model to run"
        )
    return folder
