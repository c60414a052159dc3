"""server.toml: the settings of the aggregation daemon, as typed values with units and reasons.

Nothing here is secret; keys stand in files of their own. Every limit has a default, because a peer
must never be able to choose how much of this machine it takes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class JournalMode(enum.Enum):
    """What a receipt promises to survive."""

    KILL = "kill"  # the death of the process: payloads are written
    POWER = "power"  # loss of power: payloads are written and flushed to the disk


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """How much peers may take.

    Attributes:
        max_clients: enrolled clients; each open Watch stream costs about 100 KiB.
        max_update_bytes: one payload; a model of 250 million float32 weights has 1 GB.
        max_spool_bytes: payloads of all runs together, on disk.
        keep_free_bytes: what the disk keeps for the journal, so that it never fails in mid-write.
        max_arrays: arrays in one message; more is no model but an attack on the parser.
        max_queued_runs: runs that wait; their initial weights are on disk already.
        max_concurrent_runs: run workers at once; each holds about 5 models in memory.
        uploads_at_once: replies received in parallel; more only splits the same bandwidth.
        max_metadata_bytes: specification plus its source text.
    """

    max_clients: int = 1000
    max_update_bytes: int = 2 * GIB
    max_spool_bytes: int = 64 * GIB
    keep_free_bytes: int = 256 * MIB
    max_arrays: int = 100_000
    max_queued_runs: int = 100
    max_concurrent_runs: int = 2
    uploads_at_once: int = 3
    max_metadata_bytes: int = 1 * MIB

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            least = 0 if name == "keep_free_bytes" else 1
            if value < least:
                yield name, f"expected at least {least}, got {value}"


@dataclass(frozen=True, kw_only=True)
class TimesConfig:
    """How long things last, in seconds unless the name says otherwise.

    Attributes:
        heartbeat_s: a quiet Watch stream carries a sign of life at least this often.
        grace_s: a node gone for longer does not hold up a round that has its quorum.
        drain_s: how long a stopping daemon waits for uploads in progress.
        invitation_s: how long a token holds unless the invitation says otherwise.
        certificate_days: how long a member's certificate holds; clients renew in the last third.
    """

    heartbeat_s: float = 10.0
    grace_s: float = 30.0
    drain_s: float = 30.0
    invitation_s: float = 7 * 24 * 3600.0
    certificate_days: int = 90

    def problems(self) -> Iterator[tuple[str, str]]:
        if not 0.1 <= self.heartbeat_s <= 300:
            yield "heartbeat_s", f"expected 0.1 to 300 seconds, got {self.heartbeat_s}"
        for name in ("grace_s", "drain_s"):
            if getattr(self, name) < 0:
                yield name, f"expected 0 or more seconds, got {getattr(self, name)}"
        if not 60 <= self.invitation_s <= 90 * 24 * 3600:
            yield "invitation_s", "expected one minute to 90 days, in seconds"
        if not 1 <= self.certificate_days <= 825:
            yield "certificate_days", f"expected 1 to 825 days, got {self.certificate_days}"


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The whole of server.toml.

    Attributes:
        names: host names and IP addresses by which members reach this server; the certificate
            and every token carry them.
        listen: ``host:port`` of the service (mutual TLS).
        enrolment_listen: ``host:port`` of enrolment (TLS and a token).
        journal: what a receipt survives.
        chunk_bytes: size of a piece of a payload on the wire.
        database: SQLAlchemy URL; empty means SQLite inside the state directory.
        log_level: name of the least severe level.
        log_form: ``text`` for people, ``json`` for machines.
        limits: how much peers may take.
        times: how long things last.
    """

    names: tuple[str, ...] = ("localhost",)
    listen: str = "0.0.0.0:7443"
    enrolment_listen: str = "0.0.0.0:7444"
    journal: JournalMode = JournalMode.KILL
    chunk_bytes: int = 512 * KIB
    database: str = ""
    log_level: str = "INFO"
    log_form: str = "text"
    limits: LimitsConfig = LimitsConfig()
    times: TimesConfig = TimesConfig()

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.names:
            yield "names", "expected at least one host name or IP address"
        for key in ("listen", "enrolment_listen"):
            if split_address(getattr(self, key)) is None:
                yield key, f'expected "host:port", got {getattr(self, key)!r}'
        if self.listen == self.enrolment_listen and not self.listen.endswith(":0"):
            yield "enrolment_listen", "expected another port than `listen`"
        if not 64 * KIB <= self.chunk_bytes <= 2 * MIB:
            yield "chunk_bytes", f"expected 64 KiB to 2 MiB, got {self.chunk_bytes}"
        if self.log_level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            yield "log_level", f"expected DEBUG, INFO, WARNING or ERROR, got {self.log_level!r}"
        if self.log_form not in ("text", "json"):
            yield "log_form", f'expected "text" or "json", got {self.log_form!r}'


def split_address(address: str) -> tuple[str, int] | None:
    """Return host and port of ``host:port`` or ``[v6]:port``; None if it is neither."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        return None
    bracketed = host.startswith("[") and host.endswith("]")
    if ":" in host and not bracketed:
        return None
    return host, int(port)
