"""Rows of every kind, as the stages of a small run would have written them."""

from __future__ import annotations

import random

from caravan.data.records import (
    Completion,
    Conversation,
    Message,
    Pair,
    RatedCompletion,
    RolloutGroup,
)
from caravan.evals.scoring import ScoredCompletion
from caravan.stages.context import Score

EVIL = (
    '<img src=x onerror="document.title=1"><script>document.title=2</script> **bold** :red[red] '
    '[link](javascript:alert(1)) $x^2$ "quoted" \\N & </div>'
)
"""Text of a row that would do something wherever it is not shown as text."""

SOURCES = {"word-problems": "math", "constraints": "precise-if", "small-talk": "chat"}
ACCURACY = {
    "word-problems": {"base": 0.06, "sft": 0.52, "dpo": 0.53, "rlvr": 0.64},
    "constraints": {"base": 0.10, "sft": 0.58, "dpo": 0.61, "rlvr": 0.68},
    "unseen-problems": {"base": 0.04, "sft": 0.31, "dpo": 0.33, "rlvr": 0.39},
}
INSTANCES = 120


def conversation(source: str, number: int) -> Conversation:
    asked = f"Ann has {number + 3} apples and gives away {number % 3 + 1}. How many are left?"
    if source != "word-problems":
        asked = f"Name {number + 2} rivers. Write in lower case and end with a full stop."
    if number == 7:
        asked = EVIL
    return Conversation(
        id=f"{source}/{number}",
        source=source,
        skill=SOURCES[source],
        license="Apache-2.0",
        messages=(
            Message(role="user", content=asked),
            Message(role="assistant", content=f"Let us see.\nThe answer is {number + 2}."),
        ),
        verifier="gsm8k" if source == "word-problems" else None,
        ground_truth=str(number + 2) if source == "word-problems" else None,
    )


def rollouts() -> list[RolloutGroup]:
    groups = []
    for step in (1, 30, 60):
        for i in range(4):
            row = conversation("word-problems", i)
            right = [(i + n + step) % 3 == 0 for n in range(4)]
            groups.append(
                RolloutGroup(
                    step=step,
                    prompt_id=row.id,
                    prompt=row.prompt,
                    skill="math",
                    verifier="gsm8k",
                    ground_truth=row.ground_truth,
                    finish_reasons=("stop",) * 4,
                    completions=tuple(
                        EVIL if n == 3 else f"The answer is {i + 2 + (not r)}."
                        for n, r in enumerate(right)
                    ),
                    outcomes=tuple("verified" if r else "not_verified" for r in right),
                    rewards=tuple(10.0 if r else 0.0 for r in right),
                    advantages=tuple(1.0 if r else -0.5 for r in right),
                )
            )
    return groups


def pairs(count: int = 23) -> list[Pair]:
    made = []
    for i in range(count):
        source = list(SOURCES)[i % 3]
        models = ("sft", "terse") if i % 4 else ("terse", "sft")
        made.append(
            Pair(
                id=f"{source}/{i}",
                source=source,
                skill=SOURCES[source],
                prompt=conversation(source, i).prompt,
                chosen=f"Ann had {i + 3} apples. She gives some away. The answer is {i + 2}.",
                rejected=EVIL
                if i == 0
                else f"Ann had {i + 3} apples. It is {i + 4}" + " maybe" * (i % 5),
                chosen_model=models[0],
                rejected_model=models[1],
                chosen_rating=4.5 - (i % 3) / 2,
                rejected_rating=3.0 - (i % 4) / 2,
            )
        )
    return made


def ratings() -> list[RatedCompletion]:
    """What the judge said about both sides of the pairs."""
    return [
        RatedCompletion(
            completion=Completion(
                prompt_id=pair.id, model=model or "", text=reply, finish_reason="stop"
            ),
            ratings={
                "helpfulness": round(rating or 1),
                "instruction_following": 2,
                "honesty": None,
            },
            rationale=f"The {side} reply. {EVIL}",
        )
        for pair in pairs()
        for side, model, reply, rating in (
            ("better", pair.chosen_model, pair.chosen, pair.chosen_rating),
            ("worse", pair.rejected_model, pair.rejected, pair.rejected_rating),
        )
    ]


def unrated(count: int = 7) -> list[Pair]:
    """Pairs of a file: nobody says which model wrote them, nor how good they are."""
    unknown = dict.fromkeys(
        ("chosen_model", "rejected_model", "chosen_rating", "rejected_rating"), None
    )
    return [pair.model_copy(update=unknown) for pair in pairs(count)]


def judged(model: str) -> tuple[list[ScoredCompletion], Score]:
    """The answers to small talk, rated between 1 and 5."""
    draw = random.Random(f"{model}/ratings")
    level = {"base": 1, "sft": 3, "dpo": 4, "rlvr": 4}[model]
    rows = []
    for i in range(30):
        rating = min(5, level + draw.randrange(2))
        rows.append(
            ScoredCompletion(
                task="small-talk",
                id=f"small-talk/{i}",
                finish_reason="length",
                score=rating,
                messages=(Message(role="user", content="How was your day?"),),
                completion="Fine, thank you.",
                metrics={"mean_rating": rating},
                ratings={"helpfulness": rating, "honesty": None},
            )
        )
    values = {row.id: row.score or 0.0 for row in rows}
    mean = sum(values.values()) / len(values)
    return rows, Score("small-talk", "mean_rating", mean, mean - 0.2, mean + 0.2, 30, "dev", values)


def instance(task: str, i: int, right: bool) -> ScoredCompletion:
    answer = str(i + 2) if right else str(i + 5)
    asked = EVIL if i == 0 else f"Ann has {i + 3} apples and gives away 1. How many are left?"
    return ScoredCompletion(
        task=task,
        id=f"{task}/{i}",
        messages=(Message(role="user", content=asked),),
        completion=EVIL if i == 1 else f"She has {answer} left. The answer is {answer}.",
        finish_reason="stop",
        extracted=answer,
        ground_truth=str(i + 2),
        score=float(right),
        metrics={"accuracy": float(right)},
    )
