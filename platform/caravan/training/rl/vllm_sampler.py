"""Rollouts of vLLM, which runs in processes of its own and gets the policy's weights as files.

The first rank of each node writes the whole policy to a directory in memory, and each vLLM of the
node reads it in place. Each rank has a vLLM on its own GPU, or the first of every
`tensor_parallel_size` ranks one on all of theirs. On a GPU it sleeps while the ranks train: then
neither weights nor keys and values of it are on the device.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caravan.errors import StageError, require
from caravan.inference.sampler import TokenSequence
from caravan.inference.vllm_process import VLLMProcess, sequence_of
from caravan.recipe import Sampling, VLLMRollouts
from caravan.training.optim import Updater
from caravan.training.parallel.ranks import Ranks, current
from caravan.training.seeds import derived_seed

IN_MEMORY = Path("/dev/shm")
_ROOM = 1.1
"""Free space that files need, as a multiple of the weights."""
_OF_TORCHRUN = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


class VLLMSampler:
    """What a completion is drawn with depends on its prompt's place in the step, not on ranks."""

    def __init__(
        self,
        config: VLLMRollouts,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        workdir: Path,
    ) -> None:
        """
        Args:
            max_length: in tokens, prompt and completion together.
            workdir: takes the weights where the memory's file system has no room.

        Raises:
            StageError: this node has no whole number of vLLMs.
        """
        ranks, size = current(), config.tensor_parallel_size
        if ranks.local_count % size:
            raise StageError(
                f"rollouts.tensor_parallel_size {size} does not divide the {ranks.local_count} "
                "training process(es) of this node; take a number that does"
            )
        self.importance_ratio_cap = config.importance_ratio_cap
        self._config, self._tokenizer = config, tokenizer
        self._max_length, self._workdir = max_length, workdir
        self._on_gpu = torch.cuda.is_available()
        self._process: VLLMProcess | None = None

    def load(self, policy: Updater) -> None:
        ranks = current()
        whole = self._whole(policy, keep=ranks.local_rank == 0)
        if self._on_gpu:
            torch.cuda.empty_cache()  # what the last updates left makes room for vLLM
        with self._written(cast(PreTrainedModel, policy.model), whole) as written:
            # Ranks of a node have numbers in a row.
            directory = ranks.collect([written])[ranks.rank - ranks.local_rank]
            if ranks.local_rank % self._config.tensor_parallel_size == 0:
                self._read(cast(Path, directory), ranks)
            ranks.wait()

    def sample(
        self, prompts: Sequence[Sequence[int]], *, n: int, sampling: Sampling, seed: int
    ) -> dict[int, list[TokenSequence]]:
        if self._process is None:  # another rank has the vLLM of this one's GPU
            return {}
        ranks, size = current(), self._config.tensor_parallel_size
        own = range(ranks.rank // size, len(prompts), ranks.count // size)
        outputs = self._process.call(
            "generate",
            [{"prompt_token_ids": list(prompts[number])} for number in own],
            [self._params(n, sampling, derived_seed(seed, "prompt", number)) for number in own],
            use_tqdm=False,
        )
        return {
            number: [sequence_of(completion) for completion in output.outputs]
            for number, output in zip(own, outputs, strict=True)
        }

    def rest(self) -> None:
        if self._process is not None and self._on_gpu:
            self._process.call("sleep", level=2)

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _params(self, n: int, sampling: Sampling, seed: int) -> Any:
        vllm = require("vllm", extra="vllm", feature="rollouts of kind vllm")
        return vllm.SamplingParams(
            n=n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_completion_length,
            seed=seed,  # of the first completion; vLLM counts on for the others
            logprobs=0,  # of the sampled token only
            detokenize=False,
            ignore_eos=True,  # what a model directory says; the tokenizer's end token alone counts
            stop_token_ids=[self._tokenizer.eos_token_id],
        )

    def _whole(self, policy: Updater, *, keep: bool) -> dict[str, Tensor]:
        dtype = torch.bfloat16 if self._on_gpu else torch.float32
        whole = {}
        for name, weight in policy.each_weight():
            if keep:
                whole[name] = weight.to("cpu", dtype, copy=True)
        return whole

    @contextmanager
    def _written(self, model: PreTrainedModel, whole: dict[str, Tensor]) -> Iterator[Path | None]:
        """A directory with the model while it is read; None where there is nothing to write."""
        if not whole:
            yield None
            return
        size = _ROOM * sum(weight.nbytes for weight in whole.values())
        fits = IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > size
        with tempfile.TemporaryDirectory(
            prefix="caravan-policy-", dir=IN_MEMORY if fits else self._workdir
        ) as name:
            for tied, to in model.all_tied_weights_keys.items():
                whole[tied] = whole[to].clone()
            model.save_pretrained(name, state_dict=whole)
            whole.clear()
            yield Path(name)

    def _read(self, directory: Path, ranks: Ranks) -> None:
        if self._process is None:
            size = self._config.tensor_parallel_size
            with _environment_of_its_own(ranks, size):
                self._process = VLLMProcess(
                    str(directory),
                    dtype="bfloat16",
                    tensor_parallel_size=size,
                    max_model_len=self._max_length,
                    gpu_memory_utilization=self._config.gpu_memory_utilization,
                    enable_sleep_mode=self._on_gpu,
                    skip_tokenizer_init=True,
                    # Of a tied head it may keep a copy, which it would not read again.
                    hf_overrides={"tie_word_embeddings": False},
                )
            return
        call = self._process.call
        if self._on_gpu:
            call("wake_up", tags=["weights"])
        call("collective_rpc", "reload_weights", kwargs={"weights_path": str(directory)})
        if self._on_gpu:
            call("wake_up", tags=["kv_cache"])
        call("reset_prefix_cache")  # its keys and values are of the old weights


@contextmanager
def _environment_of_its_own(ranks: Ranks, size: int) -> Iterator[None]:
    """vLLM's processes are no ranks of ours, and see the GPUs of `size` ranks from this one on."""
    before = dict(os.environ)
    for name in [n for n in before if n in _OF_TORCHRUN or n.startswith("TORCHELASTIC_")]:
        del os.environ[name]
    visible = before.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(ranks.local_count)))
    own = visible.split(",")[ranks.local_rank :][:size]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
