"""Charges and ledgers for the tests of the ledger, and a hand that tampers with the file."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sqlite3
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import ed25519

from tacit.core.specification import Relation
from tacit.privacy.accounting import SampledGaussian
from tacit.privacy.ledger import Ledger
from tacit.privacy.ledger_entries import Charge, Purpose, Side, Terms, Unit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()

TERMS = Terms(data_set="heart", delta=1e-5, records=1000, unit=Unit.RECORD, budget=8.0)

CHARGE = Charge(
    data_set="heart",
    run="r-1",
    round=1,
    message="r-1.1",
    attempt=1,
    specification_sha256="ab" * 32,
    model_sha256="cd" * 32,
    purpose=Purpose.TRAINING,
    side=Side.TRAIN,
    split="s1",
    unit=Unit.RECORD,
    relation=Relation.ADD_REMOVE,
    public=("steps", "normaliser"),
    seen_by=("server: every update",),
    mechanism=SampledGaussian(noise_multiplier=10.0, steps=1),
    clip=1.0,
    noise_deviation=10.0,
    delta=1e-5,
    noise_source="AES-256-CTR",
)


def charge(number: int = 1, **changes: Any) -> Charge:
    """Return the charge of one message; keywords change fields."""
    plain = {"round": number, "message": f"r-1.{number}"} | changes
    return dataclasses.replace(CHARGE, **plain)


def opened(path: Path, *, terms: Terms | None = TERMS, read_only: bool = False) -> Ledger:
    """Open a ledger under a clock that counts, with one data set."""
    ticks = itertools.count(1_700_000_000)
    ledger = Ledger.open(
        path, signer=KEY.sign, clock=lambda: float(next(ticks)), read_only=read_only
    )
    if terms is not None and not read_only:
        ledger.open_data_set(terms)
    return ledger


@contextlib.contextmanager
def tampering(path: Path) -> Iterator[sqlite3.Connection]:
    """Give the file without the triggers that hold it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DROP TRIGGER entries_never_change")
    connection.execute("DROP TRIGGER entries_never_go")
    yield connection
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
