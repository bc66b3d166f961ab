"""The store in a directory.

objects/3f/3fa9.../manifest.json
objects/3f/3fa9.../files/model.safetensors
tmp/9c0e.../            being written; its writer holds a lock on tmp/9c0e....lock
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shlex
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from caravan.errors import StoreError
from caravan.store.base import Stored
from caravan.store.durable import sync
from caravan.store.manifest import (
    Artifact,
    FileEntry,
    Manifest,
    check_digest,
    copy_stream,
    hash_file,
    list_files,
    make_manifest,
    parse_manifest,
)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


class DirectoryStore:
    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        return str(self.root)

    def uri(self, digest: str) -> str:
        return self._object(digest).as_uri()

    def exists(self, digest: str) -> bool:
        return (self._object(digest) / "manifest.json").is_file()

    def stored(self) -> Iterator[Stored]:
        with self._plain_errors("listing"):
            for path in sorted(self.root.glob("objects/??/*")):
                with suppress(FileNotFoundError):  # deleted meanwhile
                    files = [file for file in path.rglob("*") if file.is_file()]
                    size = sum(file.stat().st_size for file in files)
                    modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                    yield Stored(path.name, size, modified)

    def manifest(self, digest: str) -> Manifest:
        path = self._object(digest) / "manifest.json"
        with self._plain_errors(f"reading artifact {digest}"):
            try:
                content = path.read_bytes()
            except FileNotFoundError as error:
                raise StoreError(f"store {self.root} has no artifact {digest}") from error
        with self._way_out(digest):
            return parse_manifest(content, digest)

    def fetch(self, digest: str) -> Path:
        self.verify(digest)
        return self._object(digest) / "files"

    def verify(self, digest: str) -> None:
        expected = {f.path: f for f in self.manifest(digest).files}
        directory = self._object(digest) / "files"
        with self._plain_errors(f"reading artifact {digest}"), self._way_out(digest):
            found = dict(list_files(directory)) if directory.is_dir() else {}
            for path, entry in expected.items():
                if path not in found:
                    raise StoreError(f"artifact {digest}: file {path} is missing")
                if hash_file(found[path], path) != entry:
                    raise StoreError(f"artifact {digest}: file {path} is corrupted")
            for path in found:
                if path not in expected:
                    raise StoreError(f"artifact {digest}: file {path} does not belong to it")

    def put(self, directory: Path, kind: str) -> Artifact:
        with self._plain_errors(f"publishing {directory.name}"), self._scratch() as scratch:
            files = scratch / "files"
            manifest = make_manifest(kind, _copy_tree(directory, files))
            digest = manifest.digest
            if self._is_sound(digest):
                return manifest.artifact
            _write_durably(scratch / "manifest.json", manifest.to_bytes())
            for path in (scratch, *_directories(files)):
                sync(path)
            for path in _directories(files):
                path.chmod(0o555)
            self._commit(scratch, digest)
            return manifest.artifact

    def delete(self, digest: str) -> None:
        target = self._object(digest)
        with self._plain_errors(f"deleting artifact {digest}"), self._scratch() as scratch:
            try:
                target.rename(scratch / "deleted")  # at once, not file by file
            except FileNotFoundError:
                return

    def clean(self) -> None:
        with self._plain_errors("cleaning up"):
            self._sweep()

    # --- inside -----------------------------------------------------------------------------

    def _object(self, digest: str) -> Path:
        return self.root / "objects" / check_digest(digest)[:2] / digest

    def _is_sound(self, digest: str) -> bool:
        if not self.exists(digest):
            return False
        try:
            self.verify(digest)
        except StoreError:
            return False
        return True

    def _commit(self, scratch: Path, digest: str) -> None:
        target = self._object(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                scratch.rename(target)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if self._is_sound(digest):
                break  # another writer was faster, with the same bytes
            broken = scratch.with_name(f"{scratch.name}-replaced")
            target.rename(broken)
            _remove(broken)
        sync(target.parent)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A directory in `tmp` that is ours while we live."""
        self._sweep()
        tmp = self.root / "tmp"
        tmp.mkdir(parents=True, exist_ok=True)
        scratch, lock = _locked_name(tmp)
        try:
            scratch.mkdir()
            yield scratch
        finally:
            if scratch.exists():
                _remove(scratch)
            scratch.with_suffix(".lock").unlink(missing_ok=True)
            os.close(lock)

    def _sweep(self) -> None:
        """Remove the scratch directories of writers that have died."""
        tmp = self.root / "tmp"
        if not tmp.is_dir():
            return
        for lock_path in tmp.glob("*.lock"):
            try:
                lock = os.open(lock_path, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for path in tmp.glob(f"{lock_path.stem}*"):
                    if path != lock_path:
                        _remove(path)
                lock_path.unlink(missing_ok=True)
            except BlockingIOError:
                pass  # its writer lives
            finally:
                os.close(lock)

    @contextmanager
    def _way_out(self, digest: str) -> Iterator[None]:
        """Add to an error about an artifact's content what to do about it."""
        try:
            yield
        except StoreError as error:
            path = shlex.quote(str(self._object(digest)))
            raise StoreError(
                f"{error}; delete it (chmod -R u+w {path} && rm -rf {path}) and resume the run, "
                "which makes the artifact again"
            ) from error

    @contextmanager
    def _plain_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f"store {self.root}: {doing}: {error.strerror or error}"
            if error.errno in FULL:
                raise StoreError(f"{where}; free some space, then resume the run") from error
            if error.errno in REFUSED:
                raise StoreError(
                    f"{where}; make it writable, or name another store in CARAVAN_STORE_URL"
                ) from error
            if error.errno == errno.ENOTDIR:
                raise StoreError(
                    f"{where} ({error.filename}); name a directory in CARAVAN_STORE_URL"
                ) from error
            raise StoreError(f"{where} ({error.filename})") from error


def _locked_name(tmp: Path) -> tuple[Path, int]:
    """A new name in `tmp`, and the descriptor of its lock file, which we hold."""
    while True:
        path = tmp / secrets.token_hex(8)
        lock_path = path.with_suffix(".lock")
        lock = os.open(lock_path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if lock_path.exists():
            return path, lock
        os.close(lock)  # a sweep took it for a dead writer's before we had locked it


def _copy_tree(source: Path, target: Path) -> Iterator[FileEntry]:
    target.mkdir()
    for relative, path in list_files(source):
        copy = target / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as reader, copy.open("xb") as writer:
            yield copy_stream(reader, writer, relative)
            writer.flush()
            os.fsync(writer.fileno())
            os.fchmod(writer.fileno(), 0o444)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("xb") as writer:
        writer.write(content)
        writer.flush()
        os.fsync(writer.fileno())
        os.fchmod(writer.fileno(), 0o444)


def _directories(top: Path) -> list[Path]:
    return [top, *(p for p in top.rglob("*") if p.is_dir())]


def _remove(path: Path) -> None:
    """Remove a file or a tree whose directories may be read-only."""
    if not stat.S_ISDIR(path.lstat().st_mode):
        path.unlink()
        return
    for root, _, _ in os.walk(path):
        os.chmod(root, 0o755)
    shutil.rmtree(path)
