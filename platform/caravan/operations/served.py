"""Which run's model a server reads from the store when its pods start, as a tag of that run: a run
that has it is not deleted, so `caravan gc` leaves the model alone."""

from __future__ import annotations

from caravan.registry import SERVED_TAG, Registry


def mark_served(name: str, digest: str, registry: Registry, run_id: str = "") -> str:
    """Tag a run that refers to the model (`run_id` where it is known), and no other, as served by
    `name`; returns its id, empty where no run refers to the model."""
    unmark_served(name, registry)
    run_id = run_id or max(registry.references().get(digest, ()), default="")
    if run_id:
        registry.set_tags(run_id, [*registry.tags(run_id), SERVED_TAG + name])
    return run_id


def unmark_served(name: str, registry: Registry) -> bool:
    """Whether a run was tagged."""
    tag = SERVED_TAG + name
    runs = registry.list_runs(limit=None, tag=tag)
    for run in runs:
        registry.set_tags(run.id, set(run.tags) - {tag})
    return bool(runs)
