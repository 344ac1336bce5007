"""Outcome of the correctness gate: logits of one runtime compared with PyTorch's."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgetl.core.typed_json import in_json


@dataclass(frozen=True)
class GateResult:
    """Comparison of logits with the reference's; values are None if it did not take place."""

    checked: bool
    """Whether logits were compared."""
    passed: bool | None
    """Whether they match; None if there is no reference."""
    images: int | None = field(default=None, metadata=in_json(omit_default=True))
    """Number of golden images."""
    top1_agreement: int | None = field(default=None, metadata=in_json(omit_default=True))
    """Images with the same best class, up to ties within the tolerance."""
    max_logit_difference: float | None = field(default=None, metadata=in_json(omit_default=True))
    tolerance: float | None = field(default=None, metadata=in_json(omit_default=True))
    """Largest accepted |logit difference|."""
    model_scope_difference: float | None = field(default=None, metadata=in_json(omit_default=True))
    """Largest |logit difference| to the first runtime in scope `model`, whose inputs are tensors."""
    max_probability_difference: float | None = field(
        default=None, metadata=in_json(omit_default=True)
    )
    """Largest |difference| of a probability to the softmax of the logits."""
    max_unknown_score_difference: float | None = field(
        default=None, metadata=in_json(omit_default=True)
    )
    """Largest |difference| of an unknown score to the exporting machine's."""
    reason: str | None = field(default=None, metadata=in_json(omit_default=True))
    """Why it did not pass or was not checked."""

    @classmethod
    def failure(cls, reason: str) -> GateResult:
        """Return the result of a model that produced no logits."""
        return cls(checked=False, passed=False, reason=reason)
