"""The worker's end of the lease: which Lease counts, what the work thread has carried out, what to want after an OOM.

In: Leases (control thread), what became of them (work thread), the time. Out: the Lease to carry out, the Want, the
Status. Pure. Nothing survives a kill, nor has to: the next process is another incarnation and holds nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from common.messages import Incarnation, Lease, Status, Want

NOTHING = Want(bytes=0)
PAUSE_MOST_S = 60.0
COMPLAIN_AFTER = 3  # times out of memory in a row


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What the work thread has carried out and what it holds: replaced whole, so that no reader sees half of it."""

    acted: int = 0
    residency: str = "absent"
    held_bytes: int = 0
    lease: Lease | None = None  # the one that lets it hold them; None: it may hold nothing

    @property
    def lease_bytes(self) -> int:
        return self.lease.bytes if self.lease else 0


@dataclasses.dataclass
class Holder:
    """One incarnation's leases. `accept` and `status` are for the control thread, the others for the work thread.

    Needs no lock: `pending` is written by the one, `place` by the other, each in one assignment.
    """

    me: Incarnation
    place: Place = Place()  # noqa: RUF009 - immutable
    pending: Lease | None = None
    want: Want = NOTHING
    ooms: int = 0  # in a row
    _again_at: float = 0.0
    _resident_at: float = 0.0

    # Control thread

    def accept(self, lease: Lease) -> bool:
        """Keep the Lease for the work thread, iff it is ours and newer than all that we know."""
        newest = max(self.place.acted, self.pending.epoch if self.pending else 0)
        if lease.incarnation != self.me or lease.epoch <= newest:
            return False
        self.pending = lease
        return True

    def status(self, now: float, **figures: Any) -> Status:
        """`figures` are the fields of Status that the lease does not know: peak, residue, lag, progress."""
        pending = self.pending  # before `place`: the work thread may carry it out in between, never the other way round
        place = self.place
        due = pending if pending and pending.granted and pending.epoch > place.acted else None
        return Status(
            incarnation=self.me,
            acted=place.acted,
            pending=max(place.acted, pending.epoch if pending else 0),
            residency=place.residency,
            held_bytes=place.held_bytes,
            lease_bytes=max(place.lease_bytes, due.bytes if due else 0),
            wants=self.wants(now),
            **figures,
        )

    def wants(self, now: float) -> Want:
        """Nothing while it pauses after an OOM, nor before the lease that it gave up was revoked.

        (Wanting again at once, a lost Status would leave the arbiter with a grant that nobody will carry out.)
        """
        place = self.place
        gave_up = place.lease is not None and place.residency == "offloaded"
        return NOTHING if gave_up or now < self._again_at else self.want

    @property
    def complains(self) -> bool:
        return self.ooms >= COMPLAIN_AFTER

    # Work thread, between two steps; `due` also between two copies of a reload

    def due(self) -> Lease | None:
        """The Lease to carry out next, if there is one."""
        pending = self.pending
        return pending if pending and pending.epoch > self.place.acted else None

    def loading(self, lease: Lease, held_bytes: int) -> None:
        """Bytes are moving in under `lease`. It is carried out when they are there: `acted` stays where it is."""
        self.place = Place(acted=self.place.acted, residency="loading", held_bytes=held_bytes, lease=lease)

    def holds(self, held_bytes: int) -> None:
        """The working memory of a step came or went."""
        self.place = msgspec.structs.replace(self.place, held_bytes=held_bytes)

    def loaded(self, lease: Lease, held_bytes: int, now: float) -> None:
        """`lease` is carried out: resident. Also for one that confirms what is there already."""
        if self.place.residency != "resident":
            self._resident_at = now
        self.place = Place(acted=lease.epoch, residency="resident", held_bytes=held_bytes, lease=lease)

    def offloaded(self, lease: Lease) -> None:
        """The revocation `lease` is carried out: the device holds nothing of ours any more."""
        self.place = Place(acted=lease.epoch, residency="offloaded")

    def gave_up(self) -> None:
        """Offloaded unasked (end of max_hold, OOM): the lease counts as carried out and waits to be revoked."""
        lease = self.place.lease
        if lease is not None:
            self.place = Place(acted=lease.epoch, residency="offloaded", lease=lease)

    def held_long_enough(self, now: float) -> bool:
        """Its time is for work: it does not run while it loads, or a long load would leave none, each time anew."""
        place = self.place
        if place.lease is None or place.residency != "resident":
            return False
        return 0 < place.lease.max_hold_s <= now - self._resident_at

    def out_of_memory(self, peak_bytes: int, now: float) -> None:
        """A load or a step did not fit: everything is offloaded. Want more, a little later.

        More than the card has would never be granted, and the next time it may do: so what it wanted before is `least`.
        What does not fit is in no peak: who complains of it wants more than the lease under which it did not.
        """
        self.gave_up()
        was = self.want
        least = was.least_bytes or was.bytes
        self._again_at = now + min(2.0 ** min(self.ooms, 10), PAUSE_MOST_S)
        self.ooms += 1
        too_small = self.place.lease_bytes if self.complains else 0
        size = max(peak_bytes * 5 // 4, too_small * 5 // 4, was.bytes)
        self.want = msgspec.structs.replace(was, bytes=size, least_bytes=least)

    def stepped(self) -> None:
        """A step went well."""
        self.ooms = 0
