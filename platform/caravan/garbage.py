"""When Python looks for garbage.

It does so again and again while objects are made, and importing PyTorch and transformers makes a
million of them and no garbage: without looking, a process has them a fifth (0.8 s) earlier.
"""

from __future__ import annotations

import gc

_USUAL = gc.get_threshold()
_RARELY = 10_000_000
"""Objects made before Python looks."""


def collect_rarely() -> None:
    gc.set_threshold(_RARELY)


def collect_as_usual() -> None:
    """For work that may leave tensors in cycles, once all is imported."""
    gc.set_threshold(*_USUAL)
