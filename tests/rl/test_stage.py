"""The RLVR stage on a model of a few thousand weights."""

import hashlib
import shutil
import sys
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM

from caravan.data.io import read_rows, write_rows
from caravan.data.records import RolloutGroup
from caravan.errors import (
    CaravanError,
    DataError,
    MissingExtraError,
    StageError,
    StoreUnavailableError,
)
from caravan.recipe import GRPOConfig, LoRAConfig, PPOConfig, Resources, Sampling, VLLMRollouts
from caravan.stages import rlvr
from caravan.stages.configs import RLVRStageConfig
from caravan.stages.so_far import FILE
from caravan.store.checkpoints import S3Checkpoints
from caravan.training import models
from caravan.training.optim import NonFiniteError
from caravan.training.rl import rollout, session
from caravan.verifiers import VERIFIERS, VerifierError

from .conftest import row

GRPO = GRPOConfig(num_generations=8)
PPO = PPOConfig(value_learning_rate=5e-3)
LORA = LoRAConfig(rank=4, alpha=8)
DAPO = GRPOConfig(num_generations=2, max_sampling_rounds=3, mask_truncated_completions=True)


def config(algorithm=GRPO, **changes):
    values = {
        "algorithm": algorithm,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "max_steps": 4,
        "prompts_per_step": 8 if algorithm.kind == "grpo" else 48,
        "beta": 0.01,
        "verification_reward": 1.0,
        "missing_eos_reward": None,
        "sampling": Sampling(max_completion_length=8),
        "skills": ("digits",),
        "bf16": False,
        "resources": Resources(cpus=1),
    }
    return RLVRStageConfig.model_validate(values | changes)


@pytest.fixture
def inputs(policy_dir, reward_model_dir, dataset_dir):
    return {"policy": policy_dir, "reward_model": reward_model_dir, "dataset": dataset_dir}


def digest(context):
    files = sorted(p for p in (context.root / "out").rglob("*") if p.is_file())
    return {
        str(p.relative_to(context.root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


def without_speed(logged):
    return {
        step: {k: v for k, v in metrics.items() if not k.startswith("perf/")}
        for step, metrics in logged.items()
    }


@pytest.mark.parametrize("algorithm", [GRPO, PPO])
def test_the_policy_learns(inputs, context, algorithm):
    there = context("run")
    settings = config(algorithm, max_steps=40, prompts_per_step=12 if algorithm is GRPO else 64)
    rlvr.run(settings, inputs, there)
    rewards = [there.logged[step]["reward"] for step in sorted(there.logged)]
    assert sum(rewards[:5]) / 5 < 0.3
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.25
    AutoModelForCausalLM.from_pretrained(there.root / "out" / "model")


def test_a_copy_that_is_sampled_from_has_the_weights_of_each_step(inputs, context, monkeypatch):
    from_itself, from_a_copy = context("itself"), context("copy")
    rlvr.run(config(), inputs, from_itself)
    monkeypatch.setattr(session, "_samples_from_a_copy", lambda config, device: True)
    rlvr.run(config(), inputs, from_a_copy)
    assert digest(from_a_copy) == digest(from_itself)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
def test_the_policy_learns_on_a_gpu_that_samples_in_bf16(inputs, context):
    there = context("run")
    resources = Resources(cpus=1, gpus=1)
    settings = config(max_steps=40, prompts_per_step=12, bf16=True, resources=resources)
    rlvr.run(settings, inputs, there)
    rewards = [there.logged[step]["reward"] for step in sorted(there.logged)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.25
    assert max(metrics["mismatch/kl"] for metrics in there.logged.values()) < 0.05


@pytest.mark.parametrize(
    ("algorithm", "names"),
    [
        (GRPO, {"frac_reward_zero_std", "batch/groups_skipped"}),
        (PPO, {"loss/value", "value/explained_variance", "objective/rlhf_reward"}),
    ],
)
def test_metrics_have_the_names_that_users_expect(inputs, context, algorithm, names):
    there = context("run")
    rlvr.run(config(algorithm, prompts_per_step=48), inputs, there)
    common = {
        "reward", "reward_std", "rewards/contains/mean", "verifier/contains/accuracy", "kl",
        "objective/kl", "entropy", "completions/mean_length", "completions/clipped_ratio",
        "clip_ratio", "policy/approx_kl", "policy/collapsed", "mismatch/logprob_abs_mean",
        "mismatch/kl", "loss/policy", "grad_norm", "learning_rate", "verifier/failures",
        "perf/tokens_per_second", "perf/rollout_seconds", "episodes",
    }  # fmt: skip
    assert sorted(there.logged) == [1, 2, 3, 4]
    for metrics in there.logged.values():
        assert common | names <= set(metrics)
    first = there.logged[1]
    assert first["mismatch/logprob_abs_max"] < 1e-4  # one program, float32
    assert first["kl"] == pytest.approx(0, abs=1e-6)  # the reference is the policy
    assert first["entropy"] == pytest.approx(3.8, abs=0.3)  # nearly uniform over 46 tokens
    assert there.told[-1] == (4, 4)


@pytest.mark.parametrize(
    ("algorithm", "more"),
    [
        (GRPO, {}),
        (PPO, {"num_epochs": 2, "num_mini_batches": 2, "bf16": True, "prompts_per_step": 12}),
        (GRPO, {"reward_model_multiplier": 0.5, "prompts": "all"}),
        (DAPO, {"prompts_per_step": 4, "num_epochs": 2}),
        (PPO, {"lora": LORA, "bf16": True, "prompts_per_step": 12}),
    ],
)
def test_a_stopped_run_resumes_bit_for_bit(inputs, context, algorithm, more):
    settings = config(algorithm, max_steps=5, save_steps=2, **more)
    whole, stopped = context("whole"), context("stopped", stop_after=3)
    expected = rlvr.run(settings, inputs, whole)
    with pytest.raises(KeyboardInterrupt):
        rlvr.run(settings, inputs, stopped)
    assert sorted(stopped.logged) == [1, 2, 3]
    elsewhere = context("elsewhere")  # a machine that finds the checkpoints and nothing else
    shutil.copytree(stopped.workdir / "checkpoints", elsewhere.workdir / "checkpoints")
    torch.manual_seed(99)
    assert rlvr.run(settings, inputs, elsewhere) == expected
    assert without_speed(stopped.logged | elsewhere.logged) == without_speed(whole.logged)
    assert digest(elsewhere) == digest(whole)


def test_rollouts_show_while_the_stage_runs_and_none_twice_after_a_resume(
    inputs, context, monkeypatch
):
    monkeypatch.setattr(session, "STEPS_KEPT", 2)  # the first and the last
    settings = config(max_steps=6, save_steps=2)
    stopped = context("stopped", stop_after=3)

    def shown():
        return Counter(group.step for group in read_rows(stopped.workdir / FILE, RolloutGroup))

    with pytest.raises(KeyboardInterrupt):
        rlvr.run(settings, inputs, stopped)
    assert shown() == {1: 8, 3: 8}  # the latest, too
    stopped.stop_after = None
    rlvr.run(settings, inputs, stopped)
    assert shown() == {1: 8, 6: 8}


def test_the_cut_into_passes_changes_nothing_but_rounding(inputs, context):
    whole, cut = context("whole"), context("cut")
    rlvr.run(config(PPO, max_steps=2, prompts_per_step=24), inputs, whole)
    rlvr.run(config(PPO, max_steps=2, prompts_per_step=24, tokens_per_pass=128), inputs, cut)
    for name in ("reward", "kl", "loss/policy", "loss/value", "grad_norm", "value/grad_norm"):
        assert whole.logged[2][name] == pytest.approx(cut.logged[2][name], rel=1e-3, abs=1e-5)


def test_several_updates_move_away_from_the_policy_that_sampled(inputs, context):
    there = context("run")
    rlvr.run(config(GRPO, num_epochs=3, num_mini_batches=2, max_steps=2), inputs, there)
    assert there.logged[1]["policy/approx_kl"] > 0
    assert there.logged[1]["clip_ratio"] > 0


def test_adapters_leave_a_plain_policy_and_are_held_against_it_as_it_was(inputs, context):
    adapted, whole = context("adapted"), context("whole")
    settings = config(GRPO, max_steps=3, lora=LORA, num_epochs=2, keep_every=2)
    rlvr.run(settings, inputs, adapted)
    rlvr.run(config(GRPO, max_steps=1), inputs, whole)
    before = AutoModelForCausalLM.from_pretrained(inputs["policy"]).state_dict()
    found = [
        AutoModelForCausalLM.from_pretrained(adapted.root / "out" / name).state_dict()
        for name in ("step-2", "step-3")
    ]
    for weights in found:
        assert weights.keys() == before.keys()
    changed = [{n for n in before if not before[n].equal(weights[n])} for weights in found]
    assert changed[0] == changed[1] == {n for n in before if "_proj" in n}
    assert not found[0]["model.layers.0.mlp.up_proj.weight"].equal(
        found[1]["model.layers.0.mlp.up_proj.weight"]
    )
    # What the first step samples, and how it is scored, is what it is without adapters.
    for name in ("reward", "entropy", "kl", "completions/mean_length"):
        expected = pytest.approx(whole.logged[1][name], rel=1e-5, abs=1e-6)
        assert adapted.logged[1][name] == expected
    assert adapted.logged[3]["kl"] > 1e-4


def test_adapters_learn(inputs, context, tmp_path):
    policy, tokenizer = models.load_policy(inputs["policy"])
    # The head, which adapters leave as it is, of a random model is too weak to be sure of a token.
    policy.get_input_embeddings().weight.data *= 8
    models.save_model(policy, tokenizer, tmp_path / "policy")
    there = context("run")
    settings = config(GRPO, max_steps=30, prompts_per_step=12, lora=LORA, learning_rate=1e-2)
    rlvr.run(settings, {**inputs, "policy": tmp_path / "policy"}, there)
    rewards = [there.logged[step]["reward"] for step in sorted(there.logged)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.25


def test_without_a_penalty_there_is_no_reference_and_no_kl(inputs, context):
    there = context("run")
    rlvr.run(config(GRPO, beta=0.0, max_steps=1), inputs, there)
    assert "kl" not in there.logged[1]
    assert "entropy" in there.logged[1]


def test_ppo_without_a_reward_model_starts_its_value_model_from_the_policy(inputs, context):
    del inputs["reward_model"]
    there = context("run")
    rlvr.run(config(PPO, max_steps=1), inputs, there)
    assert "loss/value" in there.logged[1]


def test_reference_policy_and_value_model_get_fused_kernels_where_there_are_any(
    inputs, context, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        models, "use_fused_kernels", lambda model, _: asked.append(type(model).__name__)
    )
    rlvr.run(config(PPO, max_steps=1), inputs, context("run"))
    assert asked == ["LlamaForCausalLM", "LlamaForCausalLM", "LlamaForSequenceClassification"]


def test_rollouts_are_kept_with_their_rewards_and_advantages(inputs, context):
    there = context("run")
    rlvr.run(config(max_steps=3, missing_eos_reward=-2.0), inputs, there)
    groups = list(read_rows(there.root / "out" / "rollouts", RolloutGroup))
    assert {group.step for group in groups} == {1, 2, 3}
    for group in groups:
        assert len(group.completions) == len(group.rewards) == len(group.advantages) == 8
        assert group.prompt[-1].role == "user"
        for finish, outcome, reward in zip(
            group.finish_reasons, group.outcomes, group.rewards, strict=True
        ):
            assert reward == (-2.0 if finish == "length" else float(outcome == "verified"))
        assert sum(group.advantages) == pytest.approx(0, abs=1e-4)


def test_a_truncated_completion_that_is_masked_has_no_advantage(inputs, context):
    """It is not trained on; those of its group that are have theirs against the mean of all."""
    there = context("run")
    masked = GRPOConfig(num_generations=8, mask_truncated_completions=True)
    rlvr.run(config(masked, max_steps=1, missing_eos_reward=-2.0), inputs, there)
    groups = list(read_rows(there.root / "out" / "rollouts", RolloutGroup))
    found = {
        (finish, advantage != 0)
        for group in groups
        if len(set(group.rewards)) > 1
        for finish, advantage in zip(group.finish_reasons, group.advantages, strict=True)
    }
    assert found == {("length", False), ("stop", True)}


# --- verifiers that fail ------------------------------------------------------------------------


def test_a_failed_verifier_is_counted_and_masked_not_a_zero_reward(inputs, context, monkeypatch):
    def broken_on_odd_lengths(completion, ground_truth):
        if len(completion) % 2:
            raise VerifierError("the sandbox is away")
        return VERIFIERS["contains"](completion, ground_truth)

    monkeypatch.setitem(VERIFIERS, "sometimes", broken_on_odd_lengths)
    rows = inputs["dataset"].parent / "sometimes"
    write_rows(rows / "rows.jsonl", [row(i, verifier="sometimes") for i in range(20)])
    there = context("run")
    rlvr.run(config(max_steps=1), inputs | {"dataset": rows}, there)
    groups = list(read_rows(there.root / "out" / "rollouts", RolloutGroup))
    failed = [
        (reward, advantage)
        for group in groups
        for text, reward, advantage in zip(
            group.completions, group.rewards, group.advantages, strict=True
        )
        if len(text) % 2
    ]
    assert failed
    assert set(failed) == {(None, 0.0)}
    assert there.logged[1]["verifier/failures"] == len(failed)
    known = [r for group in groups for r in group.rewards if r is not None]
    assert there.logged[1]["reward"] == pytest.approx(sum(known) / len(known))


def test_a_verifier_that_always_fails_stops_the_run(inputs, context, monkeypatch, tmp_path):
    def away(completion, ground_truth):
        raise TimeoutError

    monkeypatch.setitem(VERIFIERS, "away", away)
    write_rows(tmp_path / "rows.jsonl", [row(i, verifier="away") for i in range(4)])
    with pytest.raises(StageError, match="every verifier failed, on all 64 completions"):
        rlvr.run(config(), inputs | {"dataset": tmp_path}, context("run"))


SHARE_OF_VOWELS = """\
def verify(completion, ground_truth):
    if completion < "h":
        raise ValueError("cannot tell")
    return sum(letter in ground_truth for letter in completion) / len(completion)
"""


@pytest.mark.parametrize("algorithm", [GRPO, PPO])
def test_a_verifier_of_ones_own_rewards_by_its_score(inputs, context, tmp_path, algorithm, caplog):
    there = context("run")
    there.root.mkdir()
    (there.root / "own.py").write_text(SHARE_OF_VOWELS)
    rows = [row(i, verifier="share", ground_truth="aeiou") for i in range(20)]
    write_rows(tmp_path / "rows.jsonl", rows)
    settings = config(
        algorithm,
        max_steps=2,
        verification_reward=10.0,
        verifiers={"share": "own.py"},
        resources=Resources(cpus=2),
    )
    rlvr.run(settings, inputs | {"dataset": tmp_path}, there)

    failed, rewards = 0, set()
    for group in read_rows(there.root / "out" / "rollouts", RolloutGroup):
        for text, reward, outcome in zip(
            group.completions, group.rewards, group.outcomes, strict=True
        ):
            if text < "h":
                failed += 1
                assert (reward, outcome) == (None, "failed")
                assert f"verifier share failed on a completion of {group.prompt_id}" in caplog.text
            else:
                share = sum(letter in "aeiou" for letter in text) / len(text)
                assert reward == pytest.approx(10 * share)
                assert outcome == ("verified" if share == 1 else "not_verified")
                rewards.add(reward)
    assert failed
    assert any(0 < reward < 10 for reward in rewards)
    assert "own.py: verify: ValueError: cannot tell (line 3)" in caplog.text
    assert list(rlvr.external_files(settings, there.root)) == [there.root / "own.py"]


def test_a_verifier_that_gives_a_part_is_rewarded_for_the_whole_alone():
    """As in Tülu 3: of two constraints of ifeval that one kept is worth nothing."""
    no_comma = {"id": "punctuation:no_comma", "kwargs": {}}
    fox = {"id": "keywords:existence", "kwargs": {"keywords": ["fox"]}}
    constrained = row(0, verifier="ifeval", ground_truth=[no_comma, fox])
    verifier = VERIFIERS["ifeval"]
    assert verifier("a fox, a dog", constrained.ground_truth).score == 0.5
    assert rollout.judge(verifier, constrained, "a fox, a dog") == ("not_verified", 0.0)
    assert rollout.judge(verifier, constrained, "a fox") == ("verified", 1.0)


@pytest.mark.parametrize(
    ("outcome", "share", "ended", "expected"),
    [
        ("verified", 1.0, True, 10.0),
        ("verified", 1.0, False, -10.0),  # right but unterminated: replaced, as in Tülu 3's code
        ("not_verified", 0.0, True, 0.0),
        ("not_verified", 0.0, False, -10.0),
        ("not_verified", 0.25, True, 2.5),
        ("failed", 0.0, True, None),
        ("failed", 0.0, False, None),
    ],
)
def test_the_reward_of_an_outcome(outcome, share, ended, expected):
    actual = rollout.reward_of(
        rollout.Judgement(rollout.Outcome(outcome), share),
        ended=ended,
        verification_reward=10.0,
        missing_eos_reward=-10.0,
    )
    assert actual == expected


# --- mistakes -----------------------------------------------------------------------------------


def test_a_row_that_its_verifier_refuses_is_named(inputs, context, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [row(7, ground_truth=None)])
    with pytest.raises(DataError, match="row 'toy/7'"):
        rlvr.run(config(), inputs | {"dataset": tmp_path}, context("run"))


def test_an_unknown_verifier_is_refused_before_anything_runs(inputs, context, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [row(7, verifier="gsm9k")])
    with pytest.raises(
        DataError, match="row 'toy/7': unknown verifier 'gsm9k'; did you mean 'gsm8k'"
    ):
        rlvr.run(config(), inputs | {"dataset": tmp_path}, context("run"))


def test_no_prompt_to_train_on_says_what_there_is(inputs, context):
    with pytest.raises(DataError, match="verifiable rows: digits, other; skills asked for: maths"):
        rlvr.run(config(skills=("maths",)), inputs, context("run"))


def test_keys_and_checkpoints_depend_on_what_samples_where_it_is_not_our_own_sampler():
    assert "rollouts" not in config().model_dump()
    with_vllm = config(rollouts=VLLMRollouts()).model_dump()
    assert with_vllm["rollouts"]["kind"] == "vllm"
    assert RLVRStageConfig.model_validate(with_vllm).rollouts == VLLMRollouts()


def test_vllm_that_is_not_installed_is_refused_before_anything_is_read(
    context, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "vllm", None)
    nowhere = {"policy": tmp_path / "none", "dataset": tmp_path / "none"}
    with pytest.raises(MissingExtraError, match="rollouts of kind vllm needs 'vllm'"):
        rlvr.run(config(rollouts=VLLMRollouts()), nowhere, context("run"))


def test_weights_that_are_not_numbers_are_an_error(inputs, context, tmp_path):
    from caravan.training.models import load_policy, save_model

    model, tokenizer = load_policy(inputs["policy"])
    with torch.no_grad():
        model.get_input_embeddings().weight[5:].fill_(float("nan"))
    save_model(model, tokenizer, tmp_path / "broken")
    with pytest.raises(CaravanError, match="not finite"):
        rlvr.run(config(), inputs | {"policy": tmp_path / "broken"}, context("run"))


def test_a_diverging_run_ends_with_a_clear_error(inputs, context):
    there = context("run")
    # A recipe refuses such a rate; copies are not validated.
    wild = config(PPO, max_steps=30, num_epochs=2).model_copy(update={"learning_rate": 1e4})
    with pytest.raises(NonFiniteError, match=r"[Ll]ower learning_rate"):
        rlvr.run(wild, inputs, there)


# --- candidates ---------------------------------------------------------------------------------


def models_of(context):
    """The files of each model that a stage gave out."""
    found = {}
    for name, content in digest(context).items():
        _, output, file = name.split("/", 2)
        if output != "rollouts":
            found.setdefault(output, {})[file] = content
    return found


@pytest.mark.parametrize("algorithm", [GRPO, PPO])
def test_policies_are_kept_along_the_way_and_the_last_is_that_of_a_run_without(
    inputs, context, algorithm
):
    settings = config(algorithm, max_steps=5)
    kept, last, shorter = context("kept"), context("last"), context("shorter")
    rlvr.run(settings.derive(keep_every=2), inputs, kept)
    rlvr.run(settings, inputs, last)
    rlvr.run(settings.derive(max_steps=2), inputs, shorter)
    found = models_of(kept)
    assert set(found) == {"step-2", "step-4", "step-5"}
    assert found["step-5"] == models_of(last)["model"]
    assert found["step-2"] == models_of(shorter)["model"]
    assert found["step-2"] != found["step-4"]
    AutoModelForCausalLM.from_pretrained(kept.root / "out" / "step-4")


@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_a_stopped_run_keeps_the_same_policies(inputs, context, stop_after):
    settings = config(max_steps=5, save_steps=3, keep_every=2)
    whole, stopped = context("whole"), context("stopped", stop_after=stop_after)
    rlvr.run(settings, inputs, whole)
    with pytest.raises(KeyboardInterrupt):
        rlvr.run(settings, inputs, stopped)
    stopped.stop_after = None
    rlvr.run(settings, inputs, stopped)
    assert digest(stopped) == digest(whole)


def test_a_candidate_that_is_gone_is_told_before_the_next_step(inputs, context):
    stopped = context("stopped", stop_after=3)
    settings = config(max_steps=5, save_steps=3, keep_every=2)
    with pytest.raises(KeyboardInterrupt):
        rlvr.run(settings, inputs, stopped)
    shutil.rmtree(stopped.workdir / "candidates" / "step-2")
    with pytest.raises(CaravanError, match=r"candidates/step-2 is missing, .* to start anew"):
        rlvr.run(settings, inputs, stopped)
    assert max(stopped.logged) == 3


def test_another_machine_has_the_candidates_from_the_store(inputs, context, s3_settings):
    settings = config(max_steps=5, save_steps=2, keep_every=2)
    whole = context("whole")
    rlvr.run(settings, inputs, whole)
    copies = S3Checkpoints(s3_settings, "k" * 64)
    one, two = context("one", stop_after=3), context("two")
    one.remote_checkpoints = two.remote_checkpoints = copies
    with pytest.raises(KeyboardInterrupt):
        rlvr.run(settings, inputs, one)
    rlvr.run(settings, inputs, two)
    assert min(two.logged) == 3
    assert digest(two) == digest(whole)
    copies.keep([])
    assert S3Checkpoints.stored(copies._store) == {}


def test_a_candidate_that_the_store_did_not_take_comes_before_the_next_checkpoint(
    inputs, context, s3_settings, monkeypatch
):
    settings = config(max_steps=6, save_steps=2, keep_every=2)
    copies = S3Checkpoints(s3_settings, "k" * 64)
    one, two = context("one", stop_after=5), context("two")
    one.remote_checkpoints = two.remote_checkpoints = copies
    upload, refused = copies.upload, []

    def away_once(directory, parent=""):
        if parent and not refused:
            refused.append(directory.name)
            raise StoreUnavailableError("away")
        if not parent and directory.name == "step-00000002":
            pytest.fail("a checkpoint is in the store without the candidate that it counts on")
        upload(directory, parent)

    monkeypatch.setattr(copies, "upload", away_once)
    with pytest.raises(KeyboardInterrupt):
        rlvr.run(settings, inputs, one)
    assert refused == ["step-2"]
    rlvr.run(settings, inputs, two)
    assert min(two.logged) == 5
    assert set(models_of(two)) == {"step-2", "step-4", "step-6"}
