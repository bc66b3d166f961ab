"""What the pages compute, apart from Streamlit."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from math import inf, log

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from caravan.data.records import Message
from caravan.errors import DataError
from caravan.evals.scoring import ScoredCompletion
from caravan.recipe.io import shown_value
from caravan.registry import ArtifactRow, CurvePoint
from caravan_dashboard import (
    curves,
    differences,
    evaluation,
    lineage,
    markup,
    preferences,
    replies,
    rows,
    runs,
    text,
)  # fmt: skip
from caravan_dashboard.diff import word_diff
from caravan_dashboard.lineage import Edge
from caravan_dashboard.stages import by_interest


class Row(BaseModel):
    id: int
    text: str


def write(path, count):
    lines = [json.dumps({"id": i, "text": "é\u2028" * i}, ensure_ascii=False) for i in range(count)]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")


def test_rows_are_found_by_what_a_value_holds(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [
        {"text": "An ÄPFEL\nsaid \"no\""}, {"turns": [{"role": "user", "n": 3}]}, {"user": "text"},
    ]  # fmt: skip
    written = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
    path.write_text("".join(written), "utf-8")
    second = len(written[0].encode())

    for wanted, offsets in {
        "äpfel": {0}, 'said "NO"': {0}, "user": {second},
        "text": {second + len(written[1])}, "none": set(),
    }.items():  # fmt: skip
        assert rows.search_rows(path, wanted) == offsets


def test_rows_are_read_by_page_without_the_others(tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path, 23)

    table = rows.index_rows(path, lambda row: {"odd": row["id"] % 2 == 1}, ("odd",))
    page = rows.page_of(table[table["odd"]], 2, 5)

    assert [row.id for row in rows.read_rows_at(path, page["offset"], Row)] == [11, 13, 15, 17, 19]
    assert rows.page_count(11, 5) == 3
    assert len(rows.page_of(table, 99, 5)) == 3  # past the end: the last page
    assert rows.page_of(table.iloc[:0], 1, 5).empty


@pytest.mark.parametrize("line", ["{", "[]", '"x"', '{"other": 1}'])
def test_a_row_that_does_not_fit_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1}\n' + line + "\n")

    with pytest.raises(DataError, match="row 2: not as expected"):
        rows.index_rows(path, lambda row: {"id": row["id"]}, ("id",))


@given(st.text(), st.text())
def test_a_diff_joined_is_the_texts(left, right):
    first, second = word_diff(left, right)

    assert "".join(piece.text for piece in first) == left
    assert "".join(piece.text for piece in second) == right


def test_a_diff_marks_the_words_that_differ():
    first, second = word_diff("the answer is 4", "the answer is 5, maybe")

    assert [piece.text for piece in first if piece.differs] == ["4"]
    assert [piece.text for piece in second if piece.differs] == ["5, maybe"]


@given(st.text())
def test_no_text_leaves_its_element(content):
    shown = markup.table([content], [[content, markup.prose(content)]])
    shown = markup.join([shown, markup.page_link(content, "run", run=content)])

    for allowed in ("table", "thead", "tbody", "tr", "th", "td", "div", "a", "i"):
        shown = shown.replace(f"</{allowed}>", "").replace(f"<{allowed}>", "")
    for opening in ('<div class="', '<table class="', '<a href="./'):
        shown = shown.replace(opening, "")
    assert "<" not in shown


@given(st.text(), st.text(min_size=1))
def test_no_text_leaves_its_label(node, name):
    spec = lineage.dot([Edge(node, name, "d1", True)], {}, {})

    quoted = spec.replace("\\\\", "").replace('\\"', "")
    assert quoted.count('"') % 2 == 0
    assert len(spec.splitlines()) == 8


def test_sizes_are_those_of_the_command_line():
    row = ArtifactRow("d1", "model", 3 * 2**20, 1, "", datetime(2026, 11, 22, tzinfo=UTC))

    assert "3.0 MiB" in lineage.dot([Edge("sft", "model", "d1", True)], {"d1": row}, {})


def test_a_path_between_artifacts_is_drawn():
    edges = [Edge("mix", "dataset", "d1", True), Edge("sft", "dataset", "d1", False)]

    spec = lineage.dot(edges, {}, {}, hidden=())

    assert '"stage mix" -> "artifact d1";' in spec
    assert '"artifact d1" -> "stage sft";' in spec
    assert '"stage sft"' not in lineage.dot(edges, {}, {}, hidden=("sft",))


def point(step: int, mean: float, seconds: float = 0) -> CurvePoint:
    at = datetime(2026, 11, 22, tzinfo=UTC) + timedelta(seconds=seconds)
    return CurvePoint(step, step, at, mean, mean, mean)


def test_curves_stand_over_steps_time_and_tokens():
    loss = {"a": [point(1, 2.0), point(5, 1.0, 600)], "b": [point(2, 3.0, 60), point(3, inf, 90)]}
    tokens = {"a": [point(1, 100.0), point(9, 900.0)]}

    assert curves.by_step(loss)["x"].tolist() == [1, 5, 2, 3]
    assert curves.by_step(loss)["value"].isna().tolist() == [False, False, False, True]
    data, axis = curves.by_time(loss)
    assert (data["x"].tolist(), axis) == ([0, 10, 0, 0.5], "minutes since the first step")
    counted = curves.by_tokens(loss, tokens)  # of b none are known
    assert (counted["x"].tolist(), set(counted["series"])) == ([100, 500], {"a"})


def test_smoothing_is_of_each_curve_by_itself():
    data = curves.by_step({"a": [point(1, 1.0), point(2, 3.0)], "b": [point(1, 9.0)]})

    assert curves.smoothed(data, 0.5)["value"].tolist() == pytest.approx([1, 7 / 3, 9])
    assert curves.smoothed(data, 0.0)["value"].tolist() == [1, 3, 9]


def test_fields_in_which_recipes_differ_stand_beside_their_runs():
    first = {"name": "a", "seed": 1, "dpo": {"beta": 5}, "sft": {"epochs": 1, "rows": 8}}
    other = {"name": "b", "seed": 2, "dpo": {"beta": 2}, "sft": {"epochs": 2, "rows": 8}}

    found = differences.between([first, other, first], "sft")

    assert list(found.items()) == [("sft.epochs", [1, 2, 1]), ("dpo.beta", [5, 2, 5])]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("dpo.beta", "5"),
        ("evaluate.tasks[math].limit", "40"),
        ("evaluate.tasks.math.limit", "40"),
        ("evaluate.tasks[Math-1.5].limit", "20"),
        ("evaluate.tasks.0.name", "math"),
        ("dpo.betta", "–"),
        ("dpo.beta.more", "–"),
    ],
)
def test_a_field_of_a_recipe_is_found_by_its_path(path, value):
    tasks = [{"name": "math", "limit": 40}, {"name": "math-1.5", "limit": 20}]
    recipe = {"dpo": {"beta": 5}, "evaluate": {"tasks": tasks}}

    assert shown_value(differences.value_at(recipe, path)) == value


@pytest.mark.parametrize(
    ("word", "holds"),
    [
        ("dpo.learning_rate=1e-6", True), ("DPO.learning_rate=1.0E-06", True),
        ("dpo.learning_rate=0.000001", True), ("dpo.learning_rate=2e-6", False),
        ("dpo.beta=2.0", True), ("dpo.beta=2", True), ("dpo.beta=two", False),
        ("dpo.loss_type=Sigmoid", True), ("dpo.bf16=true", True), ("dpo.bf16=1", False),
        ("dpo.save_steps=200", True), (f"dpo.data=/{50 * 'x'}/Pairs", True),
    ],
)  # fmt: skip
def test_a_field_is_asked_for_in_any_writing_of_its_value(word, holds):
    dpo = {"learning_rate": 1e-06, "beta": 2.0, "loss_type": "sigmoid", "bf16": True,
           "save_steps": 200, "data": f"/{50 * 'x'}/pairs"}  # fmt: skip
    ((said, field),) = runs.searched(word, [], [], "").fields
    assert (said, field.section, field.holds(dpo)) == (word, "dpo", holds)


def test_length_bias_by_hand():
    pairs = pd.DataFrame({"chosen_words": [5, 3, 4, 10], "rejected_words": [3, 3, 6, 4]})

    assert preferences.length_bias(pairs) == (0.625, 1.5)  # two longer, one tie; (2+0-2+6)/4
    bins = preferences.length_histogram(pairs)
    assert bins["count"].sum() == 4
    assert not ((bins["low"] < 0) & (bins["high"] > 0)).any()


def test_one_pair_has_a_histogram():
    pairs = pd.DataFrame({"chosen_words": [5], "rejected_words": [5]})

    assert preferences.length_histogram(pairs)["count"].sum() == 1


def test_metrics_that_are_looked_for_first_come_first():
    logged = ["completions/mean_length", "grad_norm", "loss/policy", "objective/kl",
              "objective/verified", "reward", "reward_std", "rewards/code/mean"]  # fmt: skip
    assert by_interest(logged)[:5] == [
        "reward", "objective/verified", "objective/kl", "completions/mean_length", "loss/policy"
    ]  # fmt: skip
    counted = by_interest(["loss_spikes", "learning_rate", "loss", "num_tokens", "perf/mfu"])
    assert counted == ["loss", "learning_rate", "perf/mfu", "loss_spikes", "num_tokens"]


def test_a_change_is_paired_on_the_instances_that_both_have():
    before = {"a": 0.0, "b": 0.0, "c": 1.0, "x": 1.0}
    after = {"a": 1.0, "b": 0.0, "c": 1.0, "y": 0.0, "z": float("nan")}

    change = evaluation.paired_change(before, after)

    assert change is not None
    assert change.value == pytest.approx(1 / 3)
    assert change.n == 3
    assert evaluation.paired_change({"a": 1.0}, {"a": 0.0}) is None


def test_undecided_instances_can_be_asked_for_where_there_are_any():
    rows = pd.DataFrame({"score": [1.0, 0.0, float("nan")], "judged": False})

    assert evaluation.filters(rows, False) == ["All", "Right", "Wrong", "Undecided"]
    assert evaluation.filters(rows[:2], False) == ["All", "Right", "Wrong"]
    found = [len(evaluation.matching(rows, None, w)) for w in ("right", "wrong", "undecided")]
    assert found == [1, 1, 1]


def test_times_are_written_for_people():
    now = datetime(2026, 11, 22, 12, tzinfo=UTC)

    assert [text.duration(s) for s in (None, 0.03, 0.25, 59.4, 192, 3600, 7512)] == [
        "–", "< 0.1 s", "0.2 s", "59 s", "3 min 12 s", "1 h", "2 h 5 min",
    ]  # fmt: skip
    assert text.ago(now - timedelta(hours=49), now) == "2 days ago"
    assert text.signed_points(-0.0123) == "−1.2"


def test_weighed_options_stand_as_they_are_with_their_probabilities_the_true_ones_marked():
    shown = replies.answer("sft", WEIGHED, replies.replies([WEIGHED], marks=True)[0])
    assert (
        '<span class="cv-right">75.0%</span> <span class="cv-text">it &lt;is&gt;</span>'
        in "".join(shown)
    )
    assert '<span class="cv-wrong">25.0%</span> <span class="cv-text">it  is not</span>' in "".join(
        shown
    )


WEIGHED = ScoredCompletion(
    task="truth",
    id="truth/1",
    messages=(Message(role="user", content="is it?"),),
    ground_truth=["it <is>"],
    completion="it <is>",
    finish_reason="stop",
    score=0.75,
    log_likelihoods={"it <is>": log(0.03), "it  is not": log(0.01)},
)
