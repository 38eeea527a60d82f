"""What capture costs: import time, memory, share of a core for 16 kHz mono PCM on stdin in real time.

`python benchmarks/capture.py [--seconds 20] [--json]`. A real process is measured; at its end it writes which modules
it had loaded, so that "no torch, no numpy" is a fact about that run. Exit status 1 when a bound is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RATE = 16_000
CHUNK_S = 0.02  # as a sound card would give it
NEVER_LOADED = ("torch", "numpy", "av", "soxr", "pyaudio")
BOUNDS = {"import_s": 0.6, "rss_mb": 80.0, "cpu_percent": 3.0, "forbidden_modules": 0.0}

# Runs capture as `python -m capture` does, then writes the names of its modules.
RUN = """
import json, runpy, sys
out = sys.argv.pop(1)
try:
    runpy.run_module("capture", run_name="__main__", alter_sys=True)
finally:
    with open(out, "w") as f:
        json.dump(sorted(sys.modules), f)
"""


def environment() -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("SWAPSCRIBE_")}
    return env | {"PYTHONPATH": str(ROOT)}


def seconds_to_run(code: str, runs: int = 7) -> float:
    """Median wall time of a fresh interpreter that runs `code`."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def measure(folder: Path, seconds: float) -> tuple[float, float, float, list[str]]:
    """(cpu share in percent after the first second, cpu seconds of the start, peak RSS in MB, loaded modules)"""
    argv = [sys.executable, "-c", RUN, str(folder / "modules.json"), "--set", f"data_dir={folder / 'data'}"]
    argv += ["--set", 'source=[{"name": "in", "kind": "stdin"}]', "--source", "in"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, env=environment(), stdin=subprocess.PIPE, stderr=log)
    assert process.stdin
    chunk = bytes(int(RATE * CHUNK_S) * 2)
    began = time.monotonic()
    warm_at, start_cpu_s = 0.0, 0.0
    for i in range(int(seconds / CHUNK_S)):
        time.sleep(max(0.0, began + (i + 1) * CHUNK_S - time.monotonic()))
        process.stdin.write(chunk)
        process.stdin.flush()
        if not warm_at and i * CHUNK_S >= 1.0:
            warm_at, start_cpu_s = time.monotonic(), cpu_s(process.pid)
    share = 100 * (cpu_s(process.pid) - start_cpu_s) / (time.monotonic() - warm_at)
    rss_mb = peak_rss_mb(process.pid)
    mapped = Path(f"/proc/{process.pid}/maps").read_text()
    process.stdin.close()
    if process.wait(20):
        raise SystemExit(f"capture failed:\n{(folder / 'log').read_text()}")
    written = sum(p.stat().st_size for p in (folder / "data" / "streams").glob("*/audio/*.pcm"))
    if written != len(chunk) * int(seconds / CHUNK_S):
        raise SystemExit(f"capture wrote {written} bytes of {len(chunk) * int(seconds / CHUNK_S)}")
    loaded = set(json.loads((folder / "modules.json").read_text()))
    found = [name for name in NEVER_LOADED if name in loaded or f"/{name}/" in mapped]
    return share, start_cpu_s, rss_mb, found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long it is fed")
    parser.add_argument("--json", action="store_true", help="one JSON object a figure")
    args = parser.parse_args()
    bare_s = seconds_to_run("pass")
    wire_s = seconds_to_run("import zmq, msgspec") - bare_s
    import_s = seconds_to_run("import capture.__main__, capture.pipe") - bare_s
    with tempfile.TemporaryDirectory(prefix="sw-") as folder:
        share, start_cpu_s, rss_mb, found = measure(Path(folder), args.seconds)
    rows = [
        ("import_s", import_s, "s", wire_s, "import zmq, msgspec"),
        ("rss_mb", rss_mb, "MB", BOUNDS["rss_mb"], "bound"),
        ("cpu_percent", share, "% of a core", BOUNDS["cpu_percent"], "bound"),
        ("start_cpu_s", start_cpu_s, "s", 1.0, "one second of audio"),
        ("forbidden_modules", float(len(found)), "modules", 0.0, ", ".join(NEVER_LOADED)),
    ]
    for name, value, unit, baseline, against in rows:
        ratio = round(value / baseline, 3) if baseline else None
        row = {"name": f"capture.{name}", "value": round(value, 4), "unit": unit, "baseline": round(baseline, 4)}
        if args.json:
            print(json.dumps(row | {"ratio": ratio}))
        else:
            bound = f"  bound {BOUNDS[name]:g}" if name in BOUNDS else ""
            compared = f"  {ratio} x {baseline:.4g} ({against})" if ratio is not None else f"  ({against})"
            print(f"{row['name']:27s} {value:9.4f} {unit}{compared}{bound}")
    if found:
        print(f"loaded: {', '.join(found)}", file=sys.stderr)
    return int(any(value > BOUNDS.get(name, value) for name, value, *_ in rows))


if __name__ == "__main__":
    sys.exit(main())
