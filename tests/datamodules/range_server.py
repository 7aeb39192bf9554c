"""A server of files that answers range requests, and breaks off as often as it is told; a process of its own.

    python range_server.py FOLDER

It must be one: GDAL keeps Python's threads waiting while it reads. It prints its port. ``/control?drop=2&above=1000``:
the next two answers from byte 1000 on stop half way; ``/control`` tells what was asked. ``/bucket/...`` is the folder.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import sys
import urllib.parse

FOLDER = sys.argv[1]
STATE = {"drop": 0, "above": 0, "answers": 0, "dropped": 0}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        address = urllib.parse.urlparse(self.path)
        if address.path == "/control":
            STATE.update({key: int(value) for key, value in urllib.parse.parse_qsl(address.query)})
            self.say(200, json.dumps(STATE).encode())
            return
        path = os.path.join(FOLDER, address.path.removeprefix("/bucket/").lstrip("/"))
        if not os.path.isfile(path):
            self.say(404, b"")
            return
        with open(path, "rb") as file:
            data = file.read()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        first, last = (int(asked[1]), int(asked[2] or len(data) - 1)) if asked else (0, len(data) - 1)
        if first >= len(data):
            self.say(416, b"")
            return
        part = data[first : last + 1]
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{os.stat(path).st_mtime_ns:x}"'}
        if asked:
            headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        if body:
            STATE["answers"] += 1
        drops = body and STATE["drop"] > 0 and first >= STATE["above"]
        if drops:
            STATE["drop"] -= 1
            STATE["dropped"] += 1
        self.say(206 if asked else 200, part, headers, sent=(len(part) // 2 if drops else len(part)) * body)
        if drops:
            self.connection.shutdown(2)
            self.close_connection = True

    def say(
        self, code: int, part: bytes, headers: dict[str, str] | None = None, sent: int | None = None
    ) -> None:
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(part))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(part[:sent])
        self.wfile.flush()


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()
