"""Whether an engine's numbers are the model's: compared with the reference's on the same texts, before it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engines.errors import ParityError
from engines.heads import ModelOutput, TokenOutput
from engines.precision import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The least that is let pass: the cosine of every text (`each`) and in the mean; of logits the share of decisions
    kept, and R2."""

    each: float
    mean: float
    decisions: float
    r2: float


# MiniLM-L6 with the demo's head comes to an R2 of 0.999999 in float16, 0.997 in FP8 and 0.992 in INT8.
BOUNDS: Mapping[Precision, Bound] = {
    "fp32": Bound(each=0.999_99, mean=0.999_999, decisions=1.0, r2=0.999_99),
    "fp16": Bound(each=0.9995, mean=0.9999, decisions=0.995, r2=0.9995),
    "bf16": Bound(each=0.995, mean=0.999, decisions=0.99, r2=0.99),
    "fp8": Bound(each=0.97, mean=0.99, decisions=0.99, r2=0.97),
    "int8": Bound(each=0.97, mean=0.99, decisions=0.99, r2=0.97),
}


# A variance of fewer texts says nothing.
_MANY = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """One output's. Of logits `decisions` is the share of texts whose highest one is the same, and `r2` the share of
    their variance over the texts that is the same (the coefficient of determination, over all labels together): a
    decision says nothing of a score, or of a regression, and a head that decides nothing has none. They have no
    direction to speak of, so no cosine. Of an output of tokens each of them counts as a text here; `of` says which they
    are."""

    texts: int
    cosine_min: float | None
    cosine_mean: float | None
    max_error: float
    decisions: float | None
    r2: float | None
    of: Literal["texts", "tokens"] = "texts"

    def __str__(self) -> str:
        words = [f"max error {self.max_error:.2g}"]
        if self.cosine_min is not None and self.cosine_mean is not None:
            words.insert(0, f"cosine {self.cosine_min:.6f} at least, {self.cosine_mean:.6f} in the mean")
        if self.decisions is not None:
            words.insert(0, f"{self.decisions:.2%} of decisions equal")
        if self.r2 is not None:
            words.insert(1, f"R2 {self.r2:.6f}")
        return f"{', '.join(words)}, of {self.texts} {self.of}"


def compare(output: ModelOutput, reference: NDArray[np.float32], computed: NDArray[np.float32]) -> Parity:
    """Of an output's numbers, (N, W) each: of texts, or else of tokens."""
    assert reference.shape == computed.shape
    error = float(np.abs(reference - computed).max())
    of: Literal["texts", "tokens"] = "tokens" if isinstance(output, TokenOutput) else "texts"
    if output.are_logits:
        decides = output.head is None or output.head.decides
        return Parity(
            texts=len(reference),
            cosine_min=None,
            cosine_mean=None,
            max_error=error,
            decisions=_equal_decisions(reference, computed) if decides else None,
            r2=_r2(reference.astype(np.float64), computed.astype(np.float64)) if len(reference) >= _MANY else None,
            of=of,
        )
    wide = [rows.astype(np.float64) for rows in (reference, computed)]
    norms = np.linalg.norm(wide[0], axis=1) * np.linalg.norm(wide[1], axis=1)
    cosines = np.einsum("nw,nw->n", *wide) / np.maximum(norms, np.finfo(np.float64).tiny)
    return Parity(
        texts=len(reference),
        cosine_min=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
        max_error=error,
        decisions=None,
        r2=None,
        of=of,
    )


def _equal_decisions(reference: NDArray[np.float32], computed: NDArray[np.float32]) -> float:
    # A head of one number is read by its sign.
    decided = [(rows > 0) if rows.shape[1] == 1 else rows.argmax(axis=1) for rows in (reference, computed)]
    return float(np.mean(decided[0] == decided[1]))


def _r2(reference: NDArray[np.float64], computed: NDArray[np.float64]) -> float:
    wrong = np.square(computed - reference).sum()
    # Texts that are all answered alike have no variance: then nothing may be wrong.
    variance = max(np.square(reference - reference.mean(axis=0)).sum(), np.finfo(np.float32).tiny)
    return float(1 - wrong / variance)


def require(parities: Mapping[str, Parity], precision: Precision) -> None:
    """Raises ParityError where an output, by its name, falls short of the precision's bound, with by how much.

    What is not finite falls short of everything.
    """
    bound = BOUNDS[precision]
    short: list[str] = []
    for name, parity in parities.items():
        measured: Sequence[tuple[str, float | None, float]] = (
            ("cosine", parity.cosine_min, bound.each),
            ("mean cosine", parity.cosine_mean, bound.mean),
            ("share of equal decisions", parity.decisions, bound.decisions),
            ("R2 of the logits", parity.r2, bound.r2),
        )
        short += [
            f"{name}: {what} {value:.6f}, wanted {least:g}"
            for what, value, least in measured
            if value is not None and not value >= least
        ]
        if not np.isfinite(parity.max_error):
            short.append(f"{name}: numbers that are not finite")
    if short:
        raise ParityError(f"in {precision} the engine is not the model: {'; '.join(short)}")
