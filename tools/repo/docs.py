"""Keep what is generated true: `python -m tools.repo.docs` writes it, `--check` fails where it differs.

- docs/reference/cli.md, the command reference, from the program's own --help;
- the map of the tree in README.md: every module must have its line, and every line its module.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs/reference/cli.md"
README = ROOT / "README.md"


def help_text(*command: str) -> str:
    """The program's --help at a fixed width, without colour or box."""
    environment = {**os.environ, "COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb"}
    for forced in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
        environment.pop(forced, None)
    done = subprocess.run(
        [sys.executable, "-m", "edgetl", *command, "--help"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def command_names() -> list[str]:
    from edgetl.cli.app import COMMANDS

    return list(COMMANDS)


def reference() -> str:
    """docs/reference/cli.md as it should be."""
    parts = [
        "# Command reference\n\nGenerated from the program's own `--help` by `make format`; `make check` fails where it differs.\n"
    ]
    for command in ([], *([name] for name in command_names())):
        title = " ".join(["edgetl", *command])
        parts.append(f"## {title}\n\n```text\n{help_text(*command)}\n```\n")
    return "\n".join(parts)


def map_problems() -> list[str]:
    """Modules that the README's map leaves out, and lines of it that name nothing."""
    section = re.search(
        r"<!-- map -->(.*?)<!-- /map -->", README.read_text(encoding="utf-8"), re.DOTALL
    )
    if section is None:
        return ["README.md has no map of the tree between <!-- map --> and <!-- /map -->."]
    named = set(re.findall(r"^\s*([\w./-]+\.\w+)\s", section.group(1), re.MULTILINE))
    tracked = subprocess.run(
        ["git", "ls-files", "edgetl", "tools"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.split()
    modules = {
        path
        for path in tracked
        if not path.endswith(("__init__.py", "py.typed")) and (ROOT / path).exists()
    }
    return [f"README.md's map lacks {path}." for path in sorted(modules - named)] + [
        f"README.md's map names {path}, which is not there."
        for path in sorted(named)
        if not (ROOT / path).exists()
    ]


def broken_links() -> list[str]:
    """Relative links in the Markdown files that lead nowhere."""
    problems = []
    for page in [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        targets = re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        gone = [target for target in targets if not (page.parent / target).exists()]
        problems += [
            f"{page.relative_to(ROOT)} links to {target}, which is not there." for target in gone
        ]
    return problems


def main() -> None:
    check = "--check" in sys.argv[1:]
    wanted = reference()
    problems = map_problems() + broken_links()
    if check and (not REFERENCE.exists() or REFERENCE.read_text(encoding="utf-8") != wanted):
        problems.append(
            "docs/reference/cli.md differs from the program's --help; `make format` writes it anew."
        )
    elif not check:
        REFERENCE.write_text(wanted, encoding="utf-8")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
