"""A stand-in of Kubeflow Pipelines for tests: its REST API (v2beta1), behind the real `kfp.Client`.

Kubeflow's own backend is distributed as images that a development machine cannot have. This server
takes the compiled pipeline as it is submitted and runs it from that file alone: `kfp_pipeline.py`
says what of the language is covered, `kfp_steps.py` runs each step as a process or as a pod.

    server = StandIn(lambda run_id, account: Processes(tmp_path), token="tok")
    Client(host=server.url, namespace="ml", existing_token="tok")

Covered: health, experiments (create, get, list by name), runs (create from a pipeline spec, get,
list, terminate, delete), task details with states and pod names, bearer tokens or a cookie.

Not covered: uploaded pipelines and versions, recurring runs, multi-user mode, the artifacts and
authorisation services, caching, the page, an end to attempts that outlast the window of retries,
and everything that Kubeflow's own images do (driver, launcher, workflow controller). No product
code depends on this.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
import traceback
import urllib.parse
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from json_answer import answer_json
from kfp_pipeline import Executor, Pipeline, Stopped

API = "/apis/v2beta1"
NewExecutor = Callable[[str, str], Executor]
"""Makes the executor of one run, from the run's id and its service account."""


class Run:
    """One submitted run, and the thread that executes it."""

    def __init__(self, body: dict[str, Any], new_executor: NewExecutor, backoff: float) -> None:
        self.id = str(uuid.uuid4())
        self.body = body
        self.state, self.error = "PENDING", ""
        self.created, self.finished = _now(), None
        self.history = [{"update_time": self.created, "state": "PENDING"}]
        self.stop = threading.Event()
        spec = body["pipeline_spec"]
        core, platform = spec, {}
        if "pipeline_spec" in spec:
            core, platform = spec["pipeline_spec"], spec.get("platform_spec", {})
        executor = new_executor(self.id, body.get("service_account") or "")
        self.pipeline = Pipeline(core, platform, executor, stop=self.stop, backoff=backoff)
        self.spec, self.platform = core, platform
        self._thread = threading.Thread(target=self._execute, daemon=True)
        self._thread.start()

    def terminate(self) -> None:
        if self.finished is None:
            self._become("CANCELING")
            self.stop.set()

    def wait(self, seconds: float) -> None:
        """For a test that ends: no step may outlive it."""
        self._thread.join(seconds)

    def as_json(self) -> dict[str, Any]:
        shown = {k: v for k, v in self.body.items() if k != "pipeline_spec"}
        details = [
            {
                "run_id": self.id,
                "task_id": str(number),
                "display_name": detail.step.name,
                "state": detail.state,
                "pod_name": detail.step.name,
                "create_time": _time(detail.started),
                "start_time": _time(detail.started),
                "end_time": _time(detail.ended) if detail.ended else None,
                "error": {"message": detail.end.why} if detail.end and detail.end.why else None,
            }
            for number, detail in enumerate(self.pipeline.details)
        ]
        return {
            **shown,
            "run_id": self.id,
            "state": self.state,
            "storage_state": "AVAILABLE",
            "created_at": self.created,
            "scheduled_at": self.created,
            "finished_at": self.finished,
            "state_history": self.history,
            "error": {"code": 13, "message": self.error} if self.error else None,
            "run_details": {"task_details": details},
        }

    def _execute(self) -> None:
        self._become("RUNNING")
        parameters = (self.body.get("runtime_config") or {}).get("parameters") or {}
        try:
            self.pipeline.run(parameters)
            end = "SUCCEEDED"
        except Stopped:
            end = "CANCELED"
        except Exception as error:
            traceback.print_exc()
            end, self.error = "FAILED", str(error)
        self.finished = _now()
        self._become("CANCELED" if self.stop.is_set() else end)

    def _become(self, state: str) -> None:
        self.state = state
        self.history.append({"update_time": _now(), "state": state})


class StandIn(http.server.ThreadingHTTPServer):
    """The server; `runs` and `requests` are for assertions."""

    daemon_threads = True

    def __init__(
        self,
        new_executor: NewExecutor,
        *,
        token: str = "",
        cookie: str = "",
        allows: Callable[[str], bool] | None = None,
        backoff: float = 0.0,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """`allows` decides on bearer tokens where no fixed `token` does."""
        super().__init__((host, port), _Handler)
        self.new_executor, self.token, self.cookie = new_executor, token, cookie
        self.allows = allows
        self.backoff = backoff
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, Run] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host}:{port}"

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for run in self.runs.values():
            run.stop.set()
        for run in self.runs.values():
            run.wait(20)
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        url = urllib.parse.urlparse(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}") if length else {}
        self.server.requests.append((self.command, url.path, dict(self.headers)))
        if not self._may():
            return self._refuse(401, "unauthenticated")
        path = url.path.removeprefix(API)
        run = re.fullmatch(r"/runs/([^/:]+)(:terminate)?", path)
        experiment = re.fullmatch(r"/experiments/([^/:]+)", path)
        if path == "/healthz":
            return self._answer({"multi_user": False, "pipeline_store": "database"})
        if path == "/experiments":
            return self._create_experiment(body) if self.command == "POST" else self._list(query)
        if experiment:
            return self._found(self.server.experiments.get(experiment[1]))
        if path == "/runs":
            return self._create_run(body) if self.command == "POST" else self._list_runs(query)
        if run:
            return self._run(run[1], terminate=bool(run[2]))
        return self._refuse(404, f"the stand-in does not know {self.command} {path}")

    do_GET = do_POST = do_DELETE = _handle

    def _may(self) -> bool:
        if self.server.allows:
            kind, _, token = self.headers.get("Authorization", "").partition(" ")
            return kind == "Bearer" and self.server.allows(token)
        if self.server.token:
            return self.headers.get("Authorization") == f"Bearer {self.server.token}"
        return not self.server.cookie or self.headers.get("Cookie") == self.server.cookie

    # --- experiments ------------------------------------------------------------------------

    def _create_experiment(self, body: dict[str, Any]) -> None:
        found = [e for e in self.server.experiments.values()
                 if e["display_name"] == body["display_name"]]  # fmt: skip
        if found:
            return self._refuse(409, "already exists")
        made = {**body, "experiment_id": str(uuid.uuid4()), "created_at": _now(),
                "storage_state": "AVAILABLE"}  # fmt: skip
        self.server.experiments[made["experiment_id"]] = made
        return self._answer(made)

    def _list(self, query: dict[str, str]) -> None:
        found = list(self.server.experiments.values())
        if "filter" in query:
            predicate = json.loads(query["filter"])["predicates"][0]
            name = predicate.get("string_value") or predicate.get("stringValue")
            found = [e for e in found if e["display_name"] == name]
        self._answer({"experiments": found, "total_size": len(found)})

    # --- runs -------------------------------------------------------------------------------

    def _create_run(self, body: dict[str, Any]) -> None:
        if "pipeline_spec" not in body:
            return self._refuse(400, "the stand-in takes runs with a pipeline spec only")
        run = Run(body, self.server.new_executor, self.server.backoff)
        self.server.runs[run.id] = run
        return self._answer(run.as_json())

    def _list_runs(self, query: dict[str, str]) -> None:
        """A page of them, the newest first, which is all that is asked for."""
        runs = [run.as_json() for run in reversed(self.server.runs.values())]
        begin, size = int(query.get("page_token") or 0), int(query["page_size"])
        page = {"runs": runs[begin : begin + size], "total_size": len(runs)}
        if begin + size < len(runs):
            page["next_page_token"] = str(begin + size)
        self._answer(page)

    def _run(self, run_id: str, *, terminate: bool) -> None:
        run = self.server.runs.get(run_id)
        if run is None:
            return self._refuse(404, f"run {run_id} not found")
        if terminate:
            run.terminate()
            return self._answer({})
        if self.command == "DELETE":
            del self.server.runs[run_id]
            return self._answer({})
        return self._answer(run.as_json())

    # --- answers ----------------------------------------------------------------------------

    def _found(self, thing: dict[str, Any] | None) -> None:
        self._answer(thing) if thing else self._refuse(404, "not found")

    def _refuse(self, status: int, message: str) -> None:
        code = 5 if status == 404 else 3
        self._answer({"error": message, "code": code, "message": message, "details": []}, status)

    def _answer(self, content: Any, status: int = 200) -> None:
        answer_json(self, content, status)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
