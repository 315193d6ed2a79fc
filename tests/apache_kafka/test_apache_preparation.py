"""What Apache Kafka needs before it starts, Java, the jars, a folder, and one line on what is wrong with each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from pipeline.apache_kafka import data_directory, jars
from pipeline.apache_kafka.data_directory import DataDirectory
from pipeline.apache_kafka.jars import KAFKA_VERSION, find_jars
from pipeline.apache_kafka.java import find_java
from pipeline.apache_kafka.server_properties import server_properties
from pipeline.errors import UserError
from pipeline.file_lock import FileLock, FileLocked
from pipeline.user_cache import cache_folder

WAIT_S = 20.0
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, with no Java and no Maven; the cache is empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "cp", "mkdir", "sleep", "cat"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def write_command(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def says_version(version: str) -> str:
    return f"echo 'openjdk version \"{version}\" 2025-04-15' >&2"


# A Maven that leaves a jar, and a mark of each call.
MAVEN = """
for argument; do case $argument in -DoutputDirectory=*) folder=${argument#*=};; esac; done
echo called >> "$CALLS"
echo half > "$folder/scala.jar"
sleep 0.2
echo jar > "$folder/kafka_2.13.jar"
"""


# --- Java ---


@pytest.mark.parametrize(("version", "major"), [("17.0.15", 17), ("25", 25), ("21-ea", 21)])
def test_java_is_found(commands: Path, version: str, major: int) -> None:
    write_command(commands / "java", says_version(version))
    assert find_java().major == major


def test_java_home_goes_first(commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_command(commands / "java", says_version("17"))
    write_command(tmp_path / "jdk/bin/java", says_version("25"))
    on_path = find_java()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    assert find_java().major == 25
    assert find_java().identity != on_path.identity


@pytest.mark.parametrize(
    ("script", "line"),
    [
        (None, "there is no Java: Apache Kafka needs Java 17 or newer on PATH or in JAVA_HOME"),
        (says_version("11.0.2"), "java is Java 11: Apache Kafka needs Java 17 or newer"),
        (says_version("1.8.0_412"), "java is Java 8: Apache Kafka needs Java 17 or newer"),
        ("echo 'Unable to locate a Java Runtime.' >&2; exit 1", r"does not run \(Unable to locate a Java Runtime\.\)"),
        ("echo hello", r"java does not run \(\)"),
    ],
)
def test_no_java_or_an_old_one_is_one_line(commands: Path, script: str | None, line: str) -> None:
    if script is not None:
        write_command(commands / "java", script)
    with pytest.raises(UserError, match=line) as raised:
        find_java()
    assert len(raised.value.lines) == 1


def test_a_wrong_java_home_is_one_line(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_command(commands / "java", says_version("17"))
    monkeypatch.setenv("JAVA_HOME", "/no/such/jdk")
    with pytest.raises(UserError, match="JAVA_HOME is /no/such/jdk, which has no bin/java"):
        find_java()


# --- Jars ---


def test_the_cache_is_where_the_platform_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/mine")
    assert cache_folder() == Path("/var/cache/mine/penstock")
    for value in ("", "relative/one"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.setattr(sys, "platform", "linux")
        assert cache_folder() == tmp_path / ".cache/penstock"
        monkeypatch.setattr(sys, "platform", "darwin")
        assert cache_folder() == tmp_path / "Library/Caches/penstock"


def test_jars_are_fetched_once_and_then_need_no_maven(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    write_command(commands / "mvn", MAVEN)
    found = find_jars()
    assert sorted(os.listdir(found.folder)) == ["kafka_2.13.jar", "scala.jar"]
    assert found.classpath == f"{found.folder}/kafka_2.13.jar:{found.folder}/scala.jar"
    (commands / "mvn").unlink()
    assert find_jars() == found
    assert (tmp_path / "calls").read_text() == "called\n"


def test_two_who_fetch_at_once_get_one_whole_folder(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    write_command(commands / "mvn", MAVEN)
    start = "from pipeline.apache_kafka.jars import find_jars; print(len(list(find_jars().folder.iterdir())))"
    processes = [subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=WAIT_S)[0] for process in processes] == ["2\n", "2\n"]
    assert (tmp_path / "calls").read_text() == "called\n"


def test_what_a_killed_fetch_left_is_removed(commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    write_command(commands / "mvn", MAVEN)
    left = cache_folder() / "apache-kafka/partial-x"
    left.mkdir(parents=True)
    (left / "half.jar").touch()
    find_jars()
    assert not left.exists()


@pytest.mark.parametrize(
    ("script", "line"),
    [
        (None, rf"Apache Kafka {KAFKA_VERSION} is not in .*/cache/penstock/apache-kafka, and there is no Maven"),
        (
            "echo '[ERROR] Could not transfer'; echo '[ERROR] x'; exit 1",
            r"Maven could not fetch .*: Could not transfer$",
        ),
        ("exit 3", "it exited with 3"),
        ("exit 0", "it exited with 0"),
        (
            "echo '[ERROR] jar: No space left on device'; exit 1",
            "apache-kafka: No space left on device: Apache Kafka's",
        ),
    ],
)
def test_a_fetch_that_fails_is_one_line_and_leaves_nothing(commands: Path, script: str | None, line: str) -> None:
    if script is not None:
        write_command(commands / "mvn", script)
    with pytest.raises(UserError, match=line) as raised:
        find_jars()
    assert len(raised.value.lines) == 1
    root = cache_folder() / "apache-kafka"
    assert not root.exists() or os.listdir(root) == ["lock"]


def test_a_cache_that_takes_nothing_is_one_line(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_command(commands / "mvn", "exit 0")
    with monkeypatch.context() as patch:
        patch.setattr(jars.shutil, "disk_usage", lambda _: Usage(1, 1, 1))
        with pytest.raises(UserError, match=r"No space left on device \(200 MiB are needed\): .* XDG_CACHE_HOME names"):
            find_jars()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="Not a directory: Apache Kafka's jars go there"):
        find_jars()


def test_the_version_that_is_told_is_the_pom_s() -> None:
    pom = Path(jars.__file__).with_name("pom.xml").read_text()
    assert f"<artifactId>kafka_2.13</artifactId>\n      <version>{KAFKA_VERSION}</version>" in pom


# --- The folder ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a broker's data, as far as is looked at."""
    folder = tmp_path / "data"
    directory = DataDirectory(folder)
    directory.open()
    directory.close()
    (folder / "kafka").mkdir()
    (folder / "kafka/meta.properties").write_text("#\nnode.id=1\nversion=1\ncluster.id=EJfKaFYaRZ-7Y0IXI9kafw\n")
    return folder


def refused(folder: Path) -> str:
    directory = DataDirectory(folder)
    with pytest.raises(UserError) as raised:
        directory.open()
    assert len(raised.value.lines) == 1
    return str(raised.value)


def test_a_folder_is_taken_again_after_it_was_refused(folder: Path) -> None:
    directory = DataDirectory(folder)
    directory.open()
    assert f"{folder}: in use by another broker (process {os.getpid()})" in refused(folder)
    directory.close()
    directory.open()
    directory.close()


@pytest.mark.parametrize("text", ["", "\0\0\0\0", "node.id=1\nversion=1\ncluster.id=\n"])
def test_damaged_data_is_one_line(folder: Path, text: str) -> None:
    (folder / "kafka/meta.properties").write_text(text)
    assert refused(folder) == (
        f"{folder}/kafka/meta.properties: damaged (cluster.id is missing): restore it, or name another folder"
    )


def test_missing_meta_properties_are_one_line(folder: Path) -> None:
    (folder / "kafka/meta.properties").unlink()
    assert "damaged (cluster.id is missing)" in refused(folder)


def test_a_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    assert "holds other files and no broker's data: name an empty or a new folder" in refused(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path}/file: is no folder" in refused(tmp_path / "file")
    assert "Not a directory: a broker's data goes there" in refused(tmp_path / "file/below")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder in which even root may not write")
def test_a_folder_that_takes_nothing_is_one_line() -> None:
    assert "/sys/kernel/penstock: Operation not permitted: a broker's data goes there; name another folder" in (
        refused(Path("/sys/kernel/penstock"))
    )


def test_a_folder_with_a_comma_is_one_line(tmp_path: Path) -> None:
    assert "Kafka takes a comma for the end of a folder's name" in refused(tmp_path / "a,b")


def test_a_full_disk_is_one_line_and_leaves_the_folder_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(data_directory.shutil, "disk_usage", lambda _: Usage(1, 1, 1))
        assert "No space left on device (100 MiB are needed)" in refused(folder)
    directory = DataDirectory(folder)
    directory.open()
    directory.close()


def test_another_kafka_s_lock_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As Java does it, in another process: within one, such locks do not exclude each other.
    program = "import fcntl, sys; lock = open(sys.argv[1], 'a'); fcntl.lockf(lock, fcntl.LOCK_EX); print(); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(folder / "kafka/.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdout.readline()
    with monkeypatch.context() as patch:
        patch.setattr(data_directory, "_RELEASE_BUDGET_S", 0.1)
        assert "in use by another Kafka: stop it, or name another folder" in refused(folder)
    directory = DataDirectory(folder)
    opening = threading.Thread(target=directory.open)
    opening.start()
    other.communicate(b"\n", timeout=WAIT_S)
    opening.join(WAIT_S)
    assert not opening.is_alive()
    directory.close()


# --- Smaller parts ---


def test_a_lock_is_free_when_its_owner_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from pipeline.file_lock import FileLock\n"
        "lock = FileLock(Path(sys.argv[1])); print(flush=True); input()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    owner.stdout.readline()
    with pytest.raises(FileLocked) as raised:
        FileLock(tmp_path / "lock")
    assert raised.value.owner == str(owner.pid)
    owner.kill()
    owner.communicate()
    FileLock(tmp_path / "lock").release()


def test_settings_are_escaped_as_java_reads_them(tmp_path: Path) -> None:
    text = server_properties(port=1, controller_port=2, log_dir=Path("/a\\b/ü 😀"), more={"num.partitions": "7"})
    lines = text.splitlines()
    assert r"log.dirs=/a\\b/\u00fc \ud83d\ude00" in lines
    assert "num.partitions=7" in lines
    assert "listeners=PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2" in lines
