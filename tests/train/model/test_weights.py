from __future__ import annotations

import pickle
import socket
import struct
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgetl.core.errors import WeightsError
from edgetl.core.files import sha256_file
from edgetl.train.model.factory import build_adapted_model, load_stock_model
from edgetl.train.model.weights import load_pretrained_weights, read_weights
from edgetl.train.model.weights_file import PretrainedWeights, download_weights

NAME = "squeezenet1_1"


def make_model() -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = torchvision.models.squeezenet1_1()
    return model


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in make_model().state_dict().items()}


@pytest.fixture
def file(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    path = tmp_path / f"{NAME}.safetensors"
    save_file(state, path)
    return path


def test_read_weights_from_safetensors_file_or_folder(file: Path, state: dict[str, Tensor]) -> None:
    for source in (file, file.parent):
        weights = read_weights(str(source), NAME)
        assert weights is not None
        assert weights.tensors.keys() == state.keys()
        assert (weights.source, weights.sha256) == (str(file), sha256_file(file))


def test_read_weights_returns_none_for_none() -> None:
    assert read_weights("none", NAME) is None


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("ending", [".pth", ".pt"])
def test_checkpoints_are_unwrapped(
    tmp_path: Path, state: dict[str, Tensor], wrapper: str | None, ending: str
) -> None:
    path = tmp_path / f"checkpoint{ending}"
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({wrapper: wrapped, "epoch": 3} if wrapper else wrapped, path)
    weights = read_weights(str(path), NAME)
    assert weights is not None
    target = make_model()
    nn.init.zeros_(target.features[0].weight)
    load_pretrained_weights(target, weights, NAME)
    assert all(torch.equal(tensor, state[name]) for name, tensor in target.state_dict().items())


def _mislabeled(header: str) -> bytes:
    """Return a safetensors file with eight bytes of data that do not match its header."""
    return struct.pack("<Q", len(header)) + header.encode() + bytes(8)


class _MaliciousObject:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.trace, "the code ran"))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_pickle_with_code_is_not_loaded(
    tmp_path: Path, state: dict[str, Tensor], writer: str
) -> None:
    path, trace = tmp_path / "bomb.pth", tmp_path / "trace"
    content = {**state, "bomb": _MaliciousObject(trace)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(
        WeightsError, match=r"run code when loaded, so it was not loaded.*safetensors"
    ):
        read_weights(str(path), NAME)
    assert not trace.exists()
    torch.load(path, weights_only=False) if writer == "torch" else pickle.loads(path.read_bytes())
    assert trace.exists(), "the code did not run when loaded unsafely, so the test proves nothing"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"not weights", "cannot be read as weights"),
        ("w.safetensors", b"", "cannot be read as weights"),
        ("w.safetensors", b"\xff" * 8 + b"{}", "cannot be read as weights"),
        ("w.safetensors", struct.pack("<Q", 10**9) + b"{}", "cannot be read as weights"),
        (
            "w.safetensors",
            _mislabeled('{"a": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}'),
            "cannot be read as weights",
        ),
        (
            "w.safetensors",
            _mislabeled('{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}'),
            "cannot be read as weights",
        ),
        (
            "w.safetensors",
            _mislabeled('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}'),
            "cannot be read as weights",
        ),
        ("w.pth", b"", "cannot be read|damaged"),
        ("w.pth", b"PK\x03\x04 half a zip", "cannot be read|damaged"),
        ("w.onnx", b"x", "unknown file extension"),
    ],
)
def test_damaged_files_are_rejected(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_weights(str(tmp_path / name), NAME)


def test_file_without_state_dict_is_rejected(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        read_weights(str(tmp_path / "w.pth"), NAME)


def test_missing_file_error_lists_the_folder(file: Path) -> None:
    with pytest.raises(WeightsError, match="No weights at"):
        read_weights(str(file.parent / "nowhere.safetensors"), NAME)
    with pytest.raises(
        WeightsError, match=r"no resnet18\.safetensors; it has: squeezenet1_1\.safetensors"
    ):
        read_weights(str(file.parent), "resnet18")


def as_weights(tensors: dict[str, Tensor]) -> PretrainedWeights:
    return PretrainedWeights(tensors, "test", "")


def test_load_weights_names_mismatches(state: dict[str, Tensor]) -> None:
    tensors = {name: tensor for name, tensor in state.items() if name != "features.0.bias"}
    tensors["extra.weight"] = torch.zeros(1)
    tensors["features.0.weight"] = torch.zeros(64, 1, 3, 3)
    with pytest.raises(WeightsError) as caught:
        load_pretrained_weights(make_model(), as_weights(tensors), NAME)
    for part in (
        "1 missing (features.0.bias)",
        "1 unexpected (extra.weight)",
        "features.0.weight is 64x1x3x3, not 64x3x3x3",
    ):
        assert part in str(caught.value)


def test_load_weights_lists_only_a_few_mismatches(state: dict[str, Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"\d+ missing .* and \d+ more\)") as caught:
        load_pretrained_weights(torchvision.models.resnet18(), as_weights(state), "resnet18")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("classes", [None, 1000, 7])
def test_replaced_layer_may_be_missing_or_of_any_shape(
    state: dict[str, Tensor], classes: int | None
) -> None:
    tensors = {
        name: tensor for name, tensor in state.items() if not name.startswith("classifier.1.")
    }
    if classes:
        tensors |= {
            "classifier.1.weight": torch.zeros(classes, 512, 1, 1),
            "classifier.1.bias": torch.zeros(classes),
        }
    adapted = build_adapted_model(NAME, 32, 3, 8, 0.2, as_weights(tensors))
    assert torch.equal(adapted.model.features[0].weight, state["features.0.weight"])
    if classes != 1000:
        with pytest.raises(WeightsError, match=r"classifier\.1\.weight"):
            load_pretrained_weights(make_model(), as_weights(tensors), NAME)


def test_counters_and_auxiliary_classifiers_are_optional() -> None:
    torch.manual_seed(0)
    full = torchvision.models.googlenet(init_weights=False).state_dict()
    assert any(name.startswith("aux1.") for name in full)
    tensors = {
        name: tensor for name, tensor in full.items() if not name.endswith("num_batches_tracked")
    }
    adapted = build_adapted_model("googlenet", 32, 2, 8, 0.2, as_weights(tensors))
    assert torch.equal(adapted.model.conv1.conv.weight, full["conv1.conv.weight"])
    assert not any(name.startswith("aux") for name in adapted.model.state_dict())


def test_values_that_are_not_finite_are_rejected(state: dict[str, Tensor]) -> None:
    tensors = {**state, "features.0.bias": torch.full((64,), float("nan"))}
    with pytest.raises(WeightsError, match=r"not finite.*features\.0\.bias"):
        load_pretrained_weights(make_model(), as_weights(tensors), NAME)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.to("meta"), "1 tensors without plain values"),
        (lambda tensor: tensor.to_sparse(), "1 tensors without plain values"),
        (
            lambda tensor: torch.zeros(1).expand(40_000, 40_000),
            "MB, but the limit for squeezenet1_1",
        ),
        (lambda tensor: tensor.to(torch.int8), "of another type.* is int8, not float32"),
        (lambda tensor: tensor.to(torch.complex64), "of another type.* is complex64, not float32"),
        (lambda tensor: tensor > 0, "of another type.* is bool, not float32"),
    ],
)
def test_unsupported_tensors_are_rejected(
    tmp_path: Path, state: dict[str, Tensor], change: Any, message: str
) -> None:
    name = "features.0.weight"
    path = tmp_path / "weights.pth"
    torch.save({**state, name: change(state[name])}, path)
    with pytest.raises(WeightsError, match=message):
        build_adapted_model(NAME, 224, 3, 0, 0.2, read_weights(str(path), NAME))


def test_names_that_are_numbers_are_rejected(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(dict(enumerate(state.values())), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="names are not strings"):
        read_weights(str(tmp_path / "weights.pth"), NAME)


def test_archive_above_size_limit_is_not_unpacked(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "plain.pth")
    path = tmp_path / "bomb.pth"
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as archive,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in archive.infolist():
            bomb.writestr(entry.filename, archive.read(entry))
        bomb.writestr("plain/data/zeros", bytes(200 * 2**20))
    assert path.stat().st_size < 8 * 2**20
    with pytest.raises(
        WeightsError, match=r"unpacks to 2\d\d MB, but the limit for squeezenet1_1 is 87 MB"
    ):
        read_weights(str(path), NAME)


def test_old_densenet_names_are_renamed(tmp_path: Path) -> None:
    state = torchvision.models.densenet121().state_dict()
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): tensor
        for name, tensor in state.items()
    }
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "densenet121.pth")
    weights = read_weights(str(tmp_path / "densenet121.pth"), "densenet121")
    assert weights is not None
    load_pretrained_weights(torchvision.models.densenet121(), weights, "densenet121")


def test_position_embeddings_are_interpolated() -> None:
    torch.manual_seed(0)
    at_64 = torchvision.models.vision_transformer._vision_transformer(
        32, 2, 2, 16, 32, None, False, image_size=64
    )
    at_96 = torchvision.models.vision_transformer._vision_transformer(
        32, 2, 2, 16, 32, None, False, image_size=96
    )
    load_pretrained_weights(at_96, as_weights(at_64.state_dict()), "tiny_vit")
    assert at_96.encoder.pos_embedding.shape == (1, 10, 16)
    assert torch.equal(at_96.encoder.pos_embedding[:, 0], at_64.encoder.pos_embedding[:, 0])


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """URL and folder of a local server; torch's cache is empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder))
    ) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}", folder
        http.shutdown()
        thread.join()


def test_download_is_checked_and_cached(
    server: tuple[str, Path],
    state: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, folder = server
    torch.save(state, folder / "w.pth")
    digest = sha256_file(folder / "w.pth")
    (folder / "w.pth").rename(folder / f"w-{digest[:8]}.pth")
    weights_class = type(torchvision.models.get_model_weights(NAME).DEFAULT.value)
    entry = weights_class(url=f"{url}/w-{digest[:8]}.pth", transforms=None, meta={})
    monkeypatch.setattr(torchvision.models.get_model_weights(NAME).DEFAULT, "_value_", entry)
    for _ in range(2):
        weights = read_weights("imagenet", NAME)
        assert weights is not None
        assert (weights.sha256, weights.source) == (digest, entry.url)
        assert torch.equal(weights.tensors["features.0.weight"], state["features.0.weight"])
        (folder / f"w-{digest[:8]}.pth").unlink(
            missing_ok=True
        )  # the second time it comes from the cache
    assert capsys.readouterr().out == "", "standard output is only for results"


def test_download_with_wrong_hash_is_rejected(
    server: tuple[str, Path], state: dict[str, Tensor]
) -> None:
    url, folder = server
    torch.save(state, folder / "w-00000000.pth")
    with pytest.raises(WeightsError, match="invalid hash value"):
        download_weights(f"{url}/w-00000000.pth", NAME)


def test_download_errors_name_url_and_alternatives(server: tuple[str, Path]) -> None:
    url, _ = server
    with pytest.raises(WeightsError, match="404") as caught:
        download_weights(f"{url}/w-00000000.pth", NAME)
    assert f"{url}/w-00000000.pth" in str(caught.value)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/w-00000000.pth"
    with pytest.raises(WeightsError) as caught:
        download_weights(dead, NAME)
    for part in (dead, "use weights FILE", "with weights none", "internet access"):
        assert part in str(caught.value)
    assert socket.getdefaulttimeout() is None


def test_stock_model_has_imagenet_labels(file: Path, state: dict[str, Tensor]) -> None:
    model = load_stock_model(NAME, str(file))
    assert len(model.labels) == 1000
    assert model.labels[0] == "tench"
    assert (model.preprocessing.crop, model.preprocessing.resize) == (224, 256)
    assert model.run_id == sha256_file(file)[:12]
    assert not model.model.training
    with torch.no_grad():
        assert model.model(torch.randn(2, 3, 224, 224)).shape == (2, 1000)
    assert load_stock_model(NAME, str(file), image_size=64).preprocessing.crop == 64
    with pytest.raises(WeightsError, match="without weights"):
        load_stock_model(NAME, "none")


def test_imagenet_weights_recognize_dogs(shared: Path) -> None:
    from edgetl.device.runtime.images import load_image
    from edgetl.device.runtime.preprocessing import preprocess

    model = load_stock_model("mobilenet_v2", str(shared / "weights"))
    photos = sorted((shared / "data/catsdogs500/val/dogs").iterdir())[:20]
    batch = torch.cat(
        [torch.from_numpy(preprocess(load_image(photo), model.preprocessing)) for photo in photos]
    )
    with torch.inference_mode():
        predicted = model.model(batch).argmax(1)
    assert int(((predicted >= 151) & (predicted <= 268)).sum()) >= 14, (
        "ImageNet's classes 151 to 268 are dog breeds"
    )
    assert load_file(shared / "weights/mobilenet_v2.safetensors").keys() >= {"features.0.0.weight"}
