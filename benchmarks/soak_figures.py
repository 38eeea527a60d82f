"""What a soak run comes to: rows of `soak.py` in, a table of figures and bounds out. Pure but for the printing.

Memory: RSS of each process, looked at twice a second. Weights that are on the simulated card count in it, and so does
a step's working memory: looks are put together by tens of swaps, and what counts of each ten is the least, which is
what stays. The slope through these is Theil's (the median of the slopes of all pairs). Left out: the first 50 swaps, in
a shorter run the first quarter. Lag: by the beat, each second, while audio comes; quarters of that time. Journal:
`journal_size.py` says what its events need; backlog: two bytes a sample.
"""

from __future__ import annotations

import json
import statistics
import sys
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from figures import Figure, show

MIB = 2**20
WARM_SWAPS = 50
TOGETHER = 10  # swaps of one point of the slope; fewer in a short run
SLOPE_MIB, LAG_RATIO, SIZE_OFF = 1.0, 1.2, 0.05

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """The rows of a file; the last line of a run that was cut off may be half a line."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class Table:
    """Figures, and which of them miss their bound."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.missed: list[str] = []

    def add(self, name: str, value: float, unit: str = "", beside: float | None = None) -> None:
        self.figures.append(Figure(name, value, unit) if beside is None else Figure.against(name, value, unit, beside))

    def bound(self, name: str, value: float, unit: str, most: float, least: float | None = None) -> None:
        if not (value <= most and (least is None or value >= least)):  # NaN misses
            self.missed.append(name)
        self.figures.append(Figure(name, value, unit, most))


def tell(rows: list[Row], as_json: bool) -> int:
    """Print the table; 1 when something was missed."""
    table = Table()
    for part in ("real", "tenfold"):
        mine = [r for r in rows if r["part"] == part]
        if mine:
            figures_of(part, mine, table)
    if not table.figures:
        print("nothing was seen", file=sys.stderr)
        return 1
    show(table.figures, as_json)
    for r in rows:
        if r["row"] in ("failed", "ended"):
            table.missed.append(r.get("why") or f"{r['process']} (pid {r['pid']}) ended")
    for what in table.missed:
        print(f"MISSED: {what}", file=sys.stderr)
    return 1 if table.missed else 0


def figures_of(part: str, rows: list[Row], table: Table) -> None:
    def kind(name: str) -> list[Row]:
        return [r for r in rows if r["row"] == name]

    swaps, sizes = kind("swap"), kind("sizes")
    table.add(f"{part}: minutes on the clock", (rows[-1]["at"] - rows[0]["at"]) / 60, "min")
    table.add(f"{part}: swaps by hand", len(swaps))
    table.add(f"{part}: of these bursts", sum(r["burst"] for r in swaps))
    table.add(f"{part}: swaps that live.gpu counted", max((r["live_swaps"] for r in sizes), default=0))
    table.add(f"{part}: orders refused", len(kind("refused")))
    table.add(f"{part}: a swap, median", median([r["seconds"] for r in swaps]), "s")
    table.add(f"{part}: a swap, longest", max((r["seconds"] for r in swaps), default=0.0), "s")
    memory(part, kind("memory"), sizes, table)
    lag(part, kind("lag"), table)
    done = kind("bytes")
    if not done:
        table.missed.append(f"{part}: did not come to its end, bytes not compared")
        if sizes:
            for what, size in sizes[-1]["bytes"].items():
                table.add(f"{part}: {what} when last seen", size / MIB, "MiB")
        return
    b, total = done[-1], kind("began")[0]["samples"]
    for what in ("captions", "minutes", "gaps", "events"):
        table.add(f"{part}: {what} journaled", b[what])
    table.add(f"{part}: journal beside computed", b["journal"] / MIB, "MiB", b["journal_computed"] / MIB)
    within(f"{part}: journal, ratio to computed (0.95 to 1.05)", b["journal"] / b["journal_computed"], table)
    table.add(f"{part}: backlog beside 2 bytes a sample", b["audio"] / MIB, "MiB", 2 * total / MIB)
    within(f"{part}: backlog, ratio to computed (0.95 to 1.05)", b["audio"] / (2 * total), table)
    table.add(f"{part}: logs", sizes[-1]["bytes"]["logs"] / MIB, "MiB")


def within(name: str, ratio: float, table: Table) -> None:
    table.bound(name, ratio, "", 1 + SIZE_OFF, 1 - SIZE_OFF)


def memory(part: str, rows: list[Row], sizes: list[Row], table: Table) -> None:
    most = max((r["swaps"] for r in rows), default=0)
    warm = min(WARM_SWAPS, most // 4)
    together = max(1, min(TOGETHER, (most - warm) // 6))
    for name in sorted({n for r in rows for n in r["rss"]}):
        looks = [(r["swaps"], r["rss"][name] / MIB) for r in rows if r["rss"].get(name) and r["swaps"] >= warm]
        points = grouped(looks, warm, together)
        label = f"{part}: {name}, RSS a 100 swaps after the first {warm} (<= {SLOPE_MIB:g})"
        table.bound(label, 100 * slope(points), "MiB", SLOPE_MIB)
        if points:
            table.add(f"{part}: {name}, least RSS, last beside first", points[-1][1], "MiB", points[0][1])
            table.add(f"{part}: {name}, RSS, most", max(mib for _, mib in looks), "MiB")
        pss = [r["pss"][name] / MIB for r in sizes if r["pss"].get(name)]
        table.add(f"{part}: {name}, PSS, median", median(pss), "MiB")


def grouped(looks: list[tuple[int, float]], warm: int, together: int) -> list[tuple[float, float]]:
    """(swap, MiB): the least of every so many swaps; a last group that is not whole is left out."""
    groups: dict[int, list[float]] = {}
    for swaps, mib in looks:
        groups.setdefault((swaps - warm) // together, []).append(mib)
    whole = sorted(groups.items())[:-1]
    return [(warm + together * (g + 0.5), min(found)) for g, found in whole]


def slope(points: list[tuple[float, float]]) -> float:
    """Theil 1950: the median of the slopes of all pairs. NaN for less than three points."""
    if len(points) < 3:
        return float("nan")
    return median([(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2)])


def lag(part: str, rows: list[Row], table: Table) -> None:
    heard = [r for a, r in pairwise(rows) if r["head"] > a["head"]]  # audio came
    if len(heard) < 8:
        table.missed.append(f"{part}: too short for quarters of the lag")
        return
    began, ended = heard[0]["at"], heard[-1]["at"]
    quarters: list[list[float]] = [[], [], [], []]
    for r in heard:
        quarters[min(3, int(4 * (r["at"] - began) / (ended - began)))].append(r["lag_s"])
    second, last = median(quarters[1]), median(quarters[3])
    table.add(f"{part}: lag, median of the last quarter beside the second", last, "s", second)
    table.add(f"{part}: lag, longest", max(r["lag_s"] for r in heard), "s")
    ratio = last / second if second else float("nan") if last else 1.0
    table.bound(f"{part}: lag, ratio of these (<= {LAG_RATIO:g})", ratio, "", LAG_RATIO)


def median(values: list[float]) -> float:
    return statistics.median(values) if values else float("nan")
