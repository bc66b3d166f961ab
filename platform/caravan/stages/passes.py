"""How many tokens a pass takes where the recipe leaves it open: what fits into the memory there is.

It is settled when a stage begins, on the device that it then has, and is no part of the stage's
key. Losses are sums over passes, so a run that goes on elsewhere may cut its steps otherwise.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeVar

from caravan.planning.devices import DEFAULT_GPU, DEVICES, GIB, Placement
from caravan.planning.memory import (
    TrainingSetup,
    fitting_tokens,
    forward_setup,
    pass_tokens,
    remedies,
    training_setup,
)
from caravan.planning.shapes import ModelShape, shape_of_model
from caravan.recipe import Resources, TrainingConfig
from caravan.stages.configs import ReferenceStageConfig

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=TrainingConfig)


def with_pass_tokens(
    config: C, model: Path, longest: int, *, reward_model: Path | None = None
) -> C:
    """`config` with a number for `tokens_per_pass: auto`, the same on every rank.

    Args:
        model: the directory of what is trained.
        longest: tokens of the longest row, which is never split.
        reward_model: of RLVR, also what the value model starts from; None where there is none.
    """
    if config.tokens_per_pass != "auto":
        return config
    from caravan.training.parallel.ranks import current

    ranks, device = current(), device_here(config.resources)
    lanes = device.lanes if ranks.count == 1 else 1
    setup = training_setup(
        config,
        _shape(model),
        gpu=device.on_gpu,
        ranks=ranks.count,
        lanes=lanes,
        reward_model=None if reward_model is None else _shape(reward_model),
    )
    fitting = ranks.gather([_fitting(setup, device, longest)])
    return config.derive(tokens_per_pass=min(tokens for (tokens,) in fitting))


def reference_pass_tokens(config: ReferenceStageConfig, model: Path, longest: int) -> int:
    """`tokens_per_pass` of a stage that only reads a model, as a number; ranks may differ in it."""
    if config.tokens_per_pass != "auto":
        return config.tokens_per_pass
    from caravan.training.parallel.ranks import current

    device = device_here(config.resources)
    setup = forward_setup(config, _shape(model), gpu=device.on_gpu, ranks=current().count)
    return _fitting(setup, device, longest)


def device_here(resources: Resources) -> Placement:
    """The GPU of this process, with the memory that nobody else has taken; without one, this
    process's part of the memory that the recipe asks for."""
    import torch

    from caravan.training.parallel.ranks import current

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        memory = (free + torch.cuda.memory_reserved()) / GIB
        return Placement(DEVICES[DEFAULT_GPU], 1, memory)
    memory = resources.memory_gib / current().local_count
    return Placement(DEVICES["cpu"], resources.cpus, memory)


def _shape(model: Path) -> ModelShape:
    return shape_of_model(".", model)[0]


def _fitting(setup: TrainingSetup, device: Placement, longest: int) -> int:
    if fitting_tokens(setup, device, longest) is None:
        needed = setup.gib(longest) + device.device.base_gib
        logger.warning(
            "tokens_per_pass: auto: a row of %d tokens needs about %.1f GiB of %.1f, so one row is "
            "tried at a time; if it does not fit: %s",
            longest, needed, device.memory_gib, remedies(setup, device, longest),
        )  # fmt: skip
    tokens = pass_tokens("auto", setup, device, longest)
    logger.info("tokens_per_pass: auto takes %d in %.1f GiB", tokens, device.memory_gib)
    return tokens
