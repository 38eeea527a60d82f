"""`python -m workers.enroll FILE NAME`: a voiceprint of the one person who speaks in a recording. No lease: on the CPU.

The networks of the diarizer hear it in windows; what one voice says alone is embedded, and stored under the name. Too
little speech or a second voice is refused in one line: a wrong print would put a name to strangers for ever after.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from common import models, voiceprints
from common.messages import SAMPLE_RATE
from common.process import EXIT_USER_ERROR, arguments
from common.settings import Settings, UserError, load
from workers._torch import set_up
from workers.windows import GAP, WINDOW, Floats, lone

if TYPE_CHECKING:
    from workers.speaker_models import Ears, Pieces

LEAST_S = 5.0  # of speech
MOST_S = 600.0  # of the recording are heard: more would not know the voice better
OTHER_S = 2.0  # so much by another voice, and a twentieth of all speech, is a second person
BRIEF_S = 0.8  # a stretch shorter than this does not say whose it is
# Cosine distance from their middle: on five recordings, in stretches of 1.5 s and more, 0.01-0.32 for the same voice
# and 0.50-0.85 for another's; a shorter one says less: one of 1.0 s of the same voice had 0.53.
SAME = 0.4
SURE_S = 1.5  # one shorter than this does not say that it is another's

T = TypeVar("T")


class Part(NamedTuple):
    """What one of the speakers of a window says alone, without a long pause."""

    sound: Floats
    voice: Floats  # of unit length

    @property
    def seconds(self) -> float:
        return len(self.sound) / SAMPLE_RATE


def whole(pieces: Pieces[T]) -> T:
    """The result of work that nobody interrupts here."""
    while True:
        try:
            next(pieces)
        except StopIteration as e:
            result: T = e.value
            return result


def parts(ears: Ears, pcm: Floats) -> list[Part]:
    """All speech in windows side by side: each stretch without a long pause apart, for the network may take who speaks
    after one for who spoke before it."""
    found = []
    for start in range(0, len(pcm), WINDOW):
        sound = pcm[start : start + WINDOW]
        active = whole(ears.hear(sound, start, lambda *_: ())).active
        frame_of = np.arange(len(sound)) * len(active) // max(1, len(sound))
        for clear in lone(active).T:
            at = np.flatnonzero(clear)
            for stretch in np.split(at, np.flatnonzero(np.diff(at) > GAP) + 1) if len(at) else ():
                said = sound[np.isin(frame_of, stretch)]
                if len(said) >= BRIEF_S * SAMPLE_RATE:
                    found.append(Part(said, whole(ears.embed(said))))
    return found


def one_voice(found: Iterable[Part]) -> tuple[list[Part], float]:
    """The parts by whoever speaks most, and for how many seconds others speak."""
    clear = list(found)
    if not clear:
        return [], 0.0

    def near(middle: Floats) -> list[Part]:
        return [p for p in clear if 1.0 - float(p.voice @ middle) <= SAME]

    def seconds(of: Iterable[Part]) -> float:
        return sum(p.seconds for p in of)

    most = max((near(p.voice) for p in clear), key=seconds)
    middle = np.sum([p.seconds * p.voice for p in most], axis=0)
    most = near((middle / np.linalg.norm(middle)).astype(np.float32)) or most
    kept = {id(p) for p in most}
    return most, seconds(p for p in clear if id(p) not in kept and p.seconds >= SURE_S)


def decoded(path: str) -> Floats:
    """The beginning of a recording, decoded by capture's code in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "capture.samples", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    pcm = process.stdout.read(2 * round(MOST_S * SAMPLE_RATE))
    process.stdout.close()
    said = process.stderr.read().decode(errors="replace").strip()
    if process.wait() and not len(pcm):
        raise UserError(said.splitlines()[-1] if said else f"{path}: cannot be decoded")
    return np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2").astype(np.float32) / 32768.0


def enroll(settings: Settings, path: str, name: str) -> str:
    """Returns what was done, for people. Raises UserError."""
    from workers import speaker_models

    folder = models.available(settings, settings.speakers.model, check=True)
    pcm = decoded(path)
    ears = speaker_models.load(set_up(settings.speakers.threads, settings.cache), folder)
    mine, others_s = one_voice(parts(ears, pcm))
    spoken_s = sum(p.seconds for p in mine)
    heard = f"{spoken_s:.1f} s of speech in {len(pcm) / SAMPLE_RATE:.1f} s"
    if others_s >= max(OTHER_S, (spoken_s + others_s) / 20):
        raise UserError(
            f"{path}: two voices at least ({spoken_s:.1f} s of one, {others_s:.1f} s of others); one is needed"
        )
    if spoken_s < LEAST_S:
        raise UserError(f"{path}: {heard}; a voiceprint needs {LEAST_S:.0f} s at least")
    voice = whole(ears.embed(np.concatenate([p.sound for p in mine])))
    voiceprints.write(
        settings,
        voiceprints.Voiceprint(
            name=name,
            model=settings.speakers.model,
            embedding=tuple(float(x) for x in voice),
            seconds=round(spoken_s, 1),
            made_ns=time.time_ns(),
        ),
    )
    return f"{name}: voiceprint made from {heard}; recognised from now on (to delete it: swapscribe speakers forget)"


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("file")
    parser.add_argument("name")
    args = parser.parse_args()
    try:
        print(enroll(load(args.config, tuple(args.set)), args.file, args.name), flush=True)
    except UserError as e:
        print(f"swapscribe: {' '.join(str(e).split())}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


if __name__ == "__main__":
    main()
