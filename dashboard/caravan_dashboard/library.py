"""The library as the pages use it: one connection per registry, one local copy per artifact.

The registry is asked anew each time, since runs change. Artifacts never change: what is read from
one is kept under the store's URL and the artifact's digest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import pandas as pd
import streamlit as st

from caravan.data.io import ROWS
from caravan.errors import DataError
from caravan.registry import Registry, StageRunRow
from caravan.settings import Settings, load_settings
from caravan.store import Store, open_store
from caravan_dashboard import rows

F = TypeVar("F", bound=Callable[..., Any])


def cached(function: F, **options: Any) -> F:
    """`st.cache_resource`, with the function's type kept. What comes back must not be changed."""
    return cast(F, st.cache_resource(**options)(function))


def settings() -> Settings:
    return load_settings()


def _connect(url: str, stale_after_seconds: float) -> Registry:
    return Registry(url, stale_after_seconds=stale_after_seconds)


_registry = cached(_connect, show_spinner=False, max_entries=8, on_release=Registry.close)


def registry() -> Registry:
    """The registry of the environment, connected once."""
    current = settings()
    return _registry(current.resolved_registry_url, current.stale_after_seconds)


def _open_store(_settings: Settings, url: str, endpoint: str) -> Store:
    return open_store(url, _settings)


_store = cached(_open_store, show_spinner=False, max_entries=8)


def _fetch(_settings: Settings, url: str, endpoint: str, digest: str) -> Path:
    return _store(_settings, url, endpoint).fetch(digest)


_fetched = cached(_fetch, show_spinner="Fetching the artifact …", max_entries=512)


def artifact(digest: str) -> Path:
    """The local directory of an artifact, fetched and verified once.

    Raises:
        StoreError: the store does not have it, or its content is not what the digest says.
    """
    current = settings()
    path = _fetched(current, current.resolved_store_url, current.s3_endpoint, digest)
    if not path.exists():  # the cache directory was cleared while we ran
        st.cache_resource.clear()
        path = _fetched(current, current.resolved_store_url, current.s3_endpoint, digest)
    return path


def output(stages: list[StageRunRow], node: str, name: str = "") -> str | None:
    """The digest of a node's output; of its only one where no name is given."""
    for stage in stages:
        if stage.node == node:
            if name:
                return stage.outputs.get(name)
            return next(iter(stage.outputs.values()), None)
    return None


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where there is no such file."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); run the stage again") from error


def _index(path: Path, _facts: rows.Facts, columns: tuple[str, ...]) -> pd.DataFrame:
    return rows.index_rows(path, _facts, columns)


_indexed = cached(_index, show_spinner="Reading the rows …", max_entries=32)


def index(
    digest: str, facts: rows.Facts, columns: tuple[str, ...], file: str = ROWS
) -> pd.DataFrame:
    """Offset and facts of each row of an artifact's file; `columns` names the facts."""
    return _indexed(artifact(digest) / file, facts, columns)


def _search(path: Path, text: str) -> frozenset[int]:
    return rows.search_rows(path, text)


_searched = cached(_search, show_spinner="Searching …", max_entries=64)


def search(digest: str, text: str, file: str = ROWS) -> frozenset[int]:
    """The offsets of the rows of an artifact's file in which a value holds `text`."""
    return _searched(artifact(digest) / file, text)
