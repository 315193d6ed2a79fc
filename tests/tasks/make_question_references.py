"""Writes question_references.safetensors: what transformers' question-answering pipeline answers.

transformers 5 has no such pipeline. Run once, outside the project's environment, from the repository's root:

    python -m venv ref && ref/bin/pip install torch "transformers>=4.57,<5"
    PYTHONPATH=. ref/bin/python tests/tasks/make_question_references.py

Tokenizers and texts are made as in make_task_references.py, models too, but narrower, and with weights that float16
holds. BERT reads 400 tokens, so that a window has the pipeline's 384; the others read 96. Tensors: `FAMILY/NAME`, the
weights of a ...ForQuestionAnswering; `requests` and `answers`, of each family, as JSON, gzipped; metadata: configs,
tokenizers, versions.
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

from tests.tasks.make_task_references import DISTIL, FAMILIES, HARD, SIZES, family_tokenizer, keep, rounded, texts

QUESTIONS = 40
LONGEST = {"bert": 400}
NARROW = {"hidden_size": 16, "intermediate_size": 24}
ASKED: list[dict[str, Any]] = [
    {},
    {"top_k": 3},
    {"handle_impossible_answer": True},
    {"align_to_words": False, "top_k": 2},
    {"max_answer_len": 3},
    {"top_k": 4, "handle_impossible_answer": True, "max_answer_len": 40},
    {"max_seq_len": 48, "doc_stride": 8, "top_k": 3},
    {"align_to_words": False, "max_seq_len": 50, "doc_stride": 0},
]


def config_of(family: str, **more: Any) -> Any:
    name, _, sizes = FAMILIES[family]
    positions = LONGEST.get(family, 96) + sizes["max_position_embeddings"] - SIZES["max_position_embeddings"]
    narrow = {"dim": 16, "hidden_dim": 24} if sizes is DISTIL else NARROW
    return getattr(transformers, f"{name}Config")(
        **{**sizes, **narrow, "max_position_embeddings": positions, **more},
    )


def make_decisive(model: Any, tokenizer: Any, pairs: list[tuple[str, str]]) -> None:
    """Make its decisions differ from token to token, and round its weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter * 4 if parameter.dim() == 2 else parameter + 0.2 * torch.randn_like(parameter))
        inputs = [tokenizer(*pair, truncation=True, return_tensors="pt") for pair in pairs]
        answers = [model(**{name: each[name] for name in tokenizer.model_input_names}) for each in inputs]
        logits = torch.cat([torch.stack([each.start_logits[0], each.end_logits[0]], 1) for each in answers])
        spread = (logits - logits.mean(dim=0)).std() / 2
        model.qa_outputs.bias -= logits.mean(dim=0)
        model.qa_outputs.bias /= spread
        model.qa_outputs.weight /= spread
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())


def usual(corpus: list[str], place: int) -> list[dict[str, Any]]:
    """Questions over one to three lines, in each way to ask in turn."""
    requests = []
    for number in range(place * QUESTIONS, (place + 1) * QUESTIONS):
        question = " ".join(corpus[number].split()[:5])
        context = " ".join(corpus[(number + 1 + more) % len(corpus)] for more in range(number % 3 + 1))
        requests.append({"question": question, "context": context, "parameters": ASKED[number % len(ASKED)]})
    return requests


def hard(corpus: list[str]) -> list[dict[str, Any]]:
    who, about = "who was it?", corpus[1]
    found = [{"question": who, "context": text} for text in (*filter(None, HARD), "a", "\u200b\u0301", "x y")]
    found += [{"question": text, "context": about} for text in (" ", HARD[2], HARD[6][:9], "??", "[MASK] <mask>")]
    found.append({"question": who, "context": " ".join(corpus[:25])})
    found.append({"question": who, "context": " ".join(corpus[30:45]) + " 😀 e\u0301 שלום"})
    return [
        {**each, "parameters": parameters}
        for each in found
        for parameters in ({}, {"top_k": 3}, {"top_k": 3, "handle_impossible_answer": True, "align_to_words": False})
    ]


def main() -> None:
    if not transformers.__version__.startswith("4."):
        raise SystemExit(f"transformers {transformers.__version__} has no question-answering pipeline: install 4.57")
    torch.manual_seed(20_261_129)
    corpus = texts()
    lines = corpus[:200]
    tensors: dict[str, np.ndarray] = {}
    configs: dict[str, Any] = {}
    tokenizers: dict[str, str] = {}
    requests: dict[str, Any] = {"hard": hard(lines)}
    answers: dict[str, Any] = {}
    for place, family in enumerate(FAMILIES):
        raw, tokenizer = family_tokenizer(family, corpus)
        tokenizer.model_max_length = LONGEST.get(family, 96)
        tokenizers[family] = raw.to_str()
        config = config_of(family, pad_token_id=tokenizer.pad_token_id, vocab_size=raw.get_vocab_size())
        model = getattr(transformers, f"{FAMILIES[family][0]}ForQuestionAnswering")(config).eval()
        make_decisive(model, tokenizer, list(zip(lines[:50], lines[50:100], strict=True)))
        keep(model, family, tensors, configs)
        pipe = transformers.pipeline("question-answering", model=model, tokenizer=tokenizer, device="cpu")
        requests[family] = usual(lines, place)
        answers[family] = [
            rounded(pipe(question=each["question"], context=each["context"], **each["parameters"]))
            for each in (*requests[family], *requests["hard"])
        ]
    tensors = {name: each.astype(np.float16) for name, each in tensors.items()}
    for name, each in (("requests", requests), ("answers", answers)):
        tensors[name] = np.frombuffer(gzip.compress(json.dumps(each).encode(), mtime=0), np.uint8)
    metadata = {
        "configs": json.dumps(configs),
        "tokenizers": json.dumps(tokenizers),
        "longest": json.dumps({family: LONGEST.get(family, 96) for family in FAMILIES}),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    save_file(tensors, Path(__file__).with_name("question_references.safetensors"), metadata=metadata)


if __name__ == "__main__":
    main()
