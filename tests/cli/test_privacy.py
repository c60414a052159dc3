"""`tacit privacy` shows what the accountant says, and ends as its findings ask."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tacit.cli.main import run
from tacit.privacy.accounting import epsilon_of, noise_for

ROOT = Path(__file__).parents[2]
HEART = ROOT / "simulation" / "data" / "heart" / "run.toml"
PITFALLS = (ROOT / "docs" / "pitfalls.md").read_text()
FAST = "--no-cross-check"
CLEAN = """
dataset_len = 1000
batch_size = 100
epochs = 1
rounds = 1
noise_multiplier = 2.0
delta = 1e-5
poisson_sampling = true
engine_per_round = false
accountant = "pld"
normaliser = "public"
batch_norm = false
weighted_average = false
metrics_released = false
noise_generator = "cryptographic"
noise_seeded = false
"""

Capture = pytest.CaptureFixture[str]


def values_of(capsys: Capture, *arguments: str, code: int = 0) -> dict[str, Any]:
    assert run(["privacy", *arguments, "--json"]) == code
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


def test_options_alone_make_a_plan(capsys: Capture) -> None:
    """A target, a delta and rounds give the noise, without any file."""
    target = ("--epsilon", "2", "--delta", "1e-5", "--rounds", "50", "--local-steps", "2")
    found = values_of(capsys, "plan", *target, FAST)
    assert found["noise_multiplier"] == noise_for(2.0, 1e-5, 1.0, 100)
    assert (found["steps"], found["unit"], found["tier"]) == (100, "record", "reasonable")
    assert found["epsilon"] == pytest.approx(2.0, rel=1e-6)
    assert found["epsilon_prv"] is None


def test_a_run_is_planned_as_its_owners_would_see_it(capsys: Capture) -> None:
    """The file's values count, an option replaces its own, and the budget tells the rounds."""
    found = values_of(capsys, "plan", str(HEART), "--records", "303", FAST)
    assert (found["epsilon"], found["clip"], found["normaliser"]) == (1.0, 0.5, 184.0)
    assert found["noise_deviation"] == pytest.approx(0.5 * found["noise_multiplier"], rel=2e-5)
    more = values_of(capsys, "plan", str(HEART), "--epsilon", "2", "--budget", "1", FAST)
    assert more["epsilon"] == pytest.approx(2.0, rel=1e-6)
    assert more["budget"]["rounds_left"] == more["budget"]["rounds_allowed"] - 20 < 0
    by_round = {row["rounds"]: row["epsilon"] for row in more["rounds"]}
    noise = more["noise_multiplier"]
    assert all(cost == epsilon_of(noise, 1.0, at, 0.001) for at, cost in by_round.items())


def test_the_table_names_noise_steps_and_epsilon(capsys: Capture) -> None:
    """People see the same numbers as scripts, the second opinion included."""
    noise = ("--noise-multiplier", "10", "--delta", "1e-5", "--rounds", "100")
    assert run(["privacy", "plan", *noise]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^epsilon +4\.3772 ", shown, re.MULTILINE)
    assert re.search(r"^  by PRV +4\.3874 ", shown, re.MULTILINE)
    assert re.search(r"^ +100 +100 +4\.37718$", shown, re.MULTILINE)


def test_the_plot_is_a_picture(tmp_path: Path, capsys: Capture) -> None:
    """--plot writes a PNG, and says so if it cannot."""
    plan = ("plan", str(HEART), FAST, "--plot")
    assert run(["privacy", *plan, str(tmp_path / "epsilon.png")]) == 0
    assert (tmp_path / "epsilon.png").read_bytes().startswith(b"\x89PNG")
    assert run(["privacy", *plan, str(tmp_path / "missing" / "epsilon.png")]) == 6
    assert "E-FILE-UNWRITABLE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--epsilon", "1", "--delta", "1e-5"], 2, "--rounds"),
        (["--delta", "1e-5", "--rounds", "3"], 3, "exactly one of epsilon and noise"),
        (["--epsilon", "1", "--delta", "1e-2", "--rounds", "3", "--records", "100"], 4, "DELTA"),
        (["no-such.toml"], 3, "E-CONFIG-MISSING"),
    ],
)
def test_what_makes_no_plan_is_said(
    arguments: list[str], code: int, words: str, capsys: Capture
) -> None:
    """Each failure has the exit code of its family."""
    assert run(["privacy", "plan", *arguments]) == code
    assert words in capsys.readouterr().err


def test_a_run_without_noise_has_no_plan(tmp_path: Path, capsys: Capture) -> None:
    """No table of epsilons is drawn for what has none."""
    text = re.sub(r"(?s)\[privacy\].*?\n\n", '[privacy]\nmode = "none"\n\n', HEART.read_text())
    (tmp_path / "run.toml").write_text(text.replace("epsilon = 1.0 ", "epsilon = 0.0 "))
    assert run(["privacy", "plan", str(tmp_path / "run.toml")]) == 4
    assert "E-NO-NOISE" in capsys.readouterr().err


def test_a_broken_claim_ends_in_exit_code_1(tmp_path: Path, capsys: Capture) -> None:
    """The description in docs/pitfalls.md is one that the linter reads, and refuses to believe."""
    (block,) = re.findall(r"<!-- description -->\n```toml\n(.*?)```", PITFALLS, re.DOTALL)
    path = tmp_path / "training.toml"
    path.write_text(block)
    found = values_of(capsys, "lint", str(path), code=1)
    places = {finding["rule"]: finding["place"] for finding in found["findings"]}
    assert places["engine-per-round"] == "training.toml:9"
    assert set(places) == {
        "sampling",
        "engine-per-round",
        "accountant",
        "normaliser",
        "noise-generator",
        "claim",
    }
    assert (found["broken"], found["unbounded"], found["epsilon"]) == (True, True, None)
    assert all(finding["advice"] and finding["source"] for finding in found["findings"])
    assert run(["privacy", "lint", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "training.toml:9: broken [engine-per-round]" in shown
    assert "Epsilon claimed: 1.12; in fact: none can be shown." in shown


@pytest.mark.parametrize("form", ["toml", "json"])
def test_a_clean_description_passes(tmp_path: Path, capsys: Capture, form: str) -> None:
    """TOML and JSON say the same; what is clean is not called proven."""
    answers = dict(re.findall(r"(\w+) = (.*)", CLEAN))
    as_json = json.dumps({key: json.loads(value) for key, value in answers.items()})
    path = tmp_path / f"training.{form}"
    path.write_text(CLEAN if form == "toml" else as_json)
    assert run(["privacy", "lint", str(path)]) == 0
    assert "which proves nothing" in capsys.readouterr().out
    assert values_of(capsys, "lint", str(path))["epsilon"] == epsilon_of(2.0, 0.1, 10, 1e-5)


def test_our_own_run_is_linted(capsys: Capture) -> None:
    """The demo's run has one note: retries."""
    found = values_of(capsys, "lint", str(HEART), "--records", "303")
    assert [finding["rule"] for finding in found["findings"]] == ["retries"]
    assert (found["broken"], found["epsilon"]) == (False, 1.0)


def test_source_is_read_by_patterns(tmp_path: Path, capsys: Capture) -> None:
    """A .py file needs no numbers, and gets none."""
    path = tmp_path / "train.py"
    path.write_text("import opacus\nengine.make_private(poisson_sampling=False)\n")
    found = values_of(capsys, "lint", str(path), code=1)
    assert found["findings"][0]["place"] == "train.py:2"
    assert (found["claimed_epsilon"], found["epsilon"], found["unbounded"]) == (None, None, False)


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", "{"), ("a.json", "[]"), ("a.toml", "= 1"), ("a.py", "import x")]
)
def test_what_cannot_be_linted_is_an_error(
    tmp_path: Path, capsys: Capture, name: str, text: str
) -> None:
    """A file that says nothing is never clean."""
    (tmp_path / name).write_text(text)
    assert run(["privacy", "lint", str(tmp_path / name)]) == 3
    assert "error: expected" in capsys.readouterr().err.replace("a.toml has 1 problem", "expected")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", CLEAN.replace("rounds = 1\n", "")),
        ("a.toml", CLEAN + "batchnorm = true\n"),
        ("a.json", '{"rounds": 1}'),
    ],
)
def test_a_wrong_description_is_told_how_a_right_one_looks(
    tmp_path: Path, capsys: Capture, name: str, text: str
) -> None:
    """The hint leads to a description, not to `config check`, which knows other files."""
    (tmp_path / name).write_text(text)
    assert run(["privacy", "lint", str(tmp_path / name)]) == 3
    said = capsys.readouterr().err
    assert "docs/pitfalls.md" in said
    assert "config check" not in said


def test_a_plan_tells_what_evaluation_costs(tmp_path: Path, capsys: Capture) -> None:
    """`privacy plan` says of a run's evaluation what `run check` says, and of an exact one too."""
    evaluation = values_of(capsys, "plan", str(HEART), FAST)["evaluation"]
    assert evaluation["epsilon"] == pytest.approx(1.0, abs=1e-3)
    assert run(["run", "check", str(HEART), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluation"] == evaluation
    assert run(["privacy", "plan", str(HEART), FAST]) == 0
    assert "evaluation epsilon" in capsys.readouterr().out
    text = HEART.read_text()
    at = text.index("[evaluation]")
    exact = text[:at] + text[at:].replace("epsilon = 1.0 ", "epsilon = 0.0 ", 1)
    (tmp_path / "run.toml").write_text(exact)
    assert run(["privacy", "plan", str(tmp_path / "run.toml"), FAST]) == 0
    assert "no epsilon holds of each record that is held out" in capsys.readouterr().out
