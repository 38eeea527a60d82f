"""docs/faults.md: the part between its marks is made from the results of runs, the rest is written by hand.

`python -m tests.faults.page RESULT.json...` makes it anew from results that runs have left.
"""

from __future__ import annotations

import os
import platform
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from tests.conftest import ROOT
from tests.faults.inject import Done
from tests.faults.schedule import KINDS

PAGE = ROOT / "docs" / "faults.md"
BEGIN, END = "<!-- runs: begin -->\n", "<!-- runs: end -->"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    seed: int
    faults: list[Done]
    violations: list[str]
    minutes: float
    audio_s: float
    captions: int
    summaries: int
    grants: int
    looks: int
    strict_looks: int
    most_mib: int
    card_mib: int
    machine: str
    commit: str
    date: str


def machine() -> str:
    names = [x.partition(":")[2].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(names)} x {names[0] if names else '?'}, {ram:.0f} GiB, Linux {platform.release().split('-')[0]}"


def line(r: Result) -> str:
    met = sum(d.met for d in r.faults)
    return (
        f"seed {r.seed}: {len(r.faults)} faults ({met} met something) in {r.minutes:.1f} min, "
        f"{r.captions} captions, {r.summaries} minutes, {r.grants} grants: {len(r.violations)} violations"
    )


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


def runs(results: Sequence[Result]) -> list[str]:
    head = (
        "seed",
        "faults",
        "of which met",
        "of these while live",
        "violations",
        "audio",
        "took",
        "captions",
        "minutes",
        "leases granted",
    )
    out = [_row(*head, "card: most held, of", "looks at the card"), "|" + "---|" * (len(head) + 2)]
    for r in results:
        out.append(
            _row(
                r.seed,
                len(r.faults),
                sum(d.met for d in r.faults),
                sum(d.met and d.live for d in r.faults),
                len(r.violations),
                f"{r.audio_s / 60:.1f} min",
                f"{r.minutes:.1f} min",
                r.captions,
                r.summaries,
                r.grants,
                f"{r.most_mib} of {r.card_mib} MiB",
                f"{r.looks}, {r.strict_looks} beside an unmoved roster",
            )
        )
    first = results[0]
    return [*out, "", f"Commit {first.commit}, {first.date}, {first.machine}."]


def kinds(results: Sequence[Result]) -> list[str]:
    faults = [d for r in results for d in r.faults]
    out = [_row("fault", "what it is", "targets (times)", "times", "met", "well again after: median, longest")]
    out.append("|" + "---|" * 6)
    for name, kind in KINDS.items():
        mine = [d for d in faults if d.kind == name]
        if not mine:
            continue
        targets: dict[str, int] = defaultdict(int)
        for d in mine:
            targets[d.target] += 1
        whom = ", ".join(f"{t} {n}" for t, n in sorted(targets.items(), key=lambda x: -x[1]))
        took = [d.recovered_s for d in mine if d.recovered_s >= 0]
        again = f"{median(took):.1f} s, {max(took):.1f} s" if took else "never"
        out.append(_row(name, kind.what, whom, len(mine), sum(d.met for d in mine), again))
    out.append(_row("**all**", "", "", len(faults), sum(d.met for d in faults), ""))
    return out


def checks(results: Sequence[Result], all_checks: Sequence[Callable[..., Any]]) -> list[str]:
    out = [_row("check", "what it proves", "violations"), "|---|---|---|"]
    for check in all_checks:
        count = sum(v.startswith(check.__name__ + ":") for r in results for v in r.violations)
        out.append(_row(check.__name__, " ".join((check.__doc__ or "").split()), count))
    return out


def write(results: Sequence[Result], all_checks: Sequence[Callable[..., Any]]) -> None:
    made = [*runs(results), "", *kinds(results), "", *checks(results, all_checks)]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n".join(made) + "\n" + END + rest.partition(END)[2])


if __name__ == "__main__":
    from tests.faults.checker import CHECKS

    found = [msgspec.json.decode(Path(p).read_bytes(), type=Result) for p in sys.argv[1:]]
    write(found, CHECKS)
