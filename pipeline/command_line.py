"""What all commands share: exit codes, one line for what a person can mend, Ctrl-C, closed pipes, logs."""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from pipeline.errors import UserError, WorkerFailure
from pipeline.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_USER_ERROR
from pipeline.outputs import prepare_outputs, require_standard_output

log = logging.getLogger("penstock")

# All of typer's usage errors; only this one, derived from them, has a public name.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]


class Command(TyperCommand):
    """A command whose usage is written as people know it: `run [OPTIONS] STAGE FILE`, without braces."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


class PrintingCommand(Command):
    """A command whose point is what it prints: it does nothing where standard output is closed."""

    def invoke(self, ctx: Any) -> Any:
        require_standard_output()
        return super().invoke(ctx)


class Commands(TyperGroup):
    """The commands together. Where the reader of a pipe (head, less) has gone, the work is done."""

    def invoke(self, ctx: Any) -> Any:
        try:
            try:
                answer = super().invoke(ctx)
            except typer.Exit as err:
                answer = err.exit_code
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            return None
        return answer


def run(app: typer.Typer) -> int:
    """Run what the command line says; the exit code. No traceback for what a person can mend."""
    signal.signal(signal.SIGINT, _interrupted)
    if os.getpid() == 1:
        # A container's first process gets no signal that it has no handler for.
        signal.signal(signal.SIGTERM, _terminated)
    prepare_outputs()
    try:
        code: int | None = app(prog_name="penstock", standalone_mode=False)
    except _USAGE_ERROR as err:
        _say("penstock", _usage_line(err))
        return EXIT_USER_ERROR
    except UserError as err:
        _say("penstock", *err.lines)
        return EXIT_USER_ERROR
    except WorkerFailure as err:
        _say("penstock", str(err))
        return EXIT_FAILED
    except MemoryError as err:
        log.debug("", exc_info=True)
        why = f" ({err})" if str(err) else ""
        _say("penstock", f"out of memory{why}: free some, or choose a smaller model or fewer engine instances")
        return EXIT_FAILED
    except OSError as err:  # a full disk, no memory, too many files
        log.debug("", exc_info=True)
        _say("penstock", f"{err.filename}: {err.strerror}" if err.filename else str(err))
        return EXIT_FAILED
    return code or 0


def configure_logging(level: str) -> None:
    """Logs to stderr, from `level` on."""
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s %(message)s"
    )


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    # Raised where an engine is let go of, a second one would leave its threads running, and C++ ends in abort() then.
    signal.signal(signal.SIGINT, _interrupted_again)
    sys.exit(EXIT_INTERRUPTED)


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(EXIT_TERMINATED)


def _interrupted_again(_signal: int, _frame: FrameType | None) -> None:
    os._exit(EXIT_INTERRUPTED)


def _usage_line(err: Any) -> str:
    """What is wrong with the command line, and where the command is described."""
    command = err.ctx.command_path if err.ctx else "penstock"
    # typer leaves in what pydantic begins the messages of other people's checks with.
    message = " ".join(err.format_message().split()).replace("Value error, ", "").removesuffix(".")
    return f"{message}; see: {command} --help"


def _say(name: str, *lines: str) -> None:
    for line in lines:
        typer.echo(f"{name}: {line}", err=True)
