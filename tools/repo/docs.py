"""Write docs/reference/cli.md from the program's `--help`: `python -m tools.repo.docs`.

With `--check` nothing is written; the exit status is 1 if the file differs or a relative link in a
Markdown file is broken.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLI_REFERENCE = ROOT / "docs/reference/cli.md"


def help_text(*command: str) -> str:
    """Return a command's `--help` at a fixed width, without colors and boxes."""
    environment = {**os.environ, "COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb"}
    for variable in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
        environment.pop(variable, None)
    result = subprocess.run(
        [sys.executable, "-m", "edgetl", *command, "--help"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=True,
    )
    return "\n".join(line.rstrip() for line in result.stdout.strip("\n").splitlines())


def cli_reference() -> str:
    """Return the expected content of docs/reference/cli.md."""
    from edgetl.cli.app import COMMANDS

    sections = ["# Command line\n\nGenerated from `--help` by `make format`.\n"]
    for command in ([], *([name] for name in COMMANDS)):
        title = " ".join(["edgetl", *command])
        sections.append(f"## {title}\n\n```text\n{help_text(*command)}\n```\n")
    return "\n".join(sections)


def broken_links() -> list[str]:
    """Return a message for each relative link in a Markdown file whose target does not exist."""
    problems = []
    for page in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:\s]+?)(?:#[^)]*)?\)", text):
            if not (page.parent / target).exists():
                problems.append(f"{page.relative_to(ROOT)}: link target {target} not found.")
    return problems


def main() -> None:
    """Write the reference, or check it with `--check`."""
    expected = cli_reference()
    problems = broken_links()
    if "--check" not in sys.argv[1:]:
        CLI_REFERENCE.write_text(expected, encoding="utf-8")
    elif CLI_REFERENCE.read_text(encoding="utf-8") != expected:
        problems.append("docs/reference/cli.md does not match `--help`. Run `make format`.")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
