"""A Kafka in memory, for simulation: logs with transactions, groups with generations, faults from a seed.

It keeps what the worker's promises rest on, as Apache Kafka does: an offset for every record and every mark that ends
a transaction; readers of committed records stop at the first open transaction; offsets that join a transaction count
when it commits; a commit of a member that the group has replaced is refused; a producer of a name ends what the one
before it left open, and fences it. It knows no replicas and no bytes.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException

Headers = list[tuple[str, bytes | None]]
Place = tuple[str, int]

# As the settings: a transaction that is open for longer is aborted by the broker.
TRANSACTION_TIMEOUT_MS = 10_000.0


class Crash(BaseException):
    """Raised in the midst of a call: the process that called is gone."""


@dataclass(slots=True)
class Entry:
    """A record, or the mark that ends a transaction (`value` and `key` are None, `mark` is set)."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    state: str  # open, committed, aborted
    mark: bool = False


@dataclass(slots=True)
class Transaction:
    """What one transactional id has open."""

    epoch: int = 0
    open: bool = False
    started_ms: float = 0.0
    entries: list[tuple[Place, Entry]] = field(default_factory=list)
    offsets: dict[tuple[str, Place], int] = field(default_factory=dict)


@dataclass(slots=True)
class Member:
    """`generation` is the one that it has joined; `owns` what it has been given and not given back."""

    instance: str | None
    generation: int
    owns: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Group:
    topic: str
    generation: int = 0
    members: dict[str, Member] = field(default_factory=dict)
    fenced: set[str] = field(default_factory=set)
    offsets: dict[int, int] = field(default_factory=dict)


class Faults:
    """Decides from a seed where something goes wrong. `rate` is the share of calls that do; 0 for none."""

    def __init__(self, seed: int, *, rate: float) -> None:
        self.random = random.Random(seed)
        self.rate = rate
        self.may_crash = False

    def strikes(self, times: float = 1.0) -> bool:
        return self.random.random() < self.rate * times

    def crash(self) -> None:
        """Maybe the process ends here."""
        if self.may_crash and self.strikes(0.3):
            raise Crash


class Broker:
    """The one node. `on_commit(group, topic, partition, offset)` is called for each offset that is committed."""

    def __init__(self, faults: Faults, on_commit: Callable[[str, str, int, int], None]) -> None:
        self.faults = faults
        self.now_ms = 0.0
        self.groups: dict[str, Group] = {}
        self.transactions: defaultdict[str, Transaction] = defaultdict(Transaction)
        self._on_commit = on_commit
        self._logs: dict[Place, list[Entry]] = {}
        self._partitions: dict[str, int] = {}
        self._members_made = 0

    def create_topic(self, topic: str, partitions: int) -> None:
        self._partitions[topic] = partitions
        for partition in range(partitions):
            self._logs[topic, partition] = []

    def partitions(self, topic: str) -> range:
        return range(self._partitions[topic])

    def log(self, place: Place) -> list[Entry]:
        return self._logs[place]

    def advance(self, milliseconds: float) -> None:
        """Time passes; transactions that are open for too long are aborted, and their producers fenced."""
        self.now_ms += milliseconds
        for transaction in self.transactions.values():
            if transaction.open and self.now_ms - transaction.started_ms > TRANSACTION_TIMEOUT_MS:
                transaction.epoch += 1
                self.end(transaction, "aborted")

    # Records.

    def append(self, place: Place, key: bytes | None, value: bytes | None, headers: Headers, state: str) -> Entry:
        entry = Entry(key, value, list(headers), state)
        self._logs[place].append(entry)
        return entry

    def last_stable(self, place: Place) -> int:
        log = self._logs[place]
        return next((offset for offset, entry in enumerate(log) if entry.state == "open"), len(log))

    def committed_records(self, topic: str) -> list[tuple[int, int, Entry]]:
        """Partition, offset, record: what a reader of committed records sees, once nothing before it is open."""
        return [
            (partition, offset, entry)
            for partition in self.partitions(topic)
            for offset, entry in enumerate(self._logs[topic, partition])
            if entry.state == "committed" and not entry.mark
        ]

    # Transactions.

    def begin_anew(self, transactional_id: str) -> int:
        """A producer starts: what its name has open is aborted, and the one before it fenced. Its epoch."""
        transaction = self.transactions[transactional_id]
        if transaction.open:
            self.end(transaction, "aborted")
        transaction.epoch += 1
        return transaction.epoch

    def end(self, transaction: Transaction, state: str) -> None:
        for entry in (entry for _, entry in transaction.entries):
            entry.state = state
        for place in {place for place, _ in transaction.entries}:
            self._logs[place].append(Entry(None, None, [], "committed", mark=True))
        offsets = transaction.offsets if state == "committed" else {}
        transaction.entries, transaction.offsets, transaction.open = [], {}, False
        for (group, (topic, partition)), offset in offsets.items():
            self.commit(group, topic, partition, offset)

    # Groups.

    def commit(self, group: str, topic: str, partition: int, offset: int) -> None:
        self.groups[group].offsets[partition] = offset
        self._on_commit(group, topic, partition, offset)

    def stable_offset(self, group: str, topic: str, partition: int) -> int | None:
        """Waits (time passes) while a transaction would change it."""
        while any((group, (topic, partition)) in each.offsets for each in self.transactions.values()):
            self.advance(1_000.0)
        return self.groups[group].offsets.get(partition)

    def join(self, group_id: str, topic: str, instance: str | None) -> str:
        """A member's id. One of the same instance takes the place of the one before it, which is fenced."""
        group = self.groups.setdefault(group_id, Group(topic))
        self._members_made += 1
        member_id = f"member-{self._members_made}"
        before = next((id for id, each in group.members.items() if instance and each.instance == instance), None)
        if before is not None:
            group.fenced.add(before)
            del group.members[before]
        group.generation += 1
        group.members[member_id] = Member(instance, group.generation)
        return member_id

    def leave(self, group_id: str, member_id: str) -> None:
        """Also what the end of a session does."""
        group = self.groups[group_id]
        if group.members.pop(member_id, None) is not None:
            group.generation += 1

    def wanted(self, group_id: str, member_id: str) -> set[int]:
        """The partitions that are this member's when all have taken part."""
        group = self.groups[group_id]
        place = list(group.members).index(member_id)
        return {each for each in self.partitions(group.topic) if each % len(group.members) == place}

    def check_member(self, group_id: str, member_id: str, generation: int) -> None:
        """Raises KafkaException where a commit of this member is refused."""
        group = self.groups[group_id]
        if member_id in group.fenced:
            raise KafkaException(KafkaError(KafkaError.FENCED_INSTANCE_ID, "fenced", txn_requires_abort=True))
        member = group.members.get(member_id)
        if member is None:
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_MEMBER_ID, "unknown", txn_requires_abort=True))
        if generation != member.generation:
            raise KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION, "old", txn_requires_abort=True))
