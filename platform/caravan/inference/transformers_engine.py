"""Replies of a transformers model, on whatever device it lies."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from caravan.data.records import Message
from caravan.garbage import collect_as_usual
from caravan.inference.engine import (
    TOO_LONG,
    EngineError,
    Generation,
    leaves_room,
    positions_of,
)
from caravan.inference.likelihood import Progress, Question
from caravan.inference.prompt_format import end_tokens, prompt_format
from caravan.inference.sampler import TokenSequence, generate_tokens
from caravan.inference.transformers_likelihood import weigh_questions
from caravan.recipe import ChatTemplate, Sampling

logger = logging.getLogger(__name__)

TENSORS_NAMED = 5
"""Of those that are missing, in an error."""


class TransformersEngine:
    """A causal language model in memory."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        batch_size: int = 64,
        chat_template: ChatTemplate | None = None,
        special_tokens: bool = False,
    ) -> None:
        """
        Args:
            chat_template, special_tokens: See `prompt_format`.
        """
        if tokenizer.eos_token_id is None:
            raise EngineError(
                "the tokenizer has no end token, so no reply could end: set eos_token"
            )
        collect_as_usual()  # all is imported
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.format = prompt_format(tokenizer, chat_template, special_tokens=special_tokens)
        self.ends = end_tokens(tokenizer, model.generation_config)
        logger.info("%s is asked in %s", tokenizer.name_or_path, self.format)

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | Path,
        *,
        batch_size: int = 64,
        chat_template: ChatTemplate | None = None,
        special_tokens: bool = False,
    ) -> Self:
        """The model of a directory or of the hub, from safetensors, on the GPU where there is one.

        Raises:
            EngineError: there is no such model, it is not safetensors, or it has not the chat
                template that is asked for.
        """
        on_gpu = torch.cuda.is_available()
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(model_name_or_path))
            model, found = AutoModelForCausalLM.from_pretrained(
                str(model_name_or_path),
                dtype=torch.bfloat16 if on_gpu else torch.float32,
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, ValueError) as error:
            raise EngineError(
                f"cannot load the model {str(model_name_or_path)!r}: {error}\n"
                "Give a directory with config.json, model.safetensors and tokenizer.json, "
                "or the name of a model on the hub"
            ) from error
        if found["missing_keys"]:  # transformers would draw them at random
            missing = ", ".join(sorted(found["missing_keys"])[:TENSORS_NAMED])
            raise EngineError(
                f"the model {str(model_name_or_path)!r} lacks weights: {missing}; copy it again, "
                "whole, or give one that can generate"
            )
        return cls(
            model.to("cuda" if on_gpu else "cpu").eval(),
            tokenizer,
            batch_size=batch_size,
            chat_template=chat_template,
            special_tokens=special_tokens,
        )

    @property
    def template_hash(self) -> str:
        return self.format.template_hash

    @property
    def positions(self) -> int:
        return positions_of(self.model.config)

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        n: int = 1,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Generation]]:
        pad = self.tokenizer.pad_token_id
        encoded = self.format.encode_all(prompts)
        asked = [i for i, ids in enumerate(encoded) if leaves_room(ids, self.positions)]
        sequences = generate_tokens(
            self.model,
            [encoded[i] for i in asked],
            n=n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_completion_length,
            eos_token_id=self.ends,
            pad_token_id=self.ends[0] if pad is None else pad,
            generator=torch.Generator(self.model.device).manual_seed(seed),
            batch_size=self.batch_size,
            progress=progress,
        )
        replies = [[TOO_LONG] * n for _ in prompts]
        for i, group in zip(asked, sequences, strict=True):
            replies[i] = [self._decoded(sequence) for sequence in group]
        return replies

    def weigh(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[list[float]]:
        return weigh_questions(self.model, questions, self.batch_size, progress)

    def close(self) -> None:
        """Let go of the model."""
        del self.model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _decoded(self, sequence: TokenSequence) -> Generation:
        return Generation(
            decode_reply(self.tokenizer, sequence.token_ids, self.ends),
            sequence.finish_reason,
            sequence.token_ids,
            sequence.logprobs,
        )


def decode_reply(tokenizer: Tokenizer, token_ids: Sequence[int], ends: Sequence[int] = ()) -> str:
    """The text of a reply, without special tokens and without any tidying of spaces.

    Args:
        ends: End tokens, of which not every tokenizer knows that they are special.
    """
    written = token_ids[:-1] if token_ids and token_ids[-1] in ends else token_ids
    text = tokenizer.decode(
        list(written), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text
