"""A receiver of traces as OpenTelemetry's collector is one: OTLP over HTTP, protobuf."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Receiver:
    """Receives spans. Use as `with Receiver() as receiver`; `url` is for `OTEL_EXPORTER_OTLP_ENDPOINT`."""

    def __init__(self):
        self.spans = []
        self.resources = []
        self.headers = []

    def __enter__(self):
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path != "/v1/traces" or self.headers["Content-Type"] != "application/x-protobuf":
                    self.send_error(404)
                    return
                receiver.headers.append(dict(self.headers))
                for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                    receiver.resources.append(values(group.resource.attributes))
                    for scope in group.scope_spans:
                        receiver.spans += scope.spans
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.stop()

    def stop(self):
        """Receive nothing more; harmless when called again."""
        self._server.shutdown()
        self._server.server_close()

    def named(self, name):
        """Return the spans of a name, in the order of their begins."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start_time_unix_nano)

    def below(self, parent):
        """Return the children of a span, in the order of their begins."""
        found = [span for span in self.spans if span.parent_span_id == parent.span_id]
        return sorted(found, key=lambda span: span.start_time_unix_nano)


def values(attributes):
    """Return {key: value} of OTLP's attributes."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
