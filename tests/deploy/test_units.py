"""The systemd units are valid, hardened, and leave the client what its worker needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
NAMES = ("tacit-server.service", "tacit-client.service")
MAX_EXPOSURE = 2.0  # of systemd's scale from 0 (none) to 10; an unhardened service has 9.6

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def settings(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text(encoding="utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture(params=NAMES)
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a unit with the path of a program that is here."""
    program = tmp_path / "tacit"
    program.symlink_to(sys.executable)
    text = (UNITS / request.param).read_text(encoding="utf-8")
    path = tmp_path / request.param
    path.write_text(re.sub(r"/opt/tacit/bin/tacit", str(program), text), encoding="utf-8")
    return path


@needs_systemd
def test_unit_is_valid(unit: Path) -> None:
    """``systemd-analyze verify`` finds nothing to say about the unit."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    about = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, about) == (0, [])


@needs_systemd
def test_unit_is_hardened(unit: Path) -> None:
    """systemd's own scale of exposure puts the unit among the well confined ones."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    if exposure is None:
        pytest.skip("this systemd-analyze cannot judge a unit offline")
    assert float(exposure[1]) <= MAX_EXPOSURE


@pytest.mark.parametrize("name", NAMES)
def test_unit_promises(name: str) -> None:
    """Both units give up privileges, see a read-only system and keep their state private."""
    found = settings(name)
    for key, value in {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "CapabilityBoundingSet": "",
        "StateDirectoryMode": "0700",
        "UMask": "0077",
        "LimitCORE": "0",
        "KillSignal": "SIGTERM",
    }.items():
        assert [value] == found[key], key


def test_client_may_confine_its_worker() -> None:
    """The client keeps Landlock, seccomp, and namespaces of users and networks, for its worker."""
    found = settings("tacit-client.service")
    allowed = found["SystemCallFilter"][0].split()
    assert found["RestrictNamespaces"] == ["user net"]
    assert {
        "landlock_create_ruleset",
        "landlock_add_rule",
        "landlock_restrict_self",
        "seccomp",
        "memfd_create",
        "@system-service",
    } <= set(allowed)


def test_server_may_make_no_namespace() -> None:
    """The server, which confines nobody, may make no namespace at all."""
    assert settings("tacit-server.service")["RestrictNamespaces"] == ["yes"]
