"""An HTTP server of files on the loopback that misbehaves as it is told."""

from __future__ import annotations

import gzip
import hashlib
import re
import threading
import zlib
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Files by path, and how they are served."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.gate = threading.Lock()
        self.behave()

    def behave(self, **how):
        """Serve as told from now on, and count from 0."""
        self.ranges = how.get("ranges", True)
        self.head = how.get("head", True)
        self.etag = how.get("etag", True)
        #: whether versions are told as Google does
        self.generation = how.get("generation", False)
        self.gzip = how.get("gzip", False)
        self.shift = how.get("shift", 0)
        #: what is done to the next requests: a status, "cut", "short" or None
        self.next = deque(how.get("next", ()))
        self.always = how.get("always")
        #: after so many good answers the file is this
        self.replace_after, self.replacement = how.get("replace", (None, b""))
        self.retry_after = how.get("retry_after")
        self.hold = how.get("hold")
        self.token = how.get("token")
        self.requests, self.heads, self.sent = [], 0, 0
        self.in_flight = self.most_in_flight = 0

    def url(self, path):
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        with self.server.gate:
            self.server.heads += 1
        data = self.server.files.get(self.path.lstrip("/"))
        self.send_response(405 if not self.server.head else 404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"") if self.server.head else 0))
        self.end_headers()

    def do_GET(self):
        server = self.server
        with server.gate:
            server.requests.append((self.path, self.headers.get("Range")))
            what = server.next.popleft() if server.next else server.always
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
            if server.replace_after is not None and not what:
                server.replace_after -= 1
                if server.replace_after < 0:
                    server.files[self.path.lstrip("/")] = server.replacement
        try:
            if server.hold is not None:
                server.hold()
            self._answer(what)
        finally:
            with server.gate:
                server.in_flight -= 1

    def _answer(self, what):
        server, name = self.server, self.path.lstrip("/")
        if name.startswith("moved/"):
            self.send_response(302)
            self.send_header("Location", "/" + name.removeprefix("moved/"))
            return self._end(b"")
        if server.token is not None and self.headers.get("Authorization") != server.token:
            what = 403
        if isinstance(what, int):
            self.send_response(what)
            if server.retry_after is not None:
                self.send_header("Retry-After", str(server.retry_after))
            return self._end(b"")
        data = server.files.get(name)
        if data is None:
            self.send_response(404)
            return self._end(b"")
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if span and server.ranges:
            begin, stop = int(span[1]) + server.shift, min(int(span[2]) + 1, len(data))
            if begin >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                return self._end(b"")
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{stop - 1}/{len(data)}")
        else:
            begin, stop = 0, len(data)
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
        if server.generation:
            self.send_header("x-goog-generation", str(zlib.crc32(data)))
        body = data[begin:stop]
        if server.gzip:
            body = gzip.compress(body)
            self.send_header("Content-Encoding", "gzip")
        return self._end(body, what)

    def _end(self, body, what=None):
        given = len(body) // 2 if what == "short" else len(body)
        self.send_header("Content-Length", str(given))
        self.end_headers()
        body = body[: len(body) // 2] if what in ("cut", "short") else body
        try:
            # in parts: whoever goes away early is noticed
            for at in range(0, len(body), 1 << 16):
                self.wfile.write(body[at : at + (1 << 16)])
                with self.server.gate:
                    self.server.sent += len(body[at : at + (1 << 16)])
        except OSError:
            self.close_connection = True
        if what == "cut":
            self.close_connection = True


@contextmanager
def serving():
    """A server that runs meanwhile."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
