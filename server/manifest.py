"""``manifest.json``: what a run was and how each round went, rewritten whole after every round.

It names hashes, node ids, cohorts and aggregated metrics; never an owner's own metric, nor data.
"""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tacit.core.artifacts import RunFolder, sha256_file, write_atomic
from tacit.core.errors import ConfigError
from tacit.core.specification import canonical_json, specification_sha256, to_plain
from tacit.privacy.secagg.terms import Member

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tacit.core.specification import RunSpec

FORMAT = 1
MEMBERS_NAME = "members.json"
DIRECTORY_NAME = "directory.json"
DECISIONS_NAME = "decisions.json"
COMMITMENTS_NAME = "commitments.json"


@dataclass(frozen=True, kw_only=True)
class RoundEntry:
    """How one round went.

    Attributes:
        round, attempt: its number, and which try succeeded.
        cohort: node ids that were asked.
        failed: reasons by node id (as text, for JSON).
        survivors: node ids whose vectors are in the round's sum, the last where there were several;
            None where updates are not summed unseen. One that failed later is among them.
        metrics: the strategy's aggregate of the replies' metrics.
        evaluation: the aggregate of the owners' evaluation, where there was one.
        seconds: wall-clock time of the successful attempt.
    """

    round: int
    attempt: int
    cohort: Sequence[int]
    failed: Mapping[str, str] = field(default_factory=dict)
    survivors: Sequence[int] | None = None
    metrics: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] | None = None
    seconds: float = 0.0


class RunManifest:
    """The manifest of one run folder."""

    def __init__(self, folder: RunFolder, content: dict[str, Any]) -> None:
        self._folder = folder
        self._content = content

    @classmethod
    def take_up(cls, folder: RunFolder, run_id: str, run: RunSpec) -> RunManifest:
        """Take up the manifest of a run whose worker is gone; begin one where it left none."""
        if not folder.manifest.exists():
            return cls.begin(folder, run_id, run)
        return cls(folder, json.loads(folder.manifest.read_bytes()))

    @classmethod
    def begin(
        cls, folder: RunFolder, run_id: str, run: RunSpec, *, finished_rounds: int = 0
    ) -> RunManifest:
        """Start a manifest, or take up the one of an interrupted run after its last checkpoint."""
        rounds: list[dict[str, Any]] = []
        claims: dict[str, Any] = {}
        if finished_rounds and folder.manifest.exists():
            before = json.loads(folder.manifest.read_bytes())
            rounds = [entry for entry in before["rounds"] if entry["round"] <= finished_rounds]
            claims = before.get("claims", {})
        canonical = canonical_json(run)
        content = {
            "format": FORMAT,
            "run_id": run_id,
            "name": run.name,
            "status": "running",
            "software_version": importlib.metadata.version("tacit"),
            "specification_sha256": specification_sha256(canonical).hex(),
            "privacy": to_plain(run.privacy),
            "strategy": to_plain(run.strategy),
            "initial_sha256": _sha256_or_none(folder),
            "model_sha256": None,
            "rounds": rounds,
            "claims": claims,
        }
        if run.canaries is not None:
            content["commitments"] = _read_commitments(folder)
        manifest = cls(folder, content)
        manifest.write()
        return manifest

    def member(self, node_id: str) -> str:
        """Return the name of a node's member; its id where the daemon has not told."""
        names: Mapping[str, str] = self._content.get("members", {})
        return names.get(node_id, node_id)

    @property
    def claims(self) -> Mapping[str, Mapping[str, Any]]:
        """What owners' ledgers said last, by node and side."""
        claims: dict[str, dict[str, Any]] = self._content["claims"]
        return claims

    @property
    def commitments(self) -> Mapping[str, str]:
        """What each owner had committed to for their canaries before the run, by node."""
        commitments: dict[str, str] = self._content.get("commitments", {})
        return commitments

    def add(
        self,
        entry: RoundEntry,
        claims: Mapping[str, Mapping[str, Any]],
        *,
        durable: bool = True,
    ) -> None:
        """Add a finished round, and what owners' ledgers say that the run has cost by now.

        With ``durable`` it survives a power cut.
        """
        self._claim(claims)
        self._content["rounds"].append(asdict(entry) | {"seconds": round(entry.seconds, 3)})
        self.write(durable=durable)

    def finish(self, claims: Mapping[str, Mapping[str, Any]]) -> None:
        """Mark the run as finished, with the hash of its model."""
        self._claim(claims)
        self._content["status"] = "finished"
        if self._folder.model.exists():
            self._content["model_sha256"] = sha256_file(self._folder.model).hex()
        self.write()

    def end(self, status: str, *, code: str, reason: str) -> None:
        """Mark the run as failed or stopped; the rounds that it finished stay."""
        self._content |= {"status": status, "code": code, "reason": reason}
        self.write()

    def _claim(self, claims: Mapping[str, Mapping[str, Any]]) -> None:
        known = self._content["claims"]
        for node_id, sides in claims.items():
            known[node_id] = {**known.get(node_id, {}), **sides}

    def write(self, *, durable: bool = True) -> None:
        """Write the file whole or not at all."""
        members = self._folder.path / MEMBERS_NAME
        if members.exists():
            self._content["members"] = json.loads(members.read_bytes())
        text = json.dumps(self._content, indent=1, allow_nan=False, ensure_ascii=False)
        write_atomic(self._folder.manifest, text.encode() + b"\n", durable=durable)


def write_members(
    folder: RunFolder, names: Mapping[int, str], directory: Mapping[str, Member]
) -> None:
    """Tell the run's worker, which knows node ids alone, what the members are called.

    Args:
        folder: of the run.
        names: by node id.
        directory: every client with its enrolment key, by name; for secure aggregation.

    Raises:
        UnavailableError: the disk is full or cannot be written.
    """
    text = json.dumps({str(node_id): names[node_id] for node_id in sorted(names)}, indent=1)
    write_atomic(folder.path / MEMBERS_NAME, text.encode())
    keys = {
        name: {"node_id": one.node_id, "enrolment_key": one.enrolment_key.hex()}
        for name, one in sorted(directory.items())
    }
    write_atomic(folder.path / DIRECTORY_NAME, json.dumps(keys, indent=1).encode())


def read_cohort(folder: RunFolder, names: Sequence[str]) -> list[Member]:
    """Return the members whom a run names, with their enrolment keys.

    Raises:
        ConfigError: one of them is not enrolled (``E-SECAGG-MEMBER``).
    """
    path = folder.path / DIRECTORY_NAME
    keys = json.loads(path.read_bytes()) if path.exists() else {}
    verify_enrolled(names, keys)
    return [
        Member(
            node_id=keys[name]["node_id"], enrolment_key=bytes.fromhex(keys[name]["enrolment_key"])
        )
        for name in names
    ]


def verify_enrolled(names: Sequence[str], enrolled: Collection[str]) -> None:
    """Check that all members whom a run names are clients of this server.

    Raises:
        ConfigError: some are not (``E-SECAGG-MEMBER``).
    """
    missing = [name for name in names if name not in enrolled]
    if missing:
        raise ConfigError(
            "E-SECAGG-MEMBER",
            "expected all secure_aggregation.members to be enrolled clients, not so: "
            f"{', '.join(missing)}",
            hint="`tacit server members` lists them; a member's name is that of the invitation.",
        )


def write_decisions(folder: RunFolder, decisions: Mapping[str, Mapping[str, str]]) -> None:
    """Tell a run's worker what each member's node has said: verdict and code, by member.

    Raises:
        UnavailableError: the disk is full or cannot be written.
    """
    text = json.dumps({name: dict(decisions[name]) for name in sorted(decisions)}, indent=1)
    write_atomic(folder.path / DECISIONS_NAME, text.encode())


def write_commitments(folder: RunFolder, commitments: Mapping[int, str]) -> None:
    """Tell a run's worker what owners have committed to for their canaries, in hex, by node.

    Raises:
        UnavailableError: the disk is full or cannot be written.
    """
    told = {str(node_id): commitments[node_id] for node_id in sorted(commitments)}
    write_atomic(folder.path / COMMITMENTS_NAME, json.dumps(told, indent=1).encode())


def _read_commitments(folder: RunFolder) -> dict[str, str]:
    path = folder.path / COMMITMENTS_NAME
    commitments: dict[str, str] = json.loads(path.read_bytes()) if path.exists() else {}
    return commitments


def read_decisions(folder: RunFolder) -> dict[str, dict[str, str]]:
    """Return what :func:`write_decisions` wrote; nothing where the daemon has not told."""
    path = folder.path / DECISIONS_NAME
    decisions: dict[str, dict[str, str]] = json.loads(path.read_bytes()) if path.exists() else {}
    return decisions


def _sha256_or_none(folder: RunFolder) -> str | None:
    return sha256_file(folder.initial).hex() if folder.initial.exists() else None
