"""What the small translation models are worth, and what they cost: `python benchmarks/translate.py [EVERY]`: of every
EVERY-th sentence.

Against the human translation of the Universal Declaration of Human Rights (chrF, BLEU), in both directions: greedy, as
the translator does it; with the whole vocabulary instead of the shortlist; with beams. Then, against transformers' own
greedy search on the same weights: how many sentences differ. Then: how many differ in batches; and the cost, in
processor time on one thread.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from common.settings import load as load_settings  # noqa: E402
from workers._torch import set_up  # noqa: E402

T = TypeVar("T")
PAIRS = (("en", "pt"), ("pt", "en"))
HELD_AGAINST = 10  # sentences: transformers' search without a cache takes seconds for one
BATCHES = (1, 8)


def whole(pieces: Generator[None, None, T]) -> T:
    """The return value of a generator that is run to its end."""
    while True:
        try:
            next(pieces)
        except StopIteration as e:
            return e.value  # type: ignore[no-any-return]


def timed(act: Callable[[], T]) -> tuple[T, float]:
    began = time.process_time()
    return act(), time.process_time() - began


def main() -> None:
    import sacrebleu

    from tests.parallel_text import declaration
    from workers.translation_guard import How
    from workers.translation_models import Model, load

    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1  # every so-manieth sentence only
    settings = load_settings(None, ("gpu.device=simulated",))
    torch = set_up(1, settings.cache)
    names = [f"student-{source}-{target}" for source, target in PAIRS]
    found = load(torch, settings, names)
    print(f"torch {torch.__version__}, one thread, {_processor()}")
    for model, (source, target) in zip(found.models, PAIRS, strict=True):
        texts, right = (side[::every] for side in declaration(source, target))
        words = sum(len(t.split()) for t in texts)
        print(f"\n{model.row.name}: {len(texts)} sentences, {words} words")

        def say(what: str, out: Sequence[str], cpu_s: float, right: Sequence[str] = right, n: int = len(texts)) -> None:
            chrf = sacrebleu.corpus_chrf(out, [right]).score
            bleu = sacrebleu.corpus_bleu(out, [right]).score
            print(f"  {what:<34} chrF {chrf:5.1f}  BLEU {bleu:5.1f}  {1000 * cpu_s / n:6.1f} cpu-ms a sentence")

        def translated(batch: int, how: How, model: Model = model, texts: Sequence[str] = texts) -> list[str]:
            out: list[str] = []
            for at in range(0, len(texts), batch):
                part = whole(model.translate(texts[at : at + batch], source, target, how))  # noqa: B023
                out += [text for text, _ in part]
            return out

        whole(model.translate(texts[:1], source, target, How()))  # warm
        alone, cpu_s = timed(lambda: translated(1, How()))
        say("greedy, one by one", alone, cpu_s)
        for batch in BATCHES[1:]:
            out, cpu_s = timed(lambda: translated(batch, How()))  # noqa: B023
            differ = sum(a != b for a, b in zip(alone, out, strict=True))
            say(f"greedy, {batch} at once ({differ} differ)", out, cpu_s)
        for beams in (4,):
            out, cpu_s = timed(lambda: translated(1, How(beams=beams)))  # noqa: B023
            say(f"{beams} beams, one by one", out, cpu_s)
        network: Any = model.network
        short, network.shortlist = network.shortlist, None
        out, cpu_s = timed(lambda: translated(1, How()))
        differ = sum(a != b for a, b in zip(alone, out, strict=True))
        say(f"greedy, no shortlist ({differ} differ)", out, cpu_s)
        print(f"  {_against_transformers(model, texts[:HELD_AGAINST], out)}")
        network.shortlist = short
        both, cpu_s = timed(lambda: whole(found.translate(texts, source, target)))  # noqa: B023
        marked = [t.suspect for t in both if t.suspect]
        say(f"with the guard ({len(marked)} suspect)", [t.text for t in both], cpu_s)


def _against_transformers(model: Any, texts: Sequence[str], ours: Sequence[str]) -> str:
    from tests.reference_marian import greedy, reference

    other = reference(model.network)
    began = time.process_time()
    theirs = []
    for text in texts:
        source = model.tokens.encode(text, "", "")
        theirs.append(model.tokens.decode(greedy(other, source, model.most)).strip())
    cpu_ms = 1000 * (time.process_time() - began) / len(texts)
    differ = sum(a != b for a, b in zip(theirs, ours, strict=False))
    return f"transformers' greedy search on the same weights: {differ} of {len(texts)} differ ({cpu_ms:.0f} cpu-ms)"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), sys.platform)


if __name__ == "__main__":
    main()
