"""The open questions, simulated: which interval, which model, 4 or 16 bits, which link? A table and a plot.

    python benchmarks/open_questions.py --hours 4 --svg docs/swap-simulated.svg

Plays `python -m arbiter.simulate` for each row, with the real policy and ledger and assumed costs. No card is measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROWS = [  # card in MiB, summarizer, quantise, GB/s, interval in seconds
    *((16_303, model, quantise, 25, every) for model, quantise in (
        ("qwen2-1.5b", "none"), ("qwen2.5-7b", "nf4"), ("qwen2.5-14b", "nf4"),
    ) for every in (60, 300, 600)),
    *((16_303, "qwen2.5-7b", "nf4", link, 300) for link in (6, 12, 50)),
    (16_303, "qwen2.5-14b", "nf4", 6, 300),
    (16_303, "qwen2.5-7b", "none", 25, 300),
    *((24_564, "qwen2.5-7b", "none", link, 300) for link in (6, 25)),
    (24_564, "qwen2.5-14b", "nf4", 25, 300),
]  # fmt: skip
HEAD = (
    "| card | minutes by | link | every | captions late p50, p99, most | translations most "
    "| minutes late p50, p95, most "
    "| swaps an hour | switching | begun by silence, patience, overdue | bursts each |"
)
BARS = (("captions, most", "#c0392b"), ("translations, most", "#e59866"), ("minutes, p95", "#2e86c1"))


def play(row: tuple[int, str, str, int, int], hours: float) -> dict[str, Any]:
    card, model, quantise, link, every = row
    argv = [sys.executable, "-m", "arbiter.simulate", "--json", "--profile", "rtx16", "--hours", str(hours)]
    argv += ["--card-mib", str(card), "--summarizer", model, "--quantise", quantise]
    argv += ["--link-gb-s", str(link), "--interval-s", str(every)]
    done: dict[str, Any] = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    return done


def name(row: tuple[int, str, str, int, int]) -> str:
    card, model, quantise, link, every = row
    bits = "" if quantise == "none" else f" {quantise}"
    return f"{round(card / 1024)} GB, {model}{bits}, {link} GB/s, {every // 60} min"


def cells(row: tuple[int, str, str, int, int], r: dict[str, Any]) -> str:
    card, model, quantise, link, every = row
    c, t, d, s = r["caption_lag"], r["other_lags"]["translator"], r["summary_delay"], r["starts"]
    bits = "16 bits" if quantise == "none" else "4 bits"
    late = (
        f"{d['p50_s']:.0f}, {d['p95_s']:.0f}, {d['max_s']:.0f} s" if d["n"] else "refused" if r["refused"] else "none"
    )
    return (
        f"| {round(card / 1024)} GB | {model}, {bits} | {link} GB/s | {every // 60} min "
        f"| {c['p50_s']:.1f}, {c['p99_s']:.1f}, {c['max_s']:.1f} s | {t['max_s']:.1f} s | {late} "
        f"| {r['swaps_per_hour']:.1f} | {r['shares']['switching']:.2%} "
        f"| {s.get('silence', 0)}, {s.get('patience', 0)}, {s.get('overdue', 0)} | {r['bursts_a_summary']:g} |"
    )


def svg(names: list[str], values: list[tuple[float, float, float]], title: str) -> str:
    """Horizontal bars, three for each row; plain text, so that a difference between two versions can be read."""
    left, width, step = 300, 560, 46
    most = max(max(v) for v in values) or 1.0
    height = 70 + step * len(names) + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 80}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="white"/><text x="10" y="20" font-size="14">{title}</text>',
    ]
    for i, (word, colour) in enumerate(BARS):
        out.append(f'<rect x="{10 + 190 * i}" y="32" width="12" height="12" fill="{colour}"/>')
        out.append(f'<text x="{28 + 190 * i}" y="43">{word}</text>')
    for n, (label, three) in enumerate(zip(names, values, strict=True)):
        y = 66 + step * n
        out.append(f'<text x="{left - 8}" y="{y + 23}" text-anchor="end">{label}</text>')
        for i, (value, (_, colour)) in enumerate(zip(three, BARS, strict=True)):
            long = value / most * width
            out.append(f'<rect x="{left}" y="{y + 12 * i}" width="{long:.1f}" height="10" fill="{colour}"/>')
            out.append(f'<text x="{left + long + 4:.1f}" y="{y + 9 + 12 * i}" font-size="10">{value:.1f} s</text>')
    return "\n".join([*out, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--svg", type=Path, help="where the plot goes")
    args = parser.parse_args()
    print(HEAD + "\n" + "|---" * (HEAD.count("|") - 1) + "|", flush=True)
    names, values = [], []
    for row in ROWS:
        r = play(row, args.hours)
        print(cells(row, r), flush=True)
        if r["summary_delay"]["n"]:
            names.append(name(row))
            values.append(
                (r["caption_lag"]["max_s"], r["other_lags"]["translator"]["max_s"], r["summary_delay"]["p95_s"])
            )
    if args.svg:
        title = f"Simulated with assumed costs, {args.hours:g} hours a row: seconds late"
        args.svg.write_text(svg(names, values, title))


if __name__ == "__main__":
    main()
