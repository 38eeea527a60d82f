"""When each word of the benchmark's speech is said: forced alignment by PocketSphinx, no relative of what is measured.

`python benchmarks/live_words.py > benchmarks/live_words.jsonl` in an environment that also has pocketsphinx==5.1.1 (its
wheel holds the acoustic model; the project itself does not need it). One line an utterance: the clip it is in, its span
there and its words with their spans, in samples. Sonnets are cut into utterances at the reader's own pauses.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from tests import speech  # noqa: E402
from tests.speech import RATE, Clip, Samples, samples  # noqa: E402

FRAME = RATE // 100  # of the aligner
PAUSE_S, LEAST_S, MOST_S = 0.25, 3.0, 9.0  # where a long reading is cut
AROUND = RATE // 10  # samples kept before the first and behind the last word of a cut
PROMPTS = 45
# Words of the sonnets that its dictionary does not know.
SAID = {
    "beauty's": "B Y UW T IY Z",
    "buriest": "B EH R IY AH S T",
    "churl": "CH ER L",
    "couldst": "K UH D S T",
    "deserv'd": "D IH Z ER V D",
    "feed'st": "F IY D S T",
    "feel'st": "F IY L S T",
    "glutton": "G L AH T AH N",
    "mak'st": "M EY K S T",
    "niggarding": "N IH G ER D IH NG",
    "remember'd": "R IH M EH M B ER D",
    "renewest": "R IH N UW AH S T",
    "riper": "R AY P ER",
    "tatter'd": "T AE T ER D",
    "thriftless": "TH R IH F T L AH S",
    "unbless": "AH N B L EH S",
    "unear'd": "AH N IH R D",
    "viewest": "V Y UW AH S T",
}
NUMBERS = {"1": "one", "2": "two", "3": "three"}
Words = list[tuple[str, int, int]]  # as written, first sample, end sample


def spoken(word: str) -> list[str]:
    """A written word as dictionary entries: a hyphen joins two of them."""
    plain = NUMBERS.get(word.strip(".,"), word).lower().replace("’", "'")
    return re.findall(r"[a-z]+(?:'[a-z]+)?", plain)


class Aligner:
    """PocketSphinx with its own English model."""

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self._decoder = Decoder(lm=None, loglevel="FATAL", samprate=RATE, beam=1e-100, wbeam=1e-100, pbeam=1e-100)
        for word, phones in SAID.items():
            self._decoder.add_word(word, phones, True)

    def knows(self, text: str) -> bool:
        return all(self._decoder.lookup_word(w) for written in text.split() for w in spoken(written))

    def __call__(self, audio: Samples, text: str) -> Words:
        d = self._decoder
        d.set_align_text(" ".join(w for written in text.split() for w in spoken(written)))
        d.start_utt()
        d.process_raw(audio.tobytes(), full_utt=True)
        d.end_utt()
        found = [s for s in d.seg() or () if re.fullmatch(r"[a-z'()\d]+", s.word)]
        out, at = [], 0
        for written in text.split():
            n = len(spoken(written))
            if n:
                part = found[at : at + n]
                if [re.sub(r"\(\d+\)", "", s.word) for s in part] != spoken(written):
                    return []  # other words are said than are written
                out.append((written, part[0].start_frame * FRAME, (part[-1].end_frame + 1) * FRAME))
                at += n
        return out


def cut(words: Words) -> Iterator[Words]:
    """Utterances of LEAST_S to MOST_S, each ending at a pause; the longest pause in reach is taken."""
    while words:
        ends = [i for i in range(1, len(words)) if words[i][1] - words[i - 1][2] >= PAUSE_S * RATE]
        far = [i for i in ends if (words[i - 1][2] - words[0][1]) / RATE >= LEAST_S]
        if not far or (words[-1][2] - words[0][1]) / RATE <= MOST_S:
            yield words
            return
        near = [i for i in far if (words[i - 1][2] - words[0][1]) / RATE <= MOST_S] or far[:1]
        at = max(near, key=lambda i: words[i][1] - words[i - 1][2])
        yield words[:at]
        words = words[at:]


def clips(aligner: Aligner) -> Iterator[tuple[str, Clip, bool]]:
    """(name, clip, is to be cut)"""
    yield "jfk", speech.jfk(), False
    yield from ((f"librivox.{i}", c, False) for i, c in enumerate(speech.librivox()))
    yield from ((f"sonnet.{i}", c, True) for i, c in enumerate(speech.sonnet_parts(), 1))
    known = [c for c in speech.prompts("en") if aligner.knows(c.text) and not re.search(r"\d|\.\.", c.text)]
    yield from ((f"prompt.{c.path.stem}", c, False) for c in known[:: max(1, len(known) // PROMPTS)][:PROMPTS])


def main() -> None:
    aligner = Aligner()
    for name, clip, long in clips(aligner):
        audio = samples(clip.path)
        words = aligner(audio, clip.text)
        if not words:
            print(f"{name} cannot be aligned, left out: {clip.text}", file=sys.stderr)
            continue
        for part in cut(words) if long else [words]:
            span = [max(0, part[0][1] - AROUND), min(len(audio), part[-1][2] + AROUND)] if long else [0, len(audio)]
            text = " ".join(w for w, _, _ in part)
            print(json.dumps({"clip": name, "span": span, "text": text, "words": part}, ensure_ascii=False))


if __name__ == "__main__":
    main()
