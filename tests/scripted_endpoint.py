"""An OpenAI-compatible endpoint, over real HTTP, whose replies a function writes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from caravan.recipe import OpenAIEngineConfig

Messages = list[dict[str, str]]


@contextmanager
def scripted_endpoint(reply: Callable[[Messages], str]) -> Iterator[OpenAIEngineConfig]:
    """An engine's config; the endpoint is there as long as the context."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = {"role": "assistant", "content": reply(request["messages"])}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            body = json.dumps({"object": "chat.completion", "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield OpenAIEngineConfig(
            base_url=f"http://127.0.0.1:{server.server_port}/v1", model="scripted"
        )
    finally:
        server.shutdown()
        server.server_close()
