"""Spans of OpenTelemetry. Only this module imports its SDK, which is an extra (`zwatch[otel]`) and takes a while to import."""

import os
import threading

from opentelemetry.context import Context
from opentelemetry.propagate import get_global_textmap
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, set_span_in_context

from zwatch import __version__
from zwatch.api.traces import Span


class OtelExporter:
    """Makes spans by OpenTelemetry's SDK, which the environment's `OTEL_*` variables configure: exporter, endpoint, headers, sampler,
    propagators, resource, batches.

    Raises:
        ValueError: a variable has a value that cannot be used.
    """

    def __init__(self) -> None:
        own = {} if _names_service() else {SERVICE_NAME: "zwatch"}
        # Not at the interpreter's exit, which would wait for a collector that does not answer.
        self._provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_exporter()))
        self._tracer = self._provider.get_tracer("zwatch", __version__)
        self._propagator = get_global_textmap()

    def export(self, root: Span) -> None:
        """Make the spans of a tree."""
        if root.parent is not None:
            context = _below(root.parent.context)
        else:
            context = Context() if root.carrier is None else self._propagator.extract(root.carrier, Context())
        root.carrier = None
        self._make(root, context)

    def close(self, seconds: float) -> None:
        """Send what was made, for so long at most: a collector that does not answer is not waited for."""
        closing = threading.Thread(target=self._provider.shutdown, name="zwatch-otel", daemon=True)
        closing.start()
        closing.join(seconds)

    def _make(self, span: Span, context: Context) -> None:
        kind = SpanKind.SERVER if span.is_server else SpanKind.INTERNAL
        made = self._tracer.start_span(span.name, context, kind, dict(span.attributes), start_time=span.begun)
        span.context = made.get_span_context()
        for child in span.children:
            self._make(child, _below(span.context))
        if span.error is not None:
            made.set_status(Status(StatusCode.ERROR, span.error))
        made.end(span.ended)


def _below(context: object) -> Context:
    if not isinstance(context, SpanContext):
        return Context()
    return set_span_in_context(NonRecordingSpan(context), Context())


def _names_service() -> bool:
    given = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return bool(os.environ.get("OTEL_SERVICE_NAME")) or any(
        one.split("=")[0].strip() == SERVICE_NAME for one in given.split(",")
    )


def _exporter() -> SpanExporter:
    name = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
    if name == "console":
        return ConsoleSpanExporter()
    if name != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER is {name!r}: expected otlp, console or none")
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if protocol := os.environ.get(variable, "").strip():
            if protocol != "http/protobuf":
                raise ValueError(f"{variable} is {protocol!r}: expected http/protobuf, the port is usually 4318")
            break
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
