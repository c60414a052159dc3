"""An app that is out to get its owner's rows past the node gets nothing past it.

``apps/hostile_app.py`` plays one trick a round at one owner of two; the other owner is honest. In
mode none an app may say with its weights what it likes, and nothing else; under client-local its
weights leave clipped and noised, and a failure leaves as one code, at the price of an update.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.core.artifacts import load_arrays
from tacit.core.specification import AppSpec, PrivacyMode, PrivacySpec, RunSpec
from tests.end_to_end.apps.hostile_app import TRICKS
from tests.end_to_end.federation import Federation, eventually, federation
from tests.end_to_end.runs import initial_arrays, initial_file, quick_spec, with_clients

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

TEXT, NUMBER = "Rosalind", 8675.309
CALL_LIMIT_S = 6
MAX_UPDATE_BYTES = 1 << 20

# What the owner is told of each trick: outcome and code.
EXPECTED = {
    "honest": ("released", ""),
    "two answers": ("released", ""),
    "the second answer": ("failed", "E-WORKER-REPLY"),
    "death": ("failed", "E-APP-DIED"),
    "sleep": ("failed", "E-APP-HUNG"),
    "an honest reply of the next process": ("released", ""),
    "rows as an array": ("refused", "E-REPLY-SCHEMA"),
    "rows as names": ("refused", "E-REPLY-SCHEMA"),
    "rows as a metric": ("refused", "E-REPLY-METRIC"),
    "rows as the weight": ("refused", "E-REPLY-METRIC"),
    "rows as a list of weights": ("refused", "E-REPLY-METRIC"),
    "an extra record": ("refused", "E-REPLY-SCHEMA"),
    "an extra record in bulk": ("refused", "E-REPLY-SCHEMA"),
    "an extra model": ("refused", "E-REPLY-SCHEMA"),
    "a huge reply": ("refused", "E-POLICY-SIZE"),
    "bits of a NaN": ("refused", "E-REPLY-NOT-FINITE"),
    "a wider type": ("refused", "E-REPLY-DTYPE"),
    "a longer array": ("refused", "E-REPLY-SHAPE"),
    "an exception": ("failed", "E-APP-RAISED"),
    "an error's text": ("failed", "E-APP-FAILED"),
    "an error's code": ("failed", "E-APP-FAILED"),
    "an error of Tacit's": ("failed", "E-APP-FAILED"),
    "state": ("released", ""),
    "kept memory": ("released", ""),
    "keys": ("failed", "E-APP-RAISED"),
    "ledger": ("failed", "E-APP-RAISED"),
    "outbox": ("failed", "E-APP-RAISED"),
    "socket": ("failed", "E-APP-RAISED"),
    "daemon": ("failed", "E-APP-RAISED"),
    "a child": ("released", ""),
}
OPEN = PrivacySpec(mode=PrivacyMode.NONE)
LOCAL = PrivacySpec(mode=PrivacyMode.CLIENT_LOCAL, clip=1.0, noise_multiplier=20.0, delta=1e-3)
MODES = {"none": OPEN, "client-local": LOCAL}


@dataclass(frozen=True, kw_only=True)
class Played:
    """A run in which every trick was played, and what both sides saw of it.

    Attributes:
        run_id: of the run.
        status: what `tacit client status --json` said at the hostile app's owner.
        told: the code that the operator saw, by round.
        manifest: of the run's folder.
        log: what the hostile app printed.
    """

    run_id: str
    status: dict[str, Any]
    told: dict[int, str]
    manifest: dict[str, Any]
    log: str

    def line(self, trick: str) -> dict[str, Any]:
        """Return the line of the owner's decision log on a trick."""
        lines = [line for line in self.status["decisions"] if line["message_id"]]
        mine = [line for line in reversed(lines) if line["run_id"] == self.run_id]
        assert len(mine) == len(TRICKS)
        return dict(mine[list(TRICKS).index(trick)])


def policy_of(made: Federation, name: str, *, tells: bool) -> str:
    """Return an owner's policy: limits, and what the app is told."""
    home = made.root / name
    rows = home / "rows.csv"
    config = {"home": str(home), "rows": str(rows), "server": made.address} if tells else {}
    apps = ("hostile_app:app", "hostile_app:alone") if tells else ("hostile_app:app",)
    inline = ", ".join(f'{key} = "{value}"' for key, value in config.items())
    limits = f"message_timeout_s = {CALL_LIMIT_S}\nmax_update_bytes = {MAX_UPDATE_BYTES}\n"
    return limits + "".join(
        f'[policy.apps."{app}"]\nreadable = ["{rows}"]\nnode_config = {{ {inline} }}\n'
        for app in apps
    )


DATA = '[data_sets.default]\npath = "rows.csv"\nrecords = 300\nbudget = 1000\n\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("hostile"), start=False) as made:
        made.start_server()
        for name in ("ada", "bad"):
            made.join(name, policy=policy_of(made, name, tells=name == "bad"), data=DATA)
            (made.root / name / "rows.csv").write_text(f"{TEXT},{NUMBER}")
            made.start(name, "client", "start", "--home", made.root / name)
        for name in ("ada", "bad"):
            made.daemons[name].says("connected")
        yield made


def spec_of(mode: str, app: str = "hostile_app:app", **privacy: Any) -> RunSpec:
    """Return a run with as many rounds as there are tricks."""
    run = with_clients(quick_spec(), 1, rounds=len(TRICKS))
    return replace(run, app=AppSpec(client=app), privacy=replace(MODES[mode], **privacy))


@pytest.fixture(scope="module", params=MODES)
def played(made: Federation, request: pytest.FixtureRequest) -> Played:
    run_id = made.submit(spec_of(request.param), initial_file(made.root))
    made.finish(run_id)
    status = made.tacit("client", "status", "--home", made.root / "bad", "--json").json
    failures = [fields for kind, fields in made.events(run_id) if kind == "reply_failed"]
    assert {each["member"] for each in failures} == {"bad"}
    return Played(
        run_id=run_id,
        status=status,
        told={each["round"]: each["code"] for each in failures},
        manifest=json.loads(made.pull(run_id).manifest.read_bytes()),
        log=(made.root / "bad" / "logs" / f"{run_id}.log").read_text(),
    )


def mode_of(made: Federation, played: Played) -> str:
    (run,) = [each for each in played.status["runs"] if each["run_id"] == played.run_id]
    assert (run["app"], made.root.exists()) == ("hostile_app:app", True)
    return str(run["mode"])


@pytest.mark.parametrize("trick", TRICKS)
def test_each_trick_is_logged_and_shown_to_the_owner(played: Played, trick: str) -> None:
    """The status names outcome, code and reason; what passed is an honest reply, and says so."""
    line = played.line(trick)
    assert (line["outcome"], line["code"]) == EXPECTED[trick]
    assert bool(line["reason"]) == (line["outcome"] != "released")
    assert TEXT not in line["reason"]


def test_the_server_learns_a_code_only(made: Federation, played: Played) -> None:
    """In mode none it is the owner's; under client-local every failure looks the same."""
    concealed = mode_of(made, played) == "client-local"
    expected = {
        number: "E-APP-FAILED" if concealed else code
        for number, (outcome, code) in enumerate(EXPECTED.values(), 1)
        if outcome != "released"
    }
    assert played.told == expected
    node = str(made.node_id("bad"))
    assert [entry["failed"] for entry in played.manifest["rounds"]] == [
        {node: expected[number]} if number in expected else {}
        for number in range(1, len(TRICKS) + 1)
    ]


def test_no_row_is_anywhere_at_the_server(made: Federation, played: Played) -> None:
    """Neither as bytes of a number nor as text, in journal, spool, log or the run's folder."""
    assert played.told
    assert found_in(made.root / "bad" / "rows.csv")  # what is looked for can be found
    assert not [path for path in files_of(made.home) if found_in(path)]
    assert not [path for path in files_of(made.root / "pulled") if found_in(path)]


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def found_in(path: Path) -> bool:
    data = path.read_bytes()
    marks = (TEXT.encode(), TEXT.upper().encode(), str(int(NUMBER)).encode() + b".")
    numbers = (struct.pack("<f", NUMBER), struct.pack("<d", NUMBER))
    return any(mark in data for mark in (*marks, *numbers))


def test_thefts_were_tried_and_none_succeeded(played: Played) -> None:
    """Keys, ledger, outbox, sockets and the daemon's process are out of a worker's reach."""
    tried = {line.partition(":")[0] for line in played.log.splitlines() if "tried, stolen" in line}
    assert tried == {"keys", "ledger", "outbox", "socket", "daemon"}
    assert played.log.count("stolen []") == len(tried)
    assert "a child stays" in played.log
    assert "has left" not in played.log


def test_nothing_of_the_app_outlives_the_run(made: Federation, played: Played) -> None:
    """A child that tried to leave and ignores SIGTERM is gone with its worker."""
    eventually("its workers to end", lambda: not made.processes(played.run_id))


def test_failures_under_client_local_cost_as_much_as_updates(
    made: Federation, played: Played
) -> None:
    """One charge a round at the owner, whatever came of it; mode none has no account."""
    export = made.root / f"ledger-{played.run_id}.jsonl"
    done = made.tacit("ledger", "export", "--home", made.root / "bad", "--out", export)
    assert done.code == 0, done
    charged = export.read_text().count(f'"{played.run_id}.')
    assert charged == (len(TRICKS) if mode_of(made, played) == "client-local" else 0)


def test_a_huge_update_leaves_as_c_and_noise_of_the_declared_deviation(made: Federation) -> None:
    """Of a million on every weight, written into the received memory, length C is left."""
    spec = spec_of("client-local", "hostile_app:alone", noise_multiplier=0.2)
    spec = with_clients(spec, 1, rounds=1)
    model = made.finish(made.submit(spec, initial_file(made.root)))
    change = np.concatenate(
        [(model[name] - array).ravel() for name, array in initial_arrays().items()]
    ).astype(np.float64)
    deviation = 2 * 0.2  # 2C z
    direction = np.full(change.size, change.size**-0.5)
    along = float(change @ direction)
    assert abs(along - 1.0) < 6 * deviation
    rest = change - along * direction
    assert np.sqrt(rest @ rest / (change.size - 1)) == pytest.approx(deviation, rel=0.3)


def test_the_owner_sees_refusals_without_asking_for_json(made: Federation, played: Played) -> None:
    """The table for people names the latest ones, each with code and reason."""
    shown = made.tacit("client", "status", "--home", made.root / "bad").out
    assert played.told
    latest = [code for _, code in list(EXPECTED.values())[-20:] if code]
    assert len(latest) > 10
    assert all(code in shown for code in latest)


def test_the_model_is_finite_after_all_tricks(made: Federation, played: Played) -> None:
    """The positive control: honest replies of both owners made every round."""
    folder = made.pull(played.run_id)
    weights = load_arrays(folder.model)
    assert all(np.isfinite(array).all() for array in weights.values())
    assert not [entry for entry in played.manifest["rounds"][:1] if entry["failed"]]
