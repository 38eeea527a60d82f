"""Stand-ins for a radio and a camera: sockets that serve numbered samples at real-time pace, and break when told to.

Sample i is what the station gives at `born` + i / 16000 s, so that the numbers tell when it was heard. `StandInCamera`
speaks as much RTSP (RFC 2326) and RTP as a connection over TCP needs, with L16 or PCMU, and asks for a password.
"""

from __future__ import annotations

import base64
import socket
import struct
import threading
import time

import numpy as np

from tests.capture_helpers import RATE, numbered

PACKET = 320  # samples, 20 ms


class Station:
    """Accepts connections one at a time, each served by `serve` until `breaks` is set; silent while `down`."""

    def __init__(self, born: float, port: int = 0) -> None:
        self.born = born
        self.stop, self.broken = threading.Event(), threading.Event()
        self.asked: list[str] = []  # first words of each request
        self.connections = 0
        self.drop: set[int] = set()  # numbers of packets, since `born`, that never arrive
        self.garbage = False  # set: some thousand bytes of nonsense come once
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.settimeout(0.05)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self.stop.is_set():
            try:
                peer, _ = self._listener.accept()
            except TimeoutError:
                continue
            with peer:
                if self.broken.is_set():
                    continue
                peer.settimeout(5.0)
                self.connections += 1
                try:
                    self.serve(peer)
                except OSError:
                    continue

    def serve(self, peer: socket.socket) -> None:
        raise NotImplementedError

    def packets(self) -> list[tuple[int, bytes]]:
        """(number of its first sample, samples) of what is heard now; waits for it. Empty: the connection breaks."""
        first = int((time.monotonic() - self.born) * RATE) // PACKET + 1
        due = self.born + (first + 1) * PACKET / RATE
        if self.stop.wait(max(0.0, due - time.monotonic())) or self.broken.is_set():
            return []
        return [(first * PACKET, numbered(first * PACKET, PACKET))]

    def close(self) -> None:
        self.stop.set()
        self.broken.set()
        self._thread.join()
        self._listener.close()


def request(peer: socket.socket, rest: bytearray) -> str:
    """The next request's head; interleaved RTCP before it is skipped."""
    while True:
        if rest[:1] == b"$" and len(rest) >= 4 and len(rest) >= (size := 4 + int.from_bytes(rest[2:4], "big")):
            del rest[:size]
        elif rest[:1] != b"$" and b"\r\n\r\n" in rest:
            head = bytes(rest[: rest.index(b"\r\n\r\n")])
            del rest[: len(head) + 4]
            return head.decode()
        elif data := peer.recv(4096):
            rest += data
        else:
            raise OSError("closed")


class StandInRadio(Station):
    """HTTP: a WAV file without an end."""

    def serve(self, peer: socket.socket) -> None:
        self.asked.append(request(peer, bytearray()))
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
        head = struct.pack("<4sI4s", b"RIFF", 0xFFFFFFFF, b"WAVE") + form + struct.pack("<4sI", b"data", 0xFFFFFFFF)
        peer.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: audio/wav\r\n\r\n" + head)
        at = 0
        while packets := self.packets():
            for first, pcm in packets:
                at = at or first
                while at <= first:  # a sender that was late sends what it owes
                    peer.sendall(numbered(at, PACKET))
                    at += PACKET
                del pcm


class StandInCamera(Station):
    """RTSP over TCP, one audio track of `codec` (L16: the samples themselves; PCMU: 8 kHz, a ramp of codes)."""

    codec = "L16"
    user, password = "me", "s3cret"

    def serve(self, peer: socket.socket) -> None:
        rest = bytearray()
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            head = request(peer, rest)
            verb, address, _ = head.split("\r\n")[0].split()
            self.asked.append(head)
            lines = dict(x.split(": ", 1) for x in head.split("\r\n")[1:] if ": " in x)
            answer = [f"CSeq: {lines['CSeq']}"]
            known = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            if verb != "OPTIONS" and lines.get("Authorization") != f"Basic {known}":
                reply = ["RTSP/1.0 401 Unauthorized", *answer, 'WWW-Authenticate: Basic realm="standin"']
                peer.sendall(("\r\n".join(reply) + "\r\n\r\n").encode())
                continue
            body = ""
            if verb == "OPTIONS":
                answer.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER")
            elif verb == "DESCRIBE":
                kind = "97 L16/16000/1" if self.codec == "L16" else "97 PCMU/8000/1"
                body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=stand-in\r\nt=0 0\r\nm=audio 0 RTP/AVP 97\r\n"
                body += f"a=rtpmap:{kind}\r\na=control:track1\r\n"
                answer += ["Content-Type: application/sdp", f"Content-Base: {address}/"]
            elif verb == "SETUP":
                answer += ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1"]
            elif verb == "PLAY":
                answer += ["Session: 1", "Range: npt=0-"]
            answer.append(f"Content-Length: {len(body)}")
            peer.sendall(("\r\n".join(["RTSP/1.0 200 OK", *answer]) + "\r\n\r\n" + body).encode())
            if verb == "PLAY":
                self.play(peer)
                return

    def play(self, peer: socket.socket) -> None:
        at = sequence = 0
        while packets := self.packets():
            for first, _ in packets:
                at = at or first
                while at <= first:
                    if self.garbage:
                        self.garbage = False
                        peer.sendall(bytes(i * 7 % 251 for i in range(5000)))
                    if at // PACKET not in self.drop:
                        self.rtp(peer, sequence, at)
                    sequence, at = sequence + 1, at + PACKET

    def rtp(self, peer: socket.socket, sequence: int, first: int) -> None:
        if self.codec == "L16":
            data, clock = np.frombuffer(numbered(first, PACKET), "<u2").astype(">u2").tobytes(), first
        else:
            data, clock = bytes((first // PACKET + i) % 256 for i in range(PACKET // 2)), first // 2
        packet = struct.pack(">BBHII", 0x80, 97, sequence & 0xFFFF, clock & 0xFFFFFFFF, 1) + data
        peer.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
