"""caravan run RECIPE --dry-run: what can be known before the first step of a run."""

from caravan_pipelines.dry_run.checks import dry_run

__all__ = ["dry_run"]
