"""The ensemble in one process, without Kafka: the same stages, called one after another.

from pipeline.ensemble import Ensemble

with Ensemble.load("reviews.yaml") as ensemble:
    for result in ensemble.predict(["A text.", "Another one."]):
        print(result.outputs)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError, EngineLost
from pipeline.assembly import open_encode_stage, open_postprocess_stage, open_tokenize_stage
from pipeline.errors import WorkerFailure
from pipeline.settings import EnsembleSettings, load_ensemble, settings_for_model
from schemas.errors import BadRecord
from schemas.packs import EncodingPack, PackedText, TokenPack, source_of
from schemas.records import InputRecord, Source
from schemas.requests import RequestFormat, RequestKind, readable_id
from schemas.results import Result
from stages.encode import Encoded
from stages.errors import StageError
from stages.microbatcher import cut
from stages.pack_in_progress import PackInProgress

# Texts that are taken together: enough for every instance to have several batches.
BLOCK_TEXTS = 512


class Refused(msgspec.Struct, frozen=True):
    """What became of a text that can't be answered: what would be its dead letter."""

    id: str
    error: str
    reason: str
    source: Source


class Ensemble:
    """Tokenizer, engines and tasks of one ensemble file, loaded. Any number of threads may call it."""

    def __init__(self, settings: EnsembleSettings) -> None:
        self.settings = settings
        self._tokenize = open_tokenize_stage(settings)
        self._postprocess = open_postprocess_stage(settings)
        self._encode = open_encode_stage(settings)
        self._closed = False
        self._instances = ThreadPoolExecutor(settings.engine.batches_at_once, thread_name_prefix="encode")

    @classmethod
    def load(cls, path: str | Path) -> Ensemble:
        """The ensemble of a file. Raises SettingsError or UserError, each a line for every mistake."""
        return cls(load_ensemble(path, environ=os.environ))

    @classmethod
    def of_model(cls, source: str, task: str | None = None) -> Ensemble:
        """One model, by its folder or package, with every default."""
        return cls(settings_for_model(source, task))

    @property
    def request_format(self) -> RequestFormat:
        """How `answer` reads a record's value."""
        return self.settings.requests.format

    @property
    def request_kind(self) -> RequestKind:
        """What requests look like, by the models' tasks."""
        return self._tokenize.kind

    @property
    def mask_word(self) -> str | None:
        """What a request's text must have one of, where a model's task is fill-mask."""
        return self._tokenize.mask_word

    def predict(self, texts: Iterable[str | Mapping[str, Any]]) -> Iterator[Result | Refused]:
        """One entry a text or request (`{"text": ..., "parameters": ...}`), in order: its result, or why there is none.

        Reads `texts`, which may be endless, 512 ahead of its answers. Raises TypeError where one is neither.
        """
        if isinstance(texts, (str, Mapping)):
            raise TypeError("predict takes texts, such as a list of them, and not one text")
        return self.answer(
            InputRecord(Source("predict", 0, number), None, _value(text, self.request_format), [])
            for number, text in enumerate(texts)
        )

    def answer(self, records: Iterable[InputRecord]) -> Iterator[Result | Refused]:
        """One entry a request record, in order. The records' offsets must grow."""
        remaining = iter(records)
        while block := list(islice(remaining, BLOCK_TEXTS)):
            if self._closed:
                raise ValueError("the ensemble is closed")
            yield from self._answer_block(block)

    def close(self) -> None:
        """Let go of the engines. May be called twice."""
        if not self._closed:
            self._closed = True
            # What waits for an instance is given up: whoever closes early wants no more answers.
            self._instances.shutdown(cancel_futures=True)
            self._encode.close()

    def __enter__(self) -> Ensemble:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer_block(self, block: Sequence[InputRecord]) -> list[Result | Refused]:
        try:
            return self._answers(block)
        except StageError as err:  # not one text's fault
            raise WorkerFailure(str(err)) from err

    def _answers(self, block: Sequence[InputRecord]) -> list[Result | Refused]:
        [(pack, rejected)] = self._tokenize([block])
        answers: dict[int, Result | Refused] = {
            each.record.source.offset: _refused(
                readable_id(each.record, format=self.request_format), each.record.source, each.error
            )
            for each in rejected
        }
        if pack is not None:
            encodings, lost = self._encode_pack(pack)
            for text, error in lost:
                answers[text.offset] = _refused(text.id, source_of(pack, text), error)
            if encodings is not None:
                for text, answer in zip(encodings.texts, self._postprocess(encodings), strict=True):
                    if isinstance(answer, BadRecord):
                        answers[text.offset] = _refused(text.id, source_of(pack, text), answer)
                    else:
                        answers[text.offset] = answer
        assert len(answers) == len(block), "one answer a record"
        return [answers[record.source.offset] for record in block]

    def _encode_pack(self, pack: TokenPack) -> tuple[EncodingPack | None, list[tuple[PackedText, BadRecord]]]:
        batching = self.settings.batching
        progress = PackInProgress(pack, self)
        batches = cut(
            [len(window) for window in progress.windows],
            max_batch_size=batching.max_batch_size,
            max_batch_tokens=batching.max_batch_tokens,
        )
        computed = self._instances.map(
            lambda places: self._encode_windows([progress.windows[place] for place in places]), batches
        )
        for places, encoded in zip(batches, computed, strict=True):
            for index, place in enumerate(places):
                progress.put(place, encoded, index)
        return progress.encodings()

    def _encode_windows(self, windows: list[NDArray[np.int32]]) -> Encoded:
        try:
            return self._encode(windows)
        except (EngineError, EngineLost) as err:  # not one text's fault: the engine can't compute anything
            raise WorkerFailure(f"the engine can't compute: {err}") from err


def _value(text: str | Mapping[str, Any], format: RequestFormat) -> bytes:
    if isinstance(text, Mapping) and format == "json":
        return msgspec.json.encode(dict(text))
    if not isinstance(text, str):  # bytes would become base64, and be answered as that
        raise TypeError(f"predict takes texts, and one is of type {type(text).__name__}")
    try:
        # str(): msgspec does not know what is derived from it, NumPy's strings for instance.
        return msgspec.json.encode({"text": str(text)}) if format == "json" else text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: no UTF-8, which is then told as of any other record
        return text.encode(errors="surrogatepass")


def _refused(id: str, source: Source, error: BadRecord) -> Refused:
    return Refused(id, error.message, str(error.reason), source)
