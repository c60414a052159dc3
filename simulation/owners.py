"""The owners of a simulated federation: whose data, by whose rules.

Owners come from a folder (one file each), or one file is dealt out (``dealing.py``). Without a
client.toml they have no rules and no limits: what a trial of a run needs, and nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tacit.client.configuration import DataFormat, DataSet
from tacit.client.preparation import PREPARED_NAME, PrepareJob
from tacit.client.prepare import prepare_data, source_of
from tacit.core.errors import UnavailableError, UsageError
from tacit.core.files import make_private_folder
from tacit.core.specification import canonical_json
from tacit.learning.cleaning import clean_raw
from tacit.learning.contract import canonical_texts, encode
from tacit.learning.loaders import RawImages, load_raw
from tacit.learning.prepared import PreparedSets, load_prepared, verify_declared
from tacit.simulation.dealing import (
    count_records,
    deal_records,
    deal_subjects,
    verify_lines,
    write_share,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tacit.client.configuration import Policy
    from tacit.core.specification import DataSpec, RunSpec
    from tacit.simulation.rules import Rules

FORMATS = {".csv": DataFormat.CSV, ".parquet": DataFormat.PARQUET, ".npz": DataFormat.NPZ}
LARGEST_NODE_ID = (1 << 63) - 1
_NOT_DECLARED = (
    1 << 40
)  # without rules the bound is the count, which is taken when the file is read


@dataclass(frozen=True, kw_only=True)
class Owner:
    """One simulated data owner.

    Attributes:
        name: what the tables call them.
        data_set: where their records are, and what happens to each.
        policy: what their node allows; None allows all that the trial needs, without a budget.
    """

    name: str
    data_set: DataSet
    policy: Policy | None = None

    @property
    def node_id(self) -> int:
        """A number that depends on the name alone, so that reruns agree."""
        digest = hashlib.sha256(b"tacit simulated owner|" + self.name.encode()).digest()
        return int.from_bytes(digest[:8], "big") & LARGEST_NODE_ID


def heart_folder() -> Path:
    """Return the folder of the heart disease data that ship with the package."""
    return Path(str(importlib.resources.files("tacit.simulation.data.heart")))


def owners_in(
    path: Path,
    specification: RunSpec,
    *,
    clients: int | None,
    scratch: Path,
    rules: Rules | None = None,
) -> list[Owner]:
    """Return the owners of a folder of files, or deal one file out to ``clients`` owners.

    Args:
        path: the folder, or the file.
        specification: the run, whose data contract one file is held against as a whole, and whose
            training seed deals it out.
        clients: how many owners.
        scratch: the folder in which shares of one file are put.
        rules: of an owner; they hold for all, each with files of their own. The declared bound on
            records is one file's; shares of a file share it.

    Raises:
        UnavailableError: there are no data.
        UsageError: the number of clients does not fit.
        DataError: one file for all breaks the data contract or the rules; rows are its own.
    """
    policy = None if rules is None else rules.policy
    if path.is_dir():
        sets = [_data_set(file, rules) for file in _files_in(path, clients)]
        if rules is None:
            counted = [replace(each, records=max(1, count_records(each))) for each in sets]
            sets = [_with_room(each, specification) for each in counted]
        return [Owner(name=each.path.stem, data_set=each, policy=policy) for each in sets]
    if not path.is_file():
        raise UnavailableError("E-DATA-MISSING", f"expected data at {path}, found nothing there")
    if clients is None:
        raise UsageError("E-USAGE", "one file is dealt out to --clients N owners: give N")
    whole = _data_set(path, rules)
    return _dealt_out(whole, specification, clients=clients, scratch=scratch, policy=policy)


def _data_set(path: Path, rules: Rules | None) -> DataSet:
    declared = None if rules is None else rules.data_set
    if declared is not None and declared.path == path:
        return declared
    if path.suffix not in FORMATS:
        raise UsageError(
            "E-DATA-FORMAT", f"expected a file of {', '.join(FORMATS)}, got {path.name}"
        )
    if declared is not None:
        return replace(declared, path=path, format=FORMATS[path.suffix])
    return DataSet(path=path, format=FORMATS[path.suffix], records=_NOT_DECLARED)


def bare_owners(
    specification: RunSpec, *, clients: int | None, rules: Rules | None = None
) -> list[Owner]:
    """Return owners for a run whose app brings its own data.

    Raises:
        UsageError: it is not said how many.
    """
    if clients is None:
        raise UsageError("E-USAGE", "expected --clients N for a run without a data contract")
    data_set, policy = None, None
    if rules is not None:
        data_set, policy = rules.data_set, rules.policy
    nothing = DataSet(path=Path(os.devnull), records=1)
    return [
        Owner(name=name, data_set=data_set or nothing, policy=policy)
        for name in _names(specification, clients)
    ]


def _names(specification: RunSpec, clients: int) -> Sequence[str]:
    """Name so many owners: as the members whom the run names, if it names so many."""
    secure = specification.secure_aggregation
    if secure is not None and len(secure.members) == clients:
        return secure.members
    digits = len(str(clients))
    return [f"owner-{number:0{digits}d}" for number in range(1, clients + 1)]


def owner_sets(
    specification: RunSpec, owner: Owner, *, split_key: bytes = bytes(32)
) -> PreparedSets:
    """Return an owner's training and validation records, split as their own node splits them.

    Args:
        specification: the run.
        owner: whose records.
        split_key: what the node had, where the owner's rules hash a column.

    Raises:
        DataError: the records break the data contract.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = PrepareJob(
            specification=canonical_json(specification),
            data_set=owner.data_set,
            folder=Path(folder),
            split_key=split_key,
        )
        prepare_data(job)
        return load_prepared(Path(folder) / PREPARED_NAME)


def _files_in(folder: Path, clients: int | None) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.suffix in FORMATS)
    if not files:
        raise UnavailableError(
            "E-DATA-MISSING",
            f"expected files of {', '.join(FORMATS)} in {folder}, found none",
            hint="Say where the records are: --data FOLDER (one file per owner), or --data FILE "
            "with --clients N.",
        )
    if clients is not None and clients != len(files):
        raise UsageError(
            "E-USAGE",
            f"expected {len(files)} clients, one for each file in {folder}, got {clients}",
            hint="give one file with --data to deal it out to any number of clients",
        )
    return files


def _dealt_out(
    whole: DataSet, specification: RunSpec, *, clients: int, scratch: Path, policy: Policy | None
) -> list[Owner]:
    # held against the contract before it is dealt out: what a share would complain of, its user
    # could not find
    whose = None if specification.data is None else _whose(whole, specification.data)
    seed = specification.training.seed if specification.training is not None else 0
    count = count_records(whole)
    if policy is None:
        whole = _with_room(replace(whole, records=count), specification)
    declared, kept = whole.records - whole.max_canaries, whole.max_canaries  # each keeps the room
    if whose is None:
        shares = deal_records(count, clients, seed=seed)
    else:
        shares = deal_subjects(*whose, clients, seed=seed)
    scratch.parent.parent.mkdir(parents=True, exist_ok=True)
    make_private_folder(scratch.parent)
    make_private_folder(scratch)
    owners = []
    for name, rows in zip(_names(specification, clients), shares, strict=True):
        path = scratch / f"{name}{whole.path.suffix}"
        write_share(whole, path, rows)
        records = max(len(rows), -(-declared * len(rows) // count))  # rounded up
        data_set = replace(whole, path=path, records=records + kept)
        owners.append(Owner(name=name, data_set=data_set, policy=policy))
    return owners


def _with_room(data_set: DataSet, specification: RunSpec) -> DataSet:
    """Declare room for the run's canaries beside the records, as its owner would have to."""
    canaries = specification.canaries
    if canaries is None:
        return data_set
    count = canaries.directions + canaries.mislabelled
    return replace(data_set, records=data_set.records + count, max_canaries=count)


def _whose(whole: DataSet, data: DataSpec) -> tuple[list[str], list[bool]] | None:
    """Hold a file against the contract; return whose record each row is, and whether it counts.

    None where the rules name no subjects.

    Raises:
        DataError: it breaks the contract or the rules, or holds more than is declared.
    """
    raw = load_raw(source_of(whole), data)
    name = whole.path.name
    clean = clean_raw(raw, whole.clean, subject=whole.subject, key=bytes(32), file=name)
    prepared = encode(data, clean.raw, row_numbers=clean.row_numbers, file=name)
    verify_declared(len(prepared.labels), whole.records, reserved=whole.max_canaries)
    if isinstance(raw, RawImages):
        return None
    verify_lines(whole, len(raw))
    if clean.subjects is None:
        return None
    texts = canonical_texts(raw[whole.subject]).tolist()
    kept = (clean.row_numbers - 1).tolist()
    named = {texts[row]: name for row, name in zip(kept, clean.subjects, strict=True)}
    counting = np.isin(np.arange(len(texts)), kept).tolist()
    return [named.get(text, text) for text in texts], counting
