"""A collector of traces: takes OTLP over HTTP with protobuf and prints each span as a line of JSON.

The first line is the port that it listens on. `--refuse N` answers the first N messages with 503.
"""

import argparse
import http.server
import json

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


def value(any_value):
    return getattr(any_value, any_value.WhichOneof("value"))


def attributes(pairs):
    return {pair.key: value(pair.value) for pair in pairs}


class Collector(http.server.BaseHTTPRequestHandler):
    refuse = 0

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.path == "/v1/traces", self.path
        assert self.headers["content-type"] == "application/x-protobuf", self.headers
        if Collector.refuse > 0:
            Collector.refuse -= 1
            self.send_response(503)
            self.end_headers()
            return
        message = ExportTraceServiceRequest.FromString(body)
        # What is unknown to the schema would be kept, and make the copy longer.
        assert len(message.SerializeToString()) == len(body)
        for resource_spans in message.resource_spans:
            service = attributes(resource_spans.resource.attributes)["service.name"]
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    print(
                        json.dumps(
                            {
                                "service": service,
                                "scope": scope_spans.scope.name,
                                "trace": span.trace_id.hex(),
                                "span": span.span_id.hex(),
                                "parent": span.parent_span_id.hex(),
                                "name": span.name,
                                "kind": span.kind,
                                "start": span.start_time_unix_nano,
                                "end": span.end_time_unix_nano,
                                "flags": span.flags,
                                "status": MessageToDict(span.status).get("code", "UNSET"),
                                "attributes": attributes(span.attributes),
                            }
                        ),
                        flush=True,
                    )
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--refuse", type=int, default=0)
    Collector.refuse = parser.parse_args().refuse
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    print(server.server_port, flush=True)
    server.serve_forever()


main()
