"""Card of a released backbone, rendered from its recipe and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

_CARD = Template("""\
# $model, pretrained on generated images

A backbone for `edgetl finetune --weights builtin --model $model`. It was trained by edgetl itself on images that edgetl draws itself: no
photograph, nobody's face, no licence but edgetl's own (Apache-2.0). $size MB: kernels in fp16, vectors in float32, without a classification
layer, which fine-tuning adds.

## What it was trained on

$drawn images of $classes classes, drawn on the spot by seeded code (`tools/pretraining`): fractals by iterated function systems,
procedural textures, solids and jointed bodies with light, relief, shadow and texture. The task was to tell the classes apart.

| | |
| --- | --- |
$facts

It tells $unseen. Chance is $chance%.

## What it is worth

$worth

## Loss

$curve

## Recipe

```toml
$recipe```

Made again by:

    python -m tools.pretraining.pretrain --recipe models/$model-builtin/recipe.toml --work DIR -o DIR/out

## Limits

It has seen no photograph. Where ImageNet's weights may be used (`--weights imagenet`), the table says what they would add.
The figures above are all that is known of it.
""")


def render_card(results: Mapping[str, Any], recipe: str, weights_bytes: int) -> str:
    """Render card.md.

    Args:
        results: results of `release.write_release`, and under `worth` those of
            tools/benchmarks/backbone_gain.py: Markdown by dataset.
        recipe: text of recipe.toml.
        weights_bytes: size of the weights file.
    """
    hours = results["seconds"] / 3600
    core_hours = ""
    if "core_seconds" in results:
        core_hours = f", {results['core_seconds'] / 3600:.2f} core hours of training"
    cost = f"{hours:.2f} hours on {results['device']} in {results['precision']}{core_hours}"
    versions = [f"{name} {version}" for name, version in results["versions"].items() if version]
    facts = [
        ("images seen", f"{results['images_seen']:,} in {results['steps']:,} steps"),
        ("cost", cost),
        ("made with", ", ".join(versions)),
    ]
    accuracies = [
        f"{100 * accuracy:.1f}% of new ones right at {side} px"
        for side, accuracy in results["unseen_accuracy"].items()
    ]
    return _CARD.substitute(
        model=results["model"],
        size=f"{weights_bytes / 1e6:.1f}",
        drawn=f"{results['images_drawn']:,}",
        classes=results["classes"],
        facts="\n".join(f"| {name} | {value} |" for name, value in facts),
        unseen=", ".join(accuracies),
        chance=f"{100 / results['classes']:.2g}",
        worth="\n\n".join(results["worth"].values())
        or "Not measured: `python -m tools.benchmarks.backbone_gain` does.",
        curve=_curve(results["curve"]),
        recipe=recipe,
    )


def _curve(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        f"| {line['step']:,} | {line['seconds'] / 60:.1f} | {line['side']} "
        f"| {line['loss']:.3f} | {100 * line['accuracy']:.1f}% |"
        for line in lines
    ]
    return "\n".join(
        [
            "| step | minutes | pixels | loss | accuracy |",
            "| ---: | ---: | ---: | ---: | ---: |",
            *rows,
        ]
    )
