"""Whether what an engine wrote is good enough: the prompt in a reply, and the response to one."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

from caravan.data.synthesis_prompts import PROMPTS, Request, strip_prefix
from caravan.errors import DataError
from caravan.inference import Generation
from caravan.recipe import SynthesisTask
from caravan.verifiers import verify


class Rejection(Exception):
    """A reply is not good enough; says why."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(reason)
        self.reason, self.text = reason, text


@dataclass(frozen=True)
class WrittenPrompt:
    text: str
    ground_truth: Any = None
    verifier: str | None = None


def read_prompt(task: SynthesisTask, request: Request, reply: Generation) -> WrittenPrompt:
    """The prompt in a reply: a JSON object with `prompt` and `ground_truth`, or text with a prefix.

    Raises:
        Rejection: there is no usable prompt, or no ground truth where the task needs one.
    """
    if reply.finish_reason == "too_long":
        raise Rejection("request too long", "")
    if reply.finish_reason == "length":
        raise Rejection("prompt cut off", reply.text)
    written = _parse_json_object(reply.text)
    if written is None:
        prompt = WrittenPrompt(strip_prefix(reply.text, PROMPTS[task.kind].prefix))
    else:
        text, verifier = written.get("prompt"), written.get("verifier")
        if not isinstance(text, str) or not isinstance(verifier, str | None):
            raise Rejection("prompt is not text", reply.text)
        text = strip_prefix(text, PROMPTS[task.kind].prefix)
        prompt = WrittenPrompt(text, written.get("ground_truth"), verifier)
    if not prompt.text:
        raise Rejection("empty prompt", reply.text)
    truth = request.ground_truth if prompt.ground_truth is None else prompt.ground_truth
    name = prompt.verifier or task.verifier
    if truth is None or name is None:
        if task.verifier is not None:
            raise Rejection("no ground truth", reply.text)
        return WrittenPrompt(prompt.text)
    try:
        verify(name, "", truth)
    except DataError as error:
        raise Rejection("unusable ground truth", f"{error}: {reply.text}") from error
    return WrittenPrompt(prompt.text, truth, name)


def read_response(task: SynthesisTask, prompt: WrittenPrompt, reply: Generation) -> str:
    """The response, if it is complete, of the form asked for, and right where that can be told.

    Raises:
        Rejection: it is not.
    """
    if reply.finish_reason == "too_long":
        raise Rejection("prompt too long to answer", prompt.text)
    text = reply.text.strip()
    if not text:
        raise Rejection("empty response", text)
    if reply.finish_reason == "length":
        raise Rejection("response cut off", text)
    if prompt.verifier is not None:
        if not verify(prompt.verifier, text, prompt.ground_truth).correct:
            raise Rejection("response fails its verifier", text)
    elif PROMPTS[task.kind].ending not in text:
        raise Rejection("response of another form", text)
    elif task.kind == "code" and not _has_function(text):
        raise Rejection("no Python function", text)
    return text


def _parse_json_object(text: str) -> dict[str, Any] | None:
    fenced = re.fullmatch(r"\s*```(?:json)?\n(.*)\n```\s*", text, re.DOTALL)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _has_function(text: str) -> bool:
    """The text is, or fences, Python that defines a function. It is parsed, never run."""
    blocks = re.findall(r"```(?:python|py)?\n(.*?)```", text, re.DOTALL | re.IGNORECASE) or [text]
    for block in blocks:
        try:
            tree = ast.parse(block)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in tree.body):
            return True
    return False
