"""The Tülu chat template: role markers in plain text, an end token after every assistant turn.

    <|user|>
    What is 3 + 4?
    <|assistant|>
    7<|endoftext|>

A newline follows the end token only where another message follows (Lambert et al. 2024, table 13).
Loss falls on the assistant turns and their end tokens, on all of them, and on nothing else.

Text of a message is never read as structure: a marker inside it stays in that message's part of
the mask, and the spelling of a special token inside it is encoded as ordinary characters. The
mask comes from the messages, not from searching the rendered text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from caravan.data.records import Message
from caravan.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' }}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% elif message['role'] in ('system', 'user') %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
"""For `tokenizer.chat_template`. `generation` marks what transformers calls the assistant mask."""

BEGIN = "{{ bos_token }}"
"""What `chat_template` puts before `TEMPLATE` where the tokenizer begins a text with a token."""

TEMPLATE_HASH = hashlib.sha256(TEMPLATE.encode()).hexdigest()

GENERATION_PROMPT = "<|assistant|>\n"


@dataclass(frozen=True)
class TokenizedConversation:
    input_ids: list[int]
    labels_mask: list[bool]
    """True where the token is trained on."""
    truncated: bool = False
    """True where tokens beyond `max_length` were cut off."""

    @property
    def supervised_tokens(self) -> int:
        """How many tokens are trained on; 0 means that the row teaches nothing and must go."""
        return sum(self.labels_mask)


class _Segment(NamedTuple):
    text: str
    supervised: bool
    """The text is an assistant's content, and the end token follows it."""


def render(
    messages: Sequence[Message], eos: str = "<|endoftext|>", add_generation_prompt: bool = False
) -> str:
    """The conversation as text; equals transformers' `apply_chat_template` with `TEMPLATE`."""
    return "".join(
        text + eos if supervised else text
        for text, supervised in _segments(messages, add_generation_prompt)
    )


def tokenize_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_length: int | None = None
) -> TokenizedConversation:
    """Token ids and label mask. A prompt's tokens are a prefix of its conversation's tokens.

    Each part is encoded by itself, so no token spans the border between prompt and reply and
    training sees the very tokens that generation starts from.
    """
    ids = _beginning(tokenizer)
    mask = [False] * len(ids)
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise DataError("the tokenizer has no end token; set `eos_token` in tokenizer_config.json")
    for text, supervised in _segments(messages, add_generation_prompt=False):
        part = _encode(tokenizer, text)
        if supervised:
            part.append(eos)
        ids += part
        mask += [supervised] * len(part)
    return truncate(TokenizedConversation(ids, mask), max_length)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, special_tokens: bool = False
) -> list[int]:
    """Token ids of a prompt, ending where the assistant's reply begins.

    Args:
        special_tokens: Read the spelling of a special token as that token, for prompts whose
            author wrote it on purpose.
    """
    if messages[-1].role == "assistant":
        raise DataError("a prompt ends with a user's turn, not an assistant's; drop the reply")
    ids = _beginning(tokenizer)
    for text, supervised in _segments(messages, add_generation_prompt=True):
        ids += _encode(tokenizer, text, special_tokens=special_tokens)
        if supervised:
            ids.append(tokenizer.eos_token_id)
    return ids


def encode_reply(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a reply, without its end token, as they follow those of `encode_prompt`."""
    return _encode(tokenizer, text)


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """What is saved with a model: whoever applies it asks with the tokens of `encode_prompt`.

    Chat templates are applied without the tokens that a tokenizer adds by itself, so the begin
    token has to be in it.
    """
    return BEGIN + TEMPLATE if _beginning(tokenizer) else TEMPLATE


def truncate(tokens: TokenizedConversation, max_length: int | None) -> TokenizedConversation:
    """The first `max_length` tokens; look at `supervised_tokens` for whether any reply is left."""
    if max_length is None or len(tokens.input_ids) <= max_length:
        return tokens
    return TokenizedConversation(
        tokens.input_ids[:max_length], tokens.labels_mask[:max_length], truncated=True
    )


def _segments(messages: Sequence[Message], add_generation_prompt: bool) -> list[_Segment]:
    """Alternating parts: everything up to a reply, the reply, everything up to the next one."""
    segments: list[_Segment] = []
    pending = ""
    last = len(messages) - 1
    for index, message in enumerate(messages):
        if message.role == "assistant":
            segments.append(_Segment(pending + GENERATION_PROMPT, supervised=False))
            segments.append(_Segment(message.content, supervised=True))
            pending = "" if index == last else "\n"
        else:
            pending += f"<|{message.role}|>\n{message.content}\n"
    if add_generation_prompt:
        pending += GENERATION_PROMPT
    return [*segments, _Segment(pending, supervised=False)] if pending else segments


def _encode(
    tokenizer: PreTrainedTokenizerBase, text: str, *, special_tokens: bool = False
) -> list[int]:
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=not special_tokens, verbose=False
    )
    return list(encoded["input_ids"])


def _beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The begin token where this tokenizer adds one by itself (Llama does), else nothing."""
    bos = tokenizer.bos_token_id
    added = tokenizer("", add_special_tokens=True)["input_ids"]
    return [bos] if bos is not None and list(added[:1]) == [bos] else []
