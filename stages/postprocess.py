"""Postprocess: a pack of encodings in, one result a text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.packs import EncodingPack, PackedText, source_of
from schemas.results import Output, Result
from stages.blame import answer_apart
from stages.tasks import PairsTask, Task, join_windows, of_each_text


class PostprocessStage:
    """Joins each text's windows and lets every model's task answer. `tasks` is by model name.

    A task that fails on a text costs only that text its answer. It must be able to answer a row of zeros: with that a
    task that fails on one text is told from one that always does.
    """

    def __init__(self, tasks: Mapping[str, Task | PairsTask]) -> None:
        self._tasks = dict(tasks)

    def __call__(self, pack: EncodingPack) -> list[Result | BadRecord]:
        """One entry a text, in order: its result, or why there is none.

        Raises StageError where a task fails whatever the text.
        """
        rows = {output.name: output.rows() for output in pack.outputs}
        missing = self._tasks.keys() - rows.keys()
        if missing:
            names = ", ".join(sorted(missing))
            error = BadRecord(Reason.BAD_PACK, f"no output of {names}: do all stages run the same ensemble file?")
            return [error] * len(pack.texts)
        rows_of = {name: _of_texts(task, pack, rows[name]) for name, task in self._tasks.items()}

        def answer(places: Sequence[int]) -> list[Result]:
            texts = [pack.texts[place] for place in places]
            outputs = self._outputs({name: [each[place] for place in places] for name, each in rows_of.items()}, texts)
            return [_result(pack, text, each) for text, each in zip(texts, outputs, strict=True)]

        return answer_apart(range(len(pack.texts)), answer, harmless=lambda: self.harmless(pack))

    def harmless(self, pack: EncodingPack) -> Result:
        """What the pack's first text would be answered if its numbers were zeros."""
        zeros = {output.name: np.zeros_like(output.rows()) for output in pack.outputs}
        rows = {name: [_of_texts(task, pack, zeros[name])[0]] for name, task in self._tasks.items()}
        [outputs] = self._outputs(rows, pack.texts[:1])
        return _result(pack, pack.texts[0], outputs)

    def _outputs(
        self, rows: Mapping[str, Sequence[NDArray[np.float64]]], texts: Sequence[PackedText]
    ) -> list[dict[str, Output]]:
        answers = {name: _answers(task, rows[name], texts) for name, task in self._tasks.items()}
        for name, outputs in answers.items():
            assert len(outputs) == len(texts), f"the task of {name} made {len(outputs)} outputs of {len(texts)} texts"
        return [{name: outputs[place] for name, outputs in answers.items()} for place in range(len(texts))]


def _of_texts(
    task: Task | PairsTask, pack: EncodingPack, rows: NDArray[np.float32]
) -> NDArray[np.float64] | list[NDArray[np.float64]]:
    """By text: its windows joined (W,), or the rows of its pairs (pairs, W)."""
    chunks = [text.chunks for text in pack.texts]
    if isinstance(task, PairsTask):
        return of_each_text(rows, chunks)
    return join_windows(rows, pack.chunk_lengths(), chunks)


def _answers(task: Task | PairsTask, rows: Sequence[NDArray[np.float64]], texts: Sequence[PackedText]) -> list[Output]:
    if isinstance(task, PairsTask):
        return [task.of_pairs(each, text) for each, text in zip(rows, texts, strict=True)]
    asked = [text.parameters for text in texts]
    return task(np.stack(rows), asked) if any(asked) else task(np.stack(rows))


def _result(pack: EncodingPack, text: PackedText, outputs: dict[str, Output]) -> Result:
    return Result(
        id=text.id,
        outputs=outputs,
        tokens=text.tokens,
        truncated=text.truncated,
        chunks=text.chunks,
        source=source_of(pack, text),
    )
