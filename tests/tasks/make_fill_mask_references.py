"""Writes fill_mask_references.safetensors: what transformers' FillMaskPipeline answers.

Run once, outside the project's environment, where PyTorch is, from the repository's root:

    PYTHONPATH=. ref/bin/python tests/tasks/make_fill_mask_references.py

Models are made as in make_task_references.py, whose tokenizers and texts they share, with weights that float16 holds.
Tensors: `KEY/NAME`, float16, the weights of a ...ForMaskedLM as save_pretrained keeps them, `bert-untied` with a
decoder of its own; `answers`, JSON, gzipped: the texts, their mask written [MASK], and by key and what was asked the
answers, each [token, score, token_str, CRC-32 of the sequence], null where there is none; metadata: configs, versions.
"""

from __future__ import annotations

import gzip
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers.pipelines.base import PipelineException

from tests.tasks.make_task_references import FAMILIES, wrapped

HERE = Path(__file__)
MODELS = {
    **{family: (family, *FAMILIES[family][::2]) for family in FAMILIES},
    "camembert": ("roberta", "Camembert", FAMILIES["roberta"][2]),
    "bert-untied": ("bert", "Bert", FAMILIES["bert"][2] | {"tie_word_embeddings": False, "hidden_act": "relu"}),
}
# Of these, which share their code with others, fewer texts.
FEW = {"camembert": 40, "bert-untied": 40}
ASKED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "top_k": {"top_k": 20},
    "targets": {"targets": ["peace", "war", "peace", "the", "freedom", "unlikelihood", "😀", ""], "top_k": 4},
    "a target": {"targets": "nation"},
}
# Texts of which all of that is asked.
ASKED_TEXTS = 12
HARD = [
    "[MASK]",
    " [MASK] ",
    "[MASK] [MASK]",
    "[MASK][MASK]x[MASK]y [MASK]. [MASK]",
    "😀🎉 émigré e\u0301migre\u0301 [MASK] 😀",
    "[CLS] peace [MASK] [SEP] war [PAD] <s> </s> [UNK]",
    "a" * 300 + " [MASK]",
    "the [MASK] of " + "word " * 700,
    "one [MASK] or two [MASK] " * 2 + "of the people " * 230,
    "שלום [MASK] עולם, مرحبا بالعالم",
    "https://example.org/[MASK]?b=c&d=%20e#f user@example.org",
    "北京 [MASK] 東京 Straße ﬁne",
    "tab\tnew\nline [MASK]\u00a0space\u200bzero",
    "!!! ??? ... --- (([MASK]))",
    "don't can't it's 3.14 [MASK] , 1,000,000 50% .",
    "[MASK] is not <mask>, nor [mask]",
]


def masked(text: str, number: int) -> str:
    """One of its words replaced."""
    words = text.split(" ")
    words[number * 7 % min(len(words), 12)] = "[MASK]"
    return " ".join(words)


def make_decisive(model: Any, tokenizer: Any, texts: list[str]) -> None:
    """Make its answers differ: logits 2 large."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter * 4 if parameter.dim() == 2 else parameter + 0.2 * torch.randn_like(parameter))
        inputs = [tokenizer(text, truncation=True, return_tensors="pt") for text in texts]
        logits = torch.cat([model(**each).logits[0] for each in inputs])
        spread = (logits - logits.mean(dim=0)).std()
        decoder_bias = model.get_output_embeddings().bias
        decoder_bias -= logits.mean(dim=0)
        decoder_bias *= 2 / spread
        [weight, bias] = [each for name, each in model.named_parameters() if each.dim() == 1 and norm_of_head(name)]
        weight *= 2 / spread
        bias *= 2 / spread
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())


def norm_of_head(name: str) -> bool:
    heads = ("cls.predictions.transform.LayerNorm", "lm_head.layer_norm", "vocab_layer_norm", "generator_predictions.L")
    return name.startswith(heads)


def values(answer: Any) -> Any:
    if isinstance(answer, list):
        return [values(each) for each in answer]
    sequence = zlib.crc32(answer["sequence"].encode())
    return [answer["token"], round(answer["score"], 6), answer["token_str"], sequence]


def answered(pipe: Any, text: str, parameters: dict[str, Any]) -> Any:
    """None where what is read of the text has no mask."""
    try:
        return values(pipe(text, tokenizer_kwargs={"truncation": True}, **parameters))
    except PipelineException:
        return None


def main() -> None:
    torch.manual_seed(20_261_129)
    with safe_open(HERE.with_name("task_references.safetensors"), framework="numpy") as file:
        tokenizers, corpus = (json.loads(file.metadata()[name]) for name in ("tokenizers", "texts"))
    texts = [*HARD, *(masked(text, number) for number, text in enumerate(corpus[:184]))]
    tensors: dict[str, np.ndarray] = {}
    configs: dict[str, Any] = {}
    answers: dict[str, Any] = {"texts": texts}
    for key, (family, name, sizes) in MODELS.items():
        raw = Tokenizer.from_str(tokenizers[family])
        tokenizer = wrapped(raw, FAMILIES[family][1])
        if name == "DistilBert":
            tokenizer.model_input_names = ["input_ids", "attention_mask"]
        config = getattr(transformers, f"{name}Config")(
            **sizes, pad_token_id=tokenizer.pad_token_id, vocab_size=raw.get_vocab_size()
        )
        model = getattr(transformers, f"{name}ForMaskedLM")(config).eval()
        mine = [text.replace("[MASK]", tokenizer.mask_token) for text in texts[: FEW.get(key)]]
        make_decisive(model, tokenizer, mine[-20:])
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            configs[key] = json.loads((Path(folder) / "config.json").read_text())
            for each, tensor in load_file(f"{folder}/model.safetensors").items():
                tensors[f"{key}/{each}"] = tensor.astype(np.float16)
        pipe = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
        for asked, parameters in ASKED.items():
            some = mine if asked == "nothing" else mine[: 2 * ASKED_TEXTS : 2]
            answers[f"{key}/{asked}"] = [answered(pipe, text, parameters) for text in some]
    tensors["answers"] = np.frombuffer(gzip.compress(json.dumps(answers).encode(), mtime=0), np.uint8)
    metadata = {
        "configs": json.dumps(configs),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    save_file(tensors, HERE.with_name("fill_mask_references.safetensors"), metadata=metadata)


if __name__ == "__main__":
    main()
