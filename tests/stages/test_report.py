"""The stage report, on evaluations written here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from caravan.data.io import read_rows, write_json, write_rows
from caravan.evals.comparison import load_evaluation
from caravan.evals.judging import ProgramJudge as Program
from caravan.evals.scoring import ScoredCompletion, judged, task_scores, verified
from caravan.evals.tasks import TASKS
from caravan.inference import Generation
from caravan.recipe import EvalTask
from caravan.stages import evaluate, report
from caravan.stages.configs import ReportStageConfig

ASPECTS = ("helpfulness", "instruction_following", "honesty", "truthfulness")


EVIL = "<script>alert('x')</script>{{ 7 * 7 }}<img src=x onerror=alert(1)>"


def write_evaluation(directory: Path, quality: float) -> Path:
    """An evaluation in which a share `quality` of the answers is right and liked."""
    tasks = [
        EvalTask(name="math", task="pocket-math", limit=40),
        EvalTask(name="chat", task="pocket-chat", limit=30),
    ]
    rows, scores = [], []
    for task in tasks:
        definition = TASKS[task.task]
        instances = definition.load(task, 0)
        right = round(quality * len(instances))
        replies = []
        for i, instance in enumerate(instances):
            good = f"It is {instance.ground_truth}." if task.name == "math" else "Hello! " * 3
            replies.append([Generation(good if i < right else EVIL, "stop")])
        if definition.judged:
            found = judged(task, instances, replies, Program(ASPECTS), 0)
            found = [
                row.model_copy(update={"score": s, "metrics": {"mean_rating": s}})
                for i, row in enumerate(found)
                for s in [4.0 if i < right else 2.0]
            ]
        else:
            found = verified(task, definition.metrics, instances, replies, 1)
        rows += found
        scores += task_scores(task, definition, found)
    directory.mkdir(parents=True)
    write_rows(directory / "instances.jsonl", rows)
    write_json(directory / "scores.json", evaluate.scores_document(tasks, scores))
    return directory


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("evaluations")
    shares = {"rlvr": 0.9, "base": 0.1, "dpo": 0.55, "sft": 0.5}
    paths = {
        f"evaluation-{stage}": write_evaluation(root / stage, share)
        for stage, share in shares.items()
    }
    for name in ("card", "mix", "evidence"):
        (root / name).mkdir()
        paths[name] = root / name
    source = {"name": EVIL, "skill": "math"}
    card = {"available": 12, "kept": 11, "dropped": {}, "by_skill": {}, "sources": [source]}
    write_json(root / "card/card.json", card)
    write_json(root / "mix/mix.json", {"rows": 10, "by_source": {EVIL: 10}, "by_skill": {}})
    overlap = {"dropped_rows": {"a": 1}, "dropped_sources": {}}
    write_json(root / "evidence/overlap.json", overlap)
    (root / "evidence/evidence.jsonl").write_text('{"row_id": "a/1"}\n')
    return paths


def run_report(
    make_context: Callable[..., Any], inputs: dict[str, Path], name: str = "report"
) -> Any:
    context = make_context(name)
    result = report.run(ReportStageConfig(bootstrap_samples=500), inputs, context)
    return result, context.outputs["report"]


def test_report_says_what_changed_and_whether_it_is_more_than_chance(
    make_context: Callable[..., Any], inputs: dict[str, Path]
) -> None:
    result, directory = run_report(make_context, inputs)
    document = json.loads((directory / "report.json").read_text())
    assert document["stages"] == ["base", "sft", "dpo", "rlvr"]
    math = {c["after"]: c for c in document["changes"] if c["task"] == "math"}
    assert {s: (c["before"], c["significant"]) for s, c in math.items()} == {
        "sft": ("base", True),
        "dpo": ("sft", False),  # two instances of forty
        "rlvr": ("dpo", True),
    }
    assert math["rlvr"]["value"] == pytest.approx(0.35)
    by_task = {score.task: score for score in result.scores}
    rate = by_task["chat:rlvr>dpo"]
    assert rate.metric == "win_rate"
    assert rate.instances
    # 0.9 against 0.55 of 30: 27 good against 16, the rest ties
    assert rate.value == pytest.approx((11 + 0.5 * 19) / 30)
    assert "chat:sft>base" not in {s.task for s in result.scores if s.metric == "win_rate"}
    assert by_task["math:dpo>sft"].metric == "difference"
    assert result.metrics["average_change/rlvr"] == pytest.approx(0.35)


def test_report_says_by_what_policies_were_selected(
    make_context: Callable[..., Any], inputs: dict[str, Path]
) -> None:
    _, directory = run_report(make_context, inputs)
    assert "selected" not in (directory / "report.html").read_text()
    assert "selected_by" not in json.loads((directory / "report.json").read_text())
    context = make_context("selected")
    config = ReportStageConfig(
        bootstrap_samples=500, selected_by=("math",), earlier_selected_by={"sft": ("chat", "math")}
    )
    report.run(config, inputs, context)
    page = (context.outputs["report"] / "report.html").read_text()
    told = page.replace("&#39;", "'")
    assert "RLVR's policy was selected by its scores on math: there its scores" in told
    assert "SFT's policy was selected by its scores on chat, math: there its scores" in told
    document = json.loads((context.outputs["report"] / "report.json").read_text())
    assert document["selected_by"] == {"sft": ["chat", "math"], "rlvr": ["math"]}


def test_report_says_where_replies_were_cut_off_and_where_nothing_changed(
    make_context: Callable[..., Any], inputs: dict[str, Path], tmp_path: Path
) -> None:
    directory = write_evaluation(tmp_path / "cut", 0.5)
    rows = [
        row.model_copy(update={"finish_reason": "length"}) if row.task == "math" else row
        for row in read_rows(directory / "instances.jsonl", ScoredCompletion)
    ]
    write_rows(directory / "instances.jsonl", rows)
    same = {"evaluation-sft": inputs["evaluation-sft"], "evaluation-dpo": directory}
    _, found = run_report(make_context, same)
    page = (found / "report.html").read_text()
    assert page.count("cut off: 100 %") == 1
    assert '<div class="sure">no difference on any of the 40 ' in page
    assert "<td>no difference on any of the 40</td>" in page
    assert "+0.0 to" not in page


def test_report_has_the_same_bytes_twice(
    make_context: Callable[..., Any], inputs: dict[str, Path]
) -> None:
    _, one = run_report(make_context, inputs, "one")
    _, two = run_report(make_context, dict(reversed(inputs.items())), "two")
    names = sorted(path.name for path in one.iterdir())
    assert names == [
        "changes.png",
        "mix.png",
        "report.html",
        "report.json",
        "scores.png",
        "win_rates.png",
    ]
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_a_report_does_not_show_how_an_evaluation_was_divided(
    make_context: Callable[..., Any], inputs: dict[str, Path], tmp_path: Path
) -> None:
    divided = {name: path for name, path in inputs.items() if name != "evaluation-dpo"}
    whole = inputs["evaluation-dpo"]
    rows = list(read_rows(whole / "instances.jsonl", ScoredCompletion))
    scores = json.loads((whole / "scores.json").read_text())
    for number, task in enumerate(("math", "chat"), 1):
        shard = tmp_path / task
        shard.mkdir()
        write_rows(shard / "instances.jsonl", [row for row in rows if row.task == task])
        write_json(shard / "scores.json", [score for score in scores if score["task"] == task])
        divided[f"evaluation-dpo-{number}"] = shard
    result, of_shards = run_report(make_context, divided, "divided")
    expected, at_once = run_report(make_context, inputs, "whole")
    assert result == expected
    for path in at_once.iterdir():
        assert (of_shards / path.name).read_bytes() == path.read_bytes(), path.name


class Tags(HTMLParser):
    """The tags, attributes and text of a page, as a browser reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else_and_lets_no_text_become_markup(
    make_context: Callable[..., Any], inputs: dict[str, Path]
) -> None:
    _, directory = run_report(make_context, inputs)
    html = (directory / "report.html").read_text()
    page = Tags()
    page.feed(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert EVIL in page.text  # the samples show it, as text
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4
    assert all(str(i["src"]).startswith("data:image/png;base64,") for i in images)
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert not re.search(r"(?:src|href)=\"(?!data:)", html)
    assert str(inputs["card"]) not in html


def test_a_report_without_any_score_says_so(
    make_context: Callable[..., Any], inputs: dict[str, Path], tmp_path: Path
) -> None:
    """As of a judge none of whose replies could be read."""
    unread = {}
    for stage in ("evaluation-base", "evaluation-sft"):
        rows = read_rows(inputs[stage] / "instances.jsonl", ScoredCompletion)
        directory = unread[stage] = tmp_path / stage
        directory.mkdir()
        undecided = [row.model_copy(update={"score": None, "metrics": {}}) for row in rows]
        write_rows(directory / "instances.jsonl", undecided)
        write_json(directory / "scores.json", [])
    result, directory = run_report(make_context, unread, "unread")
    assert result.scores == ()
    assert "No reply has a score" in (directory / "report.html").read_text()


def test_a_report_of_less_has_less(
    make_context: Callable[..., Any], inputs: dict[str, Path]
) -> None:
    one = {"evaluation-sft": inputs["evaluation-sft"]}
    result, directory = run_report(make_context, one)
    assert (result.scores, dict(result.metrics)) == ((), {})
    assert sorted(p.name for p in directory.iterdir()) == [
        "report.html",
        "report.json",
        "scores.png",
    ]
    evaluation = load_evaluation("sft", inputs["evaluation-sft"])
    assert list(evaluation.scores) == ["math", "chat"]
