"""The Dockerfiles and the compose file keep their promises, as far as they can be read."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = ("server.Dockerfile", "client.Dockerfile")
SECRET = re.compile(r"tacit1_[A-Za-z0-9_-]{8,}|PRIVATE KEY|password|secret\s*[:=]", re.IGNORECASE)


def instructions(name: str) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions, with continued lines joined."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split()[0].upper(), line.split(maxsplit=1)[1]) for line in joined]


def last_stage(name: str) -> list[tuple[str, str]]:
    steps = instructions(name)
    start = max(index for index, (word, _) in enumerate(steps) if word == "FROM")
    return steps[start:]


@pytest.fixture
def compose() -> dict[str, Any]:
    """Return the compose file, its merge keys resolved."""
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_has_two_stages_and_no_compiler(name: str) -> None:
    """The final stage installs no package: it copies what the first stage has built."""
    final = last_stage(name)
    froms = [rest for word, rest in instructions(name) if word == "FROM"]
    installs = [rest for word, rest in final if word == "RUN" and re.search("apt|pip", rest)]
    assert len(froms) == 2
    assert installs == []
    assert ("COPY", "--from=build /opt/tacit /opt/tacit") in final


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_does_not_run_as_root(name: str) -> None:
    """The last USER is a number above that of any system account, so orchestrators can check it."""
    users = [rest for word, rest in last_stage(name) if word == "USER"]
    assert users == ["10001:10001"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_has_health_check_and_drains_on_stop(name: str) -> None:
    """Both images can be asked how they are, and are stopped by the signal that drains."""
    words = dict(last_stage(name))
    assert "CMD" in words["HEALTHCHECK"]
    assert words["STOPSIGNAL"] == "SIGTERM"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_pins_the_torch_that_we_test(name: str) -> None:
    """The image installs the torch that pyproject.toml pins, from the index of CPU builds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pin = next(line for line in project["project"]["dependencies"] if line.startswith("torch=="))
    runs = " ".join(rest for word, rest in instructions(name) if word == "RUN")
    assert f'"{pin}"' in runs
    assert "/whl/cpu" in (DEPLOY / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_build_sends_every_package_and_nothing_else(name: str) -> None:
    """The ignore file of an image lets every package folder through, and no data or state."""
    text = (DEPLOY / f"{name}.dockerignore").read_text(encoding="utf-8").splitlines()
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    folders = set(re.findall(r'^    "(\w+)",$', setup, flags=re.MULTILINE))
    let_through = {line.removeprefix("!") for line in text if line.startswith("!")}
    assert "*" in text
    assert folders | {"pyproject.toml", "setup.py", "constraints.txt", "README.md", "LICENSE"} == (
        let_through
    )


def deployed_files() -> list[Path]:
    found = (path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return sorted(path.relative_to(DEPLOY) for path in found if path.suffix != ".md")


@pytest.mark.parametrize("path", deployed_files(), ids=str)
def test_nothing_secret_is_baked_in(path: Path) -> None:
    """No file of deploy/ holds a token, a key or a password."""
    assert SECRET.search((DEPLOY / path).read_text(encoding="utf-8")) is None


def test_compose_is_a_whole_federation(compose: dict[str, Any]) -> None:
    """One server and two owners; each owner has a state volume and read-only data of its own."""
    services = compose["services"]
    owners = sorted(set(services) - {"server"})
    mounts = {name: [each.split(":") for each in services[name]["volumes"]] for name in services}
    states = [each[0] for name in services for each in mounts[name] if len(each) == 2]
    data = [services[name]["volumes"][1] for name in owners]
    assert owners == ["owner-a", "owner-b"]
    assert sorted(states) == sorted(compose["volumes"])
    assert all(mount.endswith(":/srv/tacit/data:ro") for mount in data)
    assert len(set(data)) == 2


@pytest.mark.parametrize("name", ["server", "owner-a", "owner-b"])
def test_compose_services_are_hardened(name: str, compose: dict[str, Any]) -> None:
    """Every container has a read-only root, no capability, and no way to new privileges."""
    service = compose["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "environment" not in service


@pytest.mark.parametrize("name", ["server", "owner-a", "owner-b"])
def test_compose_builds_what_is_here(name: str, compose: dict[str, Any]) -> None:
    """Each service names a Dockerfile that exists, relative to its build context."""
    build = compose["services"][name]["build"]
    context = (DEPLOY / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).is_file()


def test_compose_file_is_accepted_by_docker() -> None:
    """``docker compose config`` accepts the file (skipped where the plugin is missing)."""
    docker = shutil.which("docker")
    plugin = docker and subprocess.run(
        [docker, "compose", "version"], capture_output=True, check=False
    )
    if not plugin or plugin.returncode != 0:
        pytest.skip("docker compose is not installed")
    done = subprocess.run(
        ["docker", "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "OWNER_A_DATA": "/a", "OWNER_B_DATA": "/b"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
