"""Pretrain a backbone on generated images.

    python -m tools.pretraining.pretrain --budget 45m --work DIR -o DIR

Runs on a GPU or on CPU cores. After an interruption, the same command continues from the last
checkpoint in --work. A recipe limited by steps, such as the recipe.toml of released weights, gives
equal weights on equal machines; the result of a recipe limited by time depends on the speed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from edgetl.core.config.parsers import parse_duration
from edgetl.core.errors import EdgetlError


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain a backbone and write its release folder."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.pretraining.pretrain",
        description="Pretrain a backbone on generated images.",
    )
    parser.add_argument("--model", help="torchvision architecture (default: the recipe's)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--budget", metavar="45m", help="training time")
    length.add_argument("--steps", type=int, help="training steps")
    parser.add_argument("-o", "--output", type=Path, required=True, help="release folder")
    parser.add_argument(
        "--work",
        type=Path,
        required=True,
        help="folder of the checkpoint, loss curve and images (about 1.5 GB)",
    )
    parser.add_argument(
        "--recipe", type=Path, help="TOML file (default: see tools/pretraining/recipe.py)"
    )
    parser.add_argument("--seed", type=int, help="random seed (default: the recipe's)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--makers", type=int, default=1, help="processes that draw images")
    parser.add_argument(
        "--checkpoint-every", default="1m", metavar="TIME", help="time between checkpoints"
    )
    options = parser.parse_args(arguments)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    # Import here: every process that draws images imports this module, and importing torch would
    # add a second to its startup.
    from tools.pretraining.recipe import read_recipe
    from tools.pretraining.release import write_release
    from tools.pretraining.training import pretrain

    try:
        budget_s = parse_duration(options.budget) if options.budget else None
        recipe = read_recipe(
            options.recipe,
            model=options.model,
            seed=options.seed,
            steps=options.steps,
            budget_s=budget_s,
        )
        pretrained = pretrain(
            recipe,
            options.work,
            options.device,
            options.precision,
            options.makers,
            parse_duration(options.checkpoint_every),
        )
        results = write_release(options.output, recipe, pretrained)
    except EdgetlError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted. Run the same command again to continue.")
    print(
        f"{options.output}: {results['steps']} steps, {results['seconds'] / 3600:.2f} hours, "
        f"accuracy on new images {results['unseen_accuracy']}"
    )


if __name__ == "__main__":
    main()
