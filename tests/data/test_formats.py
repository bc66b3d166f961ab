import gzip
import json
import os
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.data.formats import AskedRow, Labels, read_hub, read_raw, split_turns, to_conversation
from caravan.errors import DataError, MissingExtraError
from caravan.recipe import HubSource


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


LABELS = Labels(source="s", skill="chat", license="MIT", verifier="gsm8k")


def convert(row: dict) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in to_conversation(row, "s/0", LABELS).messages]


QUESTION_AND_ANSWER = [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversations": [{"role": "user", "content": "q"}, {"role": "model", "content": "a"}]},
        {"prompt": "q", "completion": "a"},
        {
            "prompt": [{"role": "user", "content": "q"}],
            "completion": [{"role": "assistant", "content": "a"}],
        },
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "context": "", "response": "a"},
        {"prompt": "q", "response": "a"},
        {"prompt": "q", "response": [{"role": "assistant", "content": "a"}]},
        {"question": "q", "answer": "a"},
        {"prompt": "Task: q. Reply: a", "instruction": "q", "output": "a"},
        {"text": "<|user|>\nq\n<|assistant|>\na"},
        {"text": "### Human: q### Assistant: a"},
        {"text": "\n\nHuman: q\n\nAssistant: a"},
        {"messages": None, "prompt": "q", "completion": "a"},
        {"prompt": "q", "response": "", "output": "a"},
    ],
)
def test_every_format_gives_the_same_conversation(row):
    assert convert(row) == QUESTION_AND_ANSWER


def test_an_empty_reply_is_none_as_in_a_csv_of_prompts_and_truths():
    row = {"prompt": "5 + 0?", "response": "", "ground_truth": "5"}
    assert convert(row) == [("user", "5 + 0?")]


def test_system_input_and_history_of_alpaca():
    row = {
        "instruction": "q2",
        "input": "data",
        "output": "a2",
        "system": "S",
        "history": [["q1", "a1"]],
    }
    assert convert(row) == [
        ("system", "S"),
        ("user", "q1"),
        ("assistant", "a1"),
        ("user", "q2\n\ndata"),
        ("assistant", "a2"),
    ]
    shared = {"system": "S", "conversations": [{"from": "human", "value": "q"}]}
    assert convert(shared) == [("system", "S"), ("user", "q")]


@pytest.mark.parametrize("prompt", ["instruction", "prompt", "question"])
@pytest.mark.parametrize("context", ["input", "context"])
@pytest.mark.parametrize("reply", ["completion", "response", "output", "answer"])
def test_what_a_question_is_about_follows_it_and_no_column_is_unread(prompt, context, reply):
    row = AskedRow({prompt: "q", context: "data", reply: "a"})
    made = to_conversation(row, "s/0", LABELS)
    assert [m.content for m in made.messages] == ["q\n\ndata", "a"]
    assert not list(row.unread())


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({"prompt": "q", "reply": "a", "category": "x", "nothing": None}, {"reply", "category"}),
        ({"prompt": "q", "completion": "a", "response": "b"}, {"response"}),
        ({"messages": [{"role": "user", "content": "q"}], "prompt": "q"}, {"prompt"}),
        ({"prompt": "q", "ground_truth": "3", "dataset": "gsm8k", "persona": "p"}, set()),
        (
            {"messages": [
                {"role": "user", "content": "q", "name": None, "tool_calls": []},
                {"role": "assistant", "content": "a", "weight": 0, "reasoning_content": "so"},
            ]},
            {"messages[].weight", "messages[].reasoning_content"},
        ),
        ({"conversations": [{"from": "human", "value": "q"}], "output": []}, set()),
        ({"prompt": "q", "completion": "a", "label": True}, set()),
        ({"prompt": "q", "completion": "a", "label": 0}, {"label"}),
        ({"prompt": "q", "completion": "a", "label": "sports"}, {"label"}),
        ({"prompt": "q", "ground_truth": [{"instruction_id": "x"}], "verifier": "ifeval"}, set()),
    ],
)  # fmt: skip
def test_columns_that_nothing_reads_are_named(row, unread):
    asked = AskedRow(row)
    to_conversation(asked, "s/0", LABELS)
    assert set(asked.unread()) == unread


def test_turns_of_a_text_are_found_at_markers_only():
    assert [(m.role, m.content) for m in split_turns("Human: a\nnot Human: b\nAssistant: c")] == [
        ("user", "a\nnot Human: b"),
        ("assistant", "c"),
    ]
    with pytest.raises(DataError, match="marks no turns"):
        split_turns("Once upon a time")


@pytest.mark.parametrize(
    ("row", "verifier", "ground_truth"),
    [
        ({"ground_truth": "3", "dataset": "MATH"}, "math", "3"),
        ({"ground_truth": ["3"], "dataset": ["gsm8k"]}, "gsm8k", "3"),
        ({"ground_truth": "3"}, "gsm8k", "3"),  # the source's
        ({"ground_truth": [{"id": "x"}], "verifier": "ifeval"}, "ifeval", [{"id": "x"}]),
        ({"reward_model": {"ground_truth": "3"}, "data_source": "gsm8k"}, "gsm8k", "3"),
        ({}, None, None),
        ({"ground_truth": "", "verifier": "math"}, None, None),  # an empty cell
        ({"dataset": "some-mixture"}, None, None),
    ],
)  # fmt: skip
def test_verifier_and_ground_truth(row, verifier, ground_truth):
    made = to_conversation({"messages": [{"role": "user", "content": "q"}], **row}, "s/0", LABELS)
    assert (made.verifier, made.ground_truth) == (verifier, ground_truth)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"query": "q"}, r"none of the columns messages.*the row has query"),
        ({}, "the row has none"),
        ({"messages": []}, r"'messages' holds no message"),
        ({"messages": "q"}, "not a list"),
        ({"messages": ["q"]}, r"messages\[0\] has no 'role' and 'content'"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] has no"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\]: unknown role 'tool'"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, r"conversations\[0\]: unknown role"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "'content' is not text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "no user's turn"),
        ({"prompt": 3}, "not a list"),
        ({"prompt": "q", "completion": float("nan")}, "column 'completion' is not text"),
        ({"instruction": 3}, "'instruction' is not text"),
        ({"prompt": "q", "persona": 3}, "field 'persona'"),
        ({"prompt": "q", "ground_truth": ["1", "2"], "dataset": ["a", "b"]}, "names 2 verifiers"),
        ({"conversations": 3}, "'conversations' is not a list"),
        ({"conversations": {"a": 1}}, "'conversations' is not a list"),
        ({"conversations": [3]}, r"conversations\[0\] has no 'role' and 'content'"),
        ({"conversations": [None]}, r"conversations\[0\] has no 'role' and 'content'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, r"unknown role \['user'\]"),
        ({"messages": [{"role": {}, "content": "x"}]}, r"unknown role \{\}"),
        ({"instruction": "a", "input": 5, "output": "b"}, "'input' is not text"),
        ({"instruction": "a", "system": 5}, "'system' is not text"),
        ({"instruction": "a", "history": [[1, 2]]}, r"history\[0\] is not \[question, answer\]"),
        ({"instruction": "a", "history": [["q", "a"], "qa"]}, r"history\[1\] is not"),
        ({"instruction": "a", "history": 7}, "'history' is not a list"),
        ({"prompt": "a", "ground_truth": "3", "dataset": {"a": 1}}, "name .* is not text"),
        ({"prompt": "a", "ground_truth": ["3"], "dataset": [["a"]]}, "name .* is not text"),
        ({"prompt": "a", "ground_truth": float("inf")}, "column ground_truth is inf, which is no"),
        ({"prompt": "a", "ground_truth": [1, {"k": float("nan")}]}, r"ground_truth\[1\].k is nan"),
        ({"prompt": "a", "ground_truth": Decimal("NaN")}, "ground_truth is NaN"),
        ({"prompt": "a", "reward_model": {"ground_truth": float("nan")}}, "ground_truth is nan"),
        ({"prompt": "a", "ground_truth": {"a": "\ud800"}}, "ground_truth.a is not text in UTF-8"),
        ({"prompt": "a", "ground_truth": b"\xff"}, "ground_truth is not text in UTF-8"),
        ({"prompt": "a", "ground_truth": nested(500)}, "is too deeply nested; correct or remove"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(row, said):
    with pytest.raises(DataError, match=said):
        convert(row)


SHAPES = st.recursive(
    st.none() | st.integers() | st.sampled_from(["user", "human", "x", ""]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), inner)
    ),
    max_leaves=6,
)
COLUMNS = [
    "messages", "conversations", "prompt", "completion", "instruction", "input", "output", "system",
    "history", "text", "ground_truth", "verifier", "dataset", "reward_model", "persona",
]  # fmt: skip


@given(st.dictionaries(st.sampled_from(COLUMNS), SHAPES))
def test_a_row_of_any_shape_is_a_conversation_or_a_data_error(row):
    with suppress(DataError):
        convert(row)


ROWS = [
    {"prompt": "q\u2028é", "completion": "a", "n": 1},
    {"prompt": "2", "completion": "b", "n": 2},
]


def write(path: Path, rows: list[dict]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    match path.name.split(".", 1)[1]:
        case "jsonl" | "lines.json":
            path.write_text(lines, encoding="utf-8")
        case "bom.jsonl":
            path.write_text("\n" + lines.replace("\n", "\r\n"), encoding="utf-8-sig")
        case "json":
            path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        case "jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode()))
        case "json.gz":
            path.write_bytes(gzip.compress(json.dumps(rows).encode()))
        case "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    "name",
    ["r.jsonl", "r.lines.json", "r.bom.jsonl", "r.json", "r.jsonl.gz", "r.json.gz", "r.parquet"],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str):
    write(tmp_path / name, ROWS)
    assert [row for _, row in read_raw(tmp_path / name)] == ROWS


def test_csv_with_newlines_in_cells(tmp_path: Path):
    (tmp_path / "r.csv").write_bytes(b'prompt,completion\r\n"a\r\nb",c\r\n')
    assert list(read_raw(tmp_path / "r.csv")) == [(1, {"prompt": "a\r\nb", "completion": "c"})]
    (tmp_path / "twice.csv").write_text("prompt,response,prompt\na,b,c\n")
    with pytest.raises(DataError, match=r"twice.csv: more than one column is called 'prompt'"):
        list(read_raw(tmp_path / "twice.csv"))
    (tmp_path / "bad.csv").write_text("prompt,completion\na\n")
    with pytest.raises(DataError, match="row 1: more or fewer columns"):
        list(read_raw(tmp_path / "bad.csv"))


@pytest.mark.parametrize(
    "text", ['q,"never closed\np,b\n', '"said \\"so\\"",b\n', '"q" ,b\n'],
)  # fmt: skip
def test_csv_whose_quotes_do_not_match_is_refused_not_read_in_part(tmp_path: Path, text: str):
    (tmp_path / "r.csv").write_text(f"prompt,response\na,b\n{text}")
    with pytest.raises(DataError, match=r"r.csv, row 2: not CSV \("):
        list(read_raw(tmp_path / "r.csv"))


def test_csv_with_a_cell_of_many_kilobytes(tmp_path: Path):
    long = "word " * 100_000
    (tmp_path / "r.csv").write_text(f"prompt,completion\nq,{long}\n")
    assert list(read_raw(tmp_path / "r.csv")) == [(1, {"prompt": "q", "completion": long})]


def test_parquet_numbers_rows_over_batches(tmp_path: Path):
    write(tmp_path / "r.parquet", [{"n": n} for n in range(1, 2502)])
    assert all(number == row["n"] for number, row in read_raw(tmp_path / "r.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.jsonl", b'{"a": 1}\n{"a": \n', "row 2: not JSON"),
        ("r.jsonl", b"3\n", "row 1: a row is an object, not int"),
        ("r.json", b"[3]", "row 1: a row is an object"),
        ("r.json", b"[{", "not JSON"),
        ("r.jsonl", b'{"a": "\xe9"}\n', "not UTF-8"),
        ("r.txt", b"", "cannot tell the format"),
        ("r.jsonl.gz", b"plain", "cannot read"),
        ("r.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 50)[:30], "cannot read"),
        ("r.jsonl.gz", gzip.compress(b'{"a": 1}\n')[:10] + b"\xff" * 30, "cannot read"),
        ("r.jsonl", b'\n\n{"a": 1}\n{"a": \n', "row 4: not JSON"),
        ("r.jsonl", b'{"a": 1}\n' * 5000 + b'{"a": "\xe9"}\n', "line 5001: not UTF-8"),
        ("r.jsonl", b'{"a": 1}\n{"a": ' + b"9" * 5000 + b"}\n", "row 2: not JSON"),
        ("r.jsonl", b'{"a": ' + b"[" * 100_000 + b"\n", "row 1: too deeply nested"),
        ("r.json", b"[" * 100_000, "too deeply nested"),
        ("r.jsonl", b'{"a": 1}\n{"a": "x\\ud800"}\n', r"row 2: '\\ud800' is half of a character"),
        ("r.json", b'[{"a": "\\ud83d\\ude00"}, {"a": "\\ude00"}]', "row 2: .* half of a character"),
        ("r.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 3 + b'{"a": "\xe9"}\n'), "line 4: not UTF-8"),
        ("r.json", b'{\n  "data": []\n}\n', "an object over several lines; write one row a line"),
        ("r.csv", b"prompt;response\nq;a\n", "separated by ';'; write it with commas"),
        ("r.csv", b"prompt\tresponse\nq\ta\n", r"separated by '\\t'; write it"),
        ("r.parquet", b"PAR1", "write the file again"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, said: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        list(read_raw(tmp_path / name))
    assert name in str(caught.value)


def test_a_row_of_parquet_that_is_not_utf8_is_named(tmp_path: Path):
    cells = pyarrow.array([b"fine"] * 1500 + [b"\xff"] + [b"fine"] * 600)
    prompts = pyarrow.array(["q"] * len(cells))
    table = pyarrow.table({"prompt": prompts, "ground_truth": cells.view(pyarrow.string())})
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    with pytest.raises(DataError, match=r"r.parquet, row 1501: column 'ground_truth' is not UTF-8"):
        list(read_raw(tmp_path / "r.parquet"))


def test_missing_file(tmp_path: Path):
    with pytest.raises(DataError, match=r"cannot read .*absent.jsonl"):
        list(read_raw(tmp_path / "absent.jsonl"))


def test_hub_dataset_that_cannot_be_loaded_is_a_clear_error(tmp_path: Path):
    with pytest.raises((DataError, MissingExtraError), match=r"cannot load|caravan\[train\]"):
        list(read_hub(HubSource(dataset_name=str(tmp_path))))  # a directory without data


def test_hub_dataset_of_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "local").mkdir()
    write(tmp_path / "local" / "train.jsonl", ROWS)
    everything = list(read_hub(HubSource(dataset_name=str(tmp_path / "local"))))
    assert everything == [(1, ROWS[0]), (2, ROWS[1])]
    some = HubSource(dataset_name=str(tmp_path / "local"), where={"completion": ("b", "c")})
    assert list(read_hub(some)) == [(2, ROWS[1])]
    with pytest.raises(DataError, match="no column 'completions'; did you mean 'completion'"):
        list(read_hub(some.derive(where={"completions": ("b",)})))


# --- real files -----------------------------------------------------------------------------------


@pytest.fixture
def real_data() -> Path:
    default = Path(__file__).parents[2] / ".." / "shared" / "data"
    path = Path(os.environ.get("CARAVAN_TEST_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no test data at {path}")
    return path


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("sft/codealpaca/code_alpaca_2k.json", 2017),
        ("sft/llamafactory/alpaca_en_demo.json", 999),
        ("sft/dolly/databricks_dolly_1k.csv.gz", 1000),
        ("eval/gsm8k/train.jsonl.gz", 7473),
        ("sft/oasst/oasst_20230412_fr_top1.jsonl", 256),
        ("sft/safety/safety_only_data_Instructions.json.gz", 2483),
        ("rlvr/rlvr_test.jsonl", 100),
    ],
)
def test_real_files_convert_completely(real_data: Path, name: str, count: int):
    rows = [to_conversation(row, f"s/{n}", LABELS) for n, row in read_raw(real_data / name)]
    assert len(rows) == count
    assert all(row.messages[-1].content.strip() for row in rows[:50])


def test_real_tool_calls_are_refused_with_their_role(real_data: Path):
    rows = read_raw(real_data / "sft/llamafactory/glaive_toolcall_en_demo.json")
    with pytest.raises(DataError, match="unknown role 'function_call'"):
        [to_conversation(row, f"s/{number}", LABELS) for number, row in rows]
