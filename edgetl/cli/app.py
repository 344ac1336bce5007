"""The `edgetl` program: its commands, and the one place where errors become messages and exit statuses."""

from __future__ import annotations

import errno
import sys
import traceback
from importlib import import_module

import typer

from edgetl.cli.console import err, tolerate_closed_pipes
from edgetl.cli.interruption import install_signal_handlers, interrupted_exit_status
from edgetl.core.errors import EdgetlError
from edgetl.core.registry import convert_import_error

EXIT_USER_ERROR, EXIT_BUG = 1, 3
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
_COMMANDS_WITH_HELP_PANELS = ("finetune",)


def _print_version(wanted: bool) -> None:
    if wanted:
        from edgetl import __version__

        typer.echo(f"edgetl {__version__}")
        raise typer.Exit


def _root_callback(
    version: bool = typer.Option(
        False,
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Print the version and exit.",
    ),
) -> None:
    pass


def create_app(asked: str = "") -> typer.Typer:
    """The program with the one command that is asked for, or with all of them: a command does not wait for the others to load."""
    app = typer.Typer(
        name="edgetl",
        help="From a folder of images to a classifier on an edge device, with proof.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        # The renderer of rich help takes as long to load as everything else: only where options are many enough for panels.
        rich_markup_mode="rich" if asked in _COMMANDS_WITH_HELP_PANELS else None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root_callback)
    for name in [asked] if asked in COMMANDS else COMMANDS:
        app.command()(getattr(import_module(f"edgetl.cli.{name}"), name))
    return app


def main() -> None:
    """Run the program.

    Exit status: 0 on success, 1 on a mistake the user can mend, 2 on wrong usage, 3 on a bug; 130, 143 or 129 after Ctrl-C, SIGTERM or
    SIGHUP.
    """
    tolerate_closed_pipes()
    install_signal_handlers()
    try:
        create_app("".join(sys.argv[1:2]))(prog_name="edgetl")
    except KeyboardInterrupt as interrupt:
        err.print(str(interrupt) or "Interrupted.", style="yellow", markup=False)
        sys.exit(interrupted_exit_status())
    except EdgetlError as error:
        _exit_with_error(error)
    except ModuleNotFoundError as error:
        known = convert_import_error(error)
        if isinstance(known, EdgetlError):
            _exit_with_error(known)
        _exit_with_traceback()
    except OSError as error:
        if sentence := _storage_error_message(error):
            _exit_with_error(EdgetlError(sentence))
        _exit_with_traceback()
    except Exception:
        _exit_with_traceback()


def _storage_error_message(error: OSError) -> str | None:
    """Say what to do where a file could not be written for want of room; None for other errors."""
    if error.errno == errno.EFBIG:
        return f"A file became larger than this system allows ({_error_path(error)}). Raise the limit (`ulimit -f`)."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"There is no room left on the disk ({_error_path(error)}). Make room, or point TMPDIR and EDGETL_CACHE to a disk that has some."
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return "No folder for temporary files can be written: the disk is full, or TMPDIR is not there. Point TMPDIR to a folder with room."
    return None


def _error_path(error: OSError) -> str:
    return str(error.filename) if error.filename else error.strerror or "no name"


def _exit_with_error(error: EdgetlError) -> None:
    err.print("Error:", style="bold red", end=" ")
    err.print(str(error), markup=False, soft_wrap=True)
    sys.exit(EXIT_USER_ERROR)


def _exit_with_traceback() -> None:
    traceback.print_exc()
    err.print(
        "\nThis is a bug in edgetl, not in what you did. Please report it with the lines above.",
        style="bold red",
    )
    sys.exit(EXIT_BUG)
