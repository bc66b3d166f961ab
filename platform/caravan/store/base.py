"""What every store does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from caravan.store.manifest import Artifact, Manifest


@dataclass(frozen=True)
class Stored:
    """What lies in the store under one digest: an artifact, or what is left of one."""

    digest: str
    size_bytes: int
    modified_at: datetime


class Store(Protocol):
    """Immutable directories, addressed by the digest of their content."""

    @property
    def url(self) -> str:
        """Where the store is, without credentials."""
        ...

    def put(self, directory: Path, kind: str) -> Artifact:
        """Publish `directory`: afterwards it is there as a whole, or (on an error) not at all.

        Publishing the same content again changes nothing, except that it mends a corrupted one.

        Raises:
            StoreError: a file cannot be held, or the store is full, read-only or refuses us.
            StoreUnavailableError: the store does not answer.
        """
        ...

    def fetch(self, digest: str) -> Path:
        """A local, read-only directory with the artifact's files, each verified.

        Raises:
            StoreError: the artifact is not there, or is corrupted.
        """
        ...

    def manifest(self, digest: str) -> Manifest:
        """What is in the artifact, without its files."""
        ...

    def exists(self, digest: str) -> bool:
        """Whether the artifact is there, as a whole; its bytes are not read."""
        ...

    def stored(self) -> Iterator[Stored]:
        """All that lies in the store, but for what is being written."""
        ...

    def verify(self, digest: str) -> None:
        """Read every byte of the artifact as it lies in the store.

        Raises:
            StoreError: a file is missing, changed or too much; the message names it.
        """
        ...

    def delete(self, digest: str) -> None:
        """Remove the artifact; a resumed run makes it again. Nothing happens if it is not there."""
        ...

    def uri(self, digest: str) -> str:
        """Where the artifact lies."""
        ...

    def clean(self) -> None:
        """Remove what writers that died have left behind."""
        ...
