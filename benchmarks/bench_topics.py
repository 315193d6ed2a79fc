"""Topic to topic against the bare engine: same texts, same cores, one run, alternating.

    make bench BENCH=bench_topics ARGS='--count 20000 --rounds 2'

The bare engine gets token ids that lie ready and its vectors are thrown away: no tokenizer, no topics, no JSON. It runs
the same micro-batches on as many threads as the encode stage has instances. Topic to topic is `penstock demo`: the
embedded broker, three stages in three processes, a producer and a consumer, all on the same cores. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.demo import DEMO, run_demo
from benchmarks.machine import machine
from pipeline.assembly import open_encode_stage, open_tokenizer
from pipeline.demo.texts import read_texts
from pipeline.settings import load_ensemble
from stages.microbatcher import cut
from stages.text_tokenizer import TokenizedText


def bare(file: Path, texts: list[str]) -> dict[str, float]:
    """Texts and real tokens a second of the encode stage alone, and its padding share."""
    settings = load_ensemble(file)
    tokenized = open_tokenizer(settings)(texts)
    windows = [window for text in tokenized if isinstance(text, TokenizedText) for window in text.windows]
    batches = cut(
        [len(window) for window in windows],
        max_batch_size=settings.batching.max_batch_size,
        max_batch_tokens=settings.batching.max_batch_tokens,
    )
    stage = open_encode_stage(settings)

    def run(places: list[int]) -> tuple[int, int]:
        chosen = [windows[place] for place in places]
        encoded = stage(chosen)
        return encoded.tokens, encoded.padded_tokens

    with ThreadPoolExecutor(settings.engine.batches_at_once) as instances:
        list(instances.map(run, batches[: 2 * settings.engine.batches_at_once]))
        started_s = time.perf_counter()
        counts = list(instances.map(run, batches))
        seconds = time.perf_counter() - started_s
    stage.close()
    tokens = sum(real for real, _ in counts)
    return {
        "texts_per_s": len(texts) / seconds,
        "tokens_per_s": tokens / seconds,
        "padding_share": 1 - tokens / sum(padded for _, padded in counts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ensemble", type=Path, default=DEMO / "ensemble.yaml")
    parser.add_argument("--texts", type=Path, default=DEMO / "texts.txt.gz")
    parser.add_argument("--fused", action="store_true", help="one process from requests to results")
    options = parser.parse_args()
    texts = list(islice(read_texts(options.texts), options.count))
    demo_options = ["--texts", str(options.texts), *(["--fused"] if options.fused else [])]
    engine: list[dict[str, float]] = []
    topics: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        engine.append(bare(options.ensemble, texts))
        topics.append(run_demo(options.ensemble, options.count, *demo_options))
    engine_rate = statistics.median(each["texts_per_s"] for each in engine)
    topics_rate = statistics.median(each["texts_per_s"] for each in topics)
    print(
        json.dumps(
            {
                "benchmark": "topics",
                "fused": options.fused,
                "machine": machine(),
                "ratio": topics_rate / engine_rate,
                "engine": engine,
                "topics": topics,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
