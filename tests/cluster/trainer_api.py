"""The part of the Kubernetes API that waiting for a TrainJob uses, in this process, for tests of
what a real one seldom does: it drops connections, or is one of an old Kubeflow Trainer."""

from __future__ import annotations

import http.server
import json
import threading
from typing import Any
from urllib.parse import urlparse

from json_answer import answer_json
from kubernetes import client

ENDED_AT = "2026-01-02T03:04:05Z"
"""When every job ended that has ended."""


class TrainerApi(http.server.ThreadingHTTPServer):
    """It runs no job: `end` says how one ended."""

    daemon_threads = True

    def __init__(self, *, drops: int = 0, unknown: str = "") -> None:
        """`drops` requests get no answer; `unknown` is a field of a job that it forgets."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.drops, self.unknown = drops, unknown
        self.jobs: dict[str, dict[str, Any]] = {}
        self.created = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def client(self) -> client.ApiClient:
        host = f"http://127.0.0.1:{self.server_address[1]}"
        return client.ApiClient(client.Configuration(host=host))

    def end(self, name: str, condition: str) -> None:
        ended = {"type": condition, "status": "True", "message": "because",
                 "lastTransitionTime": ENDED_AT}  # fmt: skip
        self.jobs[name]["status"] = {"conditions": [ended]}

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: TrainerApi

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.drops:
            self.server.drops -= 1
            return None
        path = urlparse(self.path).path
        if path.endswith("/pods"):
            return self._answer(200, {"apiVersion": "v1", "kind": "PodList", "items": []})
        if self.command == "POST":
            job = json.loads(body)
            job["spec"].pop(self.server.unknown, None)
            self.server.jobs[job["metadata"]["name"]] = job
            self.server.created += 1
            return self._answer(201, job)
        name = path.rpartition("/")[2]
        if name not in self.server.jobs:
            return self._answer(404, {"kind": "Status", "code": 404})
        if self.command == "DELETE":
            return self._answer(200, self.server.jobs.pop(name))
        return self._answer(200, self.server.jobs[name])

    do_GET = do_POST = do_DELETE = _handle

    def _answer(self, status: int, content: Any) -> None:
        answer_json(self, content, status)
