"""Cleaning is a fixed function of one record: alone, in company, in any order."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.configuration import from_plain, parse_toml
from tacit.core.data_contract import canonical_text
from tacit.core.errors import ConfigError, DataError
from tacit.privacy.cleaning import Cleaned, Cleaning, clean_table, derive_column_key, keyed_hash

KEY = bytes(range(32))
RULES = """
require = ["age"]
exclude = { consent = ["no", "withdrawn"] }
known = { blood = { values = ["A", "B", "0"], other = "" }, ward = { values = ["1"], other = "2" } }
clip = { age = [18, 90], weight = [0, 300] }
bin = { age = [30, 50.5, 70] }
hash = ["patient"]
drop = ["consent"]
"""
COLUMNS = ("age", "weight", "blood", "ward", "consent", "patient")


def rules_of(text: str) -> Cleaning:
    return parse_toml(text, Cleaning, source="clean").value


def table_of(records: list[dict[str, str]]) -> dict[str, list[str]]:
    return {name: [record[name] for record in records] for name in COLUMNS}


def clean(records: list[dict[str, str]], rules: Cleaning) -> Cleaned:
    return clean_table(table_of(records), rules, key=KEY)


def record(**cells: str) -> dict[str, str]:
    usual = {"age": "40", "weight": "70", "blood": "A", "ward": "1", "consent": "yes"}
    return {**usual, "patient": "p1", **cells}


def cleaned_cells(**cells: str) -> dict[str, str]:
    cleaned = clean([record(**cells)], rules_of(RULES))
    return {name: texts[0] for name, texts in cleaned.cells.items()}


def numbers(low: float, high: float) -> st.SearchStrategy[str]:
    words = st.sampled_from(["", "?", "NA"])
    return st.floats(low, high).map(canonical_text) | words


def records() -> st.SearchStrategy[list[dict[str, str]]]:
    one = st.fixed_dictionaries(
        {
            "age": numbers(-200.0, 200.0),
            "weight": numbers(-1e6, 1e6),
            "blood": st.sampled_from(["A", "B", "0", "AB", "", "x"]),
            "ward": st.text(max_size=3),
            "consent": st.sampled_from(["yes", "no", "withdrawn", ""]),
            "patient": st.text(max_size=4),
        }
    )
    return st.lists(one, max_size=12)


@given(table=records(), data=st.data())
def test_a_record_is_cleaned_by_itself(table: list[dict[str, str]], data: st.DataObject) -> None:
    """Each record alone, and the table in any order, come out as the table does."""
    rules = rules_of(RULES)
    whole = clean(table, rules)
    expected = {
        position: {name: texts[place] for name, texts in whole.cells.items()}
        for place, position in enumerate(whole.kept)
    }
    alone = {}
    for position, each in enumerate(table):
        cleaned = clean([each], rules)
        if cleaned.kept:
            alone[position] = {name: texts[0] for name, texts in cleaned.cells.items()}
    assert alone == expected
    order = data.draw(st.permutations(range(len(table))))
    shuffled = clean([table[position] for position in order], rules)
    assert {
        order[position]: {name: texts[place] for name, texts in shuffled.cells.items()}
        for place, position in enumerate(shuffled.kept)
    } == expected


@given(table=records(), extra=records())
def test_one_record_more_is_at_most_one_record_more(
    table: list[dict[str, str]], extra: list[dict[str, str]]
) -> None:
    """The add/remove relation survives cleaning: neighbours stay neighbours."""
    rules = rules_of(RULES)
    one = clean(table, rules)
    more = clean([*table, *extra[:1]], rules)
    assert 0 <= len(more.kept) - len(one.kept) <= len(extra[:1])
    for name, texts in one.cells.items():
        assert more.cells[name][: len(texts)] == texts


@pytest.mark.parametrize(
    ("column", "cell", "expected"),
    [
        ("age", "17.9", "0"),
        ("age", "29.999", "0"),
        ("age", "30", "1"),
        ("age", "50.5", "2"),
        ("age", "1e9", "3"),
        ("weight", "-3", "0"),
        ("weight", "1e3", "300"),
        ("weight", "71.25", "71.25"),
        ("weight", "?", "?"),
        ("blood", "B", "B"),
        ("blood", "AB", ""),
        ("ward", "17", "2"),
        ("ward", "NA", "NA"),
        ("patient", "", ""),
    ],
)
def test_each_step_does_what_it_declares(column: str, cell: str, expected: str) -> None:
    """Bounds, edges, categories and stand-ins; a cell without a value stays without one."""
    assert cleaned_cells(**{column: cell})[column] == expected


def test_a_hash_is_hmac_under_the_columns_own_key() -> None:
    """HMAC-SHA-256 of the cell, keyed by HMAC-SHA-256 of the column: 16 bytes in hex."""
    column_key = hmac.new(KEY, b"tacit cleaning 1\0patient", hashlib.sha256).digest()
    expected = hmac.new(column_key, b"p1", hashlib.sha256).hexdigest()[:32]
    assert cleaned_cells()["patient"] == expected == keyed_hash("p1", column_key=column_key)
    assert derive_column_key("patient", key=KEY) == column_key
    assert derive_column_key("other", key=KEY) != column_key
    assert derive_column_key("patient", key=bytes(32)) != column_key
    with pytest.raises(ValueError, match="32 bytes"):
        derive_column_key("patient", key=b"short")


def test_who_takes_no_part_is_counted_by_the_first_rule() -> None:
    """An excluded word, then a missing value; spellings of one number are one word."""
    table = [record(), record(consent="no"), record(age="?"), record(age="", consent="withdrawn")]
    cleaned = clean(table, rules_of(RULES))
    assert cleaned.kept == (0,)
    assert dict(cleaned.left_out) == {"consent is excluded": 2, "no value in age": 1}
    dropped = clean_table({"ward": ["3", "4"]}, rules_of('exclude.ward = ["3.0"]'), key=KEY)
    assert dropped.kept == (1,)


def test_changes_are_counted_for_the_owner() -> None:
    """How often a rule bit, in cells, by column."""
    table = [record(weight="999"), record(weight="-1", ward="9"), record()]
    assert dict(clean(table, rules_of(RULES)).changed) == {
        "ward: replaced, for they are not known": 1,
        "weight: clipped": 2,
    }


def test_what_cannot_be_cleaned_is_refused_by_row_never_by_value() -> None:
    """All violations at once; records that take no part are not held against the owner."""
    rules = rules_of('known.blood.values = ["A"]\nclip.age = [0, 9]\nexclude.consent = ["no"]')
    hidden = "HIDDEN77"
    table = [
        record(),
        record(age=hidden),
        record(blood=hidden, age="inf"),
        record(age=hidden, consent="no"),
        record(age="1_000"),
    ]
    with pytest.raises(DataError) as caught:
        clean(table, rules)
    assert caught.value.code == "E-CLEAN-CELLS"
    assert caught.value.problems == (
        "age: not a number: 3 records (rows 2, 3, 5; the first is row 1)",
        "blood: not one of the known values: 1 record (row 3; the first is row 1)",
    )
    assert hidden not in str(caught.value) + " ".join(caught.value.problems)


def test_unknown_columns_are_refused_with_the_nearest_at_once() -> None:
    """A misspelt rule would clean nothing: every one is named."""
    rules = rules_of('hash = ["patiant"]\nclip.weihgt = [0, 1]\nrequire = ["age"]')
    with pytest.raises(DataError) as caught:
        clean([record()], rules)
    assert caught.value.code == "E-CLEAN-COLUMNS"
    assert [re.sub(r"; expected.*", "", problem) for problem in caught.value.problems] == [
        "clean.hash: unknown column patiant (did you mean patient?)",
        "clean.clip: unknown column weihgt (did you mean weight?)",
    ]


@pytest.mark.parametrize(
    ("plain", "key"),
    [
        ({"clip": {"age": [5.0, 5.0]}}, "clip.age"),
        ({"bin": {"age": []}}, "bin.age"),
        ({"bin": {"age": [1.0, 1.0]}}, "bin.age"),
        ({"known": {"ward": {"values": []}}}, "known.ward.values"),
        ({"known": {"ward": {"values": ["3", "3.0"]}}}, "known.ward.values"),
        ({"exclude": {"consent": []}}, "exclude.consent"),
        ({"hash": ["patient"], "drop": ["patient"]}, "drop"),
        ({"hsah": ["patient"]}, "hsah"),
    ],
)
def test_rules_that_mean_nothing_are_configuration_errors(plain: dict[str, Any], key: str) -> None:
    """Each is named by its key."""
    with pytest.raises(ConfigError) as caught:
        from_plain(plain, Cleaning)
    assert any(key in problem for problem in caught.value.problems)


def test_the_digest_names_the_rules() -> None:
    """Another value is another digest; another order in the file is not."""
    one = rules_of('clip = { age = [0, 9], weight = [0, 300] }\nhash = ["patient"]')
    same = rules_of('hash = ["patient"]\nclip = { weight = [0, 300], age = [0, 9] }')
    other = rules_of('clip = { age = [0, 10], weight = [0, 300] }\nhash = ["patient"]')
    assert one.digest() == same.digest() != other.digest()


def test_no_rules_keep_every_record() -> None:
    """The default leaves everything as it is."""
    cleaned = clean([record(), record(age="")], Cleaning())
    assert (cleaned.kept, dict(cleaned.cells)) == ((0, 1), {})
