"""`swapscribe simulate`: hours of captions and minutes with the real policy and the real ledger, on simulated time.

In: settings, what a person says about the machine. Out: how late captions and minutes would be, how often the card
would change hands, why. Costs are measured or assumed (`arbiter/costs.py`), and each is printed as what it is: nothing
here is a measurement of a card.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import msgspec

from arbiter.__main__ import limits
from arbiter.costs import Costs, Given, costs
from arbiter.day import Captions, Minutes, Reader, Record, Spans, conversation, repeated, utterances
from arbiter.world import World
from common import profiles
from common.process import EXIT_USER_ERROR
from common.settings import Settings, UserError, load

DECODE_TOKENS = 8  # of one piece of an answer, as in workers/generation.py
PROMPT_TOKENS = 150  # of the question around a transcript
HELP = {
    "card_mib": "memory of the card (default: the profile's)",
    "link_gb_s": "speed of its link, 10^9 bytes a second",
    "memory_gb_s": "speed of its memory",
    "prefill_tflops": "10^12 operations a second, reached in a prompt",
    "share_16": "part of the memory's speed reached when tokens are written, weights in 16 bits",
    "share_4": "the same for weights in 4 bits",
    "rtf": "seconds of transcriber a second of speech",
    "decode_s": "and for each utterance",
    "offload_ms": "how long an offload takes",
    "tokens_per_speech_s": "tokens of transcript a second of speech",
}


class Delays(msgspec.Struct, frozen=True, kw_only=True):
    """Percentiles in seconds; all 0 when there is none."""

    n: int = 0
    p50_s: float = 0.0
    p95_s: float = 0.0
    p99_s: float = 0.0
    max_s: float = 0.0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One simulated day. `shares` of the time add up to 1."""

    hours: float
    seed: int
    speech_share: float
    shares: dict[str, float]  # captions | burst | switching | idle
    resident: dict[str, float]  # worker -> share of the time it is on the card
    caption_lag: Delays  # from the end of an utterance to its caption
    other_lags: dict[str, Delays]  # of those who work on what the captions say, from the same moment
    summary_delay: Delays  # from when minutes were due to when they were written
    summaries: int
    summaries_open: int
    bursts_a_summary: float
    swaps_per_hour: float
    switching_worst_hour: float
    starts: dict[str, int]  # silence | patience | overdue | by hand | found
    cuts: int
    overs: int
    most_bytes: int
    cap_bytes: int
    refused: str
    costs: tuple[str, ...]


def delays(values: list[float]) -> Delays:
    if not values:
        return Delays()
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)

    return Delays(n=len(ordered), p50_s=at(0.5), p95_s=at(0.95), p99_s=at(0.99), max_s=round(ordered[-1], 3))


def simulate(settings: Settings, price: Costs, spans: Spans, hours: float, seed: int, given: Given) -> Result:
    """Play it. The same arguments give the same result."""
    lasts_s = hours * 3600.0
    world = World(settings.gpu, limits(settings.gpu), price.card_bytes)
    readers: list[Reader] = []
    cost = {
        "transcriber": (given.decode_s, given.rtf),
        "translator": (0.15, 0.0),
        "diarizer": (0.05, 0.03),
    }
    for size in price.sizes:
        more: dict[str, Any] = {"reload_s": size.reload_s, "offload_s": size.offload_s, "step_s": size.step_s}
        if size.lane == "burst":
            more["step_s"] = max(settings.summary.prefill_tokens * price.prefill_s, DECODE_TOKENS * price.token_s)
            tokens = settings.summary.max_new_tokens
            more |= {"prefill_s": price.prefill_s, "token_s": price.token_s, "tokens": tokens}
            minutes = Minutes(size.name, size.want_bytes, size.lane, **more)
            minutes.residue_bytes = size.residue_bytes
            continue
        one = (Captions if size.name == "transcriber" else Reader)(size.name, size.want_bytes, size.lane, **more)
        one.cost, one.residue_bytes = cost[size.name], size.residue_bytes
        readers.append(one)
    captions = readers[0]
    assert isinstance(captions, Captions)
    captions.next = readers[1:]
    record = Record(minutes, readers)
    world.watchers.append(record)
    for actor in [*readers, minutes]:
        world.join(actor)
    for reader in readers:
        reader.wish(world)
    captions.hear(world, spans, utterances(spans, settings.transcriber))
    _interval(world, settings, captions, minutes, spans, given)
    world.run(lasts_s)
    record.until(world, lasts_s)
    hour_s = min(3600.0, lasts_s)
    return Result(
        hours=hours,
        seed=seed,
        speech_share=round(sum(b - a for a, b in spans) / lasts_s, 3),
        shares={k: record.spent[k] / lasts_s for k in ("captions", "burst", "switching", "idle")},
        resident={a.name: record.resident[a.name] / lasts_s for a in [*readers, minutes]},
        caption_lag=delays(captions.late),
        other_lags={r.name: delays(r.late) for r in readers[1:]},
        summary_delay=delays(minutes.delays),
        summaries=len(minutes.delays),
        summaries_open=len(minutes.due),
        bursts_a_summary=round(minutes.bursts / max(1, len(minutes.delays)), 2),
        swaps_per_hour=round(world.memory.swaps / hours, 2),
        switching_worst_hour=max(record.by_hour.values(), default=0.0) / hour_s,
        starts=dict(sorted(record.starts.items())),
        cuts=record.cuts,
        overs=record.overs,
        most_bytes=world.most_bytes,
        cap_bytes=world.ledger.cap(),
        refused=record.refused,
        costs=price.said,
    )


def _interval(
    world: World, settings: Settings, captions: Captions, minutes: Minutes, spans: Spans, given: Given
) -> None:
    """Minutes are due when all of an interval has its captions; silent intervals have none."""
    every = settings.summary.interval_s
    if every <= 0:
        raise UserError("minutes at the end of a stream only: there is nothing to simulate; --interval-s 300")
    most = settings.summary.context_tokens - settings.summary.max_new_tokens

    def due(k: int) -> None:
        end = (k + 1) * every
        if captions.position(world.now) < end:
            world.at(world.now + 0.5, lambda: due(k))
            return
        speech_s = sum(min(b, end) - max(a, end - every) for a, b in spans if a < end and b > end - every)
        if speech_s > 0:
            minutes.ask(world, min(most, PROMPT_TOKENS + int(speech_s * given.tokens_per_speech_s)))
        world.at(max(world.now, end + every), lambda: due(k + 1))

    world.at(every, lambda: due(0))


def text(r: Result) -> list[str]:
    """For people."""

    def row(name: str, d: Delays) -> str:
        if not d.n:
            return f"{name}: none"
        return f"{name}: p50 {d.p50_s:.1f} s, p95 {d.p95_s:.1f} s, p99 {d.p99_s:.1f} s, most {d.max_s:.1f} s ({d.n})"

    shares = ", ".join(f"{k} {v:.1%}" for k, v in r.shares.items())
    return [
        f"{r.hours:g} simulated hours, seed {r.seed}, somebody speaks {r.speech_share:.0%} of the time",
        *(f"  {line}" for line in r.costs),
        f"the card: {shares}",
        "on it: " + ", ".join(f"{k} {v:.1%}" for k, v in r.resident.items()),
        row("captions after the end of an utterance", r.caption_lag),
        *(row(f"{name} after the end of an utterance", d) for name, d in r.other_lags.items()),
        row("minutes after they were due", r.summary_delay),
        f"minutes: {r.summaries} written, {r.summaries_open} open, {r.bursts_a_summary:g} bursts each; "
        f"{r.cuts} cut short, {r.overs} over after the longest hold",
        f"swaps: {r.swaps_per_hour:g} an hour; begun by "
        + (", ".join(f"{k} {n}" for k, n in r.starts.items()) or "none"),
        f"switching: {r.shares['switching']:.2%} of the time, {r.switching_worst_hour:.2%} of the worst hour",
        *([f"refused: {r.refused}"] if r.refused else []),
        "None of this was measured on a card, but what is said to be.",
    ]


def read_spans(path: Path, lasts_s: float) -> Spans:
    """Lines of `begin end` in seconds, or RTTM; overlaps are joined; played again and again."""
    spans: Spans = []
    for n, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        try:
            if words and words[0] == "SPEAKER":
                spans.append((float(words[3]), float(words[3]) + float(words[4])))
            elif words and not line.startswith("#"):
                spans.append((float(words[0]), float(words[1])))
        except (ValueError, IndexError):
            raise UserError(f"{path}:{n}: write `begin end` in seconds, or RTTM") from None
    joined: Spans = []
    for a, b in sorted(s for s in spans if s[1] > s[0]):
        if joined and a <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], b))
        else:
            joined.append((a, b))
    if not joined:
        raise UserError(f"{path}: nobody speaks in it")
    return repeated(joined, lasts_s)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="swapscribe simulate", description=(__doc__ or "").strip().splitlines()[0])
    p.add_argument("--config", help="settings file (default: ./swapscribe.toml if there is one)")
    p.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="one setting")
    p.add_argument("--hours", type=float, default=8.0)
    p.add_argument("--profile", help=f"{', '.join(profiles.names())} (default: of the settings)")
    p.add_argument("--interval-s", type=float, help="of the minutes (default: of the settings)")
    p.add_argument("--summarizer", metavar="MODEL", help="a model of `swapscribe models list`")
    p.add_argument("--quantise", choices=("none", "nf4"))
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--speech-share", type=float, default=0.0, help="of the time (default: as in ITU-T P.59, 0.78)")
    p.add_argument("--speech", type=Path, metavar="FILE", help="who speaks when: lines of `begin end`, or RTTM")
    p.add_argument("--json", action="store_true", help="one JSON object")
    for f in msgspec.structs.fields(Given):
        kind = int if f.name == "card_mib" else float
        p.add_argument("--" + f.name.replace("_", "-"), type=kind, help=f"{HELP[f.name]} (assumed: {f.default})")
    return p


def run(args: argparse.Namespace) -> Result:
    sets = list(args.set)
    for key, value in (
        ("profile", args.profile),
        ("summary.interval_s", args.interval_s),
        ("summary.model", args.summarizer),
        ("summary.quantise", args.quantise),
    ):
        sets += [f"{key}={value}"] if value is not None else []
    settings = load(args.config, tuple(sets))
    if not 0 < args.hours <= 1000:
        raise UserError(f"--hours {args.hours:g}: more than 0, and at most 1000")
    if not 0 <= args.speech_share < 1:
        raise UserError(f"--speech-share {args.speech_share:g}: at least 0 and below 1")
    told = {f: getattr(args, f) for f in Given.__struct_fields__ if getattr(args, f) is not None}
    if wrong := [f for f, value in told.items() if value <= 0]:
        raise UserError(f"--{wrong[0].replace('_', '-')}: more than 0")
    given = Given(**told)
    profile = profiles.table().get(settings.profile)
    card_mib = settings.gpu.simulated_mib or (profile.card_mib if profile else 0)
    price = costs(settings, given, frozenset(told), card_mib)
    lasts_s = args.hours * 3600.0
    spans = read_spans(args.speech, lasts_s) if args.speech else conversation(args.seed, lasts_s, args.speech_share)
    return simulate(settings, price, spans, args.hours, args.seed, given)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        result = run(args)
    except (UserError, OSError) as e:
        print(f"swapscribe: {e}", file=sys.stderr)
        return EXIT_USER_ERROR
    print(msgspec.json.encode(result).decode() if args.json else "\n".join(text(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
