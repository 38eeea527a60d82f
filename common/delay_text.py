"""How late captions are, as people read it: a worker's `delays` as one line a lane. Pure.

The same words stand in `swapscribe status` and on the viewer's page.
"""

from __future__ import annotations

from collections.abc import Iterator

from common import messages as m

WORDS = {  # in the order in which they happen
    "end": "end of speech",
    "wait": "waiting",
    "decode": "decoding",
    "commit": "writing",
}
APART = ("total", "first_text", "text_left_out")


def lines(worker: m.WorkerStatus) -> Iterator[str]:
    """p50 / p95 in seconds; of the live lane first."""
    for lane in sorted({d.lane for d in worker.delays}, key=lambda lane: (lane != "live", lane)):
        yield f"{worker.worker}, {lane}: {_line([d for d in worker.delays if d.lane == lane], worker.delays_over_s)}"


def _line(delays: list[m.Delay], over_s: float) -> str:
    found = {d.stage: d for d in delays}
    known = [(words, found[stage]) for stage, words in WORDS.items() if stage in found]
    known += [(stage, d) for stage, d in found.items() if stage not in (*WORDS, *APART)]
    stages = ", ".join(f"{words} {_pair(d)}" for words, d in known)
    count = max(d.count for d in delays)
    parts = [
        f"{_pair(found['total'])} s behind the word ({stages})" if "total" in found else f"{stages} s" * bool(stages)
    ]
    parts += [f"first text {_pair(found['first_text'])} s behind the voice"] if "first_text" in found else []
    if "text_left_out" in found:
        parts += [f"no text before the final of {found['text_left_out'].count} captions"]
    return "; ".join([*filter(None, parts), f"p50/p95 of {count} in {over_s:.0f} s"])


def _pair(d: m.Delay) -> str:
    return f"{d.p50_s:.2f}/{d.p95_s:.2f}"
