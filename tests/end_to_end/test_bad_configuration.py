"""Configuration and data that are wrong: everything at once, with the nearest known word.

Nothing about a record is said but its number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tacit.simulation.owners import heart_folder
from tests.end_to_end.federation import Federation, eventually, federation

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

RUN = (heart_folder() / "run.toml").read_text().replace("min_clients = 4", "min_clients = 1")
HEADER, *ROWS = (heart_folder() / "va.csv").read_text().splitlines()
DATA = '[data_sets.heart]\npath = "data.csv"\nrecords = 200\n'
VALUE = "4711.25"  # a value that must never be shown


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("config")) as made:
        made.join("ada", data=DATA)
        (made.root / "ada" / "data.csv").write_text("\n".join([HEADER, *ROWS]))
        (made.root / "run.toml").write_text(RUN)
        yield made


def test_every_problem_of_a_run_is_told_at_once(played: Federation) -> None:
    """Unknown keys come with the nearest known one, wrong values with what was expected."""
    path = played.root / "wrong.toml"
    path.write_text(
        RUN.replace("local_steps = 1", "local_stpes = 1")
        .replace("rounds = 20", "rounds = 0\nmin_client = 2")
        .replace("clip = 0.5", 'clip = "tight"')
    )
    for verb in ("check", "submit"):
        told = played.tacit("run", verb, path).refuses(3, "E-CONFIG")
        assert "local_stpes" in told
        assert "local_steps" in told
        assert "min_clients" in told
        assert "rounds" in told
        assert "clip" in told
        assert told.count("wrong.toml:") >= 4, told


def test_every_problem_of_the_daemons_files_is_told_at_once(played: Federation) -> None:
    """server.toml and client.toml: the daemons do not start, and `config check` agrees."""
    server = played.home / "server.toml"
    before = server.read_text()
    limits = "[limits]\nmax_client = 3\nmax_spool_bytes = 0\n"
    server.write_text('jurnal = "kill"\n' + limits)
    played.daemons["server"].kill()
    try:
        told = played.tacit("server", "start", "--home", played.home).refuses(3, "E-CONFIG")
        for words in ("journal", "max_clients", "max_spool_bytes"):
            assert words in told
        played.tacit("config", "check", server).refuses(3, "E-CONFIG")
    finally:
        server.write_text(before)
        played.start_server()
    client = played.root / "ada" / "client.toml"
    before = client.read_text()
    client.write_text(before.replace("min_clients", "min_client") + "\n[polcy]\n")
    try:
        told = played.tacit("client", "start", "--home", client.parent).refuses(3, "E-CONFIG")
        assert "min_clients" in told
        assert "policy" in told
    finally:
        client.write_text(before)


def test_a_model_that_does_not_fit_the_data_contract(played: Federation) -> None:
    """Refused before anything is sent, and so is a strategy's unknown parameter."""
    path = played.root / "model.toml"
    path.write_text(RUN.replace('kind = "logistic"', 'kind = "cnn"\nhidden = [4]'))
    played.tacit("run", "check", path).refuses(3, "E-MODEL-CONTRACT")
    path.write_text(RUN + '\n[strategy]\nname = "FedAvgM"\nparameters.server_momentun = 0.9\n')
    assert "server_momentum" in played.tacit("run", "check", path).refuses(3, "E-STRATEGY")


def without_column(rows: list[str]) -> list[str]:
    return [row.partition(",")[2] for row in rows]


def of_one_class(rows: list[str]) -> list[str]:
    return [rows[0], *(row.rpartition(",")[0] + ",1" for row in rows[1:])]


def with_nan(rows: list[str]) -> list[str]:
    first = rows[1].split(",")
    return [rows[0], ",".join(["nan", *first[1:]]), *rows[2:]]


def out_of_range(rows: list[str]) -> list[str]:
    first = rows[1].split(",")
    return [rows[0], ",".join([VALUE, *first[1:]]), *rows[2:]]


BAD_DATA = {
    "missing column": (without_column, ("age",)),
    "empty": (lambda rows: rows[:1], ("record",)),
    "one class": (of_one_class, ("class",)),
    "NaN": (with_nan, ("age", "line 2 of data.csv")),
    "out of range": (out_of_range, ("age", "line 2 of data.csv")),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_data_that_break_the_contract_are_found_by_the_check(played: Federation, kind: str) -> None:
    """`client check --run` ends with 3, names column and rows, and never a value."""
    change, words = BAD_DATA[kind]
    home = played.root / "ada"
    rows = [HEADER, *ROWS]
    (home / "data.csv").write_text("\n".join(change(rows)) + "\n")
    try:
        check = played.tacit("client", "check", "--home", home, "--run", played.root / "run.toml")
    finally:
        (home / "data.csv").write_text("\n".join(rows) + "\n")
    assert check.code == 3
    (_, *rest) = check.out.split("wrong    contract")
    assert len(rest) == 1, check.out
    told, *further = rest[0].splitlines()
    while further and further[0].startswith(" "):  # one problem per line, below the first
        told += further.pop(0)
    assert "[E-DATA" in told
    assert all(word in told for word in words), told
    assert VALUE not in check.out + check.err


def test_a_run_on_bad_data_is_denied_at_its_owner_and_taken_once_they_are_mended(
    played: Federation,
) -> None:
    """The operator sees a code, the owner why; nothing has left, and the next offer is taken."""
    home = played.root / "ada"
    rows = [HEADER, *ROWS]
    (home / "data.csv").write_text("\n".join(without_column(rows)))
    client = played.start_client("ada")
    submitted = played.tacit("run", "submit", played.root / "run.toml", "--json")
    run_id = submitted.json["run_id"]
    decided = played.wait_for_event(run_id, "node_decided", member="ada")
    assert (decided["verdict"], decided["code"][:6]) == ("denied", "E-DATA")
    status = played.tacit("client", "status", "--home", home, "--json").json
    assert "age" in status["runs"][0]["reason"]
    assert [line for line in status["decisions"] if line["outcome"] == "released"] == []
    (home / "data.csv").write_text("\n".join(rows))
    client.kill()
    played.start_client("ada")
    played.wait_for_event(run_id, "node_decided", member="ada", verdict="approved")
    assert played.tacit("run", "stop", run_id).code == 0
    eventually("its worker to end", lambda: not played.processes("ada/scratch"))
    played.daemons["ada"].kill()  # no other test expects it to run
