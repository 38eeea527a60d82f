"""What arrives at the arbiter's socket: understood, or refused. Pure, but for the log lines that complain.

Anything may arrive: a stranger's bytes must neither end the arbiter nor enter its books as numbers that make no sense.
"""

from __future__ import annotations

import re
from math import isfinite

import msgspec

from common import messages as m
from common.process import Log

MOST = 2**53  # bytes, epochs, ticks: larger ones are nobody's
RESIDENCIES = ("absent", "offloaded", "loading", "resident", "offloading")
LANES = ("live", "burst", "batch")
_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,40}")  # it becomes part of file names
_request = msgspec.msgpack.Decoder(m.ArbiterRequest)


def nonsense(s: m.Status) -> str:
    """What is wrong with a Status that could be decoded; empty when nothing is."""
    who = s.incarnation
    if not _NAME.fullmatch(who.worker):
        return f"{who.worker[:40]!r} is no worker's name"
    if s.residency not in RESIDENCIES or s.wants.lane not in LANES:
        return f"residency {s.residency[:20]!r}, lane {s.wants.lane[:20]!r}: no such thing"
    for name, value in [*msgspec.structs.asdict(s).items(), *msgspec.structs.asdict(s.wants).items()]:
        if isinstance(value, int | float) and not (isfinite(value) and 0 <= value < MOST):
            return f"{name} is {value}"
    if not (0 < who.pid < 2**31 and 0 < who.started_ticks < MOST):
        return f"no process has pid {who.pid} and start time {who.started_ticks}"
    return ""


class Inbox:
    """Decodes requests; says so at the 1st, 2nd, 4th, 8th ... that is not one, and counts them all."""

    def __init__(self, log: Log) -> None:
        self._log, self.bad = log, 0

    def read(self, payload: bytes) -> m.Status | m.Command | m.Refused:
        try:
            request: m.Status | m.Command = _request.decode(payload)
        except m.UNDECODABLE as e:
            return self._refuse(self._why(payload, e))
        if request.protocol != m.PROTOCOL:
            return self._refuse(f"wrong protocol {request.protocol}, this arbiter speaks {m.PROTOCOL}")
        if isinstance(request, m.Status) and (why := nonsense(request)):
            return self._refuse(f"a status that cannot be: {why}")
        return request

    @staticmethod
    def _why(payload: bytes, error: Exception) -> str:
        try:
            protocol = msgspec.msgpack.decode(payload).get("protocol", m.PROTOCOL)
        except (AttributeError, *m.UNDECODABLE):
            return "malformed message: not a msgpack map"
        if protocol != m.PROTOCOL:
            return f"wrong protocol {protocol!r}, this arbiter speaks {m.PROTOCOL}"
        return f"malformed message: {error}"

    def _refuse(self, why: str) -> m.Refused:
        self.bad += 1
        if self.bad & (self.bad - 1) == 0:
            self._log.warning("refused", reason=why[:200], so_far=self.bad)
        return m.Refused(reason=why)
