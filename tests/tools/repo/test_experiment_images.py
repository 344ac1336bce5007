from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.helpers.experiments import made_experiment
from tools.repo import experiment_images

NETWORK = "mobilenet_v2-224"


def test_every_figure_is_written_with_its_legend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {
        f"{NETWORK}/head": (0.9, 9.0),
        f"{NETWORK}/freeze-50": (0.92, 30.0),
        f"{NETWORK}/full": (0.91, 60.0),
        f"{NETWORK}/scratch": (0.4, 90.0),
    }
    folder = tmp_path / "pets"
    made_experiment(rows).write(folder / "compare.json")
    monkeypatch.setattr("sys.argv", ["experiment_images", str(folder), "-o", str(tmp_path)])
    experiment_images.main()
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == [
        f"experiment-pets-{NETWORK}-freezing.svg",
        f"experiment-pets-{NETWORK}-time.svg",
    ]
    svg = ElementTree.fromstring((tmp_path / f"experiment-pets-{NETWORK}-time.svg").read_text())
    texts = [element.text or "" for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    for entry in ("scratch, 40.0% in 90 s", "head, 90.0% in 9.0 s", "full, 91.0% in 60 s"):
        assert entry in texts
