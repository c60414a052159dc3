"""The runs that a node knows: judged, made ready, remembered.

A run that is offered again keeps a word that a person gave, as long as the specification and the
apps are those that the person saw; everything else is judged anew. A run that waits for a person is
approved where one has approved later runs of this very specification and these app files. An
approved run is made ready at once: its data are prepared by a trusted process, and its app is
started.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.client.approvals import (
    Judgement,
    Offer,
    Verdict,
    app_of,
    fingerprint_apps,
    judge,
)
from tacit.client.audits import REPORT_FOLDER, verify_same_split, why_unauditable
from tacit.client.canaries import COMMITTED, drawn_opening, held_opening
from tacit.client.cohort import own_name_of
from tacit.client.configuration import AppRule, ClientConfig
from tacit.client.identifiers import flower_run_id, verify_run_id
from tacit.client.placement import verify_readable
from tacit.client.preparation import PREPARED_NAME, PrepareJob, Report
from tacit.client.runner import AppRunner, AppSetup
from tacit.client.store import Decision, Repeat, RunRecord, Store
from tacit.core.configuration import from_plain
from tacit.core.errors import ProtocolError, RefusedError, TacitError, UsageError
from tacit.core.files import make_private_folder
from tacit.core.specification import RunSpec, canonical_json, specification_sha256
from tacit.core.state import home_option
from tacit.protos import pipe_pb2
from tacit.protos.manifest import items_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tacit.client.charges import Charges
    from tacit.privacy.ledger import Ledger
    from tacit.privacy.secagg.guard import Guard
    from tacit.privacy.secagg.terms import Member

RUNS_FOLDER = "runs"
APP_CHANGED = (
    "the approval no longer holds, since the app's files have changed, and nothing more leaves. "
    "Read them, then: tacit client approve {run_id}, or deny. A run that has failed of it is "
    "submitted anew by the operator, and approved anew"
)

logger = logging.getLogger("tacit.client.runs")


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a node needs from the world, so that tests can give it another one.

    Attributes:
        folder: the state directory.
        runner: runs the apps.
        prepare: makes a data set ready; raises DataError.
        epsilon_of: what a run costs each unit that it names of a data set of so many records, after
            so many updates; None without an account.
        isolated: whether workers can be confined here.
        clock: seconds since 1970.
        fresh_key: 32 random bytes.
        split_key: the owner's key for row hashes.
        ledger: what the owner's records have been charged with.
        public_key: of the enrolment key, which signs the ledger's head.
        sign: signs with that key.
        pinned: the members whom the owner has pinned, by name, this node itself among them; read
            anew at each call.
        guard: remembers what must not happen twice in secure aggregation.
    """

    folder: Path
    runner: AppRunner
    prepare: Callable[[PrepareJob], None]
    epsilon_of: Callable[[RunSpec, int, int], float | None]
    isolated: bool
    clock: Callable[[], float]
    fresh_key: Callable[[], bytes]
    split_key: bytes
    ledger: Ledger
    public_key: bytes
    sign: Callable[[bytes], bytes]
    pinned: Callable[[], Mapping[str, Member]]
    guard: Guard


class Runs:
    """What a node knows of runs; the caller serialises calls for one run."""

    def __init__(
        self,
        *,
        node_id: int,
        config: ClientConfig,
        store: Store,
        around: Surroundings,
        charges: Charges,
    ) -> None:
        self._node_id = node_id
        self._charges = charges
        self._config = config
        self._store = store
        self._around = around
        self._judging = threading.Lock()  # two runs may not both be given the last of a budget
        self._approving: dict[str, RunRecord] = {}  # approved, and not remembered yet

    def judged(self, run_id: str, specification: bytes, known: RunRecord | None) -> RunRecord:
        """Hold an offered run against the policy, and keep what a person said of it before.

        Until :meth:`remember` it counts as approved, if it is, when other runs are judged.
        """
        with self._judging:
            run = self._judged(run_id, specification, known)
            judged = run if known is None else _with_known(run, known)
            self._note_approving(judged)
            return judged

    def _note_approving(self, run: RunRecord) -> None:
        self._approving.pop(run.run_id, None)
        if run.verdict is Verdict.APPROVED:
            self._approving[run.run_id] = run

    def _judged(self, run_id: str, specification: bytes, known: RunRecord | None) -> RunRecord:
        now = self._around.clock()
        run = RunRecord(
            run_id=run_id,
            name="",
            specification=specification,
            specification_sha256=specification_sha256(specification),
            app_sha256=b"",
            verdict=Verdict.DENIED,
            code="",
            reason="",
            decided_by="policy",
            epsilon=None,
            offered_at_s=now if known is None else known.offered_at_s,
            decided_at_s=now,
        )
        try:
            parsed = parse_specification(specification)
            run = dataclasses.replace(run, name=parsed.name)
            run = dataclasses.replace(run, app_sha256=fingerprint_apps(parsed))
            pinned = {} if parsed.secure_aggregation is None else self._around.pinned()
        except TacitError as error:
            problems = getattr(error, "problems", ())
            reason = "; ".join((error.message, *problems[:5]))
            return dataclasses.replace(run, code=error.code, reason=reason)
        epsilon = self.epsilon(parsed, parsed.training_releases)
        offer = Offer(
            specification=parsed,
            epsilon=epsilon,
            isolated=self._around.isolated,
            unaffordable=self._charges.refusal(
                parsed, run_id, beside=None if _is_approved(known, run) else self._beside(run_id)
            ),
            unreadable=_unreadable(parsed, self._config),
            unauditable=why_unauditable(parsed, self._store, self._around.folder / RUNS_FOLDER),
            pinned=pinned,
            own_name=own_name_of(pinned, self._around.public_key),
        )
        judgement = self._repeated(run, judge(offer, self._config))
        reason = judgement.reason
        if judgement.verdict is Verdict.PENDING:
            what = f"{run_id}{home_option('client', self._around.folder)}"
            reason += f". Read it: tacit client status {what}; then: tacit client approve {what}"
        return dataclasses.replace(
            run,
            verdict=judgement.verdict,
            code=judgement.code,
            reason=reason,
            decided_by=judgement.by,
            epsilon=epsilon,
        )

    def _beside(self, run_id: str) -> dict[str, RunSpec]:
        """Return the other runs that are approved and not over."""
        runs = {run.run_id: run for run in self._store.list_runs()} | self._approving
        found = {}
        for other in runs.values():
            if other.run_id != run_id and other.verdict is Verdict.APPROVED and not other.ended:
                with contextlib.suppress(TacitError):  # of a version that said otherwise
                    found[other.run_id] = parse_specification(other.specification)
        return found

    def _repeated(self, run: RunRecord, judgement: Judgement) -> Judgement:
        """Approve a run that the policy admits, and whose like a person has approved for good."""
        if judgement.verdict is not Verdict.PENDING:
            return judgement
        hashes = (run.specification_sha256, run.app_sha256)
        for repeat in self._store.list_repeats():
            if (repeat.specification_sha256, repeat.app_sha256) == hashes:
                reason = f"repeat of {repeat.run_id}"
                return Judgement(verdict=Verdict.APPROVED, reason=reason, by="repeat")
        return judgement

    def repeat(self, run: RunRecord) -> None:
        """Note that a person's word on a run also covers its later repetitions."""
        now = self._around.clock()
        self._store.save_repeat(
            Repeat(
                specification_sha256=run.specification_sha256,
                app_sha256=run.app_sha256,
                run_id=run.run_id,
                name=run.name,
                approved_at_s=now,
            )
        )
        reason = "later runs of this specification and these app files as well"
        self.log(run.run_id, "repeated", reason=reason)

    def withdraw(self, run_id: str) -> RunRecord | None:
        """Forget the approval of later runs like this one; return the run if there was one."""
        verify_run_id(run_id)
        run = self._store.load_run(run_id)
        if run is None or not self._store.drop_repeat(run.specification_sha256):
            return None
        reason = "later runs of this specification wait for a person again"
        self.log(run.run_id, "withdrawn", reason=reason)
        return run

    def log(self, run_id: str, outcome: str, *, reason: str, code: str = "") -> None:
        """Write a line on a run into the decision log."""
        now = self._around.clock()
        line = Decision(at_s=now, run_id=run_id, outcome=outcome, code=code, reason=reason)
        self._store.log_decision(line, keep=self._config.keep_decisions)

    def approved_by_hand(self, known: RunRecord) -> RunRecord:
        """Return a run as a person approves it, unless the policy denies it."""
        with self._judging:
            run = self._judged(known.run_id, known.specification, known)
            if run.verdict is not Verdict.DENIED:
                run = dataclasses.replace(
                    run,
                    verdict=Verdict.APPROVED,
                    code="",
                    reason="approved by a person",
                    decided_by="hand",
                )
            self._note_approving(run)
        return dataclasses.replace(
            run,
            offered_at_s=known.offered_at_s,
            state_manifest=known.state_manifest,
            state_file=known.state_file,
        )

    def epsilon(self, specification: RunSpec, releases: int) -> float | None:
        """Return what a run costs each of its units after so many updates; None without account."""
        if specification.audit is not None:
            return specification.audit.epsilon if specification.audit.is_noised else None
        data_set = self._config.data_sets.get(specification.data_set)
        if data_set is None:
            return None
        try:
            return self._around.epsilon_of(specification, data_set.records, releases)
        except TacitError as error:
            logger.info("no account for a run", extra={"fields": {"code": error.code}})
            return None

    def made_ready(self, run: RunRecord) -> RunRecord:
        """Prepare the data and start the app; a run whose data do not fit is denied."""
        specification = parse_specification(run.specification)
        try:
            self.prepare(run, specification)
            self._around.runner.begin(self.setup(run, specification))
        except TacitError as error:
            problems = getattr(error, "problems", ())
            return dataclasses.replace(
                run,
                verdict=Verdict.DENIED,
                code=error.code,
                reason="; ".join((error.message, *problems[:20])),
                decided_by="data",
            )
        return run

    def prepare(self, run: RunRecord, specification: RunSpec) -> None:
        """Make the run's data ready, once: they stay what they were when the run began.

        Raises:
            DataError: they break the data contract.
            RefusedError: an audit finds other records than its run did.
        """
        folder = self.run_folder(run.run_id)
        if specification.data is None or (folder / PREPARED_NAME).exists():
            return
        make_private_folder(folder)
        opening = drawn_opening(folder, specification, self._node_id)
        if opening is not None:
            self.log(run.run_id, COMMITTED, reason=opening.commitment())
        self._around.prepare(
            PrepareJob(
                specification=run.specification,
                data_set=self._config.data_sets[specification.data_set],
                folder=folder,
                split_key=self._around.split_key,
                opening=opening,
            )
        )
        if specification.audit is not None:
            audited = specification.audit.run
            try:
                verify_same_split(self.run_folder(audited), folder, audited)
            except TacitError:
                (folder / PREPARED_NAME).unlink(missing_ok=True)
                raise
        for warning in Report.load(folder).warnings:
            logger.warning(warning, extra={"fields": {"run": run.run_id}})

    def commitment(self, run_id: str) -> bytes:
        """Return the salted hash of a run's canaries' bits; empty without canaries."""
        opening = held_opening(self.run_folder(run_id))
        return b"" if opening is None else bytes.fromhex(opening.commitment())

    def setup(self, run: RunRecord, specification: RunSpec) -> AppSetup:
        """Return all that a worker of this run needs."""
        scratch = self.scratch(run.run_id)
        make_private_folder(scratch.parent)
        make_private_folder(scratch)
        rule = self._config.policy.apps.get(app_of(specification), AppRule())
        if specification.app is None:
            rule = AppRule()
        node_config = dict(rule.node_config)
        prepared = self.run_folder(run.run_id) / PREPARED_NAME
        if specification.data is not None:
            node_config["tacit-prepared"] = str(prepared)
            node_config["tacit-records"] = self._config.data_sets[specification.data_set].records
        if specification.audit is not None:
            node_config[REPORT_FOLDER] = str(scratch)
        run_config = dict(specification.app.config) if specification.app else {}
        run_config["tacit-specification"] = run.specification.decode()
        begin = pipe_pb2.WorkerBegin(
            run_id=run.run_id,
            flower_run_id=flower_run_id(run.run_id),
            node_id=self._node_id,
            app=app_of(specification),
            specification=run.specification,
            prepared_path=str(prepared) if specification.data is not None else "",
            scratch_path=str(scratch),
            node_config=items_of(node_config),
            run_config=items_of(run_config),
        )
        if run.state_manifest:
            begin.state.ParseFromString(run.state_manifest)
        return AppSetup(
            begin=begin,
            state_file=self._around.folder / "states" / run.state_file if run.state_file else None,
            readable=rule.readable,
            timeout_s=self._config.policy.message_timeout_s,
        )

    def remember(self, run: RunRecord, known: RunRecord | None) -> None:
        """Persist a run; a new verdict goes into the decision log."""
        self._store.save_run(run)
        with self._judging:
            self._approving.pop(run.run_id, None)
        if known is not None and known.judgement == run.judgement:
            return
        self._store.log_decision(
            Decision(
                at_s=run.decided_at_s,
                run_id=run.run_id,
                outcome=run.verdict.value,
                code=run.code,
                reason=run.reason,
            ),
            keep=self._config.keep_decisions,
        )
        logger.info(
            "run decided",
            extra={
                "fields": {
                    "run": run.run_id,
                    "name": run.name,
                    "verdict": run.verdict.value,
                    "by": run.decided_by,
                    "code": run.code,
                    "reason": run.reason,
                }
            },
        )

    def known(self, run_id: str) -> RunRecord:
        """Return a run that was offered here and is not over.

        Raises:
            UsageError: there is none.
        """
        verify_run_id(run_id)
        run = self._store.load_run(run_id)
        if run is None or run.ended:
            what = "was never offered here" if run is None else f"is over ({run.ended})"
            raise UsageError(
                "E-RUN-UNKNOWN",
                f"run {run_id} {what}",
                hint="`tacit client status` lists the runs that this node knows.",
            )
        return run

    def run_folder(self, run_id: str) -> Path:
        """The folder that keeps a run's prepared data and its split."""
        folder = self._around.folder / RUNS_FOLDER
        make_private_folder(folder)
        return folder / run_id

    def scratch(self, run_id: str) -> Path:
        """The only folder that a run's worker may write."""
        return self._around.folder / "scratch" / run_id


def _is_approved(known: RunRecord | None, run: RunRecord) -> bool:
    return (
        known is not None
        and known.verdict is Verdict.APPROVED
        and known.specification_sha256 == run.specification_sha256
    )


def _unreadable(specification: RunSpec, config: ClientConfig) -> RefusedError | None:
    try:
        verify_readable(specification, config)
    except RefusedError as error:
        return error
    return None


def parse_specification(canonical: bytes) -> RunSpec:
    """Read a run specification from canonical JSON, and only from that.

    Raises:
        ProtocolError: it is no JSON, or not in canonical form.
        ConfigError: a value is unknown or wrong.
    """
    try:
        plain = json.loads(canonical)
    except ValueError as error:
        raise ProtocolError("E-OFFER-JSON", "expected a specification in JSON") from error
    if not isinstance(plain, dict):
        raise ProtocolError("E-OFFER-JSON", "expected a specification in JSON")
    specification = from_plain(plain, RunSpec)
    if canonical_json(specification) != canonical:
        raise ProtocolError(
            "E-OFFER-JSON",
            "expected the canonical form of a specification",
            hint="Server and client may be of different versions.",
        )
    return specification


def _with_known(judged: RunRecord, known: RunRecord) -> RunRecord:
    """Keep, of what was known of a run, a person's word and the app's state."""
    if known.specification_sha256 != judged.specification_sha256:
        return dataclasses.replace(
            judged,
            verdict=Verdict.DENIED,
            code="E-OFFER-CHANGED",
            reason="the run was offered before with another specification",
            decided_by="policy",
        )
    kept = dataclasses.replace(
        judged,
        state_manifest=known.state_manifest,
        state_file=known.state_file,
        ended=known.ended,
        ended_reason=known.ended_reason,
    )
    if known.decided_by not in ("hand", "repeat") or judged.verdict is Verdict.DENIED:
        return kept
    if known.verdict is Verdict.APPROVED and known.app_sha256 != judged.app_sha256:
        if judged.decided_by == "repeat":  # a person has approved the new files as well
            return kept
        return dataclasses.replace(
            kept,
            verdict=Verdict.PENDING,
            code="E-APPROVAL-APP",
            reason=APP_CHANGED.format(run_id=known.run_id),
            decided_by="policy",
        )
    return dataclasses.replace(
        kept,
        verdict=known.verdict,
        code=known.code,
        reason=known.reason,
        decided_by=known.decided_by,
        decided_at_s=known.decided_at_s,
    )
