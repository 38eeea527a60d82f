"""When each word of the speakers of composed meetings is said: forced alignment by PocketSphinx, written once.

`python -m tests.speaker_words > tests/speakers.jsonl` in an environment that also has pocketsphinx==5.1.1. One line a
speaker: the words of each of its recordings with first and end sample. Long recordings are aligned whole.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "benchmarks")]

from live_words import Aligner  # noqa: E402

from tests.speakers import SPEAKERS  # noqa: E402
from tests.speech import samples  # noqa: E402


def main() -> None:
    aligner = Aligner()
    for speaker, clips in SPEAKERS.items():
        said = [aligner(samples(c.path), c.text) for c in clips()]
        if not all(said):
            sys.exit(f"{speaker}: other words are said than are written, or one is in no dictionary")
        print(json.dumps({"speaker": speaker, "clips": said}, ensure_ascii=False))


if __name__ == "__main__":
    main()
