"""The command that serves the pages."""

from __future__ import annotations

import sys

from caravan_dashboard.launch import APP, command


def test_the_command_serves_this_machine_only_and_sends_nothing():
    arguments = command(8501)

    assert arguments[:5] == [sys.executable, "-m", "streamlit", "run", str(APP)]
    joined = " ".join(arguments)
    assert "--server.address 127.0.0.1" in joined
    assert "--browser.gatherUsageStats false" in joined
