"""What is asked of the engines that write persona-driven prompts and their responses.

The method is that of Tülu 3 (arXiv:2411.15124, section 3.1.2; personas after arXiv:2406.20094): the
wording of a task is fixed and one persona is put into it, so that variety comes from the persona.
The wording here is our own. Instructions on the form of a response stand in the system message, so
that the user's turn is the prompt itself and a row can be stored without them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import Any

from caravan.data.records import Message
from caravan.recipe import SynthesisTask

SYSTEM = "You are a careful assistant who is good at mathematics, writing and programming."


@dataclass(frozen=True)
class TaskPrompts:
    write: str
    """Asks for a prompt; `{persona}` and, for instruction following, `{constraints}` go in."""
    prefix: str
    """What the written prompt has to start with; taken off again."""
    respond: str
    """Form of the response."""
    ending: str = ""
    """What a response in that form contains."""


PROMPTS: dict[str, TaskPrompts] = {
    "math": TaskPrompts(
        write=(
            "Write one challenging mathematics problem that this person could meet or would enjoy: "
            "{persona}.\nIt takes several steps and real knowledge to solve. It has at most two "
            "parts and one answer. Do not solve it. Start with 'Math problem:'."
        ),
        prefix="Math problem:",
        respond=(
            "Solve the problem step by step, with formulas in LaTeX. End with exactly this "
            "sentence: 'Final Answer: The final answer is $ANSWER$. I hope it is correct.'"
        ),
        ending="Final Answer:",
    ),
    "grade_school_math": TaskPrompts(
        write=(
            "Write one short word problem from the life of this person: {persona}.\nA pupil of a "
            "primary school can solve it with a few additions, subtractions, multiplications and "
            "divisions, and the answer is one number. Do not solve it. Start with 'Math problem:'."
        ),
        prefix="Math problem:",
        respond=(
            "Solve the problem step by step in plain words, one calculation a line. On the last "
            "line write '#### ' and the answer as a number, nothing else."
        ),
        ending="####",
    ),
    "algebra": TaskPrompts(
        write=(
            "Write one problem of intermediate algebra that fits this person: {persona}.\nIts "
            "topic is one of: polynomials, linear or quadratic equations, inequalities, "
            "simplifying rational or radical expressions. It has one answer. Do not solve it. "
            "Start with 'Math problem:'."
        ),
        prefix="Math problem:",
        respond=(
            "Solve the problem step by step, with formulas in LaTeX. End with exactly this "
            "sentence: 'Final Answer: The final answer is $ANSWER$. I hope it is correct.'"
        ),
        ending="Final Answer:",
    ),
    "code": TaskPrompts(
        write=(
            "Write one programming question that this person might post on a forum: {persona}.\n"
            "A programmer with one or two years of practice can answer it with one Python "
            "function. Say what goes in and what comes out. Do not answer it. Start with "
            "'User instruction:' and go on with 'Write a python function'."
        ),
        prefix="User instruction:",
        respond="Answer with one Python function and nothing else.",
    ),
    "instruction_following": TaskPrompts(
        write=(
            "Write one instruction that this person would give to an assistant: {persona}.\nBeside "
            "what is to be done, it demands all of the following, in words of its own:\n"
            "{constraints}\nEach demand can be checked by a program. An example of such an "
            "instruction, on another subject: {example}\nDo not follow the instruction. Start with "
            "'User instruction:'."
        ),
        prefix="User instruction:",
        respond="Follow the instruction exactly. Satisfy every demand on the form of the answer.",
    ),
}

JSON_FORM = (
    "\nReply with one JSON object and nothing else: "
    '{"prompt": "the text", "ground_truth": "the answer in its shortest form"}.'
)


@dataclass(frozen=True)
class Constraint:
    """A demand that `caravan.verifiers.ifeval` can check."""

    id: str
    wording: str
    example: str
    """An instruction with this demand, on any subject."""
    values: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """What each free argument may be."""
    fixed: tuple[tuple[str, Any], ...] = ()

    def draw(self, rng: Random) -> dict[str, Any]:
        """The constraint with arguments, as a verifier's ground truth has it."""
        drawn = {name: rng.choice(choices) for name, choices in self.values}
        return {"id": self.id, "kwargs": dict(self.fixed) | drawn}

    def describe(self, kwargs: dict[str, Any]) -> str:
        return self.wording.format(**kwargs)


# Mutually compatible on purpose: any three of them can be demanded together.
CONSTRAINTS: tuple[Constraint, ...] = (
    Constraint(
        "punctuation:no_comma",
        "no comma anywhere in the answer",
        "Describe a morning at the harbour without using a single comma.",
    ),
    Constraint(
        "length_constraints:number_words",
        "fewer than {num_words} words",
        "Explain how bread rises in fewer than 90 words.",
        values=(("num_words", (60, 90, 120, 150, 200)),),
        fixed=(("relation", "less than"),),
    ),
    Constraint(
        "detectable_format:number_highlighted_sections",
        "at least {num_highlights} highlighted parts, each between asterisks like *this*",
        "Give advice for a first night in a tent and highlight at least 2 parts *like this*.",
        values=(("num_highlights", (1, 2, 3)),),
    ),
    Constraint(
        "detectable_format:title",
        "a title between double angle brackets, such as <<title>>",
        "Write a short poem about rain. Put its title in double angle brackets, such as <<title>>.",
    ),
    Constraint(
        "detectable_content:number_placeholders",
        "at least {num_placeholders} placeholders in square brackets, such as [name]",
        "Draft an invitation to a wedding with at least 3 placeholders such as [place].",
        values=(("num_placeholders", (1, 2, 3, 4)),),
    ),
    Constraint(
        "detectable_content:postscript",
        "a postscript at the end that starts with {postscript_marker}",
        "Write a note to a neighbour about the noise. End it with a postscript that starts with "
        "P.S.",
        values=(("postscript_marker", ("P.S.", "P.P.S")),),
    ),
    Constraint(
        "detectable_format:number_bullet_lists",
        "exactly {num_bullets} bullet points, each starting with '* '",
        "Name ways to save water at home in exactly 4 bullet points.",
        values=(("num_bullets", (2, 3, 4, 5)),),
    ),
    Constraint(
        "startend:end_checker",
        "the answer ends with the exact words '{end_phrase}'",
        "Tell me why the sky is blue and end with the words 'That is all there is to it.'",
        values=(("end_phrase", ("That is all there is to it.", "Any other questions?")),),
    ),
    Constraint(
        "change_case:capital_word_frequency",
        "at least {capital_frequency} words entirely in capital letters",
        "Warn hikers about the weather with at least 3 words in capital letters.",
        values=(("capital_frequency", (1, 2, 3, 5)),),
        fixed=(("capital_relation", "at least"),),
    ),
)


@dataclass(frozen=True)
class Request:
    messages: tuple[Message, ...]
    ground_truth: Any = None
    """What the prompt will be checked by, where the request decides it."""


def prompt_request(task: SynthesisTask, persona: str, rng: Random) -> Request:
    """Asks a prompt engine for one prompt."""
    prompts = PROMPTS[task.kind]
    if task.kind == "instruction_following":
        chosen = rng.sample(CONSTRAINTS, rng.randint(1, 3))
        drawn = [constraint.draw(rng) for constraint in chosen]
        demands = [
            f"- {constraint.describe(made['kwargs'])}"
            for constraint, made in zip(chosen, drawn, strict=True)
        ]
        text = prompts.write.format(
            persona=persona, constraints="\n".join(demands), example=rng.choice(chosen).example
        )
        return Request(_chat(SYSTEM, text), drawn if task.verifier == "ifeval" else None)
    text = prompts.write.format(persona=persona)
    return Request(_chat(SYSTEM, text + JSON_FORM if task.verifier else text))


def response_request(task: SynthesisTask, prompt: str) -> tuple[Message, ...]:
    """Asks a response engine to answer a written prompt."""
    return _chat(f"{SYSTEM} {PROMPTS[task.kind].respond}", prompt)


def strip_prefix(text: str, prefix: str) -> str:
    """The text without the prefix that was asked for, bold or not, in any case."""
    name = re.escape(prefix.rstrip(":"))
    return re.sub(rf"\A\s*\**\s*{name}\s*\**\s*:\s*\**", "", text, flags=re.IGNORECASE).strip()


def _chat(system: str, user: str) -> tuple[Message, ...]:
    return (Message(role="system", content=system), Message(role="user", content=user))
