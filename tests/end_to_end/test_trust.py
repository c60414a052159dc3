"""Who may not come in, does not: tokens, certificates, roles, revocation, over real doors."""

from __future__ import annotations

import datetime as dt
import shutil
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tacit.core.errors import TrustError, UnavailableError
from tacit.core.identity import encode_token, parse_token
from tacit.core.membership import Membership
from tacit.core.profiles import Profile
from tacit.protos.control_client import open_profile
from tacit.server.store import STORE_FILE
from tests.end_to_end.federation import Federation, eventually, federation, processes
from tests.end_to_end.runs import initial_file, quick_spec, with_clients

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("trust"), "ada") as made:
        yield made


def assert_unharmed(played: Federation) -> None:
    """The federation still serves its members."""
    with played.operator() as operator:
        assert operator.status().connected_clients >= 1


def test_a_token_that_is_none_is_refused_before_anything_is_asked(played: Federation) -> None:
    """Half a token, as a careless copy leaves it, is told apart from a wrong one."""
    half = played.token("half")[:-9]
    home = played.root / "half"
    played.tacit("client", "join", half, "--home", home).refuses(5, "E-TOKEN-MALFORMED")
    assert not home.exists()


def test_a_wrong_token_is_refused(played: Federation) -> None:
    """A secret that the server did not make opens nothing, and the true one still does."""
    token = parse_token(played.token("wrong"))
    wrong = encode_token(replace(token, secret=bytes(32)))
    home = played.root / "wrong"
    played.tacit("client", "join", wrong, "--home", home).refuses(5, "E-TOKEN-WRONG")
    assert played.tacit("client", "join", encode_token(token), "--home", home).code == 0


def test_a_used_token_is_refused(played: Federation) -> None:
    """A token works once, whoever holds it."""
    token = played.token("used")
    assert played.tacit("client", "join", token, "--home", played.root / "used").code == 0
    second = played.tacit("client", "join", token, "--home", played.root / "second")
    second.refuses(5, "E-TOKEN-USED")
    again = played.tacit("client", "join", token, "--home", played.root / "used")
    again.refuses(2, "E-ALREADY-ENROLLED")


def test_an_expired_token_is_refused_at_both_ends(played: Federation) -> None:
    """The owner's machine says so by its own clock, and the server whatever the token claims."""
    token = parse_token(played.token("late"))
    home = played.root / "late"
    past = encode_token(replace(token, expires_at=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)))
    played.tacit("client", "join", past, "--home", home).refuses(5, "E-TOKEN-EXPIRED")
    with sqlite3.connect(played.home / STORE_FILE) as database:
        query = "UPDATE invitations SET expires_at_s = 1 WHERE invitation_id = ?"
        assert database.execute(query, (token.invitation_id,)).rowcount == 1
    database.close()
    late = played.tacit("client", "join", encode_token(token), "--home", home)
    late.refuses(5, "E-TOKEN-EXPIRED")


def test_a_token_of_the_wrong_role_is_refused(played: Federation) -> None:
    """An operator's token makes no owner, and an owner's no operator."""
    operator = played.token("op", "operator")
    home = played.root / "op"
    played.tacit("client", "join", operator, "--home", home).refuses(2, "E-TOKEN-ROLE")
    played.tacit("login", played.token("cli")).refuses(2, "E-TOKEN-ROLE")


def test_a_certificate_of_another_authority_opens_nothing(
    played: Federation, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A member of another federation is no member here, even with this authority's certificate."""
    with federation(tmp_path_factory.mktemp("other")) as other:
        other.join("eve")
    stranger = played.root / "stranger"
    shutil.copytree(other.root / "eve" / "identity", stranger)
    shutil.copy(played.root / "ada" / "identity" / "authority.pem", stranger)
    profile = Profile(name="stranger", addresses=(played.address,), folder=stranger)
    with pytest.raises(UnavailableError) as caught, open_profile(profile):
        pass
    assert caught.value.code == "E-SERVER-CLOSED"  # TLS 1.3 tells the stranger no reason
    assert "of another federation" in caught.value.hint
    assert_unharmed(played)


def test_a_server_of_another_authority_is_not_talked_to(
    played: Federation, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """An owner's node whose server was replaced says so, and keeps its own counsel."""
    with federation(tmp_path_factory.mktemp("other")) as other:
        home = other.join("eve")
        other.daemons["server"].kill()
        server = home / "identity" / "server.json"
        server.write_text(server.read_text().replace(str(other.ports[0]), str(played.ports[0])))
        check = other.tacit("client", "check", "--home", home)
        assert check.code == 3
        assert "E-SERVER-CERTIFICATE" in check.out
        assert "Check the address" in check.out


def test_a_client_s_certificate_is_refused_on_operator_calls(played: Federation) -> None:
    """The role is in the certificate, and is checked on each call."""
    home = played.root / "disguised"
    profile = home / "profiles" / "default"
    home.mkdir(mode=0o700)
    shutil.copytree(played.root / "ada" / "identity", profile)
    disguise = {"TACIT_OPERATOR_HOME": str(home)}
    for verb in (("run", "list"), ("run", "watch"), ("run", "pull")):
        played.tacit(*verb, environment=disguise).refuses(5, "E-ROLE-REFUSED")
    assert_unharmed(played)


def test_a_revoked_client_is_cut_off(played: Federation) -> None:
    """On its open Watch stream at once, in the middle of a run; and on its next call."""
    played.add_clients("bob")
    bob = played.daemons["bob"]
    (gate,) = played.hold(2, "bob")
    run = with_clients(quick_spec(), 1)
    run_id = played.submit(run, initial_file(played.root))
    played.wait_until_held("bob", 2, run_id)
    revoked = played.tacit("server", "revoke", "bob", "--home", played.home, "--reason", "left")
    assert revoked.code == 0
    assert bob.ends() == 5
    assert "[E-MEMBER-REVOKED]" in bob.text
    assert "hint: " in bob.text
    gate.unlink()
    eventually("its worker to end", lambda: not processes(f"{played.root}/bob/scratch"))

    home = played.root / "bob"
    check = played.tacit("client", "check", "--home", home)
    assert (check.code, "E-MEMBER-REVOKED" in check.out) == (3, True)
    played.tacit("client", "start", "--home", home).refuses(5, "E-MEMBER-REVOKED")
    played.finish(run_id)  # with ada alone
    failed = [
        (fields["member"], fields["code"])
        for kind, fields in played.events(run_id)
        if kind == "reply_failed"
    ]
    assert failed == [("bob", "E-MEMBER-REVOKED")]
    member = Membership(home / "identity")
    profile = Profile(name="bob", addresses=(played.address,), folder=member.folder)
    with pytest.raises(TrustError) as caught, open_profile(profile):
        pass
    assert caught.value.code == "E-MEMBER-REVOKED"
