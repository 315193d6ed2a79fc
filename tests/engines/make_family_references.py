"""Writes family_references.safetensors: small random models of each family, and what PyTorch makes of texts.

Run once, outside the project's environment, where PyTorch is:

    python -m venv ref && ref/bin/pip install torch transformers
    ref/bin/python tests/engines/make_family_references.py

Weights of two dimensions are four times what they are initialised to, and no label is likelier than another in the
mean, so that decisions differ. Each text, token ids of its own, is computed alone. Tensors: `FAMILY/weights/NAME`,
`FAMILY/hidden/TEXT` (tokens, H) and `FAMILY/logits` (texts, labels); metadata: each family's config.json, the texts,
the versions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

VOCAB, WIDTH, LAYERS, HEADS, INNER, POSITIONS, LABELS = 60, 24, 2, 4, 40, 40, 3
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
    "num_labels": LABELS,
}
DISTIL = {
    "vocab_size": VOCAB,
    "dim": WIDTH,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "hidden_dim": INNER,
    "max_position_embeddings": POSITIONS,
    "num_labels": LABELS,
}
# Name -> the family's class in transformers, and its config.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", SIZES),
    "bert-gelu-new": ("Bert", {**SIZES, "hidden_act": "gelu_new"}),
    "bert-relu-epsilon": ("Bert", {**SIZES, "hidden_act": "relu", "layer_norm_eps": 1e-3}),
    "camembert": ("Camembert", {**SIZES, "max_position_embeddings": POSITIONS + 2}),
    "distilbert": ("DistilBert", DISTIL),
    "electra": ("Electra", {**SIZES, "embedding_size": 16}),
    "electra-as-wide": ("Electra", {**SIZES, "embedding_size": WIDTH}),
    "roberta": ("Roberta", {**SIZES, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}),
    "xlm-roberta": ("XLMRoberta", {**SIZES, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}),
}
LENGTHS = [1, 2, 3, 7, 12, 20, 40]


def main() -> None:
    write_references(MODELS, Path(__file__).with_name("family_references.safetensors"), seed=20_261_126)


def write_references(
    models: dict[str, tuple[str, dict[str, Any]]], path: Path, *, seed: int, more: dict[str, np.ndarray] | None = None
) -> None:
    """`more` tensors go along as they are."""
    torch.manual_seed(seed)
    # 0 to 3 are special tokens to one family or another, and the padding token moves positions.
    draw = np.random.default_rng(1)
    texts = [draw.integers(4, VOCAB, length).tolist() for length in LENGTHS]
    tensors = dict(more or {})
    configs: dict[str, Any] = {}
    for name, (family, sizes) in models.items():
        config = getattr(transformers, f"{family}Config")(**sizes)
        model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter *= 4
                else:
                    parameter += 0.2 * torch.randn_like(parameter)
            mean = torch.cat([model(torch.tensor([ids])).logits for ids in texts]).mean(dim=0)
            getattr(model.classifier, "out_proj", model.classifier).bias -= mean
            outputs = [model(torch.tensor([ids])) for ids in texts]
            hidden = [model.base_model(torch.tensor([ids])).last_hidden_state for ids in texts]
        configs[name] = json.loads(config.to_json_string()) | {"architectures": [type(model).__name__]}
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensors[f"{name}/weights/{key}"] = tensor.numpy().copy()
        for place, states in enumerate(hidden):
            tensors[f"{name}/hidden/{place}"] = states[0].numpy().copy()
        tensors[f"{name}/logits"] = np.concatenate([output.logits.numpy() for output in outputs])
    metadata = {
        "configs": json.dumps(configs),
        "texts": json.dumps(texts),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    save_file(tensors, path, metadata=metadata)


if __name__ == "__main__":
    main()
