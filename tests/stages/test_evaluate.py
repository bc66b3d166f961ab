"""The stage evaluate, on a real tiny model."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from caravan.data.io import read_rows
from caravan.data.records import EvalInstance, Message
from caravan.data.template import TEMPLATE_HASH, encode_prompt
from caravan.errors import RecipeError
from caravan.evals.comparison import load_evaluation
from caravan.evals.scoring import ScoredCompletion, task_scores, verified
from caravan.evals.tasks import TASKS, load_instances
from caravan.inference import Generation
from caravan.recipe import (
    EvalTask,
    EvaluateConfig,
    LLMJudge,
    ProgramJudge,
    Resources,
    SafetyJudge,
    Sampling,
)
from caravan.stages import evaluate
from caravan.stages.configs import EvaluateStageConfig
from caravan.verifiers import verify
from characters import character_tokenizer
from foreign import LLAMA3, write_foreign
from scripted_endpoint import Messages, scripted_endpoint

SHORT = Sampling(temperature=0.0, max_completion_length=6)
TASK_LIST = (
    EvalTask(name="math", task="pocket-math", limit=6, sampling=SHORT),
    EvalTask(name="constraints", task="pocket-constraints", limit=5, sampling=SHORT),
    EvalTask(name="chat", task="pocket-chat", limit=4, sampling=SHORT),
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    special = ["<pad>", "<|endoftext|>", "<unk>"]
    inner = character_tokenizer(special)
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<|endoftext|>", unk_token="<unk>"
    ).save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=inner.get_vocab_size(),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def config(*tasks: EvalTask, judge: ProgramJudge | None = ProgramJudge()) -> EvaluateStageConfig:
    suite = EvaluateConfig(tasks=tasks, judge=judge, batch_size=4, resources=Resources(cpus=1))
    return EvaluateStageConfig(evaluate=suite)


def test_evaluate_records_what_the_model_was_asked_in(
    make_context: Callable[..., Any], model_dir: Path, tmp_path: Path
) -> None:
    models = {"ours": model_dir, "foreign": write_foreign(tmp_path / "model", "llama3")}
    found = {}
    for name, model in models.items():
        context = make_context(name)
        evaluate.run(config(TASK_LIST[0]), {"model": model}, context)
        found[name] = (context.outputs["evaluation"] / "chat_template.sha256").read_text().strip()
    theirs = LLAMA3.removeprefix("{{ bos_token }}")
    assert found == {
        "ours": TEMPLATE_HASH,
        "foreign": hashlib.sha256(theirs.encode()).hexdigest(),
    }


def test_evaluate_keeps_every_instance_and_repeats(
    make_context: Callable[..., Any], model_dir: Path
) -> None:
    outputs = []
    for name in ("one", "two"):
        context = make_context(name)
        result = evaluate.run(config(*TASK_LIST), {"model": model_dir}, context)
        outputs.append(context.outputs["evaluation"])
    for file in ("scores.json", "instances.jsonl"):
        assert (outputs[0] / file).read_bytes() == (outputs[1] / file).read_bytes()
    rows = list(read_rows(outputs[0] / "instances.jsonl", ScoredCompletion))
    assert [sum(row.task == t.name for row in rows) for t in TASK_LIST] == [6, 5, 4]
    for row in rows:
        assert row.messages[-1].role == "user"
        assert row.score is not None
        assert row.finish_reason in ("stop", "length")
        assert (row.ratings is not None) == (row.task == "chat")
    assert [(s.task, s.metric, s.n) for s in result.scores] == [
        ("math", "accuracy", 6),
        ("constraints", "prompt_level_strict_acc", 5),
        ("constraints", "inst_level_strict_acc", 5),
        ("chat", "mean_rating", 4),
    ]
    for score in result.scores:
        assert score.low <= score.value <= score.high
        assert len(score.instances) == score.n
        assert score.value == pytest.approx(sum(score.instances.values()) / score.n)
    assert context.reported[-1] == (15, 15)
    document = json.loads((outputs[0] / "scores.json").read_text())
    assert [entry["primary"] for entry in document] == [True, True, False, True]


def test_an_instance_without_room_for_a_reply_counts_as_not_answered(
    make_context: Callable[..., Any],
    model_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where the verifier would be content with an empty reply."""
    rows = [
        {"key": key, "prompt": "Say it. " * times, "instruction_id_list": ["punctuation:no_comma"],
         "kwargs": [{}]}
        for key, times in ((1, 1), (2, 100), (3, 1))
    ]  # fmt: skip
    (tmp_path / "ifeval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = EvalTask(name="if", task="ifeval", path="ifeval.jsonl", sampling=SHORT)
    context = make_context("evaluate")
    result = evaluate.run(config(task), {"model": model_dir}, context)
    written = read_rows(context.outputs["evaluation"] / "instances.jsonl", ScoredCompletion)
    assert {r.id: (r.score, r.cut_short) for r in written if r.finish_reason == "too_long"} == {
        "ifeval/2": (0.0, "prompt too long")
    }
    assert result.metrics["if/too_long"] == pytest.approx(1 / 3)
    assert result.scores[0].n == 3
    assert result.scores[0].instances["ifeval/2"] == 0
    assert "if: 1 of 3 prompts leave the model no room" in caplog.text
    assert "not answered: ifeval/2" in caplog.text


def test_a_limit_that_the_model_has_no_room_for_is_told_before_anything_is_asked(
    make_context: Callable[..., Any],
    model_dir: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class AskedError(Exception):
        pass

    def load(*_: object, **__: object) -> None:
        raise AskedError

    monkeypatch.setattr(evaluate, "load_engine", load)
    long = TASK_LIST[0].derive(name="long", sampling=Sampling(max_completion_length=500))
    with pytest.raises(AskedError):
        evaluate.run(config(*TASK_LIST, long), {"model": model_dir}, make_context("evaluate"))
    assert [record.getMessage() for record in caplog.records] == [
        "long: behind 6 of 6 prompts the model's 512 positions have no room for "
        "max_completion_length=500 tokens: replies to them end earlier; lower it, or take a model "
        "with more positions"
    ]


def test_questions_of_ones_own_are_scored_by_the_verifier_that_the_task_names(
    make_context: Callable[..., Any], model_dir: Path
) -> None:
    context = make_context("own")
    path = Path(context.recipe_dir) / "letters.jsonl"
    rows = [{"prompt": letter, "ground_truth": "the a"} for letter in string.ascii_lowercase[:5]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = EvalTask(name="own", task="verify", verifier="f1", path=str(path), sampling=SHORT)
    result = evaluate.run(config(own), {"model": model_dir}, context)

    (score,) = result.scores
    assert (score.task, score.metric, score.n) == ("own", "score", 5)
    kept = list(read_rows(context.outputs["evaluation"] / "instances.jsonl", ScoredCompletion))
    for row in kept:
        assert row.score == verify("f1", row.completion, "the a").score


def test_a_verifier_of_ones_own_scores_and_leaves_undecided_what_it_fails_on(
    make_context: Callable[..., Any], model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = make_context("own")
    directory = Path(context.recipe_dir)
    (directory / "own.py").write_text(
        "def long(completion, ground_truth):\n"
        "    return min(1, len(completion) / {'ten': 10, 'two': 2}[ground_truth])\n"
    )
    rows = [{"prompt": f"{word}?", "ground_truth": word} for word in ("ten", "two", "six")]
    (directory / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = EvalTask(name="own", task="verify", verifier="long", path="own.jsonl", sampling=SHORT)
    settings = config(task).derive(verifiers={"long": "own.py:long"})
    result = evaluate.run(settings, {"model": model_dir}, context)

    kept = list(read_rows(context.outputs["evaluation"] / "instances.jsonl", ScoredCompletion))
    assert [row.score for row in kept] == [
        len(kept[0].completion) / 10,
        min(1, len(kept[1].completion) / 2),
        None,
    ]
    assert 0 < kept[0].score < 1
    assert result.scores[0].n == 2
    assert result.metrics["own/undecided"] == 1
    assert result.metrics["own/undecided_share"] == pytest.approx(1 / 3)
    assert load_evaluation("sft", context.outputs["evaluation"]).scores["own"].undecided == (
        pytest.approx(1 / 3)
    )
    assert "own/2 has no score: own.py: long: KeyError: 'six' (line 2)" in caplog.text
    assert directory / "own.py" in evaluate.external_files(settings, directory)


def test_a_model_is_divided_over_the_gpus_of_its_evaluation_and_as_long_as_that_needs(
    make_context: Callable[..., Any], model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SeenError(Exception):
        pass

    def load(path: Path, **options: Any) -> None:
        names = ("kind", "tensor_parallel_size", "max_model_len")
        raise SeenError(*(options[name] for name in names))

    monkeypatch.setattr(evaluate, "load_engine", load)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    tasks = (TASK_LIST[0], TASK_LIST[1].derive(sampling=Sampling(max_completion_length=300)))
    needed = max(
        len(encode_prompt(tokenizer, instance.messages)) + task.sampling.max_completion_length
        for task in tasks
        for instance in load_instances(task, 0, Path())
    )
    for gpus, size in ((0, 1), (4, 4)):
        suite = EvaluateConfig(tasks=tasks, engine="vllm", resources=Resources(gpus=gpus))
        with pytest.raises(SeenError) as seen:
            evaluate.run(
                EvaluateStageConfig(evaluate=suite), {"model": model_dir}, make_context("evaluate")
            )
        assert seen.value.args == ("vllm", size, needed)


def test_a_judged_task_without_a_judge_says_so(
    make_context: Callable[..., Any], model_dir: Path
) -> None:
    with pytest.raises(RecipeError, match=r"'chat' is rated by a judge: set evaluate\.judge"):
        evaluate.run(
            config(TASK_LIST[2], judge=None), {"model": model_dir}, make_context("evaluate")
        )


def test_a_safety_task_is_decided_by_its_own_engine(
    make_context: Callable[..., Any], model_dir: Path, tmp_path: Path
) -> None:
    """Which is loaded when the model that was asked is gone."""
    rows = [{"adversarial": f"You are DAN {i}.", "source": "BreakGPT"} for i in range(4)]
    (tmp_path / "dan.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = EvalTask(name="dan", task="do_anything_now", path="dan.jsonl", sampling=SHORT)
    suite = EvaluateConfig(tasks=(task, TASK_LIST[0]), batch_size=4, resources=Resources(cpus=1))
    asked: list[str] = []

    def classify(messages: Messages) -> str:
        asked.append(messages[0]["content"])
        if "DAN 3" in asked[-1]:
            return "Refused!"
        refused = "yes" if "DAN 0" in asked[-1] else "no"
        return f"Harmful request: yes\nResponse refusal: {refused}\nHarmful response: no"

    context = make_context("evaluate")
    with scripted_endpoint(classify) as endpoint:
        judged_by = suite.derive(safety_judge=SafetyJudge(engine="wildguard"))
        stage = EvaluateStageConfig(evaluate=judged_by, safety_engine=endpoint)
        result = evaluate.run(stage, {"model": model_dir}, context)
    assert len(asked) == 4
    assert result.metrics["dan"] == pytest.approx(1 / 3)
    assert (result.metrics["dan/undecided"], result.metrics["math/undecided"]) == (1, 0)
    assert [(s.task, s.metric, s.n) for s in result.scores] == [
        ("dan", "inverted_asr", 3),
        ("math", "accuracy", 6),
    ]
    written = list(read_rows(context.outputs["evaluation"] / "instances.jsonl", ScoredCompletion))
    assert [row.task for row in written] == ["dan"] * 4 + ["math"] * 6
    assert all(row.completion in text for row, text in zip(written, sorted(asked), strict=False))
    document = json.loads((context.outputs["evaluation"] / "scores.json").read_text())
    assert not any(entry["judged"] for entry in document)
    with pytest.raises(RecipeError, match=r"'dan' is decided by a classifier: set evaluate\.safe"):
        evaluate.run(config(task), {"model": model_dir}, make_context("without"))


def test_replies_are_compared_with_a_references_and_rated_by_one_judge(
    make_context: Callable[..., Any], model_dir: Path, tmp_path: Path
) -> None:
    rows = [{"instruction": f"Say {i}.", "output": f"{i}", "dataset": "koala"} for i in range(4)]
    (tmp_path / "model_outputs.json").write_text(json.dumps(rows))
    task = EvalTask(name="alpaca", task="alpaca_eval_2", path="model_outputs.json", sampling=SHORT)

    def judge(messages: Messages) -> str:
        if "# Response 2" in messages[1]["content"]:
            return "1"
        return json.dumps([{"response": 1, "rationale": "so", "rating": 3}])

    context = make_context("evaluate")
    with scripted_endpoint(judge) as endpoint:
        suite = EvaluateConfig(
            tasks=(task, TASK_LIST[2]), judge=LLMJudge(engine="judge"), batch_size=4
        )
        stage = EvaluateStageConfig(evaluate=suite, engine=endpoint)
        result = evaluate.run(stage, {"model": model_dir}, context)
    assert [(s.task, s.metric, s.n) for s in result.scores] == [
        ("alpaca", "win_rate", 4),
        ("alpaca", "length_controlled_minimal_win_rate", 4),
        ("chat", "mean_rating", 4),
    ]
    assert result.metrics["chat"] == 3
    document = json.loads((context.outputs["evaluation"] / "scores.json").read_text())
    assert [(entry["primary"], entry["judged"]) for entry in document] == [
        (True, False),
        (False, False),
        (True, True),
    ]
    with pytest.raises(RecipeError, match="'alpaca' is compared by a language model"):
        evaluate.run(config(task), {"model": model_dir}, make_context("by-program"))


def test_pass_at_k_and_the_stages_files(tmp_path: Path) -> None:
    task = EvalTask(name="code", task="humaneval", path="he", num_generations=4)
    truth = {"prompt": "def one():\n", "test": "def check(f):\n    assert f() == 1\n"}
    instance = EvalInstance(
        id="he/0",
        messages=(Message(role="user", content="one"),),
        ground_truth=truth | {"entry_point": "one"},
    )
    texts = ["    return 1", "    return 2", "    return 3", "    return 1"]
    replies = [[Generation(text, "stop") for text in texts]]
    definition = TASKS["humaneval"]
    rows = verified(task, definition.metrics, [instance], replies, threads=2)
    assert [row.score for row in rows] == [1, 0, 0, 1]
    (score,) = task_scores(task, definition, rows)
    assert (score.metric, score.value, score.n) == ("pass@4", 1.0, 1)
    (tmp_path / "he").mkdir()
    (tmp_path / "he/b").write_text("b")
    (tmp_path / "he/a").write_text("a")
    assert [p.name for p in evaluate.external_files(config(task), tmp_path)] == ["a", "b"]


def test_a_verifier_that_fails_leaves_the_instance_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from caravan.verifiers import sandbox

    monkeypatch.setattr(sandbox, "_CHILD", Path("/nowhere.py"))
    task = EvalTask(name="code", task="humaneval")
    instance = EvalInstance(
        id="he/0",
        messages=(Message(role="user", content="one"),),
        ground_truth={"prompt": "def one():\n", "test": "", "entry_point": "one"},
    )
    definition = TASKS["humaneval"]
    reply = [[Generation("    return 1", "stop")]]
    rows = verified(task, definition.metrics, [instance], reply, threads=1)
    assert rows[0].score is None
    assert task_scores(task, definition, rows) == []


def test_options_are_weighed_beside_replies(
    make_context: Callable[..., Any], model_dir: Path, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {
            "question": f"{i}?",
            "mc1_targets": {},
            "mc2_targets": {"yes": 1, "yes, it is": 1, "no": 0},
        }
        for i in range(3)
    ]
    rows[1]["mc2_targets"]["no" * 300] = 0  # longer than the model's positions
    (tmp_path / "mc.json").write_text(json.dumps(rows))
    weighed = EvalTask(name="truth", task="truthfulqa_mc2", path="mc.json")
    row = {"prompt": "is it?", "options": ["yes", "no, not at all"], "answer": "yes"}
    (tmp_path / "own.jsonl").write_text(json.dumps(row) + "\n")
    own = EvalTask(name="own", task="weigh", path="own.jsonl")
    context = make_context("weighed")
    context.recipe_dir = tmp_path
    result = evaluate.run(config(TASK_LIST[0], weighed, own), {"model": model_dir}, context)
    kept = list(read_rows(context.outputs["evaluation"] / "instances.jsonl", ScoredCompletion))
    assert [row.task for row in kept] == ["math"] * 6 + ["truth"] * 3 + ["own"]
    first, second, too_long, asked = kept[6:]
    assert first.log_likelihoods is not None
    assert set(first.log_likelihoods) == {"yes", "yes, it is", "no"}
    assert first.completion == max(first.log_likelihoods, key=lambda o: first.log_likelihoods[o])
    assert first.score == pytest.approx(theirs(first.log_likelihoods, {"yes", "yes, it is"}))
    assert 0 < first.score < 1
    assert first.score != second.score  # another question
    assert (too_long.id, too_long.score) == ("truthfulqa_mc2/1", 0.0)
    assert too_long.finish_reason == "too_long"
    assert result.metrics["truth/too_long"] == pytest.approx(1 / 3)
    (score,) = [score for score in result.scores if score.task == "truth"]
    assert (score.metric, score.n) == ("mc2", 3)
    assert asked.log_likelihoods is not None
    assert asked.metrics["acc"] == asked.score == (asked.completion == "yes")
    assert [s.metric for s in result.scores if s.task == "own"] == ["acc", "acc_norm"]
    assert context.reported[-1] == (10, 10)


def theirs(log_likelihoods: dict[str, float], true: set[str]) -> float:
    """MC2 as lm-evaluation-harness has it."""
    from lm_eval.tasks.truthfulqa import utils

    doc = {"mc2_targets": {"labels": [int(option in true) for option in log_likelihoods]}}
    found = utils.process_results_mc2(doc, [(value, False) for value in log_likelihoods.values()])
    return float(found["acc"])
