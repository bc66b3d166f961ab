"""Pairs of one's own: read from files, cleaned, and kept apart from the evaluation suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from caravan.data.io import read_rows
from caravan.data.records import Pair
from caravan.errors import DataError
from caravan.recipe import DecontaminateConfig, EvalTask, PairConfig
from caravan.stages import read_pairs
from caravan.stages.configs import ReadPairsStageConfig
from caravan.stages.decontaminate import evaluation_prompts
from tiny import Context

TASK = EvalTask.model_validate({"name": "math", "task": "pocket-math", "limit": 20})


def row(number: int, **columns: Any) -> dict[str, Any]:
    return {"prompt": f"Say {number}.", "chosen": f"{number}", "rejected": "no", **columns}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))


def stage_config(**pair: Any) -> ReadPairsStageConfig:
    source = {
        "name": "mine", "license": "MIT", "skill": "chat",
        "origin": {"kind": "files", "paths": ["mine.*"]},
    }  # fmt: skip
    return ReadPairsStageConfig(
        pair=PairConfig.model_validate({"sources": [source], **pair}),
        decontaminate=DecontaminateConfig(max_source_overlap=0.5),
        tasks=(TASK,),
    )


def test_pairs_to_learn_from_stay_and_all_others_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = Context(tmp_path)
    leak = next(evaluation_prompts([TASK], context)).text
    write(
        tmp_path / "mine.jsonl",
        [
            row(0, score_chosen=5, score_rejected=2),
            row(1, rejected=" 1 ", margin=3),
            row(2, chosen=""),
            row(3, prompt=leak),
        ],
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row(4)]), tmp_path / "mine.parquet")
    result = read_pairs.run(stage_config(), {}, context)
    pairs = list(read_rows(tmp_path / "out/pairs", Pair))
    assert [(pair.id, pair.margin) for pair in pairs] == [("mine/0", 3), ("mine/4", 0)]
    assert caplog.messages == ["source mine: columns not read: margin"]
    assert {name: result.metrics[name] for name in result.metrics if "dropped" in name} == {
        "dropped/equal replies": 1, "dropped/empty message": 1, "dropped/contaminated": 1,
    }  # fmt: skip
    assert result.metrics["pairs"] == result.metrics["pairs/mine"] == 2
    assert result.metrics["mean_margin"] == 3
    evidence = (tmp_path / "out/evidence/evidence.jsonl").read_text()
    assert json.loads(evidence)["row_id"] == "mine/3"
    assert set(read_pairs.external_files(stage_config(), tmp_path)) == {
        tmp_path / "mine.jsonl", tmp_path / "mine.parquet",
    }  # fmt: skip


def test_pairs_that_their_ratings_contradict_are_named_and_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ratings = ((5, 2), (1, 4), (3, 3))
    rated = [row(i, score_chosen=c, score_rejected=r) for i, (c, r) in enumerate(ratings)]
    write(tmp_path / "mine.jsonl", [*rated, row(3)])
    result = read_pairs.run(stage_config(), {}, Context(tmp_path))
    [said] = caplog.messages
    assert "source mine: 2 whose chosen reply is not rated higher" in said
    assert "(mine/1, mine/2)" in said
    assert (result.metrics["pairs"], result.metrics["not_rated_higher"]) == (4, 2)


def test_a_random_choice_is_taken_where_the_recipe_wants_fewer(tmp_path: Path) -> None:
    write(tmp_path / "mine.jsonl", [row(number) for number in range(50)])
    read_pairs.run(stage_config(max_pairs=10), {}, Context(tmp_path))
    numbers = [int(pair.chosen) for pair in read_rows(tmp_path / "out/pairs", Pair)]
    assert len(numbers) == 10
    assert numbers == sorted(numbers) != list(range(10))


def test_what_cannot_be_read_is_named_and_nothing_left_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "mine.jsonl", [row(0), {"prompt": "q", "chosen": "a"}])
    with pytest.raises(DataError, match=r"source mine: .*mine.jsonl, row 2: no column 'rejected'"):
        read_pairs.run(stage_config(), {}, Context(tmp_path))
    write(tmp_path / "mine.jsonl", [row(0, rejected="0")])
    with pytest.raises(DataError, match=r"no preference pair is left .*1 dropped/equal replies"):
        read_pairs.run(stage_config(), {}, Context(tmp_path))


def test_what_chooses_among_rated_completions_does_not_go_with_own_pairs() -> None:
    with pytest.raises(ValueError, match=r"chosen already; .*and min_margin: 0, where a recipe"):
        stage_config(min_margin=0.5)
