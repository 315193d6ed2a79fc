"""Faust's Kafka clients, from the ensemble file's `kafka` section, which has librdkafka's names.

Faust has aiokafka, which knows fewer settings: those of the connection and of the group are passed on, what only tunes
librdkafka has no effect here, and a way of logging in that aiokafka doesn't know is refused.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

import faust
from faust.transport.drivers import aiokafka as driver
from yarl import URL

from pipeline.errors import UserError
from pipeline.kafka_settings import KafkaSettings, KafkaValue
from pipeline.topics import MAX_RECORD_BYTES

# As workers have it: a member of a name takes over at once, whatever the session.
_SESSION_MS, _HEARTBEAT_MS = 30_000, 1_000
# The embedded broker keeps a dead member's partitions until its session has ended, whatever its name is.
_EMBEDDED_SESSION_MS, _EMBEDDED_HEARTBEAT_MS = 3_000, 500
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_PROTOCOLS = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
# The embedded broker does not wake a waiting fetch, and Faust's is 1,500 ms: a record would be seen so much later.
_FETCH_MAX_WAIT_MS = 10


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = _FETCH_MAX_WAIT_MS
        return consumer


class _Consumer(driver.Consumer):
    def _new_consumer_thread(self) -> Any:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)


class _Transport(driver.Transport):
    Consumer = _Consumer


def use_short_fetches(app: faust.App) -> None:
    """Have the app see records of an embedded broker at once."""
    app.transport = _Transport(app.conf.broker_consumer, app, loop=app.loop)


def client_settings(kafka: KafkaSettings, *, embedded: bool) -> dict[str, Any]:
    """Faust's settings of the connection and the group. Raises UserError."""
    consumer = kafka.consumer_settings()
    servers = [each.strip().rpartition("://")[2] for each in kafka.bootstrap_servers.split(",")]
    defaults = (_EMBEDDED_SESSION_MS, _EMBEDDED_HEARTBEAT_MS) if embedded else (_SESSION_MS, _HEARTBEAT_MS)
    session_s = float(consumer.get("session.timeout.ms", defaults[0])) / 1e3
    return {
        "broker": [URL(f"kafka://{server if ':' in server else f'{server}:9092'}") for server in servers],
        "broker_credentials": _credentials(kafka.client_settings()),
        "broker_session_timeout": session_s,
        "broker_heartbeat_interval": float(consumer.get("heartbeat.interval.ms", defaults[1])) / 1e3,
        "broker_request_timeout": max(session_s, 90.0),
        "consumer_max_fetch_size": MAX_RECORD_BYTES,
        "producer_max_request_size": MAX_RECORD_BYTES + (1 << 20),
        # 0: at once. What is sent together is one batch all the same.
        "producer_linger": 0.0,
    }


def _credentials(settings: Mapping[str, KafkaValue]) -> Any:
    """None where the broker asks for nothing."""
    protocol = str(settings.get("security.protocol", "plaintext")).lower()
    if protocol not in _PROTOCOLS:
        raise UserError(f"kafka.security.protocol: {protocol!r} is not allowed; allowed: {', '.join(_PROTOCOLS)}")
    context = _ssl_context(settings) if protocol.endswith("ssl") else None
    if not protocol.startswith("sasl"):
        return faust.SSLCredentials(context) if context is not None else None
    mechanism = str(settings.get("sasl.mechanism", settings.get("sasl.mechanisms", "GSSAPI")))
    if mechanism not in _MECHANISMS:
        allowed = ", ".join(_MECHANISMS)
        raise UserError(f"kafka.sasl.mechanism: transcripts can't log in by {mechanism}; allowed here: {allowed}")
    return faust.SASLCredentials(
        username=str(settings.get("sasl.username", "")),
        password=str(settings.get("sasl.password", "")),
        ssl_context=context,
        mechanism=mechanism,
    )


def _ssl_context(settings: Mapping[str, KafkaValue]) -> ssl.SSLContext:
    try:
        authorities = settings.get("ssl.ca.location")
        context = ssl.create_default_context(cafile=None if authorities is None else str(authorities))
        if (certificate := settings.get("ssl.certificate.location")) is not None:
            key, password = settings.get("ssl.key.location"), settings.get("ssl.key.password")
            context.load_cert_chain(
                str(certificate), None if key is None else str(key), None if password is None else str(password)
            )
        if str(settings.get("enable.ssl.certificate.verification", "true")).lower() == "false":
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        elif settings.get("ssl.endpoint.identification.algorithm") == "none":
            context.check_hostname = False
    except OSError as err:
        raise UserError(f"kafka.ssl: the certificates can't be loaded: {err}") from err
    return context
