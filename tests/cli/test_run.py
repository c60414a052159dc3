"""`tacit run`: what is refused before anybody is asked, and the whole way to a pulled model."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from typing import TYPE_CHECKING

import pytest

from tacit.cli.main import run
from tacit.cli.progress import RoundProgress, line_of
from tacit.cli.run import claims_table, with_names
from tacit.core.artifacts import RunFolder, load_arrays
from tacit.core.configuration import load_config
from tacit.core.events import Event, EventKind
from tacit.core.specification import RunSpec, canonical_json, specification_sha256
from tacit.core.state import open_state
from tacit.learning.resolved import resolved
from tacit.simulation.children import Children, Interruption
from tacit.simulation.owners import heart_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEART = heart_folder() / "run.toml"
DEMO = heart_folder() / "run-distributed.toml"


def changed(tmp_path: Path, *changes: tuple[str, str], of: Path = HEART) -> str:
    text = of.read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path = tmp_path / "run.toml"
    path.write_text(text)
    return str(path)


def test_check_says_what_a_run_costs(capsys: pytest.CaptureFixture[str]) -> None:
    """Epsilon, noise and steps come from the plan that the owner's node derives, too."""
    assert run(["run", "check", str(HEART), "--json", "--records", "303"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["privacy"]["epsilon"] == pytest.approx(1.0, abs=1e-3)
    assert summary["privacy"]["steps"] == 20
    assert summary["model"]["parameters"] == 54
    assert summary["evaluation"]["evaluations"] == 1
    assert summary["evaluation"]["epsilon"] == pytest.approx(1.0, abs=1e-3)


def test_check_says_among_whom_noise_is_shared(capsys: pytest.CaptureFixture[str]) -> None:
    """Members, threshold, colluders, noise beside a trusted server's, and both epsilons are told;
    the size of the model is counted, so that the hash is that of what is submitted."""
    assert run(["run", "check", str(DEMO), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    found = summary["secure_aggregation"]
    assert found["members"] == ["cleveland", "hungarian", "switzerland", "va"]
    assert (found["threshold"], found["colluders"], found["dimension"]) == (3, 1, 54)
    assert found["noise_to_central"] == pytest.approx(math.sqrt(2), rel=1e-3)
    assert found["epsilon_reserved"] == pytest.approx(1.0, abs=1e-3)
    assert found["epsilon_settled"] == pytest.approx(0.790, abs=1e-3)
    sized = resolved(load_config(DEMO, RunSpec).value, None)
    assert summary["specification_sha256"] == specification_sha256(canonical_json(sized)).hex()
    (warning,) = summary["warnings"]
    assert "[E-POLICY-MODE]" in warning
    assert run(["run", "check", str(DEMO)]) == 0
    assert "noise_to_central: 1.414" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([("[model]", '[strategy]\nname = "Krum"\n[model]')], ["Krum looks at single updates"]),
        ([("steps_per_round = 4", "dimension = 55")], ["E-SECAGG-DIMENSION", "54"]),
        ([("steps_per_round = 4", "threshold = 2")], ["threshold: expected 3 to 4"]),
        ([("steps_per_round = 4", "colluders = 2")], ["colluders: expected 1 to 1"]),
    ],
)
def test_check_refuses_what_no_secure_sum_can_be(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[tuple[str, str]],
    words: list[str],
) -> None:
    """Robust strategies are refused by name, and members or sizes that do not fit, by key."""
    assert run(["run", "check", changed(tmp_path, *changes, of=DEMO)]) == 3
    text = capsys.readouterr().err
    for word in words:
        assert word in text


def test_both_runs_of_the_hospitals_have_one_data_contract() -> None:
    """The demo's run and the walk-through's differ in who adds noise to what, not in the data."""
    one, other = (load_config(path, RunSpec).value for path in (HEART, DEMO))
    assert one.data == other.data
    assert (one.model, one.privacy.epsilon) == (other.model, other.privacy.epsilon)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ([("rounds = 20", "round = 20")], 3, ["round", "rounds"]),
        (
            [("[participation]", '[strategy]\nname = "FedAgv"\n[participation]')],
            3,
            ["strategy.name", "did you mean FedAvg?"],
        ),
        ([('mode = "record-local"', 'mode = "central"')], 4, ["E-MODE-NOT-BUILT"]),
        (
            [('mode = "record-local"', 'mode = "record-distributed"')],
            3,
            ["secure_aggregation: missing: name the members"],
        ),
        ([('kind = "logistic"', 'kind = "cnn"')], 3, ["E-MODEL-CONTRACT"]),
        ([("epsilon = 1.0\n", "")], 3, ["exactly one of epsilon and noise_multiplier"]),
    ],
)
def test_check_refuses_with_code_and_remedy(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[tuple[str, str]],
    code: int,
    words: list[str],
) -> None:
    """A run that cannot be is refused at the operator's side, before any owner is asked."""
    assert run(["run", "check", changed(tmp_path, *changes)]) == code
    text = capsys.readouterr().err
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ([("epsilon = 1.0                       # of records", "# of records")], "EXACT-METRICS"),
        ([("epsilon = 1.0", "epsilon = 8.0")], "EPSILON"),
        ([("min_clients = 4", "min_clients = 1")], "COHORT"),
    ],
)
def test_check_warns_of_what_an_owner_refuses_by_default(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[tuple[str, str]],
    code: str,
) -> None:
    """The node's own rules, held against a policy that says nothing, speak before it is asked."""
    file = changed(tmp_path, *changes)
    assert run(["run", "check", file, "--records", "90"]) == 0
    said = capsys.readouterr()
    assert f"[E-POLICY-{code}]" in said.err
    assert "warning" not in said.out
    assert run(["run", "check", file, "--records", "90", "--json"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert f"[E-POLICY-{code}]" in warning


def test_check_has_nothing_against_the_sample(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that an owner's default policy admits brings no warning."""
    assert run(["run", "check", str(HEART), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["warnings"] == []
    assert said.err == ""


def test_check_warns_of_an_app_that_is_not_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mode none, an app that nobody allowed, and one that is not installed, are each named."""
    path = tmp_path / "run.toml"
    path.write_text(
        'name = "mine"\napp = {client = "no_such_package.app:app", server = "json:dumps"}\n'
        'privacy = {mode = "none"}\nparticipation = {rounds = 1}\nresults = {train = {}}\n'
    )
    assert run(["run", "check", str(path), "--json"]) == 0
    text = " ".join(json.loads(capsys.readouterr().out)["warnings"])
    assert "[E-POLICY-MODE]" in text
    assert "[E-POLICY-APP]" in text
    assert "no_such_package" in text
    assert text.count("[E-APP-MISSING]") == 1


def test_events_become_one_line_each() -> None:
    """A round, a failure and the end read as sentences; fields of later versions do not break."""

    def event(kind: EventKind, **fields: object) -> str:
        return line_of(Event(sequence=1, at_s=0.0, kind=kind, fields=fields), 20)

    assert (
        event(
            EventKind.ROUND_FINISHED, round=3, cohort=["a", "b"], metrics={"loss": 0.5}, seconds=1.5
        )
        == "round 3/20: 2 owners, 1.5 s, loss 0.5"
    )
    summed = {
        "round": 3,
        "cohort": ["a", "b", "c", "d"],
        "seconds": 1,
        "survivors": ["a", "b", "c"],
    }
    lost = {"c": "E-NODE-GONE", "d": "E-X"}
    assert event(EventKind.ROUND_FINISHED, **summed, lost={}) == (
        "round 3/20: a sum of 3 of 4 owners, 1 s"
    )
    assert event(EventKind.ROUND_FINISHED, **summed, lost=lost) == (
        "round 3/20: a sum of 3 of 4 owners, lost: c (E-NODE-GONE after its vector had come), "
        "d (E-X), 1 s"
    )
    noised = {"accuracy": 0.8125, "accuracy-interval": [0.75, 0.875], "loss": None}
    noised["loss-interval"] = [0.0, 2.77]
    assert event(EventKind.EVALUATION_FINISHED, round=3, metrics=noised) == (
        "evaluation after round 3, accuracy 0.8125 \N{PLUS-MINUS SIGN} 0.062, "
        "loss between 0 and 2.77 (95 %), too noisy to say"
    )
    assert event(EventKind.REPLY_FAILED, round=3, member="a\x1b[31m", code="E-X").isprintable()
    assert event(EventKind.RUN_FAILED) == "failed: - [-]"
    assert event(EventKind.CHECKPOINT, round=1) == ""


def test_a_round_that_is_told_twice_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    """After a restart of the server its last round may be told again."""
    fields = {"round": 1, "cohort": [], "metrics": {}, "seconds": 1}
    event = Event(sequence=1, at_s=0.0, kind=EventKind.ROUND_FINISHED, fields=fields)
    with RoundProgress(2) as progress:
        progress.show(event)
        progress.show(event)
    assert capsys.readouterr().err.count("round 1/2") == 1


def test_progress_is_shown_on_the_stream_that_the_verb_chose(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Beside a result it goes to standard error; where it is the result, to standard output."""
    event = Event(sequence=1, at_s=0.0, kind=EventKind.RUN_STOPPED, fields={"reason": "enough"})
    with RoundProgress(2) as beside, RoundProgress(2, stream=sys.stdout) as result:
        beside.show(event)
        assert capsys.readouterr() == ("", "stopped: enough\n")
        result.show(event)
        assert capsys.readouterr() == ("stopped: enough\n", "")
    with RoundProgress(2, quiet=True) as quiet:
        quiet.show(event)
        assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    """A stream that passes for a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_waiting_is_a_state_and_not_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar says how many are ready; owners' words are lines, and are not said twice."""
    monkeypatch.setenv("TERM", "xterm")
    reason = "1 of 2 needed clients are ready: 1 approved (ada)"
    events = [
        (EventKind.NODE_DECIDED, {"member": "ada", "verdict": "approved", "code": ""}),
        (EventKind.RUN_WAITING, {"reason": reason, "approved": 1, "needed": 2}),
        (EventKind.RUN_STARTED, {"cohort": ["ada", "va"]}),
        (EventKind.ROUND_FINISHED, {"round": 1, "cohort": ["ada", "va"], "seconds": 1}),
    ]
    terminal = Terminal()
    with RoundProgress(1, stream=terminal) as progress:
        for number, (kind, fields) in enumerate(events, start=1):
            progress.show(Event(sequence=number, at_s=0.0, kind=kind, fields=fields))
    shown = terminal.getvalue()
    assert "ada: approved" in shown
    assert "1 of 2 needed clients are ready " in shown
    assert "(ada)" not in shown
    assert "1/1" in shown[shown.rindex("rounds ") :]


def replies(*members: str) -> list[Event]:
    kinds: list[tuple[EventKind, dict[str, object]]] = [
        (EventKind.ROUND_STARTED, {"round": 1, "cohort": ["ada", "va"]}),
        *((EventKind.REPLY_RECEIVED, {"round": 1, "member": member}) for member in members),
    ]
    return [
        Event(sequence=number, at_s=0.0, kind=kind, fields=fields)
        for number, (kind, fields) in enumerate(kinds, start=1)
    ]


def test_the_first_round_tells_who_has_answered(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the long one, since every owner's worker starts; answers to a second task are not."""
    with RoundProgress(2) as progress:
        for event in replies("va", "ada", "va", "ada"):  # the last two: of an evaluation
            progress.show(event)
    assert capsys.readouterr().err.splitlines() == [
        "round 1: va has answered (1 of 2)",
        "round 1: ada has answered (2 of 2)",
    ]
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with RoundProgress(2, stream=terminal) as progress:
        for event in replies("va"):
            progress.show(event)
    assert "round 1: 1 of 2 answered" in terminal.getvalue()


def test_an_owner_who_is_lost_and_back_is_named() -> None:
    """So is one who is out for good, with the code that says why."""

    def line(kind: EventKind, **fields: object) -> str:
        return line_of(Event(sequence=1, at_s=0.0, kind=kind, fields=fields), 2)

    assert line(EventKind.NODE_LEFT, member="va", code="") == "va: its connection is lost"
    denied = line(EventKind.NODE_LEFT, member="va", code="E-RUN-DENIED")
    assert denied == "va: takes no part any more, since its owner denied the run"
    failed = line(EventKind.REPLY_FAILED, round=2, member="va", code="E-RUN-DENIED")
    assert failed == "round 2: va denied the run"
    assert line(EventKind.NODE_LEFT, member="va", code="E-MEMBER-REVOKED").endswith("REVOKED")
    assert line(EventKind.NODE_JOINED, member="va") == "va: connected again"


def test_rounds_name_their_members() -> None:
    """Node ids stay for scripts; names stand beside them, and an unnamed node keeps its id."""
    entry = {"round": 1, "cohort": [7, 8, 9], "failed": {"8": "E-APP-RAISED"}}
    manifest = {"run_id": "r-1", "members": {"7": "ada", "8": "va"}, "rounds": [entry]}
    named = with_names(manifest)["rounds"][0]
    assert named["cohort"] == [7, 8, 9]
    assert named["members"] == ["ada", "va", "9"]
    assert named["failed"] == {"va": "E-APP-RAISED"}
    assert manifest["rounds"] == [entry]


def test_claims_name_their_members_and_their_entry() -> None:
    """What an owner's ledger says stands beside the owner's name; an unbounded epsilon is said."""
    claim = {
        "unit": "record",
        "relation": "add/remove",
        "epsilon": 0.5,
        "delta": 1e-5,
        "ledger": {"entries": 12},
    }
    sides = {"train": claim, "validation": claim | {"epsilon": None}}
    manifest = {"members": {"7": "ada"}, "rounds": [], "claims": {"7": sides}}
    named = with_names(manifest)
    assert named["claims"] == {"ada": sides}
    assert claims_table(named["claims"]).rows == [
        ("ada", "train", "record", "add/remove", "0.5", "1e-05", 12),
        ("ada", "validation", "record", "add/remove", "none holds", "1e-05", 12),
    ]


@contextlib.contextmanager
def running_server(home: Path) -> Iterator[None]:
    """Serve a federation by a real daemon."""
    from tacit.simulation.demo import answers  # noqa: PLC0415 - grpc

    state = open_state(home, create=False)
    with Children({}, Interruption()) as children:
        arguments = ["server", "start", "--home", str(home)]
        children.start("the server", arguments, home.parent / "server.log")
        children.wait_until("the server", lambda: answers(state), timeout_s=60.0)
        yield


@pytest.mark.slow
def test_a_pull_writes_over_nothing_but_its_own_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's folder and another run's are refused and unharmed; a broken pull goes on."""
    home, local = tmp_path / "s", ["--home", str(tmp_path / "s")]
    monkeypatch.setenv("TACIT_OPERATOR_HOME", str(tmp_path / "o"))
    listen = ["--listen", "127.0.0.1:0", "--enrolment-listen", "127.0.0.1:0"]
    assert run(["server", "init", "--name", "localhost", "--home", str(home), *listen]) == 0
    mine, pulled = tmp_path / "mine", tmp_path / "pulled"
    mine.mkdir()
    (mine / "run.toml").write_text("of somebody else")
    with running_server(home):
        capsys.readouterr()
        for _ in range(2):
            assert run(["run", "submit", str(HEART), *local]) == 0
        first, second = capsys.readouterr().out.split()
        assert run(["run", "pull", first, "--out", str(mine), *local]) == 2
        assert "with other files [E-RUN-FOLDER]" in capsys.readouterr().err
        assert run(["run", "pull", first, "--out", str(pulled), *local]) == 0  # no manifest yet
        (pulled / "run.toml").unlink()  # as if it had broken here
        assert run(["run", "pull", first, "--out", str(pulled), *local]) == 0
        assert run(["run", "stop", first, *local]) == 0
        assert run(["run", "pull", first, "--out", str(pulled), *local]) == 0
        assert run(["run", "pull", second, "--out", str(pulled), *local]) == 2
        assert f"with the run {first} [E-RUN-FOLDER]" in capsys.readouterr().err
    assert [path.name for path in mine.iterdir()] == ["run.toml"]
    assert (mine / "run.toml").read_text() == "of somebody else"
    assert json.loads((pulled / "manifest.json").read_bytes())["run_id"] == first
    assert not list(pulled.glob(".*"))


@pytest.mark.slow
def test_a_run_is_submitted_listed_shown_stopped_and_pulled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator's whole way, over the socket of a server on this machine."""
    home, local = tmp_path / "s", ["--home", str(tmp_path / "s")]
    monkeypatch.setenv("TACIT_OPERATOR_HOME", str(tmp_path / "o"))
    listen = ["--listen", "127.0.0.1:0", "--enrolment-listen", "127.0.0.1:0"]
    assert run(["server", "init", "--name", "localhost", "--home", str(home), *listen]) == 0
    assert run(["run", "list", *local]) == 6  # not running yet
    capsys.readouterr()
    with running_server(home):
        assert run(["run", "submit", str(HEART), *local]) == 0
        said = capsys.readouterr()
        run_id = said.out.strip()
        assert "note: per-example gradients by book-keeping: 1 Linear\n" in said.err
        assert run(["run", "list", "--json", *local]) == 0
        listed = json.loads(capsys.readouterr().out)
        assert [item["run_id"] for item in listed] == [run_id]
        assert run(["run", "show", run_id[:5], "--json", *local]) == 0
        assert json.loads(capsys.readouterr().out)["specification"]["name"] == "heart-disease"
        assert run(["run", "show", "r-zz", *local]) == 2
        assert "E-RUN-UNKNOWN" in capsys.readouterr().err
        assert run(["run", "stop", run_id, "--reason", "a trial", *local]) == 0
        capsys.readouterr()
        assert run(["run", "watch", *local]) == 1
        watched = capsys.readouterr()
        assert "stopped: a trial" in watched.out
        assert "a trial [E-RUN-STOPPED]" in watched.err
        out = tmp_path / "pulled"
        assert run(["run", "pull", run_id, "--out", str(out), *local]) == 0
        assert run(["run", "pull", run_id, "--out", str(out), *local]) == 0  # again: nothing new
    folder = RunFolder(out)
    assert folder.run_toml.read_text() == HEART.read_text()
    assert sum(array.size for array in load_arrays(folder.initial).values()) == 54


@pytest.fixture
def batch_norm_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run whose model is somebody's own, installed here, with a BatchNorm in it."""
    (tmp_path / "normed_model.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Linear(26, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return changed(
        tmp_path, ('kind = "logistic"', 'kind = "module"\nfactory = "normed_model:make"')
    )


REPLACED = "1: BatchNorm replaced by GroupNorm"
GRADIENTS = "per-example gradients by book-keeping: 1 GroupNorm, 2 Linear"


def test_check_and_lint_say_what_is_replaced(
    batch_norm_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose BatchNorm is replaced, and who makes the gradients: as text and as JSON, in both."""
    assert run(["run", "check", batch_norm_run]) == 0
    shown = capsys.readouterr().out
    assert REPLACED in shown
    assert GRADIENTS in shown
    assert run(["run", "check", batch_norm_run, "--json"]) == 0
    model = json.loads(capsys.readouterr().out)["model"]
    assert (model["replaced"], model["gradients"]) == ([REPLACED], [GRADIENTS])
    assert run(["privacy", "lint", batch_norm_run]) == 0
    assert f"note: {REPLACED}\nnote: {GRADIENTS}\n" in capsys.readouterr().err
    assert run(["privacy", "lint", batch_norm_run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [REPLACED, GRADIENTS]


def test_lint_goes_on_without_a_model_that_is_not_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A factory that only the owners have installed is named, and the numbers are shown."""
    swap = ('kind = "logistic"', 'kind = "module"\nfactory = "no_such_package:make"')
    assert run(["privacy", "lint", changed(tmp_path, swap), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (note,) = found["notes"]
    assert "no_such_package:make" in note
    assert "[E-MODEL-FACTORY]" in note
    assert found["epsilon"] == 1.0
