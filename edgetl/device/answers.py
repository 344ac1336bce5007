"""Whether answers are those that PyTorch gave: one judgement for the bench's gate, for `edgetl verify` and for `edgetl predict`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.device.providers import CUDA_PROVIDERS

TF32_SHARE = 0.01
"""Of the largest |logit|: what TF32 may move a logit by."""


def gate_tolerance(
    reference: NDArray[np.float32], provider: str, *tolerances: float | None, relative: float = 0.0
) -> float:
    """Return the largest |logit difference| that still counts as PyTorch's answer: the widest of the bounds that apply.

    On NVIDIA GPUs onnxruntime, TensorRT and PyTorch compute float32 convolutions and matrix products in TF32 by default, which
    reads 10 bits of a factor's mantissa in place of 23 (NVIDIA, "TensorFloat-32 in the A100 GPU"; PyTorch's notes on numerical
    accuracy): each factor is off by up to 2^-11 = 0.05%, and layers add up. Such an error grows with the logits, so the bound on
    these providers is at least 1% of the reference's largest |logit|. A mistake in preprocessing or weights moves logits by
    multiples of that. fp16 and int8 variants have tolerances of their own, found when they were exported; they are not widened
    further than this.

    Args:
        reference: PyTorch's logits [n, classes].
        provider: where the answers come from, by a provider's short name.
        tolerances: absolute bounds; None is none.
        relative: a bound as a share of the largest |logit|.
    """
    share = max(relative, TF32_SHARE if provider in CUDA_PROVIDERS else 0.0)
    largest = float(np.abs(reference).max(initial=0.0))
    return max(share * largest, *(bound for bound in tolerances if bound is not None))


def judge_answers(
    logits: NDArray[np.float64], reference: NDArray[np.float32], tolerance: float
) -> dict[str, Any]:
    """The gate's verdict on logits [n, classes] against the reference's.

    Top-1 agrees where the runtime's best class is the reference's best, or within the tolerance of it: a tie is no mistake.
    """
    verdict: dict[str, Any] = {
        "checked": True,
        "passed": False,
        "images": len(reference),
        "tolerance": tolerance,
    }
    if logits.shape != reference.shape:
        return {**verdict, "reason": f"logits of shape {logits.shape}, not {reference.shape}"}
    if not np.isfinite(logits).all():
        return {
            **verdict,
            "max_logit_difference": None,
            "top1_agreement": None,
            "reason": "the answers are not finite numbers",
        }
    difference = float(np.abs(logits - reference).max())
    chosen = np.take_along_axis(reference, logits.argmax(1)[:, None], 1)[:, 0]
    agreement = int((chosen >= reference.max(1) - tolerance).sum())
    found = {"max_logit_difference": difference, "top1_agreement": agreement}
    if difference > tolerance:
        return {
            **verdict,
            **found,
            "reason": f"logits differ by {difference:.3g}, tolerance {tolerance:g}",
        }
    if agreement < len(reference):
        return {
            **verdict,
            **found,
            "reason": f"top-1 agrees on {agreement} of {len(reference)} images",
        }
    return {**verdict, **found, "passed": True}
