"""Plans of recipes: what they depend on, and what they say when something does not fit."""

import json
import sys
from pathlib import Path

import pytest

from caravan.planning import memory
from caravan.planning.devices import place
from caravan.planning.estimate import plan_recipe
from caravan.planning.flow import ASSUMED_PROMPT_TOKENS
from caravan.planning.plan import Plan, StagePlan
from caravan.planning.shapes import LLAMA
from caravan.recipe import EvalTask, GRPOConfig, LoRAConfig, Recipe, Resources, VLLMRollouts
from caravan.recipe.io import load_recipe
from caravan_pipelines.cli import main
from caravan_pipelines.graph import stage_graph

MINI = Path(__file__).resolve().parents[1] / "recipes" / "pocket-mini.yaml"


def plan_of(recipe: Recipe) -> Plan:
    return plan_recipe(recipe, stage_graph(recipe), MINI.parent)


def stage(plan: Plan, node: str) -> StagePlan:
    return next(s for s in plan.stages if s.node == node)


@pytest.fixture(scope="module")
def mini() -> Recipe:
    return load_recipe(MINI)


@pytest.fixture(scope="module")
def tulu() -> Recipe:
    return load_recipe(MINI.parents[2] / "pipelines" / "recipes" / "tulu3-8b.yaml")


def test_every_stage_of_every_shipped_recipe_has_a_plan(recipes):
    planned = 0
    for path in sorted(recipes.glob("*.yaml")):
        recipe = load_recipe(path)
        plan = plan_of(recipe)
        assert [s.node for s in plan.stages] == [node.name for node in stage_graph(recipe)]
        assert all(s.seconds > 0 and s.memory_gib > 0 for s in plan.stages), path
        planned += 1
    assert planned >= 3


def test_twice_the_epochs_take_twice_the_operations(mini):
    once, twice = (
        stage(plan_of(mini.derive(sft=mini.sft.derive(num_train_epochs=n))), "sft") for n in (1, 2)
    )
    assert twice.flops == pytest.approx(2 * once.flops)
    assert twice.tokens == pytest.approx(2 * once.tokens)
    assert twice.seconds > once.seconds
    assert twice.memory_gib == once.memory_gib


def test_the_sft_of_8b_takes_six_operations_of_a_parameter_and_token(tulu):
    sft = stage(plan_of(tulu), "sft")
    assert sft.flops / (6 * 8.03e9 * sft.tokens) == pytest.approx(1.0, rel=0.1)
    assert (sft.devices, sft.device) == (32, "h100")


def test_memory_falls_with_zero_and_checkpointing(tulu):
    def memory(**changes) -> float:
        return stage(plan_of(tulu.derive(sft=tulu.sft.derive(**changes))), "sft").memory_gib

    kept = [memory(zero_stage=n) for n in (1, 2, 3)]
    assert kept[0] > kept[1] > kept[2]
    assert memory(zero_stage=3, gradient_checkpointing=True) < kept[2]


def test_what_does_not_fit_is_named_with_a_remedy_that_fits(tulu):
    alone = {"nodes": 1, "gpus": 1, "gpu_type": "h100"}
    small = tulu.derive(sft=tulu.sft.derive(resources=alone, zero_stage=0))
    sft = stage(plan_of(small), "sft")
    assert sft.fitting_tokens_per_pass is None
    gpus = int(sft.problem.split("take ")[1].split(" GPUs")[0])
    enough = tulu.sft.derive(
        resources=alone | {"gpus": gpus}, zero_stage=3, gradient_checkpointing=True
    )
    assert stage(plan_of(tulu.derive(sft=enough)), "sft").problem == ""


def test_the_tokens_of_a_pass_that_are_proposed_fit(tulu):
    greedy = tulu.sft.derive(tokens_per_pass=1_000_000, sequences_per_step=100_000)
    sft = stage(plan_of(tulu.derive(sft=greedy)), "sft")
    assert "set tokens_per_pass" in sft.problem
    fitting = greedy.derive(tokens_per_pass=sft.fitting_tokens_per_pass)
    fits = stage(plan_of(tulu.derive(sft=fitting)), "sft")
    assert fits.problem == ""
    assert fits.passes_per_step > sft.passes_per_step


def test_auto_plans_with_the_most_tokens_that_fit(tulu):
    auto = tulu.sft.derive(tokens_per_pass="auto", sequences_per_step=100_000)
    sft = stage(plan_of(tulu.derive(sft=auto)), "sft")
    assert sft.tokens_per_pass == sft.fitting_tokens_per_pass > 4096
    assert sft.problem == ""


def test_rlvr_on_more_gpus_takes_less_time_and_less_of_each(tulu):
    def planned(**changes):
        return stage(plan_of(tulu.derive(rlvr=tulu.rlvr.derive(**changes))), "rlvr")

    assert planned().problem == ""
    twice = planned(resources=tulu.rlvr.resources.derive(nodes=2))
    assert twice.seconds < planned().seconds
    assert twice.memory_gib < planned().memory_gib
    alone = planned(resources=tulu.rlvr.resources.derive(gpus=1))
    assert "take 4 GPUs with zero_stage: 3" in alone.problem


def test_a_reward_model_that_scores_takes_memory_and_time_of_rlvr(tulu):
    without, scoring = tulu.rlvr, tulu.rlvr.derive(reward_model_multiplier=1.0)
    plans = [stage(plan_of(tulu.derive(rlvr=rlvr)), "rlvr") for rlvr in (without, scoring)]
    assert plans[1].memory_gib > plans[0].memory_gib
    assert plans[1].seconds > plans[0].seconds
    held = [
        memory.training_setup(rlvr, LLAMA[8], gpu=True, ranks=8, lanes=1).state_bytes()
        for rlvr in (without, scoring)
    ]
    assert held[1] - held[0] == pytest.approx(4 * LLAMA[8].parameters / 8)


def test_rlvr_of_adapters_fits_one_gpu_and_its_reference_takes_nothing(tulu):
    one = {"resources": tulu.rlvr.resources.derive(gpus=1), "algorithm": GRPOConfig()}
    one |= {"zero_stage": 0, "zero_offload": "none", "lora": LoRAConfig()}
    adapters = tulu.rlvr.derive(**one)
    found = stage(plan_of(tulu.derive(rlvr=adapters)), "rlvr")
    assert found.problem == ""
    assert 30 < found.memory_gib < 80
    without = stage(plan_of(tulu.derive(rlvr=adapters.derive(beta=0.0))), "rlvr")
    assert without.seconds < found.seconds
    held = [
        memory.training_setup(rlvr, LLAMA[8], gpu=True, ranks=1, lanes=1).state_bytes()
        for rlvr in (adapters, adapters.derive(beta=0.0))
    ]
    assert held[0] == held[1]


def test_a_value_model_has_the_size_of_the_reward_model_that_it_starts_from(recipes):
    large = load_recipe(recipes / "tulu3-70b.yaml")

    def planned(name):
        reward = large.reward_model.derive(model_name_or_path=name)
        plan = plan_of(large.derive(reward_model=reward))
        return stage(plan, "rlvr"), [note for note in plan.notes if "reward model" in note]

    (of_8b, none), (of_70b, _) = planned("owner/Llama-3.1-8B-RM"), planned("owner/llama-3.1-70b-rm")
    assert of_8b == stage(plan_of(large), "rlvr")
    assert none == []
    assert of_8b.memory_gib < of_70b.memory_gib
    assert of_8b.seconds < of_70b.seconds
    assert of_8b.fitting_tokens_per_pass > of_70b.fitting_tokens_per_pass
    unknown, notes = planned("owner/my-reward-model")
    assert unknown == of_70b
    assert notes == [
        "rlvr: nothing tells the size of the reward model owner/my-reward-model, which is taken to "
        "be as large as the policy"
    ]


def test_a_model_of_another_size_is_held_beside_as_what_it_is(tulu):
    """With the policy alone, and the other one alone, as much."""

    def held(shape, **options):
        setup = memory.training_setup(rlvr, shape, gpu=True, ranks=16, lanes=1, **options)
        return setup.state_bytes()

    rlvr = tulu.rlvr.derive(rollouts=VLLMRollouts(), beta=0.0)
    both = held(LLAMA[70], reward_model=LLAMA[8])
    assert both == pytest.approx((held(LLAMA[70]) + held(LLAMA[8])) / 2)
    assert held(LLAMA[70], reward_model=LLAMA[70]) == held(LLAMA[70])
    rlvr = rlvr.derive(algorithm=GRPOConfig())
    assert held(LLAMA[70], reward_model=LLAMA[8]) == held(LLAMA[70])
    alone, rlvr = held(LLAMA[70]), rlvr.derive(reward_model_multiplier=1.0)
    assert held(LLAMA[70], reward_model=LLAMA[8]) - alone == pytest.approx(
        4 * LLAMA[8].parameters / 16
    )


def test_ranks_beyond_the_prompts_of_a_step_do_not_make_sampling_faster(tulu, monkeypatch):
    decoded = []

    def rows_at_once(rows, *args, **precision):
        decoded.append(rows)
        return memory.rows_at_once(rows, *args, **precision)

    monkeypatch.setattr("caravan.planning.train_stages.rows_at_once", rows_at_once)
    grpo = GRPOConfig(num_generations=16)
    for nodes in (1, 8):
        resources = tulu.rlvr.resources.derive(nodes=nodes)
        rlvr = tulu.rlvr.derive(algorithm=grpo, prompts_per_step=8, resources=resources)
        plan_of(tulu.derive(rlvr=rlvr))
    assert decoded == [16, 16]  # all replies to one prompt are sampled by one rank


def test_a_policy_that_no_gpu_can_hold_to_sample_from_does_not_fit_on_any_number(recipes):
    large = load_recipe(recipes / "tulu3-70b.yaml")
    whole = large.derive(rlvr=large.rlvr.derive(rollouts={"kind": "transformers"}))
    assert "take a device with more memory" in stage(plan_of(whole), "rlvr").problem


@pytest.mark.parametrize("name", ["tulu3-8b", "tulu3-70b"])
def test_every_stage_of_a_shipped_recipe_fits_its_devices(recipes, name):
    plan = plan_of(load_recipe(recipes / f"{name}.yaml"))
    assert [one.node for one in plan.stages if one.problem] == []


def test_a_reference_pass_fits_the_more_the_more_gpus_share_it(recipes):
    large = load_recipe(recipes / "tulu3-70b.yaml")

    def planned(**changes):
        return stage(plan_of(large.derive(dpo=large.dpo.derive(**changes))), "reference")

    one_node = planned(resources=large.dpo.resources.derive(nodes=1))
    assert planned().devices == 8 * one_node.devices == 64
    assert planned().memory_gib < one_node.memory_gib < 80
    assert planned().seconds < one_node.seconds
    assert "set zero_stage: 3" in planned(zero_stage=2).problem


def test_vllm_takes_its_share_of_each_gpu_in_place_of_a_copy_of_the_policy(tulu, recipes):
    def planned(recipe, **rollouts):
        vllm = VLLMRollouts(**rollouts)
        return stage(plan_of(recipe.derive(rlvr=recipe.rlvr.derive(rollouts=vllm))), "rlvr")

    copied, quarter = stage(plan_of(tulu), "rlvr"), planned(tulu, gpu_memory_utilization=0.25)
    assert quarter.problem == ""
    assert quarter.seconds < copied.seconds  # a finished reply makes room for the next
    greedy = planned(tulu, gpu_memory_utilization=0.9)
    assert greedy.memory_gib - planned(tulu).memory_gib == pytest.approx(0.4 * 80, rel=0.1)
    assert "lower rollouts.gpu_memory_utilization" in greedy.problem
    assert (
        "raise rollouts.tensor_parallel_size" in planned(tulu, gpu_memory_utilization=0.1).problem
    )

    large = load_recipe(recipes / "tulu3-70b.yaml")
    assert "of vLLM take" in planned(large).problem
    divided = planned(large, tensor_parallel_size=8, gpu_memory_utilization=0.25)
    assert divided.problem == ""


def test_replies_whose_keys_and_values_do_not_fit_are_a_problem(mini):
    assert mini.rlvr
    many = mini.derive(rlvr=mini.rlvr.derive(prompts_per_step=300_000))
    problem = stage(plan_of(many), "rlvr").problem
    assert "keys and values of" in problem
    assert "lower prompts_per_step" in problem


def test_selecting_asks_every_policy_that_is_kept_and_says_what_they_take(tulu):
    def planned(every):
        rlvr = tulu.rlvr.derive(max_steps=1000, select={"every": every, "tasks": ["math"]})
        return plan_of(tulu.derive(rlvr=rlvr))

    often, rarely = planned(100), planned(300)
    assert stage(often, "select").rows == 5000 * 10
    assert stage(rarely, "select").rows == 5000 * 4  # 300, 600, 900 and the last
    assert stage(often, "select").seconds > 2.4 * stage(rarely, "select").seconds
    assert stage(often, "select").memory_gib == stage(often, "evaluate-rlvr").memory_gib
    (note,) = (note for note in often.notes if note.startswith("rlvr keeps"))
    assert "10 policies of 29.9 GiB" in note
    assert "caravan gc --candidates" in note


def test_selecting_from_sft_and_dpo_is_planned_by_the_steps_that_they_take(tulu):
    def planned(every):
        select = {"every": every, "tasks": ["math"]}
        sft, dpo = tulu.sft.derive(select=select), tulu.dpo.derive(select=select, max_steps=500)
        return plan_of(tulu.derive(sft=sft, dpo=dpo))

    often = planned(100)
    assert stage(often, "select-dpo").rows == 5000 * 5
    assert stage(often, "select-sft").rows % 5000 == 0
    kept = {note.split()[0]: note for note in often.notes if " policies of 29.9 GiB" in note}
    assert "dpo keeps 5 policies" in kept["dpo"]
    assert f"sft keeps {stage(often, 'select-sft').rows // 5000:.0f} policies" in kept["sft"]
    assert "beside sft and select-sft" in kept["sft"]
    by_loss = tulu.sft.derive(select={"every": 100}, validation_share=0.1)
    notes = plan_of(tulu.derive(sft=by_loss)).notes
    (note,) = (note for note in notes if note.startswith("sft keeps"))
    assert "beside sft while it runs; raise" in note
    (note,) = (note for note in plan_of(
        tulu.derive(sft=tulu.sft.derive(select={"every": 10**6, "tasks": ["math"]}))
    ).notes if note.startswith("sft.select.every"))  # fmt: skip
    assert "so there is nothing to select from" in note


def test_a_reference_that_does_not_fit_is_named(tulu):
    assert stage(plan_of(tulu), "reference").problem == ""
    old = tulu.dpo.resources.derive(gpu_type="a100-40gb")
    small = tulu.derive(dpo=tulu.dpo.derive(resources=old, tokens_per_pass=60_000))
    problem = stage(plan_of(small), "reference").problem
    fitting = int(problem.split("set tokens_per_pass: ")[1])
    fits = small.derive(dpo=small.dpo.derive(tokens_per_pass=fitting))
    assert stage(plan_of(fits), "reference").problem == ""


def test_processes_without_gpu_share_the_memory_and_exchange_gradients(mini):
    def planned(zero_stage: int, **resources: int) -> StagePlan:
        given = {"cpus": 4, "memory_gib": 8, **resources}
        sft = mini.sft.derive(resources=given, zero_stage=zero_stage)
        return stage(plan_of(mini.derive(sft=sft)), "sft")

    one, four, sharded = planned(0), planned(0, processes=4), planned(3, processes=4)
    assert (one.device_memory_gib, four.device_memory_gib) == (8, 2)
    assert one.devices == four.devices == 4
    assert sharded.memory_gib < four.memory_gib
    reference = stage(plan_of(mini), "reference")
    dpo = mini.dpo.derive(resources=mini.dpo.resources.derive(processes=2))
    shared = stage(plan_of(mini.derive(dpo=dpo)), "reference")
    assert shared.device_memory_gib == reference.device_memory_gib / 2


def test_node_labels_name_devices():
    named = Resources(gpus=8, gpu_type="NVIDIA-H100-80GB-HBM3")
    assert place(named).device.name == "h100"
    assert place(Resources(gpus=1, gpu_type="NVIDIA-A100-SXM4-40GB")).memory_gib == 40
    assert place(Resources(gpus=1), "l40s").device.name == "l40s"
    with pytest.raises(Exception, match="not in the table of devices"):
        place(Resources(gpus=1, gpu_type="abacus"))


def test_the_command_prints_json_and_fails_where_something_does_not_fit(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv("CARAVAN_HOME", str(tmp_path))

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["caravan", "plan", str(MINI), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, capsys.readouterr().out

    code, out = call("--json")
    data = json.loads(out)
    assert code == 0
    assert data["parameters"] == 123_200
    assert data["core_hours"] == pytest.approx(sum(s["core_hours"] for s in data["stages"]))
    assert not (tmp_path / "registry.db").exists()  # nothing was started
    code, out = call("--set", "sft.resources.memory_gib=0.4")
    assert code == 1
    assert "does not fit: sft" in " ".join(out.split())


def test_a_safety_classifier_adds_its_own_work_to_an_evaluation(tulu):
    def evaluation(recipe: Recipe) -> StagePlan:
        return stage(plan_of(recipe), "evaluate-sft")

    safe = tuple(task for task in tulu.evaluate.tasks if task.group == "safety")
    unselected = tulu.rlvr.derive(select=None)
    asked = tulu.derive(rlvr=unselected, evaluate=tulu.evaluate.derive(tasks=safe))
    unjudged = asked.derive(evaluate=asked.evaluate.derive(safety_judge=None))
    with_it, without = evaluation(asked), evaluation(unjudged)
    assert with_it.rows == without.rows == sum([320, 450, 749, 400, 300, 2210])
    assert with_it.tokens > without.tokens + 100 * without.rows
    assert without.seconds < with_it.seconds < 2 * without.seconds
    assert not [note for note in plan_of(asked).notes if "wildguard" in note]


def test_a_question_with_options_is_read_with_each_of_them_and_nothing_is_written(tulu):
    (truth,) = (task for task in tulu.evaluate.tasks if task.task == "truthfulqa_mc2")
    asked = tulu.derive(
        rlvr=tulu.rlvr.derive(select=None), evaluate=tulu.evaluate.derive(tasks=(truth,))
    )
    found = stage(plan_of(asked), "evaluate-sft")
    assert found.rows == 8 * 817
    assert found.tokens == pytest.approx(found.rows * (ASSUMED_PROMPT_TOKENS + 1))


def test_a_model_that_vllm_divides_over_its_gpus_fits_them(recipes):
    large = load_recipe(recipes / "tulu3-70b.yaml")
    assert large.evaluate.resources.gpus == 4
    assert stage(plan_of(large), "evaluate-sft").problem == ""
    one = large.evaluate.derive(resources=large.evaluate.resources.derive(gpus=1))
    assert (
        "the weights alone are"
        in stage(plan_of(large.derive(evaluate=one)), "evaluate-sft").problem
    )


def test_questions_of_ones_own_are_counted_where_their_file_is_here(mini, tmp_path):
    def evaluation(**task: object) -> tuple[StagePlan, str]:
        own = EvalTask(name="own", task="verify", verifier="exact_match", path="own.jsonl", **task)
        recipe = mini.derive(evaluate=mini.evaluate.derive(tasks=(own,)))
        plan = plan_recipe(recipe, stage_graph(recipe), tmp_path)
        return stage(plan, "evaluate-sft"), " ".join(plan.notes)

    planned, notes = evaluation()
    assert planned.rows == 1000
    assert "task own: 1,000 questions assumed" in notes
    assert evaluation(limit=50)[0].rows == 50

    row = json.dumps({"prompt": "Water is", "answer": "wet"})
    (tmp_path / "own.jsonl").write_text(f"{row}\n" * 30)
    planned, notes = evaluation()
    assert planned.rows == 30
    assert "assumed" not in notes
    assert evaluation(limit=20)[0].rows == 20
    assert evaluation(limit=50)[0].rows == 30
