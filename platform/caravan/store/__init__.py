"""The artifact store: a directory, or a bucket of any S3 endpoint."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from caravan.errors import StoreError
from caravan.settings import Settings, load_settings
from caravan.store.base import Store, Stored
from caravan.store.directory import DirectoryStore
from caravan.store.manifest import Artifact, FileEntry, Manifest

__all__ = ["Artifact", "DirectoryStore", "FileEntry", "Manifest", "Store", "Stored", "open_store"]


def open_store(url: str | Path | None = None, settings: Settings | None = None) -> Store:
    """The store at `url`: a directory, `file:///...` or `s3://bucket/prefix`.

    Without `url`, the store that the settings name. Nothing is asked of it yet.

    Raises:
        StoreError: the URL cannot be used, or credentials are missing.
    """
    settings = settings or load_settings()
    text = str(url) if url is not None else settings.resolved_store_url
    parts = urlsplit(text)
    if parts.scheme == "s3":
        from caravan.store.s3 import S3Store

        return S3Store(text, settings)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise StoreError(f"store {text!r}: write file:///path, with three slashes")
        return DirectoryStore(Path(unquote(parts.path)).resolve())
    if "://" in text:
        raise StoreError(f"store {text!r}: use a directory or s3://bucket/prefix")
    return DirectoryStore(Path(text).expanduser().resolve())
