"""Calls one run's ClientApp: records in, records out, the app's state kept between calls.

Runs inside the confined worker, or inside the simulator. What it hands out is as untrusted as the
app: the node checks it. Loads flwr, and whatever the app loads; never import it in a daemon.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flwr.clientapp import ClientApp

from tacit.core.errors import AppError, TacitError
from tacit.protos import fleet_pb2, records_pb2
from tacit.protos.codec import Encoded, decode_records, encode_records
from tacit.protos.flower import (
    ConfigRecord,
    RecordDict,
    make_instruction,
    new_context,
    reply_parts,
    set_task_identity,
)
from tacit.protos.manifest import values_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tacit.protos import pipe_pb2
    from tacit.protos.manifest import Value

logger = logging.getLogger("tacit.client.apphost")

PRIVATE_RECORD = "tacit"  # what the node tells the app beside the message; never persisted
_RAISED = 2  # flwr's ErrorCode.CLIENT_APP_RAISED_EXCEPTION


@dataclass(frozen=True, kw_only=True)
class HostedAnswer:
    """An app's answer and its state after the call.

    Attributes:
        reply: the head, with the content's manifest or the failure.
        content: the content; None for a failure.
        state: the app's state.
    """

    reply: fleet_pb2.ReplyHead
    content: Encoded | None
    state: Encoded


class AppHost:
    """One loaded app and its context."""

    def __init__(self, begin: pipe_pb2.WorkerBegin, state: memoryview) -> None:
        """Load the app.

        Args:
            begin: what to load, and its configuration.
            state: the payload of the state that ``begin`` describes.

        Raises:
            AppError: the app cannot be imported, or is none.
        """
        self._begin = begin
        self._app = load_app(begin.app)
        self._context = new_context(
            run_id=begin.flower_run_id,
            node_id=begin.node_id,
            node_config=_scalars(values_of(begin.node_config)),
            run_config=_scalars(values_of(begin.run_config)),
            state=decode_records(begin.state, state),
        )

    def call(self, call: pipe_pb2.WorkerCall, payload: memoryview) -> HostedAnswer:
        """Hand one instruction to the app; whatever it raises becomes a failure."""
        head = call.instruction
        reply = fleet_pb2.ReplyHead(run_id=head.run_id, message_id=head.message_id)
        content: Encoded | None = None
        try:
            content = self._called(call, payload)
            reply.manifest.CopyFrom(content.manifest)
        except TacitError as error:
            logger.error("the app gave up", extra={"fields": {"reason": str(error)}})  # noqa: TRY400 - the reason says it all
            reply.failure.CopyFrom(records_pb2.AppFailure(code=_RAISED, reason=error.code))
        except Exception:
            logger.exception("the app raised")
            reply.failure.CopyFrom(records_pb2.AppFailure(code=_RAISED, reason="E-APP-RAISED"))
        finally:
            self._context.state.pop(PRIVATE_RECORD, None)
        return HostedAnswer(reply=reply, content=content, state=encode_records(self._context.state))

    def _called(self, call: pipe_pb2.WorkerCall, payload: memoryview) -> Encoded:
        head, node_id = call.instruction, self._begin.node_id
        set_task_identity(run_id=self._begin.flower_run_id, node_id=node_id)
        message = make_instruction(head, decode_records(head.manifest, payload), node_id=node_id)
        if call.noise_key:
            self._context.state[PRIVATE_RECORD] = ConfigRecord({"noise-key": call.noise_key})
        outcome = reply_parts(self._app(message, self._context))
        if isinstance(outcome, RecordDict):
            return encode_records(outcome, digest=False)  # the node takes that of its own copy
        raise AppError(outcome.reason, "the app answered with an error")


def _scalars(values: Mapping[str, Value]) -> dict[str, bool | int | float | str]:
    """Return what Flower's configurations can hold, which is all that the node puts into them."""
    return {
        key: value for key, value in values.items() if isinstance(value, bool | int | float | str)
    }


def load_app(name: str) -> ClientApp:
    """Import a ClientApp by ``package.module:attribute``.

    Raises:
        AppError: it cannot be imported, or is no ClientApp.
    """
    module_name, _, attribute = name.partition(":")
    try:
        app = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        logger.exception("the app could not be imported")
        raise AppError("E-APP-IMPORT", f"expected to import {name!r}: {error}") from error
    if not isinstance(app, ClientApp):
        raise AppError("E-APP-IMPORT", f"expected a flwr ClientApp at {name!r}")
    return app
