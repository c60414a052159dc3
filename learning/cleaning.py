"""An owner's cleaning rules, applied to what a loader read; and whose record each one is.

The rules and their arithmetic are ``privacy/cleaning.py``'s; this is the side that knows tables.
The subject column is taken out of the table here, after its cells were cleaned, so that it can be
no feature. Notes hold column names and counts; they are for the owner alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tacit.core.errors import DataError
from tacit.core.wording import rows_line
from tacit.learning.contract import canonical_texts
from tacit.learning.loaders import RawImages, places_of
from tacit.privacy.cleaning import clean_table

if TYPE_CHECKING:
    from tacit.core.wording import Places
    from tacit.learning.contract import Int64Array
    from tacit.learning.loaders import Raw
    from tacit.privacy.cleaning import Cleaned, Cleaning


@dataclass(frozen=True, kw_only=True)
class CleanRaw:
    """What is left of a data set for the contract to look at.

    Attributes:
        raw: the records that take part, without subject and dropped columns.
        row_numbers: int64, ``(n,)``: their rows in the owner's file, from 1.
        subjects: whose record each one is; None without a subject column.
        notes: what cleaning did, in counts.
    """

    raw: Raw
    row_numbers: Int64Array
    subjects: tuple[str, ...] | None
    notes: tuple[str, ...]


def clean_raw(raw: Raw, rules: Cleaning, *, subject: str, key: bytes, file: str = "") -> CleanRaw:
    """Apply an owner's rules, and set the subject column apart.

    Args:
        raw: from the loader; forbidden columns are gone already.
        rules: the owner's; see ``privacy/cleaning.py``.
        subject: the column that names whose record it is; empty if there is none.
        key: the owner's, for hashed columns.
        file: its name, for messages.

    Raises:
        DataError: a column is missing or a cell cannot be cleaned (``E-CLEAN-COLUMNS``,
            ``E-CLEAN-CELLS``), or a record has no subject (``E-DATA-SUBJECT``).
        ValueError: there are rules for images.
    """
    if isinstance(raw, RawImages):
        if rules.columns or subject:
            raise ValueError("expected a table, got images")
        rows = np.arange(1, len(raw.pixels) + 1, dtype=np.int64)
        return CleanRaw(raw=raw, row_numbers=rows, subjects=None, notes=())
    named = {name: canonical_texts(raw[name]).tolist() for name in rules.columns if name in raw}
    where = places_of(raw, file)
    cleaned = clean_table(named, rules, key=key, places=where) if rules.columns else None
    kept = np.arange(len(raw)) if cleaned is None else np.array(cleaned.kept, dtype=np.int64)
    frame = raw
    if cleaned is not None:
        frame = raw.iloc[kept].assign(
            **{n: np.array(c, dtype=object) for n, c in cleaned.cells.items()}
        )
    row_numbers = kept.astype(np.int64) + 1
    subjects = None
    if subject:
        subjects = tuple(canonical_texts(frame[subject]).tolist())
        _verify_subjects(subjects, subject, rules, places_of(frame, file))
    frame = frame.drop(columns=[*rules.drop, *([subject] if subject else [])])
    notes = () if cleaned is None else _notes(cleaned, len(raw))
    return CleanRaw(raw=frame, row_numbers=row_numbers, subjects=subjects, notes=notes)


def _verify_subjects(
    subjects: tuple[str, ...], column: str, rules: Cleaning, places: Places
) -> None:
    empty = np.isin(np.array(subjects, dtype=object), ["", *rules.missing])
    if empty.any():
        raise DataError(
            "E-DATA-SUBJECT",
            "expected a subject for each record",
            problems=(rows_line(column, "empty cell", places, np.flatnonzero(empty).tolist()),),
            hint="correct these records, or leave them out: clean.require in client.toml",
        )


def _notes(cleaned: Cleaned, records: int) -> tuple[str, ...]:
    out = records - len(cleaned.kept)
    why = "; ".join(f"{words}: {count}" for words, count in cleaned.left_out.items())
    notes = [f"{out} of {records} records take no part ({why})"] if out else []
    notes += [f"{words}: {count} cells" for words, count in cleaned.changed.items()]
    return tuple(notes)
