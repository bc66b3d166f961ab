"""A check, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from caravan.errors import CaravanError, below


class Outcome(StrEnum):
    OK = "ok"
    BROKEN = "broken"
    SKIPPED = "skipped"
    """Nothing here asks for it, or it cannot be seen from here."""


@dataclass(frozen=True)
class Finding:
    name: str
    state: Outcome
    says: str
    """What was found; of what is broken, what is wrong and how to put it right."""


class NotHereError(Exception):
    """There is nothing to check; the message says why."""


@dataclass(frozen=True)
class Check:
    name: str
    look: Callable[[], str]
    """Gives what is there, in a sentence.

    Raises:
        CaravanError: it is broken; the message says how to put it right.
        NotHereError: there is nothing to check.
    """


def examine(checks: Iterable[Check]) -> Iterator[Finding]:
    """Make every check, whatever the others find."""
    for check in checks:
        try:
            yield Finding(check.name, Outcome.OK, check.look())
        except NotHereError as reason:
            yield Finding(check.name, Outcome.SKIPPED, str(reason))
        except CaravanError as error:
            yield Finding(check.name, Outcome.BROKEN, below(check.name, error))
        except Exception as error:  # a check that fails is a finding, not the end
            yield Finding(check.name, Outcome.BROKEN, f"{type(error).__name__}: {error}")
