"""How late captions get by bursts, SIMULATED: a fixed timer, the policy, and the policy without some of its rules.

    python benchmarks/pauses.py [--days 40] [--minutes 11.5] [--speech people|meetings] [--rows cpu,7b,14b]

Each day is as long as the run of `benchmarks/silence.py`, with other speech; ledger and policy are the real ones
on simulated time, workers are stand-ins with assumed costs (`arbiter/day.py`). For each policy the timer has as many
bursts in that very day. Nothing of this was measured on a card or with a model.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from arbiter import policy, world  # noqa: E402
from arbiter.costs import Costs, Given, Size, costs  # noqa: E402
from arbiter.day import Minutes, Spans, conversation  # noqa: E402
from arbiter.simulate import Result, simulate  # noqa: E402
from arbiter.view import Worker  # noqa: E402
from common.settings import Settings, load  # noqa: E402
from tests.policy_bugs import made_by  # noqa: E402

MIB = 2**20


class Row(NamedTuple):
    """A machine and what is written there how often."""

    name: str
    price: Costs
    given: Given
    settings: Settings
    streams: int = 1  # so many minutes are due at each interval


def laptop() -> Row:
    def size(name: str, lane: str, want: int, **s: float) -> Size:
        return Size(name=name, lane=lane, weights_bytes=want * MIB, want_bytes=want * MIB, residue_bytes=0, **s)

    price = Costs(
        card_bytes=(700 + 256) * MIB,  # one of the two, as in silence.py
        sizes=(
            size("transcriber", "live", 400, reload_s=0.018, offload_s=0.001, step_s=0.6),
            size("summarizer", "burst", 600, reload_s=0.28, offload_s=0.0013, step_s=0.1),
        ),
        prefill_s=0.005,
        token_s=0.03,
        said=(),
    )
    settings = load(None, ("summary.interval_s=20", "summary.max_new_tokens=32"))
    return Row("tiny.en and SmolLM2 on a CPU, every 20 s", price, Given(decode_s=0.8, rtf=0.06), settings)


def card(name: str, model: str, interval_s: float) -> Row:
    sets = ("profile=rtx16", f"summary.model={model}", "summary.quantise=nf4", f"summary.interval_s={interval_s}")
    settings = load(None, sets)
    given = Given(card_mib=16_303)
    return Row(name, costs(settings, given, frozenset(), 16_303), given, settings)


ROWS: dict[str, Callable[[], Row]] = {
    "cpu": laptop,
    "7b": lambda: card("turbo and a 7B in 4 bits on 16 GB, every minute", "qwen2.5-7b", 60.0),
    "14b": lambda: card("turbo and a 14B in 4 bits on 16 GB, every minute", "qwen2.5-14b", 60.0),
}


def whole(burst: type[policy._Decision]) -> Any:
    """A burst does all that is due at once."""
    return lambda view, s, now: burst(
        msgspec.structs.replace(view, workers=tuple(msgspec.structs.replace(w, pieces=0) for w in view.workers)), s, now
    ).plan()


class InMidWord(policy._Decision):
    """After PATIENCE it begins whatever waits for its caption."""

    def _starts(self, w: Worker) -> str:
        self.kept = [msgspec.structs.replace(k, owes=False) for k in self.kept]
        return super()._starts(w)


class AnyPause(policy._Decision):
    """After PATIENCE it takes any pause, but does not begin while somebody speaks."""

    def _starts(self, w: Worker) -> str:
        self.kept = [msgspec.structs.replace(k, owes=k.owes or k.silence_s <= 0) for k in self.kept]
        return super()._starts(w)


POLICIES: dict[str, Any] = {
    "before: after PATIENCE at once, all that is due": whole(InMidWord),
    "after PATIENCE between captions, all that is due": whole(policy._Decision),
    "after PATIENCE any pause, piece by piece": made_by(AnyPause),
    "now: after PATIENCE between captions, piece by piece": policy.decide,
}


def meetings(seed: int, lasts_s: float) -> Spans:
    """The turns of a telephone call and twelve excerpts of meetings (AMI), in an order of the seed."""
    from tests import speech

    talks, rng = list(speech.talks()), random.Random(seed)
    turns: Spans = []
    at = 0.0
    while at < lasts_s:
        rng.shuffle(talks)
        for talk in talks:
            turns += [(at + a, at + min(b, 30.0)) for a, b in talk.turns]
            at += 30.0
    out: Spans = []
    for a, b in sorted(turns):
        if out and a <= out[-1][1]:
            out[-1] = (out[-1][0], max(b, out[-1][1]))
        elif a < lasts_s:
            out.append((a, b))
    return out


def play(row: Row, decide: Any, spans: Spans, lasts_s: float, **gpu: float) -> Result:
    settings = msgspec.structs.replace(row.settings, gpu=msgspec.structs.replace(row.settings.gpu, **gpu))
    ask = Minutes.ask

    def each(minutes: Minutes, at: world.World, prompt: int) -> None:
        for _ in range(row.streams):
            ask(minutes, at, prompt)

    with mock.patch.object(world, "decide", decide), mock.patch.object(Minutes, "ask", each):
        return simulate(settings, row.price, spans, lasts_s / 3600, 1, row.given)


def timer(row: Row, decide: Any, spans: Spans, lasts_s: float, bursts: int) -> Result:
    """As many bursts, each as soon as it is due."""
    summary = msgspec.structs.replace(row.settings.summary, interval_s=lasts_s / (bursts + 0.5))
    every = row._replace(settings=msgspec.structs.replace(row.settings, summary=summary))
    return play(every, decide, spans, lasts_s, overdue_s=0.0, lag_soft_s=1e6)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--days", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=11.5)
    parser.add_argument("--speech", choices=("people", "meetings"), default="people")
    parser.add_argument("--rows", default="cpu,7b,14b")
    parser.add_argument("--interval-s", type=float)
    parser.add_argument("--streams", type=int, default=1, help="so many minutes are due at each interval")
    parser.add_argument("--set", action="append", default=[], metavar="gpu.KEY=VALUE")
    args = parser.parse_args()
    more = {k.removeprefix("gpu."): float(v) for k, _, v in (s.partition("=") for s in args.set)}
    lasts_s = args.minutes * 60
    print(
        f"SIMULATED, {args.days} days of {args.minutes:g} min, speech of {args.speech}; medians over the days, seconds"
    )
    for key in args.rows.split(","):
        row = ROWS[key]()._replace(streams=args.streams)
        if args.interval_s:
            summary = msgspec.structs.replace(row.settings.summary, interval_s=args.interval_s)
            row = row._replace(settings=msgspec.structs.replace(row.settings, summary=summary))
        print(f"\n{row.name}")
        for name, decide in POLICIES.items():
            mine, its = [], []
            for seed in range(args.days):
                spans = (meetings if args.speech == "meetings" else conversation)(seed, lasts_s)
                r = play(row, decide, spans, lasts_s, **more)
                mine.append(r)
                its.append(timer(row, decide, spans, lasts_s, sum(r.starts.values())))
            print(f"  {name}: {said(mine)}\n    timer: {said(its)}", flush=True)
            lower = sum(a.caption_lag.max_s < b.caption_lag.max_s for a, b in zip(mine, its, strict=True))
            print(f"    worst caption lower than the timer's on {lower} of {args.days} days", flush=True)


def said(rs: list[Result]) -> str:
    def middle(values: Any) -> float:
        return statistics.median(values)

    starts = {k: sum(r.starts.get(k, 0) for r in rs) for k in ("silence", "patience", "overdue")}
    worst = [r.caption_lag.max_s for r in rs]
    return (
        f"bursts {middle(sum(r.starts.values()) for r in rs):.0f}, minutes {middle(r.summaries for r in rs):.0f}, "
        f"captions p95 {middle(r.caption_lag.p95_s for r in rs):.1f}, worst {middle(worst):.1f} "
        f"(95 % of days {percentile(worst, 0.95):.1f}), minutes late p50 "
        f"{middle(r.summary_delay.p50_s for r in rs):.0f}, most {middle(r.summary_delay.max_s for r in rs):.0f}, "
        f"begun by {', '.join(f'{k} {n}' for k, n in starts.items())}"
    )


if __name__ == "__main__":
    main()
