"""Owners learn each other's keys: by words, by file, and against a server that lies."""

from __future__ import annotations

import sqlite3
import stat
from typing import TYPE_CHECKING

import pytest

from tacit.core.fingerprint import fingerprint_of
from tacit.core.identity import Authority, MemberKeys, Role, certificate_request
from tacit.core.members import load_members
from tacit.core.membership import Membership
from tacit.server.daemon import AUTHORITY_FOLDER
from tacit.server.store import STORE_FILE
from tests.end_to_end.federation import Done, Federation, federation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

NAMES = ("ada", "bo", "cy")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("members"), *NAMES) as made:
        yield made


def verb(played: Federation, owner: str, *arguments: str | Path) -> Done:
    return played.tacit("client", "members", *arguments, "--home", played.root / owner)


def key_of(played: Federation, owner: str) -> bytes:
    return Membership(played.root / owner / "identity").keys.enrolment_public_key


def words_of(played: Federation, owner: str) -> list[str]:
    """What the owner reads out, from their own node."""
    status = played.tacit("client", "status", "--home", played.root / owner, "--json")
    return str(status.json["fingerprint"]).split()


def standings(done: Done) -> dict[str, str]:
    return {each["name"]: each["standing"].split(":")[0] for each in done.json["members"]}


@pytest.fixture
def fresh(played: Federation) -> Iterator[Federation]:
    """The three owners, none of whom has pinned another."""
    yield played
    for name in NAMES:
        (played.root / name / "members.toml").unlink(missing_ok=True)


def tell(played: Federation, name: str, keys: MemberKeys) -> None:
    """Let the server tell another key for a client, with a true certificate of its authority."""
    der = Authority.load(played.home / AUTHORITY_FOLDER).issue_member(
        certificate_request(keys), name=name, role=Role.CLIENT, days=2
    )
    with sqlite3.connect(played.home / STORE_FILE) as database:
        query = "UPDATE members SET enrolment_key = ? WHERE name = ?"
        assert database.execute(query, (keys.enrolment_public_key, name)).rowcount == 1
        query = "UPDATE certificates SET der = ? WHERE member_id = (SELECT member_id FROM members "
        assert database.execute(query + "WHERE name = ?)", (der, name)).rowcount == 1
    database.close()


@pytest.fixture
def lied_about_bo(fresh: Federation) -> Iterator[Federation]:
    """A server that has minted another bo, and tells everybody of that one."""
    with sqlite3.connect(fresh.home / STORE_FILE) as database:
        query = (
            "SELECT enrolment_key, der, serial FROM members JOIN certificates USING (member_id) "
            "WHERE name = 'bo'"
        )
        key, der, serial = database.execute(query).fetchone()
    database.close()
    tell(fresh, "bo", MemberKeys.generate())
    yield fresh
    with sqlite3.connect(fresh.home / STORE_FILE) as database:
        database.execute("UPDATE members SET enrolment_key = ? WHERE name = 'bo'", (key,))
        database.execute("UPDATE certificates SET der = ? WHERE serial = ?", (der, serial))
    database.close()


def test_owners_pin_each_other_by_words(fresh: Federation) -> None:
    """All three are shown, then pinned by what their owners read out; unpin takes one out again."""
    shown = verb(fresh, "ada", "show", "--json")
    assert shown.code == 0
    assert standings(shown) == {"ada": "this node", "bo": "not pinned", "cy": "not pinned"}
    for name in ("bo", "cy"):
        assert verb(fresh, "ada", "pin", name, *words_of(fresh, name)).code == 0
    assert standings(verb(fresh, "ada", "show", "--json")) == {
        "ada": "this node",
        "bo": "pinned",
        "cy": "pinned",
    }
    path = fresh.root / "ada" / "members.toml"
    assert load_members(path) == {name: key_of(fresh, name) for name in ("bo", "cy")}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert verb(fresh, "ada", "unpin", "bo").code == 0
    assert set(load_members(path)) == {"cy"}


def test_wrong_words_are_refused(fresh: Federation) -> None:
    """Another member's words, five words and a slip of the pen pin nothing."""
    verb(fresh, "ada", "pin", "bo", *words_of(fresh, "cy")).refuses(5, "E-MEMBER-FINGERPRINT")
    right = words_of(fresh, "bo")
    verb(fresh, "ada", "pin", "bo", *right[:5]).refuses(2, "E-FINGERPRINT-WORDS")
    verb(fresh, "ada", "pin", "bo", *right[:5], "notaword").refuses(2, "E-FINGERPRINT-WORDS")
    verb(fresh, "ada", "pin", "eve", *right).refuses(2, "E-MEMBER-UNKNOWN")
    verb(fresh, "ada", "pin", "bo").refuses(2, "E-MEMBER-PIN")
    assert not (fresh.root / "ada" / "members.toml").exists()


def test_a_file_goes_from_owner_to_owner_without_the_server(fresh: Federation) -> None:
    """bo exports, ada imports, cy imports from ada what she has pinned; it holds no secret."""
    files = {}
    for owner, flags in (("bo", ()), ("ada", ("--all",))):
        done = verb(fresh, owner, "export", *flags)
        assert done.code == 0
        assert "PRIVATE" not in done.out
        files[owner] = fresh.root / f"{owner}.export.toml"
        files[owner].write_text(done.out)
        if owner == "bo":
            assert verb(fresh, "ada", "pin", "--file", files["bo"]).code == 0
    assert load_members(fresh.root / "ada" / "members.toml") == {"bo": key_of(fresh, "bo")}
    done = verb(fresh, "cy", "pin", "--file", files["ada"], "--json")
    assert {name: words.split() for name, words in done.json["pinned"].items()} == {
        name: words_of(fresh, name) for name in ("ada", "bo")
    }


def test_a_server_that_mints_a_member_is_found_out(lied_about_bo: Federation) -> None:
    """Its certificate is a true one of its own authority; bo's words are not those of its key."""
    refused = verb(lied_about_bo, "ada", "pin", "bo", *words_of(lied_about_bo, "bo"))
    refused.refuses(5, "E-MEMBER-FINGERPRINT")
    assert not (lied_about_bo.root / "ada" / "members.toml").exists()
    own = verb(lied_about_bo, "bo", "show")
    assert "of this node itself" in own.refuses(5, "E-MEMBER-CHANGED")


def test_a_pinned_key_is_not_replaced(lied_about_bo: Federation) -> None:
    """`show` says so and ends with 5, the words of the new key are refused, the pin stays."""
    file = lied_about_bo.root / "bo.toml"
    file.write_text(verb(lied_about_bo, "bo", "export").out)
    assert verb(lied_about_bo, "ada", "pin", "--file", file).code == 0
    shown = verb(lied_about_bo, "ada", "show", "--json")
    assert shown.code == 5
    assert standings(shown)["bo"] == "CHANGED"
    told = next(each for each in shown.json["members"] if each["name"] == "bo")
    assert told["fingerprint"] == fingerprint_of(key_of(lied_about_bo, "bo"))
    people = verb(lied_about_bo, "ada", "show")
    assert "CHANGED" in people.out
    assert "unpin bo" in people.refuses(5, "E-MEMBER-CHANGED")
    again = verb(lied_about_bo, "ada", "pin", "bo", *told["told_fingerprint"].split())
    again.refuses(5, "E-MEMBER-CHANGED")
    assert load_members(lied_about_bo.root / "ada" / "members.toml") == {
        "bo": key_of(lied_about_bo, "bo")
    }


def test_a_server_that_tells_another_key_beside_the_old_certificate_is_refused(
    lied_about_bo: Federation,
) -> None:
    """The whole answer is thrown away: it contradicts itself."""
    with sqlite3.connect(lied_about_bo.home / STORE_FILE) as database:
        database.execute("UPDATE members SET enrolment_key = ? WHERE name = 'bo'", (bytes(32),))
    database.close()
    for arguments in (("show",), ("pin", "cy", *words_of(lied_about_bo, "cy"))):
        verb(lied_about_bo, "ada", *arguments).refuses(5, "E-MEMBER-CERTIFICATE")


def test_what_is_pinned_is_seen_and_passed_on_while_the_server_is_away(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """show, pin --file, unpin and export need no server; pin by words does, and says so."""
    with federation(tmp_path_factory.mktemp("away")) as made:
        for name in ("ada", "bo"):
            joined = made.tacit("client", "join", made.token(name), "--home", made.root / name)
            words = fingerprint_of(key_of(made, name))
            assert f"fingerprint: {words}" in joined.out
        made.daemons["server"].kill()
        file = made.root / "bo.toml"
        file.write_text(verb(made, "bo", "export").out)
        assert verb(made, "ada", "pin", "--file", file).code == 0
        shown = verb(made, "ada", "show")
        assert shown.code == 0
        assert "The server was not heard" in shown.out
        assert standings(verb(made, "ada", "show", "--json")) == {
            "ada": "this node",
            "bo": "pinned",
        }
        verb(made, "ada", "pin", "bo", *words.split()).refuses(6, "E-SERVER-UNREACHABLE")
        assert verb(made, "ada", "unpin", "bo").code == 0
