"""Every form in which preference pairs come gives the same pair, or an error that says where."""

import pytest

from caravan.data.formats import AskedRow, Labels
from caravan.data.preferences import to_pair
from caravan.errors import DataError

LABELS = Labels(source="mine", skill="chat", license="MIT")


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"prompt": [user("q")], "chosen": "good", "rejected": "bad"},
        {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
        {"question": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": "q", "instruction": "as before", "chosen": "good", "rejected": "bad"},
        {"chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]},
        {
            "prompt": "q",
            "chosen": [user("q"), assistant("good")],
            "rejected": [user("q"), assistant("bad")],
        },
        {
            "chosen": "\n\nHuman: q\n\nAssistant: good",
            "rejected": "\n\nHuman: q\n\nAssistant: bad",
        },
    ],
)
def test_every_format_gives_the_same_pair(row):
    pair = to_pair(row, "mine/0", LABELS)
    assert [(m.role, m.content) for m in pair.prompt] == [("user", "q")]
    assert (pair.chosen, pair.rejected) == ("good", "bad")
    assert (pair.id, pair.source, pair.skill) == ("mine/0", "mine", "chat")
    assert (pair.chosen_rating, pair.chosen_model, pair.margin) == (None, None, 0.0)


def test_a_conversation_keeps_its_earlier_turns_and_its_system_message():
    before = [user("q"), assistant("a"), user("more")]
    pair = to_pair(
        {
            "system": "Be brief.",
            "chosen": [*before, assistant("good")],
            "rejected": [*before, assistant("good")],
        },
        "mine/0",
        LABELS,
    )
    assert [m.content for m in pair.prompt] == ["Be brief.", "q", "a", "more"]
    assert pair.chosen == pair.rejected == "good"


@pytest.mark.parametrize("asked", ["prompt", "instruction", "question"])
@pytest.mark.parametrize("context", ["input", "context"])
def test_what_is_beside_a_prompt_is_read_as_beside_a_question(asked, context):
    row = AskedRow(
        {
            "system": "Be brief.",
            "history": [["q1", "a1"]],
            asked: "Add up.",
            context: "1 2",
            "chosen": "3",
            "rejected": "4",
        }
    )
    pair = to_pair(row, "mine/0", LABELS)
    assert [m.content for m in pair.prompt] == ["Be brief.", "q1", "a1", "Add up.\n\n1 2"]
    assert (pair.chosen, pair.rejected) == ("3", "4")
    assert not list(row.unread())


def test_beside_messages_only_the_replies_are_read():
    row = AskedRow({"prompt": [user("q")], "input": "1 2", "chosen": "3", "rejected": ""})
    pair = to_pair(row, "mine/0", LABELS)
    assert [m.content for m in pair.prompt] == ["q"]
    assert list(row.unread()) == ["input"]


@pytest.mark.parametrize(
    "ratings",
    [
        {"score_chosen": 8.5, "score_rejected": 2},
        {"chosen_rating": "8.5", "rejected_rating": "2"},
        {"chosen_score": 8.5, "rejected_score": 2, "chosen_rating": "", "rejected_rating": ""},
    ],
)
def test_ratings_and_models_are_taken_where_they_are_given(ratings):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_model": "m", **ratings}
    pair = to_pair(row, "mine/0", LABELS)
    assert (pair.chosen_rating, pair.rejected_rating, pair.margin) == (8.5, 2, 6.5)
    assert (pair.chosen_model, pair.rejected_model) == ("m", None)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": "q", "chosen": "a"}, "no column 'rejected'"),
        ({"chosen": "a", "rejected": "b"}, "chosen: column 'text' marks no turns"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "no column 'prompt'"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "'chosen' is neither text nor messages"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "'chosen' is neither text nor messages"),
        ({"query": "q", "chosen": "a", "rejected": "b"}, "chosen: column 'text' marks no turns"),
        ({"prompt": "q", "input": 3, "chosen": "a", "rejected": "b"}, "'input' is not text"),
        (
            {"prompt": "q", "chosen": [{"role": "bot", "content": ""}], "rejected": "b"},
            "chosen: .*unknown role 'bot'",
        ),
        (
            {"chosen": [user("q"), assistant("a")], "rejected": [user("p"), assistant("b")]},
            "answer different prompts",
        ),
        ({"prompt": "q", "chosen": [user("q")], "rejected": "b"}, "chosen does not end with"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 3},
            "'score_chosen' without the other",
        ),
        (
            {
                "prompt": "q",
                "chosen": "a",
                "rejected": "b",
                "score_chosen": "x",
                "score_rejected": 1,
            },
            "'score_chosen' is 'x', which is no number",
        ),
    ],
)
def test_a_row_that_is_no_pair_is_refused_and_says_where(row, what):
    with pytest.raises(DataError, match=what):
        to_pair(row, "mine/0", LABELS)
