from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.helpers.experiments import made_experiment
from tools.repo import experiment_images as experiment_pictures

M = "mobilenet_v2-224"


def test_every_drawing_is_a_file_with_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {
        f"{M}/head": (0.9, 9.0),
        f"{M}/freeze-50": (0.92, 30.0),
        f"{M}/full": (0.91, 60.0),
        f"{M}/scratch": (0.4, 90.0),
    }
    folder = tmp_path / "pets"
    made_experiment(rows).write(folder / "compare.json")
    monkeypatch.setattr("sys.argv", ["experiment_pictures", str(folder), "-o", str(tmp_path)])
    experiment_pictures.main()
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == [
        f"experiment-pets-{M}-freezing.svg",
        f"experiment-pets-{M}-time.svg",
    ]
    drawn = ElementTree.fromstring((tmp_path / f"experiment-pets-{M}-time.svg").read_text())
    texts = [element.text or "" for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    for key in ("scratch, 40.0% in 90 s", "head, 90.0% in 9.0 s", "full, 91.0% in 60 s"):
        assert key in texts
