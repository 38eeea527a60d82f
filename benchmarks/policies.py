"""Which words of an utterance under way are stable: LocalAgreement-2, as the product has it, beside AlignAtt.

`python benchmarks/policies.py [--share 3] [--model tiny.en] [--json]`. Whisper hears each utterance of live_words.jsonl
(every third) again and again, every half second of it, and what comes out goes to each policy in turn: agreement of two
looks in a row (Macháček et al. 2023), or, at once, whatever the decoder looked at more than so many seconds before the
end of the audio (AlignAtt, Papi et al. 2023). Stable words are given to the decoder, so each policy has looks of its
own. No clock but the audio's: a look takes no time here, so these seconds are what the policy alone costs. Unstable
words are shown by the product's rule in all cases. Words and their times from an aligner that is not the model.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from figures import Figure, show  # noqa: E402
from live import compose  # noqa: E402
from live_figures import Row, Word, figures, plain, standing  # noqa: E402

from common import messages as m  # noqa: E402
from common.process import Process  # noqa: E402
from common.settings import load  # noqa: E402
from tests.in_process import run  # noqa: E402
from tests.speech import RATE, Samples  # noqa: E402
from workers.interim import PAUSE, Interim, Piece, Shown, UnderWay, showable, text  # noqa: E402
from workers.live_text import PLACE  # noqa: E402
from workers.session import Work  # noqa: E402
from workers.transcriber import Transcriber  # noqa: E402

SILENCE = b"\0" * RATE  # half a second behind each utterance


class AlignAtt(Interim):
    """Words are stable as soon as they were heard so many places before the end of the audio."""

    def __init__(self, onset: int, frames: int) -> None:
        super().__init__(0, onset)
        self._frames = frames

    def take(self, pieces: Sequence[Piece], end: int | None) -> Shown:
        near = (i for i, p in enumerate(pieces) if p.key and end is not None and p.heard > end - self._frames)
        sure = next(near, len(pieces))
        self.stable += tuple(pieces[:sure])
        rest = tuple(pieces[sure:])
        stable, more = text(self.stable), text(rest[: showable(rest, end)])
        self.shown = Shown(stable.lstrip(), more if stable else more.lstrip())
        return self.shown


POLICIES: dict[str, Callable[[int], Interim]] = {
    "agreement": lambda onset: Interim(0, onset),
    **{f"alignatt {s} s": (lambda onset, s=s: AlignAtt(onset, round(s * 50))) for s in (0.3, 0.5, 1.0)},
}


class Told(NamedTuple):
    """What one policy showed of one utterance."""

    rows: list[Row]
    stable: list[str]
    final: list[str]
    looks: int


def hear(transcriber: Transcriber, audio: Samples, onset: int, policy: Callable[[int], Interim], final: str) -> Told:
    pcm, end, known = audio.tobytes() + SILENCE, len(audio), policy(onset)
    rows, looks, every = list[Row](), 0, round(transcriber.s.interim_every_s * RATE)
    for heard in range(every, len(pcm) // 2 + 1, RATE // 20):
        now = UnderWay("s", 0, onset, min(heard, end), heard, pcm[: heard * 2])
        if not (upto := known.due(now, every)):
            continue
        known.looked(upto)
        looks += 1
        pieces, known.language = run(transcriber.glimpse(b"", now, upto, known))
        paused = upto - now.voice_end >= PAUSE
        shown = known.take(pieces, None if paused else upto // PLACE)
        rows.append(Row(upto / RATE, "s", shown.stable + shown.unstable))
    rows.append(Row(end / RATE + 0.5, "s", final, True))
    return Told(rows, plain(text(known.stable)), plain(final), looks)


def differing(told: Told) -> int:
    """Stable words that do not stand in the final."""
    return len(told.stable) - len(standing(told.stable, told.final))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=int, default=3)
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    process = Process("transcriber", load(None, (f"transcriber.model={args.model}",), {}), argparse.Namespace())
    transcriber = Transcriber(process)
    transcriber.load(process)
    speech = compose(args.share, 1e9)
    told: dict[str, list[Told]] = {name: [] for name in POLICIES}
    timings: dict[str, list[tuple[float, float]]] = {name: [] for name in POLICIES}
    taken = dict.fromkeys(POLICIES, 0)
    at, said = float(RATE), list(speech.said)
    for _, audio in speech.parts:
        mine = [w for w in said if at / RATE <= w[1] <= (at + len(audio)) / RATE + 0.01]
        local: list[Word] = [(w, t - at / RATE) for w, t in mine]
        at += len(audio) + 1.5 * RATE
        work = Work(stream="s", span=(0, len(audio)), speech=(0, len(audio)), voiced=(0, len(audio)),
                    pcm=audio.tobytes(), state=b"")  # fmt: skip
        body = run(transcriber.infer(b"", work)).events[-1]
        if not isinstance(body, m.Transcript):
            continue
        for name, policy in POLICIES.items():
            one = hear(transcriber, audio, 0, policy, body.text)
            found = figures(one.rows, local)
            told[name].append(one)
            timings[name] += [(t.shown_s, t.settled_s) for t in found.timings]
            taken[name] += found.taken_back
    out = []
    for name, all_ in told.items():
        stable, final = sum(len(t.stable) for t in all_), sum(len(t.final) for t in all_)
        wrong = 100 * sum(differing(t) for t in all_) / max(1, stable)
        out += [Figure(f"{name}: looks", sum(t.looks for t in all_), "")]
        out += [Figure(f"{name}: stable words that differ from their final", wrong, "%")]
        out += [Figure(f"{name}: taken back per final word", taken[name] / max(1, final), "")]
        for i, what in enumerate(("shown", "settled")):
            values = sorted(t[i] for t in timings[name])
            out += [Figure(f"{name}: {what}, p50", statistics.median(values), "s")]
            out += [Figure(f"{name}: {what}, p95", values[int(0.95 * (len(values) - 1))], "s")]
    show(out, args.json)


if __name__ == "__main__":
    main()
