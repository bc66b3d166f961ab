"""The stages judge and pair: from completions to preference pairs, keyed by id throughout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from caravan.data.io import read_rows, write_rows
from caravan.data.records import Completion, Conversation, Message, Pair, RatedCompletion
from caravan.errors import DataError
from caravan.recipe import JudgeConfig, PairConfig, ProgramJudge
from caravan.stages import judge, pair
from caravan.stages.configs import JudgeStageConfig

ASPECTS = ("helpfulness", "instruction_following", "honesty", "truthfulness")


def prompt(id: str, text: str = "Say a colour.", **values: Any) -> Conversation:
    fields = {"source": "colours", "skill": "chat", "license": "Apache-2.0"} | values
    return Conversation(id=id, messages=(Message(role="user", content=text),), **fields)


def completion(prompt_id: str, model: str, text: str, index: int = 0) -> Completion:
    return Completion(
        prompt_id=prompt_id, model=model, index=index, text=text, finish_reason="stop"
    )


def rated(prompt_id: str, model: str, *ratings: int | None, text: str = "") -> RatedCompletion:
    return RatedCompletion(
        completion=completion(prompt_id, model, text or f"by {model}"),
        ratings=dict(zip(ASPECTS, ratings, strict=False)),  # type: ignore[arg-type]
    )


def table(directory: Path, rows: Sequence[Any]) -> Path:
    directory.mkdir(parents=True)
    write_rows(directory / "rows.jsonl", rows)
    return directory


# --- judge --------------------------------------------------------------------------------------

CONFIG = JudgeStageConfig(judge=JudgeConfig(judge=ProgramJudge()), engine=None)


def run_judge(make_context: Callable[..., Any], tmp_path: Path, tables: list[list[Any]]) -> Any:
    prompts = [prompt("p/1"), prompt("p/2"), prompt("p/3")]
    context = make_context("judge")
    inputs = {"prompts": table(tmp_path / "prompts", prompts)}
    inputs |= {f"completions-{i}": table(tmp_path / f"c{i}", rows) for i, rows in enumerate(tables)}
    result = judge.run(CONFIG, inputs, context)
    return result, list(read_rows(context.outputs["ratings"], RatedCompletion))


def test_a_prompt_that_was_too_long_for_one_model_is_left_out_for_all(
    make_context: Callable[..., Any], tmp_path: Path
) -> None:
    silent = Completion(prompt_id="p/1", model="a", text="", finish_reason="too_long")
    one = [silent, completion("p/2", "a", "Red.")]
    two = [completion("p/1", "b", "Red."), completion("p/2", "b", "Blue.")]
    result, ratings = run_judge(make_context, tmp_path, [one, two])
    assert [r.completion.prompt_id for r in ratings] == ["p/2", "p/2"]
    assert (result.metrics["prompts"], result.metrics["prompts_too_long"]) == (1, 1)


def test_ratings_come_by_prompt_whatever_the_order_of_the_tables(
    make_context: Callable[..., Any], tmp_path: Path
) -> None:
    one = [completion("p/2", "b", "Blue."), completion("p/1", "b", "Red.")]
    two = [completion("p/1", "a", "Maybe red, I guess."), completion("p/2", "a", "")]
    result, ratings = run_judge(make_context, tmp_path, [one, two])
    assert [(r.completion.prompt_id, r.completion.model) for r in ratings] == [
        ("p/1", "a"),
        ("p/1", "b"),
        ("p/2", "a"),
        ("p/2", "b"),
    ]
    assert result.metrics["completions"] == 4
    assert result.metrics["refused"] == 0
    assert result.metrics["prompts"] == 2
    assert 1 <= result.metrics["mean_rating/a"] <= 5


def test_a_completion_of_an_unknown_prompt_or_a_second_one_is_an_error(
    make_context: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="row 1: prompt 'p/9' is not among the prompts"):
        run_judge(make_context, tmp_path / "one", [[completion("p/9", "a", "x")]])


def test_a_second_completion_with_the_same_number_is_an_error(
    make_context: Callable[..., Any], tmp_path: Path
) -> None:
    twice = [completion("p/1", "a", "x"), completion("p/1", "a", "y")]
    with pytest.raises(DataError, match="row 2: a second completion 0 of 'a' to 'p/1'"):
        run_judge(make_context, tmp_path, [twice])


# --- pair ---------------------------------------------------------------------------------------


def run_pair(
    make_context: Callable[..., Any],
    tmp_path: Path,
    ratings: list[RatedCompletion],
    name: str = "pair",
    seed: int = 17,
    **config: Any,
) -> Any:
    ids = dict.fromkeys(r.completion.prompt_id for r in ratings)
    context = make_context(name, seed=seed)
    inputs = {
        "prompts": table(tmp_path / name / "prompts", [prompt(id) for id in ids]),
        "ratings": table(tmp_path / name / "ratings", ratings),
    }
    result = pair.run(PairConfig(**config), inputs, context)
    return result, list(read_rows(context.outputs["pairs"], Pair))


def test_the_best_mean_is_chosen_and_a_worse_one_rejected(
    make_context: Callable[..., Any], tmp_path: Path
) -> None:
    ratings = [
        rated("p", "a", 3, 3, 3, 3),
        rated("p", "b", 5, 4, None, 5, text="much longer and better"),
        rated("p", "c", 1, 1, 1, 1),
    ]
    result, (made,) = run_pair(make_context, tmp_path, ratings)
    assert made.chosen_model == "b"
    assert made.chosen_rating == pytest.approx(14 / 3)
    assert made.rejected_model in {"a", "c"}
    assert (made.source, made.skill, made.prompt[0].content) == ("colours", "chat", "Say a colour.")
    assert result.metrics["pairs"] == 1
    assert result.metrics["length_bias_words"] == 2
    assert result.metrics["win_share/b"] == 1.0
    _, (worst,) = run_pair(make_context, tmp_path, ratings, "worst", rejected="worst")
    assert worst.rejected_model == "c"


def test_random_worse_varies_with_the_prompt_and_repeats_with_the_seed(
    make_context: Callable[..., Any], tmp_path: Path
) -> None:
    ratings = [
        rated(f"p/{i}", model, rating, rating, rating, rating)
        for i in range(40)
        for model, rating in (("a", 5), ("b", 3), ("c", 2), ("d", 1))
    ]
    _, one = run_pair(make_context, tmp_path, ratings, "one", seed=1)
    _, same = run_pair(make_context, tmp_path, ratings, "same", seed=1)
    _, other = run_pair(make_context, tmp_path, ratings, "other", seed=2)
    assert one == same != other
    assert {p.rejected_model for p in one} == {"b", "c", "d"}
    assert {p.chosen_model for p in one} == {"a"}
    _, few = run_pair(make_context, tmp_path, ratings, "few", max_pairs=7)
    assert len(few) == 7


def test_ties_make_no_pair_and_unreadable_ratings_take_no_part(
    make_context: Callable[..., Any], tmp_path: Path
) -> None:
    ratings = [
        rated("tied", "a", 4, 3, 3, 4),
        rated("tied", "b", 3, 4, 4, 3),
        rated("same-text", "a", 5, 5, 5, 5, text="same"),
        rated("same-text", "b", 1, 1, 1, 1, text="same "),
        rated("broken", "a", 5, 5, 5, 5),
        rated("broken", "b", 1, 1),  # two aspects could not be read
        rated("good", "a", 5, 5, 5, 5),
        rated("good", "b", 2, 2, 2, 2),
    ]
    result, pairs = run_pair(make_context, tmp_path, ratings)
    assert [p.id for p in pairs] == ["good"]
    assert result.metrics["ties_excluded"] == 2
    assert result.metrics["prompts_with_one_completion"] == 1
    assert result.metrics["refused_completions"] == 1


def test_the_margin_is_the_smallest_difference_that_counts(
    make_context: Callable[..., Any], tmp_path: Path
) -> None:
    ratings = [
        rated("near", "a", 5, 5, 5, 5),
        rated("near", "b", 5, 5, 5, 4),
        rated("far", "a", 5, 5, 5, 5),
        rated("far", "b", 5, 5, 4, 3),
        rated("at", "a", 5, 5, 5, 5),
        rated("at", "b", 5, 5, 4, 4),
    ]
    _, pairs = run_pair(make_context, tmp_path, ratings, min_margin=0.5)
    assert [p.id for p in pairs] == ["far", "at"]
    with pytest.raises(DataError, match="no prompt has a better and a worse completion"):
        run_pair(make_context, tmp_path, ratings, "none", min_margin=2)
