"""`penstock predict`: a line of JSON out for each line in, without Kafka."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pipeline.ensemble import BLOCK_TEXTS, Ensemble
from pipeline.lines_of_text import line_blocks, opened_lines, request_of
from pipeline.outputs import results_alone
from schemas.records import InputRecord, Source


def predict_lines(file: Path | None, model: str | None, task: str | None) -> None:
    """Answer standard input line by line; what is there is answered before more is waited for."""
    with (
        results_alone() as results,
        opened_lines("-") as descriptor,
        Ensemble.load(file) if file is not None else Ensemble.of_model(str(model), task) as ensemble,
    ):
        encoder = msgspec.json.Encoder()
        number = 0
        for block in line_blocks(descriptor, max_lines=BLOCK_TEXTS):
            records = [
                InputRecord(Source("stdin", 0, number + place), None, request_of(line, ensemble.request_format), [])
                for place, line in enumerate(block)
            ]
            number += len(block)
            for answer in ensemble.answer(records):
                results.buffer.write(encoder.encode(answer) + b"\n")
            results.flush()
