"""Finished stage runs of a registry, with artifacts named by letters."""

from caravan.store import Artifact


def artifact(letter, kind="dataset"):
    return Artifact(digest=letter * 64, kind=kind, size_bytes=3_000_000_000, files=2)


def stage(registry, run_id, node, key, inputs=(), outputs=()):
    """A succeeded stage run; inputs and outputs as letters of artifacts."""
    opened = registry.open_stage_run(run_id, node, node, key * 64)
    for letter in inputs:
        registry.add_artifact(artifact(letter), f"file:///{letter}")
    registry.start_stage_run(opened.id, {f"in-{c}": c * 64 for c in inputs})
    registry.succeed_stage_run(
        opened.id, {f"out-{c}": (artifact(c), f"file:///{c}") for c in outputs}
    )
    return registry.stage_run(opened.id)
