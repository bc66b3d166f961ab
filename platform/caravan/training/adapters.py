"""LoRA and QLoRA: small trained matrices on frozen weights, merged into plain weights at the end.

A linear layer W becomes W + (alpha / rank) B A, with B zero at first (Hu et al. 2021,
arXiv:2106.09685); with `quantization: nf4`, W is held in 4 bits (Dettmers et al. 2023,
arXiv:2305.14314), and the merge is into the weights before they were quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from caravan.errors import CaravanError, DataError, require
from caravan.recipe import LoRAConfig, TrainingConfig
from caravan.training.checkpoint import own_tensors
from caravan.training.frozen import Frozen
from caravan.training.models import Policy, load_policy, reward_model_from
from caravan.training.parallel.ranks import reads_weights, spreads_weights
from caravan.training.precision import computes_in_bf16

ADAPTER = "default"
HEADS = ("lm_head", "score")
"""Output heads: of a policy it stays as it is, of a reward model it is new and trained in full."""


def load_base(
    directory: Path, config: TrainingConfig, device: torch.device, *, halve: bool = True
) -> Policy:
    """The policy in `directory`, with adapters where the config asks for them; without weights on
    ranks that are given them later.

    Args:
        device: where it will be trained.
        halve: as of `add_adapters`.

    Raises:
        CaravanError: 4 bits are asked for on a machine without a GPU.
        DataError: as of `adapted_layers`.
        MissingExtraError: peft or bitsandbytes is not installed.
    """
    if config.quantization is None:
        policy = load_policy(directory, weights=reads_weights(config.zero_stage))
    elif torch.cuda.is_available():
        policy = _load_in_four_bits(directory)
    else:
        raise CaravanError(
            "quantization: nf4 needs a CUDA GPU, and this machine has none; leave it out to train "
            "adapters on weights in full precision"
        )
    add_adapters(policy.model, config, device, halve=halve)
    return policy


def _load_in_four_bits(directory: Path) -> Policy:
    require("bitsandbytes", extra="qlora", feature="quantization: nf4")
    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return load_policy(directory, quantization_config=four_bits)


def add_adapters(
    model: PreTrainedModel, config: TrainingConfig, device: torch.device, *, halve: bool = True
) -> None:
    """Freeze `model` and give its linear layers adapters, where the config asks for them.

    Frozen matrices are then held in the precision in which passes on `device` compute, so that
    they take half, and no pass has to cast them; ZeRO-3 wants all weights in one precision.

    Args:
        halve: False where something computes with them in float32, too.

    Raises:
        DataError: as of `adapted_layers`.
        MissingExtraError: peft is not installed.
    """
    lora = config.lora
    if lora is None:
        return
    peft: Any = require("peft", extra="lora", feature="lora")
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=adapted_layers(model, lora),
    )
    peft.inject_adapter_in_model(settings, model, adapter_name=ADAPTER)
    if hasattr(model, "score"):
        model.score.requires_grad_(True)
    halve = halve and not spreads_weights(config.zero_stage)
    if halve and computes_in_bf16(device.type, config.bf16):
        _halve_frozen(model)


def adapted_layers(model: PreTrainedModel, lora: LoRAConfig) -> list[str]:
    """Full names of the layers of `model` that get adapters.

    Raises:
        DataError: no layer has a name that the config gives, or there is none at all.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    called = {name: name.rpartition(".")[2] for name in linear}
    there = sorted(set(called.values()) - set(HEADS))
    if not there:
        raise DataError("lora: the model has no linear layer but its head, so nothing to adapt")
    if wrong := [name for name in lora.target_modules if name not in there]:
        raise DataError(
            f"lora.target_modules: no linear layer of the model is called {' or '.join(wrong)}; "
            f"it has {', '.join(there)}"
        )
    wanted = lora.target_modules or there
    return [name for name in linear if called[name] in wanted]


def _halve_frozen(model: PreTrainedModel) -> None:
    """Matrices of linear layers only: what is computed with others would not stay the same."""
    embeddings = model.get_input_embeddings().weight
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight is not embeddings:
            weight = module.weight
            if weight.dtype == torch.float32 and not weight.requires_grad:
                weight.data = weight.data.to(torch.bfloat16)


def plain(
    model: PreTrainedModel,
    config: TrainingConfig,
    directory: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> PreTrainedModel:
    """The model with its adapters merged into its weights, as an ordinary one.

    Args:
        directory: what was trained from; its weights are read again from there, since those of
            `model` may be in fewer bits.
        weights: take the place of the adapters' own, where those are spread over ranks.
    """
    if config.lora is None:
        return model
    base = load_policy(directory).model
    adapters = own_tensors(model) if weights is None else weights
    with torch.no_grad():
        for layer in _adapted(model):
            weight = base.get_submodule(layer.name).weight
            weight += layer.delta(adapters).to(weight)
    if not hasattr(model, "score"):
        return base
    reward_model = reward_model_from(base, model.config.pad_token_id)
    reward_model.score.load_state_dict(model.score.state_dict())
    return reward_model


class Unadapted(Frozen):
    """A model as it was before it got adapters, by which it is trained: a reference that takes no
    memory."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def forward(self, run: Callable[[Any], Any], model: PreTrainedModel | None = None) -> Any:
        chosen = self.model if model is None else model
        with torch.no_grad(), _without_adapters(chosen):
            return run(chosen)


@contextmanager
def _without_adapters(model: PreTrainedModel) -> Iterator[None]:
    layers = [layer.module for layer in _adapted(model)]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


class _Layer(NamedTuple):
    name: str
    module: Any
    """peft's LoRA layer."""

    def delta(self, weights: Mapping[str, Tensor]) -> Tensor:
        """[out, in] what the adapter adds to the weight, from its two factors."""
        a, b = (weights[f"{self.name}.lora_{factor}.{ADAPTER}.weight"] for factor in "AB")
        return cast(Tensor, (b @ a) * self.module.scaling[ADAPTER])


def _adapted(model: nn.Module) -> Iterator[_Layer]:
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "get_base_layer"):
            yield _Layer(name, module)
