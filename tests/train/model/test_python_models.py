"""Models of the user's own: building, checks and messages about the user's code."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgetl.core.architectures import source_of
from edgetl.core.errors import ArchitectureError, EdgetlError, WeightsError
from edgetl.train.model.factory import build_adapted_model
from edgetl.train.model.freezing import tensor_digest
from edgetl.train.model.stock_models import build_model, get_architecture, preprocessing_for
from edgetl.train.model.weights import read_weights

NETWORK = """
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(width)
        def forward(self, x):
            return torch.relu(x + self.norm(self.conv(x)))

    class Network(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, stride=2)
            self.blocks = nn.Sequential(Block(8), Block(8), Block(8))
            self.last = nn.Linear(8, classes) if classes else nn.Identity()
        def forward(self, x):
            return self.last(self.blocks(self.stem(x)).mean((2, 3)))
    """
_numbers = itertools.count()


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Function that writes a module into the current folder and returns the name of `build`."""
    monkeypatch.chdir(tmp_path)
    modules, search_path = set(sys.modules), list(sys.path)

    def write(code: str, prelude: str = NETWORK) -> str:
        name = f"network_{next(_numbers)}"  # what was imported once is not imported again
        text = dedent(prelude) + dedent(code)
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        return f"{name}:build"

    yield write
    sys.path[:] = search_path
    for name in set(sys.modules) - modules:
        if name.startswith("network_"):
            del sys.modules[name]


LOGITS = "def build(classes): return Network(classes)"
FEATURES = "def build(classes): return Network(0)"


def test_names_with_a_colon_are_functions() -> None:
    assert source_of("my_package.my_module:build") == "python"
    assert source_of("torchvision:resnet18") == "torchvision"


@pytest.mark.parametrize(("code", "head"), [(LOGITS, "last"), (FEATURES, "head")])
def test_head_is_replaced(write_module: Callable[..., str], code: str, head: str) -> None:
    name = write_module(code)
    adapted = build_adapted_model(name, 32, 3, 0, 0.2, None)
    assert adapted.classifier_layer.path == head
    assert adapted.classifier_layer.in_features == 8
    assert len(adapted.blocks) == 4, "the stem and three blocks"
    assert adapted.model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert not adapted.model.training


def test_architecture_is_described(write_module: Callable[..., str]) -> None:
    name = write_module(LOGITS)
    row = get_architecture(name, 32)
    assert row.name == name
    assert row.blocks == 4
    assert row.unfreeze == 2
    assert row.image_size == 32
    assert row.parameters == sum(value.numel() for value in build_model(name, 32).parameters())
    preprocessing = preprocessing_for(name, None)
    assert preprocessing.crop == 224
    assert preprocessing.mean == (0.485, 0.456, 0.406)


def test_class_of_modules_is_a_function(write_module: Callable[..., str]) -> None:
    name = write_module("").replace(":build", ":Network")
    assert build_model(name, 32)(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_lazy_layers_are_initialized(write_module: Callable[..., str]) -> None:
    name = write_module(
        """
        from torch import nn
        def build(classes):
            return nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(classes))
        """,
        "",
    )
    adapted = build_adapted_model(name, 16, 3, 0, 0.2, None)
    assert adapted.classifier_layer.in_features == 8 * 14 * 14


def test_size_is_that_of_the_run(write_module: Callable[..., str]) -> None:
    """A network of one input size is never built for the default size."""
    name = write_module(
        """
        from torch import nn
        def build(classes):
            return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, classes))
        """,
        "",
    )
    assert get_architecture(name, 32).head == "2"
    with pytest.raises(ArchitectureError, match=r"on images of 64 pixels failed.*mat1 and mat2"):
        build_model(name, 64)


PRETRAINED = """
    def build(classes):
        model = Network(classes)
        with torch.no_grad():
            model.stem.weight.fill_(0.5)
        return model
    """


def test_values_as_built_are_kept(write_module: Callable[..., str]) -> None:
    name = write_module(PRETRAINED)
    weights = read_weights("auto", name, 32)
    assert weights is not None
    assert weights.source == "as built"
    torch.manual_seed(5)
    adapted = build_adapted_model(name, 32, 3, 0, 0.2, weights)
    assert bool((adapted.model.get_submodule("stem").weight == 0.5).all())  # type: ignore[union-attr]
    torch.manual_seed(6)
    again = build_adapted_model(name, 32, 3, 0, 0.2, weights)
    for (path, value), other in zip(
        adapted.model.named_parameters(), again.model.parameters(), strict=True
    ):
        if not path.startswith("last."):
            assert tensor_digest(value) == tensor_digest(other), path


def test_digest_as_built_depends_on_values_only(write_module: Callable[..., str]) -> None:
    name, other = write_module(PRETRAINED), write_module(PRETRAINED.replace("0.5", "0.25"))
    digests = []
    for seed, model in ((1, name), (2, name), (1, other)):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        weights = read_weights("auto", model, 32)
        assert weights is not None
        assert torch.equal(state, torch.get_rng_state()), "the generator of the run is not used"
        digests.append(weights.sha256)
    assert digests[0] == digests[1] != digests[2]


def test_random_values_follow_the_seed(write_module: Callable[..., str]) -> None:
    name = write_module(LOGITS)

    def digest(seed: int) -> str:
        torch.manual_seed(seed)
        weight = build_adapted_model(name, 32, 3, 0, 0.2, None).model.get_submodule("stem").weight
        assert isinstance(weight, nn.Parameter)
        return tensor_digest(weight)

    # The first call probes the function; that must not change its random values.
    assert digest(1) == digest(1) != digest(2)


@pytest.mark.parametrize("code", [LOGITS, FEATURES])
def test_file_of_weights_is_loaded(
    write_module: Callable[..., str], tmp_path: Path, code: str
) -> None:
    name = write_module(code)
    model = build_model(name, 32)
    # The file of a user has the names of the user's module, without the head that is appended.
    trained = model.get_submodule("backbone") if code == FEATURES else model
    save_file(trained.state_dict(), tmp_path / "trained.safetensors")
    weights = read_weights(str(tmp_path / "trained.safetensors"), name, 32)
    adapted = build_adapted_model(name, 32, 3, 0, 0.2, weights)
    stem = "backbone.stem" if code == FEATURES else "stem"
    loaded = adapted.model.get_submodule(stem).weight
    assert isinstance(loaded, nn.Parameter)
    assert torch.equal(loaded, trained.get_submodule("stem").weight)  # type: ignore[arg-type]


def test_wrong_file_of_weights_names_the_keys(
    write_module: Callable[..., str], tmp_path: Path
) -> None:
    name = write_module(LOGITS)
    save_file({"stem.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "other.safetensors")
    weights = read_weights(str(tmp_path / "other.safetensors"), name, 32)
    with pytest.raises(WeightsError, match=r"does not fit network_.*missing .*stem\.bias"):
        build_adapted_model(name, 32, 3, 0, 0.2, weights)


@pytest.mark.parametrize("weights", ["imagenet", "builtin"])
def test_stock_weights_are_refused(write_module: Callable[..., str], weights: str) -> None:
    with pytest.raises(WeightsError, match=r"weights (of|for) network_.* [Uu]se weights auto"):
        read_weights(weights, write_module(LOGITS), 32)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def build(classes): return 3", r"must return a torch\.nn\.Module, got int"),
        ("def build(classes): return Network", r"must return a torch\.nn\.Module, got type"),
        (
            "def build(classes): return nn.Conv2d(3, 8, 3)",
            r"for 2 images it returns a tensor of shape \[2, 8, 30, 30\]\. Add a global average",
        ),
        (
            """
            class Pair(Network):
                def forward(self, x): return super().forward(x), x
            def build(classes): return Pair(classes)
            """,
            r"must return one tensor.* for 2 images it returns a tuple of 2\.",
        ),
        (
            """
            class Mean(Network):
                def forward(self, x): return super().forward(x).mean(0, keepdim=True)
            def build(classes): return Mean(classes)
            """,
            r"for 2 images it returns a tensor of shape \[1, 1000\]",
        ),
        (
            "def build(classes): return Network(2 * classes)",
            "for 1000 and 7 classes it returns 2000 and 14 values",
        ),
        (
            "def build(classes): return nn.Sequential(Network(classes), nn.Softmax(dim=1))",
            "returns probabilities. Remove the softmax",
        ),
        (
            """
            MODEL = Network(1000)
            def build(classes): return MODEL
            """,
            "must return a new model for each call",
        ),
        (
            """
            class Reused(Network):
                def __init__(self, classes):
                    super().__init__(classes)
                    self.twice = nn.Linear(classes, classes)
                def forward(self, x): return self.twice(self.twice(super().forward(x)))
            def build(classes): return Reused(classes)
            """,
            r"head of network_\d+:build cannot be replaced: .* runs more than once\. "
            r"Return features \[batch, F\] instead",
        ),
    ],
)  # fmt: skip
def test_unusable_model_is_an_error(
    write_module: Callable[..., str], code: str, message: str
) -> None:
    name = write_module(code)
    with pytest.raises(ArchitectureError, match=message):
        build_adapted_model(name, 32, 3, 0, 0.2, None)


def line_of(name: str, text: str) -> int:
    lines = Path(f"{name.partition(':')[0]}.py").read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.mark.parametrize(
    ("code", "text", "what"),
    [
        ("def build(classes): raise ValueError('bad width')", "raise", r":build\(1000\) failed"),
        ("raise ValueError('bad width')", "raise", r"Importing network_\d+ failed"),
        (
            """
            class Broken(Network):
                def forward(self, x):
                    raise ValueError("bad width")
            def build(classes): return Broken(classes)
            """,
            'raise ValueError("',
            "on images of 32 pixels failed",
        ),
    ],
)
def test_error_of_user_code_has_its_line(
    write_module: Callable[..., str], code: str, text: str, what: str
) -> None:
    name = write_module(code)
    location = f"at {name.partition(':')[0]}.py, line {line_of(name, text)}: ValueError: bad width"
    with pytest.raises(ArchitectureError, match=what) as caught:
        build_model(name, 32)
    assert location in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_syntax_error_has_its_line(write_module: Callable[..., str]) -> None:
    name = write_module("x = = 3")
    with pytest.raises(ArchitectureError, match="SyntaxError: invalid syntax") as caught:
        build_model(name, 32)
    assert f"{name.partition(':')[0]}.py, line {line_of(name, 'x = = 3')}:" in str(caught.value)


def test_missing_package_of_user_code_is_its_error(write_module: Callable[..., str]) -> None:
    name = write_module("import absent_package")
    with pytest.raises(
        ArchitectureError,
        match=r"Importing network_\d+ failed at network_\d+\.py, line \d+: ModuleNotFoundError: "
        "No module named 'absent_package'",
    ):
        build_model(name, 32)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("absent_module:build", "There is no module absent_module in .* Run the command in"),
        ("absent.module:build", "There is no module absent in .* Run the command in the folder of"),
        ("json.absent:build", r"There is no module json\.absent in"),
        ("json:dump_all", "has no function dump_all. Did you mean dump"),
        ("json:__name__", "json:__name__ is a str, not a function"),
        ("json:", "'json:' is not the name of a function. Write it as"),
        (":build", "is not the name of a function"),
        ("json:load:x", "is not the name of a function"),
        ("my-module:build", "is not the name of a function"),
    ],
)
def test_unknown_function_is_an_error(
    model: str, message: str, write_module: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.raises(EdgetlError, match=message) as caught:
        get_architecture(model)
    if "There is no module" in message:
        assert str(tmp_path) in str(caught.value)
