"""What the commands of `penstock` take: arguments and options with their help."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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
    TEXT_RANKING = "text-ranking"
    ZERO_SHOT_CLASSIFICATION = "zero-shot-classification"
    FEATURE_EXTRACTION = "feature-extraction"
    TOKEN_CLASSIFICATION = "token-classification"
    FILL_MASK = "fill-mask"
    QUESTION_ANSWERING = "question-answering"


class RecognizerName(StrEnum):
    POCKETSPHINX = "pocketsphinx"
    VOSK = "vosk"
    FASTER_WHISPER = "faster-whisper"


# Of several commands.
EnsembleFile = Annotated[Path, typer.Argument(metavar="ENSEMBLE.yaml", help="The ensemble file.", show_default=False)]
Bootstrap = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        envvar="PENSTOCK_BOOTSTRAP_SERVERS",
        help="Kafka's address, instead of the one in the file.",
        show_default=False,
    ),
]
Fused = Annotated[
    bool,
    typer.Option("--fused", help="All stages in one process, no topics between them; so with objective: latency."),
]

Stage = Annotated[StageName, typer.Argument(metavar="STAGE", help="fused is all three in one process.")]
HttpPort = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        metavar="PORT",
        help="Of /metrics and /v2/health, instead of the file's; 0: any.",
        show_default=False,
    ),
]
InstanceName = Annotated[
    str | None,
    typer.Option(
        "--instance",
        envvar="PENSTOCK_INSTANCE",
        metavar="NAME",
        help="This worker's name in its group, the same after each restart, so that it has its partitions at once "
        "(Kafka's static membership); empty: none. Default: the machine's name and the first free number.",
        show_default=False,
    ),
]
Standby = Annotated[
    bool,
    typer.Option(
        "--standby", help="Load, then wait until the worker of this name on this machine is gone: a takeover."
    ),
]
UpStandby = Annotated[
    bool,
    typer.Option(
        "--standby", help="A second process of each stage, loaded and waiting: it takes over from a dead one."
    ),
]
BrokerTopics = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME:PARTITIONS", help="Make this topic at the start; may be repeated."),
]
BrokerHost = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Loopback only: this broker asks nobody for a password.")
]
Apache = Annotated[
    bool,
    typer.Option(
        "--apache", help="Apache Kafka 4.3.1 instead: needs Java 17, and once Maven, which fetches it (44 MB)."
    ),
]
BrokerData = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="With --apache: keep all in this folder. Default: a temporary one, removed at the end.",
        show_default=False,
    ),
]
BrokerPort = Annotated[
    int | None,
    typer.Option(
        "--port",
        min=0,
        max=65535,
        metavar="PORT",
        help="With --apache; 0: any free one. Default: 9092.",
        show_default=False,
    ),
]
Create = Annotated[bool, typer.Option("--create", help="Make the topics that are missing.")]
LinesFile = Annotated[
    str, typer.Argument(metavar="FILE", help="Lines to send; - is standard input.", show_default=False)
]
Key = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Of every record: one key, one partition, one order.", show_default=False),
]
Lane = Annotated[str | None, typer.Option("--lane", help="The lane to send in; the first one by default.")]
Count = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Stop after so many; without it when interrupted.", show_default=False),
]
DeadLetters = Annotated[bool, typer.Option("--dead-letters", help="Read the dead letters instead of the results.")]
FromEnd = Annotated[bool, typer.Option("--from-end", help="Only what comes from now on.")]
OptionalEnsembleFile = Annotated[
    Path | None,
    typer.Argument(metavar="ENSEMBLE.yaml", help="The ensemble file.", show_default=False),
]
Model = Annotated[
    str | None,
    typer.Option(metavar="DIR_OR_PACKAGE", help="One model instead of an ensemble file.", show_default=False),
]
Task = Annotated[
    TaskName | None,
    typer.Option(
        metavar="TASK",
        help="With --model: sentence-embedding, text-classification, text-ranking, zero-shot-classification, "
        "feature-extraction, token-classification, fill-mask or question-answering. Default: what the model is made "
        "for.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON in place of YAML.")]
ReplayFrom = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="TIME",
        help="ISO 8601, in the local zone where it names none, or -90s, -15m, -2h, -7d, or beginning.",
        show_default=False,
    ),
]
ReplayTo = Annotated[
    str | None,
    typer.Option(
        "--to", metavar="TIME", help="Only what was sent before it. Default: all that is there.", show_default=False
    ),
]
FromOffsets = Annotated[
    str | None,
    typer.Option(metavar="P:OFFSET,...", help="Instead of --from: an offset for each partition.", show_default=False),
]
Into = Annotated[
    str | None,
    typer.Option(
        metavar="TOPIC", help="Where results go, none of the live topics. Default: NAME.replay.", show_default=False
    ),
]
CreateInto = Annotated[bool, typer.Option("--create", help="Make TOPIC and TOPIC.dead-letters where they are missing.")]
DemoCount = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=10**9,
        metavar="N",
        help="How many texts. Default: 2,000, or all of --texts once.",
        show_default=False,
    ),
]
DemoTexts = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A text a line, .gz or not, instead of the demo's.", show_default=False),
]
DemoEnsemble = Annotated[
    Path | None,
    typer.Option(metavar="ENSEMBLE.yaml", help="Another ensemble.", show_default=False),
]
DemoRate = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        max=1e6,
        metavar="N",
        help="Texts a second. Default: as fast as they are answered.",
        show_default=False,
    ),
]
DemoAsr = Annotated[bool, typer.Option("--asr", help="Speech in place of texts.")]
DemoStreams = Annotated[
    int | None,
    typer.Option(min=1, max=10_000, metavar="N", help="With --asr: people who speak. Default: 5.", show_default=False),
]
DemoSpeed = Annotated[
    float | None,
    typer.Option(
        min=0.1, max=100, metavar="N", help="With --asr: how fast they speak. Default: 1.", show_default=False
    ),
]
DemoSeconds = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=86_400,
        metavar="N",
        help="With --asr: of speech, after which nobody begins another utterance. What is being said is finished, so "
        "it takes longer. Default: 15.",
        show_default=False,
    ),
]
ListenFile = Annotated[
    str | None,
    typer.Argument(metavar="FILE.wav", help="A recording; - is the microphone.", show_default=False),
]
UseMicrophone = Annotated[bool, typer.Option("--microphone", help="Hear the microphone; needs sounddevice.")]
UseRecognizer = Annotated[
    RecognizerName | None,
    typer.Option(
        "--recognizer",
        metavar="NAME",
        help="pocketsphinx, vosk or faster-whisper. Default: the first that is installed.",
        show_default=False,
    ),
]
RecognizerModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="DIR_OR_NAME",
        help="The recognizer's: a folder for vosk, a name such as tiny.en, or a folder, for faster-whisper; "
        "pocketsphinx brings its own.",
        show_default=False,
    ),
]
ListenBootstrap = Annotated[
    str | None,
    typer.Option(
        "--bootstrap",
        metavar="HOST:PORT",
        help="The Kafka of a system that runs already (--ensemble is its file): speak there, and start nothing. "
        "PENSTOCK_BOOTSTRAP_SERVERS alone does not ask for that.",
        show_default=False,
    ),
]
ListenSpeed = Annotated[
    float | None,
    typer.Option(
        "--speed",
        min=0.1,
        max=100,
        metavar="N",
        help="How many times as fast as it was spoken. Default: 1.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]

# Of `build`.
ListPlans = Annotated[bool, typer.Option("--list", help="Show the plans that are there.")]
PrunePlans = Annotated[bool, typer.Option("--prune", help="Remove plans that no worker has loaded for 30 days.")]
PlanCacheFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Of --list and --prune, instead of the user's; ENSEMBLE.yaml names its own in engine.plan_cache.",
        show_default=False,
    ),
]
