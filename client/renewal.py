"""A fresh certificate before the old one ends, for the same keys and without anybody's help."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from typing import TYPE_CHECKING

from tacit.core.errors import TacitError
from tacit.protos.enrolment_client import renew

if TYPE_CHECKING:
    from tacit.core.identity import MemberIdentity
    from tacit.core.membership import Membership

logger = logging.getLogger("tacit.client.renewal")

_EVERY_S = 3600.0


def is_due(identity: MemberIdentity, now: dt.datetime) -> bool:
    """Say whether a third of the certificate's life, or less, is left."""
    return (identity.not_after - now) * 3 <= identity.not_after - identity.not_before


async def keep_certificate(membership: Membership) -> None:
    """Look every hour, for ever; a failure is logged and tried again the next hour.

    Open streams go on with the old certificate; the next connection takes the new one.
    """
    while True:
        try:
            if is_due(membership.identity, dt.datetime.now(dt.UTC)):
                await asyncio.to_thread(renew, membership)
                until = f"{membership.identity.not_after:%F}"
                logger.info("certificate renewed", extra={"fields": {"until": until}})
        except TacitError as error:
            fields = {"code": error.code, "reason": error.message}
            logger.warning("certificate not renewed", extra={"fields": fields})
        await asyncio.sleep(_EVERY_S)
