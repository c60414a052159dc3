"""`tacit login`: an operator's or auditor's token becomes a profile on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from tacit.cli.output import emit
from tacit.core.errors import UsageError
from tacit.core.identity import Role, parse_token
from tacit.core.profiles import DEFAULT_PROFILE, profile_folder
from tacit.protos.enrolment_client import enrol


def command(
    token: Annotated[str, typer.Argument(help="The token, from whoever invited you.")],
    profile: Annotated[
        str, typer.Option(help="What to call the profile: `tacit run ... --profile NAME`.")
    ] = DEFAULT_PROFILE,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Turn an operator's or auditor's token into a profile, with which `tacit run` works.

    Keys are made here and stay here. A data owner joins with `tacit client join` instead.
    """
    parsed = parse_token(token)
    if parsed.role is Role.CLIENT:
        raise UsageError(
            "E-TOKEN-ROLE",
            "expected the token of an operator or auditor, got one of a client",
            hint="A data owner's machine joins with `tacit client join TOKEN`.",
        )
    membership = enrol(parsed, profile_folder(profile))
    identity = membership.identity
    value = {
        "name": identity.name,
        "role": identity.role,
        "profile": profile,
        "addresses": membership.addresses,
        "expires_at": identity.not_after,
    }
    emit(value, json=json)
