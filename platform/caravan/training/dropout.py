"""Where a model draws random numbers in a pass."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def dropout_rates(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Modules and the names of their attributes that are rates of dropout, above 0: of nn.Dropout,
    and of attention, which has no such module."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if (name == "p" or "drop" in name) and isinstance(value, float) and value > 0:
                yield module, name


def without_dropout(model: nn.Module) -> None:
    """Set all rates to 0."""
    for module, name in list(dropout_rates(model)):
        setattr(module, name, 0.0)
