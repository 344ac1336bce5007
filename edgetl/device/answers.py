"""Whether answers are those that PyTorch gave: one judgement for the bench's gate, for `edgetl verify` and for `edgetl predict`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def judge_answers(logits: NDArray[np.float64], reference: NDArray[np.float32], tolerance: float) -> dict[str, Any]:
    """The gate's verdict on logits [n, classes] against the reference's.

    Top-1 agrees where the runtime's best class is the reference's best, or within the tolerance of it: a tie is no mistake.
    """
    verdict: dict[str, Any] = {"checked": True, "passed": False, "images": len(reference), "tolerance": tolerance}
    if logits.shape != reference.shape:
        return {**verdict, "reason": f"logits of shape {logits.shape}, not {reference.shape}"}
    if not np.isfinite(logits).all():
        return {**verdict, "max_logit_difference": None, "top1_agreement": None, "reason": "the answers are not finite numbers"}
    difference = float(np.abs(logits - reference).max())
    chosen = np.take_along_axis(reference, logits.argmax(1)[:, None], 1)[:, 0]
    agreement = int((chosen >= reference.max(1) - tolerance).sum())
    found = {"max_logit_difference": difference, "top1_agreement": agreement}
    if difference > tolerance:
        return {**verdict, **found, "reason": f"logits differ by {difference:.3g}, tolerance {tolerance:g}"}
    if agreement < len(reference):
        return {**verdict, **found, "reason": f"top-1 agrees on {agreement} of {len(reference)} images"}
    return {**verdict, **found, "passed": True}
