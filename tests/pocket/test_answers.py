"""Questions can be read back, good answers are right, and the judge tells good from bad."""

from __future__ import annotations

import json
from random import Random
from statistics import mean

import pytest

from caravan.data.records import Message
from caravan.pocket import judge, skills
from caravan.pocket.items import Item, Style
from caravan.pocket.teacher import PROGRAMS
from caravan.pocket.templates import Template
from caravan.verifiers import verify

VERIFIABLE = sorted(set(skills.SKILLS) - {"chat"})


def drawn(skill: str, count: int = 200) -> list[Item]:
    rng = Random(7)
    return [skills.SKILLS[skill].draw(rng, held=bool(n % 2)) for n in range(count)]


def answered(skill: str, style: Style) -> list[tuple[Item, str]]:
    rng = Random(8)
    return [(item, skills.reply(item, style, rng)) for item in drawn(skill)]


def asked(item: Item) -> list[Message]:
    return [Message(role="user", content=item.prompt)]


def test_a_template_reads_what_it_wrote() -> None:
    template = Template("{name} has {a} {thing}s, says {name}.")
    fields = {"name": "Ada", "a": "3", "thing": "kite"}
    assert template.read(template.write(**fields)) == fields
    assert template.read("Ada has 3 kites, says Ben.") is None


@pytest.mark.parametrize("skill", sorted(skills.SKILLS))
def test_every_question_is_read_back_with_its_answer(skill: str) -> None:
    for item in drawn(skill):
        found = skills.read(item.prompt)
        assert found is not None
        assert found.skill == skill
        if skill == "precise_if":  # the order of the constraints does not matter
            assert sorted(map(str, found.ground_truth)) == sorted(map(str, item.ground_truth))
        else:
            assert found == item


@pytest.mark.parametrize("skill", VERIFIABLE)
def test_the_real_verifiers_accept_careful_answers_and_not_sloppy_ones(skill: str) -> None:
    def accuracy(style: Style) -> float:
        return mean(
            verify(item.verifier or "", reply, item.ground_truth).correct
            for item, reply in answered(skill, style)
        )

    assert accuracy("careful") >= 0.98
    assert accuracy("plain") >= 0.98
    assert 0.6 < accuracy("terse") < 0.98
    assert accuracy("sloppy") < 0.65


@pytest.mark.parametrize("skill", sorted(skills.SKILLS))
def test_the_judge_ranks_careful_above_terse_above_sloppy(skill: str) -> None:
    def rating(style: Style) -> float:
        given = [judge.rate(asked(item), reply) for item, reply in answered(skill, style)]
        assert all(r is None or 1 <= r <= 5 for ratings in given for r in ratings.values())
        return mean(mean(r for r in ratings.values() if r is not None) for ratings in given)

    assert rating("careful") > rating("terse") > rating("sloppy")
    assert rating("careful") > 4.5


def test_the_judge_sees_a_wrong_sum_behind_a_right_answer() -> None:
    item = drawn("math", 1)[0]
    right = f"#### {item.ground_truth}"
    honest = judge.rate(asked(item), right)
    wrong = judge.rate(asked(item), f"We count 2 + 2 = 5.\n{right}")
    assert wrong["truthfulness"] < honest["truthfulness"]  # type: ignore[operator]


def test_an_empty_or_foreign_reply_is_rated_and_never_fails() -> None:
    foreign = [Message(role="user", content="What is the capital of France?")]
    for text in ("", "\n", "Paris.", "🙂" * 50):
        assert judge.rate(foreign, text)["helpfulness"] in (1, 2)
        assert judge.rate(asked(drawn("chat", 1)[0]), text)["helpfulness"] == 1


def test_writers_give_a_prompt_that_the_verifiers_can_check() -> None:
    for name in ("math-writer", "instruction-writer"):
        for number in range(50):
            reply = PROGRAMS[name]([Message(role="user", content="a baker")], Random(number))
            written = json.loads(reply)
            answer = PROGRAMS["careful"](
                [Message(role="user", content=written["prompt"])], Random(number)
            )
            assert verify(written["verifier"], answer, written["ground_truth"]).correct


def test_what_is_not_about_the_question_does_not_help_an_open_answer():
    question = asked(drawn("chat", 1)[0])
    sums = judge.rate(question, "We count 3 x 6 = 18. So Quinn has 18 bottles.")
    assert sums["helpfulness"] == 1
    assert sums["truthfulness"] < 3
