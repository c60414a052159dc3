"""The end of a run with canaries: owners open what they committed to, and a report says what of it.

It holds no data. It trusts what strategy runs trust, and no owner's bits before they were held
against what that owner had committed to before the run started.

The rules:

1. Owners have committed before the run started, or take no part (commitments.py): the manifest has
   what each committed to. By their number, and by nobody who opens, the level is shared.
2. Those who took part are asked to open, after the last round, and have the time of a round for it,
   ``participation.round_deadline_s``, also while their nodes are away. One who does not is named.
3. Bits other than those committed to void the audit: the run fails, and names the owner.
4. The report is written before the weights of a twin are removed, and a worker that starts again
   and finds it only removes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flwr.app import Message, RecordDict

from tacit.core.artifacts import write_atomic
from tacit.core.events import EventKind
from tacit.protos.codec import encode_records
from tacit.protos.flower import array_record
from tacit.server.commitments import OTHER
from tacit.server.manifest import read_decisions
from tacit.server.round_failure import failures_of
from tacit.server.rounds import EXPIRED, UNKNOWN_NODE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tacit.attacks.opened import Answered
    from tacit.core.artifacts import Arrays
    from tacit.server.grid import TacitGrid
    from tacit.server.manifest import RunManifest
    from tacit.server.strategy_run import RunTask

_ABSENT = "did not open in time"
_DENIED = "denied the run after it had begun"
_LOST = "its node had lost the bits, and committed to others"
_OUT = "is no member any more"


@dataclass(frozen=True, kw_only=True)
class CanaryRun:
    """The opening of one run's canaries, in its worker.

    Attributes:
        task, grid, manifest: of the run.
        weights: its final model.
    """

    task: RunTask
    grid: TacitGrid
    manifest: RunManifest
    weights: Arrays

    def open(self) -> None:
        """Ask, verify, score, and leave ``canaries.json`` in the run's folder.

        Raises:
            TrustError: an owner opened other bits than were committed to.
            TacitError: the folder cannot be written, or the port is gone.
        """
        # torch, two seconds: for these runs alone
        from tacit.attacks.opened import canary_report  # noqa: PLC0415

        answers, unopened = self._ask()
        took_part = self._took_part()
        absent = [
            self.manifest.member(node)
            for node in self.manifest.commitments
            if int(node) not in took_part
        ]
        report = canary_report(
            self.task.specification,
            self.weights,
            answers,
            unopened=unopened,
            absent=absent,
        )
        report["run"] = report["run"] or self.task.run_id
        report["canary_run"] = self.task.run_id
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(self.task.folder.canaries, text.encode() + b"\n")
        self.grid.port.event(
            EventKind.CANARIES_OPENED.value,
            {
                "round": self.task.specification.participation.rounds,
                "members": [answer.member for answer in answers],
                "failed": dict(unopened),
                "verdict": report["verdict"],
                "line": report["line"],
            },
        )

    def _ask(self) -> tuple[list[Answered], dict[str, str]]:
        """Return what came, in the order of node ids, and why it did not come from the others."""
        waiting = dict.fromkeys(self._took_part(), _ABSENT)
        found: dict[int, Answered] = {}
        for _ in range(self.task.specification.participation.max_attempts):
            denied = self._denied()
            asked = [
                node
                for node, why in waiting.items()
                if why != EXPIRED and self.manifest.member(str(node)) not in denied
            ]
            replies = self._sent(asked) if asked else []
            waiting |= {int(node): code for node, code in failures_of(replies).items()}
            for reply in replies:
                if not reply.has_error():
                    answer = self._answered(reply)
                    found[answer.node_id] = answer
                    del waiting[answer.node_id]
        unopened = {self.manifest.member(str(node)): why for node, why in waiting.items()}
        return [found[node] for node in sorted(found)], self._in_words(unopened)

    def _took_part(self) -> list[int]:
        """Return the nodes that have committed and were charged for a round, in their order."""
        claims = self.manifest.claims
        nodes = [node for node in self.manifest.commitments if "train" in claims.get(node, {})]
        return sorted(int(node) for node in nodes)

    def _in_words(self, unopened: Mapping[str, str]) -> dict[str, str]:
        """Say what became of who did not open; a node's own code stays as it is."""
        words, denied = {EXPIRED: _ABSENT, UNKNOWN_NODE: _OUT}, self._denied()
        return {name: denied.get(name) or words.get(why, why) for name, why in unopened.items()}

    def _denied(self) -> dict[str, str]:
        """Return who takes part no more by their own no, or for other bits than before, and why."""
        return {
            name: _LOST if said["code"] == OTHER else _DENIED
            for name, said in read_decisions(self.task.folder).items()
            if said["verdict"] == "denied"
        }

    def _sent(self, nodes: Sequence[int]) -> list[Message]:
        people = self.task.specification.participation
        members = [self.manifest.member(str(node)) for node in nodes]
        fields = {"round": people.rounds, "members": members, "wait_s": people.round_deadline_s}
        self.grid.port.event(EventKind.CANARIES_ASKED.value, fields)
        content = RecordDict({"arrays": array_record(self.weights)})
        with self.grid.attempt(people.rounds, nodes):
            messages = [Message(content, dst_node_id=n, message_type="query") for n in nodes]
            timeout_s = people.round_deadline_s
            return self.grid.send_and_receive(messages, timeout=timeout_s, one_by_one=True)

    def _answered(self, reply: Message) -> Answered:
        from tacit.attacks.opened import Answered  # noqa: PLC0415 - see open

        node_id = reply.metadata.src_node_id
        values: Mapping[str, Any] = {
            name: value
            for record in reply.content.metric_records.values()
            for name, value in record.items()
        }
        return Answered(
            node_id=node_id,
            member=self.manifest.member(str(node_id)),
            commitment=self.manifest.commitments[str(node_id)],
            claim=self.manifest.claims[str(node_id)]["train"],
            values=values,
            bytes=encode_records(reply.content).manifest.ByteSize(),
        )
