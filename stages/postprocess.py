"""Postprocess: a pack of encodings in, one result a text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.packs import EncodingPack, source_of
from schemas.results import Output, Result
from stages.blame import answer_apart
from stages.tasks import Task, join_windows


class PostprocessStage:
    """Joins each text's windows and lets every model's task answer. `tasks` is by model name.

    A task that fails on a text costs only that text its answer. It must be able to answer a row of zeros: with that a
    task that fails on one text is told from one that always does.
    """

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self._tasks = dict(tasks)

    def __call__(self, pack: EncodingPack) -> list[Result | BadRecord]:
        """One entry a text, in order: its result, or why there is none.

        Raises StageError where a task fails whatever the text.
        """
        lengths = pack.chunk_lengths()
        chunks = [text.chunks for text in pack.texts]
        rows = {output.name: output.rows() for output in pack.outputs}
        missing = self._tasks.keys() - rows.keys()
        if missing:
            names = ", ".join(sorted(missing))
            error = BadRecord(Reason.BAD_PACK, f"no output of {names}: do all stages run the same ensemble file?")
            return [error] * len(pack.texts)
        joined = {name: join_windows(rows[name], lengths, chunks) for name in self._tasks}

        def answer(places: Sequence[int]) -> list[Result]:
            outputs = self._outputs({name: each[places] for name, each in joined.items()}, len(places))
            return [_result(pack, place, each) for place, each in zip(places, outputs, strict=True)]

        return answer_apart(range(len(pack.texts)), answer, harmless=lambda: self.harmless(pack))

    def harmless(self, pack: EncodingPack) -> Result:
        """What the pack's first text would be answered if its numbers were zeros."""
        widths = {output.name: output.rows().shape[1] for output in pack.outputs}
        [outputs] = self._outputs({name: np.zeros((1, widths[name])) for name in self._tasks}, 1)
        return _result(pack, 0, outputs)

    def _outputs(self, joined: Mapping[str, NDArray[np.float64]], count: int) -> list[dict[str, Output]]:
        answers = {name: task(joined[name]) for name, task in self._tasks.items()}
        for name, outputs in answers.items():
            assert len(outputs) == count, f"the task of {name} made {len(outputs)} outputs of {count} texts"
        return [{name: outputs[place] for name, outputs in answers.items()} for place in range(count)]


def _result(pack: EncodingPack, place: int, outputs: dict[str, Output]) -> Result:
    text = pack.texts[place]
    return Result(
        id=text.id,
        outputs=outputs,
        tokens=text.tokens,
        truncated=text.truncated,
        chunks=text.chunks,
        source=source_of(pack, text),
    )
