"""Postprocess: a pack of encodings in, one result a text out."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.errors import BadRecord, Reason
from schemas.packs import EncodingPack, source_of
from schemas.results import Result
from stages.tasks import Task, join_windows


class PostprocessStage:
    """Joins each text's windows and lets every model's task answer. `tasks` is by model name."""

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self._tasks = dict(tasks)

    def __call__(self, pack: EncodingPack) -> list[Result]:
        """One result a text, in order. Raises BadRecord where a model's output is missing or another's."""
        lengths = pack.chunk_lengths()
        chunks = [text.chunks for text in pack.texts]
        rows = {output.name: output.rows() for output in pack.outputs}
        missing = self._tasks.keys() - rows.keys()
        if missing:
            raise BadRecord(
                Reason.BAD_PACK,
                f"no output of {', '.join(sorted(missing))}: do all stages run the same ensemble file?",
            )
        answers = {name: task(join_windows(rows[name], lengths, chunks)) for name, task in self._tasks.items()}
        return [
            Result(
                id=text.id,
                outputs={name: outputs[place] for name, outputs in answers.items()},
                tokens=text.tokens,
                truncated=text.truncated,
                chunks=text.chunks,
                source=source_of(pack, text),
            )
            for place, text in enumerate(pack.texts)
        ]
