"""Replies of a transformers model, on whatever device it lies."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from caravan.data.records import Message
from caravan.data.template import encode_prompt
from caravan.garbage import collect_as_usual
from caravan.inference.engine import (
    TOO_LONG,
    EngineError,
    Generation,
    leaves_room,
    positions_of,
)
from caravan.inference.sampler import TokenSequence, generate_tokens
from caravan.recipe import Sampling

TENSORS_NAMED = 5
"""Of those that are missing, in an error."""


class TransformersEngine:
    """A causal language model in memory, with the chat template of `caravan.data.template`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        batch_size: int = 64,
        special_tokens: bool = False,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise EngineError(
                "the tokenizer has no end token, so no reply could end: set eos_token"
            )
        collect_as_usual()  # all is imported
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.special_tokens = special_tokens

    @classmethod
    def from_pretrained(
        cls, model_name_or_path: str | Path, *, batch_size: int = 64, special_tokens: bool = False
    ) -> Self:
        """The model of a directory or of the hub, from safetensors, on the GPU where there is one.

        Raises:
            EngineError: there is no such model, or it is not safetensors.
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
            special_tokens=special_tokens,
        )

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        n: int = 1,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Generation]]:
        eos = self.tokenizer.eos_token_id
        pad = self.tokenizer.pad_token_id
        encoded = [
            encode_prompt(self.tokenizer, prompt, special_tokens=self.special_tokens)
            for prompt in prompts
        ]
        positions = positions_of(self.model.config)
        asked = [i for i, ids in enumerate(encoded) if leaves_room(ids, positions)]
        sequences = generate_tokens(
            self.model,
            [encoded[i] for i in asked],
            n=n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_completion_length,
            eos_token_id=eos,
            pad_token_id=eos if pad is None else pad,
            generator=torch.Generator(self.model.device).manual_seed(seed),
            batch_size=self.batch_size,
            progress=progress,
        )
        replies = [[TOO_LONG] * n for _ in prompts]
        for i, group in zip(asked, sequences, strict=True):
            replies[i] = [self._decoded(sequence) for sequence in group]
        return replies

    def close(self) -> None:
        """Let go of the model."""
        del self.model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _decoded(self, sequence: TokenSequence) -> Generation:
        return Generation(
            decode_reply(self.tokenizer, sequence.token_ids),
            sequence.finish_reason,
            sequence.token_ids,
            sequence.logprobs,
        )


def decode_reply(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """The text of a reply, without its end token and without any tidying of spaces."""
    text = tokenizer.decode(
        list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text
