"""`tacit audit`: from files to a report, and what cannot be audited ends with its exit code."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.attacks.registry import MEMBERSHIP
from tacit.attacks.target import ModelTarget
from tacit.cli.main import run
from tests.attacks.desk import MEMBERS, NON_MEMBERS, trained, write_files

if TYPE_CHECKING:
    from pathlib import Path

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("desk")
    write_files(path)
    return path


def arguments(folder: Path, *more: str, model: str = "model", form: str = "npz") -> list[str]:
    return [
        *("audit", "run"),
        *("--model", str(folder / f"{model}.safetensors")),
        *("--recipe", str(folder / "run.toml")),
        *("--members", str(folder / f"members.{form}")),
        *("--nonmembers", str(folder / f"nonmembers.{form}")),
        *more,
    ]


def test_a_model_that_leaks_is_found(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    """The quick plan on CSV files: evidence, a report, a plot, and a first screen that says it."""
    out, population = str(tmp_path / "out"), str(folder / "population.csv")
    more = ["--population", population, "--slice", "x00", "--out", out]
    assert run(arguments(folder, *more, form="csv")) == 0
    said = capsys.readouterr()
    first, second = said.out.splitlines()[:2]
    assert ": evidence: at FPR " in first
    assert "200 members and 200 non-members" in second
    assert "16 reference models" in said.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["outcome"] == "evidence"
    assert report["is_conclusive"]
    assert {each["column"] for each in report["probes"][0]["slices"]} == {"class", "x00"}
    assert set(report["provenance"]["files"]) == {
        *("model", "recipe", "members", "non-members", "population")
    }
    digest = hashlib.sha256((folder / "members.csv").read_bytes()).hexdigest()
    assert report["provenance"]["files"]["members"] == digest
    assert set(report["provenance"]["versions"]) == {"tacit", "torch", "numpy", "python"}
    assert (tmp_path / "out" / "roc.svg").exists()
    assert run(["audit", "show", out]) == 0
    assert capsys.readouterr().out.splitlines() == said.out.splitlines()[:-1]


def test_another_recipe_makes_the_first_line_inconclusive(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    """Exit code 0: the audit ended. Its first line says why nothing follows, then what stands."""
    recipe = tmp_path / "other.toml"
    recipe.write_text((folder / "run.toml").read_text().replace("= 150", "= 1"))
    probes = ("--probe", "loss", "--probe", "lira-online", "--recipe", str(recipe))
    out = tmp_path / "out"
    assert run(arguments(folder, *probes, "--out", str(out))) == 0
    text = capsys.readouterr().out
    assert text.startswith("INCONCLUSIVE: the recipe does not reproduce the target: accuracies are")
    assert "  stands by itself: loss: evidence: " in text
    assert "NOT like the target" in text
    report = json.loads((out / "report.json").read_text())
    assert (report["outcome"], report["is_conclusive"]) == ("inconclusive", False)
    outcomes = [(each["probe"], each["outcome"]) for each in report["probes"]]
    assert outcomes == [("loss", "evidence"), ("lira-online", "inconclusive")]


def test_an_untrained_model_is_not(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    """The same records and a fresh model: no evidence, with the power; never called safe."""
    probes = ("--probe", "loss", "--probe", "modified-entropy")
    out = ("--out", str(tmp_path / "out"), "--json")
    assert run(arguments(folder, *probes, *out, model="fresh")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["outcome"] == "no evidence at this power"
    assert "would have been seen" in report["line"]
    assert report["plan"]["probes"] == ["loss", "modified-entropy"]


def test_the_same_inputs_give_the_same_bytes(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    """Run again, from the cache, the files are equal byte by byte; nothing is replaced."""
    probes = ("--probe", "loss", "--probe", "lira-online", "--seed", "4")
    cache = ("--cache", str(tmp_path / "cache"))
    for name in "ab":
        assert run(arguments(folder, *probes, *cache, "--out", str(tmp_path / name))) == 0
    for file in ("report.json", "roc.svg"):
        contents = {(tmp_path / name / file).read_bytes() for name in "ab"}
        assert len(contents) == 1
    assert run(arguments(folder, "--out", str(tmp_path / "a"))) == 2
    assert "E-RUN-FOLDER" in capsys.readouterr().err


def test_compare_puts_two_reports_side_by_side(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    """Two models, the same records: which figures differ, and whether clearly."""
    probe = ("--probe", "loss", "--out")
    assert run(arguments(folder, *probe, str(tmp_path / "a"))) == 0
    assert run(arguments(folder, *probe, str(tmp_path / "b"), model="fresh")) == 0
    capsys.readouterr()
    names = [str(tmp_path / "a"), str(tmp_path / "b" / "report.json")]
    assert run(["audit", "compare", *names, "--json"]) == 0
    comparison = json.loads(capsys.readouterr().out)
    area = next(each for each in comparison["differences"] if each["metric"] == "AUC")
    assert area["is_clear"]
    assert comparison["caveats"] == []
    assert run(["audit", "compare", *names]) == 0
    assert "second - first" in capsys.readouterr().out


def test_predictions_need_no_model(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    """Saved logits alone are audited with what can run on them; the rest is listed, with why."""
    target = ModelTarget(model=trained())
    logits = [target.logits(each.features) for each in (MEMBERS, NON_MEMBERS)]
    file = tmp_path / "p.npz"
    np.savez(
        file,
        member_logits=logits[0],
        member_labels=MEMBERS.labels,
        nonmember_logits=logits[1],
        nonmember_labels=NON_MEMBERS.labels,
    )
    assert run(["audit", "run", "--predictions", str(file), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    why = "it lacked reference models: only predictions were handed in"
    assert f"skipped: lira-online, base-offline: {why}" in said
    assert f"skipped: rmia-offline: {why}; a population" in said
    assert run(["audit", "run", "--predictions", str(file), "--run", str(folder)]) == 2


def test_a_run_folder_brings_model_and_recipe(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    """What `tacit run pull` leaves is enough: the folder is named once."""
    files = ["--members", str(folder / "members.npz"), "--nonmembers"]
    files += [str(folder / "nonmembers.npz"), "--probe", "loss", "--json"]
    out = ["--out", str(tmp_path / "out")]
    assert run(["audit", "run", "--run", str(folder), *files, *out]) == 0
    assert json.loads(capsys.readouterr().out)["audited"]["form"] == "model"


@pytest.mark.parametrize(
    ("content", "code"),
    [('{"rounds": [{"cohort": [1, 2, 3]}, {"cohort": [1]}]}', 0), ('{"rounds": 3}', 6), ("[", 6)],
)
def test_a_manifest_says_how_many_owners(
    folder: Path, tmp_path: Path, capsys: Captured, content: str, code: int
) -> None:
    """References take the share of noise of as many owners; a damaged manifest is no default."""
    run_folder = tmp_path / "run"
    shutil.copytree(folder, run_folder)
    (run_folder / "manifest.json").write_text(content)
    files = ["--members", str(folder / "members.npz"), "--nonmembers"]
    files += [str(folder / "nonmembers.npz"), "--probe", "base-offline", "--json"]
    out = ["--out", str(tmp_path / "out")]
    assert run(["audit", "run", "--run", str(run_folder), *files, *out]) == code
    said = capsys.readouterr()
    if code == 0:
        (note,) = json.loads(said.out)["references"]["notes"]
        assert "averaged 3 owners" in note
    else:
        assert "--owners N" in said.err


def test_a_claim_stands_in_the_report_and_the_plot(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    """As the run folder's manifest has it, or as whoever audits names it; none if nobody does."""
    run_folder = tmp_path / "run"
    shutil.copytree(folder, run_folder)
    claim = {"unit": "record", "relation": "add/remove", "epsilon": 2.0, "delta": 1e-5}
    manifest = {"rounds": [], "members": {"1": "ada"}, "claims": {"1": {"train": claim}}}
    (run_folder / "manifest.json").write_text(json.dumps(manifest))
    files = ["--members", str(folder / "members.npz"), "--nonmembers"]
    files += [str(folder / "nonmembers.npz"), "--probe", "loss", "--owners", "1"]
    from_folder = ["audit", "run", "--run", str(run_folder), *files]
    named = arguments(folder, "--probe", "loss", "--claim", "3,1e-6,subject")
    reports = []
    for number, command in enumerate((from_folder, named)):
        out = tmp_path / str(number)
        assert run([*command, "--out", str(out)]) == 0
        reports.append(json.loads((out / "report.json").read_text()))
    assert reports[0]["claims"] == [{"member": "ada", **claim}]
    assert (reports[1]["claims"][0]["epsilon"], reports[1]["claims"][0]["unit"]) == (3.0, "subject")
    assert "Claim: epsilon = 3, delta = 1e-06 per subject" in capsys.readouterr().out


@pytest.fixture
def out(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write to, from among the files."""
    monkeypatch.chdir(folder)
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--plan", "thorough"], 2, "quick, standard, full"),
        (["--probe", "lira"], 2, "E-AUDIT-PROBE"),
        (["--run", "."], 2, "leave out --model"),
        (["--members", "none.npz"], 6, "E-DATA-MISSING"),
        (["--nonmembers", "members.npz"], 3, "E-AUDIT-OVERLAP"),
        (["--recipe", "members.csv"], 3, "E-CONFIG"),
        (["--model", "run.toml"], 6, "E-ARTIFACT-DAMAGED"),
        (["--slice", "sex"], 3, "E-AUDIT-SLICES"),
        (["--claim", "3"], 2, "E-AUDIT-CLAIM"),
    ],
)
def test_what_cannot_be_audited_is_said(
    folder: Path, out: Path, capsys: Captured, *, more: list[str], code: int, said: str
) -> None:
    """Each misuse has its exit code and its words, and leaves no folder behind."""
    assert run([*arguments(folder), "--out", str(out), *more]) == code
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_overlap_can_be_left_out(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    """With --drop-overlap shared records are left out of both sides, and the report counts them."""
    mixed = tmp_path / "mixed.npz"
    features = np.concatenate([NON_MEMBERS.features, MEMBERS.features[:5]])
    np.savez(mixed, features=features, labels=np.append(NON_MEMBERS.labels, MEMBERS.labels[:5]))
    options = ("--probe", "loss", "--drop-overlap", "--out", str(tmp_path / "out"), "--json")
    assert run([*arguments(folder, *options), "--nonmembers", str(mixed)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["provenance"]["dropped_overlap"] == 10
    assert (report["audited"]["members"], report["audited"]["non_members"]) == (195, 200)


def test_without_matplotlib_there_is_a_report_and_no_plot(
    folder: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing extra costs the picture, not the audit."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "out"
    assert run(arguments(folder, "--probe", "loss", "--out", str(out))) == 0
    assert "No plot: expected matplotlib" in capsys.readouterr().err
    assert (out / "report.json").exists()
    assert not (out / "roc.svg").exists()


def test_every_probe_is_listed_with_its_source(capsys: Captured) -> None:
    """The registry as people see it: name, needs, plans, paper."""
    assert run(["audit", "probes", "--json"]) == 0
    rows = {row["probe"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(MEMBERSHIP)
    assert rows["loss"]["plans"] == "quick, standard, full"
    assert rows["rmia-offline"]["needs"] == "population, references"
    assert run(["audit", "probes"]) == 0
    assert "arXiv" in capsys.readouterr().out


@pytest.mark.slow
def test_ctrl_c_leaves_a_report_of_what_was_finished(folder: Path, tmp_path: Path) -> None:
    """A real SIGINT while reference models are trained: exit code 130, and a report of it."""
    out = tmp_path / "out"
    script = "import sys; from tacit.cli.main import main; main()"
    command = [
        sys.executable,
        "-c",
        script,
        *arguments(folder, "--plan", "full", "--out", str(out)),
    ]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert started.stderr is not None
    for line in started.stderr:
        if "reference models" in line:
            started.send_signal(signal.SIGINT)
            break
    _, rest = started.communicate(timeout=90)
    assert started.returncode == 130, rest
    report = json.loads((out / "report.json").read_text())
    assert report["interrupted"]
    assert report["outcome"] == "inconclusive"
    assert "loss" in [probe["probe"] for probe in report["probes"]]
    assert "lira-online" in [each["probe"] for each in report["skipped"]]
