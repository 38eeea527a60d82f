"""The books of the GPU's bytes: who may hold how many, and what must have been proven before others may (DESIGN §4).

In: what workers report, deaths, measurements of the device, decisions of the policy, the time. Out: effects, to be
carried out in order. Pure: no socket, no file, no clock, no log. After a kill of the arbiter the roster restores every
row that counts. Time decides when to ask, kill or give up waiting, never that bytes are free.
"""

from __future__ import annotations

from math import inf

import msgspec

from arbiter.accounts import explained, moving
from arbiter.effects import (
    FREE,
    GRANTED,
    KILLED,
    LOST,
    RECLAIMING,
    REVOKED,
    Changed,
    Effect,
    Entry,
    Kill,
    Measure,
    Measured,
    Roster,
    SaveRoster,
    Send,
    State,
    Watch,
)
from common.messages import Incarnation, Lease, Status

GONE = ("absent", "offloaded")  # residencies that hold nothing


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Times and the margin of the device that nobody is granted."""

    margin_bytes: int = 256 * 2**20
    stuck_after_s: float = 30.0
    hello_timeout_s: float = 10.0
    offload_within_s: float = 30.0  # until a worker has measured its own
    offload_at_least_s: float = 2.0
    reclaim_within_s: float = 10.0
    die_within_s: float = 30.0
    repeat_s: float = 1.0


class Row(msgspec.Struct, kw_only=True):
    """One incarnation."""

    incarnation: Incarnation
    state: State = FREE
    epoch: int = 0
    bytes: int = 0
    residue_bytes: int = 0
    offload_within_s: float
    max_hold_s: float = 0.0
    until: float = inf  # when the state has lasted long enough: see Ledger.tick
    status: Status | None = None  # the last one heard in this life of the arbiter
    progress_at: float = 0.0
    # Newest question to the device when it was met, decided on, said that it ever held bytes, that its grant is carried
    met: int = 0  # out; died:
    decided: int = 0
    peaked: float = inf
    settled: float = inf
    ended: int = 0  # only answers to later ones know of it

    @property
    def counted(self) -> int:
        return 0 if self.state is FREE else self.bytes

    def entry(self) -> Entry:
        return Entry(**{f: getattr(self, f) for f in Entry.__struct_fields__})


class Ledger:
    """The lease state machine. Every public method that changes anything returns the effects, in order."""

    def __init__(self, limits: Limits, roster: Roster) -> None:
        self.limits = limits
        self.n = roster.n  # number of the newest decision
        self.rows = {e.incarnation: Row(**msgspec.structs.asdict(e)) for e in roster.rows}
        self.total_bytes: int | None = None  # None: the device has not been measured
        self.foreign_bytes = 0
        self.doubt_bytes = 0  # these may be foreign or a row's that loads or leaves: nobody is granted them meanwhile
        self._sure: int | None = None  # so many were foreign at the last measurement, whatever rows had
        self.asked = 0  # number of the newest question to the device
        self._moved = 0  # answers to questions up to this one are older than the newest move of bytes
        self._repeat_at = -inf
        self._saved = roster
        self._out: list[Effect] = []

    # What may be read

    def roster(self) -> Roster:
        return Roster(n=self.n, rows=tuple(r.entry() for r in self.rows.values() if r.state is not FREE))

    def cap(self) -> int:
        """Bytes that all leases together may have, as far as is known."""
        residue = sum(r.residue_bytes for r in self.rows.values())
        return (self.total_bytes or 0) - self.limits.margin_bytes - self.foreign_bytes - residue

    def counted(self) -> int:
        return sum(r.counted for r in self.rows.values())

    def unheard(self) -> list[Row]:
        """Restored rows whose incarnation has not spoken yet: it may have acted on more than the roster knows."""
        return [r for r in self.rows.values() if r.state in (GRANTED, REVOKED, KILLED) and r.status is None]

    def why_not(self, who: Incarnation, size: int) -> str:
        """Why `size` bytes cannot be granted now; empty when they can."""
        row = self.rows.get(who)
        if row is None or row.state is not FREE:
            return f"{who.worker} is {row.state if row else 'unknown'}"
        if self.total_bytes is None:
            return "the device has not been measured yet"
        if waits := self.unheard():
            return f"{waits[0].incarnation.worker} has not been heard since the arbiter began"
        if self.counted() + size > (cap := self.cap() - self.doubt_bytes):
            return f"{self.counted()} of {cap} bytes are leased: {size} do not fit"
        return "" if size > 0 else "nothing was wanted"

    def wake_at(self) -> float:
        """When `tick` has something to do at the latest."""
        hang = (r.progress_at + self.limits.stuck_after_s for r in self.rows.values() if self._waits(r))
        return min(self._repeat_at, *hang, *(r.until for r in self.rows.values()), inf)

    # What happens

    def start(self, now: float) -> list[Effect]:
        """Take up the roster's rows again, each in its state."""
        for row in self.rows.values():
            if row.state is not RECLAIMING:
                self._out.append(Watch(row.incarnation))
            self._wait(row, now)
            if row.state is KILLED:  # the one before may have died between the roster and the signal
                self._out.append(Kill(row.incarnation))
        return self.tick(now)

    def grant(self, who: Incarnation, size: int, now: float, max_hold_s: float = 0.0) -> list[Effect]:
        """Nothing happens when `why_not` has a reason."""
        if not self.why_not(who, size):
            row = self.rows[who]
            row.bytes, row.max_hold_s, row.progress_at = size, max_hold_s, now
            self._decide(row, GRANTED, now, "wanted")
        return self._effects()

    def revoke(self, who: Incarnation, now: float, reason: str) -> list[Effect]:
        """The only orderly way out of GRANTED, and half of every resize."""
        row = self.rows.get(who)
        if row is not None and row.state is GRANTED:
            self._decide(row, REVOKED, now, reason)
        return self._effects()

    def heard(self, s: Status, now: float) -> list[Effect]:
        """A Status arrived: late, twice or never, it changes nothing that its epochs do not prove."""
        self.n = max(self.n, s.acted, s.pending)
        row = self.rows.get(s.incarnation) or self._meet(s, now)
        if row.state is RECLAIMING:
            return self._effects()
        self._note(row, s, now)
        newer = max(s.acted, s.pending) > row.epoch
        idle = row.state is FREE and s.acted >= row.epoch and s.lease_bytes > 0  # gave up what no row remembers
        if (newer and row.state in (FREE, GRANTED, REVOKED)) or idle:
            row.bytes = max(row.counted, s.held_bytes, s.lease_bytes)
            self._decide(row, REVOKED, now, "it has a lease that the roster does not know")
        elif row.state is REVOKED and s.acted >= row.epoch and s.residency in GONE:
            self._free(row)
        elif row.state is GRANTED and s.wants.bytes == 0:
            self._decide(row, REVOKED, now, "it wants nothing")
        return self._effects()

    def died(self, who: Incarnation, now: float) -> list[Effect]:
        """Its pidfd is readable, or its pid has another start time. A driver frees memory some time after that."""
        row = self.rows.get(who)
        if row is not None and row.state is not RECLAIMING:
            row.bytes, row.residue_bytes, row.ended = row.counted + row.residue_bytes, 0, self.asked
            self._move(row, RECLAIMING, now, "it died")
            self._ask()
        return self._effects()

    def measured(self, m: Measured) -> list[Effect]:
        """Every used byte that no living row accounts for is of the dead, foreign, or in doubt: none is overlooked.

        In doubt is what came while rows load or leave and nothing tells how much they have. To call that foreign would
        count it twice, and take the card from those who have their bytes by right.
        """
        if m.number <= self._moved:
            return []
        self.total_bytes = m.total_bytes
        dead = [r for r in self.rows.values() if r.state is RECLAIMING and r.ended < m.number]
        pids = {r.incarnation.pid for r in dead}  # a successor that got the pid may not explain their bytes
        living = [r for r in self.rows.values() if r.met < m.number and r.incarnation.pid not in pids]
        left = max(0, m.used_bytes - explained(m, living))
        still = sum(r.bytes for r in dead)
        for row in dead:  # its bytes are free when the other dead and what was foreign before explain all that is left
            if left <= self.foreign_bytes + still - row.bytes:
                still -= row.bytes
                self._remove(row, "the device shows its bytes free")
        worst, before = max(0, left - still), self._sure
        since = m.number - self.limits.stuck_after_s / self.limits.repeat_s  # whoever takes longer does not get there
        self._sure = max(0, worst - moving(m, [r for r in living if r.decided >= since]))
        # Without figures a step may have grown since its worker's word: the next measurement knows.
        sure = self._sure if before is None or m.by_pid is not None else min(before, self._sure)
        self.foreign_bytes = min(max(self.foreign_bytes, sure), worst)
        self.doubt_bytes = worst - self.foreign_bytes
        return self._effects()

    def delayed(self, now: float) -> None:
        """Effects could not be carried out before now: who is revoked hears of it only now, and has all its time."""
        for row in self.rows.values():
            self._wait(row, now)

    def tick(self, now: float) -> list[Effect]:
        """Deadlines, and each second every Lease again."""
        before = self.n
        for row in list(self.rows.values()):
            if self._waits(row) and now >= row.progress_at + self.limits.stuck_after_s:
                self._decide(row, REVOKED, now, "it hangs: input waits and it makes no step")
            elif now < row.until:
                continue
            elif row.state is GRANTED:
                self._decide(row, REVOKED, now, "not heard since the arbiter began")
            elif row.state is REVOKED:
                self._move(row, KILLED, now, "it did not offload in time")
                self._out.append(Kill(row.incarnation))
            elif row.state is KILLED:
                self._move(row, LOST, now, "it does not die")
            elif row.state is RECLAIMING:
                self.foreign_bytes += row.bytes  # until the next measurement tells how many they really are
                self._remove(row, "the device does not show its bytes free: foreign from now on")
        if now >= self._repeat_at:
            self._repeat_at = now + self.limits.repeat_s
            self._ask()
            rows = [r for r in self.rows.values() if r.state in (GRANTED, REVOKED)]
            self._out += [self._send(r) for r in rows if r.epoch <= before]
        return self._effects()

    # How it happens

    def _meet(self, s: Status, now: float) -> Row:
        """An incarnation without a row: new, FREE when the roster was written, or of a roster that is gone.

        Adopted bytes keep the epoch they were granted under. A new one would make a late Status, written before its
        writer had offloaded, a grant that nobody held against the cap.
        """
        within = self.limits.offload_within_s
        row = Row(incarnation=s.incarnation, epoch=s.acted, offload_within_s=within, met=self.asked)
        self.rows[s.incarnation] = row
        self._out.append(Watch(s.incarnation))
        if s.pending <= s.acted and (s.residency not in GONE or s.held_bytes):
            row.bytes, row.progress_at = max(s.held_bytes, s.lease_bytes), now
            self._move(row, GRANTED, now, "adopted: resident, and not in the roster")
        return row

    def _note(self, row: Row, s: Status, now: float) -> None:
        old, row.status = row.status, s
        if old is None and row.state is GRANTED:
            row.until = inf  # it has been heard
        done = (s.acted, s.positions, s.stepped_at_s)
        if not s.waiting or old is None or done != (old.acted, old.positions, old.stepped_at_s):
            row.progress_at = now
        row.residue_bytes = max(row.residue_bytes, s.residue_bytes)
        row.peaked = min(row.peaked, self.asked) if s.peak_bytes else row.peaked
        was, settles = row.settled, row.state is GRANTED and s.acted >= row.epoch
        row.settled = min(was, self.asked) if settles else inf
        if row.settled < was:
            self._clear_up()
        if s.step_p99_s:
            row.offload_within_s = max(self.limits.offload_at_least_s, 3 * s.step_p99_s + s.offload_p99_s)

    def _waits(self, row: Row) -> bool:
        return row.state is GRANTED and row.status is not None and row.status.waiting

    def _decide(self, row: Row, state: State, now: float, reason: str) -> None:
        self.n += 1
        row.epoch, row.decided, row.settled = self.n, self.asked, inf
        self._move(row, state, now, reason)
        self._out.append(self._send(row))

    def _move(self, row: Row, state: State, now: float, reason: str) -> None:
        row.state = state
        self._wait(row, now)
        self._changed(row, reason)

    def _wait(self, row: Row, now: float) -> None:
        """How long the state may last; for ever where nothing is named."""
        limits = self.limits
        longest = {REVOKED: row.offload_within_s, KILLED: limits.die_within_s, RECLAIMING: limits.reclaim_within_s}
        if row.status is None:
            longest[GRANTED] = limits.hello_timeout_s
        row.until = now + longest.get(row.state, inf)

    def _free(self, row: Row) -> None:
        row.state, row.bytes, row.until = FREE, 0, inf
        self._moved = self.asked
        self._clear_up()
        self._changed(row, "proven")

    def _remove(self, row: Row, reason: str) -> None:
        del self.rows[row.incarnation]
        self._moved = self.asked
        row.state, row.bytes = FREE, 0
        self._changed(row, reason)

    def _clear_up(self) -> None:
        """A row has come or gone: the device tells what the doubt was about."""
        if self.doubt_bytes:
            self._ask()

    def _ask(self) -> None:
        self.asked += 1
        self._out.append(Measure(self.asked))

    def _send(self, row: Row) -> Send:
        return Send(
            Lease(
                incarnation=row.incarnation,
                epoch=row.epoch,
                granted=row.state is GRANTED,
                bytes=row.bytes,
                offload_within_s=row.offload_within_s,
                max_hold_s=row.max_hold_s,
            )
        )

    def _changed(self, row: Row, reason: str) -> None:
        self._out.append(Changed(row.incarnation, row.state, row.epoch, row.bytes, reason))

    def _effects(self) -> list[Effect]:
        """The roster, if any row that counts has changed, comes before all that the change asks for."""
        out, self._out = self._out, []
        if (roster := self.roster()) != self._saved:
            self._saved = roster
            out.insert(0, SaveRoster(roster))
        return out
