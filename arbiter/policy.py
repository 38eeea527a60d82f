"""Who should be on the GPU now, and why the others wait (DESIGN §4, docs/swap.md "Who gets the GPU").

In: every worker that speaks, the cap, what a person ordered, what the policy remembered, the time. Out: whom to
revoke, whom to grant next, a line of reason for each that waits, and when to ask again. Pure: the ledger decides
whether bytes are free, this file only what would be good. What it remembers is lost with the arbiter: no harm.
"""

from __future__ import annotations

from math import inf

import msgspec

from arbiter.effects import FREE, GRANTED, KILLED, LOST, RECLAIMING
from arbiter.keep import FOR_GOOD_S, keep, weight
from arbiter.view import Burst, Plan, View, Worker, gib
from common.messages import Incarnation
from common.settings import GpuSettings


def decide(view: View, settings: GpuSettings, now: float) -> Plan:
    return _Decision(view, settings, now).plan()


class _Decision:
    """One call of `decide`, its steps in reading order."""

    def __init__(self, view: View, settings: GpuSettings, now: float) -> None:
        self.view, self.set, self.now, self.memory = view, settings, now, view.memory
        self.wakes: list[float] = []
        self.closed = False  # nobody who rides free comes now
        self.waits: dict[Incarnation, str] = {}
        self.room = max(0, view.cap_bytes - sum(w.bytes for w in view.workers if w.state is LOST))
        live = (max(w.want_bytes, w.bytes) for w in view.workers if w.lane == "live")
        self.crowded = sum(min(size, self.room) for size in live) > self.room  # one alone crowds nobody
        self.workers = [self._modest(w) for w in view.workers]
        able = [w for w in self.workers if w.state not in (LOST, RECLAIMING, KILLED) and w.want_bytes > 0]
        self.refused = [w for w in able if w.want_bytes > self.room]
        for w in self.refused:
            self.waits[w.who] = (
                f"it wants {gib(w.want_bytes)}, the card has {gib(self.room)} for leases{view.sum_text}: "
                "it will never fit; choose a smaller model or quantise"
            )
        # A live one that is refused more than it has keeps what it has; the others leave, and are refused after that.
        self.stays = [w for w in self.refused if w.state is GRANTED and w.lane == "live"]
        self.room -= sum(w.bytes for w in self.stays)
        able = [w for w in able if w not in self.refused]
        for w in able:
            if w.off_until_s > now:
                self.wakes.append(w.off_until_s)
                self.waits[w.who] = f"evicted by hand, for {w.off_until_s - now:.0f} s more"
        able = [w for w in able if w.off_until_s <= now]
        self.live = sorted(
            (w for w in able if w.lane == "live"), key=lambda w: (-weight(w, settings), w.since_s, w.name)
        )
        self.others = sorted((w for w in able if w.lane != "live"), key=self._order)
        self.fixed = [w for w in able if w.pinned and w.state is GRANTED]  # nobody takes these away
        self.silence_s = min((w.silence_s for w in self.live), default=inf)
        self.live_bytes = sum(w.want_bytes for w in self.live)
        self.kept = keep(self.live, self.room, self.fixed, settings)  # those who are there when no burst is
        if self.memory.forced not in [w.name for w in able if w.state is not GRANTED]:
            self.memory = msgspec.structs.replace(self.memory, forced="")
        # The arbiter was started again meanwhile; or who rode free no longer fits beside the live ones.
        running = [
            w
            for w in self.others
            if w.state is GRANTED and w.lane == "burst" and self.live_bytes + w.want_bytes > self.room
        ]
        if self.memory.burst is None and running and not running[0].pinned:
            one, since_s = running[0], running[0].granted_at_s
            cost_s = one.load_s + sum(w.load_s for w in self.live if w.state is not GRANTED)
            found = Burst(
                who=one.who,
                began_s=since_s,
                held_s=since_s,
                ready_s=since_s,
                cost_s=cost_s,
                start="found",
                pieces=one.pieces,
                seen=one.pieces,
            )
            self.memory = msgspec.structs.replace(self.memory, burst=found)

    def _modest(self, w: Worker) -> Worker:
        """What it wants; or all there is, or the least where the live ones crowd, if it can do with that.

        Who has something in between keeps it: no resizing. Who has measured what it wants shares only what would be
        all there is.
        """
        if not w.least_bytes:
            return w
        share = self.crowded and w.lane == "live" and not w.cramped
        share &= not w.measured or w.want_bytes > self.room
        size = w.least_bytes if share else min(w.want_bytes, self.room)
        if w.state is GRANTED and w.least_bytes <= w.bytes <= w.want_bytes:
            size = w.bytes
        return msgspec.structs.replace(w, want_bytes=size) if size >= w.least_bytes else w

    def plan(self) -> Plan:
        burst = self._burst()
        # Captions that a burst does not keep waiting are no reason to put it off or end it.
        self.lag_s = max((w.lag_s for w in self.kept if w is not burst), default=0.0)
        free_ride = burst is not None and self._rides(burst)
        ended = self._end(burst, free_ride) if burst and self._runs(burst) else ""
        if burst and ended:
            self.waits[burst.who] = ended
        was = self.memory.burst
        if was and (burst is None or burst.who != was.who or ended):  # it is done (or dead), cut, or over
            self._close(was, ended)
        if self.memory.returning and all(w.ready for w in self.kept):
            self._returned()
        start = "" if burst is None or ended else self._starts(burst)
        go = burst if start else None
        target = self._target(go, burst if ended else None, free_ride)
        if burst and start:
            self._remember(burst, start, target)
        revoke = self._revocations(target, go, bool(ended))
        if revoke:  # who had the GPU until now waits from now on
            served_s = self.memory.served_s | {who.worker: self.now for who, _ in revoke}
            self.memory = msgspec.structs.replace(self.memory, served_s=served_s)
        grant = None if revoke else self._grant(target, go, free_ride)
        phase, reason = self._phase(go, ended, target)
        return Plan(
            revoke=tuple(revoke),
            grant=grant,
            waits=self.waits,
            refused=tuple(w.who for w in self.refused),
            phase=phase,
            reason=reason,
            wake_at_s=min((t for t in self.wakes if t > self.now), default=inf),
            memory=self.memory,
        )

    # Which burst, and whether it goes

    def _since(self, w: Worker) -> float:
        """Its waiting begins anew after each turn: so each has its turn, and overdue wins once an interval."""
        return max(w.since_s, self.memory.served_s.get(w.name, -inf))

    def _order(self, w: Worker) -> tuple[bool, bool, float, str]:
        return w.name != self.memory.forced, w.lane == "batch", self._since(w), w.name

    def _rides(self, w: Worker) -> bool:
        """All that want the GPU fit on it together with it, batch work left out: nobody waits for its end."""
        bursts = sum(o.want_bytes for o in self.others if o.lane == "burst" and o is not w)
        beside = self.live_bytes - (w.want_bytes if w in self.live else 0)
        return beside + bursts + w.want_bytes <= self.room

    def _burst(self) -> Worker | None:
        """The burst that runs, or the first that waits and does not simply come beside everybody else.

        A live worker that does not fit beside the better ones takes its turn as a burst: else it would never have one.
        """
        kept = self.kept
        running = [w for w in self.live + self.others if self._runs(w)]
        pinned = [w for w in self.fixed if w not in self.live]
        left = self.room - sum(w.want_bytes for w in kept + pinned)
        comes = self._beside(left, len(kept) == len(self.live), pinned)
        waiting = [*self.others, *(w for w in self.live if w not in kept)]
        candidates = sorted((w for w in waiting if w.state is not GRANTED), key=self._order)
        chosen = running[:1] or [w for w in candidates if self._can_go(w)][:1]
        for w in candidates:
            if w not in chosen and w not in comes:
                self.waits[w.who] = f"{chosen[0].name} is first" if chosen else self._pinned_words()
        # One that comes by itself, and has waited for longest, comes before any other makes room for itself.
        return chosen[0] if chosen and (running or chosen[0] not in comes) else None

    def _beside(self, left: int, all_live: bool, pinned: list[Worker]) -> list[Worker]:
        """Bursts and batch work that fit in `left` bytes: who is there may stay, others come when nothing live waits.

        Batch work last, even if it is there.
        """
        out = []
        for w in sorted(self.others, key=lambda w: (w.lane == "batch", w.state is not GRANTED)):
            if w not in pinned and (w.state is GRANTED or all_live) and w.want_bytes <= left:
                out.append(w)
                left -= w.want_bytes
        return out

    def _runs(self, w: Worker) -> bool:
        return self.memory.burst is not None and self.memory.burst.who == w.who

    def _can_go(self, w: Worker) -> bool:
        return w.want_bytes + sum(f.want_bytes for f in self.fixed if f is not w) <= self.room

    def _pinned_words(self) -> str:
        return f"{', '.join(w.name for w in self.fixed)} is pinned (swapscribe gpu unpin)"

    def _end(self, w: Worker, free_ride: bool) -> str:
        """Why a running burst has to give back now, if it has."""
        assert self.memory.burst
        if free_ride or (w.pinned and w.state is GRANTED):
            return ""
        # Moments, not durations: what is compared is what it is woken at, to the last bit.
        ready_s = min(self.memory.burst.ready_s, self.now if w.ready else inf)
        over_s = ready_s + self.set.max_hold_s  # its time is for work, but it does not load for ever
        if ready_s == inf:
            over_s = self.memory.burst.held_s + max(self.set.max_hold_s, self.set.stuck_after_s)
        may_cut_s = self.memory.burst.held_s + self._least_s(w)  # never, until it is granted
        cuts = self.memory.cuts.get(w.name, 0)
        if self.now >= over_s:
            return f"it had its {self.set.max_hold_s:.0f} s"
        if w.lane == "batch" and any(o.lane == "burst" and self._can_go(o) for o in self.others):
            return "a burst is wanted, and batch work comes last"
        if self.lag_s > self.set.lag_hard_s and self.now >= may_cut_s and cuts < self.set.max_cuts:
            return f"cut short: captions are {self.lag_s:.0f} s late"
        # Between two pieces of its work. One that cannot keep up does more of them: else they would pile up.
        at_most = 1 + int((self.now - w.since_s) / max(self.set.overdue_s, 1.0))
        done, edge = w.pieces - self.memory.burst.pieces, w.pieces > self.memory.burst.seen
        waited_for = self.lag_s > self.set.lag_soft_s or self.silence_s < self.set.silence_s
        if w.lane == "burst" and w.ready and edge and done >= at_most and waited_for:
            return "a piece of its work is done, and captions wait"
        self.wakes += [over_s, may_cut_s]
        return ""

    def _least_s(self, w: Worker) -> float:
        """Less would be a swap for nothing. Its own word counts, but nobody has the GPU for longer than the longest."""
        return min(max(self.set.burst_min_s, w.burst_min_s), self.set.max_hold_s)

    def _starts(self, w: Worker) -> str:
        """What lets it go now; empty, and a reason in `waits`, when nothing does."""
        if self._runs(w):
            return "running"
        overdue_s = self._since(w) + self.set.overdue_s
        patience_s = self._since(w) + self.set.patience_s
        quiet = self.silence_s >= self.set.silence_s
        # Who has waited for long does not wait for silence: what is under way is owed from its end on, nothing before.
        between = self.now >= patience_s and not any(k.owes for k in self.kept)
        late = self.lag_s > self.set.lag_soft_s
        rest_s = self.memory.rest_until_s - self.now
        missing = [k for k in self.kept if k is not w and not k.ready]
        if w.name == self.memory.forced:
            return "by hand"
        # Who rides free and would have to leave has its least time first, as a burst has.
        young = [o for o in self.others if o.state is GRANTED and o.lane == "burst" and o is not w]
        young_s = max((o.granted_at_s + self._least_s(o) for o in young), default=-inf)
        if self.now < young_s:
            self.waits[w.who] = f"{young[0].name} has just come"
            # Overdue, it waits for those only who ride already: one after the other might come for ever.
            self.closed = self.now >= overdue_s
            self.wakes += [young_s, overdue_s]
            return ""
        # Those who left for the last burst come back before the next; one that cannot does not hold it up for ever.
        back_s = self.memory.ended_s + self.set.stuck_after_s
        if w.lane == "batch" and any(o.lane == "burst" and self._can_go(o) for o in self.others):
            self.waits[w.who] = "a burst is wanted, and batch work comes last"
            return ""
        if (quiet or between) and not (late or rest_s > 0 or missing):
            return "silence" if quiet else "patience"
        if self.now >= overdue_s and (not missing or self.now >= back_s):
            return "overdue"
        if missing:
            why = f"{missing[0].name} comes first"
        elif late:
            why = f"captions are {self.lag_s:.1f} s late"
        elif rest_s > 0:
            why = f"the GPU rests from swapping for {rest_s:.0f} s more"
        else:
            left_s = patience_s - self.now
            why = (
                f"somebody speaks; it waits {left_s:.0f} s more for a pause" if left_s > 0 else "a caption is due first"
            )
        self.waits[w.who] = f"{why}; overdue in {max(0.0, overdue_s - self.now):.0f} s"
        self.wakes += [overdue_s, patience_s, self.memory.rest_until_s, back_s]
        return ""

    def _close(self, was: Burst, ended: str) -> None:
        name, cuts = was.who.worker, dict(self.memory.cuts)
        if ended.startswith("cut"):
            cuts[name] = cuts.get(name, 0) + 1
        elif was.held_s < self.now:  # it had a turn that was not cut; one that never came to be counts for nothing
            cuts.pop(name, None)
        self.memory = msgspec.structs.replace(
            self.memory,
            burst=None,
            cuts=cuts,
            returning=was.cost_s > 0,
            served_s=self.memory.served_s | {name: self.now},
            lasted_s=self.memory.lasted_s | ({name: self.now - was.held_s} if was.held_s < self.now else {}),
            ended_s=self.now if was.cost_s else self.memory.ended_s,
            came_in_s=min(was.ready_s, self.now) - was.began_s,
            rest_until_s=max(self.memory.rest_until_s, self.now + self.set.rest_swaps * was.cost_s),
        )

    def _returned(self) -> None:
        """Everybody is back. What the swap really took counts, if it is more than expected: a kill on the way, say."""
        took_s = self.memory.came_in_s + self.now - self.memory.ended_s
        rest_until_s = max(self.memory.rest_until_s, self.now + self.set.rest_swaps * took_s)
        self.memory = msgspec.structs.replace(self.memory, returning=False, rest_until_s=rest_until_s)

    def _remember(self, w: Worker, start: str, target: list[Worker]) -> None:
        """It begins, or what is new of it: granted, resident."""
        was, change = self.memory.burst, msgspec.structs.replace
        if was is None:
            if start == "by hand" and self.memory.returning:  # it cuts the way back short: what that took counts
                self._returned()
            # One by hand may come before all are back: whoever is still away comes back after it.
            leaves = [x for x in self.live + self.others if (x.state is GRANTED or x in self.kept) and x not in target]
            cost = w.load_s + w.offload_s + sum(x.load_s + x.offload_s for x in leaves) if leaves else 0.0
            began = Burst(who=w.who, began_s=self.now, cost_s=cost, start=start, pieces=w.pieces, seen=w.pieces)
            swaps = self.memory.swaps + bool(leaves)
            self.memory = change(self.memory, burst=began, swaps=swaps, returning=False, forced="")
        elif w.state is GRANTED:
            ready_s = min(was.ready_s, self.now) if w.ready else was.ready_s
            held_s = min(was.held_s, w.granted_at_s)
            self.memory = change(self.memory, burst=change(was, held_s=held_s, ready_s=ready_s, seen=w.pieces))

    # Who should be there, and the next move

    def _target(self, burst: Worker | None, ended: Worker | None, free_ride: bool) -> list[Worker]:
        """Everybody who should be there, in the order in which they are granted."""
        first = [burst] if burst else []
        left = self.room - sum(w.want_bytes for w in first)
        pinned = [w for w in self.fixed if w not in first and w.lane != "live"]
        left -= sum(w.want_bytes for w in pinned)
        live = [w for w in self.live if w not in first]
        lasts_s = self.memory.lasted_s.get(burst.name, self.set.max_hold_s) if burst else FOR_GOOD_S
        kept = keep(live, left, self.fixed, self.set, lasts_s)
        left -= sum(w.want_bytes for w in kept)
        out = pinned + [w for w in live if w in kept]
        out = out + first if free_ride else first + out
        for w in live:
            if w not in kept:
                beside = ", ".join(x.name for x in out)
                self.waits.setdefault(w.who, f"{beside} {'has' if burst else 'is on'} the GPU")
        open_ = len(kept) == len(live) and not self.closed
        for w in self._beside(left, open_, [*out, *([ended] if ended else [])]):
            out.append(w)
            self.waits.pop(w.who, None)
        for w in self.others if self.closed else ():
            if w not in out and w.state is not GRANTED:
                self.waits.setdefault(w.who, "an overdue burst is first")
        return out

    def _revocations(self, target: list[Worker], burst: Worker | None, ended: bool) -> list[tuple[Incarnation, str]]:
        out = []
        for w in self.workers:
            if w.state is not GRANTED or w.want_bytes == 0:
                continue  # (who wants nothing is revoked by the ledger)
            if w.off_until_s > self.now:
                out.append((w.who, "evicted by hand"))
            elif w in self.stays:
                continue
            elif w not in target:
                stays_until = w.granted_at_s + max(self.set.keep_at_least_s, self.set.keep_reloads * w.load_s)
                if burst or ended or w.lane != "live" or self.now >= stays_until:
                    why = f"makes room for {burst.name}" if burst else self.waits.get(w.who, "others need its room")
                    out.append((w.who, why))
                else:
                    self.wakes.append(stays_until)
            elif w.want_bytes > w.bytes or (w.want_bytes < w.bytes and w is not burst):  # a burst is over soon
                out.append((w.who, f"resize: it wants {gib(w.want_bytes)} and has {gib(w.bytes)}"))
        return out

    def _grant(
        self, target: list[Worker], burst: Worker | None, free_ride: bool
    ) -> tuple[Incarnation, int, float] | None:
        """The first of the target that is not there, if its bytes are free and nobody else is loading."""
        patience_s = self.set.stuck_after_s  # one that never loads does not keep the others from it
        loads = [w for w in self.workers if w.state is GRANTED and not w.ready]
        self.wakes += [w.granted_at_s + patience_s for w in loads]
        loads = [w for w in loads if self.now < w.granted_at_s + patience_s]
        counted = sum(w.bytes for w in self.workers)
        found = None
        for w in target:
            if w.state is GRANTED:
                continue
            if found is None and w.state is FREE and not loads and counted + w.want_bytes <= self.view.cap_bytes:
                hold = self.set.max_hold_s if w is burst and not free_ride and not w.pinned else 0.0
                found = (w.who, w.want_bytes, hold)
            busy = [x for x in self.workers if x.state is not FREE and x.state is not GRANTED and x is not w]
            why = f"{loads[0].name} is loading" if loads else f"{busy[0].name} has not given back" if busy else "next"
            self.waits.setdefault(w.who, why)
            loads = loads or [w]
        return found

    def _phase(self, go: Worker | None, ended: str, target: list[Worker]) -> tuple[str, str]:
        dying = [w for w in self.workers if w.state in (KILLED, RECLAIMING) and w.bytes]
        missing = [w for w in target if w.state is not GRANTED or not w.ready]
        rider = next((w for w in missing if w.lane != "live" and w is not go), None)
        if dying:
            return "reclaiming", f"{dying[0].name} is {dying[0].state}; its {gib(dying[0].bytes)} are not free yet"
        if go and self.memory.burst:
            how = {"found": "", "by hand": " by hand"}.get(self.memory.burst.start, f" by {self.memory.burst.start}")
            return ("making room", f"{go.name} comes{how}") if go in missing else ("burst", f"{go.name} has the GPU")
        if self.memory.returning:
            return "giving back", f"{ended or 'the burst is over'}; {missing[0].name if missing else 'all'} comes back"
        if rider and rider is missing[0]:
            return "free ride", f"{rider.name} fits beside everything live"
        return "idle", f"{missing[0].name} is loading" if missing else ""
