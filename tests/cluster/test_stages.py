"""A stage as a pod, against PostgreSQL and S3, makes what it makes on a laptop."""

from __future__ import annotations

from pathlib import Path

import restricted

from caravan.recipe_io import load_recipe
from caravan.registry import Registry, State
from caravan.settings import Settings
from caravan.stages.execute import execute
from caravan.store import open_store
from caravan_pipelines.graph import find_node
from caravan_pipelines.launch.local import create_run

RECIPE = Path(__file__).parent.parent / "recipes" / "pocket-mini.yaml"

STAGE = """
import os, sys
from caravan.recipe import Recipe
from caravan.stages.execute import execute
from caravan_pipelines.graph import find_node
recipe = Recipe.model_validate_json(os.environ["RECIPE"])
run, node, *inputs = sys.argv[1:]
found = find_node(recipe, node)
execute(found.name, found.stage, found.config, dict(i.split("=") for i in inputs), run)
"""


def test_stages_make_the_same_artifacts_as_on_a_laptop(
    cluster, namespace, stage_environment, cluster_settings, tmp_path
):
    recipe = load_recipe(RECIPE)
    laptop = Settings(home=tmp_path / "laptop")
    here = create_run(recipe, laptop, recipe_dir=RECIPE.parent)
    there = create_run(recipe, cluster_settings, recipe_dir=RECIPE.parent)

    for node in ("base", "curate"):  # one that trains, one that prepares data
        found = find_node(recipe, node)
        expected = execute(found.name, found.stage, found.config, {}, here, laptop)
        pod = restricted.pod(
            node, cluster.image("stage-cpu"), ["python3", "-c", STAGE, there, node],
            environment_secret=stage_environment,
            variables={"RECIPE": recipe.model_dump_json()},
        )  # fmt: skip
        cluster.run(namespace, pod)

        with Registry(cluster_settings.resolved_registry_url) as registry:
            stage = next(s for s in registry.stage_runs(there) if s.node == node)
        assert stage.state is State.SUCCEEDED
        assert stage.outputs == expected
        store = open_store(cluster_settings.resolved_store_url, cluster_settings)
        for digest in expected.values():
            store.verify(digest)
