"""Entry point of the `edgetl` program: register commands, turn errors into exit codes."""

from __future__ import annotations

import errno
import sys
import traceback
from importlib import import_module

import typer

from edgetl.cli.command import Command
from edgetl.cli.console import err, tolerate_closed_pipes
from edgetl.cli.exit_codes import ExitCode
from edgetl.cli.interruption import install_signal_handlers, interrupted_exit_status
from edgetl.cli.moved_options import describe_moved_option
from edgetl.core.errors import EdgetlError, fill_in_fields
from edgetl.core.registry import convert_import_error

COMMANDS = (
    "check",
    "finetune",
    "compare",
    "models",
    "presets",
    "export",
    "evaluate",
    "bench",
    "candidates",
    "loadgen",
    "report",
    "verify",
    "predict",
    "doctor",
    "demo",
)
"""Names of the commands. Each is a function in the module of the same name."""


def _print_version(requested: bool) -> None:
    if requested:
        from edgetl import __version__

        typer.echo(f"edgetl {__version__}")
        raise typer.Exit


def _root_callback(
    version: bool = typer.Option(
        False,
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Show the version and exit.",
    ),
) -> None:
    pass


def create_app(command: str = "") -> typer.Typer:
    """Create the application with all commands, or only with `command` if that is one of them.

    Loading a single command keeps its startup independent of the other modules.
    """
    app = typer.Typer(
        name="edgetl",
        help="Fine-tune an image classifier, export it to verified ONNX, and benchmark it.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        # Importing rich's help renderer takes as long as all other imports together.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_root_callback)
    for name in [command] if command in COMMANDS else COMMANDS:
        app.command(cls=Command)(getattr(import_module(f"edgetl.cli.{name}"), name))
    return app


def main() -> None:
    """Run the program and exit with an `ExitCode`."""
    tolerate_closed_pipes()
    install_signal_handlers()
    if message := describe_moved_option(sys.argv[1:]):
        _exit_with_error(EdgetlError(message), ExitCode.USAGE)
    try:
        create_app("".join(sys.argv[1:2]))(prog_name="edgetl")
    except KeyboardInterrupt as interrupt:
        err.print(str(interrupt) or "Interrupted.", style="yellow", markup=False)
        sys.exit(interrupted_exit_status())
    except EdgetlError as error:
        _exit_with_error(error)
    except ModuleNotFoundError as error:
        converted = convert_import_error(error)
        if isinstance(converted, EdgetlError):
            _exit_with_error(converted)
        _exit_with_traceback()
    except OSError as error:
        if message := _storage_error_message(error):
            _exit_with_error(EdgetlError(message))
        _exit_with_traceback()
    except Exception:
        _exit_with_traceback()


def _storage_error_message(error: OSError) -> str | None:
    """Return a message with the next step if storage ran out; None for other errors."""
    if error.errno == errno.EFBIG:
        return f"File size limit exceeded ({_error_path(error)}). Raise the limit with `ulimit -f`."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"No space left on the disk ({_error_path(error)}). Free some space, or set TMPDIR "
            "and EDGETL_CACHE to folders on another disk."
        )
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return (
            "Cannot write temporary files: the disk is full, or TMPDIR does not exist. Set TMPDIR "
            "to a folder with free space."
        )
    return None


def _error_path(error: OSError) -> str:
    return str(error.filename) if error.filename else error.strerror or "no name"


def format_error(error: EdgetlError) -> str:
    """Return the message of an error, with options in place of fields."""
    if error.config is None:
        return str(error)
    from edgetl.core.config.options import get_flags

    return fill_in_fields(error.template, get_flags(error.config))


def _exit_with_error(error: EdgetlError, code: ExitCode = ExitCode.USER_ERROR) -> None:
    err.print("Error:", style="bold red", end=" ")
    err.print(format_error(error), markup=False, soft_wrap=True)
    sys.exit(code)


def _exit_with_traceback() -> None:
    traceback.print_exc()
    err.print(
        "\nThis is a bug in edgetl. Please report it with the traceback above.",
        style="bold red",
    )
    sys.exit(ExitCode.BUG)
