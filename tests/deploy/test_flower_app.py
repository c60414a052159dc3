"""The same run.toml gives the same model in Tacit's simulator and under Flower's own engine.

The engine's programs are those beside this Python; ``TACIT_TEST_FLOWER_BIN`` names the folder of
another environment's, where ``flwr[simulation]`` is installed beside Tacit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.processes import Crew, free_ports, wait_for_port
from tacit.core.artifacts import RunFolder, load_arrays
from tacit.core.configuration import load_config
from tacit.core.specification import RunSpec
from tacit.simulation.federation import simulate
from tacit.simulation.owners import heart_folder, owners_in

APP = Path(__file__).resolve().parents[2] / "deploy" / "flower_app"
BIN = Path(os.environ.get("TACIT_TEST_FLOWER_BIN", Path(sys.executable).parent))
ROUNDS = 2
TOLERANCE = 3e-7  # float32 sums in another order
PATIENCE_S = 300.0  # each message starts a process that loads torch and opacus

RUN_TOML = """\
name = "heart"

[data]
label = "num"
classes = ["0", "1"]
label_map = { "2" = "1", "3" = "1", "4" = "1" }

[data.columns]
age = { type = "number", range = [18, 100] }
sex = { type = "boolean", values = ["0", "1"] }
exang = { type = "boolean", values = ["0", "1"], missing = "0", flag_missing = true }
thalach = { type = "number", range = [40, 240], missing = 140 }

[model]
kind = "mlp"
hidden = [8]
seed = 1

[training]
local_steps = 3
learning_rate = 0.5
seed = 1

[privacy]
mode = "none"

[strategy]
name = "FedAvgM"

[strategy.parameters]
server_momentum = 0.5

[participation]
rounds = 2
min_clients = 4

[evaluation]
every = 2
"""

CONNECTION = """\
[superlink]
default = "test"

[superlink.test]
address = "127.0.0.1:{port}"
insecure = true
"""


def has_ray() -> bool:
    python = BIN / "python"
    if not python.exists():
        return False
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('ray') is None)"
    return subprocess.run([python, "-c", probe], check=False).returncode == 0


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which flwr keeps everything in a folder of this test."""
    if not (BIN / "flower-superlink").exists():
        pytest.skip(f"flwr's programs are not in {BIN}")
    (tmp_path / "flwr").mkdir()
    return {
        **os.environ,
        "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def expected(tmp_path: Path) -> RunFolder:
    """Return what ``tacit simulate`` makes of the run."""
    path = tmp_path / "run.toml"
    path.write_text(RUN_TOML, encoding="utf-8")
    run = load_config(path, RunSpec).value
    owners = owners_in(heart_folder(), run, clients=None, scratch=tmp_path / "shares")
    return simulate(run, owners, tmp_path / "simulated").folder


def configured(tmp_path: Path) -> Path:
    """Run the app's own configure.py; return the run config."""
    command = [sys.executable, str(APP / "configure.py"), str(tmp_path / "run.toml")]
    arguments = ["--out", str(tmp_path), "--data", str(heart_folder())]
    subprocess.run([*command, *arguments], check=True, capture_output=True)
    return tmp_path / "run-config.toml"


def start_superlink(crew: Crew, environ: dict[str, str], *, port: int, extra: list[str]) -> None:
    home = Path(environ["FLWR_HOME"])
    (home / "config.toml").write_text(CONNECTION.format(port=port), encoding="utf-8")
    command = [str(BIN / "flower-superlink"), "--insecure", "--host", "127.0.0.1"]
    options = ["--port", str(port), "--disable-runtime-dependency-installation"]
    crew.start("superlink", [*command, *options, *extra], environ=environ)
    wait_for_port(port, crew, timeout_s=30)


def flwr_run(environ: dict[str, str], config: Path, *options: str) -> None:
    command = [str(BIN / "flwr"), "run", str(APP), "test", "--run-config", str(config)]
    done = subprocess.run(
        [*command, *options], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def finished(runs: Path, crew: Crew) -> RunFolder:
    """Wait for the run folder that the ServerApp leaves."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        crew.check()
        for path in runs.glob("r-*"):
            folder = RunFolder(path)
            text = folder.events.read_text(encoding="utf-8") if folder.events.exists() else ""
            assert "run_failed" not in text, text
            done = folder.manifest.exists() and json.loads(folder.manifest.read_bytes())
            if done and done["status"] == "finished":
                return folder
        time.sleep(0.2)
    raise AssertionError(f"no run finished in {PATIENCE_S:.0f} s:\n{crew.tail('superlink', 80)}")


def verify_equal(expected: RunFolder, found: RunFolder) -> None:
    """Compare the weights of the start and of every round, and the metrics."""
    assert found.round_numbers() == expected.round_numbers() == list(range(1, ROUNDS + 1))
    pairs = [(expected.initial, found.initial), (expected.model, found.model)]
    pairs += [(expected.round(each), found.round(each)) for each in expected.round_numbers()]
    for ours, theirs in pairs:
        mine, other = load_arrays(ours), load_arrays(theirs)
        assert list(mine) == list(other)
        for name, values in mine.items():
            np.testing.assert_allclose(other[name], values, rtol=0, atol=TOLERANCE)
    rounds = [json.loads(each.manifest.read_bytes())["rounds"] for each in (expected, found)]
    for mine, other in zip(*rounds, strict=True):
        assert other["metrics"] == pytest.approx(mine["metrics"], abs=1e-6)
        assert (other["evaluation"] is None) == (mine["evaluation"] is None)
        if mine["evaluation"] is not None:
            assert other["evaluation"] == pytest.approx(mine["evaluation"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_simulation_with_ray(environ: dict[str, str], expected: RunFolder, tmp_path: Path) -> None:
    """Flower's simulation with Ray comes to the weights of ``tacit simulate``."""
    if not has_ray():
        pytest.skip("ray is not installed: pip install 'flwr[simulation]==1.41.0'")
    config = configured(tmp_path)
    sizes = "num-supernodes=4 client-resources-num-cpus=1 init-args-num-cpus=2"
    with Crew(tmp_path) as crew:
        start_superlink(crew, environ, port=free_ports(1)[0], extra=["--simulation"])
        flwr_run(environ, config, "--federation-config", sizes)
        verify_equal(expected, finished(tmp_path / "runs", crew))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_deployment(environ: dict[str, str], expected: RunFolder, tmp_path: Path) -> None:
    """Flower's SuperLink with four SuperNodes comes to the weights of ``tacit simulate``."""
    config = configured(tmp_path)
    port, *node_ports = free_ports(5)
    with Crew(tmp_path) as crew:
        start_superlink(crew, environ, port=port, extra=[])
        for index, node_port in enumerate(node_ports):
            prepared = tmp_path / "prepared" / f"{index}.safetensors"
            command = [str(BIN / "flower-supernode"), "--insecure", "--host", "127.0.0.1"]
            options = ["--port", str(node_port), "--superlink", f"127.0.0.1:{port}"]
            own = ["--node-config", f'tacit-prepared="{prepared}"']
            crew.start(f"node{index}", [*command, *options, *own], environ=environ)
        for node_port in node_ports:
            wait_for_port(node_port, crew, timeout_s=30)
        flwr_run(environ, config)
        verify_equal(expected, finished(tmp_path / "runs", crew))


@pytest.mark.slow
def test_configure_prints_the_command_that_comes_next(tmp_path: Path) -> None:
    """A simulation runs on Flower's own `local`; bad data are named with column and row."""
    (tmp_path / "run.toml").write_text(RUN_TOML, encoding="utf-8")
    command = [sys.executable, str(APP / "configure.py"), str(tmp_path / "run.toml")]
    data = [*command, "--out", str(tmp_path / "work"), "--data"]
    done = subprocess.run([*data, str(heart_folder())], capture_output=True, text=True, check=True)
    config = tmp_path / "work" / "run-config.toml"
    assert done.stdout == (
        f"flwr run {APP} local --federation-config 'num-supernodes=4' --stream "
        f"--run-config {config}\n"
    )
    (tmp_path / "bad.csv").write_text("age,sex,exang,thalach,num\n50,1,0,140,0\n500,0,0,140,1\n")
    bad = [*data, str(tmp_path / "bad.csv"), "--clients", "2"]
    failed = subprocess.run(bad, capture_output=True, text=True, check=False)
    assert failed.returncode == 3
    assert "age: outside the declared range: 1 record (line 3 of bad.csv)" in failed.stderr


@pytest.mark.slow
def test_a_missing_specification_is_named(tmp_path: Path) -> None:
    """A run config without a specification, or a wrong run.toml, is refused with what to do."""
    path = tmp_path / "run.toml"
    path.write_text('nmae = "x"\n', encoding="utf-8")
    command = [sys.executable, str(APP / "configure.py"), str(path), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "nmae" in done.stderr
    assert "name" in done.stderr
