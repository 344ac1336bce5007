"""Conversion to the formats of other runtimes, each file proven."""

from __future__ import annotations

from collections.abc import Sequence

from edgetl.core.artifacts.bundle import VariantRecord
from edgetl.core.errors import EdgetlError
from edgetl.core.registry import FORMATS, load_from_registry
from edgetl.export.formats.proof import prove_converted
from edgetl.export.formats.task import ConversionTask, ConvertedFile
from edgetl.export.variants import VariantBuilder


def convert_to_formats(
    formats: Sequence[str], task: ConversionTask, builder: VariantBuilder
) -> tuple[list[VariantRecord], dict[str, str]]:
    """Convert the network and prove every file with its runtime.

    A file that is wrong, or that cannot be written, does not affect the others.

    Args:
        formats: names of runtimes in `edgetl.core.registry.FORMATS`.
        task: the network.
        builder: proof images, and the golden images of the bundle.

    Returns:
        The proven variants, and the reasons why others were left out, by variant or format. Files
        that belong to no proven variant are deleted.

    Raises:
        MissingPackageError: the package of a runtime or converter is not installed.
    """
    variants: list[VariantRecord] = []
    failures: dict[str, str] = {}
    for runtime in dict.fromkeys(formats):
        task.notify(f"Converting to {runtime}", 0, 0)
        convert = load_from_registry(FORMATS, runtime, "format")
        try:
            files: Sequence[ConvertedFile] = convert(task)
        except EdgetlError as cause:
            failures[runtime] = str(cause)
            continue
        proven: list[VariantRecord] = []
        for file in files:
            task.notify(
                f"Checking {file.name} on the {builder.evaluation_images.kind} images", 0, 0
            )
            try:
                proven.append(prove_converted(runtime, file, builder))
            except EdgetlError as cause:
                failures[file.name] = str(cause)
        _delete_unproven(files, proven)
        variants += proven
    return variants, failures


def _delete_unproven(files: Sequence[ConvertedFile], proven: Sequence[VariantRecord]) -> None:
    kept_names = {record.file for variant in proven for record in variant.files}
    for file in files:
        for path in file.files:
            if path.name not in kept_names:
                path.unlink(missing_ok=True)
