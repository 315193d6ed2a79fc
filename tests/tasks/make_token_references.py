"""Writes token_references.safetensors: what transformers' pipelines answer of each token.

Run once, outside the project's environment, where PyTorch is, from the repository's root:

    PYTHONPATH=. ref/bin/python tests/tasks/make_token_references.py

Models, tokenizers and texts are made as in make_task_references.py. Tensors: `FAMILY/NAME`, the weights of a
...ForTokenClassification; `features/FAMILY`, the first numbers of each token's vector (tokens, 4), and
`features/FAMILY/lengths`, the tokens of each text; `answers`, the entities as JSON, gzipped, each a list of its values;
metadata: configs, tokenizers, texts, versions.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from tests.tasks.make_task_references import FAMILIES, HARD, family_tokenizer, keep, texts

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
STRATEGIES = ("none", "simple", "first", "average", "max")
FEATURE_TEXTS = 40
FEATURE_NUMBERS = 4


def make_decisive(model: Any, tokenizer: Any, corpus: list[str]) -> None:
    """Make its decisions differ from token to token."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter * 4 if parameter.dim() == 2 else parameter + 0.2 * torch.randn_like(parameter))
        inputs = [tokenizer(text, truncation=True, return_tensors="pt") for text in corpus]
        logits = torch.cat([model(**each).logits[0] for each in inputs])
        spread = (logits - logits.mean(dim=0)).std()
        model.classifier.bias -= logits.mean(dim=0)
        model.classifier.bias /= spread
        model.classifier.weight /= spread


def values(entities: list[dict[str, Any]]) -> list[list[Any]]:
    return [[round(float(value), 6) if key == "score" else value for key, value in each.items()] for each in entities]


def main() -> None:
    torch.manual_seed(20_261_128)
    corpus = texts()
    chosen = [*corpus[: FEATURE_TEXTS - len(HARD)], *HARD]
    tensors: dict[str, np.ndarray] = {}
    configs: dict[str, Any] = {}
    tokenizers: dict[str, str] = {}
    answers: dict[str, Any] = {}
    for family, (name, _, sizes) in FAMILIES.items():
        raw, tokenizer = family_tokenizer(family, corpus)
        tokenizers[family] = raw.to_str()
        config = getattr(transformers, f"{name}Config")(
            **sizes,
            pad_token_id=tokenizer.pad_token_id,
            vocab_size=raw.get_vocab_size(),
            id2label=dict(enumerate(LABELS)),
            label2id={label: place for place, label in enumerate(LABELS)},
        )
        model = getattr(transformers, f"{name}ForTokenClassification")(config).eval()
        make_decisive(model, tokenizer, corpus[:100])
        keep(model, family, tensors, configs)
        extract = transformers.pipeline("feature-extraction", model=model.base_model, tokenizer=tokenizer, device="cpu")
        features = [np.array(extract(text, truncation=True)[0], np.float32) for text in chosen]
        tensors[f"features/{family}"] = np.concatenate(features)[:, :FEATURE_NUMBERS].copy()
        tensors[f"features/{family}/lengths"] = np.array([len(each) for each in features], np.int32)
        classify = transformers.pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu")
        for strategy in STRATEGIES:
            answers[f"{family}/{strategy}"] = [values(classify(each, aggregation_strategy=strategy)) for each in corpus]
        ignored = {"aggregation_strategy": "first", "ignore_labels": ["LOC", "O"]}
        answers[f"{family}/ignored"] = [values(classify(each, **ignored)) for each in corpus]
    tensors["answers"] = np.frombuffer(gzip.compress(json.dumps(answers).encode(), mtime=0), np.uint8)
    metadata = {
        "configs": json.dumps(configs),
        "tokenizers": json.dumps(tokenizers),
        "texts": json.dumps(corpus),
        "features": json.dumps(chosen),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    save_file(tensors, Path(__file__).with_name("token_references.safetensors"), metadata=metadata)


if __name__ == "__main__":
    main()
