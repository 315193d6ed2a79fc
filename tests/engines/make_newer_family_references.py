"""Writes newer_family_references.safetensors: as make_family_references.py, of the families that came later.

Run once, outside the project's environment, where PyTorch is, from the repository's root:

    PYTHONPATH=. ref/bin/python tests/engines/make_newer_family_references.py

`buckets` are MPNet's of the distances from -300 to 300. `masked/FAMILY/weights/NAME` are those of a ...ForMaskedLM's
head and table of words, `masked/FAMILY/states` and `masked/FAMILY/logits` of one text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from tests.engines.make_family_references import POSITIONS, SIZES, write_references

# The first and the fourth layer attend to all of a text, the others to 4 tokens on either side.
MODERN = {**SIZES, "num_hidden_layers": 4, "intermediate_size": 20, "local_attention": 8, "pad_token_id": 0}
BIASED = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "modernbert": ("ModernBert", MODERN),
    "modernbert-biases-mean": (
        "ModernBert",
        {
            **MODERN,
            **BIASED,
            "classifier_pooling": "mean",
            "classifier_activation": "relu",
            "norm_eps": 1e-3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "mpnet": ("MPNet", {**SIZES, "max_position_embeddings": POSITIONS + 2}),
}


def masked() -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for name, (family, sizes) in MODELS.items():
        config = getattr(transformers, f"{family}Config")(**sizes)
        model = getattr(transformers, f"{family}ForMaskedLM")(config).eval()
        ids = torch.arange(4, 24)[None]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter * 4 if parameter.dim() == 2 else parameter + torch.randn_like(parameter) / 5)
            tensors[f"masked/{name}/states"] = model.base_model(ids).last_hidden_state[0].numpy().copy()
            tensors[f"masked/{name}/logits"] = model(ids).logits[0].numpy().copy()
        for key, tensor in model.state_dict().items():
            # The decoder is tied, and no file of the hub has it.
            head = key.startswith(("lm_head.", "head.", "decoder.bias")) and "lm_head.decoder" not in key
            if head or key.endswith(("word_embeddings.weight", "tok_embeddings.weight")):
                tensors[f"masked/{name}/weights/{key}"] = tensor.numpy().copy()
    return tensors


def main() -> None:
    torch.manual_seed(20_261_131)
    buckets = MPNetEncoder.relative_position_bucket(torch.arange(-300, 301)).to(torch.int32).numpy()
    path = Path(__file__).with_name("newer_family_references.safetensors")
    write_references(MODELS, path, seed=20_261_129, more={"buckets": buckets, **masked()})


if __name__ == "__main__":
    main()
