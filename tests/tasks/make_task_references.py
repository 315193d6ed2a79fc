"""Writes task_references.safetensors: what transformers' pipelines and sentence-transformers' CrossEncoder answer.

Run once, outside the project's environment, where PyTorch is:

    python -m venv ref && ref/bin/pip install torch transformers sentence-transformers
    ref/bin/python tests/tasks/make_task_references.py

Small random models of each family with a tokenizer of its kind, trained on the texts; weights of two dimensions are
four times what they are initialised to, logits are around 0 and about 1 large, so that decisions differ. Tensors:
`FAMILY-HEAD/NAME`; metadata: configs, tokenizers, texts, answers, versions.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

MAX_LENGTH = 64
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": MAX_LENGTH,
}
DISTIL = {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": MAX_LENGTH}
LATER = {**SIZES, "max_position_embeddings": MAX_LENGTH + 2, "type_vocab_size": 1}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("Bert", "wordpiece", SIZES),
    "distilbert": ("DistilBert", "wordpiece", DISTIL),
    "electra": ("Electra", "wordpiece", {**SIZES, "embedding_size": 16}),
    "roberta": ("Roberta", "bpe", LATER),
    "xlm-roberta": ("XLMRoberta", "unigram", LATER),
}
HEADS = {
    "classes": ["NO", "MAYBE", "YES"],
    "ranking": ["RELEVANT"],
    "inference": ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"],
}
CANDIDATES = ["economy", "foreign policy", "war", "health"]
HARD = [
    "",
    " ",
    "😀🎉 émigré e\u0301migre\u0301",
    "[SEP] </s> <mask> [MASK]",
    "a" * 300,
    "word " * 700,
    "שלום עולם, مرحبا بالعالم",
    "https://example.org/a?b=c&d=%20e#f user@example.org",
    "北京 東京 Straße ﬁne",
    "tab\tnew\nline\u00a0space\u200bzero",
    "!!! ??? ... --- ((()))",
    "don't can't it's 3.14 1,000,000 50%",
]


def texts() -> list[str]:
    lines = gzip.decompress(Path("pipeline/demo/texts.txt.gz").read_bytes()).decode().splitlines()
    return [*[line for line in lines if line.strip()][:200], *HARD]


def tokenizer_of(kind: str, corpus: list[str]) -> Tokenizer:
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer: Any = trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False)
        template = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ["[CLS]", "[SEP]"])
    else:
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        template = ("<s> $A </s>", "<s> $A </s> </s> $B </s>", ["<s>", "</s>"])
        if kind == "bpe":
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(
                vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
            )
        else:
            tokenizer = Tokenizer(models.Unigram())
            tokenizer.normalizer = normalizers.NFKC()
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
            tokenizer.decoder = decoders.Metaspace()
            trainer = trainers.UnigramTrainer(
                vocab_size=500, special_tokens=special, unk_token="<unk>", show_progress=False
            )
    tokenizer.train_from_iterator(corpus, trainer)
    single, pair, specials = template
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(each, tokenizer.token_to_id(each)) for each in specials]
    )
    return tokenizer


def wrapped(tokenizer: Tokenizer, kind: str) -> transformers.PreTrainedTokenizerFast:
    names = (
        {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        if kind == "wordpiece"
        else {
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "cls_token": "<s>",
            "sep_token": "</s>",
            "mask_token": "<mask>",
        }
    )
    inputs = ["input_ids", "attention_mask"] + (["token_type_ids"] if kind == "wordpiece" else [])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=MAX_LENGTH, model_input_names=inputs, **names
    )


def family_tokenizer(family: str, corpus: list[str]) -> tuple[Tokenizer, transformers.PreTrainedTokenizerFast]:
    """As the tokenizers library has it, and as transformers has it."""
    name, kind, _ = FAMILIES[family]
    raw = tokenizer_of(kind, corpus)
    tokenizer = wrapped(raw, kind)
    if name == "DistilBert":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return raw, tokenizer


def keep(model: Any, key: str, tensors: dict[str, np.ndarray], configs: dict[str, Any]) -> None:
    """Its config, and its weights under `key`."""
    configs[key] = json.loads(model.config.to_json_string()) | {"architectures": [type(model).__name__]}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensors[f"{key}/{name}"] = tensor.numpy().copy()


def make_decisive(model: Any, tokenizer: Any, pairs: list[tuple[str, str]]) -> None:
    """Make its decisions differ."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter * 4 if parameter.dim() == 2 else parameter + 0.2 * torch.randn_like(parameter))
        inputs = [tokenizer(*pair, truncation=True, return_tensors="pt") for pair in pairs]
        if model.config.model_type == "distilbert":
            for each in inputs:
                each.pop("token_type_ids", None)
        logits = torch.cat([model(**each).logits for each in inputs])
        last = getattr(model.classifier, "out_proj", model.classifier)
        last.bias -= logits.mean(dim=0)
        spread = (logits - logits.mean(dim=0)).std()
        last.bias /= spread
        last.weight /= spread


def rounded(answer: Any) -> Any:
    if isinstance(answer, float):
        return round(answer, 7)
    if isinstance(answer, dict):
        return {key: rounded(value) for key, value in answer.items() if key != "text"}
    return [rounded(each) for each in answer] if isinstance(answer, list) else answer


def main() -> None:
    # Other scripts share what is above, and run where sentence-transformers is not.
    import sentence_transformers
    from sentence_transformers import CrossEncoder

    torch.manual_seed(20_261_127)
    corpus = texts()
    pairs = list(zip(corpus, corpus[7:] + corpus[:7], strict=True))
    rankings = [(corpus[place], corpus[place + 1 : place + 6]) for place in range(0, 200, 5)]
    tensors: dict[str, np.ndarray] = {}
    configs: dict[str, Any] = {}
    tokenizers: dict[str, str] = {}
    answers: dict[str, Any] = {}
    for family, (name, _, sizes) in FAMILIES.items():
        raw, tokenizer = family_tokenizer(family, corpus)
        tokenizers[family] = raw.to_str()
        special = {"pad_token_id": tokenizer.pad_token_id}
        for head, labels in HEADS.items():
            config = getattr(transformers, f"{name}Config")(
                **sizes,
                **special,
                vocab_size=raw.get_vocab_size(),
                id2label=dict(enumerate(labels)),
                label2id={label: place for place, label in enumerate(labels)},
            )
            model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
            make_decisive(model, tokenizer, pairs[:100])
            key = f"{family}-{head}"
            keep(model, key, tensors, configs)
            if head == "classes":
                pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
                for function in ("softmax", "sigmoid", "none"):
                    asked = {"top_k": None, "function_to_apply": function, "truncation": True}
                    answers[f"{key}/texts/{function}"] = [rounded(pipe(text, **asked)) for text in corpus]
                inputs = [{"text": first, "text_pair": second} for first, second in pairs]
                answers[f"{key}/pairs"] = [rounded(pipe(each, top_k=None, truncation=True)) for each in inputs]
            elif head == "ranking":
                with tempfile.TemporaryDirectory() as folder:
                    model.save_pretrained(folder)
                    tokenizer.save_pretrained(folder)
                    encoder = CrossEncoder(folder, device="cpu", max_length=MAX_LENGTH)
                    answers[key] = [
                        [{"index": int(each["corpus_id"]), "score": round(float(each["score"]), 7)} for each in ranks]
                        for ranks in (encoder.rank(query, passages) for query, passages in rankings)
                    ]
            else:
                pipe = transformers.pipeline("zero-shot-classification", model=model, tokenizer=tokenizer, device="cpu")
                for multi_label in (False, True):
                    answers[f"{key}/{multi_label}"] = [
                        rounded(pipe(text, CANDIDATES, multi_label=multi_label)) for text in corpus if text.strip()
                    ]
    metadata = {
        "configs": json.dumps(configs),
        "tokenizers": json.dumps(tokenizers),
        "texts": json.dumps(corpus),
        "answers": json.dumps(answers),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence-transformers": sentence_transformers.__version__,
    }
    save_file(tensors, Path(__file__).with_name("task_references.safetensors"), metadata=metadata)


if __name__ == "__main__":
    main()
