"""Tasks: loading, from small files written here and from the public ones where they lie."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caravan.errors import DataError, RecipeError
from caravan.evals.scoring import WEIGHINGS
from caravan.evals.tasks import TASKS, FromFiles, definition_of, load_instances
from caravan.recipe import EvalTask
from caravan.verifiers import verify

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
DATA = Path(os.environ.get("CARAVAN_TEST_DATA", SHARED)) / "eval"


def task(name: str, path: str | None = None, **values: Any) -> EvalTask:
    return EvalTask(name=name.replace("_", "-"), task=name, path=path, **values)


def load(name: str, path: Path, **values: Any) -> list[Any]:
    return TASKS[name].load(task(name, path.name, **values), 0, path.parent)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_gsm8k_with_shots_as_turns(tmp_path: Path) -> None:
    path = write(
        tmp_path / "test.jsonl", {"question": "1 + 1?", "answer": "So <<1+1=2>>2.\n#### 2"}
    )
    (instance,) = load("gsm8k", path, num_fewshot=8)
    assert [m.role for m in instance.messages] == ["user", "assistant"] * 8 + ["user"]
    assert instance.messages[1].content.endswith("The answer is 6.")
    assert (instance.messages[-1].content, instance.ground_truth) == ("1 + 1?", "2")
    with pytest.raises(DataError, match="num_fewshot is 9, but there are 8"):
        load("gsm8k", path, num_fewshot=9)


def test_the_worked_examples_of_math_are_right_by_our_verifier(tmp_path: Path) -> None:
    path = write(tmp_path / "test.jsonl", {"problem": "1/2?", "solution": r"\boxed{\frac12}"})
    (instance,) = load("math", path, num_fewshot=4)
    assert len(instance.messages) == 9
    for shot in instance.messages[1::2]:
        assert shot.content.endswith("I hope it is correct.")
    assert instance.ground_truth == r"\frac12"


def test_ifeval_drops_the_empty_arguments_of_the_hub_version(tmp_path: Path) -> None:
    row = {
        "key": 7,
        "prompt": "Write.",
        "instruction_id_list": ["keywords:existence"],
        "kwargs": [{"keywords": ["fox"], "num_words": None}],
    }
    (instance,) = load("ifeval", write(tmp_path / "input_data.jsonl", row))
    assert instance.id == "ifeval/7"
    assert instance.ground_truth == [{"id": "keywords:existence", "kwargs": {"keywords": ["fox"]}}]


def test_mmlu_by_subject_with_shots(tmp_path: Path) -> None:
    for part in ("test", "dev"):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"sky_{part}.csv").write_text('"Is it, then, blue?",a,b,c,d,B\r\n')
    (instance,) = TASKS["mmlu"].load(task("mmlu", ".", num_fewshot=1), 0, tmp_path)
    assert (instance.id, instance.skill, instance.ground_truth) == ("mmlu/sky/0", "sky", "B")
    assert instance.messages[1].content == "The answer is (B)."
    assert "Is it, then, blue?\n(A) a\n(B) b" in instance.messages[2].content
    (tmp_path / "test" / "sky_test.csv").write_text("too,few\n")
    with pytest.raises(DataError, match=r"sky_test\.csv, row 1: not question"):
        TASKS["mmlu"].load(task("mmlu", "."), 0, tmp_path)


def test_bbh_reads_the_published_prompts(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "cot-prompts").mkdir()
    examples = {"examples": [{"input": "not True is", "target": "False"}]}
    (tmp_path / "tasks/logic.json").write_text(json.dumps(examples))
    (tmp_path / "cot-prompts/logic.txt").write_text(
        "BENCHMARK DATA. canary GUID x\n-----\nEvaluate.\n\nQ: True is\nA: Let's think.\nSo the "
        "answer is True.\n\nQ: False is\nA: So the answer is False."
    )
    (instance,) = TASKS["bbh"].load(task("bbh", ".", num_fewshot=2), 0, tmp_path)
    assert [m.content for m in instance.messages] == [
        "Evaluate.\n\nQ: True is",
        "Let's think.\nSo the answer is True.",
        "Evaluate.\n\nQ: False is",
        "So the answer is False.",
        "Evaluate.\n\nQ: not True is",
    ]


def test_popqa_and_drop(tmp_path: Path) -> None:
    popqa = tmp_path / "popQA.tsv"
    answers = '"[""Paris"", ""City of Light""]"'
    popqa.write_text("id\tquestion\tpossible_answers\n" + f"1\tCapital?\t{answers}\n" * 3)
    instances = load("popqa", popqa, num_fewshot=2)
    assert (len(instances), len(instances[0].messages)) == (1, 5)
    assert verify("contains", "It is paris.", instances[0].ground_truth).correct
    answer = {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": ["a", "b"]}
    pair = {"query_id": "q", "question": "Who?", "answer": answer}
    drop = tmp_path / "drop.json"
    drop.write_text(json.dumps({"p": {"passage": "a and b", "qa_pairs": [pair]}}))
    assert load("drop", drop)[0].ground_truth == ["a, b"]


def test_mmlu_pro_has_up_to_ten_options(tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    row = {
        "question_id": 70,
        "question": "Which?",
        "options": list("abcdefghij"),
        "answer": "I",
        "answer_index": 8,
        "cot_content": "",
        "category": "business",
        "src": "ori_mmlu-business_ethics",
    }
    path = tmp_path / "test-00000-of-00001.parquet"
    parquet.write_table(Table.from_pylist([row]), path)
    (instance,) = load("mmlu_pro", path)
    assert (instance.id, instance.skill) == ("mmlu_pro/70", "business")
    asked = instance.messages[0].content
    assert "(I) i\n(J) j" in asked
    assert 'finish with "Therefore, the answer is (X)"' in asked
    assert verify("choice", "Therefore, the answer is (I)", instance.ground_truth).correct
    write(tmp_path / "test.jsonl", row | {"answer": "K"})
    with pytest.raises(DataError, match="mmlu_pro/70: 'K' is none of its 10 options"):
        load("mmlu_pro", tmp_path / "test.jsonl")


def test_gpqa_shuffles_its_options_by_the_question(tmp_path: Path) -> None:
    path = tmp_path / "gpqa_main.csv"
    answers = "Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3"
    rows = [f'rec{i},Physics,"Which, {i}?","yes\n",no,none,never\n' for i in range(30)]
    path.write_text(f"Record ID,High-level domain,Question,{answers}\n" + "".join(rows))
    instances = load("gpqa", path)
    for instance in instances:
        assert f"({instance.ground_truth}) yes" in instance.messages[0].content
    assert {i.ground_truth for i in instances} == set("ABCD")
    assert instances[0].skill == "Physics"
    later = load("gpqa", path, limit=3)
    assert all(instance in instances for instance in later)


def test_agieval_takes_the_english_choices_with_their_passages(tmp_path: Path) -> None:
    from caravan.evals.exams import AGIEVAL_ENGLISH

    row = {"passage": "It rains.", "question": "Wet?", "options": ["(A)yes", "   (B)no"]}
    for test in AGIEVAL_ENGLISH:
        write(tmp_path / f"{test}.jsonl", row | {"label": "B", "other": None})
    write(tmp_path / "sat-en-without-passage.jsonl", row | {"passage": None, "label": "A"})
    write(tmp_path / "aqua-rat.jsonl", row | {"passage": None, "label": "A"})
    instances = TASKS["agieval_english"].load(task("agieval_english", "."), 0, tmp_path)
    assert [i.skill for i in instances] == list(AGIEVAL_ENGLISH)
    aqua, gaokao = instances[:2]
    assert aqua.messages[0].content.endswith("Question: Wet?\n(A) yes\n(B) no")
    assert "\n\nIt rains.\n\nQuestion: Wet?" in gaokao.messages[0].content
    assert (aqua.ground_truth, gaokao.ground_truth) == ("A", "B")
    (tmp_path / "sat-math.jsonl").unlink()
    with pytest.raises(DataError, match=r"cannot read .*sat-math\.jsonl"):
        TASKS["agieval_english"].load(task("agieval_english", "."), 0, tmp_path)


def test_deepmind_mathematics_draws_the_same_of_each_category(tmp_path: Path) -> None:
    folder = tmp_path / "interpolate"
    folder.mkdir()
    for name in ("algebra__linear_1d", "comparison__pair"):
        lines = [f"Which is {name} {i}?\n{1000 + i}\n" for i in range(130)]
        (folder / f"{name}.txt").write_text("".join(lines))
    instances = load("deepmind_mathematics", folder)
    assert len(instances) == 200
    assert {i.skill for i in instances} == {"algebra__linear_1d", "comparison__pair"}
    drawn = {i.ground_truth for i in instances if i.skill == "comparison__pair"}
    examples = instances[-1].messages[0].content.partition("look like: ")[2].partition(".")[0]
    assert len(examples.split("; ")) == 3
    assert not set(examples.split("; ")) & drawn, "an example answers no question that is asked"
    assert instances == load("deepmind_mathematics", folder)
    assert TASKS["deepmind_mathematics"].macro
    said = "So r is 4.\nTherefore, the final answer is $4$. I hope it is correct."
    assert verify(TASKS["deepmind_mathematics"].metrics[0].verifier, said, "4").correct
    (folder / "broken.txt").write_text("Which?\n")
    with pytest.raises(DataError, match=r"broken\.txt: .* one line too many"):
        load("deepmind_mathematics", folder)


def test_the_limit_takes_the_same_instances_whatever_the_seed(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(50)]
    path = write(tmp_path / "test.jsonl", *rows)
    config = task("gsm8k", path.name, limit=10)
    one, other = (TASKS["gsm8k"].load(config, seed, tmp_path) for seed in (1, 2))
    assert one == other
    assert len(one) == 10
    assert [int(i.ground_truth) for i in one] == sorted(int(i.ground_truth) for i in one)


def test_missing_files_say_where_to_put_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'gsm8k' reads files: set its `path` to test\.jsonl"):
        TASKS["gsm8k"].load(task("gsm8k"), 0, tmp_path)
    with pytest.raises(DataError, match=r"nowhere is not there; put test\.jsonl there"):
        TASKS["gsm8k"].load(task("gsm8k", "nowhere"), 0, tmp_path)
    broken = tmp_path / "test.jsonl"
    broken.write_text('{"question": "a", "answer": "#### 1"}\n{"question": "b"\n')
    with pytest.raises(DataError, match=r"test\.jsonl, row 2: not JSON"):
        load("gsm8k", broken)
    with pytest.raises(DataError, match=r"row 1: no field 'answer'"):
        load("gsm8k", write(broken, {"question": "a"}))


def test_rows_of_any_format_are_questions_of_ones_own(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3 + 3?"}]
    answered = [*messages, {"role": "assistant", "content": "6"}]
    path = write(
        tmp_path / "sums.jsonl",
        {"prompt": "7 + 5?", "ground_truth": "12"},
        {"question": "1 + 5?", "answer": 6, "id": "easy", "skill": "one digit"},
        {"messages": answered, "ground_truth": "6"},
    )
    config = EvalTask(name="own", task="verify", verifier="gsm8k", path=path.name)
    instances = TASKS["verify"].load(config, 0, tmp_path)

    assert [(i.id, i.ground_truth, i.skill) for i in instances] == [
        ("sums/0", "12", ""), ("sums/easy", 6, "one digit"), ("sums/2", "6", "")
    ]  # fmt: skip
    assert [[m.content for m in i.messages] for i in instances] == [
        ["7 + 5?"], ["1 + 5?"], ["Be brief.", "3 + 3?"]
    ]  # fmt: skip
    (metric,) = definition_of(config).metrics
    assert (metric.verifier, metric.count) == ("gsm8k", "score")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "7 + 5?"}, "row 2: no column 'ground_truth' or 'answer'"),
        ({"answer": "1"}, "row 2: none of the columns messages, "),
        ({"prompt": "7 + 5?", "answer": "12", "id": "a"}, "an earlier row has the id 'a' too"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path: Path, row, message: str) -> None:
    path = write(tmp_path / "sums.jsonl", {"prompt": "2?", "answer": "2", "id": "a"}, row)
    with pytest.raises(DataError, match=message):
        load("verify", path, verifier="gsm8k")


def test_a_rows_number_that_is_the_id_of_another_is_named(tmp_path: Path) -> None:
    row = {"prompt": "2?", "answer": "2"}
    path = write(tmp_path / "sums.jsonl", row | {"id": 1}, row)
    with pytest.raises(DataError, match="row 2: an earlier row has the id 1 too"):
        load("verify", path, verifier="gsm8k")


def test_questions_of_ones_own_may_have_options(tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.jsonl",
        {"prompt": "Water is", "options": ["wet.", "dry."], "answer": "wet."},
        {"prompt": "2 is", "options": ["even", "odd", "prime"], "ground_truth": ["even", "prime"]},
    )
    found = TASKS["weigh"].load(task("weigh", path.name), 0, tmp_path)
    assert [(i.options, i.ground_truth) for i in found] == [
        (("wet.", "dry."), ["wet."]), (("even", "odd", "prime"), ["even", "prime"])
    ]  # fmt: skip
    # "Water is" alone is in many a training prompt.
    assert found[0].question == "Water is\nwet.\ndry."
    table = tmp_path / "own.csv"
    table.write_text(
        'id,prompt,options,answer\n,Water is,"[""wet."", ""dry.""]",wet.\n'
        ',2 is,"[""even"", ""odd"", ""prime""]","[""even"", ""prime""]"\n'
    )
    of_csv = TASKS["weigh"].load(task("weigh", table.name), 0, tmp_path)
    assert of_csv == found


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"options": None}, "row 2: options has to be a list of two texts or more"),
        ({"options": ["wet.", "dry.", "wet."]}, "row 2: options has 'wet.' more than once"),
        ({"options": ["wet.", ""]}, "row 2: options has to be a list of two texts"),
        ({"options": ["wet.", "\n "]}, "row 2: options .* none of them blank"),
        ({"options": [7, 8]}, r"row 2: options has to be a list of two texts .*: \[7, 8\]"),
        ({"answer": "Wet"}, "row 2: ground_truth has to be the text of .*: 'Wet'"),
        ({"answer": "x" * 5000}, "row 2: ground_truth has to be .*: 'x{79}$"),
        ({"answer": 0}, "row 2: ground_truth has to be the text of one of the options"),
        (
            {"options": ["7", "8"], "answer": [7]},
            "row 2: ground_truth has to be the text of one of the options",
        ),
        ({"answer": []}, "row 2: ground_truth has to be the text of one of the options"),
        ({"answer": ["wet.", "dry."]}, "row 2: ground_truth .* but not of all"),
        ({"answer": " "}, "row 2: no column 'ground_truth' or 'answer' says what is right"),
    ],
)
def test_options_that_cannot_be_compared_are_named(tmp_path: Path, changed, message: str) -> None:
    row = {"prompt": "Water is", "options": ["wet.", "dry."], "answer": "wet."}
    path = write(tmp_path / "own.jsonl", row, row | changed)
    with pytest.raises(DataError, match=message):
        load("weigh", path)


def test_the_likeliest_option_is_that_of_lm_evaluation_harness() -> None:
    """Which takes the greatest sum, and the greatest sum for a character."""
    known = {"no": -3.0, "a long one": -4.0, "longer, but not likely": -40.0}
    sums = np.array(list(known.values()))
    lengths = np.array([float(len(option)) for option in known])
    for index, option in enumerate(known):
        assert WEIGHINGS["acc"](known, [option]) == (np.argmax(sums) == index)
        assert WEIGHINGS["acc_norm"](known, [option]) == (np.argmax(sums / lengths) == index)
    assert WEIGHINGS["mc2"](known, ["no", "a long one"]) == pytest.approx(1.0)


def test_a_ground_truth_that_the_verifier_cannot_use_is_named_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "sums.jsonl", {"prompt": "2?", "answer": "two", "id": "a"})
    config = task("verify", path.name, verifier="gsm8k")
    with pytest.raises(DataError, match="'verify': sums/a: gsm8k: ground truth 'two' holds no"):
        load_instances(config, 0, tmp_path)


def test_an_unknown_task_is_named_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="no evaluation task 'gms8k'; did you mean 'gsm8k'"):
        TASKS["gms8k"]


@pytest.mark.parametrize(
    "name", ["pocket-math", "pocket-constraints", "pocket-atlas", "pocket-lists", "pocket-chat"]
)
def test_pocket_tasks_do_not_depend_on_the_seed_and_have_fitting_truths(name: str) -> None:
    one, other = (TASKS[name].load(task(name, limit=30), seed) for seed in (1, 2))
    assert one == other
    assert len({i.id for i in one}) == 30
    assert TASKS[name].judged == (not TASKS[name].metrics)
    for metric in TASKS[name].metrics:
        for instance in one:
            assert verify(metric.verifier, "", instance.ground_truth).score < 1


FILES = [
    ("gsm8k", "gsm8k/test.jsonl", 8, 1319),
    ("math", "math/test.jsonl.gz", 4, 5000),
    ("math", "math/math500.jsonl", 0, 500),
    ("ifeval", "ifeval/input_data.jsonl", 0, 541),
    ("mmlu", "mmlu", 5, 14042),
    ("bbh", "bbh", 3, 6511),
    ("humaneval", "humaneval/HumanEval.jsonl.gz", 0, 164),
    ("humaneval_plus", "humaneval/HumanEvalPlus-OriginFmt.jsonl.gz", 0, 164),
    ("truthfulqa", "truthfulqa/mc_task.json", 0, 817),
    ("truthfulqa_mc2", "truthfulqa/mc_task.json", 0, 817),
    ("agieval_english", "agieval", 0, 2646),
    ("alpaca_eval", "alpaca_eval/text_davinci_003_model_outputs.json", 0, 805),
]


@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not here")
@pytest.mark.parametrize(("name", "path", "shots", "count"), FILES)
def test_public_files_load_whole(name: str, path: str, shots: int, count: int) -> None:
    instances = TASKS[name].load(task(name, path, num_fewshot=shots), 0, DATA)
    assert len({instance.id for instance in instances}) == count
    assert all(len(i.messages) == 1 + 2 * shots for i in instances)
    assert all(i.messages[-1].role == "user" for i in instances)


@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not here")
def test_the_worked_examples_of_bbh_meet_our_extraction() -> None:
    found = TASKS["bbh"].load(task("bbh", "bbh", num_fewshot=3, limit=200), 0, DATA)
    for instance in found:
        for shot in instance.messages[1:-1:2]:
            answer = shot.content.rpartition("answer is ")[2]
            assert verify("bbh", shot.content, answer.strip().removesuffix(".")).correct


@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not here")
def test_humaneval_scores_its_own_solutions_through_the_task() -> None:
    instances = TASKS["humaneval"].load(
        task("humaneval", "humaneval/HumanEval.jsonl.gz", limit=5), 0, DATA
    )
    with gzip.open(DATA / "humaneval/HumanEval.jsonl.gz", "rt") as lines:
        solutions = {r["task_id"]: r["canonical_solution"] for r in map(json.loads, lines)}
    for instance in instances:
        completion = f"```python\n{instance.ground_truth['prompt']}{solutions[instance.id]}\n```"
        assert verify("code", completion, instance.ground_truth).correct


TRUTHFUL = {
    "question": "What happens if you eat a pomegranate?",
    "mc1_targets": {"Nothing.": 1, "You will die.": 0},
    "mc2_targets": {"Nothing.": 1, "You will digest it.": 1, "You will die.": 0},
}


def test_mc2_is_asked_in_one_turn_with_all_options(tmp_path: Path) -> None:
    (tmp_path / "mc.json").write_text(json.dumps([TRUTHFUL]))
    (found,) = TASKS["truthfulqa_mc2"].load(
        task("truthfulqa_mc2", "mc.json", num_fewshot=6), 0, tmp_path
    )
    (turn,) = found.messages
    assert turn.content.startswith("Q: What is human life expectancy in the United States?\nA: Hum")
    assert turn.content.endswith(
        "Barcelona, Spain.\n\nQ: What happens if you eat a pomegranate?\nA:"
    )
    assert found.options == ("Nothing.", "You will digest it.", "You will die.")
    assert found.ground_truth == ["Nothing.", "You will digest it."]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({**TRUTHFUL, "mc2_targets": {"Nothing.": 1}}, "row 1: mc2_targets needs true options and"),
        ({k: v for k, v in TRUTHFUL.items() if k != "mc2_targets"}, "row 1: no field 'mc2_targets"),
        ({**TRUTHFUL, "mc2_targets": None}, "row 1: mc2_targets is not a mapping .*: None"),
        ({**TRUTHFUL, "mc2_targets": {"choices": ["a"], "labels": [1]}}, "not a mapping from opt"),
        ({**TRUTHFUL, "mc2_targets": {"a": "1", "b": "0"}}, "mc2_targets is not a mapping"),
        ({**TRUTHFUL, "mc2_targets": {"": 1, "b": 0}}, "mc2_targets is not a mapping"),
        ({**TRUTHFUL, "mc1_targets": ["Nothing."]}, "row 1: mc1_targets is not a mapping"),
        ({**TRUTHFUL, "question": None}, "row 1: question is not text: None"),
    ],
)
def test_mc2_without_options_to_compare_is_an_error(tmp_path: Path, row: Any, problem: str) -> None:
    (tmp_path / "mc.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=problem):
        TASKS["truthfulqa_mc2"].load(task("truthfulqa_mc2", "mc.json"), 0, tmp_path)


def test_the_documentation_has_every_task_that_reads_files() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    tables = "\n".join(line for line in page.splitlines() if line.startswith("| `"))
    files = {name for name, definition in TASKS.items() if isinstance(definition.load, FromFiles)}
    assert len(files) > 20
    assert not {name for name in files if f"`{name}`" not in tables}


def test_mc1_without_a_true_option_is_an_error(tmp_path: Path) -> None:
    row = {**TRUTHFUL, "mc1_targets": {"Nothing.": 0, "You will die.": 0}}
    (tmp_path / "mc.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match="row 1: mc1_targets needs one true option"):
        TASKS["truthfulqa"].load(task("truthfulqa", "mc.json"), 0, tmp_path)
