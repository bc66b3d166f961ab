"""Replies of vLLM in this process: the engine for models that need a GPU to be useful."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from caravan.data.records import Message
from caravan.errors import require
from caravan.inference.engine import TOO_LONG, Generation, leaves_room, reply_seed
from caravan.inference.likelihood import Progress, Question
from caravan.inference.prompt_format import prompt_format
from caravan.inference.vllm_process import VLLMProcess, sequence_of
from caravan.recipe import Sampling, VLLMEngineConfig

logger = logging.getLogger(__name__)

_PER_CALL = 512
"""Prompts handed to vLLM at once; progress is told between calls."""


class VLLMEngine:
    """`vllm.LLM`. It ends a reply at every end token of tokenizer and generation config."""

    def __init__(self, config: VLLMEngineConfig, *, special_tokens: bool = False) -> None:
        """
        Args:
            special_tokens: See `prompt_format`.
        """
        self._process = VLLMProcess(
            config.model_name_or_path,
            tensor_parallel_size=config.tensor_parallel_size,
            max_model_len=config.max_model_len,
            gpu_memory_utilization=config.gpu_memory_utilization,
        )
        self.tokenizer: Any = self._process.llm.get_tokenizer()
        self.format = prompt_format(
            self.tokenizer, config.chat_template, special_tokens=special_tokens
        )
        logger.info("%s is asked in %s", config.model_name_or_path, self.format)

    @property
    def template_hash(self) -> str:
        return self.format.template_hash

    @property
    def positions(self) -> int:
        return int(self._process.llm.llm_engine.model_config.max_model_len)

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        n: int = 1,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Generation]]:
        replies = [[TOO_LONG] * n for _ in prompts]
        for start in range(0, len(prompts), _PER_CALL):
            end = min(start + _PER_CALL, len(prompts))
            encoded = dict(enumerate(self.format.encode_all(prompts[start:end], start), start))
            asked = [i for i, ids in encoded.items() if leaves_room(ids, self.positions)]
            outputs = self._process.call(
                "generate",
                [{"prompt_token_ids": encoded[i]} for i in asked],
                [_sampling_params(sampling, n, reply_seed(seed, prompts[i], 0)) for i in asked],
                use_tqdm=False,
            )
            for i, output in zip(asked, outputs, strict=True):
                replies[i] = [_generation(o) for o in output.outputs]
            if progress is not None:
                progress(end * n, len(prompts) * n)
        return replies

    def weigh(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[list[float]]:
        vllm = require("vllm", extra="vllm", feature="the vllm engine")
        # It cannot but write a token; 0: of each token of the prompt alone.
        asked = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        rows = [(q.prompt + option, len(option)) for q in questions for option in q.options]
        values: list[float] = []
        for start in range(0, len(rows), _PER_CALL):
            batch = rows[start : start + _PER_CALL]
            prompts = [{"prompt_token_ids": tokens} for tokens, _ in batch]
            outputs = self._process.call("generate", prompts, asked, use_tqdm=False)
            for (tokens, length), output in zip(batch, outputs, strict=True):
                told = list(zip(tokens, output.prompt_logprobs, strict=True))[-length:]
                values.append(sum(float(at[token].logprob) for token, at in told))
            if progress is not None:
                progress(start + len(batch), len(rows))
        found = iter(values)
        return [[next(found) for _ in question.options] for question in questions]

    def close(self) -> None:
        """End vLLM's processes, and wait until they hold nothing of the device's memory."""
        self._process.close()


def _sampling_params(sampling: Sampling, n: int, seed: int) -> Any:
    vllm = require("vllm", extra="vllm", feature="the vllm engine")
    return vllm.SamplingParams(
        n=n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_completion_length,
        seed=seed,
        logprobs=0,  # of the sampled token only
        skip_special_tokens=True,
        spaces_between_special_tokens=False,
    )


def _generation(output: Any) -> Generation:
    sequence = sequence_of(output)
    return Generation(output.text, sequence.finish_reason, sequence.token_ids, sequence.logprobs)
