"""A day of captions and minutes in the simulated world: who speaks when, what each worker has to do, what came of it.

Models of workers (stand-ins), not workers: speech is a pattern of times, a step a duration, a summary a number of
tokens. The ledger and the policy are the real ones (`arbiter/world.py`). Seeded: the same day comes out the same.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from math import ceil, floor, inf

import msgspec

from arbiter import effects as e
from arbiter.view import Plan
from arbiter.world import Actor, World
from common.messages import Lease
from common.settings import TranscriberSettings

# ITU-T P.59 (1993), artificial conversational speech, two people: nobody speaks for 22.48 % of the time, 0.508 s at a
# time on average; lengths are exponential. So somebody speaks for 1.752 s at a time.
SPURT_S, PAUSE_S = 1.752, 0.508
HEARD_EVERY_S = 0.25  # capture writes so often, and nothing is heard in between
Spans = list[tuple[float, float]]


def conversation(seed: int, lasts_s: float, speech_share: float = 0.0) -> Spans:
    """When somebody speaks. `speech_share` > 0: the pauses are as much longer or shorter as it takes."""
    rng = random.Random(seed)
    pause_s = SPURT_S * (1 - speech_share) / speech_share if speech_share else PAUSE_S
    out: Spans = []
    at = rng.expovariate(1 / pause_s)
    while at < lasts_s:
        end = at + max(0.1, rng.expovariate(1 / SPURT_S))
        out.append((at, end))
        at = end + max(0.05, rng.expovariate(1 / pause_s))
    return out


def repeated(spans: Spans, lasts_s: float) -> Spans:
    """A recorded pattern, again and again."""
    period = max(end for _, end in spans) + 1.0
    out = [(k * period + a, k * period + b) for k in range(int(lasts_s / period) + 1) for a, b in spans]
    return [(a, b) for a, b in out if a < lasts_s]


class Utterance(msgspec.Struct, frozen=True):
    """What the voice-activity detector cuts: known at `ready_s`."""

    begin_s: float
    end_s: float
    ready_s: float
    speech_s: float


def utterances(spans: Spans, rules: TranscriberSettings) -> list[Utterance]:
    """Spurts joined over short pauses, cut when they get too long: as the transcriber does, without its details."""
    quiet_s, longest_s = rules.end_silence_ms / 1000, rules.max_utterance_s
    pieces = [
        (a + k * longest_s, min(b, a + (k + 1) * longest_s))
        for a, b in spans
        for k in range(int((b - a) / longest_s) + 1)
    ]
    out: list[Utterance] = []
    begin, end, speech = 0.0, -inf, 0.0
    for a, b in pieces:
        if speech and (a - end >= quiet_s or b - begin > longest_s):
            out.append(Utterance(begin, end, min(end + quiet_s, max(end, a)), speech))
            speech = 0.0
        begin = begin if speech else a
        speech, end = speech + b - a, b
    if speech:
        out.append(Utterance(begin, end, end + quiet_s, speech))
    return out


class Item(msgspec.Struct, frozen=True):
    """A piece of work: of which moment it is, and how long it takes."""

    said_s: float
    takes_s: float
    about: Utterance


class Reader(Actor):
    """A live worker: does what waits, one piece after the other, while it is resident."""

    def __init__(self, *args: object, **more: float) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]
        self.queue: deque[Item] = deque()
        self.late: list[float] = []  # of each piece: from when it was said until it was done
        self.working = False
        self.began_s = 0.0
        self.next: list[Reader] = []
        self.cost: tuple[float, float] = (0.0, 0.0)  # seconds a piece, and a second of speech

    def give(self, world: World, u: Utterance) -> None:
        self.queue.append(Item(u.end_s, self.cost[0] + self.cost[1] * u.speech_s, u))
        self.work(world)
        world.heard(self)

    def lag_s(self, now: float) -> float:
        return max(0.0, now - self.queue[0].said_s) if self.queue else 0.0

    def came(self, world: World) -> None:
        self.work(world)

    def left(self, world: World) -> None:
        self.working = False

    def accept(self, world: World, lease: Lease) -> None:
        if self.working and not lease.granted:  # it leaves between two pieces of a step, which is begun anew later
            edge_s = world.now + self.step_s - (world.now - self.began_s) % self.step_s
            self.busy_until = min(self.busy_until, edge_s)
        super().accept(world, lease)

    def work(self, world: World) -> None:
        """Unless the GPU has to be given back: what waits is done after that."""
        if self.queue and self.resident and not self.working and self.pending is None:
            self.working, self.began_s = True, world.now
            self.busy_until = world.now + self.queue[0].takes_s
            world.at(self.busy_until, lambda n=self.loads: self._done(world, n))  # type: ignore[misc]

    def _done(self, world: World, n: int) -> None:
        if n != self.loads or not self.working:
            return
        self.working = False
        item = self.queue.popleft()
        self.late.append(world.now - item.said_s)
        for reader in self.next:
            reader.give(world, item.about)
        world.heard(self)
        self.work(world)


class Captions(Reader):
    """The transcriber: hears everything, and knows how long nobody has spoken."""

    def __init__(self, *args: object, **more: float) -> None:
        super().__init__(*args, **more)
        self.spans: Spans = []
        self.begins: list[float] = []
        self.said: list[Utterance] = []
        self.said_begins: list[float] = []

    def hear(self, world: World, spans: Spans, said: Iterable[Utterance]) -> None:
        self.spans, self.begins = spans, [a for a, _ in spans]
        self.said = list(said)
        self.said_begins = [u.begin_s for u in self.said]
        for u in self.said:
            world.at(_heard(u.ready_s), lambda u=u: self.give(world, u))  # type: ignore[misc]
            for at in (u.begin_s, u.end_s + world.set.silence_s):  # a pause is over, or long enough: told at once
                world.at(_heard(at), lambda: world.heard(self))

    def silence_s(self, now: float) -> float:
        """As far as it has listened; none while an utterance is under way or waits."""
        heard = floor(now / HEARD_EVERY_S + 1e-9) * HEARD_EVERY_S
        i = bisect_right(self.said_begins, heard) - 1
        if self.queue or (i >= 0 and heard < self.said[i].ready_s):
            return 0.0
        return max(0.0, heard - self.said[i].end_s) if i >= 0 else heard

    def owes(self, now: float) -> bool:
        return bool(self.queue)

    def position(self, now: float) -> float:
        """Everything before it is captioned."""
        if self.queue:
            return self.queue[0].about.begin_s
        i = bisect_right(self.begins, now) - 1
        return now if i < 0 or self.spans[i][1] + 1.0 < now else self.spans[i][0]


def _heard(at_s: float) -> float:
    """When what is to be heard at this moment is heard."""
    return ceil(at_s / HEARD_EVERY_S) * HEARD_EVERY_S


class Due(msgspec.Struct, frozen=True):
    """Minutes that are to be written."""

    since_s: float
    prompt: int  # tokens


class Minutes(Actor):
    """The summarizer: reads a prompt, writes an answer; goes on from its tokens after it had to leave."""

    def __init__(self, *args: object, prefill_s: float, token_s: float, tokens: int, **more: float) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]
        self.prefill_s, self.token_s, self.tokens = prefill_s, token_s, tokens  # seconds a token; tokens of an answer
        self.due: deque[Due] = deque()
        self.written = 0  # of the answer under way
        self.began_s = 0.0
        self.delays: list[float] = []
        self.bursts = 0

    def ask(self, world: World, prompt: int) -> None:
        self.due.append(Due(world.now, prompt))
        self.wish(world)

    def came(self, world: World) -> None:
        if self.due:
            self.bursts += 1
            self._begin(world)

    def _begin(self, world: World) -> None:
        self.began_s = world.now
        left_s = (self.due[0].prompt + self.written) * self.prefill_s + (self.tokens - self.written) * self.token_s
        which = (self.loads, len(self.delays))
        world.at(world.now + left_s, lambda: self._done(world, which))

    def left(self, world: World) -> None:
        if self.due:
            wrote_s = world.now - self.began_s - (self.due[0].prompt + self.written) * self.prefill_s
            self.written = min(self.tokens - 1, self.written + max(0, int(wrote_s / self.token_s)))

    def accept(self, world: World, lease: Lease) -> None:
        if self.resident and self.due and not lease.granted:  # at the edge of the piece under way
            self.busy_until = world.now + self.step_s - (world.now - self.began_s) % self.step_s
        super().accept(world, lease)

    def _done(self, world: World, n: tuple[int, int]) -> None:
        if n != (self.loads, len(self.delays)) or not self.resident:
            return
        self.delays.append(world.now - self.due.popleft().since_s)
        self.written, self.pieces = 0, self.pieces + 1
        if self.due:
            self._begin(world)
            world.heard(self)
        else:
            self.wish(world, False)


class Record:
    """What the card did: seconds of each kind, swaps, starts, cuts."""

    def __init__(self, minutes: Minutes, live: list[Reader]) -> None:
        self.minutes, self.live = minutes, live
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.by_hour: defaultdict[int, float] = defaultdict(float)  # seconds of switching in each hour
        self.resident: defaultdict[str, float] = defaultdict(float)
        self.starts: Counter[str] = Counter()
        self.cuts = self.overs = 0
        self.refused = ""
        self._state, self._since_s, self._burst = "idle", 0.0, -1.0

    def saw(self, world: World) -> None:
        self.until(world, world.now)

    def until(self, world: World, now: float) -> None:
        took = now - self._since_s
        self.spent[self._state] += took
        if self._state == "switching":
            self.by_hour[int(now // 3600)] += took
        actors = list(world.actors.values())
        for a in actors:
            self.resident[a.name] += took if a.resident else 0.0
        moves = any(a.residency == "loading" or (a.resident and a.pending) for a in actors)
        away = any(a.want.bytes and not a.resident for a in self.live)
        here = any(a.resident for a in self.live)
        burst = self.minutes.resident and away
        self._state = "switching" if moves else "burst" if burst else "captions" if here else "idle"
        self._since_s = now

    def planned(self, world: World, plan: Plan) -> None:
        burst = plan.memory.burst
        if burst and burst.began_s != self._burst:
            self._burst = burst.began_s
            self.starts[burst.start] += 1
        for who in plan.refused:
            self.refused = f"{who.worker}: {plan.waits[who]}"

    def changed(self, world: World, change: e.Changed) -> None:
        self.cuts += change.reason.startswith("cut short")
        self.overs += change.reason.startswith("it had its")
