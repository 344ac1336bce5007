"""Pretrain a backbone on generated images: python -m tools.pretraining.pretrain --budget 45m --work DIR -o models/mobilenet_v3_small-builtin.

On a GPU or on CPU cores. Ended at any moment, the same command goes on from the last checkpoint in --work. A recipe that is measured in
steps (recipe.toml beside shipped weights is one) gives equal weights on equal machines; one measured in time gives what the time allows.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from edgetl.core.config.options import parse_duration
from edgetl.core.errors import EdgetlError


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.pretraining.pretrain",
        description="Pretrain a backbone on generated images.",
    )
    parser.add_argument("--model", help="torchvision's name [recipe's: mobilenet_v3_small]")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--budget", metavar="45m", help="time of training")
    length.add_argument("--steps", type=int, help="steps of training, instead of a time")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder that ships")
    parser.add_argument(
        "--work", type=Path, required=True, help="checkpoint, loss curve and images (about 1.5 GB)"
    )
    parser.add_argument(
        "--recipe", type=Path, help="TOML; the default one is in tools/pretraining/recipe.py"
    )
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--makers", type=int, default=1, help="processes that draw images")
    parser.add_argument("--checkpoint-every", default="1m", metavar="TIME")
    given = parser.parse_args(arguments)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    # Here, not above: every process that draws imports this module anew, and needs neither torch nor its second of start-up.
    from tools.pretraining.recipe import read_recipe
    from tools.pretraining.release import ship
    from tools.pretraining.training import pretrain

    try:
        budget = parse_duration(given.budget) if given.budget else None
        recipe = read_recipe(
            given.recipe, model=given.model, seed=given.seed, steps=given.steps, budget_s=budget
        )
        every = parse_duration(given.checkpoint_every)
        pretrained = pretrain(
            recipe, given.work, given.device, given.precision, given.makers, every
        )
        results = ship(given.output, recipe, pretrained)
    except EdgetlError as wrong:
        sys.exit(str(wrong))
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on.")
    print(
        f"{given.output}: {results['steps']} steps, {results['seconds'] / 3600:.2f} hours, unseen {results['unseen_accuracy']}"
    )


if __name__ == "__main__":
    main()
