"""Canaries through a federation of the real nodes and the real server code, in one process."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.attacks.canary_report import verify_report
from tacit.audit.report import parse_canaries
from tacit.client.configuration import DataSet
from tacit.client.preparation import PREPARED_NAME
from tacit.core.configuration import from_plain
from tacit.core.errors import RefusedError, TrustError
from tacit.core.events import EventKind
from tacit.core.specification import CanarySpec, RunSpec
from tacit.learning.prepared import load_prepared, save_prepared
from tacit.privacy.dpsgd import engine
from tacit.server.checkpoint import load_checkpoint
from tacit.simulation.federation import simulate
from tacit.simulation.owners import Owner
from tests.attacks.drill import noise_times

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.core.events import Event

pytestmark = pytest.mark.slow

RECORDS, DECLARED = 60, 400
RUN = {
    "name": "small",
    "data": {
        "classes": ["a", "b"],
        "columns": {f"x{i}": {"type": "number", "range": [0.0, 1.0]} for i in range(8)},
        "label": "y",
    },
    "model": {"kind": "mlp", "hidden": [16]},
    "training": {"learning_rate": 0.5, "local_steps": 4, "validation_fraction": 0.2},
    "privacy": {"mode": "record-local", "clip": 0.5, "epsilon": 4.0, "delta": 1e-4},
    "strategy": {"name": "FedAdam", "parameters": {"eta": 0.05}},  # with state of its own
    "participation": {"rounds": 3, "min_clients": 2},
}
CANARIES = CanarySpec(directions=200, mislabelled=60)


def run_with(canaries: CanarySpec | None) -> RunSpec:
    return replace(from_plain(RUN, RunSpec), canaries=canaries)


def owners_of(folder: Path, *, declared: int = DECLARED) -> list[Owner]:
    made = []
    for number, name in enumerate(("north", "south")):
        rng = np.random.default_rng(number)
        rows = rng.random((RECORDS, 8)).round(3)
        path = folder / f"{name}.csv"
        lines = [",".join(map(str, row)) + (",a" if row[0] < 0.5 else ",b") for row in rows]
        header = ",".join(f"x{i}" for i in range(8)) + ",y"
        path.write_text("\n".join([header, *lines]) + "\n")
        data_set = DataSet(path=path, records=declared, max_canaries=declared - RECORDS)
        made.append(Owner(name=name, data_set=data_set))
    return made


def test_a_twin_ends_in_a_report_and_keeps_no_weights(tmp_path: Path) -> None:
    """Two owners open what they committed to before the start; each claim has figures."""
    seen: list[Event] = []
    done = simulate(run_with(CANARIES), owners_of(tmp_path), tmp_path / "run", watch=seen.append)
    report = json.loads(done.folder.canaries.read_bytes())
    manifest = json.loads(done.folder.manifest.read_bytes())
    committed = {
        event.fields["member"]: event.fields["commitment"]
        for event in seen
        if event.kind is EventKind.CANARIES_COMMITTED
    }
    kinds = [event.kind for event in seen]
    assert kinds.index(EventKind.RUN_STARTED) > max(
        place for place, kind in enumerate(kinds) if kind is EventKind.CANARIES_COMMITTED
    )
    assert {owner["member"]: owner["commitment"] for owner in report["owners"]} == committed
    assert sorted(manifest["commitments"].values()) == sorted(committed.values())
    assert sorted(committed) == ["north", "south"]
    for owner in report["owners"]:
        assert owner["claim"]["epsilon"] == pytest.approx(4.0, rel=1e-3)
        assert owner["steps"] == 12
        assert [(kind["kind"], kind["canaries"]) for kind in owner["kinds"]] == [
            ("directions", 200),
            ("mislabelled", 60),
        ]
        for kind in owner["kinds"]:
            assert all(bound["epsilon"] <= bound["ceiling"] for bound in kind["bounds"])
        methods = [bound["method"] for bound in owner["kinds"][0]["bounds"]]
        assert (methods[0], methods[-1]) == ("one-run", "fl-canaries")
    assert report["verdict"] == "inconclusive"
    assert "of at most" in report["line"]
    assert verify_report(parse_canaries(done.folder.canaries.read_bytes())) == 22
    left = [owner["left"] for owner in report["owners"]]
    assert [(each["bits"], each["salt_bytes"], each["sums"]) for each in left] == [
        (260, 32, 200)
    ] * 2
    assert all(each["bytes"] > 200 * 8 for each in left)
    kept = {path.name for path in done.folder.path.rglob("*.safetensors")}
    assert kept == {"initial.safetensors", "000003.safetensors"}
    assert load_checkpoint(done.folder.path / "checkpoints" / "000003.safetensors").arrays == {}
    assert manifest["model_sha256"] is None
    for owner in ("north", "south"):
        folder = tmp_path / "run" / "owners" / owner / "runs"
        assert [path.name for path in folder.rglob("canaries.json")] == []


def test_a_worker_that_starts_again_keeps_the_scores(tmp_path: Path) -> None:
    """In a pool each message meets an app from its stored state: all twelve steps are scored."""
    done = simulate(run_with(CANARIES), owners_of(tmp_path), tmp_path / "run", workers=2)
    report = json.loads(done.folder.canaries.read_bytes())
    assert [owner["steps"] for owner in report["owners"]] == [12, 12]


def test_other_bits_than_were_committed_to_are_refused(tmp_path: Path) -> None:
    """One bit turned round after the last round: the run fails and names the owner."""

    def turn_a_bit(event: Event) -> None:
        if event.kind is EventKind.ROUND_FINISHED and event.fields["round"] == 3:
            (path,) = (tmp_path / "run" / "owners" / "north" / "runs").rglob(PREPARED_NAME)
            sets = load_prepared(path)
            assert sets.canaries is not None
            included = sets.canaries.included.copy()
            included[5] ^= True
            save_prepared(path, replace(sets, canaries=replace(sets.canaries, included=included)))

    owners = owners_of(tmp_path)
    with pytest.raises(TrustError, match="from north the canaries' bits") as caught:
        simulate(run_with(CANARIES), owners, tmp_path / "run", watch=turn_a_bit)
    assert caught.value.code == "E-CANARY-COMMITMENT"
    assert not (tmp_path / "run" / "canaries.json").exists()


def test_a_released_run_keeps_its_model_and_its_report(tmp_path: Path) -> None:
    """Up to 1 % of the declared records go into the run itself; beyond, no owner agrees."""
    canaries = CanarySpec(directions=20, mislabelled=20, twin=False)
    owners = owners_of(tmp_path, declared=4000)
    done = simulate(run_with(canaries), owners, tmp_path / "run")
    report = json.loads(done.folder.canaries.read_bytes())
    manifest = json.loads(done.folder.manifest.read_bytes())
    assert report["run"] == report["canary_run"] == manifest["run_id"]
    assert report["twin"] is False
    assert done.folder.model.exists()
    assert manifest["model_sha256"] is not None
    with pytest.raises(RefusedError) as caught:
        simulate(run_with(canaries), owners_of(tmp_path, declared=3999), tmp_path / "other")
    assert caught.value.code == "E-CANARIES-RELEASED"


def test_without_canaries_nothing_is_said_of_them(tmp_path: Path) -> None:
    """No commitment, no event, no report, no state of the app's."""
    seen: list[Event] = []
    done = simulate(run_with(None), owners_of(tmp_path), tmp_path / "run", watch=seen.append)
    manifest = json.loads(done.folder.manifest.read_bytes())
    assert "commitments" not in manifest
    assert [event for event in seen if "canaries" in event.kind.value] == []
    assert not done.folder.canaries.exists()
    assert done.folder.model.exists()


@pytest.mark.parametrize(
    ("share", "verdicts"),
    [(0.1, {"fail"}), (1.0, {"inconclusive", "no violation found at this power"})],
    ids=["a tenth of the noise", "all of it"],
)
def test_an_engine_that_adds_too_little_noise_fails_its_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, verdicts: set[str]
) -> None:
    """Both owners' ledgers still claim 2: the canaries say that it is not true, and only then."""
    monkeypatch.setattr(engine, "GaussianMechanism", noise_times(share))
    spec = run_with(CanarySpec(directions=300, direction_guesses=150))
    done = simulate(
        replace(spec, privacy=replace(spec.privacy, epsilon=2.0)),
        owners_of(tmp_path),
        tmp_path / "run",
    )
    report = json.loads(done.folder.canaries.read_bytes())
    assert {owner["verdict"] for owner in report["owners"]} <= verdicts
    assert report["verdict"] in verdicts
    claims = [owner["claim"]["epsilon"] for owner in report["owners"]]
    assert claims == pytest.approx([2.0, 2.0], rel=1e-3)
