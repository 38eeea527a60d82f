"""The case this project exists for: a model that does not fit beside the live ones gets the card for bursts, again and
again during a live stream at real-time pace, and nothing is lost.

`python benchmarks/mission.py [--case tenth|real|both] [--minutes 10] [--rows FILE] [--json]`. Real processes on the
simulated card. `tenth`: 1/10 of the sizes (a card of 1,600 MiB; 6 : 5 : 3 live beside 14 in bursts). The transcriber is
the real one with ballast; the others are stand-ins whose bytes are really moved and whose work is nothing: their phases
say what moving costs, not what a model does. `real`: Whisper tiny.en and SmolLM2-135M on a card of 700 MiB, which holds
one of them.
The card's granules are read at 20 Hz; the captions must be those of a run without swaps, sample for sample.

Bursts come as often as the rules allow: they wait 10 s for a pause, not 45, and are overdue after 20 s. The audio is
read speech with its own pauses (sonnets, and the bundled recording).

Lag: after each burst, seconds until captions are less than 2 s late, beside H * RTF / (1 - RTF) + the transcriber's
reload, H being how long it was away and RTF its cpu-seconds per second of audio in this run. And the same with all the
audio that waited when it was back in place of H: an utterance that was being spoken or decoded when it had to leave
began before H and is decoded whole afterwards.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from math import inf
from pathlib import Path

import msgspec
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from figures import Figure, show  # noqa: E402

from common import backlog  # noqa: E402
from common import messages as m  # noqa: E402
from common.settings import GpuSettings, Settings, SummarySettings  # noqa: E402
from tests.conftest import Processes  # noqa: E402
from tests.speech import Clip, Samples, librivox, samples, sonnet_parts, write_wav  # noqa: E402
from tests.swaps import SwapSystem, Turn, Watch, gpu, lag_back, log_rows, turns_of  # noqa: E402
from tests.system import RECORDING, TILES, Following, Undisturbed, body, file_source, one_by_one, quiet  # noqa: E402
from tests.test_swaps import TENTH  # noqa: E402

CARDS = {"tenth": 1600, "real": 700}  # MiB


def clip(path: Path, minutes: float) -> Path:
    """Speech that is read, with the reader's pauses and 1.5 s between two pieces."""
    pieces = [samples(c.path) for c in (Clip(RECORDING, ""), *sonnet_parts(), *librivox())]
    out: list[Samples] = []
    while sum(len(x) for x in out) < minutes * 60 * m.SAMPLE_RATE:
        out += [pieces[len(out) // 2 % len(pieces)], quiet(1.5)]
    write_wav(path, *out)
    return path


def play(case: str, folder: Path, undisturbed: Undisturbed, rows: str) -> list[Figure]:
    often = gpu(simulated_mib=CARDS[case], silence_s=GpuSettings().silence_s, patience_s=10.0, overdue_s=20.0)
    settings = one_by_one(Settings(data_dir=str(folder / "data"), gpu=often))
    if case == "real":
        summary = SummarySettings(interval_s=10.0, max_new_tokens=32)
        settings = msgspec.structs.replace(settings, summary=summary)
    folder.mkdir()
    processes = Processes(folder, settings)
    try:
        source = file_source(undisturbed.clip, "1.0")
        system = SwapSystem(processes, settings, TENTH if case == "tenth" else {}, source, summaries=True)
        system.start()
        watch, follower = Watch(system.settings), Following(system.settings)
        stream = follower.wait("stream_started").stream
        worker = psutil.Process(system.up("transcriber"))
        began, cpu_s = None, 0.0
        while follower.find("stream_ended") is None:
            if began is None and turns_of(system, "transcriber"):
                began = sum(worker.cpu_times()[:2]), head(follower, stream)
            cpu_s = sum(worker.cpu_times()[:2])
            watch.join(0.5)
        watch.close()
        undisturbed.assert_same(system, stream)  # an exception here ends the benchmark: nothing may be lost
        assert began, "no burst came"
        rtf = (cpu_s - began[0]) / (undisturbed.end / m.SAMPLE_RATE - began[1])
        meta = backlog.read_meta(system.settings.streams / stream)
        assert meta
        figures = figures_of(case, system, watch, rtf, meta.started_ns / 1e9, rows)
        follower.close()
        system.stop()
        return figures
    finally:
        processes.close()


def head(follower: Following, stream: str) -> float:
    beat = follower.last_beat
    return beat.streams[stream].audio_head / m.SAMPLE_RATE if beat and stream in beat.streams else 0.0


def waited_s(events: list[m.Event], began: float, at: float) -> float:
    """Seconds of audio that had no class yet at wall clock `at`, of a stream at real-time pace begun at `began`."""
    tiles = [body(e).span[1] for e in events if e.kind in TILES and e.at_ns / 1e9 <= at]
    return at - began - max(tiles, default=0) / m.SAMPLE_RATE


def figures_of(case: str, system: SwapSystem, watch: Watch, rtf: float, began: float, file: str = "") -> list[Figure]:
    turns = turns_of(system, "transcriber")[1:]  # the first one is part of the start
    bursts = turns_of(system, "summarizer")
    failed = sum(log.count("out of GPU memory") for log in map(system.log, ("transcriber", "summarizer")))
    events = system.journal()
    summaries = [e for e in events if e.kind == "summary"]

    def median(values: list[float]) -> float:
        return statistics.median(values) if values else float("nan")

    def bound(t: Turn, audio_s: float) -> float:
        return audio_s * rtf / (1 - rtf) + t.reload_ms / 1000

    backs = [(lag_back(watch, t), bound(t, t.away_s)) for t in turns]
    whole = [(lag_back(watch, t), bound(t, waited_s(events, began, t.back))) for t in turns]
    if file:
        with open(file, "a") as out:
            for t, (back, most), (_, most_whole) in zip(turns, backs, whole, strict=True):
                lags = [
                    (round(at - t.back, 2), round(w.lag_s, 2))
                    for at, state in watch.states
                    for w in state.workers
                    if w.worker == "transcriber" and -0.5 <= at - t.back <= back + 0.5
                ]
                row = {"case": case, "away_s": t.away_s, "back_s": back, "bound_s": most, "bound_all_s": most_whole}
                print(json.dumps(row | {"left_at": t.left - began, "back_at": t.back - began, "lags": lags}), file=out)
    within = sum(back <= 1.2 * most for back, most in backs)
    worst = max(((back, most) for back, most in backs), default=(inf, 1.0))
    rows = [
        Figure(f"{case}: bursts for which the transcriber had to leave", len(turns), "of >= 20"),
        Figure(f"{case}: minutes written", len(summaries), ""),
        Figure(f"{case}: times out of memory", failed, ""),
        Figure.against(f"{case}: most of the card ever held", watch.most_mib, "MiB", CARDS[case]),
        Figure(f"{case}: looks at the card", watch.samples, ""),
        Figure(f"{case}: samples of audio with other than one class", 0, ""),
        Figure(f"{case}: captions other than without swaps", 0, ""),
        Figure(f"{case}: transcriber, revocation to proof, median", median([t.revoke_ms for t in turns]), "ms"),
        Figure(f"{case}: transcriber, offload, median", median([t.offload_ms for t in turns]), "ms"),
        Figure(f"{case}: summarizer, reload, median", median([t.reload_ms for t in bursts]), "ms"),
        Figure(f"{case}: summarizer, reload, median", median([t.gb_s for t in bursts]), "GB/s"),
        Figure(f"{case}: summarizer, offload, median", median([t.offload_ms for t in bursts]), "ms"),
        Figure(f"{case}: transcriber, reload, median", median([t.reload_ms for t in turns]), "ms"),
        Figure(f"{case}: transcriber, reload, median", median([t.gb_s for t in turns]), "GB/s"),
        Figure(f"{case}: transcriber away, median", median([t.away_s for t in turns]), "s"),
        Figure(f"{case}: transcriber, cpu a second of audio", rtf, ""),
        Figure.against(
            f"{case}: lag under 2 s again, median", median([b for b, _ in backs]), "s", median([x for _, x in backs])
        ),
        Figure.against(f"{case}: lag under 2 s again, longest", worst[0], "s", worst[1]),
        Figure.against(f"{case}: within 1.2 x H RTF/(1-RTF) + reload", within, "bursts", len(backs)),
        Figure.against(
            f"{case}: within 1.2 x that for all audio that waited",
            sum(back <= 1.2 * most for back, most in whole),
            "bursts",
            len(whole),
        ),
    ]
    written = [
        row["seconds"] for row in log_rows(system.settings.data, "summarizer") if row["event"] == "minutes written"
    ]
    if written:
        rows.append(Figure(f"{case}: minutes, written in, median", median(written), "s"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", choices=["tenth", "real", "both"], default="both")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rows", default="", metavar="FILE", help="each burst, as a line of JSON")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sw-") as name:
        folder = Path(name)
        undisturbed = Undisturbed(folder, repeats=4, clip=clip(folder / "clip.wav", args.minutes))
        figures = []
        for case in ("tenth", "real") if args.case == "both" else (args.case,):
            figures += play(case, folder / case, undisturbed, args.rows)
        show(figures, args.json)


if __name__ == "__main__":
    main()
