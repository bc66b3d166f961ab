"""A conversation with a model in memory, whose replies are told while they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from caravan.data.records import Message
from caravan.errors import DataError
from caravan.inference.engine import EngineError, leaves_room, positions_of
from caravan.inference.sampler import TokenSequence, generate_tokens
from caravan.inference.transformers_engine import TransformersEngine, decode_reply
from caravan.recipe import Sampling

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a character decodes to of which not all tokens are there."""


@dataclass
class Chat:
    engine: TransformersEngine
    sampling: Sampling
    seed: int = 0
    system: str = ""
    history: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.engine.tokenizer.chat_template is None:
            raise DataError("the model has no chat template, so nothing can talk to it")
        self._generator = torch.Generator(self.engine.model.device).manual_seed(self.seed)

    @classmethod
    def open(cls, model: Path, sampling: Sampling, *, seed: int = 0, system: str = "") -> Chat:
        return cls(TransformersEngine.from_pretrained(model), sampling, seed, system)

    def reset(self, system: str | None = None) -> None:
        """Forget what was said; with `system`, under another system message."""
        self.history.clear()
        self.system = self.system if system is None else system

    def say(self, text: str, write: Callable[[str], None]) -> bool:
        """Let the model reply, piece by piece to `write`. A reply that is interrupted
        (KeyboardInterrupt) ends where it is.

        Returns:
            Whether the reply came to its end.

        Raises:
            EngineError: the conversation fills the model; it stays as it was.
        """
        asked = [*self.history, Message(role="user", content=text)]
        prompt = self._encoded(asked)
        model, tokenizer = self.engine.model, self.engine.tokenizer
        room = positions_of(model.config)
        if not leaves_room(prompt, room):
            raise EngineError(
                f"the conversation has {len(prompt)} tokens, and prompt and reply together have "
                f"room for {room}; begin a new one, or say less"
            )
        ends = self.engine.ends
        reply = _Reply(tokenizer, ends, write)
        try:
            ((made,),) = generate_tokens(
                model,
                [prompt],
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                max_new_tokens=self.sampling.max_completion_length,
                eos_token_id=ends,
                pad_token_id=ends[0],
                generator=self._generator,
                on_tokens=reply.add,
            )
        except KeyboardInterrupt:
            made = TokenSequence(tuple(reply.token_ids), (), "length")
        reply.finish()
        self.history = [*asked, Message(role="assistant", content=reply.text)]
        return made.finish_reason == "stop"

    def _encoded(self, messages: Sequence[Message]) -> list[int]:
        if self.system:
            messages = [Message(role="system", content=self.system), *messages]
        (encoded,) = self.engine.format.encode_all([messages])
        return encoded


@dataclass
class _Reply:
    tokenizer: PreTrainedTokenizerBase
    ends: Sequence[int]
    write: Callable[[str], None]
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    """What has been written."""

    def add(self, token_ids: Sequence[int]) -> None:
        self.token_ids += token_ids
        text = decode_reply(self.tokenizer, self.token_ids, self.ends)
        if not text.endswith(UNFINISHED):
            self._write(text)

    def finish(self) -> None:
        self._write(decode_reply(self.tokenizer, self.token_ids, self.ends))

    def _write(self, text: str) -> None:
        piece, self.text = text[len(self.text) :], text
        if piece:
            self.write(piece)
