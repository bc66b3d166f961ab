import os
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.data.formats import AskedRow, Labels, split_turns, to_conversation
from caravan.data.readers import read_raw
from caravan.errors import DataError


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
        ({"ground_truth": " ", "verifier": "math"}, None, None),  # math took no reply for right
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
