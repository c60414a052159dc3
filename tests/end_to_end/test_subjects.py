"""Runs whose unit is the subject, through real daemons: what the owner is promised and charged."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tacit.core.artifacts import save_arrays
from tacit.core.configuration import parse_toml
from tacit.core.specification import RunSpec
from tacit.learning.models import initial_arrays
from tacit.privacy.evaluation_plan import evaluation_plan
from tacit.privacy.plan import privacy_plan
from tests.end_to_end.federation import Federation, federation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OWNERS = ("north", "south")
HEAVY = {"north": "p1", "south": "p4"}  # of 20 rows; trained on at one ward, held out at the other
RECORDS = 200
RUN = """
name = "wards"
data_set = "wards"
[data]
label = "y"
classes = ["no", "yes"]
columns.a = {{ type = "number", range = [0, 10] }}
columns.b = {{ type = "number", range = [0, 10] }}
[model]
kind = "logistic"
[training]
learning_rate = 1.0
validation_fraction = 0.4
[privacy]
{privacy}
[participation]
rounds = 2
min_clients = 2
{evaluation}
"""
PRIVATE = 'mode = "record-local"\nclip = 1.0\nepsilon = 1.0\ndelta = 1e-3\n'
NOISED = "[evaluation]\nevery = 1\nepsilon = 0.5\n"
BY_SUBJECT = RUN.format(privacy=PRIVATE + 'unit = "subject"\nmost_records = 20', evaluation=NOISED)
BY_RECORD = RUN.format(privacy=PRIVATE, evaluation=NOISED)
OPEN = RUN.format(privacy='mode = "none"', evaluation="")


def rows(owner: str) -> list[tuple[str, str]]:
    """Forty subjects of one to three rows, but one of twenty whose rows lie all over the file."""
    names = [f"p{n}" for n in range(40) for _ in range(1 + n % 3) if f"p{n}" != HEAVY[owner]]
    for place in range(20):
        names.insert(place * len(names) // 20, HEAVY[owner])
    return [
        (name, f"{name},{n % 10},{n * 7 % 10},{'yes' if n % 10 > n * 7 % 10 else 'no'}")
        for n, name in enumerate(names)
    ]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A federation of two wards that name their subjects."""
    with federation(tmp_path_factory.mktemp("subjects")) as made:
        for owner in OWNERS:
            path = made.root / f"{owner}.csv"
            path.write_text("patient,a,b,y\n" + "\n".join(line for _, line in rows(owner)) + "\n")
            declared = f'path = "{path}"\nrecords = {RECORDS}\nsubject = "patient"\n'
            made.add_clients(owner, data=f"[data_sets.wards]\n{declared}")
        yield made


def submitted(played: Federation, text: str) -> tuple[RunSpec, str]:
    run = parse_toml(text, RunSpec, source="run.toml").value
    initial = played.root / "initial.safetensors"
    save_arrays(initial, initial_arrays(run))
    return run, played.submit(run, initial)


def ledger(played: Federation, owner: str) -> dict[str, Any]:
    shown = played.tacit("ledger", "show", "--home", played.root / owner, "--json")
    assert shown.code == 0, shown.err
    value: dict[str, Any] = shown.json
    return value


def subjects_by_side(home: Path, run_id: str, owner: str) -> dict[str, Counter[str]]:
    """Count each subject's rows on either side of the owner's split.json."""
    split = json.loads((home / "runs" / run_id / "split.json").read_text())
    assert split["rule"] == "SHA-256 of seed and subject"
    assert len(split["train"]) + len(split["validation"]) == len(rows(owner))
    names = [name for name, _ in rows(owner)]
    return {
        side: Counter(names[row - 1] for row in split[f"{side}_rows"])
        for side in ("train", "validation")
    }


def test_a_run_per_subject_costs_each_subject_what_the_plan_says(played: Federation) -> None:
    """No subject is cut, every charge is per subject, and both sides cost their plan's epsilon."""
    run, run_id = submitted(played, BY_SUBJECT)
    played.finish(run_id)
    heavy_sides = set()
    for owner in OWNERS:
        sides = subjects_by_side(played.root / owner, run_id, owner)
        assert not set(sides["train"]) & set(sides["validation"])
        assert set(sides["train"]) | set(sides["validation"]) == {name for name, _ in rows(owner)}
        (side,) = (side for side, counts in sides.items() if counts[HEAVY[owner]])
        assert sides[side][HEAVY[owner]] == 20
        heavy_sides.add(side)

        shown = ledger(played, owner)
        (account,) = shown["accounts"]
        plan, evaluation = privacy_plan(run, records=RECORDS), evaluation_plan(run)
        assert account["unit"] == "subject"
        assert account["epsilon_by_side"] == pytest.approx(
            {"train": plan.epsilon, "validation": evaluation.epsilon}, rel=1e-6
        )
        charges = [e["body"]["charge"] for e in shown["entries"] if e["kind"] == "reserve"]
        assert Counter(c["purpose"] for c in charges) == {"training": 2, "metrics": 2}
        assert {(c["unit"], c["split_unit"]) for c in charges} == {("subject", "subject")}
        assert {c["clip"] for c in charges} == {plan.clip, evaluation.query.clip}
    assert heavy_sides == {"train", "validation"}
    alone = played.tacit("client", "compare", run_id, "--home", played.root / "north", "--json")
    assert alone.code == 0, alone.err
    north = subjects_by_side(played.root / "north", run_id, "north")
    assert alone.json["held_out"] == north["validation"].total()
    claims = played.tacit("run", "show", run_id, "--json").json["manifest"]["claims"]
    assert {claim["unit"] for sides in claims.values() for claim in sides.values()} == {"subject"}
    assert claims["north"]["train"]["epsilon"] == pytest.approx(plan.epsilon, rel=1e-6)


def test_a_run_per_record_is_denied_and_its_owner_told_why(played: Federation) -> None:
    """Nobody trains, nothing is charged; the owner reads what to ask for, and may look first."""
    before = ledger(played, "north")
    file = played.root / "record.toml"
    file.write_text(BY_RECORD)
    home = played.root / "north"
    checked = played.tacit("client", "check", "--home", home, "--run", file)
    assert checked.code == 3
    assert "E-POLICY-SUBJECT" in checked.out

    _, run_id = submitted(played, BY_RECORD)
    for owner in OWNERS:
        told = {"verdict": "denied", "code": "E-POLICY-SUBJECT", "member": owner}
        played.wait_for_event(run_id, "node_decided", **told)
    shown = played.tacit("client", "status", run_id, "--home", home, "--json").json
    assert shown["verdict"] == "denied"
    assert "column patient" in shown["reason"]
    assert 'unit = "subject"' in shown["reason"]
    assert ledger(played, "north") == before
    stopped = played.tacit("run", "stop", run_id)
    assert stopped.code == 0, stopped.err


def test_an_open_run_is_warned_of(played: Federation) -> None:
    """Mode none promises nobody anything, and its owner hears what the unit leaves out."""
    _, run_id = submitted(played, OPEN)
    played.finish(run_id)
    words = "some subjects (column patient) have several"
    for owner in OWNERS:
        played.daemons[owner].says(words)
        home = played.root / owner
        shown = played.tacit("client", "status", run_id, "--home", home, "--json").json
        assert any(words in warning for warning in shown["warnings"])
        sides = subjects_by_side(home, run_id, owner)
        assert not set(sides["train"]) & set(sides["validation"])
