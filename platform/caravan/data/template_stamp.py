"""Which chat template an artifact was made with, so that stages with different ones do not mix.

A model directory says it by its own `chat_template.jinja`. Every other artifact that a stage makes
holds a file `chat_template.sha256` with the hash of the template; rows themselves are plain
messages. A begin token before the template is the tokenizer's matter and no part of the hash. An
artifact without either, such as one from outside, is taken as it is.

A base model that keeps its own template, in which it is asked, has both: the file says that ours is
what it will be trained in. Completions and evaluations say what their model was asked in, which may
be any template.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from caravan.data.records import Message
from caravan.data.template import BEGIN, TEMPLATE_HASH, render
from caravan.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STAMP = "chat_template.sha256"
TEMPLATE_FILE = "chat_template.jinja"
SHOWN = 12
"""Digits of a hash in a message."""


def stamp(directory: Path) -> None:
    """Note in an artifact that it was made with our template, unless it says another already."""
    if recorded_hash(directory) is None:
        write_stamp(directory, TEMPLATE_HASH)


def write_stamp(directory: Path, template_hash: str) -> None:
    (directory / STAMP).write_text(template_hash + "\n")


def recorded_hash(directory: Path) -> str | None:
    """SHA-256 of the template that an artifact was made with, if it says."""
    if (directory / STAMP).is_file():
        return (directory / STAMP).read_text().strip()
    if (directory / TEMPLATE_FILE).is_file():
        return template_hash((directory / TEMPLATE_FILE).read_text(encoding="utf-8"))
    config = directory / "tokenizer_config.json"
    template = json.loads(config.read_text()).get("chat_template") if config.is_file() else None
    return template_hash(template) if isinstance(template, str) else None


def template_hash(template: str) -> str:
    """SHA-256 of a template, without the begin token before it."""
    return hashlib.sha256(template.removeprefix(BEGIN).encode()).hexdigest()


def check_template(directory: Path, what: str | None = None) -> None:
    """Refuse an artifact that was made with another template than ours.

    Args:
        what: names the artifact in the error; None names the directory.

    Raises:
        DataError: names both hashes, and what to do.
    """
    found = recorded_hash(directory)
    if found is not None and found != TEMPLATE_HASH:
        raise DataError(
            f"{what or directory}: made with the chat template {found[:SHOWN]}, and this version "
            f"of Caravan has {TEMPLATE_HASH[:SHOWN]}: a model would be asked in another format "
            "than it has learned; run the stages that made it again, or take a model in as "
            "base_model, which gives it this template, and train it"
        )


def renders_as_ours(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer's own template, if differently written, gives the same text as ours."""
    eos = tokenizer.eos_token
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": " U1\n"},
        {"role": "assistant", "content": "A1 "},
        {"role": "user", "content": "U2"},
        {"role": "assistant", "content": "A2"},
    ]
    for start, end, prompt in ((0, 5, False), (1, 5, False), (0, 4, True), (1, 2, True)):
        ours = render([Message.model_validate(t) for t in turns[start:end]], eos, prompt)
        try:
            theirs = tokenizer.apply_chat_template(
                turns[start:end], tokenize=False, add_generation_prompt=prompt
            )
        except Exception:  # whatever a foreign template raises: it does not render ours
            return False
        if theirs.removeprefix(tokenizer.bos_token or "") != ours:
            return False
    return True
