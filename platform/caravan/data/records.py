"""The rows that travel between stages, each defined once.

A conversation, one line of a `dataset` artifact's `rows.jsonl`:

    {"id": "pocket-gsm/17", "messages": [{"role": "user", "content": "..."},
     {"role": "assistant", "content": "..."}], "source": "pocket-gsm", "skill": "math",
     "license": "Apache-2.0", "verifier": "gsm8k", "ground_truth": "19"}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Role = Literal["system", "user", "assistant"]
Aspect = Literal["helpfulness", "instruction_following", "honesty", "truthfulness"]
FinishReason = Literal["stop", "length", "too_long"]
"""`length`: cut off. `too_long`: there is no reply, the prompt left no room for one."""


class Record(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True,
        ser_json_inf_nan="constants",  # which to_line refuses; null would lose them in silence
    )  # fmt: skip


class Message(Record):
    role: Role
    content: str


class Conversation(Record):
    """A conversation to train on, or, where it ends with a user's turn, a prompt to answer."""

    id: str
    """Unique within a dataset, stable over runs: `source/number`."""
    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    source: str
    skill: str
    license: str
    """SPDX identifier of the source's licence."""
    verifier: str | None = None
    """Name of the verifier that decides whether an answer is right, if one can."""
    ground_truth: Any = None
    """What the verifier compares with: a number as text, or a list of constraints."""
    label: Literal[False] | None = None
    """False, as in KTO's datasets: the reply is a bad one, not to be imitated."""
    persona: str | None = None
    """The persona a synthesised prompt was written for."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages up to and including the last user's turn."""
        last = max(i for i, m in enumerate(self.messages) if m.role == "user")
        return self.messages[: last + 1]

    @property
    def has_reply(self) -> bool:
        """Whether there is an assistant's turn, which is what SFT trains on."""
        return any(m.role == "assistant" for m in self.messages)

    @model_validator(mode="after")
    def _has_a_user_turn(self) -> Self:
        if not any(m.role == "user" for m in self.messages):
            raise ValueError("no message with role 'user'")
        return self


class Completion(Record):
    """A reply to a prompt."""

    prompt_id: str
    model: str
    """Name of the engine, as in the recipe."""
    index: int = 0
    """Which of the replies of this model to this prompt."""
    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Log-probability in nats of each sampled token, under the engine at its temperature."""


class RatedCompletion(Record):
    """A completion with its judge's ratings."""

    completion: Completion
    ratings: dict[Aspect, int | None]
    """1 (worst) to 5 (best); None where the aspect does not apply."""
    rationale: str = ""

    @property
    def mean_rating(self) -> float:
        """Mean over the aspects that apply."""
        given = [r for r in self.ratings.values() if r is not None]
        return sum(given) / len(given)


class Pair(Record):
    """A preference pair."""

    id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    chosen_model: str | None = None
    """None where whoever made the pairs does not say; so with the ratings."""
    rejected_model: str | None = None
    chosen_rating: float | None = None
    rejected_rating: float | None = None
    source: str
    skill: str

    @property
    def margin(self) -> float:
        """By how much chosen is rated higher; 0 where nobody rated."""
        if self.chosen_rating is None or self.rejected_rating is None:
            return 0.0
        return self.chosen_rating - self.rejected_rating


class EvalInstance(Record):
    """One question of an evaluation task."""

    id: str
    """`task/number`."""
    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    """Ends with a user's turn; few-shot examples come before it as turns of their own."""
    ground_truth: Any = None
    skill: str = ""
    options: tuple[str, ...] = ()
    """Replies whose likelihoods are compared, where a task does that; it then asks for none."""
    question: str | None = None
    """What training data must not hold: the question without the task's wording around it. None
    where the last message is only that."""


class RolloutGroup(Record):
    """What a policy in reinforcement learning made of one prompt, kept for people to look at.

    The lists run in parallel, one entry for each completion.
    """

    step: int
    """Rollout batch, counted from 1 as in the metrics."""
    prompt_id: str
    prompt: tuple[Message, ...]
    skill: str
    verifier: str
    """Empty where the prompt has none."""
    ground_truth: Any = None
    completions: tuple[str, ...]
    finish_reasons: tuple[FinishReason, ...]
    outcomes: tuple[Literal["verified", "not_verified", "failed", "unchecked"], ...]
    """`failed` says that the verifier could not decide, `unchecked` that there is none."""
    rewards: tuple[float | None, ...]
    """None where the verifier failed."""
    advantages: tuple[float, ...]
    """Mean over the completion's tokens; 0 where it was not trained on."""
    scores: tuple[float, ...] | None = None
    """Of the reward model, before its multiplier; None where none was asked."""
