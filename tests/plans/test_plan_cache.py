"""The cache of plans: whole files, one builder at a time, and what people see of it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pipeline.errors import UserError, WorkerFailure
from pipeline.plans import cache as cache_module
from pipeline.plans.build import UNUSED_DAYS, list_plans, prune_plans
from pipeline.plans.cache import About, PlanCache, digest
from tests.eventually import eventually

ABOUT = About(
    model="/models/minilm",
    precision="fp8",
    shape="128x128",
    tensorrt="10.6.0",
    gpu="NVIDIA H100 80GB HBM3",
    chip="NVIDIA-H100-80GB-HBM3-sm90",
    bytes=43 << 20,
    seconds=9.5,
    parity={"embedding": "cosine 0.990969 at least, 0.997086 in the mean, max error 0.024, of 1034 texts"},
)


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


def test_what_is_kept_is_found_again(cache: PlanCache) -> None:
    assert cache.plan("key") is None
    cache.keep("key", b"plan", ABOUT)
    assert PlanCache(cache.folder).plan("key") == b"plan"
    [kept] = cache.plans()
    assert (kept.key, kept.about) == ("key", ABOUT)
    assert not list(cache.folder.glob("partial-*"))


def test_a_key_is_of_all_its_parts_and_their_order() -> None:
    keys = [digest("ab", "c"), digest("a", "bc"), digest("c", "ab"), digest(b"ab", b"c", b""), digest("ab", "d")]
    assert len({*keys}) == len(keys)
    assert digest(b"ab", "c") == digest("ab", "c")


def test_timings_and_channels(cache: PlanCache) -> None:
    assert cache.timings("10.6", "sm90") == b""
    cache.keep_timings("10.6", "sm90", b"times")
    assert cache.timings("10.6", "sm90") == b"times"
    assert cache.timings("10.7", "sm90") == b""
    assert cache.channels("key") is None
    cache.keep_channels("key", {"0.attention": [1.0, 2.5]})
    assert cache.channels("key") == {"0.attention": [1.0, 2.5]}


def test_a_second_builder_waits_and_finds_what_the_first_has_built(cache: PlanCache) -> None:
    found: list[bytes | None] = []

    def second() -> None:
        with cache.building("key"):
            found.append(cache.plan("key"))

    with cache.building("key"):
        thread = threading.Thread(target=second)
        thread.start()
        assert not found
        cache.keep("key", b"plan", ABOUT)
    eventually(lambda: found == [b"plan"])
    thread.join()


def test_a_folder_that_can_t_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: .*: plans go there; engine.plan_cache names another folder"):
        PlanCache(tmp_path / "file")


def test_plans_are_listed(cache: PlanCache, capsys: pytest.CaptureFixture[str]) -> None:
    list_plans(cache.folder)
    assert capsys.readouterr().out == f"no plans in {cache.folder}\n"
    cache.keep("key", b"plan", ABOUT)
    list_plans(cache.folder)
    said = capsys.readouterr().out
    for word in ("minilm", "fp8", "128x128", "43", "H100", "0.997086", f"1 plans, 43 MB in {cache.folder}"):
        assert word in said


def test_what_builds_need_is_pruned_too(cache: PlanCache) -> None:
    cache.keep_timings("1", "old", b"t")
    cache.keep_timings("1", "new", b"t")
    cache.keep_channels("old", {})
    cache.keep_channels("new", {})
    for name in ("partial-old", "partial-new"):
        (cache.folder / name).touch()
    for path in cache.folder.glob("*old*"):
        os.utime(path, (0, 0))
    for path in cache.folder.glob("*new*"):
        if not path.name.startswith("partial"):
            os.utime(path, (0, 0))
    # What a build has read is in use.
    assert cache.timings("1", "new") == b"t"
    assert cache.channels("new") == {}
    prune_plans(cache.folder)
    left = {path.name for path in cache.folder.iterdir()}
    assert left == {"timings-1-new", "channels-new.json", "partial-new"}


def test_only_what_nobody_uses_is_pruned(cache: PlanCache, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("old", "used"):
        cache.keep(key, b"plan", ABOUT)
        os.utime(cache.folder / f"{key}.plan", (0, 0))
    assert cache.plan("used") == b"plan"  # loading counts
    prune_plans(cache.folder)
    assert [kept.key for kept in cache.plans()] == ["used"]
    assert capsys.readouterr().out == f"1 plans removed, 43 MB, that were not used for {UNUSED_DAYS:g} days\n"


def test_half_a_removal_is_not_listed(cache: PlanCache) -> None:
    cache.keep("key", b"plan", ABOUT)
    (cache.folder / "key.json").write_text("{")
    assert cache.plans() == []
    cache.remove("key")
    assert not list(cache.folder.glob("key.*"))


def test_plans_of_a_folder_that_others_write_are_read(cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.keep("key", b"plan", ABOUT)
    assert (cache.folder / "key.plan").stat().st_mode & 0o777 == 0o644

    def refuse(*_: object) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.plan("key") == b"plan"


def test_an_empty_plan_is_none(cache: PlanCache) -> None:
    (cache.folder / "key.plan").write_bytes(b"")
    assert cache.plan("key") is None


def test_a_builder_that_does_not_end_is_told(cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_BUILD_PATIENCE_S", 0.1)
    with (
        cache.building("key"),
        pytest.raises(WorkerFailure, match=rf"process {os.getpid()} builds the same plan and does not end"),
        cache.building("key"),
    ):
        pass
