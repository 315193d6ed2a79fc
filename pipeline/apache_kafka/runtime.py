"""How Java is called for Apache Kafka: quick to start rather than fast for days.

Start to the first answer, on two cores: 3 s by default, 2 s with the serial collector and the first compiler alone, 1 s
with an archive of the classes too (docs/decisions/0009-apache-broker.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.apache_kafka.jars import Jars
from pipeline.apache_kafka.java import Java

_LOG_SETTINGS = Path(__file__).with_name("log4j2.properties")
_OPTIONS = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    # A broker without memory left is to end, not to linger.
    "-XX:+ExitOnOutOfMemoryError",
    # Other Javas than OpenJDK's know other options.
    "-XX:+IgnoreUnrecognizedVMOptions",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A Java and Kafka's jars."""

    java: Java
    jars: Jars

    @property
    def archive(self) -> Path:
        """Of the classes, for this Java; it may not be there."""
        return self.jars.folder / f"classes-{self.java.identity}.jsa"

    def command(self, main_class: str, *arguments: str, log_file: Path, archive_option: str | None = None) -> list[str]:
        """Java's command line. A missing archive is ignored by Java; `archive_option` replaces its use."""
        return [
            str(self.java.path),
            *_OPTIONS,
            archive_option or f"-XX:SharedArchiveFile={self.archive}",
            f"-Dlog4j2.configurationFile={_LOG_SETTINGS.as_uri()}",
            f"-Dpenstock.log={log_file}",
            *("-classpath", self.jars.classpath),
            main_class,
            *arguments,
        ]
