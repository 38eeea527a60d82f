"""Pure judgement on what a decoder made of a sound: is it a loop, an echo of its prompt, where do its words end, and
which of the utterances that were decoded in one window do they belong to?"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from common import messages as m

TAIL_SAMPLES = m.SAMPLE_RATE * 2 // 5  # alignment ends the last word early by up to this
FRAME_SAMPLES = m.SAMPLE_RATE // 100  # sound is looked for in frames of 10 ms
RUN = 3  # words: fewer in a row are alike by chance
Floats = npt.NDArray[np.float32]
_WORD = re.compile(r"\w+")


def loud(audio: Floats) -> npt.NDArray[np.bool_]:
    """Which 10-ms frames of an utterance hold sound: within 25 dB of the loudest and 6 dB above its quiet tenth."""
    frames = audio[: len(audio) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    if not len(frames):
        return np.zeros(0, np.bool_)
    level = 10 * np.log10(np.square(frames).mean(axis=1) + 1e-12)
    over = level >= max(level.max() - 25.0, float(np.percentile(level, 10)) + 6.0)
    return np.convolve(over, np.ones(3), "same") >= 2  # one frame alone is a click


def snapped(words: tuple[m.Word, ...], sound: npt.NDArray[np.bool_], origin: int, limit: int) -> tuple[m.Word, ...]:
    """The first word begins and the last one ends with the sound of the utterance, which begins at sample `origin`.

    Alignment knows these two edges least: it begins at the utterance's start, and ends before the last sound fades.
    """
    if not words or not sound.any():
        return words

    def within(start: int, end: int) -> npt.NDArray[np.intp]:
        a, b = (start - origin) // FRAME_SAMPLES, (end - origin) // FRAME_SAMPLES
        return origin + FRAME_SAMPLES * (a + np.flatnonzero(sound[a:b]))

    first = words[0]
    if len(at := within(*first.span)):
        first = msgspec.structs.replace(first, span=(max(first.span[0], int(at[0])), first.span[1]))
    words = (first, *words[1:])
    last = words[-1]
    if len(at := within(last.span[0], min(limit, last.span[1] + TAIL_SAMPLES))):
        last = msgspec.structs.replace(last, span=(last.span[0], max(last.span[0], int(at[-1]) + FRAME_SAMPLES)))
    return (*words[:-1], last)


def echoes(text: str, prompt: str) -> bool:
    """True when `text` holds all of `prompt`, or is a piece of it of three words or more: heard in sounds that are no
    speech, where the prompt is all that the decoder goes by."""
    said, given = (f" {' '.join(_WORD.findall(s.lower()))} " for s in (text, prompt))
    return given in said or (said in given and said.count(" ") > 3)


def repeats(text: str, before: str) -> bool:
    """True when more than half of the words of `text` lie in runs of three or more that stand in `before` too: people
    say a thing twice, and a decoder that hears no speech says again what it was given as the text before."""
    said, given = _WORD.findall(text.lower()), _WORD.findall(before.lower())
    runs = {tuple(given[i : i + RUN]) for i in range(len(given) - RUN + 1)}
    shared = set[int]()
    for i in range(len(said) - RUN + 1):
        if tuple(said[i : i + RUN]) in runs:
            shared.update(range(i, i + RUN))
    return 2 * len(shared) > len(said)


def looping(text: str) -> bool:
    """True when the same one to six words stand four times or more in a row, or fill a long text."""
    words = text.lower().split()
    for size in range(1, 7):
        for i in range(len(words) - 4 * size + 1):
            unit = words[i : i + size]
            if all(words[i + k * size : i + (k + 1) * size] == unit for k in range(1, 4)):
                return True
    return len(text) > 80 and len(text) / len(zlib.compress(text.encode())) > 2.4


def again(text: str) -> bool:
    """True when four words in a row stand in it twice: a short window makes a decoder begin anew."""
    words = _WORD.findall(text.lower())
    runs = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return len(set(runs)) < len(runs)


def packed(lengths: Sequence[int], most: int) -> list[range]:
    """Neighbours that fit together into windows of `most`, in order; one that is longer has its own."""
    windows, filled = list[range](), 0
    for i, length in enumerate(lengths):
        if windows and filled + length <= most:
            windows[-1], filled = range(windows[-1].start, i + 1), filled + length
        else:
            windows.append(range(i, i + 1))
            filled = length
    return windows


def owners(words: Sequence[tuple[float, float]], voices: Sequence[tuple[float, float]]) -> list[int]:
    """For each word, from start to end, the stretch of voice that it belongs to: the one it shares the most time with,
    else the nearest. Both are in order, and so is the answer. (Alignment gives a pause to a word next to it.)"""
    found, at = list[int](), 0
    for start, end in words:
        shared = [min(end, v[1]) - max(start, v[0]) for v in voices[at:]]  # negative: how far away
        at += int(np.argmax(shared))
        found.append(at)
    return found
