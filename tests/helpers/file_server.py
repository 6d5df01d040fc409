"""A web server on this machine, for tests: serves bytes, with ranges, and fails as it is told to."""

from __future__ import annotations

import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class FileServer:
    """Serves `files` (name -> bytes) while it is entered.

    `ranged`: honor ranges. `break_after`: bytes after which every connection breaks off. `pause_after`: bytes after
    which nothing more comes until it is None. `status`: instead of an answer. `length`: a Content-Length to claim.
    `ranges`: the Range header of every request so far.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.ranged = True
        self.break_after: int | None = None
        self.pause_after: int | None = None
        self.status = 200
        self.length: str | None = None
        self.ranges: list[str | None] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{name}"

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.ranges.append(handler.headers.get("Range"))
        name = handler.path.rpartition("/")[2]
        if self.status != 200 or name not in self.files:
            handler.send_error(self.status if self.status != 200 else 404)
            return
        content = self.files[name]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.ranges[-1] or "") if self.ranged else None
        start = int(wanted[1]) if wanted else 0
        if wanted and start >= len(content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.end_headers()
            return
        handler.send_response(206 if wanted else 200)
        if wanted:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(content) - start) if self.length is None else self.length)
        handler.end_headers()
        end = len(content) if self.break_after is None else start + self.break_after
        if self.pause_after is not None:
            handler.wfile.write(content[start : start + self.pause_after])
            while self.pause_after is not None:
                time.sleep(0.01)
            return
        handler.wfile.write(content[start:end])
