"""What runs cost, and launches that a budget stops."""

import json

import pytest

from caravan.access import Role, User
from caravan.errors import BudgetError
from caravan.operations.costs import resources_of, run_costs
from caravan.recipe.io import load_recipe
from caravan.registry import State
from caravan.settings import Settings
from caravan_pipelines import actions
from caravan_pipelines.cli.common import shipped_recipes
from caravan_pipelines.graph import stage_graph
from caravan_pipelines.launch import local

SHIPPED = sorted(shipped_recipes().rglob("*.yaml"))
PRICES = {"h100": 2.0, "cpu": 0.5}


@pytest.fixture
def on_gpus(recipe):
    """The recipe with SFT on two nodes of eight GPUs."""
    resources = {"nodes": 2, "gpus": 8, "gpu_type": "h100", "cpus": 32}
    return recipe.derive(sft=recipe.sft.derive(resources=resources))


def test_a_stage_on_gpus_costs_its_gpus_and_one_without_its_cores(
    registry, new_run, stage, on_gpus
):
    run_id = new_run(recipe=on_gpus)
    stage(run_id, "sft", 1800)
    stage(run_id, "dpo", 3600)
    sft, dpo = run_costs(registry.get_run(run_id), registry, PRICES)
    assert sft.gpu_hours == pytest.approx(2 * 8 * 0.5, rel=1e-2)
    assert (sft.core_hours, sft.gpu_type) == (0.0, "h100")
    assert sft.money == pytest.approx(16.0, rel=1e-2)
    assert dpo.gpu_hours == 0
    assert dpo.core_hours == pytest.approx(on_gpus.dpo.resources.cpus, rel=1e-2)
    assert dpo.money == pytest.approx(0.5 * on_gpus.dpo.resources.cpus, rel=1e-2)


@pytest.mark.parametrize(
    ("priced", "asked"), [("h100", "H100"), ("H100", "h100"), ("h100", "NVIDIA-H100-80GB-HBM3")]
)
def test_a_price_is_found_however_its_type_is_written(
    registry, new_run, stage, on_gpus, priced, asked
):
    resources = on_gpus.sft.resources.derive(gpu_type=asked)
    run_id = new_run(recipe=on_gpus.derive(sft=on_gpus.sft.derive(resources=resources)))
    stage(run_id, "sft", 3600)
    prices = Settings(prices={priced: 2.5, "gpu": 1.0}).prices
    (cost,) = run_costs(registry.get_run(run_id), registry, prices)
    assert cost.money == pytest.approx(2.5 * 16, rel=1e-2)


def test_members_of_the_pool_have_resources_of_their_own(registry, new_run, stage, recipe):
    pool = recipe.model_dump()["respond"]["pool"]
    pool[0]["resources"] = {"cpus": 7}
    run_id = new_run(recipe=recipe.derive(respond=recipe.respond.derive(pool=pool)))
    for member in pool[:2]:
        stage(run_id, f"respond-{member['name']}", 3600, stage="respond")
    own, others = run_costs(registry.get_run(run_id), registry, PRICES)
    assert own.core_hours == pytest.approx(7, rel=1e-2)
    assert others.core_hours == pytest.approx(recipe.respond.resources.cpus, rel=1e-2)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_stage_is_costed_with_what_it_runs_with(path, registry, new_run, stage):
    recipe = load_recipe(path)
    run_id, nodes = new_run(recipe=recipe), stage_graph(recipe)
    for node in nodes:
        stage(run_id, node.name, 3600, stage=node.stage)
    given = registry.get_run(run_id).recipe
    costed = {run.node: resources_of(given, run) for run in registry.stage_runs(run_id)}

    assert "reference" in costed
    assert costed == {node.name: node.resources for node in nodes}


def test_a_stage_costs_what_it_ran_on_whatever_its_recipe_is_read_as_later(
    registry, new_run, stage, on_gpus
):
    run_id = new_run(recipe=on_gpus)
    stage(run_id, "sft", 3600, resources={"cpus": 3, "nodes": 2})
    (cost,) = run_costs(registry.get_run(run_id), registry, PRICES)
    assert (cost.gpu_hours, cost.core_hours) == (0, pytest.approx(6, rel=1e-2))


def test_pairs_of_ones_own_cost_what_the_recipe_gives_them(registry, new_run, stage, recipe):
    source = {"name": "mine", "license": "Apache-2.0", "skill": "chat",
              "origin": {"kind": "files", "paths": ["mine.jsonl"]}}  # fmt: skip
    own = recipe.derive(
        sample_prompts=None, respond=None, judge=None,
        pair={"sources": [source], "resources": {"cpus": 7}},
    )  # fmt: skip
    run_id = new_run(recipe=own)
    stage(run_id, "pair", 3600, stage="read_pairs")
    (cost,) = run_costs(registry.get_run(run_id), registry, PRICES)
    assert cost.core_hours == pytest.approx(7, rel=1e-2)


def test_a_failed_attempt_costs_and_a_reused_stage_does_not(registry, new_run, stage):
    first = new_run()
    stage(first, "sft", 3600, state=State.FAILED)
    done = stage(first, "sft", 1800)
    (cost,) = run_costs(registry.get_run(first), registry, PRICES)
    assert cost.core_hours == pytest.approx(1.5 * 2, rel=1e-2)

    second = new_run()
    opened = registry.open_stage_run(second, "sft", "sft", "key")
    registry.reuse_stage_run(opened.id, done)
    (cost,) = run_costs(registry.get_run(second), registry, PRICES)
    assert (cost.core_hours, cost.money) == (0.0, 0.0)


def test_the_command_tells_costs_by_stage_and_by_project(caravan, new_run, stage):
    stage(new_run("project:atlas"), "sft", 3600)
    stage(new_run(), "dpo", 3600)
    told = json.loads(caravan("costs", "--json", prices='{"cpu": 0.5}', budgets='{"atlas": 20}'))
    by_project = {row["project"]: row for row in told}
    assert by_project["atlas"]["money"] == pytest.approx(1.0, rel=1e-2)
    assert by_project["atlas"]["budget"] == 20
    assert by_project[""]["core_hours"] == pytest.approx(2.0, rel=1e-2)
    (row,) = json.loads(caravan("costs", "latest", "--json"))["stages"]
    assert (row["node"], row["money"]) == ("dpo", pytest.approx(1.0, rel=1e-2))
    assert "no price" in caravan("costs", prices='{"h100": 2}')


def launch(settings: Settings, recipe, tmp_path, **changes) -> str:
    given = settings.model_copy(update={"prices": {"cpu": 360.0}, "project": "atlas"} | changes)
    return local.create_run(recipe, given, recipe_dir=tmp_path)


def test_a_launch_that_the_project_cannot_pay_is_refused_with_the_numbers(
    settings, registry, recipe, stage, new_run, tmp_path
):
    with pytest.raises(BudgetError) as refused:
        launch(settings, recipe, tmp_path, budgets={"atlas": 0.01})
    assert "of the budget of 0.01 USD there are 0.00 spent" in str(refused.value)
    assert registry.list_runs() == []

    run = registry.get_run(launch(settings, recipe, tmp_path, budgets={"atlas": 1000.0}))
    assert run.tags == ("project:atlas",)
    registry.update_run_state(run.id, State.SUCCEEDED)
    stage(run.id, "sft", 3600)  # two cores, an hour: 720
    with pytest.raises(BudgetError, match=r"there are 7[12]\d\.\d\d spent"):
        launch(settings, recipe, tmp_path, budgets={"atlas": 725.0})
    launch(settings, recipe, tmp_path, budgets={"atlas": 725.0}, project="other")


def test_what_is_promised_to_unfinished_runs_counts(settings, registry, recipe, tmp_path):
    """Two launches that each fit do not both fit."""
    with pytest.raises(BudgetError) as refused:
        launch(settings, recipe, tmp_path, budgets={"atlas": 0.0})
    wanted = float(str(refused.value).split("planned to cost ")[1].split(" ")[0])
    launch(settings, recipe, tmp_path, budgets={"atlas": 1.5 * wanted})
    with pytest.raises(BudgetError, match="promised"):
        launch(settings, recipe, tmp_path, budgets={"atlas": 1.5 * wanted})
    for run in registry.list_runs():
        registry.update_run_state(run.id, State.CANCELLED)
    launch(settings, recipe, tmp_path, budgets={"atlas": 1.5 * wanted})


def test_a_run_does_not_leave_the_budget_that_it_was_launched_in(
    settings, registry, recipe, tmp_path
):
    mine = settings.model_copy(update={"project": "atlas", "owner": "ann"})
    with pytest.raises(BudgetError, match=r"'project:beta'.* CARAVAN_PROJECT names the project"):
        local.create_run(recipe, mine, recipe_dir=tmp_path, tags=("project:beta",))
    assert registry.list_runs() == []

    run_id, ann = local.create_run(recipe, mine, recipe_dir=tmp_path), User("ann", Role.LAUNCHER)
    for tags in (["nightly"], ["project:atlas", "nightly"]):
        actions.set_tags(ann, run_id, tags, registry)
        assert registry.get_run(run_id).tags == ("nightly", "project:atlas")
    with pytest.raises(BudgetError, match="project:beta"):
        actions.set_tags(ann, run_id, ["project:beta"], registry)
    assert registry.get_run(run_id).tags == ("nightly", "project:atlas")


def test_a_budget_needs_prices(settings, recipe, tmp_path):
    with pytest.raises(Exception, match="CARAVAN_PRICES has no price for 'cpu'"):
        launch(settings, recipe, tmp_path, budgets={"atlas": 5.0}, prices={"h100": 2.0})
