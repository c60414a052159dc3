"""The walk-through between different directories, by name and by IP address.

The README's own blocks, with training on real records, are run by ``tests/test_readme.py``. Here
each person stands in a directory of their own, and the server has one name only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tacit.core.artifacts import RunFolder, load_arrays
from tests.end_to_end.federation import APPS, Federation, environment_of, free_ports
from tests.end_to_end.runs import initial_arrays, initial_file
from tests.end_to_end.test_unavailable import RUN_TOML

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

OWNERS = ("cleveland", "va")
CLIENT_TOML = """\
[policy]
modes = ["none"]
approve = "ask"

"""


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_the_walk_through_between_directories(tmp_path: Path, name: str) -> None:
    """Init, start, invite, join, check, start, submit, approve, watch and pull, and again."""
    main, enrolment = free_ports(2)
    made = Federation(tmp_path, (main, enrolment), environment_of(tmp_path))
    try:
        walk(made, name)
    finally:
        made.close()


def walk(made: Federation, name: str) -> None:
    main, enrolment = made.ports
    apps = made.root / "apps"
    apps.mkdir()
    made.gates.mkdir()
    source = (APPS / "quick_app.py").read_text()
    (apps / "quick_app.py").write_text(source)
    ports = ("--listen", f"{name}:{main}", "--enrolment-listen", f"{name}:{enrolment}")
    init = made.tacit("server", "init", "--name", name, "--home", "server", *ports, "--json")
    assert init.json["addresses"] == [f"{name}:{main}"]
    made.start_server()
    for owner in OWNERS:
        token = made.tacit("server", "invite", owner, "--home", made.home).out.strip()
        joined = made.tacit("client", "join", token, "--home", made.root / owner, "--json")
        assert joined.json["addresses"] == [f"{name}:{main}"]
        policy = CLIENT_TOML + made.app_policy("quick_app:app")
        (made.root / owner / "client.toml").write_text(policy)
        check = made.tacit("client", "check", "--home", made.root / owner)
        assert check.code == 0, check.out
        assert f"ok       server {name}:{main}: it knows this node" in check.out
        made.start_client(owner)
    run_id = submit_and_approve(made)
    watch = made.tacit("run", "watch")
    assert watch.code == 0, watch.err
    assert "round 1/1: 2 owners" in watch.out
    last = made.tacit("run", "show", "--json").json["manifest"]["rounds"][-1]
    assert sorted(last["members"]) == sorted(OWNERS)
    assert f"members: {', '.join(last['members'])}" in made.tacit("run", "show").out
    pull = made.tacit("run", "pull", "--out", made.root / "result", "--json")
    assert pull.json["run_id"] == run_id
    folder = RunFolder(made.root / "result")
    assert load_arrays(folder.model).keys() == initial_arrays().keys()
    assert folder.manifest.is_file()
    assert folder.events.is_file()
    repeat(made, run_id)


def submit_and_approve(made: Federation) -> str:
    operator = made.root / "runs"
    operator.mkdir()
    text = RUN_TOML.replace("large.saf", "initial.saf").replace(
        "rounds = 1", f"rounds = 1\nmin_clients = {len(OWNERS)}"
    )
    (operator / "run.toml").write_text(text)
    initial_file(operator)
    assert made.tacit("run", "check", operator / "run.toml").code == 0
    submitted = made.tacit("run", "submit", operator / "run.toml")
    assert submitted.code == 0, submitted.err
    run_id = submitted.out.strip()
    for owner in OWNERS:
        made.wait_for_event(run_id, "node_decided", member=owner, verdict="pending")
        status = made.tacit("client", "status", "--home", made.root / owner, "--json")
        assert [run["verdict"] for run in status.json["runs"]] == ["pending"]
        home = ("--home", made.root / owner)
        approved = made.tacit("client", "approve", run_id, "--repeat", *home)
        assert approved.code == 0, approved.err
    return run_id


def repeat(made: Federation, first: str) -> None:
    """Submit the same again: nobody is asked; then one owner withdraws it, and is."""
    run_toml = made.root / "runs" / "run.toml"
    again = made.tacit("run", "submit", run_toml, "--watch")
    assert again.code == 0, again.err
    home = ("--home", made.root / OWNERS[0])
    status = made.tacit("client", "status", *home, "--json").json
    assert [run["decided_by"] for run in status["runs"]] == ["repeat", "hand"]
    assert status["runs"][0]["reason"] == f"repeat of {first}"
    assert [each["run_id"] for each in status["repeats"]] == [first]
    assert made.tacit("client", "deny", first, *home).code == 0  # it is over
    run_id = made.tacit("run", "submit", run_toml).out.strip()
    made.wait_for_event(run_id, "node_decided", member=OWNERS[0], verdict="pending")
    made.wait_for_event(run_id, "node_decided", member=OWNERS[1], verdict="approved")
