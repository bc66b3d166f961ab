"""What the tests of the chart share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))  # for the module beside this one

from chart import Rendered, render_chart, variant


@pytest.fixture(scope="session")
def render() -> Callable[..., Rendered]:
    return render_chart


@pytest.fixture
def values() -> Callable[[str], dict[str, Any]]:
    """A variant of ci/ by name, to be changed."""
    return variant
