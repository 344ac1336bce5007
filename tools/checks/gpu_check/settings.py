"""Settings shared by all steps."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

BUILTIN = "builtin"


@dataclass(frozen=True)
class Settings:
    """Options of the check, written once and read by each step's process."""

    folder: Path
    """Scratch folder for files that later steps use; removed at the end."""
    device: str = "cuda"
    """`cuda`, or `cpu` for a rehearsal."""
    weights: str = BUILTIN
    """`builtin` or a weights file of MobileNetV2."""
    photos: Path | None = None
    """The user's folder of class folders; None generates photos."""
    seed: int = 0

    @property
    def rehearsal(self) -> bool:
        """True on the CPU, where sizes are tiny and figures are meaningless."""
        return self.device == "cpu"

    @property
    def data(self) -> Path:
        """Dataset of the fine-tuning steps: class folders of photos of 500 pixels."""
        return self.photos or self.folder / "data"

    @property
    def model(self) -> str:
        """Architecture of the fine-tuning steps, matching the weights."""
        return "mobilenet_v3_small" if self.weights == BUILTIN else "mobilenet_v2"

    @property
    def image_size(self) -> int:
        """Side of the model's input, pixels."""
        return 64 if self.rehearsal else 224

    @property
    def run(self) -> Path:
        """MobileNetV2 run whose bundle takes images."""
        return self.folder / "run"

    @property
    def tensor_run(self) -> Path:
        """Copy of the run whose bundle takes tensors."""
        return self.folder / "tensor-run"

    def write(self, path: Path) -> None:
        """Write the settings as JSON."""
        path.write_text(json.dumps(asdict(self), default=str), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read a file written by `write`."""
        content = json.loads(path.read_text(encoding="utf-8"))
        photos = content["photos"]
        content |= {"folder": Path(content["folder"]), "photos": Path(photos) if photos else None}
        return cls(**content)
