"""What the product adds to the models: draining a recorded backlog beside one plain script with the same calls.

`python benchmarks/drain.py [--minutes 10] [--runs 5] [--model tiny.en] [--json]`. Runs are interleaved; the
transcriber's cpu-seconds are counted from "model loaded" to the last event, the script's likewise. Texts must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
from figures import Figure, show  # noqa: E402

from common import backlog, models  # noqa: E402
from common import messages as m  # noqa: E402
from common.feed_client import FeedClient  # noqa: E402
from common.settings import Settings, load  # noqa: E402

FIRST_PROMPT_GAP = 30 * m.SAMPLE_RATE  # settings.transcriber.prompt_within_s
PROMPT_TOKENS = 100


def speech(seconds: float) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Public-domain speech (LibriVox, sonnets), a second of silence after each clip, repeated to length."""
    import av

    from tests.speech import librivox, sonnets

    def read(path: Path) -> np.ndarray[Any, np.dtype[np.int16]]:
        with av.open(str(path)) as container:
            resampler = av.AudioResampler("s16", "mono", m.SAMPLE_RATE)
            frames = [g for f in container.decode(audio=0) for g in resampler.resample(f)] + resampler.resample(None)
            return np.concatenate([f.to_ndarray().ravel() for f in frames]).astype(np.int16)

    pause = np.zeros(m.SAMPLE_RATE, np.int16)
    clips = [read(Path(path)) for path, _ in [*librivox(), sonnets()]]
    once = np.concatenate([part for clip in clips for part in (clip, pause)])
    total = int(seconds * m.SAMPLE_RATE)
    return np.tile(once, total // len(once) + 1)[:total]


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(module: str, settings: Settings, log: Path) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", module, "--set", f"data_dir={settings.data}"]
    argv += ["--set", f"transcriber.model={settings.transcriber.model}", "--set", "transcriber.language=en"]
    with log.open("ab") as out:
        return subprocess.Popen(argv, cwd=ROOT, stderr=out)


def ours(folder: Path, audio: np.ndarray[Any, np.dtype[np.int16]], model: str) -> dict[str, Any]:
    """Drain `audio` with a real feed and a real transcriber; cpu of both and the transcripts."""
    settings = load(None, (f"data_dir={folder}", f"transcriber.model={model}"), {})
    stream = settings.streams / "recorded"
    stream.mkdir(parents=True)
    writer = backlog.Writer(stream, 60 * m.SAMPLE_RATE)
    writer.append(0, audio.tobytes())
    writer.close()
    backlog.write_meta(
        stream,
        backlog.Meta(
            stream="recorded", source="recorded", lane="batch", origin="benchmark", started_ns=time.time_ns(),
            resumable=True, ended=True, end=len(audio), end_reason="end of file",
        ),
    )  # fmt: skip
    feed = start("workers.feed", settings, folder / "feed.log")
    client = FeedClient(settings)
    while client.last_beat is None:
        client.poll(1.0)
    feed_cpu = cpu_s(feed.pid)
    arbiter = start("arbiter", settings, folder / "arbiter.log")
    log = folder / "transcriber.log"
    worker = start("workers.transcriber", settings, log)
    while not log.exists() or '"granted"' not in log.read_text().partition('"calibrated"')[2]:
        client.poll(0.02)
        if worker.poll() is not None:
            raise SystemExit(log.read_text())
    before = cpu_s(worker.pid)
    events: list[m.EventBody] = []
    done = False
    while not done:
        for e in client.poll(1.0):
            body = e.decode() if isinstance(e, m.Event) else None
            if body is not None:
                events.append(body)
            done = done or isinstance(body, m.StreamEnded)
    result = {"cpu_s": cpu_s(worker.pid) - before, "feed_cpu_s": cpu_s(feed.pid) - feed_cpu, "events": events}
    client.close()
    for process in (worker, arbiter, feed):
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    return result


def cuts_of(events: list[m.EventBody], settings: Settings) -> list[dict[str, Any]]:
    """What the plain script needs to make the same calls: the spans, and the prompt each one had."""
    import whisper

    tokenizer = whisper.tokenizer.get_tokenizer(settings.transcriber.model == "base", language="en", task="transcribe")
    first = tokenizer.encode(" " + settings.transcriber.first_prompt.strip())
    cuts, prompt, end = [], [], -FIRST_PROMPT_GAP - 1
    for e in events:
        if isinstance(e, m.Transcript | m.Suppressed):
            near = e.span[0] - end <= FIRST_PROMPT_GAP
            prompt = prompt if near else []
            cuts.append({"span": e.span, "prompt": first + prompt, "first_prompt": first})
        if isinstance(e, m.Transcript):
            prompt, end = (prompt + tokenizer.encode(" " + e.text))[-PROMPT_TOKENS:], e.span[1]
    return cuts


def plain(folder: Path, settings: Settings, *flags: str) -> dict[str, Any]:
    out = folder / "plain.json"
    script = str(Path(__file__).with_name("plain_transcriber.py"))
    model, vad = models.available(settings, settings.transcriber.model), models.available(settings, "silero_vad")
    argv = [sys.executable, script, str(folder / "audio.pcm"), str(folder / "cuts.json"), str(model), str(vad)]
    subprocess.run([*argv, str(settings.transcriber.threads), str(out), *flags], check=True, cwd=ROOT)
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    audio = speech(args.minutes * 60)
    settings = load(None, (f"transcriber.model={args.model}",), {})
    rows: list[tuple[float, float, float, float]] = []
    with tempfile.TemporaryDirectory(prefix="drain-") as tmp:
        folder = Path(tmp)
        audio.tofile(folder / "audio.pcm")
        for run in range(args.runs):
            mine = ours(folder / f"run{run}", audio, args.model)
            (folder / "cuts.json").write_text(json.dumps(cuts_of(mine["events"], settings)))
            peer = plain(folder, settings)
            lean = plain(folder, settings, "--share-encoder")
            rows.append((mine["cpu_s"], peer["cpu_s"], lean["cpu_s"], mine["feed_cpu_s"]))
            texts = [e.text for e in mine["events"] if isinstance(e, m.Transcript | m.Suppressed)]
            same = sum(a == b for a, b in zip(texts, peer["texts"], strict=True))
            print(f"run {run}: ours {rows[-1][0]:.1f} plain {rows[-1][1]:.1f} lean {rows[-1][2]:.1f} cpu-s; "
                  f"{same} of {len(texts)} texts the same", file=sys.stderr)  # fmt: skip
    mine50, peer50, lean50, feed50 = (statistics.median(r[i] for r in rows) for i in range(4))
    figures = [
        Figure.against("transcriber cpu beside the plain script (bound 1.10)", mine50, "cpu-s", peer50),
        Figure.against("transcriber cpu beside the script with one encoder run", mine50, "cpu-s", lean50),
        Figure("transcriber cpu per audio second", mine50 / (args.minutes * 60), "cpu-s/s"),
        Figure("feed cpu of the drain", feed50, "cpu-s"),
    ]
    show(figures, args.json)


if __name__ == "__main__":
    main()
