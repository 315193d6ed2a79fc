"""Postprocess: a pack of encodings in, one result a text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.packs import ClosedText, EncodedOutput, EncodingPack, PackedText, closed_text, source_of, split_rows
from schemas.regrouping import of_texts
from schemas.results import Output, Result
from stages.blame import answer_apart
from stages.tasks import AnyTask, ChosenTokensTask, PairsTask, TokensTask, join_windows, of_each_text
from stages.token_details import rows_once

# Output name -> by text.
_Rows = Mapping[str, Sequence[NDArray[Any]]]


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
        self._of_texts = {
            name: task
            for name, task in tasks.items()
            if not isinstance(task, (TokensTask, ChosenTokensTask, PairsTask))
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
        once = _tokens_once(pack)
        rows_of = self._rows(pack, rows, once)
        details = [pack.token_details()[each] for each in once]

        def answer(places: Sequence[int]) -> list[Result]:
            texts = [pack.texts[place] for place in places]
            chosen = {name: [each[place] for place in places] for name, each in rows_of.items()}
            outputs = self._outputs(chosen, texts, [details[place] for place in places] if details else ())
            return [_result(pack, text, each) for text, each in zip(texts, outputs, strict=True)]

        return answer_apart(range(len(pack.texts)), answer, harmless=lambda: self.harmless(pack))

    def harmless(self, pack: EncodingPack) -> Result:
        """What the pack's first text would be answered if its numbers were zeros."""
        zeros = {output.name: np.zeros_like(output.rows()) for output in pack.outputs}
        once = _tokens_once(pack)
        rows = {name: each[:1] for name, each in self._rows(pack, zeros, once).items()}
        [outputs] = self._outputs(rows, pack.texts[:1], [pack.token_details()[each] for each in once[:1]])
        return _result(pack, pack.texts[0], outputs)

    def _reads(self, output: EncodedOutput, pack: EncodingPack) -> bool:
        """Whether it is what its task reads: of tokens, all or some, with their details, or not."""
        chosen = output.name in self._of_chosen
        of_tokens = chosen or output.name in self._of_tokens
        fits = output.of_tokens == of_tokens and (output.chosen is not None) == chosen
        return fits and (bool(pack.details) or not of_tokens)

    def _rows(
        self, pack: EncodingPack, rows: Mapping[str, NDArray[np.float32]], once: Sequence[NDArray[np.intp]]
    ) -> _Rows:
        """By text: its windows joined (W,), the rows of its pairs (pairs, W), or those of its tokens (tokens, W), or of
        some of them."""
        chunks = [text.chunks for text in pack.texts]
        found: dict[str, Sequence[NDArray[Any]]] = {}
        for name in self._of_texts:
            found[name] = [*join_windows(rows[name], pack.chunk_lengths(), chunks)]
        for name in self._of_pairs:
            found[name] = of_each_text(rows[name], chunks)
        for name in self._of_tokens:
            found[name] = [rows[name][each].astype(np.float64) for each in once]
        for output in pack.outputs:
            if output.name in self._of_chosen:
                places = output.places()
                found[output.name] = [
                    rows[output.name][np.searchsorted(places, each[np.isin(each, places)])] for each in once
                ]
        return found

    def _outputs(
        self,
        rows: _Rows,
        texts: Sequence[PackedText],
        details: Sequence[NDArray[np.int32]],
    ) -> list[dict[str, Output]]:
        asked = [text.parameters for text in texts]
        answers: dict[str, list[Output]] = {}
        for name, task in self._of_texts.items():
            answers[name] = task(np.stack(rows[name]), asked) if any(asked) else task(np.stack(rows[name]))
        for name, of_pairs in self._of_pairs.items():
            answers[name] = [of_pairs.of_pairs(each, text) for each, text in zip(rows[name], texts, strict=True)]
        for name, of_tokens in self._of_tokens.items():
            answers[name] = [of_tokens.of_tokens(*each) for each in zip(rows[name], details, texts, strict=True)]
        for name, of_chosen in self._of_chosen.items():
            answers[name] = of_chosen.of_chosen(rows[name], details, texts)
        for name, outputs in answers.items():
            assert len(outputs) == len(texts), f"the task of {name} made {len(outputs)} outputs of {len(texts)} texts"
        return [{name: answers[name][place] for name in self._tasks} for place in range(len(texts))]


def without_expired(pack: EncodingPack, now_ms: float) -> tuple[EncodingPack, int]:
    """The pack, in which texts are closed that have expired by then, in milliseconds since 1970; and how many."""
    late = [place for place, text in enumerate(pack.texts) if text.urgency is not None and text.urgency.expired(now_ms)]
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
    """Which of the pack's tokens are each text's, once each; empty where nothing is known of them."""
    if not pack.details:
        return []
    windows = split_rows(pack.token_details(), pack.chunk_lengths())
    once: list[NDArray[np.intp]] = []
    first_window = first_token = 0
    for text in pack.texts:
        once.append(first_token + rows_once(windows[first_window : first_window + text.chunks]))
        first_window += text.chunks
        first_token += text.tokens
    return once


def _result(pack: EncodingPack, text: PackedText, outputs: dict[str, Output]) -> Result:
    return Result(
        id=text.id,
        outputs=outputs,
        tokens=text.tokens,
        truncated=text.truncated,
        chunks=text.chunks,
        source=source_of(pack, text),
    )
