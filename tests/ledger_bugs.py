"""Planted bugs: each one a world with one mistake in it, for the proof that the checker sees it.

Mistakes that are easily made in a lease protocol; most of them were made in one that was in use.
"""

from __future__ import annotations

import msgspec

from arbiter import effects as e
from arbiter.ledger import GONE, Ledger, Row
from common.messages import Incarnation, Lease, Status
from tests.ledger_checker import Process
from tests.ledger_world import World
from workers.lease import Holder, Place


class StaleProof(World):
    """`offloaded` counts as proof when it was said under the epoch of the grant: said before it loaded."""

    breaks = "I4"

    class ledger_class(Ledger):
        def heard(self, s: Status, now: float) -> list[e.Effect]:
            row = self.rows.get(s.incarnation)
            if row and row.state is e.REVOKED and s.acted >= row.epoch - 1 and s.residency in GONE:
                self._free(row)
            return super().heard(s, now)


class ResidencyAlone(World):
    """`offloaded` counts as proof whatever was acted on."""

    breaks = "I4"

    class ledger_class(Ledger):
        def heard(self, s: Status, now: float) -> list[e.Effect]:
            row = self.rows.get(s.incarnation)
            if row and row.state is e.REVOKED and s.residency in GONE:
                self._free(row)
            return super().heard(s, now)


class ProofOfAnyIncarnation(World):
    """The arbiter knows workers by name: one life's proof frees another's bytes."""

    breaks = "I4"

    class ledger_class(Ledger):
        def heard(self, s: Status, now: float) -> list[e.Effect]:
            out = super().heard(s, now)
            for row in self.rows.values():
                same = row.incarnation.worker == s.incarnation.worker
                if same and row.state is e.REVOKED and s.acted >= row.epoch and s.residency in GONE:
                    self._free(row)
            return out + self._effects()


class WorkerWithoutIncarnation(World):
    """A worker takes its predecessor's lease for its own."""

    breaks = "I5"

    class holder_class(Holder):
        def accept(self, lease: Lease) -> bool:
            mine = lease.incarnation.worker == self.me.worker
            return super().accept(msgspec.structs.replace(lease, incarnation=self.me) if mine else lease)


class WorkerTakesOldEpochs(World):
    """A late Lease counts as well as a new one."""

    breaks = "I5"

    class holder_class(Holder):
        def accept(self, lease: Lease) -> bool:
            if lease.incarnation == self.me and lease.epoch != self.place.acted:
                self.pending = lease
                return True
            return False


class ActedBeforeItIsDone(World):
    """The control thread confirms a revocation as it arrives; the work thread is still in its step."""

    breaks = "I4"

    class holder_class(Holder):
        def status(self, now: float, **figures: object) -> Status:
            s = super().status(now, **figures)
            if self.pending and not self.pending.granted:
                return msgspec.structs.replace(s, acted=s.pending, residency="offloaded", held_bytes=0, lease_bytes=0)
            return s


class ResidencyChangesAfterActed(World):
    """A reload is confirmed, and only then shown as resident: two critical sections instead of one."""

    breaks = "I4"

    class holder_class(Holder):
        def loading(self, lease: Lease, held_bytes: int) -> None:
            super().loading(lease, held_bytes)
            place = Place(acted=lease.epoch + 1, residency="offloaded", held_bytes=held_bytes, lease=lease)
            self.place = place  # it expects to be revoked next, and says so


class RosterAfterTheSend(World):
    breaks = "I3"

    class ledger_class(Ledger):
        def _effects(self) -> list[e.Effect]:
            return sorted(super()._effects(), key=lambda x: isinstance(x, e.SaveRoster))


class RosterOnlyForGrants(World):
    """A revocation leaves without its epoch on disk."""

    breaks = "I3"

    class ledger_class(Ledger):
        def _effects(self) -> list[e.Effect]:
            out = super()._effects()
            granted = any(isinstance(x, e.Send) and x.lease.granted for x in out)
            return out if granted else [x for x in out if not isinstance(x, e.SaveRoster)]


class CountedAtLoad(World):
    """Bytes count once the worker says that it has them, not from the moment the Lease leaves."""

    breaks = "I1"

    class ledger_class(Ledger):
        def counted(self) -> int:
            there = [r for r in self.rows.values() if r.status and r.status.held_bytes]
            return sum(r.counted for r in there)


class KilledCountsAsFree(World):
    """SIGKILL was sent, so the memory is free: it is not."""

    breaks = "I1"

    class ledger_class(Ledger):
        def counted(self) -> int:
            return sum(r.counted for r in self.rows.values() if r.state is not e.KILLED)


class LostCountsAsFree(World):
    breaks = "I1"

    class ledger_class(Ledger):
        def counted(self) -> int:
            return sum(r.counted for r in self.rows.values() if r.state is not e.LOST)


class KillByPid(World):
    """The pid is all that is looked at; meanwhile it is somebody else's."""

    breaks = "I6"

    def signal(self, who: Incarnation) -> None:
        if target := self.slots.get(who.pid):
            self.sigkill(target, who)
        else:
            super().signal(who)


class KillAtOnce(World):
    """The deadline is taken for the time since the last progress."""

    breaks = "I6"

    class ledger_class(Ledger):
        def _wait(self, row: Row, now: float) -> None:
            super()._wait(row, now)
            if row.state is e.REVOKED:
                row.until = row.progress_at + row.offload_within_s


class EpochsBeginAnew(World):
    """After a restart the count begins at the newest row's epoch: those of rows that ended are used again."""

    breaks = "I3"

    class ledger_class(Ledger):
        def __init__(self, limits: object, roster: e.Roster) -> None:
            super().__init__(limits, roster)  # type: ignore[arg-type]
            self.n = max((r.epoch for r in roster.rows), default=0)


class GrantBeforeAllAreHeard(World):
    breaks = "granted before"

    class ledger_class(Ledger):
        def unheard(self) -> list[Row]:
            return []


class GrantBeforeMeasured(World):
    breaks = "I1"

    class ledger_class(Ledger):
        def __init__(self, limits: object, roster: e.Roster) -> None:
            super().__init__(limits, roster)  # type: ignore[arg-type]
            self.total_bytes = 100


class NoReclaiming(World):
    """A dead process's row ends with it; the driver takes its time."""

    breaks = "I4"

    class ledger_class(Ledger):
        def died(self, who: Incarnation, now: float) -> list[e.Effect]:
            if row := self.rows.get(who):
                self._remove(row, "dead")
            return self._effects()


class ReclaimedByTheClock(World):
    """When the time to reclaim is over, the bytes are forgotten instead of foreign."""

    breaks = "I4"

    class ledger_class(Ledger):
        def tick(self, now: float) -> list[e.Effect]:
            foreign = self.foreign_bytes
            out = super().tick(now)
            self.foreign_bytes = foreign
            return out


class OldMeasurement(World):
    """An answer measured before the death shows no bytes of the dead."""

    breaks = "I4"

    class ledger_class(Ledger):
        def measured(self, m: e.Measured) -> list[e.Effect]:
            for row in self.rows.values():
                row.ended = 0
            self._moved = 0
            return super().measured(m)


class ForeignIgnored(World):
    breaks = "I1"

    class ledger_class(Ledger):
        def cap(self) -> int:
            return super().cap() + self.foreign_bytes


class ResidueIgnored(World):
    """Contexts take no memory, one might think."""

    breaks = "I1"

    class ledger_class(Ledger):
        def cap(self) -> int:
            return super().cap() + sum(r.residue_bytes for r in self.rows.values())


class AdoptedNotCounted(World):
    """A resident worker that the roster does not know gets a row, and its bytes no place in the sum."""

    breaks = "I2"

    class ledger_class(Ledger):
        def _meet(self, s: Status, now: float) -> Row:
            row = super()._meet(s, now)
            row.bytes = 0
            return row


class AdoptedUnderANewEpoch(World):
    """The adopted lease is sent as a new grant: to one who had offloaded meanwhile it IS a new one, over the cap."""

    breaks = "I1"

    class ledger_class(Ledger):
        def _meet(self, s: Status, now: float) -> Row:
            row = super()._meet(s, now)
            if row.state is e.GRANTED and s.wants.bytes:
                self._decide(row, e.GRANTED, now, "adopted")
            return row


class ResizeWithoutRevoke(World):
    """A smaller lease is simply granted over the larger one, which is still in use."""

    breaks = "I2"

    class ledger_class(Ledger):
        def grant(self, who: Incarnation, size: int, now: float, max_hold_s: float = 0.0) -> list[e.Effect]:
            row = self.rows.get(who)
            if row and row.state is e.GRANTED and 0 < size < row.bytes and not self.unheard():
                row.bytes = size
                self._decide(row, e.GRANTED, now, "resized")
                return self._effects()
            return super().grant(who, size, now, max_hold_s)


class RevokedIsForgotten(World):
    """No deadline for a revocation restored from the roster."""

    breaks = "I7"

    class ledger_class(Ledger):
        def start(self, now: float) -> list[e.Effect]:
            out = super().start(now)
            for row in self.rows.values():
                row.until = float("inf")
            return out


class WantsAgainAtOnce(World):
    """After an OOM the worker wants again before it was revoked: a grant that nobody will carry out."""

    breaks = "stuck"

    class holder_class(Holder):
        def gave_up(self) -> None:
            if self.place.lease:
                self.place = Place(acted=self.place.lease.epoch, residency="offloaded")


class ForgetsToFree(World):
    """The work thread confirms the revocation and keeps its bytes."""

    breaks = "I4"

    def turn(self, p: Process, n: int) -> None:
        held = p.held
        super().turn(p, n)
        if p.held == 0 and held and p.holder and p.holder.place.residency == "offloaded" and n % 2:
            p.held = held


BUGS = [v for v in list(globals().values()) if isinstance(v, type) and issubclass(v, World) and v is not World]
