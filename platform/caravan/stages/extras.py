"""Optional packages that a training stage's options need, checked before anything is loaded."""

from __future__ import annotations

from importlib.util import find_spec

from caravan.errors import MissingExtraError, missing_extra
from caravan.recipe import RLVRConfig, TrainingConfig
from caravan.stages.configs import ReferenceStageConfig


def check_extras(config: TrainingConfig | ReferenceStageConfig, *, several: bool) -> None:
    """Refuse options whose packages are not installed.

    Args:
        several: the stage has more than one process; alone, none needs DeepSpeed.

    Raises:
        MissingExtraError: says which extra of the distribution is missing.
    """
    vllm = isinstance(config, RLVRConfig) and config.rollouts.kind == "vllm"
    lora = quantized = False
    if isinstance(config, TrainingConfig):
        lora, quantized = config.lora is not None, config.quantization is not None
    wanted = (
        (lora, "peft", "lora", "lora"),
        (quantized, "bitsandbytes", "qlora", "quantization"),
        (config.zero_stage > 0 and several, "deepspeed", "deepspeed", "zero_stage above 0"),
        (vllm, "vllm", "vllm", "rollouts of kind vllm"),
    )
    for asked, module, extra, feature in wanted:
        if asked and find_spec(module) is None:
            raise MissingExtraError(missing_extra(module, extra, feature))
