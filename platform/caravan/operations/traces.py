"""OpenTelemetry traces: one for each run, with a span for each stage run.

They are sent where `OTEL_EXPORTER_OTLP_ENDPOINT` says; without it nothing is imported. The ids of
trace and run are the same number, so the processes of a run, on whatever node, need not tell each
other of it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def trace_id(run: str) -> int:
    """128 bits."""
    return int.from_bytes(hashlib.sha256(run.encode()).digest()[:16])


def root_span_id(run: str) -> int:
    """64 bits; of the span of the whole run."""
    return int.from_bytes(hashlib.sha256(run.encode()).digest()[16:24])


@contextmanager
def run_span(run: str, attributes: Mapping[str, str] = {}) -> Iterator[None]:
    """The span of a whole run, which those of its stages lie in."""
    with _span(run, "run", None, {"caravan.run": run, **attributes}):
        yield


@contextmanager
def stage_span(run: str, node: str, attributes: Mapping[str, str] = {}) -> Iterator[None]:
    """A span around a stage run, in the trace of its run; an exception marks it as failed."""
    named = {"caravan.run": run, "caravan.stage": node, **attributes}
    with _span(run, node, root_span_id(run), named):
        yield


@contextmanager
def _span(
    run: str, name: str, parent_id: int | None, attributes: Mapping[str, str]
) -> Iterator[None]:
    provider = _provider(run, is_root=parent_id is None)
    if provider is None:
        yield
        return
    from opentelemetry import trace

    context = None
    if parent_id is not None:
        sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        parent = trace.SpanContext(
            trace_id(run), parent_id, is_remote=True, trace_flags=sampled
        )  # fmt: skip
        context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
    tracer = provider.get_tracer("caravan")
    try:
        with tracer.start_as_current_span(name, context=context, attributes=attributes):
            yield
    finally:
        provider.shutdown()  # sends what is left


def _provider(run: str, *, is_root: bool) -> Any | None:
    """What makes spans and sends them; None where nobody asked for traces."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    except ImportError as error:
        logger.warning("no traces are sent: %s; pip install 'caravan[otel]'", error)
        return None

    class RootIds(RandomIdGenerator):
        """Those of the span of the whole run, which alone has no parent."""

        def generate_trace_id(self) -> int:
            return trace_id(run)

        def generate_span_id(self) -> int:
            return root_span_id(run)

    service = os.environ.get("OTEL_SERVICE_NAME", "caravan")
    provider = TracerProvider(
        resource=Resource.create({"service.name": service}),
        id_generator=RootIds() if is_root else None,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
