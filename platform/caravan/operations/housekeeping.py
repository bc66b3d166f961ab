"""What no run needs any more: artifacts, work directories, and copies of checkpoints.

A run refers to the artifacts that its stages read and wrote. Each artifact is removed in a
transaction in which nobody can begin to refer to it; a stage that was about to publishes it again.
Pairs that people have rated stay without a run: their work cannot be done again.
A work directory is needed while a stage run of its key has not succeeded. The policies that were
not selected are referred to, but needed no more once their selection is done.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from caravan.registry import SERVED_TAG, Registry, RunRow
from caravan.settings import Settings
from caravan.stages.candidates import not_taken
from caravan.stages.process import discard, exclusive
from caravan.store import Store, Stored, open_store

Kind = Literal["artifact", "candidate", "work directory", "checkpoints"]


@dataclass(frozen=True)
class Garbage:
    kind: Kind
    name: str
    """Digest of the artifact, or key of the stage."""
    size_bytes: int
    remove: Callable[[], bool]
    """Remove it; False if it has come into use meanwhile."""


@dataclass(frozen=True)
class Findings:
    garbage: list[Garbage]
    unknown: list[Stored]
    """Artifacts that the registry has never known and that are left alone: they may be another
    registry's."""


def find_garbage(
    settings: Settings,
    registry: Registry,
    *,
    older_than: timedelta,
    unknown: bool,
    candidates: bool = False,
    rated: bool = False,
) -> Findings:
    """What can be removed.

    Args:
        older_than: artifacts that are younger are left alone: a stage may be about to register
            them, and would publish them again.
        unknown: count artifacts that the registry has never known as garbage.
        candidates: count policies that were not selected as garbage.
        rated: count pairs that people have rated as garbage, with the ratings.
    """
    store = open_store(settings.resolved_store_url, settings)
    store.clean()
    limit = datetime.now(UTC) - older_than
    stored = [item for item in store.stored() if item.modified_at < limit]
    referred = registry.references()  # asked after the listing: what came into use is in it
    kept = referred.keys() | ({} if rated else registry.rated_pairs()).keys()
    unused = [item for item in stored if item.digest not in kept]
    known = {artifact.digest for artifact in registry.artifacts(limit=None)}
    strange = [item for item in unused if item.digest not in known]
    garbage = [
        Garbage(
            "artifact", item.digest, item.size_bytes,
            partial(
                registry.collect, item.digest, partial(store.delete, item.digest), rated=rated
            ),
        )
        for item in unused if unknown or item.digest in known
    ]  # fmt: skip
    if candidates:
        garbage += _candidates(stored, registry, store)
    garbage += _work_directories(settings, registry)
    if unknown or not strange:  # else they may be another registry's, too
        garbage += _checkpoints(settings, registry, store)
    return Findings(garbage, [] if unknown else strange)


def _candidates(stored: Iterable[Stored], registry: Registry, store: Store) -> Iterator[Garbage]:
    unneeded = _not_taken(registry.list_runs(limit=None), registry)
    for item in stored:
        if item.digest in unneeded:
            remove = partial(_remove_candidate, item.digest, registry, store)
            yield Garbage("candidate", item.digest, item.size_bytes, remove)


def _not_taken(runs: Iterable[RunRow], registry: Registry) -> set[str]:
    """A run whose model is served keeps all of its own: pods read them when they start."""
    served = {run.id: any(tag.startswith(SERVED_TAG) for tag in run.tags) for run in runs}
    return not_taken([(registry.stage_runs(id), keeps_all) for id, keeps_all in served.items()])


def _remove_candidate(digest: str, registry: Registry, store: Store) -> bool:
    """Others may take long to go: a run may have come to select from this one meanwhile."""
    referring = registry.references().get(digest, set())
    if digest not in _not_taken(map(registry.get_run, referring), registry):
        return False
    registry.remove_artifact(digest, partial(store.delete, digest))
    return True


def _work_directories(settings: Settings, registry: Registry) -> Iterator[Garbage]:
    needed = registry.unfinished_keys()
    for directory in sorted(settings.work_dir.glob("*/")):
        key = directory.name.removeprefix(".").removesuffix(".discarded")
        if key not in needed:
            remove = partial(_remove_work_directory, directory, key, registry)
            yield Garbage("work directory", key, directory_bytes(directory), remove)


class _InUseError(Exception):
    pass


def _remove_work_directory(directory: Path, key: str, registry: Registry) -> bool:
    """A stage opens its stage run before it takes the lock that we hold."""

    def give_up() -> None:
        raise _InUseError

    try:
        with exclusive(directory.parent / f"{key}.lock", on_wait=give_up):
            if key in registry.unfinished_keys():
                return False
            discard(directory.parent / key)
            return True
    except _InUseError:
        return False


def _checkpoints(settings: Settings, registry: Registry, store: Store) -> Iterator[Garbage]:
    if urlsplit(settings.resolved_store_url).scheme != "s3":
        return
    from caravan.store.checkpoints import S3Checkpoints
    from caravan.store.s3 import S3Store

    assert isinstance(store, S3Store)
    stored = S3Checkpoints.stored(store)
    needed = registry.unfinished_keys()

    def remove(key: str) -> bool:
        if key in registry.unfinished_keys():
            return False
        S3Checkpoints(settings, key).keep([])
        return True

    for key, objects in stored.items():
        if key not in needed:
            size = sum(o.size_bytes for o in objects)
            yield Garbage("checkpoints", key, size, partial(remove, key))


# --- how much runs take -------------------------------------------------------------------------


def directory_bytes(directory: Path) -> int:
    """What a directory holds, as far as it is still there."""
    size = 0
    for root, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):
                size += Path(root, name).lstat().st_size
    return size


def _sizes(registry: Registry) -> dict[str, int]:
    """Of the artifacts that the store has."""
    return {a.digest: a.size_bytes for a in registry.artifacts(limit=None) if a.uri}


@dataclass(frozen=True)
class Usage:
    run_id: str
    artifact_bytes: int
    """Of the artifacts that the run refers to."""
    own_bytes: int
    """Of them, those that no other run refers to."""
    work_bytes: int
    """Of its unfinished stages' work directories on this machine."""


def only_of(registry: Registry, run_ids: Iterable[str]) -> set[str]:
    """The artifacts that only these runs refer to."""
    these = set(run_ids)
    return {digest for digest, ids in registry.references().items() if ids <= these}


def freed_bytes(registry: Registry, digests: Iterable[str]) -> int:
    """Of those of the artifacts that no person has rated."""
    sizes = _sizes(registry)
    return sum(sizes.get(digest, 0) for digest in set(digests) - registry.rated_pairs().keys())


def usages(settings: Settings, registry: Registry) -> list[Usage]:
    """Of all runs, newest first."""
    sizes = _sizes(registry)
    referred, keys = registry.references(), registry.unfinished_keys()
    found = []
    for run in registry.list_runs(limit=None):
        digests = [digest for digest, ids in referred.items() if run.id in ids]
        own = [digest for digest in digests if len(referred[digest]) == 1]
        work = [settings.work_dir / key for key, ids in keys.items() if run.id in ids]
        found.append(
            Usage(
                run.id, sum(sizes.get(d, 0) for d in digests), sum(sizes.get(d, 0) for d in own),
                sum(directory_bytes(directory) for directory in work),
            )
        )  # fmt: skip
    return found
