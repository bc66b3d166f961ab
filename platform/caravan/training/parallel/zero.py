"""The optimiser step under DeepSpeed's ZeRO stages 1 to 3 (Rajbhandari et al., arXiv:1910.02054).

Stage 1 shares the optimiser's state out over the ranks, stage 2 the gradients too, stage 3 the
weights too. Losses, schedule, clipping and what a checkpoint holds are those of one process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from caravan.errors import require
from caravan.recipe import TrainingConfig
from caravan.training.checkpoint import (
    MOMENTS,
    Copies,
    State,
    optimizer_key,
    own_tensors,
    tensor_key,
)
from caravan.training.frozen import Frozen
from caravan.training.optim import Schedule, Update, Updater, unusable_gradient
from caravan.training.parallel.ranks import current, reads_weights

BUCKET_ELEMENTS = 200_000_000
"""Gradients reduced, and weights fetched ahead, at once."""


class ZeroUpdater(Updater):
    """AdamW whose state is spread over the ranks.

    Until the first pass the model is a plain one on every rank.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        config: TrainingConfig,
        betas: tuple[float, float],
        name: str = "policy",
    ) -> None:
        super().__init__(
            model,
            schedule,
            weight_decay=config.weight_decay,
            betas=betas,
            epsilon=config.adam_epsilon,
            name=name,
        )
        self.config = config
        self._engine: Any = None

    @property
    def engine(self) -> Any:
        """DeepSpeed's; it takes the model over when it is first asked for."""
        if self._engine is None:
            deepspeed = _deepspeed()
            config = _config(self.model, self.config.zero_stage, self.config.zero_offload)
            config["gradient_clipping"] = self.config.max_grad_norm
            if self.config.zero_stage == 3:
                _share_out(self.model, config)
            self._engine, *_ = deepspeed.initialize(
                model=_Call(self.model), optimizer=self.optimizer, config=config
            )
        return self._engine

    def forward(self, run: Callable[[Any], Any], model: nn.Module | None = None) -> Any:
        assert model is None or model is self.model, "with ZeRO there is one view of the model"
        return self.engine(run)

    def backward(self, loss: Tensor) -> None:
        # DeepSpeed takes the mean over ranks, and the loss is this rank's part of a sum.
        self.engine.backward(loss * current().count, scale_wrt_gas=False)

    def step(self, step: int) -> Update:
        learning_rate = self.schedule.at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        if not self.engine.was_step_applied():
            raise unusable_gradient(step, norm)
        return Update(learning_rate, norm)

    def each_weight(self) -> Iterator[tuple[str, Tensor]]:
        self.engine  # noqa: B018  # until it is there, one rank alone may have the weights
        return super().each_weight()

    def _whole(self, parameter: nn.Parameter) -> AbstractContextManager[Any]:
        return _gathered(parameter)

    def weights(self) -> Mapping[str, Tensor]:
        return _whole_on_leader(own_tensors(self.model))

    def state(self) -> State:
        return _ZeroState(self)

    def finish(self) -> None:
        whole = _whole_on_leader(dict(self.model.named_parameters()))
        self.engine.destroy()
        for name, parameter in self.model.named_parameters():
            if current().leads:
                parameter.data = whole[name]


class SpreadFrozen(Frozen):
    """A model of which each rank holds a part of every weight; a pass gathers them in turn."""

    def __init__(self, model: PreTrainedModel, offload: str) -> None:
        super().__init__(model)
        config = _config(model, 3, offload)
        _share_out(model, config)
        self._engine, *_ = _deepspeed().initialize(model=_Call(model), config=config)

    @property
    def device(self) -> torch.device:
        return _device()

    def forward(self, run: Callable[[Any], Any], model: PreTrainedModel | None = None) -> Any:
        assert model is None or model is self.model, "with ZeRO there is one view of the model"
        return super().forward(lambda _: self._engine(run))


class _Call(nn.Module):
    """`module(run)` is `run(model)`, inside of DeepSpeed's hooks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[nn.Module], Any]) -> Any:
        return run(self.model)


class _ZeroState:
    """Weights and moments under the names that the checkpoint of one process gives them."""

    def __init__(self, updater: ZeroUpdater) -> None:
        self._updater, self._name = updater, updater.name
        # DeepSpeed replaces the optimiser's parameters by flat ones, in the same order.
        groups = updater.optimizer.param_groups
        ordered = [p for group in groups for p in group["params"]]
        self._numbers = {id(parameter): number for number, parameter in enumerate(ordered)}

    def tensors(self) -> Mapping[str, Tensor]:
        """Gathered one by one; ranks other than the leader keep none."""
        zero = self._updater.engine.optimizer
        steps = _steps_taken(self._updater.optimizer)
        if steps is not None:
            _link_moments(zero)
        kept = Copies()

        def keep(key: str, value: Tensor) -> None:
            if current().leads:
                kept[key] = value.detach().to("cpu", copy=True)

        for path, value in own_tensors(self._updater.model).items():
            if not isinstance(value, nn.Parameter):
                keep(tensor_key(self._name, path), value)
                continue
            with _gathered(value):
                keep(tensor_key(self._name, path), value)
            if steps is None:  # no step was taken yet: all were left out
                continue
            number = self._numbers[id(value)]
            for name in MOMENTS:
                keep(optimizer_key(self._name, number, name), _moment(value, name))
            keep(optimizer_key(self._name, number, "step"), steps)
        return kept

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        assert self._updater._engine is None, "a checkpoint is put before the first pass"
        keeps = reads_weights(self._updater.config.zero_stage)
        with torch.no_grad():
            for path, value in own_tensors(self._updater.model).items():
                given = tensors[tensor_key(self._name, path)]
                # DeepSpeed hands out what the first rank has; to write it here too takes memory.
                if keeps or not isinstance(value, nn.Parameter):
                    value.copy_(given)
        zero = self._updater.engine.optimizer  # its own copies of the weights are made of these
        steps = [optimizer_key(self._name, number, "step") for number in self._numbers.values()]
        there = set(tensors)
        known = next((key for key in steps if key in there), None)
        if known is None:  # saved before the first step was taken
            return
        _make_moments(zero, self._updater.optimizer, tensors[known])
        for value in own_tensors(self._updater.model).values():
            if isinstance(value, nn.Parameter):
                number = self._numbers[id(value)]
                for name in MOMENTS:
                    key = optimizer_key(self._name, number, name)
                    if key in there:  # a weight that never had a gradient has no moments
                        _put_moment(value, name, tensors[key])


def _make_moments(zero: Any, optimizer: torch.optim.Optimizer, step: Tensor) -> None:
    """The optimiser's state as after its first step, which would make it: empty, but there."""
    flat = getattr(zero, "fp32_partitioned_groups_flat", None)  # stage 3
    if flat is None:
        flat = zero.single_partition_of_fp32_groups
    for parameter in flat:
        optimizer.state[parameter] = {
            "step": step.clone().to(parameter.device),
            **{name: torch.zeros_like(parameter) for name in MOMENTS},
        }
    _link_moments(zero)


def _link_moments(zero: Any) -> None:
    """Let stages 1 and 2 find the moments of a weight.

    DeepSpeed does so itself in its first step, but too early for all groups but the first.
    """
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _moment(parameter: nn.Parameter, name: str) -> Tensor:
    utils = _deepspeed().utils
    value = utils.safe_get_full_optimizer_state(parameter, name)
    return cast(Tensor, value)


def _put_moment(parameter: nn.Parameter, name: str, value: Tensor) -> None:
    utils = _deepspeed().utils
    if not hasattr(parameter, "ds_id"):  # stages 1 and 2
        utils.safe_set_full_optimizer_state(parameter, value, name)
        return
    # The function for a whole moment fails where the ranks' parts are not equal.
    size = cast(Any, parameter).ds_tensor.numel()
    mine = value.flatten()[size * current().rank :][:size]
    utils.safe_set_local_optimizer_state(
        parameter, nn.functional.pad(mine, (0, size - mine.numel())), name
    )


def _steps_taken(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """None before the first one: the optimiser has no state then."""
    taken = (cast(Tensor, s["step"]) for s in optimizer.state.values() if "step" in s)
    return next(taken, None)


def _whole_on_leader(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host, gathered one by one; ranks other than the leader keep none."""
    whole: dict[str, Tensor] = {}
    for name, value in tensors.items():
        with _gathered(value) if isinstance(value, nn.Parameter) else nullcontext():
            if current().leads:
                whole[name] = value.detach().to("cpu", copy=True)
    return whole


def _gathered(parameter: nn.Parameter) -> AbstractContextManager[Any]:
    """Inside, a parameter that is spread over the ranks is whole."""
    gathered = _deepspeed().zero.GatheredParameters([parameter])
    return cast(AbstractContextManager[Any], gathered)


def _share_out(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Weight by weight; `initialize` would first put the whole model on the device."""
    _deepspeed().zero.Init(module=model, config_dict_or_path=config)
    for module in model.modules():  # `Init` leaves buffers where they are
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(_device()))


def _config(model: nn.Module, stage: int, offloaded: str) -> dict[str, Any]:
    """https://www.deepspeed.ai/docs/config-json/"""
    elements = sum(_elements(model))
    offload = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": min(BUCKET_ELEMENTS, elements),
        "allgather_bucket_size": min(BUCKET_ELEMENTS, elements),
        "overlap_comm": torch.cuda.is_available(),
    }
    if stage == 3:
        # Norms and biases stay whole on every rank: fetching them costs more than keeping them.
        vectors = [p.numel() for p in model.parameters() if p.ndim < 2]
        zero |= {
            "stage3_prefetch_bucket_size": min(BUCKET_ELEMENTS, elements),
            "stage3_param_persistence_threshold": max(vectors, default=0),
        }
    if offloaded != "none":
        zero["offload_optimizer"] = offload
    if offloaded == "all":
        zero["offload_param"] = offload
    return {
        # Of no effect: a step ends when `step` is called, and passes differ in size.
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # it is compiled at run time; torch's is as good
    }


def _device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _elements(model: nn.Module) -> Iterator[int]:
    return (parameter.numel() for parameter in model.parameters())


def _deepspeed() -> Any:
    deepspeed = require("deepspeed", extra="deepspeed", feature="zero_stage above 0")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # A collective for CPUs that is compiled when it is first used; gloo does without a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not torch.cuda.is_available():
        # It looks at an optimiser whose import loads a compiler, seconds of every rank.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    return deepspeed
