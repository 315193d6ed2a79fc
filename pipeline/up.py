"""`penstock up` and `penstock topics`: an ensemble's topics, and its stages as supervised processes."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from confluent_kafka.admin import AdminClient

from pipeline import broker
from pipeline.exit_codes import EXIT_FAILED
from pipeline.instance import host_name
from pipeline.model_tasks import require_speech
from pipeline.reach import reach_broker, require_transactions
from pipeline.settings import STAGES, EnsembleSettings
from pipeline.share_group import require_share_group
from pipeline.supervisor import Supervisor
from pipeline.topics import (
    MAKE_MISSING,
    WantedTopic,
    all_topics,
    broker_metadata,
    compare_topics,
    create_topics,
)

log = logging.getLogger("penstock.up")

# What a worker does after its drain: it says good-bye to its group (2 s where nobody answers), ends its threads, and
# frees its engine. With the default of 20 s it is the 30 s that Kubernetes grants.
_EXIT_S = 10.0


def make_topics(settings: EnsembleSettings, *, fused: bool = False) -> list[str]:
    """Make what is missing of an ensemble's topics; the names of those made. Raises UserError."""
    return make_missing(settings, reach_broker(settings.kafka), all_topics(settings, fused=fused))


def show_topics(settings: EnsembleSettings, *, create: bool, fused: bool = False) -> int:
    """Print a line a topic; the exit code: 0 where all are as wanted."""
    wanted = all_topics(settings, fused=settings.runs_fused(fused))
    admin = reach_broker(settings.kafka)
    made = make_missing(settings, admin, wanted) if create else []
    differences = compare_topics(admin, wanted)
    for topic in wanted:
        messages = [each.message for each in differences if each.topic == topic.name]
        state = "made" if topic.name in made else "; ".join(messages) or "ok"
        print(f"{topic.name}  {topic.partitions} partitions  {state}")
    if any(each.missing for each in differences):
        print(f"penstock: {MAKE_MISSING}", file=sys.stderr)
    return EXIT_FAILED if differences else 0


def make_missing(settings: EnsembleSettings, admin: AdminClient, wanted: Sequence[WantedTopic]) -> list[str]:
    """Make what is missing of these topics, in either kind of broker; the names of those made. Raises UserError."""
    missing = [each.topic for each in compare_topics(admin, wanted) if each.missing]
    if not missing:
        return []
    if broker.is_embedded(broker_metadata(admin).topics):
        counts = {topic.name: topic.partitions for topic in wanted if topic.name in missing}
        return broker.create_topics(settings.kafka.bootstrap_servers, counts)
    return create_topics(admin, wanted)


def drain_budget_s(settings: EnsembleSettings) -> float:
    """How long workers that were told to stop may take, before they are killed."""
    return settings.drain_timeout_ms / 1e3 + _EXIT_S


def stage_commands(
    file: Path,
    bootstrap: str,
    *,
    fused: bool,
    standby: bool = False,
    transcripts: bool = False,
    http_ports: Mapping[str, int] | None = None,
    module: Sequence[str] = ("pipeline.cli",),
) -> dict[str, Sequence[str]]:
    """The command line of each stage's worker, and of `penstock transcripts`, for a supervisor.

    With `standby` each worker is there twice. `http_ports` are by process, in place of the file's; `module` is what
    Python runs, with its first arguments.
    """
    # -P: the current directory may hold a `pipeline` of its own.
    penstock = [sys.executable, "-P", "-m", *module]
    commands: dict[str, Sequence[str]] = {}
    for role in ["fused"] if fused else STAGES:
        port = [] if http_ports is None else ["--http-port", str(http_ports[role])]
        command = [*penstock, "run", role, str(file), "--bootstrap", bootstrap, *port]
        if standby:
            # Of two alike the first that is loaded works, and the other waits for its end.
            command += ["--standby", "--instance", f"up-{host_name()}"]
            commands[f"{role} a"] = commands[f"{role} b"] = command
        else:
            commands[role] = command
    if transcripts:
        port = [] if http_ports is None else ["--http-port", str(http_ports["transcripts"])]
        commands["transcripts"] = [*penstock, "transcripts", str(file), "--bootstrap", bootstrap, *port]
    return commands


def up(settings: EnsembleSettings, file: Path, *, fused: bool, standby: bool = False, log_level: str = "info") -> int:
    """Run the stages until a signal; the exit code. A second SIGINT kills what still drains."""
    fused = settings.runs_fused(fused)
    if settings.speech is not None:
        require_speech(settings)
    changed = {*settings.log_lines(changed=True)}
    for line in settings.log_lines():
        log.log(logging.INFO if line in changed else logging.DEBUG, "%s", line)
    admin = reach_broker(settings.kafka)
    require_transactions(settings, admin)
    require_share_group(settings, admin, fused=fused)
    for topic in make_topics(settings, fused=fused):
        log.info("made topic %s", topic)
    module = ["pipeline.cli", "--log-level", log_level]
    commands = stage_commands(
        file,
        settings.kafka.bootstrap_servers,
        fused=fused,
        standby=standby,
        transcripts=settings.speech is not None,
        module=module,
    )
    supervisor = Supervisor(commands)
    stopped = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped and number == signal.SIGINT:
            supervisor.kill()
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return supervisor.run(lambda: stopped, drain_budget_s=drain_budget_s(settings))
