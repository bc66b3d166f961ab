"""Judges: what they are asked, how replies are read, and that ids never get mixed up."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.data.records import Message
from caravan.errors import RecipeError
from caravan.evals.judge_prompts import (
    RUBRICS,
    UnreadableReplyError,
    judge_messages,
    parse_ratings,
)
from caravan.evals.judging import JudgeItem, ModelJudge, ProgramJudge, load_judge
from caravan.inference import load_engine
from caravan.recipe import (
    LLMJudge,
    OpenAIEngineConfig,
    Sampling,
)
from caravan.recipe import (
    ProgramJudge as ProgramJudgeConfig,
)
from scripted_endpoint import Messages, scripted_endpoint

ASPECTS = tuple(RUBRICS)
PROMPT = (Message(role="user", content="Name a colour."),)


class JudgeServer:
    """Rates each response by the digit it ends with."""

    endpoint: OpenAIEngineConfig

    def __init__(self) -> None:
        self.requests: list[Messages] = []
        self.broken_for: set[str] = set()
        """Aspects whose every reply is nonsense."""
        self.breaks_first = False

    def reply(self, messages: Messages) -> str:
        self.requests.append(messages)
        aspect = next(a for a in ASPECTS if RUBRICS[a] in messages[0]["content"])
        if aspect in self.broken_for or (self.breaks_first and len(messages) == 2):
            return "I rate them all highly."
        responses = re.split(r"## Response \d+\n", messages[1]["content"])[1:]
        return json.dumps(
            [
                {"response": i, "rationale": "because", "rating": int(re.findall(r"\d", text)[-1])}
                for i, text in enumerate(responses, start=1)
            ]
        )


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    server = JudgeServer()
    with scripted_endpoint(server.reply) as server.endpoint:
        yield server


def judge(server: JudgeServer) -> ModelJudge:
    engine = load_engine(server.endpoint.derive(max_retries=0))
    return ModelJudge(engine, Sampling(temperature=0.0, max_completion_length=200), ASPECTS)


ITEMS = [
    JudgeItem("a", PROMPT, ("red 1", "green 4", "blue 5")),
    JudgeItem("b", PROMPT, ("one 2", "two 3")),
]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")


def test_each_aspect_is_asked_once_with_all_completions_in_shuffled_order(
    server: JudgeServer,
) -> None:
    judgements = judge(server).judge(ITEMS, seed=3)
    assert [[j.mean_rating for j in of_item] for of_item in judgements] == [[1, 4, 5], [2, 3]]
    assert all(set(j.ratings) == set(ASPECTS) for of_item in judgements for j in of_item)
    assert len(server.requests) == 2 * len(ASPECTS)
    orders = {
        tuple(re.findall(r"(?m)^(?:red|green|blue) \d$", str(messages)))
        for messages in server.requests
    }
    first = [
        re.findall(r"(red|green|blue) \d", messages[1]["content"]) for messages in server.requests
    ]
    assert len({tuple(order) for order in first if order}) > 1, orders
    assert "helpfulness: because" in judgements[0][0].rationale


def test_a_reply_that_cannot_be_read_is_asked_again_with_the_reason(server: JudgeServer) -> None:
    server.breaks_first = True
    judgements = judge(server).judge(ITEMS, seed=3)
    assert [j.mean_rating for j in judgements[0]] == [1, 4, 5]
    assert len(server.requests) == 4 * len(ASPECTS)
    again = server.requests[-1]
    assert [m["role"] for m in again] == ["system", "user", "assistant", "user"]
    assert "cannot be read: it is not JSON" in again[-1]["content"]


def test_an_aspect_that_stays_unreadable_is_missing_and_not_a_1(server: JudgeServer) -> None:
    server.broken_for = {"honesty"}
    judgements = judge(server).judge(ITEMS, seed=3)
    for of_item in judgements:
        for judgement in of_item:
            assert "honesty" not in judgement.ratings
            assert len(judgement.ratings) == 3
    server.broken_for = set(ASPECTS)
    assert judge(server).judge(ITEMS[:1], seed=3)[0][0].mean_rating is None


@given(st.lists(st.text(), min_size=1, max_size=4), st.text())
def test_no_text_can_write_a_fence_of_its_own(completions: list[str], prompt: str) -> None:
    messages = judge_messages((Message(role="user", content=prompt),), completions, "helpfulness")
    fence = re.search(r"between two lines (=+) ", messages[0].content)
    assert fence is not None
    assert all(fence.group(1) not in text for text in (*completions, prompt))
    assert messages[1].content.count(f"\n{fence.group(1)}\n") >= len(completions)


def _reply(*ratings: object) -> str:
    return json.dumps([{"response": i, "rating": r} for i, r in enumerate(ratings, start=1)])


def test_replies_are_parsed_strictly() -> None:
    assert [r.rating for r in parse_ratings(_reply(1, 5), 2, "helpfulness")] == [1, 5]
    fenced = f"```json\n{_reply('3')}\n```"
    assert [r.rating for r in parse_ratings(fenced, 1, "helpfulness")] == [3]
    assert [r.rating for r in parse_ratings(_reply("N/A"), 1, "honesty")] == [None]
    swapped = json.dumps([{"response": 2, "rating": 1}, {"response": 1, "rating": 2}])
    for reply, count in (
        (_reply(1), 2),
        (_reply(1, 2, 3), 2),
        (swapped, 2),
        (_reply(0), 1),
        (_reply(6), 1),
        (_reply(True), 1),
        (_reply(3.5), 1),
        (_reply("N/A"), 1),
        (_reply(None), 1),
        ("Sure: " + _reply(3), 1),
        ("{}", 1),
        ("[1]", 1),
        ("", 1),
    ):
        with pytest.raises(UnreadableReplyError):
            parse_ratings(reply, count, "helpfulness")


def test_a_program_judge_asks_nobody_and_an_llm_judge_needs_its_engine() -> None:
    program = load_judge(ProgramJudgeConfig(), None, ASPECTS)
    assert isinstance(program, ProgramJudge)
    ((judgement,),) = program.judge([JudgeItem("x", PROMPT, ("red",))], seed=0)
    assert set(judgement.ratings) <= set(ASPECTS)
    with pytest.raises(RecipeError, match="engine 'gpt'"):
        load_judge(LLMJudge(engine="gpt"), None, ASPECTS)
