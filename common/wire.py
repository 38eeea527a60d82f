"""The only file that imports zmq: endpoints, sockets with bounded buffers, requests with time-outs, CURVE.

Framing: a request is one payload frame (after whatever envelope frames the client's socket adds: none for DEALER with
an id frame in front, an empty one for REQ); the answer is the same envelope frames and one payload frame. A message
over MAX_MESSAGE bytes closes its connection: one bad peer cannot exhaust the others' memory.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import zmq

from common import messages as m
from common.backlog import replace_file
from common.settings import Settings, UserError

MAX_MESSAGE = 16 * 1024 * 1024
IPC_PATH_LIMIT = 107  # sun_path, less its terminating zero
PAGES_UNREAD = 16  # that wait for one client; each may have 256 KiB, and a client asks for one at a time
CURVE_DOMAIN = "swapscribe"  # of the sockets and of the list of known keys: pyzmq compares exactly
_CLIENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
log = logging.getLogger("wire")

Frames = list[bytes]
Timeout = zmq.Again
POLLIN = zmq.POLLIN
context = zmq.Context.instance


def run_dir(settings: Settings) -> Path:
    """DATA/run, the 0700 folder of name locks and of what the launcher and its workers tell each other."""
    return _private(settings.data / "run")


def socket_dir(settings: Settings) -> Path:
    """Where sockets lie: DATA/run, or a short 0700 folder when a socket's path would be too long for the kernel.

    Locks stay in DATA/run: who holds a name is decided by the data, whatever the path or the environment looks like.
    """
    path = settings.data / "run"
    if len(os.fsencode(path)) + 1 + longest_name(settings) > IPC_PATH_LIMIT:
        tag = hashlib.sha256(os.fsencode(settings.data)).hexdigest()[:12]
        path = Path("/tmp") / f"swapscribe-{os.getuid()}-{tag}"
    return _private(path)


def longest_name(settings: Settings) -> int:
    """Bytes of the longest name that a socket can have."""
    return max([len("launcher"), *(len("doorbell@" + s.name) for s in settings.source), len("doorbell@") + 32])


def _private(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise UserError(f"{path}: the run folder must be a directory of yours; remove it and start again")
    path.chmod(0o700)
    return path


def ipc(settings: Settings, name: str) -> str:
    return f"ipc://{socket_dir(settings) / name}"


def page(host: str, port: int, token: str = "") -> str:
    """The address of a web page of ours, as a browser takes it."""
    name = f"[{quote(host, safe=':')}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={quote(token, safe='')}" if token else "")


def _socket(kind: int) -> zmq.Socket[bytes]:
    s: zmq.Socket[bytes] = context().socket(kind)
    s.setsockopt(zmq.LINGER, 0)
    s.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
    return s


def router(address: str, hwm: int = 1000) -> zmq.Socket[bytes]:
    """Bind a ROUTER. A dead client's answers are dropped, never waited for; so are those beyond `hwm` unread ones."""
    s = _socket(zmq.ROUTER)
    s.setsockopt(zmq.SNDHWM, hwm)
    s.setsockopt(zmq.SNDTIMEO, 0)
    s.bind(address)
    return s


def publisher(address: str, hwm: int = 20_000) -> zmq.Socket[bytes]:
    """Bind a PUB. A slow subscriber loses messages at `hwm`, never slows anybody; replay is its cure."""
    s = _socket(zmq.PUB)
    s.setsockopt(zmq.SNDHWM, hwm)
    s.bind(address)
    return s


def subscriber(addresses: Iterable[str], topics: Iterable[str], hwm: int = 20_000) -> zmq.Socket[bytes]:
    s = _socket(zmq.SUB)
    s.setsockopt(zmq.RCVHWM, hwm)
    s.setsockopt(zmq.RECONNECT_IVL, 50)
    s.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
    for t in topics:
        s.setsockopt(zmq.SUBSCRIBE, t.encode())
    for a in addresses:
        s.connect(a)
    return s


def receive(socket: zmq.Socket[bytes]) -> Frames | None:
    """Next multipart message, or None when there is none now."""
    try:
        return socket.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None


def send(socket: zmq.Socket[bytes], frames: Frames) -> bool:
    """Send without waiting; False when the peer is gone or full."""
    try:
        socket.send_multipart(frames, zmq.NOBLOCK)
    except (zmq.Again, zmq.ZMQError):
        return False
    return True


def poller(*sockets: zmq.Socket[bytes] | int) -> zmq.Poller:
    p = zmq.Poller()
    for s in sockets:
        p.register(s, zmq.POLLIN)
    return p


class Unreachable(Exception):
    """No answer within the time allowed."""


class Asker:
    """A client of a ROUTER endpoint that never waits: one question at a time, late answers dropped."""

    def __init__(self, address: str, curve: Curve | None = None) -> None:
        self.address = address
        self.socket = _socket(zmq.DEALER)
        # Messages are not queued for a server that is not there: a restarted one must not get a heap of old requests.
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        if curve:
            curve.client(self.socket)
        self.socket.connect(address)
        self._id = 0

    def ask(self, message: m.Request) -> bool:
        """Send; forget any question still open. False when nobody listens."""
        self._id += 1
        return send(self.socket, [self._tag, m.encode(message)])

    @property
    def _tag(self) -> bytes:
        return self._id.to_bytes(8, "big")

    def answer(self) -> m.Answer | None:
        """The answer to the newest question, if it is here."""
        while (frames := receive(self.socket)) is not None:
            if len(frames) == 2 and frames[0] == self._tag:
                return m.decode_answer(frames[1])
        return None

    def close(self) -> None:
        self.socket.close()


class Requester(Asker):
    """A client of a ROUTER endpoint: numbered requests, answers matched by number, late answers dropped.

    Not for use from two threads at once.
    """

    def request(self, message: m.Request, timeout_s: float) -> m.Answer:
        """Send and wait for the matching answer. Raises Unreachable."""
        deadline = time.monotonic() + timeout_s
        while not self.ask(message):  # not connected (yet)
            if time.monotonic() >= deadline:
                raise Unreachable(self.address)
            self.socket.poll(5, zmq.POLLOUT)
        while (left := deadline - time.monotonic()) > 0:
            if self.socket.poll(int(left * 1000) + 1) and (answer := self.answer()) is not None:
                return answer
        raise Unreachable(self.address)

    def tell(self, message: m.Request) -> bool:
        """Send without an answer and without waiting."""
        return send(self.socket, [b"", m.encode(message)])


class Curve:
    """CURVE keys for TCP endpoints: the server's pair, and the public keys of clients it lets in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def make(folder: Path, client: str = "client") -> None:
        """Create the server pair (once) and one client pair under `folder`; secret keys are 0600. Raises UserError."""
        if client == "server" or not _CLIENT.fullmatch(client):
            raise UserError(f"no client can be called {client!r}: 1 to 64 letters, digits, _ . - and not server")
        (folder / "clients").mkdir(parents=True, exist_ok=True, mode=0o700)
        for stem in ("server", client):
            where = folder if stem == "server" else folder / "clients"
            if (where / f"{stem}.pub").exists():
                continue
            public, secret = zmq.curve_keypair()
            replace_file(where / f"{stem}.key", secret, durable=True)
            replace_file(where / f"{stem}.pub", public, durable=True)  # last: it says that the pair is whole

    def serve(self, pub_tcp: str, replay_tcp: str) -> tuple[Any, list[zmq.Socket[bytes]], list[zmq.Socket[bytes]]]:
        """Bind PUB and ROUTER sockets at these TCP addresses (empty: none), with CURVE.

        Returns (authenticator to keep alive, PUBs, ROUTERs): sockets of their own, for CURVE covers a whole socket.
        """
        from zmq.auth.thread import ThreadAuthenticator

        try:
            secret = (self.folder / "server.key").read_bytes()
        except OSError:
            raise UserError(f"{self.folder}: no CURVE keys; make them with: swapscribe keys {self.folder}") from None

        clients = self.folder / "clients"

        class Known:
            def callback(self, domain: str, key: bytes) -> bool:
                """Looked up at each connection: keys come and go without a restart. pyzmq hands over Z85 text."""
                return any(p.read_bytes() == key for p in clients.glob("*.pub"))

        auth = ThreadAuthenticator(context())
        auth.start()
        auth.configure_curve_callback(domain=CURVE_DOMAIN, credentials_provider=Known())
        pubs: list[zmq.Socket[bytes]] = []
        routers: list[zmq.Socket[bytes]] = []
        for address, kind, made in ((pub_tcp, zmq.PUB, pubs), (replay_tcp, zmq.ROUTER, routers)):
            if address:
                socket = _socket(kind)
                if kind == zmq.ROUTER:
                    socket.setsockopt(zmq.SNDHWM, PAGES_UNREAD)
                socket.setsockopt(zmq.CURVE_SERVER, 1)
                socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
                socket.setsockopt(zmq.ZAP_DOMAIN, CURVE_DOMAIN.encode())
                try:
                    socket.bind(address)
                except zmq.ZMQError as e:
                    raise UserError(f"feed: cannot listen at {address}: {e.strerror}") from None
                made.append(socket)
        return auth, pubs, routers

    def client(self, socket: zmq.Socket[bytes], name: str = "client") -> None:
        public = (self.folder / "clients" / f"{name}.pub").read_bytes()
        socket.setsockopt(zmq.CURVE_SERVERKEY, (self.folder / "server.pub").read_bytes())
        socket.setsockopt(zmq.CURVE_PUBLICKEY, public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, (self.folder / "clients" / f"{name}.key").read_bytes())
