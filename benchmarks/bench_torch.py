"""PyTorch on the same GPU, as sentence-transformers feeds it: float16, texts sorted by length, padded batches.

    python -m benchmarks.bench_torch --models minilm bert-base --batch-sizes 128 512

The same lengths as `bench_engine`, the same outputs (mean pooling, length 1, float32 on the host). Eager, and compiled
by torch.compile with dynamic shapes; of the batch sizes the best counts. PyTorch is no dependency of Penstock: this
runs where it is there. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench_engine import (
    LONGEST,
    MINILM,
    SIZES,
    TEXTS,
    demo_windows,
    log_normal,
    random_checkpoint,
    random_windows,
)
from benchmarks.machine import gpu_machine
from engines.checkpoint import find_checkpoint
from pipeline.assembly import open_tokenizer
from pipeline.settings import EnsembleSettings


def main() -> None:
    import torch  # type: ignore[import-not-found]
    from transformers import AutoModel

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["minilm", "bert-base"], choices=["minilm", *SIZES])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[128, 512])
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            source = MINILM if name == "minilm" else str(random_checkpoint(Path(folder, name), *SIZES[name]))
            checkpoint = find_checkpoint(source, relative_to=None)
            model = AutoModel.from_pretrained(checkpoint, dtype=torch.float16, attn_implementation="sdpa").cuda().eval()
            compiled = torch.compile(model, dynamic=True)
            for mix, windows in mixes().items():
                for how, forward in (("eager", model), ("compiled", compiled)):
                    rates = {size: rate(torch, forward, windows, size) for size in options.batch_sizes}
                    results[f"{name}, {mix}, {how}"] = {"texts_per_s": max(rates.values()), "by_batch_size": rates}
                    print(json.dumps({f"{name}, {mix}, {how}": rates}), flush=True)
    print(json.dumps({"benchmark": "torch", "machine": gpu_machine(), "torch": torch.__version__, "results": results}))


def mixes() -> dict[str, list[NDArray[np.int32]]]:
    settings = EnsembleSettings.model_validate(
        {
            "name": "torch",
            "tokenizer": {"source": MINILM, "max_length": LONGEST},
            "models": [{"name": "m", "source": MINILM}],
        }
    )
    return {"real texts": demo_windows(open_tokenizer(settings)), "mean 27": random_windows(log_normal(TEXTS))}


def rate(torch: Any, forward: Callable[..., Any], windows: Sequence[NDArray[np.int32]], batch_size: int) -> int:
    """Texts a second over all of them, after one pass to warm up."""
    ordered = sorted(windows, key=len, reverse=True)
    batches = []
    for first in range(0, len(ordered), batch_size):
        some = ordered[first : first + batch_size]
        ids = np.zeros((len(some), len(some[0])), np.int64)
        mask = np.zeros_like(ids)
        for place, window in enumerate(some):
            ids[place, : len(window)], mask[place, : len(window)] = window, 1
        batches.append((torch.from_numpy(ids).pin_memory(), torch.from_numpy(mask).pin_memory()))

    def once() -> None:
        answers = []
        with torch.inference_mode():
            for ids, mask in batches:
                ids, mask = ids.cuda(non_blocking=True), mask.cuda(non_blocking=True)
                hidden = forward(input_ids=ids, attention_mask=mask).last_hidden_state
                weights = mask.unsqueeze(-1).to(hidden.dtype)
                pooled = (hidden * weights).sum(1) / weights.sum(1)
                answers.append(torch.nn.functional.normalize(pooled.float(), dim=1))
            for answer in answers:
                answer.cpu()
        torch.cuda.synchronize()

    once()
    once()
    started_s = time.perf_counter()
    once()
    return round(len(ordered) / (time.perf_counter() - started_s))


if __name__ == "__main__":
    main()
