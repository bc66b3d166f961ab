"""How a model is asked: the tokens of a prompt, and those that end a reply.

A model with a chat template of its own is asked in it, with the very tokens of transformers'
`apply_chat_template`; any other in the one of `caravan.data.template`. A template comes with a
model, so it is untrusted text: transformers renders it in a sandbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from caravan.data.records import Message
from caravan.data.template import TEMPLATE_HASH, encode_prompt
from caravan.data.template_stamp import SHOWN, renders_as_ours, template_hash
from caravan.inference.engine import EngineError, PromptRefusedError
from caravan.recipe import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM = Message(role="system", content="caravan-system-message")
_USER = Message(role="user", content="Hello")


@dataclass(frozen=True)
class PromptFormat:
    """What a model is asked in; see `prompt_format`."""

    tokenizer: PreTrainedTokenizerBase
    own: str | None = None
    """The model's own template; None is that of `caravan.data.template`."""
    folds_system: bool = False
    """The own template has no system messages: they go before the first user's message."""
    special_tokens: bool = False

    @property
    def template_hash(self) -> str:
        """SHA-256 of the chat template."""
        return TEMPLATE_HASH if self.own is None else template_hash(self.own)

    def __str__(self) -> str:
        whose = "the Tülu chat template" if self.own is None else "its own chat template"
        folded = "; system messages, for which it has no place, go before the first user's message"
        return f"{whose} ({self.template_hash[:SHOWN]}){folded if self.folds_system else ''}"

    def encode(self, prompt: Sequence[Message]) -> list[int]:
        """Token ids of a prompt, ending where the assistant's reply begins."""
        if self.own is None:
            return encode_prompt(self.tokenizer, prompt, special_tokens=self.special_tokens)
        if self.folds_system:
            prompt = _folded(prompt)
        encoded = self.tokenizer.apply_chat_template(
            _plain(prompt), chat_template=self.own, add_generation_prompt=True, return_dict=True
        )
        return list(encoded["input_ids"])

    def encode_all(self, prompts: Sequence[Sequence[Message]], first: int = 0) -> list[list[int]]:
        """Token ids of prompts.

        Args:
            first: Number of the first one, for an error.

        Raises:
            PromptRefusedError: the model's template has no room for the roles of a prompt.
        """
        encoded = []
        for number, prompt in enumerate(prompts, first):
            try:
                encoded.append(self.encode(prompt))
            except Exception as error:  # a template raises whatever it likes
                if self.own is None:
                    raise
                raise PromptRefusedError(
                    number,
                    f"the chat template of {self.tokenizer.name_or_path} refuses it: {error}; "
                    "leave it out, or set chat_template: tulu",
                ) from error
        return encoded


def prompt_format(
    tokenizer: PreTrainedTokenizerBase,
    chosen: ChatTemplate | None = None,
    *,
    special_tokens: bool = False,
) -> PromptFormat:
    """What the model of `tokenizer` is asked in.

    Args:
        chosen: As a recipe says it; None takes the model's own template where it has one. One that
            renders the same text as ours in other words is ours.
        special_tokens: Ask in our template, and read the spelling of a special token in a prompt
            as that token: for prompts whose author knows the model's format.

    Raises:
        EngineError: the model is to be asked in its own template and has none, or one that cannot
            be rendered.
    """
    name = tokenizer.name_or_path
    if special_tokens or chosen == "tulu":
        return PromptFormat(tokenizer, special_tokens=special_tokens)
    if tokenizer.chat_template is None:
        if chosen == "model":
            raise EngineError(
                f"{name}: the tokenizer has no chat template, and chat_template: model asks for "
                "its own; put chat_template.jinja beside tokenizer.json, or leave chat_template "
                "out to ask in the Tülu template"
            )
        return PromptFormat(tokenizer)
    if renders_as_ours(tokenizer):
        return PromptFormat(tokenizer)
    try:
        own = tokenizer.get_chat_template()
        _render(tokenizer, own, [_USER])
    except Exception as error:  # a template raises whatever it likes
        raise EngineError(
            f"{name}: its chat template cannot be rendered: {error}; mend chat_template.jinja, or "
            "set chat_template: tulu"
        ) from error
    return PromptFormat(tokenizer, own, folds_system=not _has_system(tokenizer, own))


def end_tokens(tokenizer: PreTrainedTokenizerBase, generation_config: object) -> list[int]:
    """What a reply ends with: the tokenizer's end token, and those that a model of another origin
    ends its turns with."""
    named = getattr(generation_config, "eos_token_id", None)
    others = named if isinstance(named, list) else [named]
    return list(dict.fromkeys(t for t in (tokenizer.eos_token_id, *others) if t is not None))


def _has_system(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether the template says a system message: some refuse it, some leave it out."""
    try:
        return _SYSTEM.content in _render(tokenizer, template, [_SYSTEM, _USER])
    except Exception:  # a template raises whatever it likes
        return False


def _render(tokenizer: PreTrainedTokenizerBase, template: str, messages: Sequence[Message]) -> str:
    text = tokenizer.apply_chat_template(
        _plain(messages), chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert isinstance(text, str)
    return text


def _folded(prompt: Sequence[Message]) -> Sequence[Message]:
    """The system messages, then a blank line, at the beginning of the first user's message."""
    system = [m.content for m in prompt if m.role == "system"]
    turns = [m for m in prompt if m.role != "system"]
    first = next(i for i, m in enumerate(turns) if m.role == "user")
    turns[first] = Message(role="user", content="\n\n".join([*system, turns[first].content]))
    return turns


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
