import json
from pathlib import Path

import pytest

from caravan.data.io import read_rows, write_rows
from caravan.data.ngrams import NgramIndex, tokenize
from caravan.data.records import Conversation, Message
from caravan.errors import DataError
from caravan.pocket.tasks import instances
from caravan.recipe import DecontaminateConfig, EvalTask
from caravan.stages import decontaminate
from caravan.stages.configs import DecontaminateStageConfig
from caravan.stages.decontaminate import Instance, contaminated_sources, find_overlap, source_shares

QUESTIONS = [m.messages[-1].content for m in instances("pocket-math", 200)]
MATH = EvalTask(name="math", task="pocket-math", limit=200)


def row(source: str, number: int, *turns: str) -> Conversation:
    return Conversation(
        id=f"{source}/{number}",
        messages=tuple(
            Message(role=("user", "assistant")[i % 2], content=t) for i, t in enumerate(turns)
        ),
        source=source,
        skill="math",
        license="MIT",
    )


def clean(source: str, count: int) -> list[Conversation]:
    return [
        row(source, 1000 + n, f"tell me story {n} about the {n} ships that left", "Once.")
        for n in range(count)
    ]


def run(tmp_path: Path, context, rows: list[Conversation], *tasks: EvalTask, **rule: object):
    half = len(rows) // 2
    write_rows(tmp_path / "curated" / "rows.jsonl", rows[:half])
    write_rows(tmp_path / "synthesized" / "rows.jsonl", rows[half:])
    config = DecontaminateStageConfig(
        decontaminate=DecontaminateConfig.model_validate(rule), tasks=tasks or (MATH,)
    )
    names = ("curated", "synthesized")
    result = decontaminate.run(config, {name: tmp_path / name for name in names}, context)
    kept = [r.id for r in read_rows(context.outputs["dataset"], Conversation)]
    evidence = list(
        read_rows(context.outputs["evidence"] / "evidence.jsonl", decontaminate.Evidence)
    )
    overlap = json.loads((context.outputs["evidence"] / "overlap.json").read_text())
    return kept, evidence, overlap, result.metrics


def test_copied_row_goes_and_the_evidence_says_why(tmp_path: Path, make_context):
    copied = row("leaky", 0, f"My homework: {QUESTIONS[5]} Please help.", "No.")
    rows = [*clean("good", 3), copied, *clean("leaky", 3)]
    kept, evidence, overlap, metrics = run(tmp_path, make_context(), rows)
    assert kept == [r.id for r in rows if r.id != "leaky/0"]
    (found,) = [e for e in evidence if e.instance_id == "pocket-math/5"]
    assert (found.row_id, found.source, found.task) == ("leaky/0", "leaky", "math")
    assert found.coverage == 1.0
    assert found.matched_text == " ".join(tokenize(QUESTIONS[5]))
    assert overlap["overlap"]["leaky"]["math"]["share"] == len(evidence) / 200
    assert overlap["overlap"]["good"] == {}
    assert metrics["remaining_contaminated_rows"] == 0
    assert metrics["contaminated_rows"] == 1
    assert (metrics["rows"], metrics["dropped"]) == (6, 1)


def test_answers_are_never_compared(tmp_path: Path, make_context):
    rows = [*clean("good", 3), row("good", 0, "say it", QUESTIONS[0], "again", QUESTIONS[1])]
    kept, evidence, *_ = run(tmp_path, make_context(), rows)
    assert len(kept) == 4
    assert evidence == []


def test_source_above_two_percent_goes_whole_unless_kept(tmp_path: Path, make_context, caplog):
    leaks = [row("leaky", n, question, "x") for n, question in enumerate(QUESTIONS[:8])]
    rows = [*clean("good", 5), *leaks, *clean("leaky", 5)]
    kept, _, overlap, metrics = run(tmp_path, make_context("dropped"), rows)
    assert {id.split("/")[0] for id in kept} == {"good"}
    assert overlap["dropped_sources"] == {"leaky": ["math"]}
    assert overlap["dropped_rows"] == {"good": 0, "leaky": 13}
    assert metrics["dropped_sources"] == 1
    assert caplog.messages == [
        "source leaky: all 13 rows dropped, as they have 4.0 % of math's questions; "
        "decontaminate.max_source_overlap is 2 %"
    ]

    kept, *_ = run(tmp_path, make_context("kept"), rows, keep_sources=["leaky"])
    assert sum(id.startswith("leaky") for id in kept) == 5

    unseen = MATH.derive(suite="unseen")
    kept, *_ = run(tmp_path, make_context("unseen"), rows, unseen, keep_sources=["leaky"])
    assert {id.split("/")[0] for id in kept} == {"good"}


def test_sources_left_without_rows_stay_known(tmp_path: Path, make_context):
    rows = [*clean("good", 2), *[row("leaky", n, q, "x") for n, q in enumerate(QUESTIONS[:9])]]
    context = make_context()
    run(tmp_path, context, rows)
    card = json.loads((context.outputs["dataset"] / "card.json").read_text())
    assert card["sources"] == [
        {"name": "good", "kept": 2, "dropped": 0},
        {"name": "leaky", "kept": 0, "dropped": 9},
    ]


def test_nothing_left_is_an_error(tmp_path: Path, make_context):
    leaks = [row("leaky", n, question, "x") for n, question in enumerate(QUESTIONS[:8])]
    with pytest.raises(DataError, match="left no row"):
        run(tmp_path, make_context(), leaks)


def test_half_of_the_tokens_is_not_more_than_half():
    question = " ".join(f"t{i}" for i in range(16))
    index = NgramIndex([question])
    instances = [Instance("t", "t/0", question)]
    half = row("s", 0, " ".join(f"t{i}" for i in range(8)))
    more = row("s", 1, " ".join(f"t{i}" for i in range(9)))
    found = find_overlap([half, more], instances, index, max_coverage=0.5)
    assert [(e.row_id, e.coverage) for e in found.evidence] == [("s/1", 9 / 16)]


def test_exactly_two_percent_is_not_more_than_two_percent():
    texts = [" ".join(f"q{n}w{i}" for i in range(10)) for n in range(100)]
    instances = [Instance("t", f"t/{n}", text) for n, text in enumerate(texts)]
    index, rule = NgramIndex(texts), DecontaminateConfig()
    task = EvalTask(name="t", task="pocket-math")
    for leaks, dropped in ((2, {}), (3, {"s": ["t"]})):
        rows = [row("s", n, texts[n]) for n in range(leaks)] * 2  # each instance counts once
        shares = source_shares(find_overlap(rows, instances, index, 0.5), instances)
        assert shares["s"]["t"] == {"instances": leaks, "share": leaks / 100}
        assert contaminated_sources(shares, [task], rule) == dropped


def test_wording_of_the_task_does_not_hide_its_question(tmp_path: Path, make_context):
    problem = "A train leaves at noon with nine wagons and loses two of them at every stop."
    (tmp_path / "math.jsonl").write_text(json.dumps({"problem": problem, "solution": "\\boxed{4}"}))
    task = EvalTask(name="math", task="math", path="math.jsonl")
    context = make_context()
    (found,) = decontaminate.evaluation_prompts([task], context)
    assert found == Instance("math", "math/0", problem)
