"""Regenerate the committed protobuf code: ``make protos``.

The schema files live in ``protos/`` and import each other as ``tacit/protos/x.proto``; the
generator is pinned in pyproject.toml so that the output is the same on every machine.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
SERVICES = ("enrolment", "fleet", "control")


def generate(names: list[str]) -> None:
    """Generate ``*_pb2.py``, stubs and gRPC code for the named schema files.

    Raises:
        CalledProcessError: protoc refused a schema.
    """
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        (tree / "tacit").mkdir()
        (tree / "tacit" / "protos").symlink_to(FOLDER.resolve())
        out = tree / "out"
        out.mkdir()
        bin_folder = Path(sys.executable).parent
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--plugin=protoc-gen-mypy={bin_folder / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={bin_folder / 'protoc-gen-mypy_grpc'}",
            f"-I{tree}",
            f"--python_out={out}",
            f"--mypy_out={out}",
        ]
        schemas = [f"tacit/protos/{name}.proto" for name in names]
        subprocess.run([*command, *schemas], check=True, cwd=tree)
        services = [f"tacit/protos/{name}.proto" for name in names if name in SERVICES]
        subprocess.run(
            [*command, f"--grpc_python_out={out}", f"--mypy_grpc_out={out}", *services],
            check=True,
            cwd=tree,
        )
        for path in sorted((out / "tacit" / "protos").iterdir()):
            shutil.copy(path, FOLDER / path.name)


if __name__ == "__main__":
    generate(sys.argv[1:])
