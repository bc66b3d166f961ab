"""How the dashboard's server is started."""

from __future__ import annotations

import sys
from pathlib import Path

from caravan_dashboard import palette

APP = Path(__file__).with_name("app.py")


def command(port: int) -> list[str]:
    """The command line of a dashboard on `port`: this machine only, no telemetry."""
    options = {
        "server.address": "127.0.0.1",
        "server.port": str(port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "runner.magicEnabled": "false",
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "type",
        **palette.THEME,
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "streamlit", "run", str(APP), *arguments]
