"""What a user can put right: every error of this kind says what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType


class CaravanError(Exception):
    """Base of the errors that are shown to a user without a traceback."""


class DataError(CaravanError):
    """A row, a field or a file of a dataset is not what it should be."""


class RecipeError(CaravanError):
    """A recipe does not say something that can be run."""


class SettingsError(CaravanError):
    """An environment variable `CARAVAN_...` does not say something that can be used."""


class StoreError(CaravanError):
    """The artifact store cannot do what it was asked: full, read-only, refused, corrupted."""


class StoreUnavailableError(StoreError):
    """The artifact store does not answer; trying again later may help."""


class RegistryError(CaravanError):
    """The registry cannot do what it was asked."""


class RegistryUnavailableError(RegistryError):
    """The registry does not answer; trying again later may help."""


class StageError(CaravanError):
    """A stage cannot run, or did not keep its promise."""


class AccessError(CaravanError):
    """A user's role does not allow what they asked for."""


class BudgetError(CaravanError):
    """A project cannot pay for what it asks for."""


class MissingExtraError(CaravanError):
    """An optional dependency is not installed."""


def without_traceback(recorded: str) -> str:
    """The sentence of an error as the registry keeps it: what stands before its traceback."""
    return recorded.strip().split("\n\n", 1)[0]


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def below(title: str, error: CaravanError) -> str:
    """What an error says where `title` stands in front of it, with which it may begin itself."""
    return str(error).removeprefix(f"{title}: ").removeprefix(f"{title} ")


def require(module: str, *, extra: str, feature: str) -> ModuleType:
    """Import `module`, or say which extra of the distribution brings it.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # the module is there; something inside it is broken
        raise MissingExtraError(missing_extra(module, extra, feature)) from error


def missing_extra(module: str, extra: str, feature: str) -> str:
    return f"{feature} needs {module!r}: install it with pip install 'caravan[{extra}]'"
