"""Figures of the live benchmark with their bounds, and several systems side by side in one table."""

from __future__ import annotations

import json

from figures import Figure, show
from live_figures import Costs, Figures, Row, figures

BOUNDS = {"shown": (1.2, 2.5), "settled": (1.5, 3.0)}  # s: p50, p95
TAKEN_BACK, WER_MORE, CPU, MEMORY_MIB, STABLE = 0.1, 0.5, 0.8, 700, 5.0


class Table:
    """Figures of one system, bounds in their names, and which of them are broken."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.broken: list[str] = []

    def bounded(self, name: str, value: float, unit: str, bound: float) -> None:
        self.figures.append(Figure.against(f"{name} (bound ≤ {bound:.4g})", value, unit, bound))
        if not value <= bound:
            self.broken.append(self.figures[-1].name)

    def plain(self, name: str, value: float, unit: str) -> None:
        self.figures.append(Figure(name, value, unit))

    def of(self, found: Figures, said: int, wer: float, offline_wer: float | None) -> None:
        """What the record says; `said`: how many words were."""
        for what, (middle, most) in BOUNDS.items():
            share = found.shown if what == "shown" else found.settled
            self.bounded(f"words {what}, p50 after their end", share(0.5), "s", middle)
            self.bounded(f"words {what}, p95 after their end", share(0.95), "s", most)
        self.bounded("words taken back per final word", found.taken_back_per_word, "words", TAKEN_BACK)
        if offline_wer is None:
            self.plain("word errors", wer, "%")
        else:
            self.bounded(f"word errors, offline {offline_wer:.2f} %", wer, "%", offline_wer + WER_MORE)
        self.plain("final words that were timed", len(found.timings), f"of {said}")

    def costs(self, costs: Costs, audio_s: float) -> None:
        if costs.cpu_s:
            self.bounded("cpu a second of audio", costs.cpu_s / audio_s, "cpu-s", CPU)
        if costs.mib:
            self.bounded("most resident memory", costs.mib, "MiB", MEMORY_MIB)

    def stable(self, pairs: list[tuple[str, str]], broken_promises: int) -> None:
        """`pairs`: of each segment the stable words before its final, and the final."""
        self.bounded("stable words that changed before their final", broken_promises, "", 0)
        known = [(figures([Row(0, "", a), Row(1, "", b, True)], []), len(a.split())) for a, b in pairs if b]
        share = 100 * sum(f.taken_back for f, _ in known) / max(1, sum(n for _, n in known))
        self.bounded("stable words that differ from their final", share, "%", STABLE)


def print_all(tables: dict[str, Table], as_json: bool) -> None:
    """One system as every benchmark does, several with a column each."""
    if len(tables) == 1:
        (table,) = tables.values()
        show(table.figures, as_json)
        return
    if as_json:
        for name, table in tables.items():
            for f in table.figures:
                print(json.dumps({"system": name, "name": f.name, "value": round(f.value, 6), "unit": f.unit}))
        return
    rows: dict[str, dict[str, float]] = {}
    for name, table in tables.items():
        for f in table.figures:
            rows.setdefault(f"{f.name}, {f.unit}", {})[name] = f.value
    width, column = max(map(len, rows)), max(10, *map(len, tables))
    print(f"{'figure':{width}}" + "".join(f"  {name:>{column}}" for name in tables))
    for row, values in rows.items():
        cells = (f"{values[name]:.3f}" if name in values else "-" for name in tables)
        print(f"{row:{width}}" + "".join(f"  {cell:>{column}}" for cell in cells))
