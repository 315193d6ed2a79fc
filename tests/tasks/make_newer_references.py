"""Writes newer_references.safetensors: what transformers' pipelines, and sentence-transformers, answer with MPNet and
ModernBERT.

Run once, outside the project's environment, where PyTorch is, from the repository's root:

    PYTHONPATH=. ref/bin/python tests/tasks/make_newer_references.py

Models, tokenizers and texts are made as in make_task_references.py, tokenizers of the kind that these families have;
answers as in make_token_references.py, gzipped, and `vectors/FAMILY/POOLING`, the first numbers of
each text's (texts, 8). Tensors: `FAMILY-HEAD/NAME`; metadata: configs, tokenizers, versions. The texts are those of
task_references.safetensors.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import torch
import transformers
from safetensors.numpy import save_file
from sentence_transformers import CrossEncoder, SentenceTransformer, models
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import WordPiece

from tests.tasks.make_task_references import (
    HEADS,
    LATER,
    MAX_LENGTH,
    SIZES,
    keep,
    make_decisive,
    rounded,
    texts,
    tokenizer_of,
    wrapped,
)
from tests.tasks.make_token_references import LABELS, values
from tests.tasks.make_token_references import make_decisive as make_tokens_decisive

# Every second layer attends to 8 tokens on either side, of texts of up to 64.
MODERN = {
    **SIZES,
    "num_hidden_layers": 4,
    "intermediate_size": 20,
    "local_attention": 16,
    "global_attn_every_n_layers": 2,
    "classifier_pooling": "mean",
}
MPNET = {**SIZES, "max_position_embeddings": LATER["max_position_embeddings"]}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "modernbert": ("ModernBert", MODERN),
    "mpnet": ("MPNet", MPNET),
}
POOLINGS = ("mean", "cls", "max")
NUMBERS = 8


def mpnet_tokenizer(corpus: list[str]) -> Tokenizer:
    """Word pieces, and the special tokens of RoBERTa but for the unknown one: number 1 must be the padding token."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    tokenizer.train_from_iterator(
        corpus, trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def main() -> None:
    torch.manual_seed(20_261_130)
    corpus = texts()
    pairs = list(zip(corpus, corpus[7:] + corpus[:7], strict=True))
    rankings = [(corpus[place], corpus[place + 1 : place + 6]) for place in range(0, 200, 5)]
    tensors: dict[str, np.ndarray] = {}
    configs: dict[str, Any] = {}
    tokenizers: dict[str, str] = {}
    answers: dict[str, Any] = {}
    for family, (name, sizes) in FAMILIES.items():
        raw = mpnet_tokenizer(corpus) if family == "mpnet" else tokenizer_of("bpe", corpus)
        tokenizers[family] = raw.to_str()
        tokenizer = wrapped(raw, "bpe")
        if family == "mpnet":
            tokenizer.unk_token = "[UNK]"
        special = {f"{each}_token_id": getattr(tokenizer, f"{each}_token_id") for each in ("pad", "cls", "sep")}
        special |= {"bos_token_id": special["cls_token_id"], "eos_token_id": special["sep_token_id"]}

        def new(of: str, labels: list[str]) -> Any:
            config = getattr(transformers, f"{name}Config")(  # noqa: B023 - used within its turn
                **sizes,  # noqa: B023
                **special,  # noqa: B023
                vocab_size=raw.get_vocab_size(),  # noqa: B023
                id2label=dict(enumerate(labels)),
                label2id={label: place for place, label in enumerate(labels)},
            )
            return getattr(transformers, f"{name}For{of}")(config).eval()  # noqa: B023

        classes = new("SequenceClassification", HEADS["classes"])
        make_decisive(classes, tokenizer, pairs[:100])
        keep(classes, f"{family}-classes", tensors, configs)
        pipe = transformers.pipeline("text-classification", model=classes, tokenizer=tokenizer, device="cpu")
        answers[f"{family}-classes"] = [rounded(pipe(text, top_k=None, truncation=True)) for text in corpus]
        ranking = new("SequenceClassification", HEADS["ranking"])
        make_decisive(ranking, tokenizer, pairs[:100])
        keep(ranking, f"{family}-ranking", tensors, configs)
        tokens = new("TokenClassification", LABELS)
        make_tokens_decisive(tokens, tokenizer, corpus[:100])
        keep(tokens, f"{family}-tokens", tensors, configs)
        classify = transformers.pipeline("token-classification", model=tokens, tokenizer=tokenizer, device="cpu")
        answers[f"{family}-tokens"] = [values(classify(each, aggregation_strategy="first")) for each in corpus]
        with tempfile.TemporaryDirectory() as folder:
            ranking.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            encoder = CrossEncoder(folder, device="cpu", max_length=MAX_LENGTH)
            answers[f"{family}-ranking"] = [
                [{"index": int(each["corpus_id"]), "score": round(float(each["score"]), 7)} for each in ranks]
                for ranks in (encoder.rank(query, passages) for query, passages in rankings)
            ]
        with tempfile.TemporaryDirectory() as folder:
            tokens.base_model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            transformer = models.Transformer(folder, max_seq_length=MAX_LENGTH)
            for pooling in POOLINGS:
                pooled = models.Pooling(transformer.get_word_embedding_dimension(), pooling_mode=pooling)
                sentences = SentenceTransformer(modules=[transformer, pooled], device="cpu")
                vectors = np.asarray(sentences.encode(corpus), np.float32)
                tensors[f"vectors/{family}/{pooling}"] = vectors[:, :NUMBERS].copy()
    tensors["answers"] = np.frombuffer(gzip.compress(json.dumps(answers).encode(), mtime=0), np.uint8)
    metadata = {
        "configs": json.dumps(configs),
        "tokenizers": json.dumps(tokenizers),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence-transformers": sentence_transformers.__version__,
    }
    save_file(tensors, Path(__file__).with_name("newer_references.safetensors"), metadata=metadata)


if __name__ == "__main__":
    main()
