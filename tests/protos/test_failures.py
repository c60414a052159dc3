"""Errors cross the wire as family and code, and come back as sentences of our own."""

from __future__ import annotations

import grpc
import pytest

from tacit.core import errors
from tacit.core.errors import ProtocolError, TacitError, TrustError, UnavailableError
from tacit.protos.failures import CODE_KEY, MEANINGS, error_from_rpc, status_error

FAMILIES = [
    family
    for family in vars(errors).values()
    if isinstance(family, type) and issubclass(family, TacitError) and family is not TacitError
]


class FailedCall(grpc.RpcError):
    """What gRPC raises, as far as we look at it."""

    def __init__(self, status: grpc.StatusCode, details: str = "", code: str = "") -> None:
        super().__init__()
        self._status, self._details, self._code = status, details, code

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return ((CODE_KEY, self._code),) if self._code else ()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_families_survive_the_wire(family: type[TacitError]) -> None:
    """Family, exit code and stable code are the same at the other end; the text is not."""
    sent = family("E-SOMETHING", "a secret of the server")
    back = error_from_rpc(FailedCall(status_error(sent), sent.code, sent.code))
    assert (family, sent.exit_code, sent.code) == (type(back), back.exit_code, back.code)
    assert "secret" not in str(back)


@pytest.mark.parametrize("code", ["E-\x1b[31m", "boom", "E-" + "X" * 100, "E-A\n"])
def test_codes_of_peers_are_checked(code: str) -> None:
    """A code that is none is never shown: it could steer a terminal."""
    back = error_from_rpc(FailedCall(grpc.StatusCode.UNAUTHENTICATED, code, code))
    assert code not in str(back)
    assert back.code == "E-CALL-FAILED"


def test_known_codes_have_a_sentence() -> None:
    """A person learns what happened and what to do, in this machine's words."""
    back = error_from_rpc(FailedCall(grpc.StatusCode.UNAUTHENTICATED, code="E-TOKEN-USED"))
    assert MEANINGS["E-TOKEN-USED"] == (back.message, back.hint)
    assert isinstance(back, TrustError)


def test_each_role_is_told_its_own_verbs() -> None:
    """Auditors submit audits and do not only read, whoever it is that reads the hint."""
    _, hint = MEANINGS["E-ROLE-REFUSED"]
    assert "auditors submit audits (`tacit audit run`" in hint
    for code in ("E-AUDIT-RUN", "E-AUDIT-MODEL"):
        back = error_from_rpc(FailedCall(grpc.StatusCode.PERMISSION_DENIED, code=code))
        assert "tacit audit run RUN" in back.hint


@pytest.mark.parametrize(
    ("details", "family", "code"),
    [
        ("connect: Connection refused", UnavailableError, "E-SERVER-UNREACHABLE"),
        (
            "errors resolving h: [field:hostname lookup e]",
            UnavailableError,
            "E-SERVER-NAME-UNKNOWN",
        ),
        ("CERTIFICATE_VERIFY_FAILED: unable to get", TrustError, "E-SERVER-CERTIFICATE"),
        (
            "CERTIFICATE_VERIFY_FAILED: certificate has expired",
            TrustError,
            "E-SERVER-CERTIFICATE-EXPIRED",
        ),
        ("Hostname Verification Check failed.", TrustError, "E-SERVER-CERTIFICATE-NAME"),
        ("last error: Socket closed", UnavailableError, "E-SERVER-CLOSED"),
        ("something new", UnavailableError, "E-SERVER-UNREACHABLE"),
    ],
    ids=["refused", "name", "authority", "expired", "host", "closed", "other"],
)
def test_transport_failures_are_told_apart(
    details: str, family: type[TacitError], code: str
) -> None:
    """Each way not to connect has its own code, and says what to do."""
    back = error_from_rpc(FailedCall(grpc.StatusCode.UNAVAILABLE, details))
    assert (family, code) == (type(back), back.code)
    assert back.hint


def test_a_call_that_breaks_without_a_code_is_tried_again() -> None:
    """An upload that the server refuses early may end in gRPC's own INTERNAL: no reason to stop."""
    back = error_from_rpc(FailedCall(grpc.StatusCode.INTERNAL, "Internal error from Core"))
    assert (UnavailableError, "E-CALL-BROKEN") == (type(back), back.code)
    assert back.hint


def test_details_of_peers_are_not_shown() -> None:
    """A server's free text does not reach the person."""
    back = error_from_rpc(FailedCall(grpc.StatusCode.UNKNOWN, "patient 4711 \x1b[31m"))
    assert isinstance(back, ProtocolError)
    assert "4711" not in str(back)
