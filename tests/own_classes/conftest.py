"""What the tests of running workers have."""

from tests.pipeline.conftest import broker, settings

__all__ = ["broker", "settings"]
