"""Log lines as JSON, and spans as an OTLP endpoint receives them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from caravan.operations.logs import JsonFormatter
from caravan.operations.traces import run_span, stage_span, trace_id


def test_a_json_line_has_the_ids_and_the_exception():
    formatter = JsonFormatter(run="pocket-1", stage="sft")
    try:
        raise ValueError("bad\nrow")
    except ValueError:
        record = logging.getLogger("caravan.x").makeRecord(
            "caravan.x", logging.WARNING, "f", 1, "row %d: %s", (3, "é\n"), sys.exc_info()
        )
    line = formatter.format(record)
    assert "\n" not in line
    entry = json.loads(line)
    assert (entry["run"], entry["stage"], entry["level"]) == ("pocket-1", "sft", "warning")
    assert entry["message"] == "row 3: é\n"
    assert "ValueError: bad" in entry["exception"]
    assert entry["time"].endswith("+00:00")


def test_a_process_with_json_logs_writes_nothing_else_and_hands_its_ids_on():
    script = '''
import logging
from caravan.operations.logs import configure_logging
logging.warning("before")
configure_logging("json", run="r", stage="s")
logging.getLogger("any.library").warning("after")
import subprocess, sys
child = """
from caravan.operations.logs import configure_logging
configure_logging("json", rank="1")
import logging
logging.warning("of a child")
"""
subprocess.run([sys.executable, "-c", child], check=True)
'''
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    last, child = map(json.loads, done.stderr.splitlines()[-2:])
    assert (last["message"], last["run"], last["stage"]) == ("after", "r", "s")
    assert (child["message"], child["run"], child["rank"]) == ("of a child", "r", "1")
    assert done.stdout == ""


@pytest.fixture
def collected(monkeypatch):
    """An OTLP endpoint; gives the spans it has received, by name."""
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")

    def spans():
        found = {}
        for body in received:
            request = ExportTraceServiceRequest.FromString(body)
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    found |= {span.name: span for span in scope.spans}
        return found

    yield spans
    server.shutdown()


def test_the_stages_of_a_run_lie_in_one_trace_below_the_run(collected):
    with run_span("pocket-1"):
        with stage_span("pocket-1", "sft"):
            pass
        with pytest.raises(ValueError, match="wrong"), stage_span("pocket-1", "dpo"):
            raise ValueError("wrong")
    spans = collected()
    assert set(spans) == {"run", "sft", "dpo"}
    assert {span.trace_id for span in spans.values()} == {trace_id("pocket-1").to_bytes(16)}
    assert spans["run"].parent_span_id == b""
    assert spans["sft"].parent_span_id == spans["dpo"].parent_span_id == spans["run"].span_id
    told = {a.key: a.value.string_value for a in spans["sft"].attributes}
    assert told == {"caravan.run": "pocket-1", "caravan.stage": "sft"}
    assert spans["dpo"].status.code == 2  # error
    assert spans["dpo"].events[0].name == "exception"


def test_without_an_endpoint_nothing_is_loaded(monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    script = """
import sys
from caravan.operations.traces import stage_span
with stage_span("r", "s"):
    assert not any(name.startswith("opentelemetry.sdk") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
