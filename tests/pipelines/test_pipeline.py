"""The pipeline of a recipe compiles for the cluster, and runs the same stages on the laptop."""

import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp import compiler
from kfp.pipeline_spec import pipeline_spec_pb2

from caravan.errors import RecipeError
from caravan.recipe import Recipe
from caravan.recipe.io import load_recipe
from caravan.stages.key import stage_key
from caravan_pipelines.graph import find_node, stage_graph
from caravan_pipelines.launch.files import recipe_files
from caravan_pipelines.pipeline import build_pipeline
from parts import PARTS, part

RECIPES = Path(__file__).resolve().parents[2] / "pipelines" / "recipes"
SELECT = "{stage}.select={{every: 2, tasks: [{tasks}]}}"
FULL_GRAPH = [
    "base", "curate", "synthesize", "decontaminate", "mix", "sft", "sample-prompts", "judge",
    "pair", "reference", "dpo", "reward-model", "rlvr", "evaluate-base", "evaluate-sft",
    "evaluate-dpo", "evaluate-rlvr", "report",
]  # fmt: skip


def recipes() -> list[Path]:
    found = sorted(RECIPES.glob("*.yaml"))
    assert {path.stem for path in found} >= {"pocket", "tulu3-8b", "tulu3-70b"}
    return found


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_every_shipped_recipe_compiles_to_a_valid_pipeline(path, tmp_path):
    recipe = load_recipe(path)
    compiler.Compiler().compile(build_pipeline(recipe), str(tmp_path / "pipeline.yaml"))

    spec = next(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text()))
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())

    executors = spec["deploymentSpec"]["executors"]
    commands = [" ".join(e["container"]["command"]) for e in executors.values()]
    assert not any("pip install" in command for command in commands)


def test_the_pocket_recipe_has_every_stage():
    names = [node.name for node in stage_graph(load_recipe(RECIPES / "pocket.yaml"))]

    assert [name for name in names if not name.startswith("respond-")] == FULL_GRAPH
    assert sum(name.startswith("respond-") for name in names) >= 4


def test_a_stage_sees_only_its_own_part_of_the_recipe():
    recipe = load_recipe(RECIPES / "pocket.yaml")
    changed = load_recipe(RECIPES / "pocket.yaml", ["rlvr.learning_rate=1e-9"])

    before = {node.name: node.config for node in stage_graph(recipe)}
    after = {node.name: node.config for node in stage_graph(changed)}
    assert [name for name in before if before[name] != after[name]] == ["rlvr"]


def test_a_changed_verifier_of_ones_own_is_a_new_stage_where_it_decides(tmp_path):
    (tmp_path / "own.py").write_text("def verify(completion, ground_truth): return True\n")
    (tmp_path / "qa.jsonl").write_text('{"prompt": "1?", "ground_truth": "1"}\n')
    own = "{name: own, task: verify, path: qa.jsonl, verifier: kind}"
    pocket = (RECIPES / "pocket.yaml").read_text()
    changed = pocket.replace("  tasks:\n    - {name: math,", f"  shards: 2\n  tasks:\n    - {own}\n"
                             "    - {name: math,")  # fmt: skip
    (tmp_path / "r.yaml").write_text("verifiers: {kind: own.py}\n" + changed)
    recipe = load_recipe(tmp_path / "r.yaml")

    def keys():
        modules = {n.stage: import_module(f"caravan.stages.{n.stage}") for n in stage_graph(recipe)}
        return {
            n.name: stage_key(modules[n.stage], n.config, {}, 1, recipe_dir=tmp_path)
            for n in stage_graph(recipe)
        }

    before = keys()
    (tmp_path / "own.py").write_text("def verify(completion, ground_truth): return False\n")
    after = keys()
    assert [name for name in before if before[name] != after[name]] == [
        "rlvr", "evaluate-base-1", "evaluate-sft-1", "evaluate-dpo-1", "evaluate-rlvr-1"
    ]  # fmt: skip
    packed = {path.name for path in recipe_files(recipe, tmp_path)}
    assert packed == {"own.py", "qa.jsonl"}


@pytest.mark.parametrize(
    ("stage", "selection"), [("sft", "select-sft"), ("dpo", "select-dpo"), ("rlvr", "select")]
)
def test_what_policies_are_selected_by_does_not_change_how_they_are_trained(stage, selection):
    pocket = RECIPES / "pocket.yaml"
    by_math, by_both = (
        {
            node.name: node.config
            for node in stage_graph(load_recipe(pocket, [SELECT.format(stage=stage, tasks=tasks)]))
        }
        for tasks in ("math", "math, constraints")
    )
    assert [name for name in by_math if by_math[name] != by_both[name]] == [selection, "report"]
    without = {node.name: node.config for node in stage_graph(load_recipe(pocket))}
    assert set(by_math) - set(without) == {selection}
    assert [name for name in without if without[name] != by_math[name]] == [stage, "report"]
    assert [task.name for task in by_both[selection].evaluate.tasks] == ["math", "constraints"]


def test_a_policy_that_is_selected_by_its_loss_needs_no_other_stage():
    pocket = RECIPES / "pocket.yaml"
    by_loss = load_recipe(pocket, ["sft.select={every: 2}", "sft.validation_share=0.1"])
    nodes = {node.name: node.config for node in stage_graph(by_loss)}
    without = {node.name: node.config for node in stage_graph(load_recipe(pocket))}
    assert set(nodes) == set(without)
    assert [name for name in nodes if nodes[name] != without[name]] == ["sft"]
    assert (nodes["sft"].keep_every, nodes["sft"].by_loss) == (2, True)


def test_a_recipe_that_selects_nothing_has_the_keys_that_it_had():
    recipe = load_recipe(RECIPES / "pocket.yaml")
    for stage in ("sft", "dpo", "rlvr"):
        assert "select" not in getattr(recipe, stage).model_dump()
        assert not {"keep_every", "by_loss"} & set(find_node(recipe, stage).config.model_dump())
    assert find_node(recipe, "sft").config.model_dump() == recipe.sft.model_dump()
    assert find_node(recipe, "dpo").config.model_dump() == recipe.dpo.model_dump()
    assert find_node(recipe, "report").config.model_dump() == recipe.report.model_dump()


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_evaluations_are_divided_into_shards_by_task(shards, tmp_path):
    recipe = load_recipe(RECIPES / "pocket.yaml", [f"evaluate.shards={shards}"])
    nodes = {n.name: n.config.evaluate for n in stage_graph(recipe) if n.stage == "evaluate"}
    assert list(nodes)[:shards] == [f"evaluate-base-{i}" for i in range(1, shards + 1)]
    assert len(nodes) == 4 * shards
    for model in ("base", "rlvr"):
        parts = [nodes[f"evaluate-{model}-{i}"] for i in range(1, shards + 1)]
        assert [task for part in parts for task in part.tasks] == list(recipe.evaluate.tasks)
        assert all(part.tasks for part in parts)
    path = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(build_pipeline(recipe), str(path))
    assert f"evaluate-rlvr-{shards}" in path.read_text()


def test_more_shards_than_tasks_are_refused():
    with pytest.raises(RecipeError, match="shards=6 leaves shards without a task"):
        load_recipe(RECIPES / "pocket.yaml", ["evaluate.shards=6"])


def test_only_a_loss_with_a_reference_has_that_pass(tmp_path):
    for loss_type, passes in (("sigmoid_norm", 1), ("kto", 1), ("simpo", 0), ("orpo", 0)):
        recipe = load_recipe(RECIPES / "pocket.yaml", [f"dpo.loss_type={loss_type}"])
        assert [node.name for node in stage_graph(recipe)].count("reference") == passes
        path = tmp_path / f"{loss_type}.yaml"
        compiler.Compiler().compile(build_pipeline(recipe), str(path))
        assert path.read_text().count("comp-reference:") == passes


def test_rlvr_waits_for_a_reward_model_that_it_reads(tmp_path):
    grpo = ["rlvr.algorithm={kind: grpo}"]
    for changes, reads in (([], True), (grpo, False),
                           ([*grpo, "rlvr.reward_model_multiplier=0.1"], True)):  # fmt: skip
        recipe = load_recipe(RECIPES / "pocket.yaml", changes)
        path = tmp_path / "pipeline.yaml"
        compiler.Compiler().compile(build_pipeline(recipe), str(path))
        spec = next(yaml.safe_load_all(path.read_text()))
        rlvr = spec["root"]["dag"]["tasks"]["rlvr"]
        assert ("reward-model" in rlvr["dependentTasks"]) == reads


def test_beta_and_learning_rate_do_not_change_what_the_reference_pass_is_asked():
    pocket = RECIPES / "pocket.yaml"
    sweep = ["dpo.beta=0.7", "dpo.learning_rate=1e-4", "dpo.pairs_per_step=8"]
    configs = {find_node(load_recipe(pocket, [c]), "reference").config for c in sweep}
    assert configs == {find_node(load_recipe(pocket), "reference").config}
    assert find_node(load_recipe(pocket, ["dpo.max_length=100"]), "reference").config not in configs


def test_stages_that_a_recipe_leaves_out_are_not_in_its_pipeline(tmp_path):
    recipe = load_recipe(RECIPES / "pocket.yaml")
    left_out = dict.fromkeys(
        ["synthesize", "sample_prompts", "respond", "judge", "pair", "dpo", "reward_model", "rlvr"]
    )
    sft_only = Recipe.model_validate(recipe.model_dump() | left_out | {"mix": {}})

    assert [node.name for node in stage_graph(sft_only)] == [
        "base", "curate", "decontaminate", "mix", "sft", "evaluate-base", "evaluate-sft", "report",
    ]  # fmt: skip
    compiler.Compiler().compile(build_pipeline(sft_only), str(tmp_path / "pipeline.yaml"))


@pytest.mark.parametrize("name", PARTS)
def test_a_recipe_of_some_stages_has_the_steps_that_they_need(name, tmp_path):
    sections, nodes = PARTS[name]
    recipe = part(sections)

    assert [node.name for node in stage_graph(recipe)] == ["base", *nodes]
    compiler.Compiler().compile(build_pipeline(recipe), str(tmp_path / "pipeline.yaml"))


def test_an_unknown_stage_is_named():
    with pytest.raises(RecipeError, match="no stage 'dop'"):
        find_node(load_recipe(RECIPES / "pocket.yaml"), "dop")


def test_help_starts_quickly_and_without_torch():
    program = (
        "import sys; sys.argv = ['caravan', '--help']\n"
        "from caravan_pipelines.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'vllm', 'deepspeed', 'kfp', 'streamlit', 'sqlalchemy'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, f"--help imported {done.stderr}"
        assert "resume" in done.stdout
    print(f"caravan --help: {min(seconds):.2f} s")
