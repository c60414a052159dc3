"""Whether a confined worker can read the files of the code that a run calls.

A package that is installed editable (``pip install -e``) is found by the node, which may read
everything, and not by its worker, which may read the installed packages and little else. Said when
a run is judged, rather than when its first message comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tacit.client.configuration import CONFIG_NAME
from tacit.client.isolation import readable_places
from tacit.core.artifacts import app_place
from tacit.core.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tacit.client.configuration import ClientConfig
    from tacit.core.specification import RunSpec


def verify_readable(specification: RunSpec, config: ClientConfig) -> None:
    """Check that a worker of this run may read the app and the model factory that it names.

    Raises:
        RefusedError: E-APP-UNREADABLE, the files of one are elsewhere.
        UnavailableError: one is not installed.
    """
    app, model = specification.app, specification.model
    factory = model.factory if model is not None else None
    if app is not None:
        rule = config.policy.apps.get(app.client)
        _verify_place(app.client, () if rule is None else rule.readable, can_be_listed=True)
    elif factory is not None:
        _verify_place(factory, (), can_be_listed=False)  # only an app has a list of its own


def _verify_place(name: str, listed: Sequence[Path], *, can_be_listed: bool) -> None:
    place = app_place(name.partition(":")[0]).resolve()
    allowed = (path.resolve() for path in (*readable_places(), *listed))
    if any(place.is_relative_to(path) for path in allowed):
        return
    folder = place if place.is_dir() else place.parent
    instead = f", or add the folder to readable of this app in {CONFIG_NAME}"
    raise RefusedError(
        "E-APP-UNREADABLE",
        f"expected {name!r} where a confined worker may read it; its files are in {folder}, "
        "which a confined worker cannot read",
        hint=f"Install it without -e (pip install PATH){instead if can_be_listed else ''}.",
    )
