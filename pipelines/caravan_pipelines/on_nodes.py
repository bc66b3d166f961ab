"""A training stage on several nodes, seen from both sides.

`wait_for_job` runs in the pod of the stage's step: it makes the TrainJob and waits for it. The job
runs `python -m caravan_pipelines.on_nodes RUN NODE INPUTS` on each of its nodes.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from importlib import import_module
from pathlib import Path

from caravan.cluster.api import kubernetes_api
from caravan.cluster.profile import load_profile
from caravan.cluster.trainjob import (
    POLL_SECONDS,
    ApiAwayError,
    JobFailedError,
    TrainJobs,
    train_job,
)
from caravan.errors import CaravanError, StageError
from caravan.operations.logs import configure_logging
from caravan.registry import Registry, State
from caravan.settings import Settings, load_settings
from caravan.stages.candidates import Selection, missed
from caravan.stages.execute import execute
from caravan.stages.follow import follow
from caravan.stages.key import stage_key, stage_seed
from caravan.store import open_store
from caravan_pipelines.graph import Node, find_node
from caravan_pipelines.launch.files import unpack_files
from caravan_pipelines.run_data import recipe_of, run_of

TRAINER_TOKEN_DIR = Path("/var/run/secrets/caravan-trainer")
"""Where a pod that makes TrainJobs finds the token of the account that may."""


def wait_for_job(
    node: Node,
    run: str,
    inputs: Mapping[str, str],
    settings: Settings,
    *,
    recipe_dir: Path,
    selection: Selection | None = None,
    poll_seconds: float = POLL_SECONDS,
) -> dict[str, str]:
    """Train a stage on its nodes; returns the digests of its outputs.

    Raises:
        StageError: the job failed, or cannot be made.
    """
    module = import_module(f"caravan.stages.{node.stage}")
    seed = stage_seed(run_of(run).seed, node.name)
    key = stage_key(module, node.config, inputs, seed, recipe_dir=recipe_dir)
    if _is_done(key, selection, settings):  # then `execute` takes what was made
        return execute(
            node.name, node.stage, node.config, inputs, run, settings, recipe_dir=recipe_dir,
            selection=selection,
        )  # fmt: skip
    api = kubernetes_api(TRAINER_TOKEN_DIR)
    if api is None:
        raise StageError(f"{node.name} asks for several nodes, which takes a Kubernetes cluster")
    profile = load_profile(settings)
    command = ["python", "-m", __name__, run, node.name, json.dumps(dict(inputs))]
    job = train_job(
        run, node.name, command, node.resources, profile, dashboard_url=settings.dashboard_url
    )
    jobs, ended = TrainJobs(api, profile.namespace), threading.Event()
    with Registry(settings.resolved_registry_url) as registry:
        opened = {stage.node for stage in registry.stage_runs(run)}
        # The books of a job that runs already are its first node's.
        if node.name not in opened or not jobs.runs(job["metadata"]["name"]):
            registry.open_stage_run(run, node.name, node.stage, key)
        waiting = threading.Thread(
            target=_beat, args=(registry, run, node.name, settings, ended), daemon=True
        )
        waiting.start()
        try:
            jobs.run(job, _tell, poll_seconds=poll_seconds)
        except ApiAwayError:  # which says nothing of the job
            raise
        except CaravanError as error:
            at = error.at if isinstance(error, JobFailedError) else None
            _close(registry, run, node, str(error), at)
            raise
        finally:
            ended.set()
            waiting.join()
        done = next(stage for stage in registry.stage_runs(run) if stage.node == node.name)
    if done.state is not State.SUCCEEDED:
        raise StageError(
            f"the TrainJob of {node.name} is complete, but the stage is {done.state}: did its "
            "first node reach the registry?"
        )
    return dict(done.outputs)


def _is_done(key: str, selection: Selection | None, settings: Settings) -> bool:
    """Whether a stage run with the same key has succeeded, and the store has what it needs of
    it."""
    store = open_store(settings.resolved_store_url, settings)
    with Registry(settings.resolved_registry_url) as registry:
        origin = registry.find_finished(key)
        return origin is not None and not missed(origin.outputs, selection, registry, store)


def _tell(line: str) -> None:
    print(line, flush=True)


def _beat(
    registry: Registry, run: str, node: str, settings: Settings, ended: threading.Event
) -> None:
    """While the job waits for its nodes nobody else tells that the stage lives."""
    while not ended.wait(settings.heartbeat_seconds):
        with suppress(CaravanError):
            stage = next(s for s in registry.stage_runs(run) if s.node == node)
            if not stage.state.finished:
                registry.heartbeat(stage.id)


def _close(registry: Registry, run: str, node: Node, why: str, at: datetime | None) -> None:
    """Record why and when the job failed, unless its first node has failed and said so itself. One
    that was only stopped has not: another node took the job down."""
    stage = next(s for s in registry.stage_runs(run) if s.node == node.name)
    if stage.state is not State.FAILED:
        registry.finish_stage_run(stage.id, State.FAILED, error=why, at=at)


# --- one node of the job ------------------------------------------------------------------------


def train_here(run: str, node: str, inputs: Mapping[str, str], settings: Settings) -> None:
    """One node's part of a stage."""
    found = find_node(recipe_of(run), node)
    rank = int(os.environ.get("PET_NODE_RANK", "0"))
    recipe_dir = unpack_files(run_of(run).recipe_dir, settings)
    if rank == 0:
        execute(node, found.stage, found.config, inputs, run, settings, recipe_dir=recipe_dir)
    else:
        follow(
            node, found.stage, found.config, inputs, run, settings,
            recipe_dir=recipe_dir, node_rank=rank,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="caravan_pipelines.on_nodes")
    for name in ("run", "node", "inputs"):
        parser.add_argument(name)
    arguments = parser.parse_args()
    run, node = arguments.run, arguments.node
    try:
        settings = load_settings()
        configure_logging(settings.log_format, run=run, stage=node)
        train_here(run, node, json.loads(arguments.inputs), settings)
    except CaravanError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
