"""Try timm's architectures: new head, one epoch, fused export and its equality with PyTorch.

python -m tools.checks.timm_models --log FILE [NAME ...]

Writes docs/models/timm.md, and those that work to edgetl/core/timm_architectures.csv. Results in the
log are not computed again, so an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import timm
import torch

from edgetl.core.architectures import Architecture
from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import ArchitectureError, EdgetlError
from edgetl.device.runtime.session import create_session
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.graph.torch_export import LOGITS, export_network_graph
from edgetl.export.random_init import initialize_batch_norm_stats
from edgetl.train.common.precision import choose_compute_config
from edgetl.train.features.extractor import make_float32_extractor
from edgetl.train.features.partition import TracedModel, check_subgraphs
from edgetl.train.model.factory import AdaptedModel, build_adapted_model
from edgetl.train.model.freezing import set_trainable
from edgetl.train.model.reparameterization import fuse_branches, has_branches
from edgetl.train.model.stock_models import describe_architecture
from tools.repo.architecture_table import TIMM_TABLE, write_table

PAGE = Path(__file__).parents[2] / "docs/models/timm.md"
CLASSES = 3
IMAGE_SIZES = (64, 96, 128, 160, 224, 240, 256)
"""Sizes from which the smallest that an architecture takes is tried."""
BATCH_SIZES = (1, 2, 5)

_NAMES = """
mobilenetv1_100 mobilenetv2_100 mobilenetv3_small_050 mobilenetv3_small_100 mobilenetv3_large_100
mobilenetv4_conv_small_050 mobilenetv4_conv_small mobilenetv4_conv_medium
mobilenetv4_hybrid_medium efficientnet_b0 efficientnet_lite0 tf_efficientnet_lite0
tf_efficientnetv2_b0 efficientnet_es mixnet_s mnasnet_100 semnasnet_075 fbnetc_100 spnasnet_100
hardcorenas_a tinynet_a tinynet_c tinynet_e lcnet_050 lcnet_100 ghostnet_050 repghostnet_080
repvit_m0_9 repvit_m1 mobileone_s0 repvgg_a0 fastvit_t8 starnet_s1 rexnet_100 shvit_s1
fasternet_t0 resnet10t resnetv2_18 regnetx_002 convnext_atto inception_next_atto poolformerv2_s12
edgenext_xx_small mobilevit_xxs efficientvit_b0 efficientvit_m0 efficientformerv2_s0
swiftformer_xs levit_128s tiny_vit_5m_224 deit_tiny_distilled_patch16_224 vit_tiny_patch16_224
pit_ti_224 coat_lite_tiny dla46_c hgnetv2_b0 ese_vovnet19b_slim
"""


@dataclass(frozen=True)
class Attempt:
    """Result for an architecture."""

    name: str
    image_size: int = 0
    """Side of the input, pixels."""
    fused: bool = False
    """Whether branches were fused for the export."""
    cache: bool = False
    """Whether the frozen blocks can be separated, for the feature cache."""
    difference: float = 0.0
    """Largest absolute difference between the logits of the file and of PyTorch."""
    seconds: float = 0.0
    error: str = ""
    """Reason if it does not work."""


def try_architecture(name: str) -> Attempt:
    """Adapt `timm:name` to three classes, train one epoch, export it and compare the logits.

    Raises:
        EdgetlError: it cannot be adapted or exported.
        AssertionError: frozen tensors changed, or the file differs from PyTorch.
    """
    started = time.monotonic()
    torch.manual_seed(0)
    adapted, image_size = _build_smallest(f"timm:{name}")
    model = adapted.model
    pixels = torch.randn(max(BATCH_SIZES), 3, image_size, image_size)
    initialize_batch_norm_stats(model, pixels)
    _train_epoch(adapted, pixels)
    cache = _has_cut(adapted, image_size)
    graph = export_network_graph(
        fuse_branches(model), image_size, CLASSES, ExportConfig.opset
    ).model
    expected = _run_in_block_order(adapted, pixels).numpy()
    session = create_session(graph.SerializeToString(), threads=1, spinning=False)
    difference = 0.0
    for size in BATCH_SIZES:
        logits = session.run([LOGITS], {PIXELS: pixels[:size].numpy()})[0]
        difference = max(difference, float(np.abs(logits - expected[:size]).max()))
        assert (logits.argmax(1) == expected[:size].argmax(1)).all(), "other top-1 labels"
    assert difference <= ExportConfig.network_tolerance, f"logits differ by {difference:.2g}"
    seconds = round(time.monotonic() - started, 1)
    return Attempt(name, image_size, has_branches(model), cache, difference, seconds)


def _build_smallest(architecture: str) -> tuple[AdaptedModel, int]:
    for image_size in IMAGE_SIZES:
        try:
            adapted = build_adapted_model(architecture, image_size, CLASSES, 16, 0.2, None)
        except ArchitectureError as cause:
            if "does not take images" not in str(cause) or image_size == IMAGE_SIZES[-1]:
                raise
        else:
            return adapted, image_size
    raise AssertionError


def _train_epoch(adapted: AdaptedModel, pixels: torch.Tensor) -> None:
    state = set_trainable(adapted, 1)
    state.train_mode()
    before = [parameter.detach().clone() for parameter in state.trainable_parameters()]
    optimizer = torch.optim.Adam(state.trainable_parameters(), 1e-3)
    targets = torch.arange(len(pixels)) % CLASSES
    for batch in (slice(0, 2), slice(2, None)):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(adapted.model(pixels[batch]), targets[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    state.verify_unchanged()
    changed = [
        not torch.equal(old, new)
        for old, new in zip(before, state.trainable_parameters(), strict=True)
    ]
    assert any(changed), "no parameter was trained"
    adapted.model.eval()


def _run_in_block_order(adapted: AdaptedModel, pixels: torch.Tensor) -> torch.Tensor:
    """Return the logits, and check that "the last N blocks" are those that run last."""
    calls: list[str] = []
    handles = [
        adapted.model.get_submodule(block.name).register_forward_pre_hook(
            lambda _module, _input, name=block.name: calls.append(name)
        )
        for block in adapted.blocks
    ]
    with torch.inference_mode():
        logits: torch.Tensor = adapted.model(pixels)
    for handle in handles:
        handle.remove()
    assert calls == [block.name for block in adapted.blocks], (
        "its blocks run in another order than they are defined"
    )
    return logits


def _has_cut(adapted: AdaptedModel, image_size: int) -> bool:
    try:
        traced = TracedModel(adapted)
        set_trainable(adapted, "head").train_mode()
        cut = traced.find_cut()
        check_subgraphs(traced, adapted.model, [cut], image_size)
    except ValueError:
        return False
    frozen = traced.extract_subgraph(traced.input_cut, cut)
    extractor = make_float32_extractor(frozen, choose_compute_config("cpu", "fp32"))
    pixels = torch.randn(2, 3, image_size, image_size)
    with torch.inference_mode():
        for features, expected in zip(extractor(pixels), frozen(pixels), strict=True):
            scale = float(expected.abs().max())
            assert torch.allclose(features, expected, rtol=1e-3, atol=1e-4 * scale), "frozen blocks"
    return traced.has_blocks_before(cut)


def _attempt(name: str) -> Attempt:
    try:
        return try_architecture(name)
    except (EdgetlError, AssertionError, RuntimeError, TypeError) as cause:
        return Attempt(name, error=str(cause).splitlines()[0].partition(". Choose")[0])


def write_page(attempts: Sequence[Attempt], rows: dict[str, Architecture]) -> None:
    """Write the page of all architectures that were tried."""
    lines = [
        "# timm's architectures",
        "",
        "Generated by `python -m tools.checks.timm_models` with "
        f"timm {timm.__version__}, PyTorch {torch.__version__.partition('+')[0]}. Each architecture "
        "got a new head, was trained for one epoch at the smallest of "
        f"{', '.join(map(str, IMAGE_SIZES))} pixels that it takes, exported, and compared with "
        "PyTorch: its logits differ by at most 0.001, with the same top-1 labels. Other architectures "
        "of timm are inspected when they are used. Family is timm's module.",
        "",
        "Fused: branches of the trained model are fused in the exported file. Streamed: the frozen "
        "blocks cannot be separated, so `finetune` decodes and computes every image in every epoch.",
        "",
        "| `--model` | family | parameters | blocks | tried at | | difference |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: |",
    ]
    for attempt in attempts:
        if attempt.error:
            continue
        row = rows[attempt.name]
        notes = ["fused"] * attempt.fused + ["streamed"] * (not attempt.cache)
        lines.append(
            f"| `{row.name}` | {row.family} | {row.parameters / 1e6:.1f} M | {row.blocks} | "
            f"{attempt.image_size} | {', '.join(notes)} | {attempt.difference:.0e} |"
        )
    lines += ["", "## Those that do not work", "", "| `--model` | reason |", "| --- | --- |"]
    lines += [f"| `timm:{item.name}` | {item.error} |" for item in attempts if item.error]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=_NAMES.split())
    parser.add_argument("--log", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = arguments.log.read_text().splitlines() if arguments.log.exists() else []
    attempts = {
        attempt.name: attempt for attempt in (Attempt(**json.loads(line)) for line in lines)
    }
    for name in arguments.names:
        if name not in attempts:
            attempts[name] = _attempt(name)
            print(attempts[name], flush=True)
            with arguments.log.open("a") as stream:
                stream.write(json.dumps(asdict(attempts[name])) + "\n")
    selected = [attempts[name] for name in arguments.names]
    rows = {
        item.name: describe_architecture(f"timm:{item.name}") for item in selected if not item.error
    }
    write_page(selected, rows)
    write_table(TIMM_TABLE, list(rows.values()))


if __name__ == "__main__":
    main()
