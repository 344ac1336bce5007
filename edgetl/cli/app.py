"""The `edgetl` program: its commands, and the one place where errors become messages and exit statuses."""

from __future__ import annotations

import errno
import sys
import traceback
from importlib import import_module

import typer

from edgetl.cli.console import err, let_readers_leave
from edgetl.cli.interruption import install_handlers, interrupted_status
from edgetl.core.errors import EdgetlError
from edgetl.core.registry import missing_package

EXIT_USER, EXIT_BUG = 1, 3
COMMANDS = (
    "check",
    "finetune",
    "compare",
    "models",
    "presets",
    "export",
    "bench",
    "report",
    "verify",
    "predict",
    "doctor",
    "demo",
)
"""Each is a function in the module of its name."""
_WITH_PANELS = ("finetune",)


def _version(wanted: bool) -> None:
    if wanted:
        from edgetl import __version__

        typer.echo(f"edgetl {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


def program(asked: str = "") -> typer.Typer:
    """The program with the one command that is asked for, or with all of them: a command does not wait for the others to load."""
    app = typer.Typer(
        name="edgetl",
        help="From a folder of images to a classifier on an edge device, with proof.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        # The renderer of rich help takes as long to load as everything else: only where options are many enough for panels.
        rich_markup_mode="rich" if asked in _WITH_PANELS else None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name in [asked] if asked in COMMANDS else COMMANDS:
        app.command()(getattr(import_module(f"edgetl.cli.{name}"), name))
    return app


def main() -> None:
    """Run the program.

    Exit status: 0 on success, 1 on a mistake the user can mend, 2 on wrong usage, 3 on a bug; 130, 143 or 129 after Ctrl-C, SIGTERM or
    SIGHUP.
    """
    let_readers_leave()
    install_handlers()
    try:
        program("".join(sys.argv[1:2]))(prog_name="edgetl")
    except KeyboardInterrupt as interrupt:
        err.print(str(interrupt) or "Interrupted.", style="yellow", markup=False)
        sys.exit(interrupted_status())
    except EdgetlError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        known = missing_package(error)
        if isinstance(known, EdgetlError):
            _fail(known)
        _bug()
    except OSError as error:
        if sentence := _without_room(error):
            _fail(EdgetlError(sentence))
        _bug()
    except Exception:
        _bug()


def _without_room(error: OSError) -> str | None:
    """Say what to do where a file could not be written for want of room; None for other errors."""
    if error.errno == errno.EFBIG:
        return f"A file became larger than this system allows ({_place(error)}). Raise the limit (`ulimit -f`)."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"There is no room left on the disk ({_place(error)}). Make room, or point TMPDIR and EDGETL_CACHE to a disk that has some."
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return "No folder for temporary files can be written: the disk is full, or TMPDIR is not there. Point TMPDIR to a folder with room."
    return None


def _place(error: OSError) -> str:
    return str(error.filename) if error.filename else error.strerror or "no name"


def _fail(error: EdgetlError) -> None:
    err.print("Error:", style="bold red", end=" ")
    err.print(str(error), markup=False, soft_wrap=True)
    sys.exit(EXIT_USER)


def _bug() -> None:
    traceback.print_exc()
    err.print(
        "\nThis is a bug in edgetl, not in what you did. Please report it with the lines above.",
        style="bold red",
    )
    sys.exit(EXIT_BUG)
