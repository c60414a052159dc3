"""Columns that look like identifiers: what owners should hear before rows are taken for people.

Trusts: nothing. Promises: a warning holds a column's name and the reason, never a value; it is for
the owner's eyes, and decides nothing.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import pandas as pd

from tacit.core.data_contract import MISSING_WORDS, parse_number
from tacit.learning.contract import canonical_texts
from tacit.learning.loaders import RawImages

if TYPE_CHECKING:
    from typing import Any

    from tacit.learning.loaders import Raw

_MIN_VALUES = 100  # fewer whole numbers are often all different by chance
_NEARLY_UNIQUE = 0.95
_WHOLE = re.compile(r"[+-]?\d+")
_WORD = re.compile(r"[a-z]+|[A-Z]+(?![a-z])|[A-Z][a-z]+")
_NAMES = (
    *("customer", "iban", "member", "mrn", "nino", "passport", "patient", "person", "ssn"),
    *("subject", "user", "address", "email", "mail", "phone", "telephone"),
    *("firstname", "fullname", "lastname", "name", "surname"),
    *("guid", "id", "identifier", "ids", "patientid", "personid", "pid", "subjectid", "uid"),
    *("userid", "uuid"),
)


def identifier_warnings(raw: Raw) -> tuple[str, ...]:
    """Say which columns look like identifiers: by their name, or since nearly every record differs.

    A run whose unit is the record protects one row of a person who may have several. Whole numbers
    and texts are looked at; a measured number with decimals is unique without naming anybody.

    Args:
        raw: cleaned, without the subject column and without forbidden and dropped ones.
    """
    if isinstance(raw, RawImages):
        return ()
    reasons = {str(name): _reason(str(name), raw[name]) for name in raw.columns}
    return tuple(
        f"column {name} looks like an identifier ({reason}), and a run whose unit is the record "
        f'protects one row of a person: set subject = "{name}" in client.toml if it says whose '
        "record it is, or list it as forbidden"
        for name, reason in reasons.items()
        if reason
    )


def _reason(name: str, column: pd.Series[Any]) -> str:
    words = [word.lower() for word in _WORD.findall(name)]
    if words and words[-1] in _NAMES:
        return "by its name"
    return "nearly every record has another value" if _is_nearly_unique(column) else ""


def _is_nearly_unique(column: pd.Series[Any]) -> bool:
    uniques = column.dropna().unique()
    if len(uniques) < max(_MIN_VALUES, _NEARLY_UNIQUE * column.count()):
        return False
    texts = [text for text in canonical_texts(pd.Series(uniques)) if text not in MISSING_WORDS]
    numbers = [text for text in texts if not math.isnan(parse_number(text))]
    return len(numbers) < len(texts) or all(_WHOLE.fullmatch(text) for text in numbers)
