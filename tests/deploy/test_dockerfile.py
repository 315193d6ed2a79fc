"""The Dockerfile: what it copies is there, what it installs is checked, what runs has no rights and gets signals."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator

from pipeline.settings import PROCESSES, HttpSettings
from tests.deploy.deployment import ROOT, Instruction, is_sent_to_docker, of, read_compose, read_dockerfile

STAGES_OF_IT = read_dockerfile()
BUILD, IMAGE = STAGES_OF_IT["build"], STAGES_OF_IT["image"]
BUILD_GPU, GPU = STAGES_OF_IT["build-gpu"], STAGES_OF_IT["gpu"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def copied() -> Iterator[str]:
    for stage in (BUILD_GPU, IMAGE):
        for instruction in of(stage, "COPY"):
            *sources, _ = instruction.words
            if not sources[0].startswith("--from="):
                yield from (source for source in sources if not source.startswith("--"))


def runs(stage: list[Instruction] = BUILD) -> str:
    return "\n".join(instruction.rest for instruction in of(stage, "RUN"))


def test_what_it_copies_is_there_and_sent_to_docker() -> None:
    sources = list(copied())
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert is_sent_to_docker(source)


def test_the_projects_own_files_are_copied() -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    project = PROJECT["project"]
    assert set(copied()) >= {"pyproject.toml", project["readme"], *project["license-files"], *packages}
    for package in packages:
        for file in (ROOT / package).rglob("*"):
            path = str(file.relative_to(ROOT))
            assert is_sent_to_docker(path) == ("__pycache__" not in path)


def test_nothing_else_is_sent_to_docker() -> None:
    for path in (".git", ".git/config", ".venv/bin/python", "tests", "compose.yaml", "deploy/ensemble.yaml", "docs"):
        assert not is_sent_to_docker(path)


def test_what_it_installs_from_outside_is_checked_against_its_hash() -> None:
    installs = re.findall(r"pip --python \S+ install (.*?)(?: &&|$)", runs(), flags=re.MULTILINE)
    assert len(installs) == 3
    for arguments in installs:
        if "-r " in arguments:
            assert "--require-hashes --only-binary :all:" in arguments
        else:
            assert arguments == "--no-deps --no-build-isolation ."


def test_what_is_installed_for_gpus_is_checked_against_its_hash_too() -> None:
    installs = re.findall(r"pip --python \S+ install (.*?)(?: &&|$)", runs(BUILD_GPU), flags=re.MULTILINE)
    built, computed = (" ".join(arguments.split()) for arguments in installs[3:])
    assert built == "--require-hashes --only-binary :all: -r requirements/build-gpu.txt"
    assert computed == (
        "--require-hashes --only-binary :all: --no-binary pycuda,tensorrt,tensorrt-cu13,tensorrt-cu13-libs "
        "--no-build-isolation -r requirements/gpu.txt"
    )


def test_what_builds_is_taken_out_again() -> None:
    (removed,) = re.findall(r"uninstall --yes (.*?) &&", runs())
    assert set(removed.split()) == build_only(ROOT.joinpath("requirements/demo.txt").read_text())
    _, removed = re.findall(r"uninstall --yes (.*?)(?: &&|$)", runs(BUILD_GPU), flags=re.MULTILINE)
    assert set(removed.split()) == locked("build-gpu") - locked("gpu")


def locked(name: str) -> set[str]:
    return set(re.findall(r"^[a-z][\w.-]*", ROOT.joinpath(f"requirements/{name}.txt").read_text(), flags=re.MULTILINE))


def test_both_images_have_the_same_libraries() -> None:
    """But for what the GPU needs: a worker on it and one on processors read each other's records."""

    def versions(name: str) -> set[str]:
        text = ROOT.joinpath(f"requirements/{name}.txt").read_text()
        return set(re.findall(r"^[a-z][\w.-]*==\S+", text, flags=re.MULTILINE))

    ours = {each for each in versions("demo") if each.partition("==")[0] not in locked("gpu")}
    assert {each.partition("==")[0] for each in ours} == build_only(ROOT.joinpath("requirements/demo.txt").read_text())
    assert versions("demo") - ours <= versions("gpu")


def build_only(lock: str) -> set[str]:
    """What a lock has only because of the group `build`, by its own remarks: `# via` names who wants a package."""
    wanted_by: dict[str, set[str]] = {}
    for entry in re.split(r"\n(?=[a-z])", lock)[1:]:
        name = re.match(r"[\w.-]+", entry)
        assert name
        remarks = re.findall(r"^ +# +(?:via +)?(\S.*)$", entry, flags=re.MULTILINE)
        wanted_by[name[0]] = {remark for remark in remarks if remark != "via" and not remark.startswith("-c ")}
    found: set[str] = set()
    while True:
        more = {name for name, who in wanted_by.items() if who <= found | {"penstock (pyproject.toml:build)"}}
        if more == found:
            return found
        found = more


def test_the_image_has_what_was_installed_and_no_more() -> None:
    assert [instruction.rest for instruction in of(IMAGE, "COPY")] == ["--from=build /opt/penstock /opt/penstock"]
    assert [instruction.rest for instruction in of(GPU, "COPY")] == [
        "--from=build-gpu /opt/penstock /opt/penstock",
        "--from=build-gpu --chown=10001:10001 /opt/stub/plans /var/cache/penstock",
    ]
    for stage in (IMAGE, GPU):
        assert not of(stage, "RUN")
        assert not of(stage, "ADD")


def test_it_is_of_one_base() -> None:
    assert {stage[0].rest for stage in STAGES_OF_IT.values()} == {"${BASE} AS build", "${BASE} AS runtime"}
    text = (ROOT / "Dockerfile").read_text()
    (version,) = re.findall(r"^ARG BASE=python:(3\.\d+)-slim-\w+$", text, flags=re.MULTILINE)
    assert f"Programming Language :: Python :: {version}" in PROJECT["project"]["classifiers"]


def test_it_runs_as_a_numbered_user_without_rights() -> None:
    for stage in (IMAGE, GPU):
        (user,) = of(stage, "USER")
        assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user.rest)
        assert of(stage[stage.index(user) :], "ENTRYPOINT")
    # It owns the one folder that it writes.
    assert f"--chown={user.rest}" in of(GPU, "COPY")[-1].words


def test_plans_outlive_a_container_with_a_gpu() -> None:
    (folder,) = (word.split("=")[1] for each in of(GPU, "ENV") for word in each.words if "XDG_CACHE_HOME" in word)
    service = read_compose()["services"]["encode-gpu"]
    assert f"plans:{folder}/penstock" in service["volumes"]
    assert of(GPU, "COPY")[-1].words[-1] == f"{folder}/penstock"
    assert service["build"]["target"] in STAGES_OF_IT


def test_signals_reach_the_worker() -> None:
    for name in ("ENTRYPOINT", "CMD"):
        (instruction,) = of(IMAGE, name)
        assert all(isinstance(word, str) for word in json.loads(instruction.rest))
    assert json.loads(of(IMAGE, "ENTRYPOINT")[0].rest) == ["penstock"]


def test_its_ports_are_the_processes() -> None:
    (exposed,) = of(IMAGE, "EXPOSE")
    first = HttpSettings().port
    assert exposed.words == [str(first + number) for number in range(len(PROCESSES))]


def test_its_version_is_the_projects() -> None:
    assert f"VERSION={PROJECT['project']['version']}" in [each.rest for each in of(IMAGE, "ARG")]
