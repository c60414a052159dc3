"""Apps are run from the files that their fingerprint covers, never from compiled ones beside them.

A fingerprint leaves ``__pycache__`` out, since Python writes there whenever somebody imports an
app. But Python would also believe a compiled file there that somebody else has made: it may carry
the time and size of its source, or say that it need not be compared with it at all. So a worker
compiles the sources of the packages that it runs for somebody else itself.
"""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import CodeType, ModuleType

    from tacit.protos import pipe_pb2


class _FromSource(SourceFileLoader):
    """Loads a module from its source alone."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


class SourceFinder:
    """Finds the modules of some packages as Python does, and has them loaded from source."""

    def __init__(self, packages: Iterable[str]) -> None:
        self._packages = frozenset(packages)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a module of ours is; None for every other module."""
        if fullname.partition(".")[0] not in self._packages:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _FromSource(spec.loader.name, spec.loader.path)
        return spec


def run_from_source(begin: pipe_pb2.WorkerBegin) -> None:
    """Let this process load a run's app and factory from source, if they are not Tacit's own."""
    model = json.loads(begin.specification or b"{}").get("model") or {}
    names = (begin.app, model.get("factory") or "")
    packages = {name.partition(":")[0].partition(".")[0] for name in names} - {"", "tacit"}
    sys.meta_path.insert(0, SourceFinder(packages))
