"""A round through secure aggregation, in the run's worker: what is made of sums unseen in parts.

The strategy gets one reply, as if one client had sent it: the received weights, moved by the mean
of the members' updates; or, in mode ``record-distributed``, by as many optimiser steps as a round
has, each on one noised sum of clipped gradients.

A session that ends early leaves the steps that were done: the next has keys, masks and noise of its
own, and goes on from there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flwr.app import Message, MetricRecord, RecordDict

from tacit.core.errors import AppError, TacitError
from tacit.core.specification import PrivacyMode
from tacit.privacy.secagg.server import ServerSession
from tacit.privacy.secure_sum import forms_of, secure_plan, terms_of, weight_key
from tacit.protos.fleet_pb2 import ReplyHead
from tacit.protos.flower import array_record, make_reply
from tacit.protos.records_pb2 import AppFailure
from tacit.server.optimiser import Optimiser
from tacit.server.secure_exchange import SecureExchange, digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from tacit.core.artifacts import Arrays
    from tacit.core.specification import RunSpec
    from tacit.privacy.secagg.server import Sum
    from tacit.privacy.secagg.terms import Member, Terms
    from tacit.privacy.secure_sum import SecurePlan
    from tacit.server.grid import TacitGrid

log = logging.getLogger("tacit.server.secure_round")

_RAISED = 2  # flwr's ErrorCode.CLIENT_APP_RAISED_EXCEPTION


@dataclass(frozen=True, kw_only=True)
class Secured:
    """What an attempt came to.

    Attributes:
        replies: one reply with the mean, if there is one, and an error for each member lost.
        survivors: whose vectors are in the mean.
        reason: why there is no mean; empty if there is one.
    """

    replies: list[Message]
    survivors: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a strategy asks of the members in one attempt; ``key`` names the model's record."""

    messages: Sequence[Message]
    content: RecordDict
    key: str
    timeout_s: float


class SecureRounds:
    """The rounds of one run whose updates are summed unseen."""

    def __init__(
        self,
        run_id: str,
        specification: RunSpec,
        specification_sha256: bytes,
        *,
        grid: TacitGrid,
        members: Sequence[Member],
        state: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        """Take the members whom the run names, and a checkpoint's arrays."""
        self._run_id = run_id
        self._spec = specification
        self._sha256 = specification_sha256
        self._grid = grid
        self._members = members
        self._ids = {member.node_id for member in members}
        self._optimiser = None
        if specification.privacy.mode is PrivacyMode.RECORD_DISTRIBUTED and specification.training:
            self._optimiser = Optimiser(specification.training, state)
        self._begun, self._done = 0, 0  # the round that is under way, and its steps so far
        self._weights: Arrays = {}

    def attempt(
        self, messages: Sequence[Message], *, round_number: int, attempt: int, timeout_s: float
    ) -> Secured:
        """Send one instruction to the cohort and return what the survivors' sums make of it.

        Args:
            messages: of the strategy, one for each node, all of the same content.
            round_number: from 1.
            attempt: of the round, from 1.
            timeout_s: for each training.

        Raises:
            AppError: the strategy asks members for different things (``E-SECAGG-CONTENT``).
        """
        content = _one_content(messages)
        key, received = _model_of(content)
        plan = secure_plan(self._spec, forms_of(received))
        asked = _Asked(
            messages=[m for m in messages if _node(m) in self._ids],
            content=content,
            key=key,
            timeout_s=timeout_s,
        )
        steps = self._spec.secure_steps
        if self._begun != round_number:
            self._begun, self._weights, self._done = round_number, received, 0
        failed: dict[int, str] = {}
        reason, metrics = "", dict[str, int | float]()
        survivors: tuple[int, ...] = ()
        for part in range(1, steps + 1):
            number = (attempt - 1) * steps + part
            terms = self._terms(plan, round_number, number, steps=steps - self._done)
            exchange = SecureExchange(self._grid, ServerSession(terms), terms_bytes=terms.encode())
            before = self._done
            try:
                survivors, metrics = self._play(exchange, plan, asked)
            except TacitError as error:
                reason = error.message
                fields = {"round": round_number, "code": error.code, "why": reason}
                log.warning("a session ended early", extra={"fields": fields})
            failed |= exchange.failed
            if self._done in (before, steps):
                break
        lost = [_failure(m, failed) for m in asked.messages if _node(m) in failed]
        if self._done < steps:
            return Secured(replies=lost, reason=reason)
        self._begun = 0  # whoever tries a finished round again begins it anew
        mean = self._reply(asked, survivors, metrics)
        return Secured(replies=[mean, *lost], survivors=survivors)

    def _play(
        self, exchange: SecureExchange, plan: SecurePlan, asked: _Asked
    ) -> tuple[tuple[int, ...], dict[str, int | float]]:
        """Play one session: steps from where the round stands; return survivors and metrics.

        Raises:
            TacitError: it ended early; the steps that were done stay done.
        """
        nodes = [_node(message) for message in asked.messages]
        total = exchange.first(nodes, self._content(asked), timeout_s=asked.timeout_s)
        while True:
            metrics = self._take(plan, total)
            self._done += 1
            if self._done == self._spec.secure_steps:
                return total.survivors, metrics
            total = exchange.next(self._content(asked), timeout_s=asked.timeout_s)

    def _take(self, plan: SecurePlan, total: Sum) -> dict[str, int | float]:
        """Move the weights by a sum: an optimiser's step, or the mean of updates."""
        count = len(total.survivors)
        vector = plan.decode(total.values)
        if self._optimiser is not None:
            vector /= self._spec.privacy.normaliser
            self._weights = self._optimiser.step(self._weights, plan.layout.split(vector))
            return {weight_key(self._spec): count}
        limbs = total.values[plan.layout.changes :]
        weight, metrics = plan.layout.sums(limbs, members=count)
        vector /= weight
        self._weights = plan.layout.updated(self._weights, vector)
        return {**metrics, weight_key(self._spec): weight}

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return what the next round needs, for a checkpoint: the optimiser's moments."""
        return {} if self._optimiser is None else dict(self._optimiser.state())

    def _terms(self, plan: SecurePlan, round_number: int, number: int, *, steps: int) -> Terms:
        return terms_of(
            plan,
            self._members,
            specification_sha256=self._sha256,
            run=self._run_id,
            round_number=round_number,
            attempt=number,
            steps=steps,
        )

    def _content(self, asked: _Asked) -> RecordDict:
        """Return the instruction of the next step: the strategy's own, with the present weights."""
        if self._done == 0:
            return asked.content
        records = {key: asked.content[key] for key in asked.content}
        return RecordDict({**records, asked.key: array_record(self._weights)})

    def _reply(
        self, asked: _Asked, survivors: tuple[int, ...], metrics: Mapping[str, int | float]
    ) -> Message:
        first = next(m for m in asked.messages if _node(m) == survivors[0])
        content = RecordDict(
            {asked.key: array_record(self._weights), "metrics": MetricRecord(dict(metrics))}
        )
        head = ReplyHead(run_id=self._run_id, message_id=first.metadata.message_id)
        return make_reply(head, content, node_id=_node(first), instruction=first)


def _one_content(messages: Sequence[Message]) -> RecordDict:
    """Return what all messages say; most strategies give them one object."""
    first = messages[0].content
    if all(message.content is first for message in messages):
        return first
    digests = {digest_of(message.content) for message in messages}
    if len(digests) != 1:
        raise AppError(
            "E-SECAGG-CONTENT",
            "expected the strategy to ask all members for the same, got different instructions",
            hint="Under secure aggregation masks cancel only between members who got the same.",
        )
    return first


def _model_of(content: RecordDict) -> tuple[str, Arrays]:
    """Return the one record of arrays of an instruction: its key, and the arrays by name."""
    records = list(content.array_records.items())
    if len(records) != 1:
        raise AppError(
            "E-SECAGG-CONTENT", f"expected an instruction with one model, got {len(records)}"
        )
    key, record = records[0]
    return key, {name: array.numpy() for name, array in record.items()}


def _node(message: Message) -> int:
    return int(message.metadata.dst_node_id)


def _failure(message: Message, failed: Mapping[int, str]) -> Message:
    reason = failed[_node(message)]
    head = ReplyHead(failure=AppFailure(code=_RAISED, reason=reason))
    return make_reply(head, None, node_id=_node(message), instruction=message)
