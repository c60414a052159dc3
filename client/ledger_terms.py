"""The terms of an account as client.toml declares them now, which the next charge goes by.

The ledger holds the terms of its last entry. A budget that was changed since is entered with the
next charge, and other terms that were changed refuse it; whoever looks in between is told here.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tacit.client.configuration import CONFIG_NAME, load_client_config
from tacit.core.errors import RefusedError, TacitError
from tacit.privacy.ledger_account import verify_terms
from tacit.privacy.ledger_entries import Terms, Unit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tacit.client.configuration import DataSet
    from tacit.privacy.ledger_account import Account


def declared_terms(name: str, data_set: DataSet, *, delta: float) -> Terms:
    """Return the terms of an account as client.toml declares them.

    Args:
        name: of the data set.
        data_set: what is declared of it.
        delta: the one that its account has, or is to have.
    """
    return Terms(
        data_set=name,
        delta=delta,
        records=data_set.records,
        unit=Unit.SUBJECT if data_set.subject else Unit.RECORD,
        budget=data_set.budget,
    )


def read_declared(folder: Path) -> Mapping[str, DataSet] | None:
    """Return the data sets that client.toml declares now; None where it cannot be read.

    Args:
        folder: the state directory.
    """
    try:
        return load_client_config(folder / CONFIG_NAME).value.data_sets
    except TacitError:  # whoever starts the node is told; what was spent can be read all the same
        return None


def refused_terms(account: Account, declared: Mapping[str, DataSet] | None) -> RefusedError | None:
    """Return why client.toml, as it is now, lets nothing more be charged; None where it does.

    Args:
        account: as the ledger has it.
        declared: of :func:`read_declared`.
    """
    known = account.terms
    data_set = (declared or {}).get(known.data_set)
    if data_set is None:
        return None
    terms = declared_terms(known.data_set, data_set, delta=data_set.delta or known.delta)
    try:
        verify_terms(terms, known)
    except RefusedError as error:
        return error
    if terms.budget < min(known.budget, account.true_epsilon):
        return RefusedError(
            "E-LEDGER-BUDGET",
            f"the budget was lowered to {terms.budget:g}, below what is spent already",
        )
    return None


def on_declared_terms(
    account: Account, declared: Mapping[str, DataSet] | None
) -> tuple[Account, str]:
    """Return an account under the terms that the next charge will go by, and what to say of them.

    Args:
        account: as the ledger has it.
        declared: of :func:`read_declared`.

    Returns:
        The account, and words where the ledger's last entry has other terms, or where nothing is
        known of present ones; empty where both agree.
    """
    known = account.terms
    if declared is None:
        return account, "terms as the ledger's last entry has them: client.toml cannot be read"
    data_set = declared.get(known.data_set)
    if data_set is None:
        return account, "client.toml does not declare it: nothing more is charged"
    terms = declared_terms(known.data_set, data_set, delta=data_set.delta or known.delta)
    refused = refused_terms(account, declared)
    if refused is not None:
        return account, f"client.toml differs, and the next charge is refused: {refused.message}"
    if terms.budget == known.budget:
        return account, ""
    note = (
        f"budget {terms.budget:g} by client.toml, in force from the next charge of a node that was "
        f"started with it; the ledger's last entry has {known.budget:g}"
    )
    return dataclasses.replace(account, terms=terms), note
