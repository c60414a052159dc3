"""A copy of a node in one file, and a node made of such a copy.

The file is a ZIP archive without compression: its ``manifest.json`` has size and SHA-256 of every
other member. It holds what a node cannot make again: its private keys and certificate,
client.toml, its memory, the ledger, the owner's key for row hashes, how records were divided, and
the state of apps. It holds no record of the owner's, and nothing that is on its way out.

Trusts: whoever can write the file. The hashes find damage, not forgery: it holds the node's keys.
Promises:

1. A backup is consistent while the daemon runs. The ledger is copied after the store, so that it
   has all that the store knows of it.
2. One charge pays for one noise, also over a restore: no noise key and no answer is in a backup. An
   attempt that was charged before it is not made again (``client/charges.py``, rule 4); one that
   was not has another key, and a charge of its own.
3. A restore makes a home or nothing. It writes where nothing is, only members whose names have a
   known form, and never more than the file holds.
4. A node that was restored releases nothing before the server has told it how far its ledger had
   come (``client/restored.py``).
5. What a node remembers of secure sums is in no backup. In every run that the copy knows it takes
   part in none any more, whatever the server says: an attempt may have been begun after the copy
   was made, and is not begun again (``client/secure_guard.py``, rule 2).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import sqlite3
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from tacit.client.configuration import CONFIG_NAME
from tacit.client.daemon import IDENTITY_FOLDER, SPLIT_KEY_NAME
from tacit.client.ledger_view import find_problem, noted_heads, open_to_read
from tacit.client.preparation import REPORT_NAME, SPLIT_NAME
from tacit.client.restored import Mark, write_mark
from tacit.client.runs import RUNS_FOLDER
from tacit.client.store import STORE_NAME
from tacit.core.configuration import from_plain
from tacit.core.errors import ConfigError, TrustError, UnavailableError, UsageError
from tacit.core.files import make_private_folder, replacing, sync_path, write_error
from tacit.core.members import MEMBERS_FILE
from tacit.core.membership import Membership
from tacit.core.plain import plain
from tacit.privacy.ledger import LEDGER_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tacit.core.state import StateDirectory

STATES_FOLDER = "states"

_MANIFEST = "manifest.json"
_FORMAT = "tacit client backup 1"
_MAX_MANIFEST_BYTES = 16 << 20  # some 100 000 members
_PIECE_BYTES = 1 << 20
_DAMAGE = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error)
_MAX_TIME_S = 1e11  # some 3000 years from now
_TRIES = 5  # an app's state may be replaced while it is copied
_KNOWN = re.compile(
    rf"{CONFIG_NAME}|{MEMBERS_FILE}|{STORE_NAME}|{LEDGER_NAME}|{SPLIT_KEY_NAME}|"
    rf"{IDENTITY_FOLDER}/[\w-]+\.\w+|"
    rf"{RUNS_FOLDER}/[\w-]+/(?:{SPLIT_NAME}|{REPORT_NAME})|{STATES_FOLDER}/\w[\w.-]*",
    re.ASCII,
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One member of the archive, by the manifest.

    Attributes:
        bytes: its size.
        sha256: of its content, hex.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a backup says of itself.

    Attributes:
        format: name and version of the form.
        made_at_s: when, in seconds since 1970 (UTC).
        member, node_id: whose node.
        entries: that the ledger has at least; 0 if the node has never been started.
        files: by name.
    """

    format: str
    made_at_s: float
    member: str
    node_id: int
    entries: int
    files: dict[str, Part]


def make_backup(state: StateDirectory, out: Path, *, at_s: float) -> Manifest:
    """Write a node's backup, mode 0600, whether its daemon runs or not.

    Args:
        state: the node's.
        out: the file; it must not exist.
        at_s: seconds since 1970.

    Raises:
        UsageError: the file exists (``E-BACKUP-EXISTS``).
        TrustError: the ledger is damaged or was put back: a copy of it would help nobody.
        UnavailableError: a file cannot be read or written, or the disk is full.
    """
    if out.exists():
        raise UsageError(
            "E-BACKUP-EXISTS",
            f"expected no file at {out}: a backup never takes the place of another",
            hint="Choose another name, such as one with the date.",
        )
    identity = Membership(state.path / IDENTITY_FOLDER).identity
    entries = _entries(state.path)  # the copy may have more
    with contextlib.ExitStack() as stack:
        images, states = _snapshot(state.path, stack)
        parts: dict[str, Part] = {}
        with replacing(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, data in images.items():
                parts[name] = _add(archive, name, io.BytesIO(data))
            for name, path in _files(state.path):
                with path.open("rb") as file:
                    parts[name] = _add(archive, name, file)
            for name, pinned in states.items():
                parts[name] = _add(archive, name, pinned)
            manifest = Manifest(
                format=_FORMAT,
                made_at_s=at_s,
                member=identity.name,
                node_id=identity.node_id,
                entries=entries,
                files=parts,
            )
            archive.writestr(_MANIFEST, json.dumps(plain(manifest)))
    return manifest


def _snapshot(
    folder: Path, stack: contextlib.ExitStack
) -> tuple[dict[str, bytes], dict[str, BinaryIO]]:
    """Return the databases as files' bytes, the store first, and the apps' states, opened."""
    for left in reversed(range(_TRIES)):
        images: dict[str, bytes] = {}
        states: dict[str, BinaryIO] = {}
        try:
            if (folder / STORE_NAME).exists():
                images[STORE_NAME], named = _store_image(folder / STORE_NAME)
                for name in named:
                    file = (folder / STATES_FOLDER / name).open("rb")
                    states[f"{STATES_FOLDER}/{name}"] = stack.enter_context(file)
        except FileNotFoundError as error:  # replaced since the store was copied
            if not left:
                raise UnavailableError(
                    "E-BACKUP-BUSY",
                    "expected the state of an app to stay while it is copied",
                    hint="Try again, or stop the node first: that loses nothing.",
                ) from error
            continue
        break
    if (folder / LEDGER_NAME).exists():
        with _copied(folder / LEDGER_NAME) as copy:
            images[LEDGER_NAME] = copy.serialize()
    return images, states


def _store_image(path: Path) -> tuple[bytes, list[str]]:
    """Return the store without what must not come back, and the names of the states in use.

    That is noise keys, answers, and approvals of later runs, which may be withdrawn meanwhile.
    """
    with _copied(path) as copy:
        tables = {str(name) for (name,) in copy.execute("SELECT name FROM sqlite_master")}
        for table in tables & {"noise_keys", "outbox", "repeats"}:  # an older store has no repeats
            copy.execute(f"DELETE FROM {table}")  # noqa: S608 - names from above
        rows = copy.execute("SELECT state_file FROM runs WHERE ended = '' AND state_file != ''")
        named = [str(name) for (name,) in rows]
        copy.execute("VACUUM")  # deleted rows are in no page of the image
        return copy.serialize(), named


@contextlib.contextmanager
def _copied(path: Path) -> Iterator[sqlite3.Connection]:
    """Give a copy in memory of a database that another process may be writing.

    Raises:
        UnavailableError: it cannot be read (``E-BACKUP-READ``).
    """
    try:
        with (
            contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as copy,
        ):
            source.backup(copy)
            yield copy
    except sqlite3.Error as error:
        raise UnavailableError(
            "E-BACKUP-READ", f"expected to copy {path}: {error}", hint="See the disk."
        ) from error


def _entries(folder: Path) -> int:
    """Walk the ledger, and return how many entries it has.

    Raises:
        TrustError: it is damaged, or not what the node has noted of it.
    """
    heads = noted_heads(folder)
    if not heads and not (folder / LEDGER_NAME).exists():
        return 0
    with open_to_read(folder) as ledger:
        problem = find_problem(ledger, heads)
        if problem is not None:
            raise problem
        return len(ledger.entries())


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Return the files that are copied as they are, by their names in the archive."""
    single = [folder / CONFIG_NAME, folder / SPLIT_KEY_NAME, folder / MEMBERS_FILE]
    found = [*single, *folder.glob(f"{IDENTITY_FOLDER}/*")]
    found += [*folder.glob(f"{RUNS_FOLDER}/*/{SPLIT_NAME}")]
    found += [*folder.glob(f"{RUNS_FOLDER}/*/{REPORT_NAME}")]
    for path in found:
        name = path.relative_to(folder).as_posix()
        if path.is_file() and _KNOWN.fullmatch(name):
            yield name, path


def _add(archive: zipfile.ZipFile, name: str, file: BinaryIO) -> Part:
    with archive.open(name, "w", force_zip64=True) as member:
        return _copy(file, member)


def _copy(source: IO[bytes], target: IO[bytes]) -> Part:
    digest, size = hashlib.sha256(), 0
    while piece := source.read(_PIECE_BYTES):
        target.write(piece)
        digest.update(piece)
        size += len(piece)
    return Part(bytes=size, sha256=digest.hexdigest())


def restore_backup(source: Path, home: Path, *, at_s: float) -> Manifest:
    """Make a state directory of a backup, and mark it as restored.

    Args:
        source: the backup.
        home: where it goes; absent, or an empty folder.
        at_s: seconds since 1970.

    Raises:
        UsageError: the home is not empty (``E-RESTORE-HOME``), or the file is no backup
            (``E-BACKUP-FORMAT``).
        TrustError: a file's hash, or the ledger's chain, does not hold (``E-BACKUP-CORRUPT``,
            ``E-LEDGER-CORRUPT``, ``E-LEDGER-ROLLBACK``).
        UnavailableError: the file cannot be read, or the home cannot be written.
    """
    home = home.absolute()
    if home.is_symlink() or (home.exists() and not (home.is_dir() and not any(home.iterdir()))):
        raise UsageError(
            "E-RESTORE-HOME",
            f"expected nothing at {home}, or an empty folder: a restore never writes over a node",
            hint="Name another folder with --home. What is there may hold a newer ledger: keep it.",
        )
    make_private_folder(home.parent)
    made = home.with_name(f".{home.name}.{secrets.token_hex(6)}.part")
    make_private_folder(made)
    try:
        with _opened(source) as archive:
            manifest = _read_manifest(archive, source)
            for name, part in manifest.files.items():
                _extract(archive, name, part, made)
        _verify(made, manifest)
        write_mark(
            made,
            Mark(made_at_s=manifest.made_at_s, restored_at_s=at_s, entries=manifest.entries),
        )
        made.rename(home)
        sync_path(home.parent)
    except OSError as error:
        raise write_error(home, error) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return manifest


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(source)
    except OSError as error:
        raise UnavailableError(
            "E-FILE-UNREADABLE", f"expected to read {source}: {error.strerror}"
        ) from error
    except zipfile.BadZipFile as error:
        raise _no_backup(source, str(error)) from error
    with archive:
        total = sum(member.file_size for member in archive.infolist())
        if total > source.stat().st_size:
            raise _no_backup(source, "its members are larger than the file")
        yield archive


def _read_manifest(archive: zipfile.ZipFile, source: Path) -> Manifest:
    """Read the manifest, and check that it names each member once, in a known form."""
    names = archive.namelist()
    if _MANIFEST not in names or archive.getinfo(_MANIFEST).file_size > _MAX_MANIFEST_BYTES:
        raise _no_backup(source, f"expected a {_MANIFEST}")
    try:
        tree: Any = json.loads(archive.read(_MANIFEST))
        manifest = from_plain(tree, Manifest, source=_MANIFEST)
    except (ValueError, TypeError, AttributeError, RecursionError, *_DAMAGE) as error:
        raise _no_backup(source, f"its {_MANIFEST} cannot be read") from error
    except ConfigError as error:
        raise _no_backup(source, "; ".join(error.problems)) from error
    if not 0 <= manifest.made_at_s < _MAX_TIME_S:
        raise _no_backup(source, f"expected a time, got {manifest.made_at_s}")
    if manifest.format != _FORMAT:
        raise _no_backup(source, f"expected {_FORMAT!r}, got {manifest.format[:80]!r}")
    if sorted(names) != sorted([_MANIFEST, *manifest.files]):
        raise _no_backup(source, "its members are not those that its manifest names")
    unknown = [name for name in manifest.files if not _KNOWN.fullmatch(name)]
    if unknown:
        raise _no_backup(source, f"it holds {unknown[0][:80]!r}, which is no part of a node")
    return manifest


def _extract(archive: zipfile.ZipFile, name: str, part: Part, folder: Path) -> None:
    """Write one member below a folder, by a name whose form is known."""
    path = folder / name
    for parent in reversed(path.relative_to(folder).parents[:-1]):
        make_private_folder(folder / parent)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        try:
            with archive.open(name) as member:
                got = _copy(member, file)
        except _DAMAGE as error:
            raise _corrupt(name) from error
        file.flush()
        os.fsync(file.fileno())
    if got != part:
        raise _corrupt(name)


def _verify(folder: Path, manifest: Manifest) -> None:
    """Check that what was extracted is a node: its keys, and its whole ledger.

    Raises:
        TrustError: the ledger does not hold, or is shorter than the manifest says.
        UnavailableError: keys or certificate are missing.
    """
    membership = Membership(folder / IDENTITY_FOLDER)
    if membership.keys.node_id != membership.identity.node_id:
        raise _corrupt(f"{IDENTITY_FOLDER}/")
    if _entries(folder) < manifest.entries:
        raise _corrupt(LEDGER_NAME)
    for path in folder.glob("*.sqlite-*"):  # a reader's; nothing was written
        path.unlink()


def _no_backup(source: Path, why: str) -> UsageError:
    return UsageError(
        "E-BACKUP-FORMAT",
        f"expected a backup of a client's node in {source}: {why}",
        hint="Make one with: tacit client backup FILE",
    )


def _corrupt(name: str) -> TrustError:
    return TrustError(
        "E-BACKUP-CORRUPT",
        f"expected {name} as it was when the backup was made, got other bytes",
        hint="The file was damaged or cut on its way: use another copy of it.",
    )
