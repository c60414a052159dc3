"""What each release costs, charged to the owner's ledger before it leaves.

A release is one answer to one attempt of one message. What it costs follows from the approved
specification and the owner's declarations alone, never from what the app or the server says:
training, noised metrics and histograms are reserved at their worst; what leaves without noise,
because the owner's policy allows it, is entered as such. The claim that travels with the reply
names what the run has cost so far and where the ledger ends.

1. A run is refused when it is offered if, as a whole, it does not fit beside what was spent and
   what approved runs that are not over will spend. One that is approved stays so.
2. Room is looked for before an app is called, and charged after its answer has passed every check.
3. An attempt is charged once, however often it is asked for, restarts included; another attempt is
   another charge.
4. One charge pays for one noise. An attempt that was charged is answered again from its noise key
   or not at all: once the key is wiped, the answer may have left.
5. An attempt of which nothing can leave any more, and for which the server has given no receipt, is
   entered as aborted, with the reason: charged and, as far as this side knows, not used. Its charge
   stays.
6. Noise that members share is reserved as if all but the fewest were lost, and settled once a
   quorum has signed who is in the sum; a node's own noise is exact, and never settled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from typing import TYPE_CHECKING, NamedTuple

from tacit.client.approvals import account_delta
from tacit.client.charge_parts import naming, noise_of, split_of, times
from tacit.client.ledger_terms import declared_terms
from tacit.core.errors import BudgetError, ProtocolError, RefusedError, TacitError, TrustError
from tacit.core.specification import PrivacyMode, PrivacyUnit, Relation, RunSpec
from tacit.privacy.accounting import epsilon_of_events
from tacit.privacy.audit_plan import audit_release
from tacit.privacy.distributed.plan import DistributedPlan, RunPlan, plan_of_run
from tacit.privacy.evaluation_plan import evaluation_plan
from tacit.privacy.ledger_entries import (
    Charge,
    ChargeKey,
    Expose,
    Purpose,
    Side,
    Terms,
    Unit,
)
from tacit.privacy.ledger_head import Head, SignedHead, verify_head
from tacit.protos import fleet_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tacit.client.configuration import ClientConfig, DataSet
    from tacit.client.envelope import Release
    from tacit.client.secure import Settling
    from tacit.core.audit_spec import AuditSpec
    from tacit.privacy.ledger import Ledger

logger = logging.getLogger("tacit.client.charges")

NOISE_SOURCE = "AES-256-CTR, a fresh key for each attempt"
_WHOLE_RUN = "the whole run"


class _Asked(NamedTuple):
    """What asked for a charge; the defaults are those of a run as a whole, before any message."""

    run: str
    message: str
    round: int = 0
    attempt: int = 0
    specification_sha256: str = "-"
    model_sha256: str = ""


class Charges:
    """The node's side of its ledger."""

    def __init__(self, ledger: Ledger, *, config: ClientConfig, public_key: bytes) -> None:
        """Work with a ledger.

        Args:
            ledger: the node's.
            config: the owner's client.toml.
            public_key: of the key that signs the ledger's head; raw Ed25519.
        """
        self._ledger = ledger
        self._config = config
        self._public_key = public_key

    def refusal(
        self, specification: RunSpec, run_id: str, *, beside: Mapping[str, RunSpec] | None
    ) -> RefusedError | None:
        """Say why the ledger has no place for a run as a whole, or None if it has.

        Args:
            specification: of the run.
            run_id: its id; what it was charged so far is a part of the whole.
            beside: the other runs that are approved and not over, by id; all that they will use on
                the same data set counts as used. None if this run is approved itself: it is not
                held against the room any more, which each of its messages is.
        """
        data_set = self._config.data_sets.get(specification.data_set)
        if account_delta(specification) is None or data_set is None:
            return None
        try:
            terms = self._terms(specification, data_set)
            whole = self._whole_run(specification, run_id, data_set)
            for number, charge in enumerate(whole, 1):
                self._ledger.preview(charge, terms, planned=whole[:number])
            others = self._promised(specification.data_set, beside or {})
            planned = [charge for charges in others.values() for charge in charges]
            for number, charge in enumerate(whole if planned else [], 1):
                with naming(others, terms):
                    self._ledger.preview(charge, terms, planned=[*planned, *whole[:number]])
        except BudgetError as error:
            return None if beside is None else error
        except RefusedError as error:
            return error
        except TrustError as error:  # damaged: nothing more leaves under it
            return RefusedError(error.code, error.message, hint=error.hint)
        return None

    def _promised(self, name: str, runs: Mapping[str, RunSpec]) -> dict[str, list[Charge]]:
        """Return what other runs will have been charged on a data set once they are over."""
        found: dict[str, list[Charge]] = {}
        for run_id, specification in runs.items():
            if specification.data_set == name and account_delta(specification) is not None:
                with contextlib.suppress(RefusedError):  # it could not be charged anyway
                    data_set = self._config.data_sets[name]
                    self._terms(specification, data_set)
                    found[run_id] = self._whole_run(specification, run_id, data_set)
        return found

    def verify_room(self, release: Release) -> None:
        """Check, before an app is called, that its answer could be charged.

        Raises:
            RefusedError: it could not.
        """
        specification = release.specification
        data_set = self._config.data_sets.get(specification.data_set)
        if data_set is None:
            return  # the run uses no data set of this node, and promises nothing
        charge = self._charge_of(release, data_set)
        if charge is not None:
            self._ledger.preview(charge, self._terms(specification, data_set))

    def verify_unspent(self, head: fleet_pb2.InstructionHead) -> None:
        """Check that an attempt whose noise would be drawn now was not charged before.

        Raises:
            RefusedError: it was (``E-RELEASE-REPEATED``).
        """
        key = ChargeKey(run=head.run_id, message=head.message_id, attempt=head.attempt)
        try:
            held = self._ledger.held(key)
        except RefusedError:
            return  # nothing was reserved
        raise RefusedError(
            "E-RELEASE-REPEATED",
            f"expected one answer to {head.message_id}, which entry {held.entry.sequence} of the "
            "ledger has charged; the noise of that answer is wiped, and another would be another "
            "release",
            hint="The server asked again after it had closed the message, or client.sqlite was "
            "replaced.",
        )

    def charge(self, release: Release, *, survivors: int = 0) -> fleet_pb2.Claim | None:
        """Enter a release into the ledger; what this returns is on the disk, and it may leave.

        Args:
            release: what asks to leave.
            survivors: how many members' noise is in the sum, where a quorum has signed it; 0 is
                not known yet, and charged at the worst.

        Returns the claim for the server; None in mode none, which claims nothing.

        Raises:
            RefusedError: the ledger has no place for it, or is damaged.
            UnavailableError: the disk is full.
        """
        specification = release.specification
        data_set = self._config.data_sets.get(specification.data_set)
        if data_set is None:
            return None
        charge = self._charge_of(release, data_set, survivors=survivors)
        if charge is None:
            # An opening of canaries shows nothing of a record that was not charged before.
            opened = specification.canaries and release.instruction.message_type == "query"
            return None if opened else self._exposed(release, data_set)
        self._ledger.open_data_set(self._terms(specification, data_set))
        self._ledger.reserve(charge)
        return fleet_pb2.Claim(
            unit=charge.unit.value,
            relation=charge.relation.value,
            side=charge.side.value,
            epsilon=self._spent(charge),
            delta=charge.delta,
            ledger=self.head(),
        )

    def settle(self, specification: RunSpec, run_id: str, settling: Settling) -> None:
        """Lower the charge of a sum to the noise of those who are proved to be in it.

        What was charged at the worst stays so where the ledger cannot be written.
        """
        key = ChargeKey(run=run_id, message=settling.message_id, attempt=settling.attempt)
        data_set = self._config.data_sets[specification.data_set]
        plan = plan_of_run(specification, records=data_set.records)
        if not isinstance(plan, DistributedPlan):
            return
        survivors = settling.survivors
        try:
            self._ledger.settle(
                key,
                mechanism=plan.noise.settled(1, survivors=survivors),
                evidence=settling.evidence,
                realised_noise=plan.noise.released_deviation(survivors),
            )
        except TacitError as error:
            fields = {"message": key.message, "code": error.code}
            logger.warning("a charge is not settled", extra={"fields": fields})

    def abort(self, keys: Iterable[ChargeKey], reason: str) -> None:
        """Note that attempts came to nothing; what was not charged is passed over.

        No charge is lowered, and a ledger that cannot be written stops nobody: the charge counts
        with this note and without it.
        """
        for key in keys:
            try:
                self._ledger.abort(key, reason=reason)
            except TacitError as error:
                if error.code != "E-LEDGER-UNKNOWN":  # nothing was reserved
                    fields = {"message": key.message, "code": error.code}
                    logger.warning("an aborted attempt is not noted", extra={"fields": fields})

    def head(self) -> fleet_pb2.LedgerHead:
        """Return where the ledger ends, as it travels."""
        signed = self._ledger.head()
        return fleet_pb2.LedgerHead(
            ledger_id=bytes.fromhex(signed.head.ledger),
            entries=signed.head.count,
            sha256=bytes.fromhex(signed.head.hash),
            public_key=self._public_key,
            signature=bytes.fromhex(signed.signature),
        )

    def seen(self, message: fleet_pb2.LedgerHead) -> Head:
        """Return the furthest head that the server has seen, if this node has signed it.

        Raises:
            ProtocolError: it is malformed (``E-LEDGER-HEAD``).
            TrustError: it is not this node's (``E-LEDGER-SIGNATURE``).
        """
        return verify_head(head_of(message), self._public_key)

    def verify_seen(self, message: fleet_pb2.LedgerHead) -> None:
        """Check that the furthest head that the server has seen is a part of this ledger.

        Raises:
            TrustError: this ledger was rolled back or copied, or the head is not this node's.
        """
        self._ledger.check_against(self.seen(message))

    def verify_known(self, head: Head) -> None:
        """Check that a head that this node has noted elsewhere is a part of its ledger.

        Raises:
            TrustError: the ledger was rolled back, replaced or damaged.
        """
        self._ledger.check_against(head)

    def _terms(self, specification: RunSpec, data_set: DataSet) -> Terms:
        name, asked = specification.data_set, account_delta(specification) or 0.0
        delta = asked
        if name in self._ledger.data_sets():
            delta = self._ledger.account(name).delta
        elif data_set.delta:
            delta = data_set.delta
        if delta != asked:
            raise RefusedError(
                "E-LEDGER-DELTA",
                f"expected delta {delta:g}, that of {name} for life, got {asked:g}",
                hint="Epsilons at different deltas have no sum: let the run name this delta.",
            )
        return declared_terms(name, data_set, delta=delta)

    def _whole_run(self, specification: RunSpec, run_id: str, data_set: DataSet) -> list[Charge]:
        asked = _Asked(run=run_id, message=_WHOLE_RUN)
        if specification.audit is not None:
            return [self._audit(specification, specification.audit, data_set, asked)]
        plan = plan_of_run(specification, records=data_set.records)
        training = self._training(specification, data_set, plan, asked)
        charges = [times(training, specification.training_releases)]
        if specification.noises("evaluate"):
            asked = asked._replace(message=f"{_WHOLE_RUN}, metrics")
            one = self._evaluation(specification, data_set, asked)
            charges.append(times(one, specification.evaluations))
        return charges

    def _charge_of(
        self, release: Release, data_set: DataSet, *, survivors: int = 0
    ) -> Charge | None:
        """Return what a release costs; None for one that leaves without noise."""
        specification, head = release.specification, release.instruction
        if not specification.noises(head.message_type):
            return None
        asked = _Asked(
            run=head.run_id,
            message=head.message_id,
            round=int(head.group_id) if head.group_id.isdecimal() else 0,
            attempt=head.attempt,
            specification_sha256=release.approved_sha256.hex(),
            model_sha256=head.manifest.payload_sha256.hex(),
        )
        if specification.audit is not None:
            return self._audit(specification, specification.audit, data_set, asked)
        if head.message_type == "evaluate":
            return self._evaluation(specification, data_set, asked)
        plan = plan_of_run(specification, records=data_set.records)
        charge = self._training(specification, data_set, plan, asked)
        if survivors and isinstance(plan, DistributedPlan):
            lower = plan.noise.settled(1, survivors=survivors)
            charge = dataclasses.replace(charge, mechanism=lower)
        return charge

    def _training(
        self,
        specification: RunSpec,
        data_set: DataSet,
        plan: RunPlan,
        asked: _Asked,
    ) -> Charge:
        by_client = plan.unit is PrivacyUnit.CLIENT
        return Charge(
            **asked._asdict(),
            data_set=specification.data_set,
            purpose=Purpose.TRAINING,
            side=Side.WHOLE if by_client else Side.TRAIN,
            split="" if by_client else split_of(specification, data_set),
            split_unit=Unit.SUBJECT if data_set.subject else Unit.RECORD,
            unit=Unit(plan.unit.value),
            relation=plan.relation,
            # Under the unit record nothing bounds how many records one subject has.
            most_records=plan.most_records if plan.unit is PrivacyUnit.SUBJECT else None,
            public=(
                f"steps {plan.local_steps}",
                f"normaliser {plan.normaliser:g}",
                "ranges and categories",
                *(("members and survivors",) if specification.secure_aggregation else ()),
            ),
            seen_by=(
                "the server sees the sum over all survivors"
                if specification.secure_aggregation is not None
                else "the server sees each round's update",
                "all owners see the rounds' models",
            ),
            **noise_of(plan),
            clip=plan.clip,
            delta=plan.delta,
            noise_source=NOISE_SOURCE,
        )

    def _evaluation(self, specification: RunSpec, data_set: DataSet, asked: _Asked) -> Charge:
        plan = evaluation_plan(specification)
        return Charge(
            **asked._asdict(),
            data_set=specification.data_set,
            purpose=Purpose.METRICS,
            side=Side.VALIDATION,
            split=split_of(specification, data_set),
            split_unit=Unit.SUBJECT if data_set.subject else Unit.RECORD,
            unit=Unit(plan.unit.value),
            relation=Relation.ADD_REMOVE,
            seen_by=("the server sees each owner's noised sums",),
            mechanism=plan.mechanism(),
            clip=plan.query.clip,
            noise_deviation=plan.query.sigma,
            delta=plan.delta,
            noise_source=NOISE_SOURCE,
        )

    def _audit(
        self, specification: RunSpec, audit: AuditSpec, data_set: DataSet, asked: _Asked
    ) -> Charge:
        """Return what an audit's histograms cost: a record is in them on its own side, once."""
        release = audit_release(audit)
        unit = Unit.SUBJECT if data_set.subject else Unit.RECORD
        return Charge(
            **asked._asdict(),
            data_set=specification.data_set,
            purpose=Purpose.AUDIT,
            side=Side.WHOLE,
            split_unit=unit,
            unit=unit,
            relation=Relation.ADD_REMOVE,
            public=(f"{audit.bins} bins of {', '.join(audit.probes)}", "the model"),
            seen_by=("the server and the auditor see each owner's noised histograms",),
            mechanism=release.mechanism(),
            clip=release.query.clip,
            noise_deviation=release.noise_deviation,
            delta=release.delta,
            noise_source=NOISE_SOURCE,
        )

    def _exposed(self, release: Release, data_set: DataSet) -> fleet_pb2.Claim | None:
        """Enter what leaves without noise: once for a run in mode none, else each message."""
        specification, head = release.specification, release.instruction
        name = specification.data_set
        open_run = specification.privacy.mode is PrivacyMode.NONE
        if not open_run:
            self._ledger.open_data_set(self._terms(specification, data_set))
        self._ledger.expose(
            Expose(
                data_set=name,
                run=head.run_id,
                message=head.run_id if open_run else head.message_id,
                attempt=0 if open_run else head.attempt,
                specification_sha256=release.approved_sha256.hex(),
                reason="exact audit"
                if specification.audit is not None
                else "mode none"
                if open_run
                else f"exact {head.message_type}",
            )
        )
        if open_run:
            return None
        return fleet_pb2.Claim(
            unit=(specification.privacy.unit or PrivacyUnit.RECORD).value,
            relation=Relation.ADD_REMOVE.value,
            side=Side.VALIDATION.value,
            epsilon=math.inf,
            delta=specification.privacy.delta or 0.0,
            ledger=self.head(),
        )

    def _spent(self, charge: Charge) -> float:
        """Return what the run has cost so far on the charge's side, for the charge's unit."""
        spent = [
            held.mechanism
            for held in self._ledger.account(charge.data_set).charges
            if (held.charge.run, held.charge.side, held.charge.unit)
            == (charge.run, charge.side, charge.unit)
        ]
        return epsilon_of_events(spent, charge.delta)


def head_of(message: fleet_pb2.LedgerHead) -> SignedHead:
    """Read a head as it travels; nothing of it is verified.

    Raises:
        ProtocolError: it is malformed (``E-LEDGER-HEAD``).
    """
    if len(message.ledger_id) != len(message.sha256) or len(message.sha256) != 32:
        raise ProtocolError("E-LEDGER-HEAD", "expected a ledger's id and hash of 32 bytes each")
    head = Head(ledger=message.ledger_id.hex(), count=message.entries, hash=message.sha256.hex())
    return SignedHead(head=head, signature=message.signature.hex())
