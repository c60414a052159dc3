"""The daemon's side of data preparation: a job for a process of its own, and its answer.

The daemon never parses an owner's file itself: a short-lived trusted process (``prepare.py``) does,
and leaves the cleaned, split data set in the run's folder. Its answer is one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tacit.attacks.inclusion import Opening, encode_opening, parse_opening
from tacit.client.configuration import DataFormat, DataSet
from tacit.core.configuration import from_plain
from tacit.core.errors import ConfigError, DataError, UnavailableError
from tacit.core.files import write_atomic
from tacit.core.plain import plain

PREPARED_NAME = "prepared.safetensors"
SPLIT_NAME = "split.json"
REPORT_NAME = "preparation.json"
_TIMEOUT_S = 3600.0  # a data set that takes longer to read belongs into another format
_READ_WITHOUT_CONTRACT = (DataFormat.CSV, DataFormat.PARQUET)  # the others need its shapes
_KEPT_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "TZ")


@dataclass(frozen=True, kw_only=True)
class PrepareJob:
    """One data set to be made ready for one run.

    Attributes:
        specification: canonical JSON; empty to look at the data set only.
        data_set: where the records are.
        folder: where ``prepared.safetensors``, ``split.json`` and ``preparation.json`` go.
        split_key: the owner's key, under which row hashes and hashed columns are made.
        opening: which canaries go in; None for a run without any.
    """

    specification: bytes
    data_set: DataSet
    folder: Path
    split_key: bytes
    opening: Opening | None = None

    def encode(self) -> bytes:
        """Return the job as JSON."""
        values = {
            "specification": self.specification.decode(),
            "folder": str(self.folder),
            "split_key": self.split_key.hex(),
            "data_set": plain(self.data_set),
            "opening": None if self.opening is None else encode_opening(self.opening).decode(),
        }
        return json.dumps(values).encode()

    @classmethod
    def parse(cls, text: bytes) -> PrepareJob:
        """Read what :meth:`encode` wrote."""
        values = json.loads(text)
        return cls(
            specification=values["specification"].encode(),
            folder=Path(values["folder"]),
            split_key=bytes.fromhex(values["split_key"]),
            data_set=from_plain(values["data_set"], DataSet),
            opening=values["opening"] and parse_opening(values["opening"].encode()),
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """What preparing a data set did and noticed, for its owner's eyes: names and counts, no value.

    Attributes:
        cleaning: what the owner's rules left out and changed.
        warnings: what the owner should think about, such as columns that look like identifiers.
    """

    cleaning: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Write ``preparation.json``, whole or not at all."""
        write_atomic(folder / REPORT_NAME, json.dumps(plain(self), indent=1).encode())

    @classmethod
    def load(cls, folder: Path) -> Report:
        """Read what :meth:`save` wrote; an empty report if there is none."""
        try:
            values = json.loads((folder / REPORT_NAME).read_bytes())
            return from_plain(values, cls)
        except (OSError, ValueError, ConfigError):
            return cls()


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a data set holds, before any contract: for its owner's eyes.

    Attributes:
        columns: those that a run may see: not forbidden, not dropped, not the subject's.
        records: how many take part, after cleaning.
        report: what cleaning did, and warnings.
    """

    columns: tuple[str, ...]
    records: int
    report: Report = field(default_factory=Report)


class Preparation:
    """Makes data sets ready, each in a process of its own; safe to use from several threads."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()
        self._closing = False

    def prepare(self, job: PrepareJob) -> None:
        """Make one data set ready.

        Raises:
            DataError: the file does not keep the run's contract; rows are named by number.
            UnavailableError: the process failed.
        """
        self._answered(job)

    def survey(self, data_set: DataSet) -> Survey | None:
        """Read a data set without a contract; None where its format cannot be read so.

        Raises:
            DataError: it is not of the format that client.toml says.
            UnavailableError: the process failed.
        """
        if data_set.format not in _READ_WITHOUT_CONTRACT:
            return None
        with tempfile.TemporaryDirectory() as folder:
            job = PrepareJob(
                specification=b"", data_set=data_set, folder=Path(folder), split_key=bytes(32)
            )
            answer = self._answered(job)
            report = Report.load(job.folder)
        return Survey(
            columns=tuple(answer["columns"]), records=int(answer["records"]), report=report
        )

    def _answered(self, job: PrepareJob) -> dict[str, Any]:
        """Return a process' answer, unless that is an error."""
        try:
            output = self._run(job.encode())
            answer: dict[str, Any] = json.loads(output)
            code, message = str(answer["code"]), str(answer["message"])
            problems, hint = tuple(map(str, answer["problems"])), str(answer["hint"])
        except (subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
            raise UnavailableError(
                "E-PREPARE-FAILED",
                f"expected the data set {job.data_set.path} to be prepared; the process failed",
                hint="Memory may have run out; `tacit client check` prepares it on its own.",
            ) from error
        if code:
            raise DataError(code, message, problems=problems, hint=hint)
        return answer

    def close(self) -> None:
        """Kill what is still running."""
        with self._guard:
            self._closing = True
            for process in self._running:
                process.kill()

    def _run(self, job: bytes) -> bytes:
        environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
        with self._guard:
            if self._closing:
                raise UnavailableError("E-NODE-STOPPING", "this node is about to stop")
            process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-B", "-m", "tacit.client.prepare"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # a traceback could quote a record
                env=environment | {"OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"},
            )
            self._running.add(process)
        try:
            return process.communicate(job, timeout=_TIMEOUT_S)[0]
        finally:
            process.kill()
            process.wait()
            with self._guard:
                self._running.discard(process)
