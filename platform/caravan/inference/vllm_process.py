"""vLLM's `LLM` and the processes that it starts, which end with it."""

from __future__ import annotations

import atexit
import multiprocessing
import weakref
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any

from caravan.errors import require
from caravan.inference.engine import EngineError
from caravan.inference.sampler import TokenSequence

_END_SECONDS = 60.0
_POLL_SECONDS = 1.0


class VLLMProcess:
    """`vllm.LLM` for one model directory or name, on this process's devices.

    Log-probabilities are vLLM's `processed_logprobs`: after the temperature (and after `top_p`,
    where it is below 1).
    """

    def __init__(self, model: str, *, dtype: str = "auto", **options: Any) -> None:
        """
        Args:
            dtype: on a GPU; on a CPU it is float32, as the transformers engine's.
            options: further ones of `vllm.LLM`.

        Raises:
            EngineError: vLLM cannot load the model.
            MissingExtraError: vLLM is not installed.
        """
        vllm = require("vllm", extra="vllm", feature="the vllm engine")
        platforms = require("vllm.platforms", extra="vllm", feature="the vllm engine")
        on_cpu = platforms.current_platform.is_cpu()
        others = multiprocessing.active_children()
        try:
            self.llm: Any = vllm.LLM(
                model=model,
                logprobs_mode="processed_logprobs",
                load_format="safetensors",
                dtype="float32" if on_cpu else dtype,
                enforce_eager=on_cpu,
                disable_log_stats=True,
                **options,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise EngineError(
                f"vLLM cannot load {model!r}: {error}\nCheck the model directory, max_model_len "
                "and gpu_memory_utilization of this engine"
            ) from error
        self._processes = [p for p in multiprocessing.active_children() if p not in others]
        # vLLM ends its processes when it is collected; at the end of this process, multiprocessing
        # may wait for them before that.
        atexit.register(_end, weakref.ref(self.llm.llm_engine.engine_core))

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A method of `LLM`, whose caller would wait for ever where its process ends meanwhile.

        Raises:
            EngineError: it has ended.
        """
        answer: Future[Any] = Future()

        def ask() -> None:
            try:
                answer.set_result(getattr(self.llm, method)(*args, **kwargs))
            except BaseException as error:
                answer.set_exception(error)

        Thread(target=ask, daemon=True).start()
        while self._alive() and not wait([answer], timeout=_POLL_SECONDS).done:
            pass
        if self._alive():
            return answer.result()
        raise EngineError(
            "vLLM's process has ended; its last lines are in the log above (one that was killed "
            "has usually run out of memory: lower gpu_memory_utilization, or ask for more "
            "memory_gib)"
        )

    def _alive(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def close(self) -> None:
        """End the processes, and wait until they hold nothing of the device's memory."""
        self.llm.llm_engine.engine_core.shutdown()
        for process in self._processes:
            process.join(_END_SECONDS)
        del self.llm


def sequence_of(output: Any) -> TokenSequence:
    """One continuation that vLLM made, asked for with `logprobs=0`.

    Raises:
        EngineError: it was not ended by the model or by its length.
    """
    if output.finish_reason not in ("stop", "length"):
        raise EngineError(f"vLLM ended a reply with {output.finish_reason!r}, not stop or length")
    ids = tuple(output.token_ids)
    logprobs = tuple(
        float(step[token].logprob) for step, token in zip(output.logprobs, ids, strict=True)
    )
    return TokenSequence(ids, logprobs, output.finish_reason)


def _end(engine_core: weakref.ref[Any]) -> None:
    if (alive := engine_core()) is not None:
        alive.shutdown()
