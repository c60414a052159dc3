"""Who is who in a federation: roles, keys, certificates and invitations, under one name.

The parts: ``keys.py`` (a member's two keys and the certificate request), ``certificates.py`` (the
authority and what a certificate says), ``invitation.py`` (the token). Trust starts at the
authority's certificate, which a new member receives inside the token and never from the network.
"""

from __future__ import annotations

from tacit.core.certificates import (
    AUTHORITY_FILE,
    AUTHORITY_KEY_FILE,
    CERTIFICATE_FILE,
    Authority,
    MemberIdentity,
    der_of,
    identity_of,
    load_certificate,
    pem_of,
    serial_of,
)
from tacit.core.invitation import (
    TOKEN_PREFIX,
    Token,
    encode_token,
    parse_token,
    verify_token_fresh,
)
from tacit.core.keys import (
    ENROLMENT_KEY_FILE,
    TLS_KEY_FILE,
    MemberKeys,
    MemberRequest,
    Role,
    certificate_request,
    check_member_name,
    node_id_of,
    sign_request,
    verify_request,
)

__all__ = [
    "AUTHORITY_FILE",
    "AUTHORITY_KEY_FILE",
    "CERTIFICATE_FILE",
    "ENROLMENT_KEY_FILE",
    "TLS_KEY_FILE",
    "TOKEN_PREFIX",
    "Authority",
    "MemberIdentity",
    "MemberKeys",
    "MemberRequest",
    "Role",
    "Token",
    "certificate_request",
    "check_member_name",
    "der_of",
    "encode_token",
    "identity_of",
    "load_certificate",
    "node_id_of",
    "parse_token",
    "pem_of",
    "serial_of",
    "sign_request",
    "verify_request",
    "verify_token_fresh",
]
