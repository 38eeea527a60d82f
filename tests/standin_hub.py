"""A stand-in for a model hub on loopback: lists and sends files of one repository, with switches for trouble.

Large files are sent by a redirect to `127.0.0.2`, as hubs redirect to their stores. It notes every request it gets.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from typing import NamedTuple

COMMIT = "c0ffee" + "0" * 34
REPO = "stand-in/tiny-llm"
LARGE = 100_000  # bytes from which a file is listed by sha256 and sent by the store


class Seen(NamedTuple):
    host: str  # "hub" or "store"
    path: str
    range: str
    authorization: str


class StandInHub:
    """Switches are plain attributes; `halfway` is set when half of a large file is sent, which `go_on` lets end."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.commit = files, COMMIT
        self.lie: dict[str, bytes] = {}  # sent instead of what is listed
        self.token = ""  # needed for files when set
        self.allowed = True  # whether that token's account has accepted the licence
        self.cut = 0  # a large file breaks off after so many bytes of one answer
        self.ranges = True
        self.moved = False  # the repository has another name now: redirects within the hub
        self.seen: list[Seen] = []
        self.halfway, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self._hub, self.url = self._serve("127.0.0.1", "hub")
        self._store, self.store_url = self._serve("127.0.0.2", "store")

    def close(self) -> None:
        self.go_on.set()
        for server in (self._hub, self._store):
            server.shutdown()
            server.server_close()

    def paths(self, host: str = "") -> list[str]:
        return [s.path for s in self.seen if host in ("", s.host)]

    def listing(self) -> dict[str, object]:
        siblings = []
        for name, data in self.files.items():
            one: dict[str, object] = {"rfilename": name, "size": len(data)}
            blob = b"blob %d\0" % len(data) + data
            one["blobId"] = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
            if len(data) >= LARGE:
                one["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(one)
        return {"id": REPO, "sha": self.commit, "siblings": siblings}

    def _serve(self, host: str, kind: str) -> tuple[http.server.ThreadingHTTPServer, str]:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._say(200)

            def do_GET(self) -> None:
                headers = self.headers
                outer.seen.append(Seen(kind, self.path, headers.get("Range", ""), headers.get("Authorization", "")))
                if kind == "store":
                    return self._send(self.path.removeprefix("/blob/"))
                if outer.moved and not self.path.startswith("/moved/"):
                    self.send_response(307)
                    self.send_header("Location", f"/moved{self.path}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                self.path = self.path.removeprefix("/moved")
                if self.path.startswith(f"/api/models/{REPO}/revision/"):
                    return self._say(200, json.dumps(outer.listing()).encode())
                name = self.path.removeprefix(f"/{REPO}/resolve/{outer.commit}/")
                if name not in outer.files:
                    return self._say(404)
                if outer.token and headers.get("Authorization") != f"Bearer {outer.token}":
                    return self._say(401)
                if outer.token and not outer.allowed:
                    return self._say(403)
                if len(outer.files[name]) < LARGE:
                    return self._send(name)
                self.send_response(302)
                self.send_header("Location", f"{outer.store_url}/blob/{name}")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def _say(self, status: int, body: bytes = b"") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _send(self, name: str) -> None:
                data = outer.lie.get(name, outer.files[name])
                first = 0
                if outer.ranges and (asked := self.headers.get("Range")):
                    first = int(asked.removeprefix("bytes=").removesuffix("-"))
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(data) - first))
                self.end_headers()
                part = data[first : first + outer.cut] if outer.cut and len(data) >= LARGE else data[first:]
                half = len(part) // 2 if len(data) >= LARGE else len(part)
                with contextlib.suppress(OSError):  # whoever asked is dead
                    self.wfile.write(part[:half])
                    self.wfile.flush()
                    if half < len(part):
                        outer.halfway.set()
                        outer.go_on.wait(60)
                        self.wfile.write(part[half:])

            def log_message(self, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer((host, 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server, f"http://{host}:{server.server_address[1]}"
