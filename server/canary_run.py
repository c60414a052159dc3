"""The end of a run with canaries: owners open what they committed to, and a report says what of it.

It holds no data. It trusts what strategy runs trust, and no owner's bits before they were held
against what that owner had committed to before the first round was aggregated.

The rules:

1. The first commitment of an owner stands: it is in the manifest, and an event, before a round that
   the owner took part in is aggregated. Another one later changes nothing.
2. Only owners who committed are asked to open, after the last round; one who does not is named.
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
from tacit.protos.flower import array_record
from tacit.server.round_failure import failures_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tacit.attacks.opened import Answered
    from tacit.core.artifacts import Arrays
    from tacit.server.grid import TacitGrid
    from tacit.server.manifest import RunManifest
    from tacit.server.strategy_run import RunTask

_ABSENT = "was not there to open"


def note_commitments(
    task: RunTask, grid: TacitGrid, manifest: RunManifest, *, round_number: int
) -> None:
    """Note, before a round is aggregated, what its owners have committed to."""
    if task.specification.canaries is None:
        return
    fresh = manifest.note_commitments(grid.claims)
    for node_id, commitment in fresh.items():
        grid.port.event(
            EventKind.CANARIES_COMMITTED.value,
            {
                "round": round_number,
                "member": manifest.member(node_id),
                "commitment": commitment,
            },
        )


@dataclass(frozen=True, kw_only=True)
class CanaryRun:
    """The opening of one run's canaries, in its worker.

    Attributes:
        task, grid, manifest: of the run.
        weights: its final model.
        wait_for_nodes: gives the nodes that may be asked, once there are enough.
    """

    task: RunTask
    grid: TacitGrid
    manifest: RunManifest
    weights: Arrays
    wait_for_nodes: Callable[[], list[int]]

    def open(self) -> None:
        """Ask, verify, score, and leave ``canaries.json`` in the run's folder.

        Raises:
            TrustError: an owner opened other bits than were committed to.
            TacitError: the folder cannot be written, or the port is gone.
        """
        # torch, two seconds: for these runs alone
        from tacit.attacks.opened import canary_report  # noqa: PLC0415

        answers, unopened = self._ask()
        report = canary_report(self.task.specification, self.weights, answers, unopened=unopened)
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
        people = self.task.specification.participation
        waiting = {int(node_id): _ABSENT for node_id in self.manifest.commitments}
        found: dict[int, Answered] = {}
        for _ in range(people.max_attempts):
            if not waiting:
                break
            nodes = [node for node in self.wait_for_nodes() if node in waiting]
            replies = self._sent(nodes)
            waiting |= {int(node): code for node, code in failures_of(replies).items()}
            for reply in replies:
                if not reply.has_error():
                    answer = self._answered(reply)
                    found[answer.node_id] = answer
                    del waiting[answer.node_id]
        unopened = {self.manifest.member(str(node)): why for node, why in waiting.items()}
        return [found[node] for node in sorted(found)], unopened

    def _sent(self, nodes: Sequence[int]) -> list[Message]:
        people = self.task.specification.participation
        content = RecordDict({"arrays": array_record(self.weights)})
        with self.grid.attempt(people.rounds, nodes):
            messages = [Message(content, dst_node_id=n, message_type="query") for n in nodes]
            return list(self.grid.send_and_receive(messages, timeout=people.round_deadline_s))

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
        )
