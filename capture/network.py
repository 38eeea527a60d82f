"""The audio of a URL (HTTP, HLS, RTSP, whatever PyAV reads): a connection that breaks is made again, with back-off.

A URL with a duration is a file elsewhere: it is read again, what is in the backlog is skipped, nothing is lost. One
without (radio, camera) comes once: the time away is a hole by the clock, and so is sound that never arrived while the
connection stood. URLs may hold passwords: only `shown` leaves this file.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable, Iterator
from math import inf
from urllib.parse import urlsplit

import av.error

from capture.decode import Decoded, Opened, Piece, open_sound, unusable
from capture.intake import Intake
from capture.pace import Schedule
from capture.ring import Patience
from common.backlog import BYTES
from common.given_sources import shown
from common.messages import SAMPLE_RATE
from common.settings import Source, UserError, pace

TIMEOUT_S = 10.0  # a server that says nothing for so long is gone
PROBE_US = 1_000_000  # sound that is looked at before it is decoded; the library's 5 s make a connection slow
FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 15.0
STEADY_S = 5.0  # a connection that gave so much sound makes the next retry quick again
LOST_S = 0.1  # less than this is rounding of time stamps
STRANGE_S = 3600.0  # a larger jump of time stamps is another clock
BURST_S = 10.0  # at most; what a server sends at once at the beginning lies in the past
WAITED_S = 0.04  # a burst is over when we waited so much longer than half of its sound lasts: less is the scheduler


def bursts(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same pieces, the first ones as one until some had to be waited for: all of them lie before this moment."""
    waiting, sound, waited_s, source = list[Piece](), 0.0, 0.0, iter(pieces)
    while sound < BURST_S:
        asked_s = time.monotonic()
        if (piece := next(source, None)) is None:
            break
        waiting.append(piece)
        sound += piece.sound_s
        if len(waiting) > 1 and piece.sound_s:
            waited_s = max(0.0, waited_s + time.monotonic() - asked_s - piece.sound_s / 2)
        if waited_s > WAITED_S:
            break
    if waiting:
        yield Piece(b"".join(p.pcm for p in waiting), waiting[0].at_s, sound)
    yield from source


class Losses:
    """Sound of a live connection that never arrived: the sender's time stamps and our clock both say so.

    Time stamps alone jump for other reasons (another programme, an RTCP report), and the clock alone cannot tell late
    from lost. Lateness is measured from the quickest arrival so far.
    """

    def __init__(self) -> None:
        self._first_s: float | None = None  # time stamp of the place 0
        self._place_s = 0.0  # sound taken and sound lost since then
        self._quickest_s = inf

    def before(self, at_s: float | None, sound_s: float, now_s: float) -> float:
        """Seconds lost right before a piece with this time stamp, which arrived now."""
        late_s = now_s - self._place_s - sound_s
        lost_s = 0.0
        if at_s is not None:
            jump_s = at_s - (self._first_s + self._place_s) if self._first_s is not None else inf
            if not -LOST_S < jump_s < STRANGE_S:
                self._first_s = at_s - self._place_s
            elif jump_s >= LOST_S and late_s - self._quickest_s >= LOST_S:
                lost_s = min(jump_s, late_s - self._quickest_s)
                if lost_s < jump_s:  # the rest was no loss: from here on time stamps count anew
                    self._first_s = at_s - self._place_s - lost_s
        self._quickest_s = min(self._quickest_s, late_s - lost_s)
        self._place_s += sound_s + lost_s
        return lost_s


class Url:
    """Sound behind an address."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.origin = shown(source.path)
        self.pace = pace(source)
        if not self.pace:
            raise UserError(f"source {source.name}: pace max needs a file on disk; download {self.origin} first")

    def changed_ns(self) -> int:
        return 0

    def content(self, intake: Intake) -> str:
        return ""

    def run(self, intake: Intake) -> str:
        delay_s = FIRST_RETRY_S
        while not intake.stopping:
            before = intake.position
            try:
                opened = self._open()
                with contextlib.closing(opened.container):
                    intake.resumable = opened.declared_s > 0
                    return self._again(opened, intake) if intake.resumable else self._live(opened, intake)
            except (av.error.FFmpegError, UserError) as e:
                # A connection that gave samples once is made again; what never gave any is for a person to look at.
                problem = unusable(self.origin, e, self._why(e))
                if not intake.position:
                    raise problem from None
                if intake.position - before >= STEADY_S * SAMPLE_RATE:
                    delay_s = FIRST_RETRY_S
                intake.state, intake.detail = "reconnecting", str(problem)
            if not intake.resumable:
                intake.away("connection lost", at_least=1)
            intake.wait(delay_s)
            delay_s = min(LONGEST_RETRY_S, 2 * delay_s)
        return ""

    def _open(self) -> Opened:
        options = {"analyzeduration": str(PROBE_US)}
        if self.source.path.startswith(("rtsp://", "rtsps://")):
            # Datagrams are lost silently where a connection only waits; pictures are not asked for.
            options |= {"rtsp_flags": "prefer_tcp", "allowed_media_types": "audio"}
        return open_sound(self.source.path, self.origin, options=options, timeout_s=TIMEOUT_S, alone=True)

    def _why(self, error: av.error.FFmpegError | UserError) -> str:
        """What the library calls "Input/output error", in words."""
        if isinstance(error, UserError) or not isinstance(error, OSError) or error.errno != 5:
            return ""
        try:
            host = urlsplit(self.source.path).hostname or ""
        except ValueError:
            return "not a valid URL"
        try:
            socket.getaddrinfo(host, None)
        except (OSError, UnicodeError) as e:
            return f"the name {host!r} cannot be resolved ({getattr(e, 'strerror', None) or e})"
        return "it closed the connection, or sends nothing that is known as audio"

    def _again(self, opened: Opened, intake: Intake) -> str:
        """A file elsewhere: from its beginning, without what is there already."""
        skip, at, schedule = intake.position, 0, Schedule(self.pace)
        decoded = Decoded(opened, read_again=True)
        for pcm, _, _ in decoded:
            begin, at = at, at + len(pcm) // BYTES
            intake.state, intake.detail = "ok", ""
            for piece in schedule.pieces(pcm[max(0, skip - begin) * BYTES :]):
                if not schedule.wait(intake, len(piece) // BYTES) or not intake.put(piece, Patience.ALWAYS):
                    return ""
            if intake.stopping:
                return ""
        if decoded.error:
            raise decoded.error
        if not at:
            raise UserError(f"{self.origin}: its audio stream holds nothing that can be decoded")
        return "end of input"

    def _live(self, opened: Opened, intake: Intake) -> str:
        """Sound that comes only once: it cannot wait for a full disk."""
        decoded, losses, got = Decoded(opened, read_again=False), Losses(), False
        for piece in bursts(decoded):
            now_s = time.monotonic()
            if intake.stopping:
                return ""
            if got and (lost_s := losses.before(piece.at_s, piece.sound_s, now_s)):
                intake.lost(round(lost_s * SAMPLE_RATE), "lost on the way")
            elif not got:
                losses.before(piece.at_s, piece.sound_s, now_s)
            intake.state, intake.detail, got = "ok", "", True
            intake.put(piece.pcm, Patience.WHILE_DISK_TAKES)
        if not got:
            raise decoded.error or UserError(f"{self.origin}: its audio stream holds nothing that can be decoded")
        raise decoded.error or UserError(f"{self.origin}: the other side ended the stream")
