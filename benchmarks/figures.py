"""Figures of a benchmark: one table for people, with `--json` one object a line for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figure:
    """`value` in `unit`, held against `baseline` of the same run; `ratio` = value / baseline."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None

    @classmethod
    def against(cls, name: str, value: float, unit: str, baseline: float) -> Figure:
        return cls(name, value, unit, baseline, value / baseline if baseline else None)


def show(figures: list[Figure], as_json: bool) -> None:
    if as_json:
        for f in figures:
            print(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(f).items()}))
        return
    width = max(len(f.name) for f in figures)
    print(f"{'figure':{width}}  {'value':>12} {'unit':10} {'baseline':>12} {'ratio':>7}")
    for f in figures:
        baseline = "" if f.baseline is None else f"{f.baseline:.3f}"
        ratio = "" if f.ratio is None else f"{f.ratio:.3f}"
        print(f"{f.name:{width}}  {f.value:12.3f} {f.unit:10} {baseline:>12} {ratio:>7}")
