"""What `encode_order: none` can't go with."""

from __future__ import annotations

import pytest

from pipeline import clients
from pipeline.broker import start_broker_process
from pipeline.ensemble_file import validate_settings
from pipeline.errors import UserError
from pipeline.mistakes import SettingsError
from pipeline.settings import EnsembleSettings
from pipeline.share_group import require_share_group

MINIMAL = {"name": "a", "models": [{"name": "v", "source": "unused"}], "encode_order": "none"}


@pytest.mark.broker
def test_the_embedded_broker_is_refused() -> None:
    with start_broker_process() as process:
        made = EnsembleSettings.model_validate(MINIMAL | {"kafka": {"bootstrap.servers": process.bootstrap}})
        with pytest.raises(UserError, match="embedded broker has no share groups"):
            require_share_group(made, clients.admin(made.kafka.client_settings()), fused=False)


def test_exactly_once_is_refused() -> None:
    with pytest.raises(SettingsError) as raised:
        validate_settings(MINIMAL | {"delivery": "exactly_once"}, EnsembleSettings, origin="f")
    assert raised.value.lines == (
        "f: encode_order: 'none' is not allowed with delivery: exactly_once (share groups have no transactions); "
        "allowed: partition",
    )
