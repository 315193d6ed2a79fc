"""Tests of a real GPU: `make test-gpu`. Everything else runs without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import EngineUnavailable
from engines.tensorrt_library import load_tensorrt


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(autouse=True)
def a_gpu() -> None:
    """These fail and are not skipped where there is none: who asks for them has one."""
    try:
        load_tensorrt()
        from engines.cuda import Device

        Device(0).close()
    except EngineUnavailable as err:
        pytest.fail(str(err), pytrace=False)


@pytest.fixture(scope="session")
def plan_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: timings of one model's kernels serve the next."""
    return tmp_path_factory.mktemp("plans")
