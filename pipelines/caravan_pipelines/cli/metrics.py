"""caravan metrics ...: numbers for Prometheus."""

from __future__ import annotations

from typing import Annotated

import typer

metrics = typer.Typer(help="Metrics of all runs for Prometheus.", no_args_is_help=True)


@metrics.callback()
def _group() -> None:
    """Metrics of all runs for Prometheus."""


@metrics.command()
def serve(
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 9090,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Serve the metrics at /metrics, computed from the registry at each scrape."""
    from caravan.errors import CaravanError
    from caravan.operations.exporter import serve as start
    from caravan.registry import open_registry
    from caravan.settings import load_settings

    settings = load_settings()
    try:
        server, thread = start(address, port, lambda: open_registry(settings), settings.prices)
    except OSError as error:
        raise CaravanError(f"{address}:{port}: {error.strerror}; choose another --port") from error
    print(f"http://{address}:{port}/metrics", flush=True)
    try:
        thread.join()
    except KeyboardInterrupt:
        server.shutdown()
