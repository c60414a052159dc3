"""`tacit simulate --owner`: every owner of a trial holds one client.toml."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tacit.cli.main import run
from tacit.client.ledger_view import open_to_read
from tacit.core.specification import PrivacyUnit
from tacit.privacy.ledger_entries import Reserve, Unit

if TYPE_CHECKING:
    from pathlib import Path

RUN = """
name = "wards"
data_set = "wards"
[data]
label = "y"
classes = ["no", "yes"]
columns.a = { type = "number", range = [0, 10] }
[model]
kind = "logistic"
[training]
learning_rate = 1.0
validation_fraction = 0.4
[privacy]
mode = "record-local"
unit = "subject"
most_records = 20
clip = 1.0
epsilon = 1.0
delta = 1e-3
[participation]
rounds = 2
min_clients = 2
"""
RULES = """
[data_sets.wards]
path = "own.csv"
records = 300
budget = 1.5
subject = "patient"
forbidden = ["ssn"]
clean.exclude = { consent = ["no"] }
clean.hash = ["patient"]
clean.drop = ["consent"]
"""
OWNER = (
    RULES
    + """
[policy]
max_epsilon_per_run = 1.2
approve = "ask"
"""
)


def rows() -> list[dict[str, str]]:
    """Thirty patients of a few rows each, one of twenty; every seventh row says no."""
    names = [f"p{n}" for n in range(30) for _ in range(20 if n == 0 else 1 + n % 4)]
    names = [names[place * 37 % len(names)] for place in range(len(names))]
    return [
        {
            "patient": name,
            "ssn": str(770000 + n),
            "consent": "no" if n % 7 == 3 else "yes",
            "a": str(n % 10),
            "y": "yes" if n % 10 > 4 else "no",
        }
        for n, name in enumerate(names)
    ]


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    """A folder with a run, an owner's client.toml and their records."""
    (tmp_path / "run.toml").write_text(RUN)
    (tmp_path / "client.toml").write_text(OWNER)
    lines = [",".join(row.values()) for row in rows()]
    (tmp_path / "own.csv").write_text("\n".join([",".join(rows()[0]), *lines]) + "\n")
    return tmp_path


def simulate(trial: Path, *options: str, owner: str = "client.toml") -> int:
    fixed = ["--owner", str(trial / owner), "--out", str(trial / "out")]
    return run(["simulate", str(trial / "run.toml"), *fixed, *options])


def sides(trial: Path, owner: str) -> dict[str, list[dict[str, str]]]:
    """Return the records on either side of an owner's split, from their share of the file."""
    share = (trial / "out" / "shares" / f"{owner}.csv").read_text().splitlines()
    names = share[0].split(",")
    (split,) = (trial / "out" / "owners" / owner / "runs").glob("*/split.json")
    document = json.loads(split.read_text())
    return {
        side: [
            dict(zip(names, share[row].split(","), strict=True)) for row in document[f"{side}_rows"]
        ]
        for side in ("train", "validation")
    }


def test_every_owner_keeps_the_rules_of_client_toml(
    trial: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Subjects stay whole, at one owner and on one side; no "no" takes part; charges are theirs."""
    assert simulate(trial, "--clients", "3", "--json") == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    seen: dict[str, list[str]] = {}
    records = 0
    for owner in ("owner-1", "owner-2", "owner-3"):
        both = sides(trial, owner)
        for side, there in both.items():
            records += len(there)
            for row in there:
                assert row["consent"] == "yes"
                seen.setdefault(row["patient"], []).append(f"{owner} {side}")
        (federated,) = (r for r in result["comparison"]["rows"] if r["kind"] == "federated")
        # an owner of whom nothing was held out has no row
        held_out = federated["by_owner"].get(owner, {"examples": 0})["examples"]
        assert held_out == len(both["validation"])  # the table's records, whatever is hashed
        with open_to_read(trial / "out" / "owners" / owner) as ledger:
            account = ledger.account("wards")
            charges = [e.body.charge for e in ledger.entries() if isinstance(e.body, Reserve)]
        assert (account.terms.unit, account.budget) == (Unit.SUBJECT, 1.5)
        assert {charge.unit.value for charge in charges} == {PrivacyUnit.SUBJECT.value}
    assert all(len(set(places)) == 1 for places in seen.values())
    assert len(seen["p0"]) > 15
    assert records == sum(row["consent"] == "yes" for row in rows())


def test_the_declared_records_are_shared_out(trial: Path) -> None:
    """Each owner's public bound is their part of it, so that noise weighs as in one of their own.

    Given with --data, the file takes the place of the owner's path, and nothing else of the rules.
    """
    given = trial / "given.csv"
    (trial / "own.csv").rename(given)
    assert simulate(trial, "--clients", "2", "--data", str(given)) == 0
    bounds = []
    for owner in ("owner-1", "owner-2"):
        share = (trial / "out" / "shares" / f"{owner}.csv").read_text().splitlines()[1:]
        with open_to_read(trial / "out" / "owners" / owner) as ledger:
            bounds.append((ledger.account("wards").terms.records, len(share)))
    assert sum(rows_there for _, rows_there in bounds) == len(rows())
    for declared, rows_there in bounds:
        assert declared == -(-300 * rows_there // len(rows()))


def test_what_the_owner_has_against_a_run_is_said_at_once(
    trial: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every rule that denies it, and the ledger, in one list; nothing is left behind."""
    greedy = RUN.replace("epsilon = 1.0", "epsilon = 2.0").replace(
        "columns.a", 'columns.ssn = { type = "number", range = [0, 1e7] }\ncolumns.a'
    )
    greedy = greedy.replace('unit = "subject"\nmost_records = 20\n', "")
    (trial / "run.toml").write_text(greedy)
    assert simulate(trial, "--clients", "2") == 4
    said = capsys.readouterr().err
    codes = ("E-POLICY-COLUMN", "E-POLICY-SUBJECT", "E-POLICY-EPSILON", "E-LEDGER-UNIT")
    assert all(f"[{code}]" in said for code in codes), said
    assert "client.toml does not admit the run" in said
    assert not (trial / "out").exists()


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (
            OWNER.replace("subject =", "subjekt =") + "min_client = 3\n",
            3,
            ("did you mean subject?", "did you mean min_clients?"),
        ),
        (OWNER.replace("sets.wards", "sets.heart"), 4, ("E-POLICY-DATA-SET",)),
        (OWNER.replace("budget = 1.5", "budget = 0.5"), 4, ("E-LEDGER-BUDGET",)),
        (OWNER.replace("records = 300", "records = 40"), 3, ("E-DATA-MORE-THAN-DECLARED",)),
        (OWNER.replace('"ssn"', '"sssn"'), 3, ("E-CLEAN-COLUMNS", "did you mean ssn?")),
        (OWNER + "min_clients = 3\n", 4, ("E-POLICY-COHORT",)),
    ],
)
def test_a_client_toml_that_does_not_fit_is_refused_before_anybody_trains(
    trial: Path, capsys: pytest.CaptureFixture[str], text: str, code: int, words: tuple[str, ...]
) -> None:
    """Wrong keys, another data set, no room, more records than declared: said, nothing is left."""
    (trial / "client.toml").write_text(text)
    assert simulate(trial, "--clients", "2") == code
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not (trial / "out").exists()


def test_there_are_no_more_owners_than_subjects(
    trial: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A subject is never cut to serve one more owner."""
    assert simulate(trial, "--clients", "31") == 2
    assert "1 to 30 clients, as many as there are subjects" in capsys.readouterr().err


def test_without_rules_a_run_per_subject_says_what_to_give(
    trial: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The subject column is the owner's to name: the hint is the option."""
    data = ["--data", str(trial / "own.csv"), "--clients", "2", "--out", str(trial / "out")]
    assert run(["simulate", str(trial / "run.toml"), *data]) == 4
    said = capsys.readouterr().err
    assert "E-POLICY-SUBJECT" in said
    assert "--owner" in said
