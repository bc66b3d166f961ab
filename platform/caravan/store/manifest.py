"""What an artifact is: files, and the digest of the list of them.

The digest is the SHA-256 of the manifest's canonical bytes, so `sha256sum manifest.json` gives it:

    {"files":[{"path":"rows.jsonl","sha256":"9f86...","size":4096}],"kind":"dataset"}
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from caravan.errors import StoreError

CHUNK_BYTES = 1 << 20
MAX_NAME_BYTES = 255


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class FileEntry:
    path: str
    """Relative, with `/` between its parts."""
    sha256: str
    size: int
    """In bytes."""


@dataclass(frozen=True)
class Manifest:
    kind: str
    files: tuple[FileEntry, ...]
    """Sorted by path."""

    def to_bytes(self) -> bytes:
        files = [{"path": f.path, "sha256": f.sha256, "size": f.size} for f in self.files]
        content = {"kind": self.kind, "files": files}
        return json.dumps(
            content, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def size_bytes(self) -> int:
        return sum(f.size for f in self.files)

    @property
    def artifact(self) -> Artifact:
        return Artifact(self.digest, self.kind, self.size_bytes, len(self.files))


@dataclass(frozen=True)
class Artifact:
    """An immutable directory in the store."""

    digest: str
    """SHA-256 of the manifest, 64 hexadecimal digits."""
    kind: str
    size_bytes: int
    files: int
    """Number of files."""


def make_manifest(kind: str, files: Iterable[FileEntry]) -> Manifest:
    """A manifest whose paths have been checked, sorted.

    Raises:
        StoreError: there is no file, a path is unsafe, or one file is in the way of another.
    """
    ordered = tuple(sorted(files, key=lambda f: f.path))
    if not ordered:
        raise StoreError("an artifact needs at least one file")
    paths = {f.path for f in ordered}
    for file in ordered:
        check_path(file.path)
        parts = file.path.split("/")
        if any("/".join(parts[:i]) in paths for i in range(1, len(parts))):
            raise StoreError(f"{file.path!r}: a directory above it is also a file")
    if len(paths) < len(ordered):
        raise StoreError("a path occurs twice")
    return Manifest(kind, ordered)


def parse_manifest(content: bytes, digest: str) -> Manifest:
    """The manifest of the artifact `digest`, as read from a store.

    Raises:
        StoreError: it is not what was published.
    """
    if hashlib.sha256(content).hexdigest() != digest:
        raise StoreError(f"artifact {digest}: manifest.json is corrupted")
    raw: dict[str, Any] = json.loads(content)
    return make_manifest(
        raw["kind"], [FileEntry(f["path"], f["sha256"], f["size"]) for f in raw["files"]]
    )


def check_digest(digest: str) -> str:
    """`digest`, if it is one: it becomes part of paths.

    Raises:
        StoreError: it is not 64 lower-case hexadecimal digits.
    """
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise StoreError(f"{digest!r} is not a digest (64 hexadecimal digits)")
    return digest


def check_path(path: str) -> None:
    """Refuse a path that could leave the artifact or that not every store can hold.

    Raises:
        StoreError: the path is unsafe.
    """
    for part in path.split("/"):
        try:
            encoded = part.encode()
        except UnicodeEncodeError as error:
            raise StoreError(f"file name {path!r} is not valid Unicode") from error
        if part in ("", ".", ".."):
            raise StoreError(f"file name {path!r}: empty parts, '.' and '..' are not allowed")
        if "\\" in part or not part.isprintable():
            raise StoreError(
                f"file name {path!r}: backslashes and unprintable characters are not allowed"
            )
        if len(encoded) > MAX_NAME_BYTES:
            raise StoreError(f"file name {path!r} is longer than {MAX_NAME_BYTES} bytes")


def list_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """The files below `directory`, as relative path and path, sorted.

    Raises:
        StoreError: something is neither a directory nor a plain file, or has an unsafe name.
    """
    for root, names, files in os.walk(directory, onerror=_raise):
        names.sort()
        for name in sorted(names + files):
            path = Path(root, name)
            relative = path.relative_to(directory).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                check_path(relative)
                yield relative, path
            elif not stat.S_ISDIR(mode):
                what = "a symbolic link" if stat.S_ISLNK(mode) else "not a plain file"
                raise StoreError(f"{path} is {what}; an artifact holds plain files only")


def _raise(error: OSError) -> None:
    raise error


def read_manifest_of(directory: Path, kind: str) -> Manifest:
    """The manifest that `directory` would have as an artifact."""
    return make_manifest(kind, [hash_file(p, relative) for relative, p in list_files(directory)])


def hash_file(path: Path, relative: str) -> FileEntry:
    with path.open("rb") as source:
        return copy_stream(source, None, relative)


def copy_stream(source: Readable, target: BinaryIO | None, relative: str) -> FileEntry:
    """Copy `source` to `target` (if any) and say what was copied."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
        if target is not None:
            target.write(chunk)
    return FileEntry(relative, digest.hexdigest(), size)
