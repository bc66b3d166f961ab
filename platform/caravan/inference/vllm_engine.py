"""Replies of vLLM in this process: the engine for models that need a GPU to be useful."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from caravan.data.records import Message
from caravan.errors import require
from caravan.inference.engine import (
    TOO_LONG,
    EngineError,
    Generation,
    leaves_room,
    reply_seed,
)
from caravan.inference.prompt_format import prompt_format
from caravan.recipe import Sampling, VLLMEngineConfig

logger = logging.getLogger(__name__)

_PER_CALL = 512
"""Prompts handed to vLLM at once; progress is told between calls."""
_END_SECONDS = 60.0


class VLLMEngine:
    """`vllm.LLM`. It ends a reply at every end token of tokenizer and generation config.

    Log-probabilities are vLLM's `processed_logprobs`: after the temperature (and after `top_p`,
    where it is below 1).
    """

    def __init__(self, config: VLLMEngineConfig, *, special_tokens: bool = False) -> None:
        """
        Args:
            special_tokens: See `prompt_format`.
        """
        self._vllm: Any = require("vllm", extra="vllm", feature="the vllm engine")
        platforms = require("vllm.platforms", extra="vllm", feature="the vllm engine")
        on_cpu = platforms.current_platform.is_cpu()
        others = multiprocessing.active_children()
        try:
            self._llm: Any = self._vllm.LLM(
                model=config.model_name_or_path,
                tensor_parallel_size=config.tensor_parallel_size,
                max_model_len=config.max_model_len,
                gpu_memory_utilization=config.gpu_memory_utilization,
                logprobs_mode="processed_logprobs",
                load_format="safetensors",
                dtype="float32" if on_cpu else "auto",  # as the transformers engine
                enforce_eager=on_cpu,
                disable_log_stats=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise EngineError(
                f"vLLM cannot load {config.model_name_or_path!r}: {error}\nCheck the model "
                "directory, max_model_len and gpu_memory_utilization of this engine"
            ) from error
        self._processes = [p for p in multiprocessing.active_children() if p not in others]
        # vLLM ends its processes when it is collected; at the end of this process, multiprocessing
        # may wait for them before that.
        atexit.register(_end, weakref.ref(self._llm.llm_engine.engine_core))
        self.tokenizer: Any = self._llm.get_tokenizer()
        self.format = prompt_format(
            self.tokenizer, config.chat_template, special_tokens=special_tokens
        )
        logger.info("%s is asked in %s", config.model_name_or_path, self.format)

    @property
    def template_hash(self) -> str:
        return self.format.template_hash

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
        positions = self._llm.llm_engine.model_config.max_model_len
        for start in range(0, len(prompts), _PER_CALL):
            end = min(start + _PER_CALL, len(prompts))
            encoded = dict(enumerate(self.format.encode_all(prompts[start:end], start), start))
            asked = [i for i, ids in encoded.items() if leaves_room(ids, positions)]
            outputs = self._llm.generate(
                [{"prompt_token_ids": encoded[i]} for i in asked],
                [
                    self._sampling_params(sampling, n, reply_seed(seed, prompts[i], 0))
                    for i in asked
                ],
                use_tqdm=False,
            )
            for i, output in zip(asked, outputs, strict=True):
                replies[i] = [_generation(o) for o in output.outputs]
            if progress is not None:
                progress(end * n, len(prompts) * n)
        return replies

    def close(self) -> None:
        """End vLLM's processes, and wait until they hold nothing of the device's memory."""
        self._llm.llm_engine.engine_core.shutdown()
        for process in self._processes:
            process.join(_END_SECONDS)
        del self._llm

    def _sampling_params(self, sampling: Sampling, n: int, seed: int) -> Any:
        return self._vllm.SamplingParams(
            n=n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_completion_length,
            seed=seed,
            logprobs=0,  # of the sampled token only
            skip_special_tokens=True,
            spaces_between_special_tokens=False,
        )


def _end(engine_core: weakref.ref[Any]) -> None:
    if (alive := engine_core()) is not None:
        alive.shutdown()


def _generation(output: Any) -> Generation:
    if output.finish_reason not in ("stop", "length"):
        raise EngineError(f"vLLM ended a reply with {output.finish_reason!r}, not stop or length")
    ids = tuple(output.token_ids)
    logprobs = tuple(
        float(step[token].logprob) for step, token in zip(output.logprobs, ids, strict=True)
    )
    return Generation(output.text, output.finish_reason, ids, logprobs)
