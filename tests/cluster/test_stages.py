"""A stage as a pod, against PostgreSQL and S3, makes what it makes on a laptop."""

from __future__ import annotations

import os
import subprocess
import sys

import restricted

from caravan.recipe.io import load_recipe
from caravan.registry import Registry, StageRunRow, State
from caravan.settings import Settings
from caravan.store import open_store
from caravan_command import MINI
from caravan_pipelines.launch.local import create_run

STAGE = """
import sys, tempfile, types
from caravan_pipelines.step import run_step
run, node = sys.argv[1:]
page = types.SimpleNamespace(path=f"{tempfile.mkdtemp()}/summary.md")
run_step(run, node, {}, None, page)
"""
NODES = ("base", "curate")
"""One that trains, one that prepares data; neither has inputs."""


def test_stages_make_the_same_artifacts_as_on_a_laptop(
    cluster, namespace, stage_environment, cluster_settings, tmp_path
):
    recipe = load_recipe(MINI)
    laptop = Settings(home=tmp_path / "laptop")
    here = create_run(recipe, laptop, recipe_dir=MINI.parent)
    there = create_run(recipe, cluster_settings, recipe_dir=MINI.parent)

    for node in NODES:
        subprocess.run(
            [sys.executable, "-c", STAGE, here, node], check=True,
            env=dict(os.environ) | laptop.environment(),
        )  # fmt: skip
        pod = restricted.pod(
            node, cluster.image("stage-cpu"), ["python3", "-c", STAGE, there, node],
            environment_secret=stage_environment,
        )  # fmt: skip
        cluster.run(namespace, pod)

    expected, made = stage_runs(laptop, here), stage_runs(cluster_settings, there)
    assert {node: made[node].state for node in NODES} == dict.fromkeys(NODES, State.SUCCEEDED)
    assert {n: made[n].outputs for n in NODES} == {n: expected[n].outputs for n in NODES}
    store = open_store(cluster_settings.resolved_store_url, cluster_settings)
    digests = [digest for node in NODES for digest in made[node].outputs.values()]
    assert len(digests) == 3  # a model, a dataset and its card
    for digest in digests:
        store.verify(digest)


def stage_runs(settings: Settings, run_id: str) -> dict[str, StageRunRow]:
    with Registry(settings.resolved_registry_url) as registry:
        return {stage.node: stage for stage in registry.stage_runs(run_id)}
