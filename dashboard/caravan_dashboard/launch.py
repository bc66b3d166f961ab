"""How the dashboard's server is started."""

from __future__ import annotations

import ipaddress
import json
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from caravan.errors import CaravanError, SettingsError
from caravan.identity import Identity, load_identity
from caravan.registry import open_registry
from caravan.settings import Settings
from caravan_dashboard import palette

APP = Path(__file__).with_name("app.py")
LOOPBACK = "127.0.0.1"


def command(
    port: int, address: str = LOOPBACK, *, identity: Identity | None = None, secrets: str = ""
) -> list[str]:
    """The command line of a dashboard: no telemetry, and to others only after they sign in.

    Args:
        secrets: the file that `write_secrets` wrote for `identity`.

    Raises:
        SettingsError: there is no identity provider, and the address is not this machine's own.
    """
    if identity is None and not is_loopback(address):
        raise SettingsError(
            "the dashboard has no identity provider, so it serves this machine only, "
            f"not {address}: leave out --address, or set CARAVAN_OIDC_ISSUER and what goes with it "
            "(docs/installation.md, Sign-in)"
        )
    options = {
        "server.address": address,
        "server.port": str(port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "runner.magicEnabled": "false",
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "type",
        **palette.THEME,
    }
    if identity is not None:
        # The page's own origin is allowed by name; the server need not find out its address.
        options["browser.serverAddress"] = urlsplit(identity.redirect_uri).hostname or ""
        options["secrets.files"] = secrets
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "streamlit", "run", str(APP), *arguments]


def serve(port: int, address: str, settings: Settings) -> None:
    """Become the dashboard's server."""
    identity = load_identity()
    secrets = str(write_secrets(identity, settings.home)) if identity else ""
    arguments = command(port, address, identity=identity, secrets=secrets)
    try:
        open_registry(settings).close()
    except CaravanError as error:  # may be mended while the server runs
        print(f"Until this is mended no page shows any run: {error}", file=sys.stderr, flush=True)
    os.execvp(arguments[0], arguments)


def write_secrets(identity: Identity, home: Path) -> Path:
    """Write what `st.login` reads, for the eyes of this user only."""
    values = {
        "redirect_uri": identity.redirect_uri,
        "cookie_secret": identity.cookie_secret.get_secret_value(),
        "client_id": identity.client_id,
        "client_secret": identity.client_secret.get_secret_value(),
        "server_metadata_url": identity.metadata_url,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    lines.append(f"client_kwargs = {{ scope = {json.dumps(identity.scopes)} }}")
    home.mkdir(parents=True, exist_ok=True)
    path = home / "signin.toml"
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("\n".join(["[auth]", *lines]) + "\n")
    return path


def is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
