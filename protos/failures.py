"""Errors across the wire: a status code for the family, a stable code, and never a text.

The sender puts the stable code into the trailing metadata ``tacit-code``. The receiver writes its
own sentence for it (:data:`MEANINGS`), because what a peer sends is not shown to people: it could
quote a record, or steer a terminal. A failure without a stable code comes from the transport, and
is told apart by the words of this machine's own gRPC library.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from tacit.core.errors import (
    AppError,
    AuditError,
    BudgetError,
    ConfigError,
    DataError,
    ProtocolError,
    RefusedError,
    TacitError,
    TrustError,
    UnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

CODE_KEY = "tacit-code"

_CODE = re.compile(r"E-[A-Z0-9-]{1,60}")
_STATUS: tuple[tuple[type[TacitError], grpc.StatusCode], ...] = (
    (BudgetError, grpc.StatusCode.RESOURCE_EXHAUSTED),  # before its parent, RefusedError
    (RefusedError, grpc.StatusCode.PERMISSION_DENIED),
    (TrustError, grpc.StatusCode.UNAUTHENTICATED),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (ConfigError, grpc.StatusCode.FAILED_PRECONDITION),
    (DataError, grpc.StatusCode.DATA_LOSS),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (ProtocolError, grpc.StatusCode.OUT_OF_RANGE),
    (AuditError, grpc.StatusCode.ABORTED),
    (AppError, grpc.StatusCode.INTERNAL),
)

_ASK_OPERATOR = "Ask the operator of the server for a new token."
_IS_IT_UP = "Check address and port; on its own machine, `tacit server status` tells if it runs."
MEANINGS: Mapping[str, tuple[str, str]] = {  # code: (what happened, what to do)
    "E-AUDIT-MODEL": (
        "the weights that came with the audit, or the twin, are not the run's",
        "`tacit audit run RUN` and `tacit audit canaries RUN` take them from the server.",
    ),
    "E-AUDIT-RUN": (
        "the run that the audit names is no finished training run, or not as the audit describes",
        "`tacit run list` shows which have finished; `tacit audit run RUN` asks about one.",
    ),
    "E-CANARIES-LATE": (
        "the run with canaries had started before this node said yes: it goes on without the node",
        "Owners commit to canaries before a run starts, or not at all: ask for another twin.",
    ),
    "E-CANARY-COMMITMENT": (
        "the server has another commitment to canaries from this node: the run goes on without it",
        "A node restored from a backup holds no bits and draws others: ask for another twin.",
    ),
    "E-CERTIFICATE-EXPIRED": ("this member's certificate has ended", _ASK_OPERATOR),
    "E-CLIENTS-LIMIT": (
        "the federation is full",
        "Ask the operator: the limit is max_clients in server.toml.",
    ),
    "E-DISK-FULL": (
        "the server's disk is full",
        "The operator frees some space there; nothing was lost.",
    ),
    "E-FILE-UNKNOWN": ("the run has no such file", "`tacit run pull` fetches what there is."),
    "E-INTERNAL": ("the server met a bug", "Ask the operator: the server's log tells where."),
    "E-KEY-KNOWN": ("these keys are enrolled already", "Enrol from an empty state directory."),
    "E-LEDGER-FORK": (
        "the server has seen another history of this node's ledger",
        (
            "Two nodes work on copies of one state directory, or the ledger was replaced: stop "
            "one for good, and keep the ledger that the server knows."
        ),
    ),
    "E-LEDGER-ROLLBACK": (
        "the server has seen more of this node's ledger than there is",
        "An old copy was put back: put back the newest one. What left stays spent.",
    ),
    "E-MEMBER-EXISTS": ("there is a member of that name", "Choose another name, or revoke it."),
    "E-MEMBER-REVOKED": ("this member has been revoked", _ASK_OPERATOR),
    "E-MEMBER-UNKNOWN": ("there is no member of that name", "See `tacit server members`."),
    "E-NODE-TWICE": (
        "another node has connected with this node's keys while this one was connected",
        (
            "Two nodes work on copies of one state directory, and each charges a ledger that lacks "
            "what the other released: stop one for good, and see `tacit client check` at the other."
        ),
    ),
    "E-PROTOCOL-VERSION": (
        "server and client speak different versions of the protocol",
        "Install the same version of tacit at both ends.",
    ),
    "E-ROLE-REFUSED": (
        "this member's role may not do that",
        (
            "Operators submit runs, auditors submit audits (`tacit audit run`, `tacit audit "
            "canaries`), clients take part: name the profile of a member who may (--profile)."
        ),
    ),
    "E-RUN-ENDED": ("the run has ended", ""),
    "E-RUN-TOO-LARGE": ("the run's model is too large for the server", ""),
    "E-RUN-UNKNOWN": ("there is no such run", "See `tacit run list`."),
    "E-RUNS-LIMIT": ("the server has as many runs waiting as it takes", "Try again later."),
    "E-SERVER-DRAINING": ("the server is about to stop and takes no new work", "Try again later."),
    "E-SPOOL-FULL": (
        "the server's spool is full",
        "The operator may raise max_spool_bytes in server.toml.",
    ),
    "E-TOKEN-EXPIRED": ("the token has expired", _ASK_OPERATOR),
    "E-TOKEN-USED": ("the token has been used", _ASK_OPERATOR),
    "E-TOKEN-WITHDRAWN": ("a newer token replaced this one", "Use the newer token."),
    "E-TOKEN-WRONG": ("the server does not know this token", "Copy the whole token again."),
    "E-TWIN-OF": (
        "the run to be tested has not finished, or is an audit or a twin itself",
        (
            "Name a training run that has finished: `tacit run list`. A run that is only planned "
            "gets its twin from [canaries] in its run.toml."
        ),
    ),
    "E-TWIN-RUN": (
        "the run with canaries is not, value by value, the run that it names",
        "`tacit audit canaries RUN` makes the twin of a run.",
    ),
}

_PROFILE_HINT = "Check the address and the token or profile; then ask the operator."
_Rule = tuple[str, type[TacitError], str, str, str]
_TRANSPORT: tuple[_Rule, ...] = (  # words of gRPC's details, then family, code, message, hint
    (
        "certificate has expired",
        TrustError,
        "E-SERVER-CERTIFICATE-EXPIRED",
        "the server's certificate has expired, or this machine's clock is wrong",
        "Check the clock of this machine; then ask the operator to renew the certificate.",
    ),
    (
        "certificate is not yet valid",
        TrustError,
        "E-SERVER-CERTIFICATE-EXPIRED",
        "the server's certificate does not hold yet, or this machine's clock is wrong",
        "Check the clock of this machine.",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        TrustError,
        "E-SERVER-CERTIFICATE",
        "the server's certificate is not from this federation's authority",
        _PROFILE_HINT,
    ),
    (
        "Hostname Verification Check failed",
        TrustError,
        "E-SERVER-CERTIFICATE-NAME",
        "the server's certificate does not name this address",
        (
            "Use an address that the server has; or the operator adds this one to `names` in "
            "server.toml and starts the server again."
        ),
    ),
    (
        "hostname lookup",
        UnavailableError,
        "E-SERVER-NAME-UNKNOWN",
        "the server's name cannot be resolved",
        "Check the spelling of the address and this machine's DNS.",
    ),
    (
        "Connection refused",
        UnavailableError,
        "E-SERVER-UNREACHABLE",
        "nothing listens at the server's address",
        _IS_IT_UP,
    ),
    (
        "No such file or directory",
        UnavailableError,
        "E-SERVER-UNREACHABLE",
        "the daemon does not run",
        "Start it first.",
    ),
    (
        "Socket closed",
        UnavailableError,
        "E-SERVER-CLOSED",
        "the server closed the connection",
        (
            "It may have stopped, or it does not accept this member's certificate: "
            "of another federation, or ended."
        ),
    ),
    (
        "andshake",
        UnavailableError,
        "E-SERVER-NOT-TLS",
        "what answers at this address does not speak TLS as a Tacit server does",
        "Check the port: members connect to `listen`, new members to `enrolment_listen`.",
    ),
)
_BY_STATUS: Mapping[grpc.StatusCode, tuple[type[TacitError], str, str, str]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        UnavailableError,
        "E-SERVER-TIMEOUT",
        "the server did not answer in time",
        "Check that address and port are open to this machine (firewall).",
    ),
    grpc.StatusCode.UNAVAILABLE: (
        UnavailableError,
        "E-SERVER-UNREACHABLE",
        "the server cannot be reached",
        _IS_IT_UP,
    ),
    grpc.StatusCode.CANCELLED: (
        UnavailableError,
        "E-CALL-CANCELLED",
        "the call was broken off",
        "Try again.",
    ),
    grpc.StatusCode.INTERNAL: (  # gRPC's own: a server that refuses in the middle of an upload
        UnavailableError,  # may reach the sender as this, in place of the refusal
        "E-CALL-BROKEN",
        "the call broke off without a reason",
        "Try again: the server tells why, if it refused.",
    ),
    grpc.StatusCode.UNIMPLEMENTED: (
        ProtocolError,
        "E-PROTOCOL-VERSION",
        *MEANINGS["E-PROTOCOL-VERSION"],
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        ProtocolError,
        "E-MESSAGE-TOO-LARGE",
        "a message exceeds the limit of the wire",
        "",
    ),
}


def status_error(error: TacitError) -> grpc.StatusCode:
    """Return the status code of an error's family."""
    for family, status in _STATUS:
        if isinstance(error, family):
            return status
    return grpc.StatusCode.UNKNOWN


async def abort_with(context: grpc.aio.ServicerContext[Any, Any], error: TacitError) -> NoReturn:
    """End a call with an error: the peer learns its family and stable code, nothing else.

    Raises:
        AbortError: always; gRPC catches it.
    """
    await context.abort(status_error(error), error.code, ((CODE_KEY, error.code),))
    raise AssertionError("abort always raises")


def error_from_rpc(failure: grpc.RpcError) -> TacitError:
    """Return the error of our tree that a failed call stands for."""
    call: Any = failure  # the type says less than every failed call has
    status: grpc.StatusCode = call.code()
    code = next((v for k, v in call.trailing_metadata() or () if k == CODE_KEY), "")
    if isinstance(code, str) and _CODE.fullmatch(code):
        family = next((f for f, s in _STATUS if s is status), TacitError)
        message, hint = MEANINGS.get(code, ("the server refused the call", ""))
        return family(code, message, hint=hint)
    return _transport_error(status, call.details() or "")


def _transport_error(status: grpc.StatusCode, details: str) -> TacitError:
    if status is grpc.StatusCode.UNAVAILABLE:
        for words, family, code, message, hint in _TRANSPORT:
            if words in details:
                return family(code, message, hint=hint)
    family, code, message, hint = _BY_STATUS.get(
        status, (ProtocolError, "E-CALL-FAILED", f"the call failed ({status.name})", "")
    )
    return family(code, message, hint=hint)
