"""`tacit privacy plan` shows what shared noise costs, before anybody is asked."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tacit.cli.main import run

HEART = Path(__file__).parents[2] / "simulation" / "data" / "heart" / "run.toml"
DEMO = HEART.with_name("run-distributed.toml")
HOSPITALS = '[secure_aggregation]\nmembers = ["a-1", "b-1", "c-1", "d-1"]\n\n[participation]'
NO_EVALUATION = (
    ("every = 20 ", "every = 0 "),
    ("epsilon = 1.0                       # of records", "#"),
)
OPTIONS = ("--epsilon", "1", "--delta", "1e-5", "--rounds", "150", "--members", "10")

Capture = pytest.CaptureFixture[str]


def values_of(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert run(["privacy", "plan", *arguments, "--json"]) == 0
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


def shared(tmp_path: Path, *changes: tuple[str, str], mode: str = "record-distributed") -> str:
    """Return the demo's run with noise that its four hospitals share."""
    text = HEART.read_text().replace("normaliser = 184.0", "normaliser = 736.0")
    text = text.replace('mode = "record-local"', f'mode = "{mode}"')
    for before, after in (("[participation]", HOSPITALS), *changes):
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "run.toml").write_text(text)
    return str(tmp_path / "run.toml")


def test_options_alone_make_a_plan(capsys: Capture) -> None:
    """Members, threshold and the size of a sum give noise, scale, D2 and epsilon, twice."""
    found = values_of(capsys, *OPTIONS, "--parameters", "105", "--records", "5000")
    assert (found["mode"], found["members"], found["threshold"]) == ("record-distributed", 10, 7)
    assert (found["colluders"], found["parameters"], found["bound"]) == (1, 105, 5000.0)
    assert found["epsilon"] == pytest.approx(1.0, rel=2e-4)
    assert found["epsilon_settled"] < 0.81
    assert found["sensitivity"] == pytest.approx(found["scale"] + math.sqrt(105), rel=2e-5)
    expected = math.sqrt(10 / 6) * found["rounding_overhead"]
    assert found["central_ratio"] == pytest.approx(expected)
    local = found["noise_multiplier"] * found["sensitivity"] / math.sqrt(6)
    assert found["local_deviation"] == pytest.approx(local)
    higher = values_of(capsys, *OPTIONS, "--parameters", "105", "--threshold", "9")
    assert higher["threshold"] == 9
    assert higher["central_ratio"] < found["central_ratio"]


def test_a_run_is_planned_for_its_model(tmp_path: Path, capsys: Capture) -> None:
    """The file's members count, and its model; an option plans for more of them."""
    path = shared(tmp_path)
    found = values_of(capsys, path, "--records", "303")
    assert (found["members"], found["parameters"], found["steps"]) == (4, 54, 20)
    assert found["central_ratio"] == pytest.approx(math.sqrt(2), rel=1e-3)
    more = values_of(capsys, path, "--members", "20", "--threshold", "20")
    assert (more["members"], more["threshold"]) == (20, 20)
    assert more["central_ratio"] < found["central_ratio"]


def test_whole_updates_have_a_plan(tmp_path: Path, capsys: Capture) -> None:
    """By client R is the clip, and an update is replaced by any other."""
    changes = (("normaliser = 736.0", ""), *NO_EVALUATION)
    path = shared(tmp_path, *changes, mode="client-distributed")
    found = values_of(capsys, path)
    assert (found["unit"], found["relation"], found["bound"]) == ("client", "replace-one", 0.5)
    assert found["noise_deviation"] > found["noise_multiplier"] * 2 * 0.5


def test_people_see_the_same(capsys: Capture) -> None:
    """The table names both epsilons, and what the noise is against a trusted server's."""
    assert run(["privacy", "plan", *OPTIONS, "--parameters", "105"]) == 0
    shown = capsys.readouterr()
    assert re.search(r"^epsilon +(1|0\.9999\d*) .*at the reserve", shown.out, re.MULTILINE)
    assert re.search(r"^  if all stay +0\.802", shown.out, re.MULTILINE)
    assert re.search(r"^  against central +1\.29", shown.out, re.MULTILINE)
    assert shown.err == ""


def test_the_demos_run_says_what_its_evaluation_costs(capsys: Capture) -> None:
    """Beside the sums stand the metrics, which are noised by each owner on other records."""
    found = values_of(capsys, str(DEMO))
    assert (found["parameters"], found["steps"]) == (54, 20)
    assert found["evaluation"]["epsilon"] == pytest.approx(1.0, abs=1e-3)
    assert run(["privacy", "plan", str(DEMO)]) == 0
    assert "evaluation epsilon" in capsys.readouterr().out


def test_a_run_can_be_linted(tmp_path: Path, capsys: Capture) -> None:
    """Epsilon of shared noise is derived for the run's model; exact metrics break the claim."""
    assert run(["privacy", "lint", str(DEMO), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["epsilon"] == pytest.approx(1.0, abs=1e-3)
    assert not found["broken"]
    exact = shared(tmp_path, (NO_EVALUATION[1]))
    assert run(["privacy", "lint", exact, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["unbounded"]


def test_a_run_by_client_without_evaluation_can_be_linted(tmp_path: Path, capsys: Capture) -> None:
    """The unit is the owner's whole data set."""
    changes = (("normaliser = 736.0", ""), *NO_EVALUATION)
    path = shared(tmp_path, *changes, mode="client-distributed")
    assert run(["privacy", "lint", path]) == 0
    assert "per client under replace-one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (OPTIONS, 2, "--parameters"),
        ((*OPTIONS, "--parameters", "9", "--sample-rate", "0.1"), 2, "--sample-rate"),
        ((*OPTIONS, "--parameters", "9", "--threshold", "6"), 2, "expected 7 to 10 of 10"),
        ((str(HEART), "--members", "4"), 2, "no noise is shared"),
        ((str(HEART), "--threshold", "3"), 3, "secure_aggregation.members"),
        ((str(HEART), "--parameters", "9"), 2, "no noise is shared"),
        ((*OPTIONS[:6], "--threshold", "3"), 2, "no noise is shared"),
        ((*OPTIONS, "--parameters", "100000000000"), 4, "E-SCALE-TOO-SMALL"),
    ],
)
def test_what_makes_no_plan_is_said(
    arguments: tuple[str, ...], code: int, words: str, capsys: Capture
) -> None:
    """Each failure has the exit code of its family."""
    assert run(["privacy", "plan", *arguments]) == code
    assert words in capsys.readouterr().err


def test_the_plot_is_a_picture(tmp_path: Path, capsys: Capture) -> None:
    """--plot draws the reserve, round by round."""
    path = tmp_path / "epsilon.png"
    assert run(["privacy", "plan", *OPTIONS, "--parameters", "9", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "epsilon" in capsys.readouterr().out
