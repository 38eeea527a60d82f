"""A stream in five languages with `language = "auto"`: in which language each sentence is captioned, and how well.

`python benchmarks/languages.py [--model base] [--sentences 3] [--json]`. In one process, cut and decoded as the
transcriber does it, without feed or GPU. Three streams of sentences 0.9 s apart (telephone exchanges; human voices):
some sentences of one language, then of the next; another language with each sentence; English with single sentences of
the others in between. Beside it: the same sentences, each with its language asked for. About 10 minutes.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
from figures import Figure, show  # noqa: E402

from common import messages as m  # noqa: E402
from tests import speech  # noqa: E402
from tests.speech import RATE, Clip, samples, word_errors, words  # noqa: E402
from tests.system import quiet  # noqa: E402
from tests.test_echo import Ear, text  # noqa: E402

CODES = ("en", "es", "fr", "it", "ru")
PAUSE_S = 0.9
Sentence = tuple[str, Clip]  # language code


class Heard(NamedTuple):
    """Of one stream."""

    captions: int
    wrong: int  # in another language than was spoken
    errors: int  # words
    said: int


def chosen(count: int) -> dict[str, list[Clip]]:
    """So many sentences of each language, from all over its list."""
    found = {}
    for code in CODES:
        clips = speech.prompts(code)
        found[code] = clips[:: max(1, len(clips) // count)][:count]
    return found


def streams(by_code: dict[str, list[Clip]]) -> dict[str, list[Sentence]]:
    one_by_one = [[(code, clip) for clip in clips] for code, clips in by_code.items()]
    english, others = one_by_one[0], [row[0] for row in one_by_one[1:]]
    return {
        "language after language": [s for row in one_by_one for s in row],
        "another with each sentence": [s for row in zip(*one_by_one, strict=True) for s in row],
        "one foreign sentence in English": [x for i, o in enumerate(others) for x in (english[i % len(english)], o)],
    }


def hear(ear: Ear, sentences: Sequence[Sentence]) -> Heard:
    sounds = [samples(clip.path) for _, clip in sentences]
    starts = list(itertools.accumulate((len(s) + round(PAUSE_S * RATE) for s in sounds), initial=0))
    bodies, _ = ear.hear(np.concatenate([x for s in sounds for x in (s, quiet(PAUSE_S))]))
    captions = wrong = errors = said = 0
    for (code, clip), start, end in zip(sentences, starts, starts[1:], strict=False):
        mine = [b for b in bodies if isinstance(b, m.Transcript) and start <= sum(b.span) // 2 < end]
        captions += len(mine)
        wrong += sum(b.language != code for b in mine)
        errors += word_errors(clip.text, " ".join(b.text for b in mine), code)
        said += len(words(clip.text, code))
        print(f"{code}: {[(b.language, b.text) for b in mine]}", file=sys.stderr, flush=True)
    return Heard(captions, wrong, errors, said)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="base")
    parser.add_argument("--sentences", type=int, default=3, help="of each language")
    parser.add_argument("--json", action="store_true", help="one JSON object a figure")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sw-"))
    figures = []
    try:
        ear = Ear(folder, f"transcriber.model={args.model}")
        by_code = chosen(args.sentences)
        alone = {
            clip.path: word_errors(clip.text, text(ear.hear(samples(clip.path), language=code)[0]), code)
            for code, clips in by_code.items()
            for clip in clips
        }
        for name, sentences in streams(by_code).items():
            heard = hear(ear, sentences)
            asked = sum(alone[clip.path] for _, clip in sentences)
            figures += [
                Figure(f"captions in a wrong language of {heard.captions}, {name}", heard.wrong, "captions"),
                Figure.against(f"word errors of {heard.said}, beside asked for, {name}", heard.errors, "words", asked),
            ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(figures, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
