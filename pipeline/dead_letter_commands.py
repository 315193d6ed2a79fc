"""The commands `penstock dead-letters ...`: what they take, and which function each calls."""

from __future__ import annotations

import os
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.command_line import Command, Commands, PrintingCommand
from pipeline.command_options import Bootstrap, EnsembleFile
from pipeline.errors import UserError
from schemas.errors import Reason

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.dead_letter_box import Wanted
    from pipeline.settings import EnsembleSettings


class FailedStage(StrEnum):
    TOKENIZE = "tokenize"
    ENCODE = "encode"
    POSTPROCESS = "postprocess"
    TRANSCRIPTS = "transcripts"


Stages = Annotated[
    list[FailedStage] | None,
    typer.Option("--stage", metavar="STAGE", help="Only of this stage; may be repeated.", show_default=False),
]
Reasons = Annotated[
    list[Reason] | None,
    typer.Option("--reason", metavar="REASON", help="Only of this reason; may be repeated.", show_default=False),
]
Since = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Only those written at or after it: ISO 8601, in the local zone where it names none, or -90s, -15m, -2h, "
        "-7d.",
        show_default=False,
    ),
]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Only those written before it.", show_default=False)]
Newest = Annotated[
    int | None, typer.Option("--count", min=1, metavar="N", help="Only the newest so many.", show_default=False)
]
Most = Annotated[
    int | None,
    typer.Option("--count", min=1, metavar="N", help="Replay at most so many, and stop.", show_default=False),
]
Place = Annotated[str, typer.Argument(metavar="PARTITION/OFFSET", help="Of the dead letter, as list prints it.")]
Places = Annotated[
    list[str] | None,
    typer.Argument(metavar="PARTITION/OFFSET", help="These alone; without any, all.", show_default=False),
]
JsonLines = Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")]
OneJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Value = Annotated[bool, typer.Option("--value", help="Print the original value alone, byte by byte.")]
MaxAttempts = Annotated[
    int, typer.Option(min=2, metavar="N", help="Skip what has been sent so many times, the first time included.")
]
FromBeginning = Annotated[
    bool, typer.Option("--from-beginning", help="Also those that an earlier replay has sent or passed.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done with each, and do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do delete them.")]

app = typer.Typer(
    name="dead-letters",
    cls=Commands,
    help="See, send again or delete what could not be answered.",
    rich_markup_mode=None,
)
command = partial(app.command, cls=Command)


@command("list", cls=PrintingCommand)
def list_letters(
    file: EnsembleFile,
    stage: Stages = None,
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    count: Newest = None,
    json: JsonLines = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Print the dead letters, a line each.

    A table on a terminal; elsewhere columns with tabs between them. They come partition by partition, the newest so
    many (--count) by time.
    """
    from pipeline.dead_letter_views import list_dead_letters

    list_dead_letters(_load(file, bootstrap), _wanted(stage, reason, since, until), count=count, as_json=json)


@command(cls=PrintingCommand)
def show(
    file: EnsembleFile, place: Place, json: OneJson = False, value: Value = False, bootstrap: Bootstrap = None
) -> None:
    """Print one dead letter: why it is here, its key, headers and value."""
    from pipeline.dead_letter_views import show_dead_letter

    if json and value:
        raise UserError("show: give either --json or --value")
    show_dead_letter(_load(file, bootstrap), place, as_json=json, value=value)


@command()
def replay(
    file: EnsembleFile,
    places: Places = None,
    stage: Stages = None,
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    count: Most = None,
    max_attempts: MaxAttempts = 3,
    from_beginning: FromBeginning = False,
    dry_run: DryRun = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Send dead letters again, as the records that they were.

    Each goes to its original partition with its key, value and headers, and a header penstock.attempt that counts.
    What was replayed before is not sent again, unless it is named or --from-beginning is given. Dead letters without a
    value, and those of the topics between the stages, are skipped. Exit code 1 where one that was named is.
    """
    from pipeline.dead_letter_replay import replay_dead_letters

    wanted = _wanted(stage, reason, since, until)
    if places and (not wanted.all or count is not None or from_beginning):
        raise UserError("replay: give either PARTITION/OFFSET or filters, --count, --from-beginning")
    code = replay_dead_letters(
        _load(file, bootstrap),
        wanted,
        places or [],
        count=count,
        max_attempts=max_attempts,
        from_beginning=from_beginning,
        dry_run=dry_run,
    )
    raise typer.Exit(code)


@command()
def purge(file: EnsembleFile, yes: Yes = False, bootstrap: Bootstrap = None) -> None:
    """Delete all dead letters that are there now.

    Kafka deletes their records; what arrives meanwhile stays. The embedded broker can't.
    """
    from pipeline.dead_letter_purge import purge_dead_letters

    purge_dead_letters(_load(file, bootstrap), yes=yes)


def _wanted(
    stages: list[FailedStage] | None, reasons: list[Reason] | None, since: str | None, until: str | None
) -> Wanted:
    from pipeline.dead_letter_box import Wanted
    from pipeline.times import parse_time

    now = datetime.now().astimezone()
    return Wanted(
        stages=tuple(stages or ()),
        reasons=tuple(reasons or ()),
        since_ms=parse_time("--since", since, now=now) if since is not None else None,
        until_ms=parse_time("--until", until, now=now) if until is not None else None,
    )


def _load(file: Path, bootstrap: str | None) -> EnsembleSettings:
    from pipeline.settings import load_ensemble

    return load_ensemble(file, bootstrap=bootstrap, environ=os.environ)
