"""When Python looks for garbage.

It does so again and again while objects are made, and importing PyTorch and transformers makes a
million of them and no garbage: without looking, a process has them a fifth (0.8 s) earlier. It
looks once more when it ends, through all of them, which takes a second and frees what the system
is about to take back anyway.
"""

from __future__ import annotations

import atexit
import gc

_USUAL = gc.get_threshold()
_RARELY = 10_000_000
"""Objects made before Python looks."""


def collect_rarely() -> None:
    """For a process that does one piece of work and ends."""
    gc.set_threshold(_RARELY)
    atexit.register(gc.freeze)


def collect_as_usual() -> None:
    """For work that may leave tensors in cycles, once all is imported."""
    gc.set_threshold(*_USUAL)
