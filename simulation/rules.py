"""One owner's client.toml, held by every node of a trial: its policy, its rules for the data set.

What differs from that owner's own node: where the records are, and two answers that only a machine
of theirs can give. The trial's user is the person whom ``approve = "ask"`` asks, and says yes; and
nothing is confined here, whose apps run with their user's rights anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tacit.client.approvals import Offer, refusals
from tacit.client.charges import Charges
from tacit.client.configuration import ClientConfig, DataFormat, load_client_config
from tacit.client.foreseen import empty_ledger, planned_epsilon
from tacit.core.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.client.configuration import DataSet, Policy
    from tacit.core.specification import RunSpec


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What one client.toml says about one run.

    Attributes:
        data_set: the section of the data set that the run asks for; None without one, which only
            a run without a data contract admits.
        policy: what may happen to it.
    """

    data_set: DataSet | None
    policy: Policy


def load_rules(path: Path, specification: RunSpec) -> Rules:
    """Read an owner's client.toml, and hold a run against it.

    Raises:
        ConfigError: the file is missing or wrong; all problems are listed.
        RefusedError: it denies the run; everything that it has against it is listed.
        UsageError: the data set is of a format that no trial takes.
    """
    config = load_client_config(path).value
    policy = replace(config.policy, allow_unisolated_apps=True)
    refused = _refusals(specification, replace(config, policy=policy))
    found = {error.code: error for error in refused}
    if found:
        raise RefusedError(
            next(iter(found)),
            f"{path} does not admit the run",
            problems=tuple(
                f"{error.message} [{code}]. {error.hint}".removesuffix(". ")
                for code, error in found.items()
            ),
            hint="These are the owner's to change, or the run's.",
        )
    data_set = config.data_sets.get(specification.data_set)
    if data_set is not None and data_set.format is DataFormat.IMAGES:
        raise UsageError("E-DATA-FORMAT", "expected csv, parquet or npz, got a folder of images")
    return Rules(data_set=data_set, policy=policy)


def _refusals(specification: RunSpec, config: ClientConfig) -> list[RefusedError]:
    """Return what an owner who has spent nothing yet has against a run."""
    secure = specification.secure_aggregation
    members = () if secure is None else secure.members  # in a trial all have pinned one another
    offer = Offer(
        specification=specification,
        epsilon=planned_epsilon(specification, config),
        isolated=False,
        unaffordable=_unaffordable(specification, config),
        pinned=members,
        own_name=next(iter(members), ""),
    )
    found = list(refusals(offer, config))
    missing = [error for error in found if error.code == "E-POLICY-DATA-SET"]
    return missing or found  # what a run costs an unknown data set, nobody can say


def _unaffordable(specification: RunSpec, config: ClientConfig) -> RefusedError | None:
    with empty_ledger() as ledger:
        charges = Charges(ledger, config=config, public_key=bytes(32))
        return charges.refusal(specification, "trial", beside={})
