"""``python -m tacit.client.prepare``: an owner's file becomes a cleaned, split data set.

Reads a job from standard input, drops forbidden columns, applies the owner's cleaning rules and the
run's data contract, splits, writes its files into the run's folder, and answers with one line of
JSON. This is trusted code and no app: it sees the raw
file, so that the worker need not. Errors name columns and row numbers, never a value.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from tacit.client.isolation import Confinement, isolate
from tacit.client.preparation import PREPARED_NAME, SPLIT_NAME, PrepareJob, Report
from tacit.core.configuration import from_plain
from tacit.core.errors import DataError, TacitError
from tacit.core.specification import DataSpec, PrivacyUnit, RunSpec, TrainingSpec

if TYPE_CHECKING:
    from tacit.attacks.inclusion import Opening
    from tacit.client.configuration import DataSet
    from tacit.learning.cleaning import CleanRaw
    from tacit.learning.loaders import Raw, Source
    from tacit.learning.prepared import PreparedSets

_MEMORY_BYTES = 64 << 30
_FILE_BYTES = 64 << 30


def prepare_data(job: PrepareJob) -> None:
    """Load, check, encode and split one data set, and write the result into the job's folder.

    Raises:
        DataError: the file does not keep the contract.
        UnavailableError: the file is missing, or the disk is full.
    """
    # pandas loads after confinement, and never in a daemon that imports this module
    from tacit.learning.contract import encode  # noqa: PLC0415
    from tacit.learning.loaders import load_raw  # noqa: PLC0415
    from tacit.learning.prepared import divide, save_prepared  # noqa: PLC0415
    from tacit.learning.splits import save_split, split_records  # noqa: PLC0415

    specification = from_plain(json.loads(job.specification), RunSpec)
    if specification.data is None:
        raise DataError("E-DATA-CONTRACT", "the run declares no data contract")
    data_set = job.data_set
    by_subject = specification.privacy.unit is PrivacyUnit.SUBJECT or (
        specification.audit is not None and bool(data_set.subject)
    )
    if by_subject and not data_set.subject:
        raise DataError(
            "E-DATA-SUBJECT",
            "expected a data set with a subject column: the run's unit is the subject",
            hint="name it in client.toml: subject = ...",
        )
    raw = load_raw(source_of(data_set), specification.data)
    clean = _cleaned(raw, job)
    prepared = encode(
        specification.data, clean.raw, row_numbers=clean.row_numbers, file=data_set.path.name
    )
    training = specification.training or TrainingSpec(learning_rate=1.0)
    split = split_records(
        prepared,
        fraction=training.validation_fraction,
        seed=training.seed,
        subjects=clean.subjects,
    )
    sets = divide(
        prepared,
        split,
        records=data_set.records,
        reserved=data_set.max_canaries,
        subjects=clean.subjects if by_subject else None,
    )
    if job.opening is not None:
        sets = _with_canaries(sets, specification, job.opening, room=data_set.max_canaries)
    Report(
        cleaning=clean.notes, warnings=() if by_subject else _warnings(clean, data_set.subject)
    ).save(job.folder)
    save_split(
        job.folder / SPLIT_NAME,
        split,
        prepared,
        key=job.split_key,
        cleaning_sha256=data_set.clean.digest(),
    )
    save_prepared(job.folder / PREPARED_NAME, sets)


def _with_canaries(
    sets: PreparedSets, specification: RunSpec, opening: Opening, *, room: int
) -> PreparedSets:
    """Return the two sides with the canaries that are in, which are trained on and never held out.

    Raises:
        RefusedError: the room that is declared for them is too small.
    """
    from tacit.learning.mislabelled import (  # noqa: PLC0415 - see prepare_data
        mislabelled_from_ranges,
        planted,
    )
    from tacit.learning.prepared import HeldCanaries  # noqa: PLC0415 - see prepare_data

    design = opening.design
    released = specification.canaries is None or not specification.canaries.twin
    design.verify_room(records=sets.records - room, declared=sets.records, released=released)
    train = sets.train
    if design.mislabelled and specification.data is not None:
        rows = mislabelled_from_ranges(specification.data, design.mislabelled, seed=design.seed)
        train = planted(train, rows, opening.mislabelled)
    held = HeldCanaries(
        seed=design.seed,
        salt=opening.salt,
        included=opening.included,
        directions=design.directions,
    )
    return replace(sets, train=train, canaries=held)


def survey_data(job: PrepareJob) -> dict[str, object]:
    """Load and clean a table; name the columns that a run may see, and count its records.

    Raises:
        DataError: the file is not what client.toml says it is, or cannot be cleaned.
        UnavailableError: the file cannot be opened.
    """
    from tacit.learning.loaders import RawImages, load_raw  # noqa: PLC0415 - see prepare_data

    # a table; no word of this contract is used
    raw = load_raw(source_of(job.data_set), DataSpec(classes=()))
    data_set = job.data_set
    clean = _cleaned(raw, job)
    if isinstance(clean.raw, RawImages):
        raise DataError("E-DATA-FORMAT", "expected a table, got images")
    warnings = () if data_set.subject else _warnings(clean, "")
    Report(cleaning=clean.notes, warnings=warnings).save(job.folder)
    return {"columns": [str(name) for name in clean.raw.columns], "records": len(clean.raw)}


def _cleaned(raw: Raw, job: PrepareJob) -> CleanRaw:
    from tacit.learning.cleaning import clean_raw  # noqa: PLC0415 - see prepare_data

    data_set = job.data_set
    return clean_raw(
        raw, data_set.clean, subject=data_set.subject, key=job.split_key, file=data_set.path.name
    )


def _warnings(clean: CleanRaw, subject: str) -> tuple[str, ...]:
    """Return what the owner should know before single records are taken for people."""
    from tacit.learning.identifiers import identifier_warnings  # noqa: PLC0415 - see prepare_data

    warnings = identifier_warnings(clean.raw)
    if clean.subjects and len(set(clean.subjects)) < len(clean.subjects):
        told = (
            f"the run's unit is the record, and some subjects (column {subject}) have several: "
            "whatever it promises, it promises each record by itself, not a subject's together"
        )
        return (told, *warnings)
    return warnings


def source_of(data_set: DataSet) -> Source:
    """Return where a data set lies and how it is written, as loaders take it."""
    from tacit.learning.loaders import Source  # noqa: PLC0415 - see prepare_data

    return Source(
        path=data_set.path,
        format=data_set.format.value,
        separator=data_set.separator,
        header=data_set.header,
        columns=data_set.columns,
        forbidden=data_set.forbidden,
        named=data_set.named_columns,
    )


def main() -> int:
    """Do the job on standard input, and answer on standard output."""
    job = PrepareJob.parse(sys.stdin.buffer.read())
    isolate(
        Confinement(
            readable=(job.data_set.path,),
            writable=(job.folder,),
            memory_bytes=_MEMORY_BYTES,
            file_bytes=_FILE_BYTES,
        )
    )
    answer: dict[str, object] = {"code": "", "message": "", "problems": [], "hint": ""}
    try:
        if job.specification:
            prepare_data(job)
        else:
            answer |= survey_data(job)
    except TacitError as error:
        problems = list(getattr(error, "problems", ()))
        answer = {"code": error.code, "message": error.message, "problems": problems}
        answer["hint"] = error.hint
    print(json.dumps(answer))  # noqa: T201 - the daemon reads it
    return 0


if __name__ == "__main__":
    sys.exit(main())
