#!/usr/bin/env python3
"""Starts a GitHub workflow when tidegate asks for a model to be trained anew.

Takes the event `tidegate.retrain.requested` from a webhook of tidegate, verifies its signature, and sends it to a repository
as `repository_dispatch` with the type `tidegate-retrain`; retrain.yml beside this file is a workflow for it. Needs
Python 3.9 or newer and nothing else. In tidegate.toml:

    [[notify.webhook]]
    name = "github"
    url = "https://receiver.example.com/"
    events = ["retrain"]
    secret_file = "/run/secrets/tidegate-hook"

Environment of this program:

    TIDEGATE_SECRET_FILE  the same secret, in a file
    GITHUB_TOKEN_FILE     a token that may write the contents of the repository (a fine-grained one: contents, read and write)
    GITHUB_REPOSITORY     owner/name
    GITHUB_API            another address of the API, for GitHub Enterprise [https://api.github.com]
    LISTEN                where to listen [127.0.0.1:8080]; put TLS in front of it
    SEEN_FILE             keeps the ids that were sent on, so that none is sent again after a restart [none]

Answers: 204 sent on, sent on before, or an event of another type; 401 a wrong signature; 400 no event; 502 GitHub did not take it,
so that tidegate tries again.
"""

import collections
import hashlib
import hmac
import http.server
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request

BODY_BYTES_MAX = 2 << 20
SECONDS_MAX = 300
SEEN_MAX = 10_000
TYPE = "tidegate.retrain.requested"


def verify(signature, body, secret, now):
    """True if the header `x-tidegate-signature` fits the bytes of the body and is not too old."""
    parts = dict(part.split("=", 1) for part in signature.split(",") if "=" in part)
    sent = parts.get("t", "")
    if not (sent.isascii() and sent.isdigit()) or abs(now - int(sent)) > SECONDS_MAX:
        return False
    expected = hmac.new(secret, sent.encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), parts.get("v1", "").encode())


def read_secret(variable):
    with open(os.environ[variable], encoding="utf-8") as file:
        return file.read().strip()


class Seen:
    """Ids that were sent on: the last of them, in memory and in a file."""

    def __init__(self, path):
        self.path = path
        self.ids = collections.OrderedDict()
        if path and os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                for line in collections.deque(file, SEEN_MAX):
                    self.ids[line.strip()] = True

    def __contains__(self, name):
        return name in self.ids

    def add(self, name):
        self.ids[name] = True
        if len(self.ids) > SEEN_MAX:
            self.ids.popitem(last=False)
        if self.path:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(name + "\n")
                file.flush()
                os.fsync(file.fileno())


def dispatch(event):
    """Sends an event on; raises OSError where GitHub does not take it."""
    request = event["data"]["retrain"]
    # At most ten properties and 64 KiB: the longest list goes first.
    payload = {key: request.get(key) for key in ("model", "version", "digest", "trigger", "reason")}
    payload["id"] = event["id"]
    payload["evidence"] = {**request, "prediction_ids": request.get("prediction_ids", [])[:20]}
    body = json.dumps({"event_type": "tidegate-retrain", "client_payload": payload})
    if len(body) > 60_000:
        payload["evidence"] = {"truncated": True}
        body = json.dumps({"event_type": "tidegate-retrain", "client_payload": payload})
    api = os.environ.get("GITHUB_API", "https://api.github.com").rstrip("/")
    call = urllib.request.Request(
        f"{api}/repos/{os.environ['GITHUB_REPOSITORY']}/dispatches",
        data=body.encode(),
        method="POST",
        headers={
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {read_secret('GITHUB_TOKEN_FILE')}",
            "Content-Type": "application/json",
            "User-Agent": "tidegate-receiver",
            "X-GitHub-Api-Version": "2022-11-28",
        },
    )
    with urllib.request.urlopen(call, timeout=8) as answer:
        if answer.status != 204:
            raise OSError(f"GitHub answered {answer.status}")


class Receiver(http.server.BaseHTTPRequestHandler):
    seen = Seen(os.environ.get("SEEN_FILE"))
    # One at a time, so that the same event is not sent on twice.
    one = threading.Lock()
    timeout = 10

    def do_POST(self):
        length = self.headers.get("content-length", "")
        if not length.isdigit() or int(length) > BODY_BYTES_MAX:
            return self.say(413, "a body of known length, please")
        body = self.rfile.read(int(length))
        signature = self.headers.get("x-tidegate-signature", "")
        if not verify(signature, body, read_secret("TIDEGATE_SECRET_FILE").encode(), time.time()):
            return self.say(401, "the signature does not fit")
        try:
            event = json.loads(body)
            kind, name = event["type"], f"{event['source']} {event['id']}"
            if kind == TYPE:
                event["data"]["retrain"]["model"]
        except (ValueError, KeyError, TypeError):
            return self.say(400, "this is no event of tidegate")
        if kind != TYPE:
            return self.say(204)
        with self.one:
            if name in self.seen:
                return self.say(204)
            try:
                dispatch(event)
            except OSError as error:
                return self.say(502, f"GitHub did not take it: {error}")
            self.seen.add(name)
        self.say(204)

    def say(self, status, text=""):
        self.log_message("%s %s", status, text)
        self.send_response(status)
        self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


def main():
    for variable in ("TIDEGATE_SECRET_FILE", "GITHUB_TOKEN_FILE", "GITHUB_REPOSITORY"):
        if not os.environ.get(variable):
            sys.exit(f"{variable} is not set; the head of this file says what it is")
    host, _, port = os.environ.get("LISTEN", "127.0.0.1:8080").rpartition(":")
    server = http.server.ThreadingHTTPServer((host, int(port)), Receiver)
    print(f"listening on {host}:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
