"""Builds the bundled recording: `python -m examples.make_recording`, from the repository's folder.

    examples/recording.flac   President Kennedy, then five sentences of a LibriVox reader, with pauses between them
    examples/recording.txt    a line for each clip: start in seconds, tab, end in seconds, tab, what is said

All of it is public domain: a speech of a United States president in office, and LibriVox recordings. The pauses are
nearly silent (±1 of 32768) rather than zero, as a quiet room is. Running it again gives the same samples.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from tests.speech import RATE, Samples, jfk, librivox, samples

HERE = Path(__file__).resolve().parent
PAUSE_S = 1.2


def pause(seed: int) -> Samples:
    return np.random.default_rng(seed).integers(-1, 1, int(PAUSE_S * RATE), dtype=np.int16, endpoint=True)


def write_flac(path: Path, pcm: Samples) -> None:
    with av.open(str(path), "w", format="flac") as out:
        stream = out.add_stream("flac", rate=RATE, options={"compression_level": "12"})
        stream.layout = "mono"
        stream.format = "s16"
        frame = av.AudioFrame.from_ndarray(pcm[None, :], format="s16", layout="mono")
        frame.rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)


def main() -> None:
    pieces, lines, at = [pause(0)], [], int(PAUSE_S * RATE)
    for seed, clip in enumerate([jfk(), *librivox()], start=1):
        pcm = samples(clip.path)
        lines.append(f"{at / RATE:.3f}\t{(at + len(pcm)) / RATE:.3f}\t{clip.text}\n")
        pieces += [pcm, pause(seed)]
        at += len(pcm) + int(PAUSE_S * RATE)
    write_flac(HERE / "recording.flac", np.concatenate(pieces))
    (HERE / "recording.txt").write_text("".join(lines))
    size = (HERE / "recording.flac").stat().st_size
    print(f"{HERE / 'recording.flac'}: {at / RATE:.1f} s, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
