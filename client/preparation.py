"""The daemon's side of data preparation: a job for a process of its own, and its answer.

The daemon never parses an owner's file itself: a short-lived trusted process (``prepare.py``) does,
and leaves the cleaned, split data set in the run's folder. Its answer is one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tacit.client.configuration import DataFormat, DataSet
from tacit.core.errors import DataError, UnavailableError

PREPARED_NAME = "prepared.safetensors"
SPLIT_NAME = "split.json"
_TIMEOUT_S = 3600.0  # a data set that takes longer to read belongs into another format
_KEPT_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "TZ")


@dataclass(frozen=True, kw_only=True)
class PrepareJob:
    """One data set to be made ready for one run.

    Attributes:
        specification: canonical JSON.
        data_set: where the records are.
        folder: where ``prepared.safetensors`` and ``split.json`` go.
        split_key: the owner's key, under which row hashes are made.
    """

    specification: bytes
    data_set: DataSet
    folder: Path
    split_key: bytes

    def encode(self) -> bytes:
        """Return the job as JSON."""
        data_set = self.data_set
        plain = {
            "specification": self.specification.decode(),
            "folder": str(self.folder),
            "split_key": self.split_key.hex(),
            "data_set": {
                "path": str(data_set.path),
                "format": data_set.format.value,
                "records": data_set.records,
                "subject": data_set.subject,
                "separator": data_set.separator,
                "header": data_set.header,
                "columns": list(data_set.columns),
            },
        }
        return json.dumps(plain).encode()

    @classmethod
    def parse(cls, text: bytes) -> PrepareJob:
        """Read what :meth:`encode` wrote."""
        plain = json.loads(text)
        data_set = plain["data_set"]
        return cls(
            specification=plain["specification"].encode(),
            folder=Path(plain["folder"]),
            split_key=bytes.fromhex(plain["split_key"]),
            data_set=DataSet(
                path=Path(data_set["path"]),
                format=DataFormat(data_set["format"]),
                records=data_set["records"],
                subject=data_set["subject"],
                separator=data_set["separator"],
                header=data_set["header"],
                columns=tuple(data_set["columns"]),
            ),
        )


def prepare_in_process(job: PrepareJob) -> None:
    """Make a data set ready in a process of its own.

    Raises:
        DataError: the file does not keep the run's contract; rows are named by number.
        UnavailableError: the file is missing, or the process failed.
    """
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    try:
        result = subprocess.run(
            [sys.executable, "-P", "-s", "-B", "-m", "tacit.client.prepare"],
            input=job.encode(),
            capture_output=True,
            check=False,
            timeout=_TIMEOUT_S,
            env=environment | {"OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"},
        )
        answer = json.loads(result.stdout)
        code, message = str(answer["code"]), str(answer["message"])
        problems = tuple(map(str, answer["problems"]))
    except (subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        raise UnavailableError(
            "E-PREPARE-FAILED",
            f"expected the data set {job.data_set.path} to be prepared; the process failed",
            hint="Memory may have run out; `tacit client check` prepares it on its own.",
        ) from error
    if code:
        hint = str(answer.get("hint", ""))
        raise DataError(code, message, problems=problems, hint=hint)
