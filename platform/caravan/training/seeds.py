"""Random numbers that depend on what they are for, and not on what was drawn before."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, purpose: str, step: int) -> int:
    """A seed in [0, 2^63) for one purpose in one step."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
