"""Memory of one training process: what it holds of the model, and what a pass leaves for its
backward pass.

Shapes: d hidden size, a attention width, i intermediate size, L layers, all of `ModelShape`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from caravan.planning.devices import GIB, Placement
from caravan.planning.shapes import ModelShape
from caravan.recipe import RLVRConfig, TrainingConfig
from caravan.stages.configs import ReferenceStageConfig

HEADROOM = 0.92
"""Share of a device's memory that is planned with; the rest goes to fragments and peaks."""
LOGITS_PER_CHUNK = 1 << 28
"""That a GPU holds at once, as `caravan.training.output_head` says."""
TOKENS_STEP = 1024
MAX_TOKENS_PER_PASS = 65_536
"""More in one pass makes nothing faster."""


@dataclass(frozen=True)
class TrainingSetup:
    """What one process trains, and how."""

    shape: ModelShape
    ranks: int = 1
    zero_stage: int = 0
    bf16: bool = True
    """Autocast: matrices are computed in bf16, weights and optimiser stay in float32."""
    gradient_checkpointing: bool = False
    trained: int = 1
    """Models of this shape trained at once: 2 with PPO's value model."""
    frozen: int = 0
    """Models of this shape that are only read: a reference, and a reward model. ZeRO-3 spreads them
    too."""
    beside: TrainingSetup | None = None
    """Models of another shape: PPO's value model and a reward model, where they come from one of
    another size."""
    samples: bool = False
    """Rollouts are sampled, which under ZeRO-3 and on a GPU takes a copy of the policy."""
    lora_rank: int = 0
    """Of low-rank adapters on every linear layer; 0 trains the weights themselves."""
    nf4: bool = False
    """The frozen weights of layers are held in 4 bits (QLoRA)."""
    gpu: bool = False
    """With Liger's kernels, and in bf16 between layers, too."""
    lanes: int = 1
    """Passes side by side in one process, on a CPU's cores, each with gradients of its own."""
    offload: str = "none"
    """As the recipe's `zero_offload`: what lies in the host's memory."""

    @property
    def offloaded(self) -> str:
        """One process does without ZeRO, and so without its offloading."""
        return self.offload if self.ranks > 1 else "none"

    @property
    def trained_parameters(self) -> int:
        """Of one trained model."""
        s, r = self.shape, self.lora_rank
        if not r:
            return s.parameters
        d, a, k, i = s.hidden_size, s.attention_width, s.kv_width, s.intermediate_size
        return s.num_layers * r * (2 * (d + a) + 2 * (d + k) + 3 * (d + i))

    def state_bytes(self) -> float:
        """Weights, gradients and Adam's two moments, sharded as ZeRO's stage says
        (Rajbhandari et al. 2020, arXiv:1910.02054, figure 1)."""
        n, t = self.shape.parameters, self.trained_parameters
        shards = {stage: self.ranks if self.zero_stage >= stage else 1 for stage in (1, 2, 3)}
        weights, gradients, moments = 4 / shards[3], 4 / shards[2], 8 / shards[1]
        cast = 2 / shards[3] if self.bf16 else 0  # autocast's copies of the matrices
        # DeepSpeed updates a copy of its share of the weights.
        weights += 4 / shards[1] if self.zero_stage and self.ranks > 1 else 0
        if self.offloaded != "none":  # moments, and the copy that is updated with them
            moments, weights = 0.0, 4 / shards[3]
        if self.offloaded == "all":
            weights = cast = 0.0
        held = n * (weights + cast)
        layers = self.shape.num_layers * self.shape.layer_parameters
        frozen = 0.0 if self.offloaded == "all" else 4 * n / shards[3]
        if self.nf4:  # half a byte, and a scale for every 64 weights
            held = layers * (0.5 + 4 / 64) + (n - layers) * (weights + cast)
        elif self._frozen_in_bf16:
            held = layers * 2 + (n - layers) * (weights + cast)
        if self.lora_rank:
            held += t * weights
        more_gradients = 4 * (self.lanes - 1)
        trained = self.trained * (held + t * (gradients + moments + more_gradients))
        beside = self.beside.state_bytes() if self.beside else 0.0
        return trained + self.frozen * frozen + self.sampled_copy_bytes() + beside

    def gathered_bytes(self) -> float:
        """Of weights that are spread, during a pass: two layers are whole at a time. Frozen models
        gather theirs when trained ones do not."""
        if not self.spread:
            return 0.0
        one = 4 * (2 * self.shape.layer_parameters + self.shape.head_parameters)
        own = max(1, self.trained) * one
        if self.beside is None:
            return own
        beside = self.beside.gathered_bytes()
        return own + beside if self.beside.trained else max(own, beside)

    def sampled_copy_bytes(self) -> float:
        """Of the whole model that is sampled from, where it is not the policy itself."""
        copied = self.samples and (self.spread or self.samples_in_bf16)
        return copied * (2 if self.samples_in_bf16 else 4) * self.shape.parameters

    @property
    def samples_in_bf16(self) -> bool:
        return self.bf16 and self.gpu

    @property
    def _frozen_in_bf16(self) -> bool:
        """Whether the matrices under adapters are held as they are computed with. A CPU samples
        from them in float32."""
        wanted = bool(self.lora_rank) and self.bf16 and (self.gpu or not self.samples)
        return wanted and not self.nf4 and not self.spread

    @property
    def spread(self) -> bool:
        """Whether no rank holds a whole model, but to sample from."""
        return self.zero_stage == 3 and self.ranks > 1

    def token_bytes(self) -> tuple[float, float]:
        """Of each token of a pass: what is kept from the forward to the backward pass, and what a
        layer that is computed again adds. A pass goes through one model."""
        if self.beside and self.beside.trained:
            kept, again = replace(self, beside=None).token_bytes()
            their_kept, their_again = self.beside.token_bytes()
            return max(kept, their_kept), max(again, their_again)
        s = self.shape
        d, a, k, i = s.hidden_size, s.attention_width, s.kv_width, s.intermediate_size
        width = 2 if self.bf16 else 4
        ends = 24 * d  # embeddings, the last norm, and what goes into the output head
        if self.gpu:
            # Inputs and outputs of both norms; queries, keys, values, attention's output; gate, up
            # and product of the MLP. What else the backward pass needs, kernels compute again.
            layer = width * (4 * d + 2 * a + 2 * k + 3 * i)
            if self.gradient_checkpointing:  # the layers' inputs
                return width * d * s.num_layers + ends, layer
            return s.num_layers * layer + ends, 0.0
        # A layer keeps the input and the normalised input of both norms in float32; and in the
        # computing precision both norms' outputs, queries, keys and values (widened to all heads),
        # attention's output, and gate, up, activation and product of the MLP.
        layer = 16 * d + width * (2 * d + 4 * a + 4 * i)
        if self.gradient_checkpointing:  # the layers' inputs; one layer again, and its gradients
            return 4 * d * s.num_layers + ends, 3 * layer
        return (s.num_layers + 1) * layer + ends, 0.0  # one more while its gradient is computed

    def head_bytes(self) -> float:
        """Of the output head on a GPU, whatever the tokens: a chunk of logits, their gradient, and
        the gradient of the head in float32 beside a chunk's part of it."""
        if not self.gpu or not self.trained:
            return 0.0
        width = 2 if self.bf16 else 4
        return 2 * width * LOGITS_PER_CHUNK + (4 + width) * self.shape.head_parameters

    def freed_bytes(self) -> float:
        """Of `state_bytes`, what is gone before the backward pass: autocast's copies of matrices in
        layers that are computed again."""
        copied = self.bf16 and not self.nf4 and self.offloaded != "all"
        copied = copied and not self._frozen_in_bf16
        if not (self.gpu and self.gradient_checkpointing and copied):
            return 0.0
        sharded = self.ranks if self.zero_stage == 3 else 1
        own = 2 * self.shape.num_layers * self.shape.layer_parameters * self.trained / sharded
        return own + (self.beside.freed_bytes() if self.beside else 0.0)

    def gib(self, tokens_per_pass: float) -> float:
        kept, again = self.token_bytes()
        tokens = self.lanes * tokens_per_pass
        backward = max(self.head_bytes(), again * tokens) - self.freed_bytes()
        held = self.state_bytes() + self.gathered_bytes()
        return (held + kept * tokens + max(backward, 0)) / GIB

    def tokens_in(self, gib: float) -> float:
        """The most tokens of a pass that take no more than `gib`; negative where it has no room."""
        room = gib * GIB - self.state_bytes() - self.gathered_bytes()
        kept, again = self.token_bytes()
        fit = (
            room / kept,
            (room + self.freed_bytes() - self.head_bytes()) / kept,
            (room + self.freed_bytes()) / (kept + again),
        )
        return min(fit) / self.lanes


def training_setup(
    config: TrainingConfig,
    shape: ModelShape,
    *,
    gpu: bool,
    ranks: int,
    lanes: int,
    reward_model: ModelShape | None = None,
) -> TrainingSetup:
    """What one process of a training stage holds, from the stage's part of the recipe.

    Args:
        reward_model: of RLVR, also the shape of the value model that starts from it; None is that
            of the policy.
    """
    one = TrainingSetup(
        shape,
        ranks,
        config.zero_stage,
        config.bf16,
        config.gradient_checkpointing,
        lora_rank=config.lora.rank if config.lora else 0,
        nf4=config.quantization is not None,
        gpu=gpu,
        lanes=lanes,
        offload=config.zero_offload,
    )
    if not isinstance(config, RLVRConfig):
        return one
    valued, scored = config.algorithm.kind == "ppo", config.reward_model_multiplier > 0
    reference = config.beta > 0 and config.lora is None  # else it is the policy, unadapted
    policy = replace(one, frozen=int(reference),
                     samples=config.rollouts.kind == "transformers")  # fmt: skip
    if reward_model in (None, shape) or not config.reads_reward_model:
        return replace(policy, trained=1 + valued, frozen=policy.frozen + scored)
    beside = replace(one, shape=reward_model, trained=int(valued), frozen=int(scored))
    return replace(policy, beside=beside)


def forward_setup(
    config: ReferenceStageConfig, shape: ModelShape, *, gpu: bool, ranks: int
) -> TrainingSetup:
    """What one process holds of a stage that only reads a model."""
    return TrainingSetup(
        shape, ranks, config.zero_stage, config.bf16,
        gradient_checkpointing=True, trained=0, frozen=1, gpu=gpu, offload=config.zero_offload,
    )  # fmt: skip


def pass_tokens(
    asked: int | Literal["auto"], setup: TrainingSetup, placement: Placement, longest: int
) -> int:
    """Tokens of a pass: as many as asked for, with `auto` as many as fit. That is at least one
    row, which may turn out to fit where it was not expected to."""
    if asked == "auto":
        return fitting_tokens(setup, placement, longest) or longest
    return asked


def fitting_tokens(setup: TrainingSetup, placement: Placement, longest: int) -> int | None:
    """The most tokens per pass that fit the device; None where not even one row does.

    Args:
        longest: tokens of the longest row, which is never split.
    """
    tokens = setup.tokens_in(placement.memory_gib * HEADROOM - placement.device.base_gib)
    if tokens < longest:
        return None
    whole = int(tokens) // TOKENS_STEP * TOKENS_STEP
    return min(max(whole, longest), max(MAX_TOKENS_PER_PASS, longest))


def rows_at_once(
    rows: float,
    shape: ModelShape,
    placement: Placement,
    held_gib: float,
    length: float,
    *,
    bf16: bool,
) -> tuple[int, float]:
    """How many of `rows` of `length` tokens our sampler decodes at once beside `held_gib`, and the
    GiB of their keys and values: all of them, or on a GPU as many as have room.

    Args:
        bf16: the model's precision, in which they are; else float32.
    """
    row = (1 if bf16 else 2) * length * shape.kv_bytes_per_token / GIB
    at_once, room = math.ceil(rows), placement.memory_gib * HEADROOM - held_gib
    if placement.on_gpu and room > 0:
        at_once = max(1, min(at_once, int(room / row)))
    return at_once, at_once * row


def remedies(setup: TrainingSetup, placement: Placement, longest: int) -> str:
    """The smallest change of the recipe with which the stage fits its devices, in words."""
    tries: list[tuple[str, TrainingSetup]] = []
    if not setup.gradient_checkpointing:
        tries.append(("gradient_checkpointing: true", replace(setup, gradient_checkpointing=True)))
    for stage in range(setup.zero_stage + 1, 4):
        if setup.ranks > 1:
            sharded = replace(setup, zero_stage=stage)
            tries.append((f"zero_stage: {stage}", sharded))
            both = replace(sharded, gradient_checkpointing=True)
            tries.append((f"zero_stage: {stage} and gradient_checkpointing: true", both))
    if setup.ranks > 1 and setup.trained and setup.offloaded == "none":
        offloaded = replace(setup, zero_stage=3, gradient_checkpointing=True, offload="optimizer")
        words = "zero_stage: 3, gradient_checkpointing: true and zero_offload: optimizer"
        tries.append((words, offloaded))
    for words, changed in tries:
        if fitting_tokens(changed, placement, longest) is not None:
            return f"set {words}"
    ranks = max(setup.ranks, 1)
    while placement.on_gpu and ranks < 4096 and setup.trained:  # what only reads runs alone
        ranks *= 2
        sharded = replace(setup, ranks=ranks, zero_stage=3, gradient_checkpointing=True)
        if fitting_tokens(sharded, placement, longest) is not None:
            return f"take {ranks} GPUs with zero_stage: 3 and gradient_checkpointing: true"
    return "take a device with more memory, a shorter max_length or a smaller model"
