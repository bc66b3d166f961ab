"""Which of a stage's policies is taken, by scores written here and by a real evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from caravan.errors import StageError
from caravan.recipe import EvalTask, EvaluateConfig, Resources, Sampling
from caravan.stages import evaluate, select
from caravan.stages.configs import EvaluateStageConfig
from caravan.stages.context import Score
from caravan.training.bpe import train_tokenizer
from caravan.training.models import prepare_torch, save_model
from caravan.training.pretrain import new_llama
from tiny import SHAPE, TEXTS

SHORT = Sampling(temperature=0.0, max_completion_length=4)
TASKS = (
    EvalTask(name="math", task="pocket-math", limit=4, sampling=SHORT),
    EvalTask(name="constraints", task="pocket-constraints", limit=4, sampling=SHORT),
)
CONFIG = EvaluateStageConfig(
    evaluate=EvaluateConfig(tasks=TASKS, batch_size=4, resources=Resources(cpus=1))
)


def candidate(step: int, *values: float, undecided: float = 0.0) -> select.Candidate:
    return select.Candidate(
        step,
        tuple(
            select.TaskScore(f"task {i}", "acc", value, 0.0, 1.0, 9, 0.0, 0.0, undecided)
            for i, value in enumerate(values)
        ),
    )


@pytest.mark.parametrize(
    ("scores", "step"),
    [
        ([(100, 0.5, 0.1), (200, 0.4, 0.4), (300, 0.6, 0.1)], 200),  # by the mean of the tasks
        ([(100, 0.1), (200, 0.3), (1000, 0.3)], 200),  # of equal ones the earliest
        ([(1000, 0.25, 0.5), (200, 0.5, 0.25)], 200),  # whatever the order
    ],
)
def test_the_highest_mean_is_taken_and_of_equal_ones_the_earliest(
    scores: Sequence[tuple[float, ...]], step: int
) -> None:
    assert select.best(candidate(int(s), *values) for s, *values in scores).step == step


def test_a_high_score_over_the_few_replies_that_were_decided_is_not_taken() -> None:
    lucky, worse, good = candidate(1, 1.0, undecided=0.9), candidate(2, 0.3), candidate(3, 0.4)
    assert select.best([lucky, worse, good]) is good
    assert select.best([lucky, candidate(2, 0.5, undecided=0.3)]) is lucky
    assert select.best([candidate(1, 0.5, undecided=0.1), good]).step == 1
    page = select.page([lucky, worse, good], good)
    assert "Of the 2 of 3 policies whose replies are decided it has the highest mean" in page
    assert "undecided: 90 %" in page


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for step in (2, 10):
        prepare_torch(cpus=1, seed=step)
        tokenizer = train_tokenizer(TEXTS, vocab_size=SHAPE.vocab_size, model_max_length=512)
        found[f"step-{step}"] = tmp_path / "models" / f"step-{step}"
        shape = SHAPE.derive(max_position_embeddings=512)
        save_model(new_llama(shape, tokenizer), tokenizer, found[f"step-{step}"])
    return found


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def test_candidates_have_the_scores_that_an_evaluation_gives_them(
    make_context: Callable, inputs: dict[str, Path]
) -> None:
    stage = make_context("select")
    result = select.run(CONFIG, inputs, stage)
    assert [step for step, _ in stage.logged] == [2, 10]
    for step, logged in stage.logged:
        alone = make_context(f"evaluate-{step}", seed=stage.seed)
        found = evaluate.run(CONFIG, {"model": inputs[f"step-{step}"]}, alone).metrics
        assert logged == {
            "math": found["math"], "constraints": found["constraints"],
            "mean": (found["math"] + found["constraints"]) / 2,
        }  # fmt: skip
    shown = json.loads((stage.outputs["report"] / "selection.json").read_text())
    assert shown["step"] == result.metrics["step"]
    assert [one["step"] for one in shown["candidates"]] == [2, 10]
    for one in shown["candidates"]:
        assert all(s["low"] <= s["value"] <= s["high"] and s["n"] == 4 for s in one["scores"])
    page = (stage.outputs["report"] / "selection.md").read_text()
    assert page.startswith(f"# Step {shown['step']} is taken")
    assert f"{shown['step']}, taken" in page
    assert "noisy" in page
    assert weights(stage.outputs["model"]) == weights(inputs[f"step-{shown['step']}"])
    assert stage.reported == sorted(stage.reported)
    assert stage.reported[-1] == (16, 16)


def test_a_candidate_that_has_its_scores_is_not_asked_again(
    make_context: Callable, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def scored(model: Path, *_: object) -> evaluate.Evaluated:
        asked.append(model.name)
        if asked == ["step-2", "step-10"]:
            raise KeyboardInterrupt
        value = {"step-2": 0.25, "step-10": 0.75}[model.name]
        scores = [Score(t.name, "acc", value, 0.0, 1.0, 4) for t in TASKS]
        return evaluate.Evaluated([], scores, None)

    monkeypatch.setattr(select, "evaluate_model", scored)
    stage = make_context()
    with pytest.raises(KeyboardInterrupt):
        select.run(CONFIG, inputs, stage)
    result = select.run(CONFIG, inputs, stage)
    assert asked == ["step-2", "step-10", "step-10"]
    assert result.metrics == {
        "step": 10, "candidates": 2, "mean": 0.75, "math": 0.75, "constraints": 0.75,
    }  # fmt: skip
    assert stage.logged == [
        (2, {"math": 0.25, "constraints": 0.25, "mean": 0.25}),
        (10, {"math": 0.75, "constraints": 0.75, "mean": 0.75}),
    ]
    assert weights(stage.outputs["model"]) == weights(inputs["step-10"])


def test_a_candidate_without_a_score_is_not_taken_for_a_bad_one(
    make_context: Callable, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    only = evaluate.Evaluated([], [Score("math", "acc", 1.0, 0.0, 1.0, 4)], None)
    monkeypatch.setattr(select, "evaluate_model", lambda *_: only)
    with pytest.raises(StageError, match="no reply of step 2 to task constraints could be scored"):
        select.run(CONFIG, inputs, make_context())


def test_a_policy_of_whose_replies_few_are_decided_is_not_taken_for_the_best(
    make_context: Callable, inputs: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Of step 2 the verifier fails on all replies but one, which is right."""
    stage = make_context()
    rows = [{"prompt": f"{word}?", "ground_truth": word} for word in ("one", "two", "six")]
    (Path(stage.recipe_dir) / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = Path(stage.recipe_dir) / "asked"
    (Path(stage.recipe_dir) / "own.py").write_text(
        "def own(completion, ground_truth):\n"
        f"    with open({str(asked)!r}, 'a+') as file:\n"
        "        file.write(ground_truth)\n"
        "        file.seek(0)\n"
        "        if file.read().count('one') == 2:\n"
        "            return 0.5\n"
        "    return {'one': 1}[ground_truth]\n"
    )
    own = EvalTask(name="own", task="verify", verifier="own", path="own.jsonl", sampling=SHORT)
    config = EvaluateStageConfig(
        evaluate=CONFIG.evaluate.derive(tasks=[own]), verifiers={"own": "own.py:own"}
    )
    result = select.run(config, inputs, stage)
    assert result.metrics == {"step": 10, "candidates": 2, "mean": 0.5, "own": 0.5}
    assert "undecided: 67 %" in (stage.outputs["report"] / "selection.md").read_text()
    assert "step 2: more than 20 % of the replies to a task could not be decided" in caplog.text
