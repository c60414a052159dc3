"""A new member's side of enrolment: a token becomes keys and a certificate in a folder.

The keys are made here and never leave. The token names the authority: nothing else is trusted, and
what the server answers is checked against it. Keys are stored before the token is spent, so that an
enrolment whose answer was lost can be repeated with the same token.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
from typing import TYPE_CHECKING

import grpc

from tacit.core.errors import TacitError, TrustError, UnavailableError, UsageError
from tacit.core.files import make_private_folder
from tacit.core.identity import (
    ENROLMENT_KEY_FILE,
    MemberKeys,
    certificate_request,
    identity_of,
    sign_request,
    verify_token_fresh,
)
from tacit.core.membership import Membership, replace_certificate, save_membership
from tacit.protos.channel import control_channel, enrolment_channel, error_from_rpc
from tacit.protos.enrolment_pb2 import EnrolReply, EnrolRequest, RenewRequest
from tacit.protos.enrolment_pb2_grpc import EnrolmentStub

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.core.identity import Token

_TIMEOUT_S = 30.0


def enrol(token: Token, folder: Path, *, now: dt.datetime | None = None) -> Membership:
    """Spend a token: make keys in ``folder``, and have them certified.

    Raises:
        UsageError: there is a membership in the folder already (E-ALREADY-ENROLLED).
        TrustError: the token has ended or is refused, or the server is not the token's.
        UnavailableError: no address of the token answers.
    """
    verify_token_fresh(token, now=now or dt.datetime.now(dt.UTC))
    if Membership(folder).exists:
        raise UsageError(
            "E-ALREADY-ENROLLED",
            f"expected a folder without a membership, got one in {folder}",
            hint="Leave that federation first, or choose another folder or profile.",
        )
    keys = _keys_in(folder)
    request = certificate_request(keys)
    reply = _ask(
        token,
        EnrolRequest(
            invitation_id=token.invitation_id,
            secret=token.secret,
            certificate_request_der=request,
            possession_signature=sign_request(keys, request),
            software_version=importlib.metadata.version("tacit"),
        ),
    )
    identity = identity_of(reply.certificate_der)
    if (identity.name, identity.role) != (token.name, token.role):
        raise TrustError(
            "E-CERTIFICATE-IDENTITY", "expected the name and role of the token, got others"
        )
    return save_membership(
        folder,
        keys=keys,
        certificate_der=reply.certificate_der,
        authority_der=token.authority_der,
        addresses=token.addresses,
        enrolment_addresses=token.enrolment_addresses,
    )


def renew(membership: Membership) -> None:
    """Replace a membership's certificate by a fresh one for the same keys (blocking).

    Raises:
        TrustError: the server refuses, or answers with a certificate that is not ours.
        UnavailableError: no address answers.
    """
    keys = membership.keys
    request = certificate_request(keys)
    message = RenewRequest(
        certificate_request_der=request, possession_signature=sign_request(keys, request)
    )
    failure: TacitError = UnavailableError("E-SERVER-UNREACHABLE", "no address is known")
    for address in membership.addresses:
        with control_channel(
            address,
            authority_pem=membership.authority_pem,
            certificate_pem=membership.certificate_pem,
            key_pem=membership.key_pem,
        ) as channel:
            try:
                reply = EnrolmentStub(channel).Renew(message, timeout=_TIMEOUT_S)
            except grpc.RpcError as error:
                failure = error_from_rpc(error)
                continue
        replace_certificate(membership, reply.certificate_der)
        return
    raise failure


def _keys_in(folder: Path) -> MemberKeys:
    """Return the keys of an enrolment that was begun here, or fresh ones, stored."""
    if (folder / ENROLMENT_KEY_FILE).exists():
        return MemberKeys.load(folder)
    make_private_folder(folder)
    keys = MemberKeys.generate()
    keys.save(folder)
    return keys


def _ask(token: Token, request: EnrolRequest) -> EnrolReply:
    failures: list[str] = []
    distrusted: TacitError | None = None
    for address in token.enrolment_addresses:
        with enrolment_channel(address, token.authority_der) as channel:
            try:
                return EnrolmentStub(channel).Enrol(request, timeout=_TIMEOUT_S)
            except grpc.RpcError as error:
                failure = error_from_rpc(error)
        if isinstance(failure, UnavailableError):
            failures.append(f"{address}: {failure.message}")
        elif failure.code.startswith("E-SERVER-CERTIFICATE"):
            distrusted = failure  # somebody else at this address; another one may be right
        else:
            raise failure
    raise distrusted or UnavailableError(
        "E-SERVER-UNREACHABLE",
        f"no address of the token answers: {'; '.join(failures)}",
        hint="Check that the server runs and that its enrolment port is open to this machine.",
    )
