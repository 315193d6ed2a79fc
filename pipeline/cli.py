"""The command `penstock`. Each command reads its settings, calls one function elsewhere and turns errors into lines.

Exit codes: 0 done; 1 failed (a worker gave up, something was lost); 2 a person must change something (a file, a flag,
a topic): its lines are on stderr; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterable
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated, Optional

import typer

from pipeline.errors import UserError, WorkerFailure
from pipeline.settings import EnsembleSettings, load_ensemble

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="penstock",
    help="BERT-family NLP as a streaming pipeline on Kafka: text in on a topic, predictions out on another.\n\n"
    "An ensemble file (YAML) names the topics, the tokenizer, the models and the engine. `penstock demo` shows all of "
    "it at work without any set-up.",
    epilog="Exit codes: 0 done, 1 failed, 2 something must be changed (it says what), 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

EnsembleFile = Annotated[Path, typer.Argument(metavar="ENSEMBLE.yaml", help="The ensemble file.", show_default=False)]
Bootstrap = Annotated[
    Optional[str],  # noqa: UP045 - typer reads the annotation
    typer.Option(
        "--bootstrap",
        metavar="HOST:PORT",
        envvar="PENSTOCK_BOOTSTRAP_SERVERS",
        help="Kafka's address, instead of the one in the file.",
        show_default=False,
    ),
]


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class StageName(StrEnum):
    TOKENIZE = "tokenize"
    ENCODE = "encode"
    POSTPROCESS = "postprocess"
    FUSED = "fused"


class TaskName(StrEnum):
    SENTENCE_EMBEDDING = "sentence-embedding"
    TEXT_CLASSIFICATION = "text-classification"


def main() -> None:
    """Run the command and exit with its code: no traceback for what a person can mend."""
    signal.signal(signal.SIGINT, _interrupted)
    try:
        app()
    except UserError as err:
        _say(err.lines)
        sys.exit(EXIT_USER_ERROR)
    except WorkerFailure as err:
        _say([str(err)])
        sys.exit(EXIT_FAILED)
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone; nothing of ours is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(EXIT_INTERRUPTED)


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(f"penstock: {line}", err=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"penstock {version('penstock')}")
        raise typer.Exit


@app.callback()
def _options(
    log_level: Annotated[
        LogLevel, typer.Option(envvar="PENSTOCK_LOG_LEVEL", help="What is logged on stderr.")
    ] = LogLevel.INFO,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    logging.basicConfig(
        level=log_level.value.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s %(message)s",
    )


@app.command()
def up(
    file: EnsembleFile,
    fused: Annotated[bool, typer.Option("--fused", help="All stages in one process, no topics between them.")] = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Run all stages, each in a process of its own, and start again what dies.

    Missing topics are made. Ctrl-C or SIGTERM drains: what was read is answered, then all stop. A second Ctrl-C stops
    at once.
    """
    from pipeline.up import up as run_up

    settings = _load(file, bootstrap)
    raise typer.Exit(run_up(settings, file, fused=fused))


@app.command()
def run(
    stage: Annotated[StageName, typer.Argument(metavar="STAGE", help="tokenize, encode, postprocess or fused.")],
    file: EnsembleFile,
    bootstrap: Bootstrap = None,
    http_port: Annotated[
        Optional[int],  # noqa: UP045 - typer reads the annotation
        typer.Option(
            min=0, max=65535, help="Port of /metrics and /v2/health, instead of the file's. 0: any.", show_default=False
        ),
    ] = None,
) -> None:
    """Run one stage's worker. Start more of them, on any machine, to scale: they share the partitions."""
    from pipeline.serve import serve

    serve(_load(file, bootstrap), stage.value, http_port=http_port)


@app.command()
def broker(
    topic: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads the annotation
        typer.Option(metavar="NAME:PARTITIONS", help="Make this topic at the start. May be repeated."),
    ] = None,
    host: Annotated[str, typer.Option(help="Loopback only: this broker asks nobody for a password.")] = "127.0.0.1",
) -> None:
    """Run the embedded broker: a Kafka for trying things out, in memory, on this machine only.

    Prints its bootstrap address, then serves until it is interrupted. It keeps 5 MiB a partition and forgets all at
    its end.
    """
    from pipeline.broker import parse_topic, serve

    serve(dict(parse_topic(each) for each in topic or []), host=host)


@app.command()
def topics(
    file: EnsembleFile,
    create: Annotated[bool, typer.Option("--create", help="Make the topics that are missing.")] = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Compare the ensemble's topics with the broker's. Exit code 1 where they differ."""
    from pipeline.up import show_topics

    raise typer.Exit(show_topics(_load(file, bootstrap), create=create))


@app.command()
def produce(
    file: EnsembleFile,
    source: Annotated[str, typer.Argument(metavar="[FILE|-]", help="Lines to send; - is standard input.")] = "-",
    key: Annotated[
        Optional[str],  # noqa: UP045 - typer reads the annotation
        typer.Option(help="Key of every record: one key, one partition, one order.", show_default=False),
    ] = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Send each line as a request. A line that is a JSON object is sent as it is, any other as {"text": LINE}."""
    from pipeline.lines_of_text import produce_lines

    produce_lines(_load(file, bootstrap), source, key=key)


@app.command()
def consume(
    file: EnsembleFile,
    count: Annotated[
        Optional[int],  # noqa: UP045 - typer reads the annotation
        typer.Option(min=1, help="Stop after so many results. Without it: until interrupted.", show_default=False),
    ] = None,
    dead_letters: Annotated[
        bool, typer.Option("--dead-letters", help="Read the dead letters instead of the results.")
    ] = False,
    from_end: Annotated[bool, typer.Option("--from-end", help="Only what comes from now on.")] = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Print results, a JSON line each, from the beginning of the topic. Joins no group and commits nothing."""
    from pipeline.lines_of_text import consume_lines

    consume_lines(_load(file, bootstrap), count=count, dead_letters=dead_letters, from_end=from_end)


@app.command()
def predict(
    file: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads the annotation
        typer.Argument(metavar="[ENSEMBLE.yaml]", help="The ensemble file.", show_default=False),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045 - typer reads the annotation
        typer.Option(metavar="DIR_OR_PACKAGE", help="One model instead of an ensemble file.", show_default=False),
    ] = None,
    task: Annotated[
        Optional[TaskName],  # noqa: UP045 - typer reads the annotation
        typer.Option(help="With --model: what to compute. Default: what the model is made for.", show_default=False),
    ] = None,
) -> None:
    """Answer lines of standard input without Kafka: a JSON line out for each line in.

    The same stages as over topics, in this process. A line that is a JSON object is read as a request, any other as
    text.
    """
    from pipeline.lines_of_text import predict_lines

    if (file is None) == (model is None):
        raise UserError("predict: give either an ensemble file or --model DIR_OR_PACKAGE")
    if task is not None and model is None:
        raise UserError("predict: --task goes with --model; an ensemble file names its models' tasks itself")
    predict_lines(file, model, task.value if task else None)


@app.command()
def check(file: EnsembleFile, bootstrap: Bootstrap = None) -> None:
    """Check an ensemble from file to prediction, a line for each check. Exit code 2 where one fails."""
    from pipeline.check import check as run_check

    raise typer.Exit(run_check(file, bootstrap))


@app.command()
def demo(
    count: Annotated[
        Optional[int],  # noqa: UP045 - typer reads the annotation
        typer.Option(min=1, help="How many texts. Default: all of the input once.", show_default=False),
    ] = None,
    texts: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads the annotation
        typer.Option(metavar="FILE", help="A text a line, .gz or not, instead of the demo's.", show_default=False),
    ] = None,
    ensemble: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads the annotation
        typer.Option(metavar="ENSEMBLE.yaml", help="Another ensemble.", show_default=False),
    ] = None,
    bootstrap: Bootstrap = None,
    rate: Annotated[
        Optional[float],  # noqa: UP045 - typer reads the annotation
        typer.Option(min=0.001, help="Texts a second. Default: as fast as they are answered.", show_default=False),
    ] = None,
    fused: Annotated[bool, typer.Option("--fused", help="All stages in one process.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Real text through the real thing: a broker, three stages, a producer and a consumer, all on this machine.

    Exit code 0 only if every request got exactly one result.
    """
    from pipeline.demo.run import run_demo

    code = run_demo(
        ensemble=ensemble, texts=texts, count=count, rate=rate, bootstrap=bootstrap, fused=fused, as_json=json
    )
    raise typer.Exit(code)


def _load(file: Path, bootstrap: str | None) -> EnsembleSettings:
    return load_ensemble(file, bootstrap=bootstrap, environ=os.environ)


if __name__ == "__main__":
    main()
