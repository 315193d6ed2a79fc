"""Postprocess: a pack of encodings in, one result a text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.packs import (
    ClosedText,
    EncodedOutput,
    EncodingPack,
    Number,
    PackedText,
    closed_text,
    source_of,
    split_rows,
)
from schemas.regrouping import of_texts
from schemas.results import Output, Result
from stages.blame import answer_apart
from stages.tasks import (
    AnyTask,
    ChosenTokensTask,
    PairsTask,
    TokensTask,
    WindowsTask,
    join_windows,
    of_each_text,
)
from stages.token_details import rows_once


@dataclass(slots=True)
class _Numbers:
    """Of several texts, by output and text: `rows` are its windows joined (W,), the rows of its pairs (pairs, W), or
    those of its tokens once each (tokens, W), or of some of them, with the `details` of all; `windows` those of the
    tokens of each window, with `window_details`."""

    rows: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    details: list[NDArray[np.int32]] = field(default_factory=list)
    windows: dict[str, list[list[NDArray[np.float64]]]] = field(default_factory=dict)
    window_details: list[list[NDArray[np.int32]]] = field(default_factory=list)

    def of(self, places: Sequence[int]) -> _Numbers:
        """Those of some of the texts."""
        return _Numbers(
            {name: [each[place] for place in places] for name, each in self.rows.items()},
            [self.details[place] for place in places] if self.details else [],
            {name: [each[place] for place in places] for name, each in self.windows.items()},
            [self.window_details[place] for place in places] if self.window_details else [],
        )


class PostprocessStage:
    """Joins each text's windows and lets every model's task answer. `tasks` is by model name.

    A task that fails on a text costs only that text its answer. It must be able to answer a row of zeros: with that a
    task that fails on one text is told from one that always does.
    """

    def __init__(self, tasks: Mapping[str, AnyTask]) -> None:
        self._tasks = dict(tasks)
        # What reads what is asked once: of protocols it takes a microsecond.
        self._of_tokens = {name: task for name, task in tasks.items() if isinstance(task, TokensTask)}
        self._of_chosen = {name: task for name, task in tasks.items() if isinstance(task, ChosenTokensTask)}
        self._of_pairs = {name: task for name, task in tasks.items() if isinstance(task, PairsTask)}
        self._of_windows = {name: task for name, task in tasks.items() if isinstance(task, WindowsTask)}
        self._of_texts = {
            name: task
            for name, task in tasks.items()
            if not isinstance(task, (TokensTask, ChosenTokensTask, PairsTask, WindowsTask))
        }

    def __call__(self, pack: EncodingPack) -> list[Result | BadRecord]:
        """One entry a text, in order: its result, or why there is none. What is closed has none.

        Raises StageError where a task fails whatever the text.
        """
        if not pack.texts:
            return []
        rows = {output.name: output.rows() for output in pack.outputs}
        missing = self._tasks.keys() - {output.name for output in pack.outputs if self._reads(output, pack)}
        if missing:
            names = ", ".join(sorted(missing))
            error = BadRecord(Reason.BAD_PACK, f"no output of {names}: do all stages run the same ensemble file?")
            return [error] * len(pack.texts)
        numbers = self._numbers(pack, rows)

        def answer(places: Sequence[int]) -> list[Result]:
            texts = [pack.texts[place] for place in places]
            outputs = self._outputs(numbers.of(places), texts, pack)
            return [_result(pack, text, each) for text, each in zip(texts, outputs, strict=True)]

        return answer_apart(range(len(pack.texts)), answer, harmless=lambda: self.harmless(pack))

    def harmless(self, pack: EncodingPack) -> Result:
        """What the pack's first text would be answered if its numbers were zeros."""
        zeros = {output.name: np.zeros_like(output.rows()) for output in pack.outputs}
        [outputs] = self._outputs(self._numbers(pack, zeros).of([0]), pack.texts[:1], pack)
        return _result(pack, pack.texts[0], outputs)

    def _reads(self, output: EncodedOutput, pack: EncodingPack) -> bool:
        """Whether it is what its task reads: of tokens, all or some, with their details, or not."""
        chosen = output.name in self._of_chosen
        of_tokens = chosen or output.name in self._of_tokens or output.name in self._of_windows
        fits = output.of_tokens == of_tokens and (output.chosen is not None) == chosen
        return fits and (bool(pack.details) or not of_tokens)

    def _numbers(self, pack: EncodingPack, rows: Mapping[str, NDArray[np.float32]]) -> _Numbers:
        chunks = [text.chunks for text in pack.texts]
        numbers = _Numbers()
        for name in self._of_texts:
            numbers.rows[name] = [*join_windows(rows[name], pack.chunk_lengths(), chunks)]
        for name in self._of_pairs:
            numbers.rows[name] = of_each_text(rows[name], chunks)
        if self._of_tokens or self._of_chosen:
            once = _tokens_once(pack)
            numbers.details = [pack.token_details()[each] for each in once]
            for name in self._of_tokens:
                numbers.rows[name] = [rows[name][each].astype(np.float64) for each in once]
            for output in pack.outputs:
                if output.name in self._of_chosen:
                    places = output.places()
                    numbers.rows[output.name] = [
                        rows[output.name][np.searchsorted(places, each[np.isin(each, places)])] for each in once
                    ]
        if self._of_windows:
            numbers.window_details = _of_windows(pack.token_details(), pack)
            for name in self._of_windows:
                numbers.windows[name] = _of_windows(rows[name].astype(np.float64), pack)
        return numbers

    def _outputs(self, numbers: _Numbers, texts: Sequence[PackedText], pack: EncodingPack) -> list[dict[str, Output]]:
        rows, asked = numbers.rows, [text.parameters for text in texts]
        answers: dict[str, list[Output]] = {}
        for name, task in self._of_texts.items():
            answers[name] = task(np.stack(rows[name]), asked) if any(asked) else task(np.stack(rows[name]))
        for name, of_pairs in self._of_pairs.items():
            answers[name] = [of_pairs.of_pairs(each, text) for each, text in zip(rows[name], texts, strict=True)]
        for name, of_tokens in self._of_tokens.items():
            answers[name] = [
                of_tokens.of_tokens(*each) for each in zip(rows[name], numbers.details, texts, strict=True)
            ]
        for name, of_chosen in self._of_chosen.items():
            answers[name] = of_chosen.of_chosen(
                rows[name], numbers.details, texts, [source_of(pack, text) for text in texts]
            )
        for name, of_windows in self._of_windows.items():
            windows = zip(numbers.windows[name], numbers.window_details, texts, strict=True)
            answers[name] = [of_windows.of_windows(*each) for each in windows]
        for name, outputs in answers.items():
            assert len(outputs) == len(texts), f"the task of {name} made {len(outputs)} outputs of {len(texts)} texts"
        return [{name: answers[name][place] for name in self._tasks} for place in range(len(texts))]


def without_expired(pack: EncodingPack, now_ms: float) -> tuple[EncodingPack, int]:
    """The pack, in which texts are closed that have expired by then, in milliseconds since 1970; and how many."""
    late = {place for place, text in enumerate(pack.texts) if text.urgency is not None and text.urgency.expired(now_ms)}
    if not late:
        return pack, 0
    smaller = of_texts(pack, [place for place in range(len(pack.texts)) if place not in late])
    closed = [*pack.closed, *(closed_text(pack.texts[place], "expired") for place in late)]
    return msgspec.structs.replace(smaller, closed=sorted(closed, key=lambda text: text.offset)), len(late)


def unanswered(pack: EncodingPack, text: ClosedText) -> Result:
    """What a closed text is answered."""
    return Result(
        id=text.id,
        outputs={},
        tokens=0,
        truncated=False,
        chunks=0,
        source=source_of(pack, text),
        unanswered=text.why,
    )


def _tokens_once(pack: EncodingPack) -> list[NDArray[np.intp]]:
    """Which of the pack's tokens are each text's, once each."""
    windows = split_rows(pack.token_details(), pack.chunk_lengths())
    once: list[NDArray[np.intp]] = []
    first_window = first_token = 0
    for text in pack.texts:
        once.append(first_token + rows_once(windows[first_window : first_window + text.chunks]))
        first_window += text.chunks
        first_token += text.tokens
    return once


def _of_windows(rows: NDArray[Number], pack: EncodingPack) -> list[list[NDArray[Number]]]:
    """Of the pack's tokens -> by text and window."""
    windows = iter(split_rows(rows, pack.chunk_lengths()))
    return [[next(windows) for _ in range(text.chunks)] for text in pack.texts]


def _result(pack: EncodingPack, text: PackedText, outputs: dict[str, Output]) -> Result:
    return Result(
        id=text.id,
        outputs=outputs,
        tokens=text.tokens,
        truncated=text.truncated,
        chunks=text.chunks,
        source=source_of(pack, text),
    )
