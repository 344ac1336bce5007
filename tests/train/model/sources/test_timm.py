"""timm's architectures: names, heads, weights; the whole way for those of the table."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from edgetl.core.architectures import load_timm_architectures
from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import ArchitectureError, ConfigError, WeightsError
from edgetl.export.random_init import check_names
from edgetl.train.model.factory import build_adapted_model, load_stock_model
from edgetl.train.model.sources.timm import TimmModels
from edgetl.train.model.stock_models import (
    build_meta_model,
    build_model,
    describe_architecture,
    preprocessing_for,
)
from edgetl.train.model.weights import load_pretrained_weights
from edgetl.train.model.weights_file import PretrainedWeights
from tools.checks.timm_models import try_architecture

QUICK = (
    "lcnet_050",
    "mobilenetv4_conv_small",
    "repvgg_a0",
    "convnext_atto",
    "tf_efficientnet_lite0",
    "repvit_m0_9",
)
"""Architectures of the quick suite: depthwise layers, MobileNetV4, branches that are fused, stages,
TensorFlow's padding, a distilled head."""
ROWS = load_timm_architectures()
NAMES = [
    name if name.removeprefix("timm:") in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in ROWS
]
SOURCE = TimmModels()
SMALL = "timm:test_resnet"
"""A network of 0.5 M parameters that timm ships for tests."""


def test_table_covers_many_families() -> None:
    assert len(ROWS) >= 30
    assert len({row.family for row in ROWS.values()}) >= 12
    assert {f"timm:{name}" for name in QUICK} <= set(ROWS)


@pytest.mark.parametrize("name", NAMES)
def test_architecture_goes_from_new_head_to_equal_file(name: str) -> None:
    attempt = try_architecture(name.removeprefix("timm:"))
    assert attempt.difference <= ExportConfig.network_tolerance
    if name.startswith(("timm:repvgg", "timm:repvit", "timm:mobileone", "timm:fastvit")):
        assert attempt.fused


@pytest.mark.parametrize("name", NAMES)
def test_table_matches_timm(name: str) -> None:
    assert describe_architecture(name) == ROWS[name]


def test_unknown_name_suggests_the_three_nearest() -> None:
    with pytest.raises(ArchitectureError) as error:
        SOURCE.check_name("timm:mobilenetv4_conv_smal")
    message = str(error.value)
    assert "no model 'mobilenetv4_conv_smal'" in message
    assert message.count("timm:mobilenetv4_") == 3
    assert "timm:mobilenetv4_conv_small" in message


def test_unknown_tag_names_those_with_weights() -> None:
    with pytest.raises(ArchitectureError, match=r"Use timm:lcnet_050\.ra2_in1k\."):
        SOURCE.check_name("timm:lcnet_050.in22k")
    SOURCE.check_name("timm:lcnet_050.ra2_in1k")


def test_candidates_report_every_unknown_name() -> None:
    with pytest.raises(ConfigError, match=r"no model 'lcnet_05'.*\n.*'mobilenet_v9'"):
        check_names(["timm:lcnet_05", "mobilenet_v2", "mobilenet_v9"])


def test_preprocessing_is_that_of_the_weights() -> None:
    tinynet = SOURCE.default_preprocessing("timm:tinynet_e")
    assert (tinynet.resize, tinynet.crop, tinynet.interpolation) == (121, 106, "bicubic")
    assert SOURCE.default_preprocessing("timm:dla34").interpolation == "bilinear"
    lite = SOURCE.default_preprocessing("timm:tf_efficientnet_lite0")
    assert (lite.crop, lite.mean, lite.std) == (224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    larger = SOURCE.default_preprocessing("timm:mobilenetv4_conv_small.e3600_r256_in1k")
    assert (larger.resize, larger.crop) == (269, 256)
    assert preprocessing_for("timm:tinynet_e", 64).mean == tinynet.mean


def test_fixed_size_is_changed_where_timm_can() -> None:
    adapted = build_adapted_model("timm:vit_tiny_patch16_224", 64, 3, 8, 0.2, None)
    assert adapted.model(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("timm:inception_v3", 64, "Kernel size can't be greater than actual input size"),
        ("timm:efficientformer_l1", 256, "it needs images of 224 pixels"),
    ],
)
def test_unsupported_size_has_a_reason(name: str, size: int, reason: str) -> None:
    with pytest.raises(
        ArchitectureError, match=f"{name} does not take images of {size} pixels"
    ) as error:
        build_meta_model(name, size)
    assert reason in str(error.value)


def test_distilled_model_gets_one_head_on_its_features() -> None:
    name = "timm:deit_tiny_distilled_patch16_224"
    original = timm.create_model(name.partition(":")[2], img_size=32).eval()
    original_tensors = dict(original.state_dict())
    adapted = build_adapted_model(
        name, 32, 3, 8, 0.2, PretrainedWeights(original_tensors, "memory", "")
    )
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = original.forward_features(pixels)
        features = adapted.model.get_submodule("backbone").eval()(pixels)
    torch.testing.assert_close(features, (tokens[:, 0] + tokens[:, 1]) / 2)
    assert adapted.classifier_layer.path == "head"
    assert len(adapted.blocks) == 13


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """State dict of a small network of timm."""
    torch.manual_seed(1)
    return dict(timm.create_model("test_resnet").state_dict())


def test_weights_file_of_timm_loads(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "timm-test_resnet.safetensors")
    loaded = load_stock_model(SMALL, str(tmp_path), 64)
    assert len(loaded.labels) == 1000
    assert loaded.labels[0] == "tench"
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())


def test_wrong_checkpoint_names_missing_and_unexpected_tensors(tensors: dict[str, Tensor]) -> None:
    weights = PretrainedWeights({**tensors}, "file.safetensors", "")
    weights.tensors["layer9.weight"] = weights.tensors.pop("layer1.0.conv1.weight")
    with pytest.raises(WeightsError, match=r"1 missing \(layer1\.0\.conv1\.weight\); 1 unexpected"):
        load_pretrained_weights(build_model(SMALL, 64), weights, SMALL)


def test_position_embeddings_are_resized() -> None:
    source = timm.create_model("test_vit", img_size=160)
    weights = PretrainedWeights(dict(source.state_dict()), "memory", "")
    model = build_model("timm:test_vit", 96)
    load_pretrained_weights(model, weights, "timm:test_vit")
    assert model.get_parameter("pos_embed").shape[1] < source.pos_embed.shape[1]
    assert torch.equal(model.get_parameter("cls_token"), source.cls_token)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("timm:tiny_vit_5m_224.dist_in22k", "it has 21841 classes"),
        ("timm:levit_128s", "its logits do not come from one classification layer"),
    ],
)
def test_stock_export_is_refused_before_the_download(name: str, reason: str) -> None:
    with pytest.raises(WeightsError, match=f"{name} cannot be exported as it is: {reason}"):
        load_stock_model(name, "imagenet")


def test_model_without_weights_says_what_to_use() -> None:
    with pytest.raises(WeightsError, match=r"no weights of timm:lcnet_035 .* Use weights FILE"):
        SOURCE.read_imagenet_weights("timm:lcnet_035")


class _Hub(BaseHTTPRequestHandler):
    """The Hugging Face Hub with one file; its requests are recorded in `paths`."""

    content = b""
    paths: list[str]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()
        if self.path.endswith("/resolve/main/model.safetensors"):
            self.wfile.write(self.content)

    def _answer(self) -> None:
        self.paths.append(self.path)
        is_known = self.path.endswith("/resolve/main/model.safetensors")
        self.send_response(200 if is_known else 404)
        self.send_header("ETag", f'"{sha256(self.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(len(self.content) if is_known else 0))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tensors: dict[str, Tensor]) -> Iterator[tuple[str, list[str]]]:
    """URL of a local hub, and the paths that were requested."""
    pytest.importorskip("huggingface_hub")
    paths: list[str] = []
    handler = type("Hub", (_Hub,), {"content": save(tensors), "paths": paths})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", paths
        server.shutdown()
        thread.join()


_READ = """
from edgetl.core.errors import WeightsError
from edgetl.train.model.weights import read_weights
try:
    weights = read_weights("imagenet", "timm:test_resnet")
    print(weights.source, weights.sha256, weights.license, len(weights.tensors))
except WeightsError as error:
    print(error)
"""


def read_in_new_process(endpoint: str, cache: Path) -> str:
    """Return what reading the ImageNet weights prints; the hub reads its settings on import."""
    process = subprocess.run(
        [sys.executable, "-c", _READ],
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    return process.stdout.strip()


def test_weights_come_from_the_hub_and_its_cache(
    hub: tuple[str, list[str]], tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    endpoint, paths = hub
    digest = sha256(save(tensors)).hexdigest()
    page = f"{endpoint}/timm/test_resnet.r160_in1k"
    expected = f"{page} {digest} apache-2.0 {len(tensors)}"
    assert read_in_new_process(endpoint, tmp_path) == expected
    assert "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors" in paths


@pytest.mark.slow  # the hub's library retries for 24 s
def test_unreachable_hub_names_the_file_to_fetch(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    message = read_in_new_process("http://127.0.0.1:1", tmp_path)
    assert message.startswith("Cannot download the ImageNet weights of timm:test_resnet (")
    assert "Connection refused" in message
    assert (
        "download http://127.0.0.1:1/timm/test_resnet.r160_in1k/resolve/main/model.safetensors, "
        "copy the file here and use weights FILE" in message
    )


@pytest.mark.parametrize(
    "code",
    [
        "import edgetl.export.exporter, edgetl.train.finetune; "
        "from edgetl.train.model.stock_models import build_model; build_model('resnet18', 32)",
        "from typer.testing import CliRunner; from edgetl.cli.app import create_app; "
        "result = CliRunner().invoke(create_app(), ['models', '--source', 'timm']); "
        "assert 'timm:lcnet_050' in result.output",
    ],
    ids=["a model of torchvision", "edgetl models"],
)
def test_timm_is_imported_only_for_its_models(code: str) -> None:
    command = [sys.executable, "-c", f"{code}; import sys; print('timm' in sys.modules)"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "False"


def test_missing_timm_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['timm'] = None\n"
        "from edgetl.core.errors import MissingPackageError\n"
        "from edgetl.train.model.stock_models import check_architecture\n"
        "try: check_architecture('timm:lcnet_050')\n"
        "except MissingPackageError as error: print(error)"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 'pip install "edgetl[timm]"' in process.stdout
