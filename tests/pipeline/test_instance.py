"""Names of workers: the first free place of the machine, given back by whatever end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.instance import await_instance, claim_instance


def test_workers_of_one_machine_get_different_names_and_the_first_free_one(tmp_path: Path) -> None:
    first, second = (claim_instance("reviews.encode", folder=tmp_path) for _ in range(2))
    other_group = claim_instance("reviews.tokenize", folder=tmp_path)
    assert first.name is not None
    assert second.name is not None
    assert (first.name[-2:], second.name[-2:]) == ("-0", "-1")
    assert other_group.name == first.name
    first.release()
    assert claim_instance("reviews.encode", folder=tmp_path).name == first.name


def test_a_killed_worker_leaves_its_name_to_the_next(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pipeline.instance import claim_instance;"
        "print(claim_instance('g', folder=Path(sys.argv[1])).name, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert claim_instance("g", folder=tmp_path).name != name
        process.kill()
        process.wait()
    assert claim_instance("g", folder=tmp_path).name == name


def test_a_name_of_one_s_own_is_refused_to_a_second(tmp_path: Path) -> None:
    mine = claim_instance("g", wanted="pod-3", folder=tmp_path)
    assert mine.name == "pod-3"
    with pytest.raises(UserError, match=rf"--instance: pod-3 of g is process {os.getpid()}"):
        claim_instance("g", wanted="pod-3", folder=tmp_path)


@pytest.mark.parametrize("name", ["a b", "ä", "x" * 101])
def test_what_kafka_takes_for_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="allowed: letters, digits"):
        claim_instance("g", wanted=name, folder=tmp_path)


def test_a_standby_waits_for_its_name(tmp_path: Path) -> None:
    first = claim_instance("g", wanted="pod-3", folder=tmp_path)
    looks = iter([False, False, True])
    assert await_instance("g", "pod-3", lambda: next(looks), folder=tmp_path) is None
    threading.Timer(0.1, first.release).start()
    second = await_instance("g", "pod-3", lambda: False, folder=tmp_path)
    assert second is not None
    assert second.name == "pod-3"


def test_a_standby_without_a_place_for_locks_can_t_wait(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no place for the lock"):
        await_instance("g", "pod-3", lambda: False, folder=tmp_path / "file")


def test_an_empty_name_is_none(tmp_path: Path) -> None:
    assert claim_instance("g", wanted="", folder=tmp_path).name is None


def test_without_a_place_for_locks_a_worker_is_a_new_member(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert claim_instance("g", folder=tmp_path / "file").name is None
