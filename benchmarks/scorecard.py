"""What a finished stream is worth beside what is known of its recording.

`python benchmarks/scorecard.py JSON REFERENCE`: JSON is what `swapscribe export --format json` writes; REFERENCE.tsv
has a line for each word (start, end, speaker, word), REFERENCE.rttm who speaks when, both as examples/make_meeting.py
writes them. Each translation is held against what the same models make of the same captions when they get whole
sentences of all of it at once. One line a figure: its name, a tab, the figure. Of what a missing package leaves out
there is no figure; the last line names it.

`swapscribe demo` starts it when its own processes are over: it loads models, and must not share the card with anybody.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks import scores  # noqa: E402
from benchmarks.scores import Translated, by_speaker  # noqa: E402
from common.settings import Settings, UserError, load  # noqa: E402

Export = dict[str, Any]
MISSING = "missing"  # name of the line of what is left out


class Reference(NamedTuple):
    turns: scores.Turns
    words: list[tuple[str, str]]  # speaker, word: by start

    @property
    def text(self) -> str:
        return " ".join(word for _, word in self.words)

    @classmethod
    def read(cls, path: Path) -> Reference:
        (turns,) = scores.rttm(path.with_name(f"{path.name}.rttm")).values()
        rows = [line.split("\t") for line in path.with_name(f"{path.name}.tsv").read_text().splitlines()]
        return cls(turns, [(who, word) for _, _, who, word in rows])


def word_errors(export: Export, reference: Reference) -> str:
    found = scores.wer(reference.text, " ".join(s["text"] for s in export["segments"]))
    return f"WER {found.percent:.1f} % ({found.errors} of {found.words} words)"


def speakers(export: Export, reference: Reference) -> str:
    turns = [(t["start_s"], t["end_s"], t["speaker"]) for t in export.get("turns", ())]
    found = scores.score([(reference.turns, turns, export["duration_s"])])
    parts = f"missed {found.missed:.1f}, false alarm {found.false_alarm:.1f}, confusion {found.confusion:.1f}"
    heard, there = (len({who for *_, who in side}) for side in (turns, reference.turns))
    return f"DER {found.der:.1f} % ({parts}; {heard} speakers heard, {there} are there)"


def words_by_speaker(export: Export, reference: Reference) -> str:
    """Speech of nobody is one more speaker's."""
    whole = [{"speaker": None}]
    said = [
        (run["speaker"] or "", run.get("text", s["text"])) for s in export["segments"] for run in s.get("runs", whole)
    ]
    found = scores.cpwer(by_speaker(reference.words), by_speaker(said))
    return f"cpWER {found.percent:.1f} % ({found.errors} of {found.words} words)"


def direct(settings: Settings, export: Export, target: str) -> list[Translated]:
    """The captions, as whole sentences of the whole stream, by the same models."""
    from workers._torch import set_up

    torch = set_up(settings.translate.threads, settings.cache)
    import sentencex

    from workers.translation_models import load as load_models

    models = load_models(torch, settings, settings.translate.models)
    texts: dict[str, list[str]] = {}
    for s in export["segments"]:
        texts.setdefault(s["language"], []).append(s["text"].strip())
    out: list[Translated] = []
    for language, some in texts.items():
        if models.knows(language, target):
            sentences = [" ".join(s.split()) for s in sentencex.segment(language, " ".join(some)) if s.strip()]
            out += [(s, whole(models.translate([s], language, target))[0].text) for s in sentences]
    return out


def whole(pieces: Any) -> Any:
    """The return value of a generator that is run to its end."""
    while True:
        try:
            next(pieces)
        except StopIteration as e:
            return e.value


def translation(export: Export, target: str, wanted: Sequence[Translated]) -> str:
    live = [(t["source"], t["text"]) for t in export["translations"].get(target, ()) if t["model"]]
    suspect = sum(bool(t["suspect"]) for t in export["translations"].get(target, ()))
    doubt = f", {suspect} of them suspect" * bool(suspect)
    many = f"{len(live)} sentences{doubt}; beside the same model on whole sentences: {len(wanted)}"
    return f"chrF {scores.chrf(live, wanted):.1f} ({many})"


def figures(
    export: Export, reference: Reference, targets: Sequence[str], make: Callable[[str], Sequence[Translated]]
) -> list[tuple[str, str]]:
    """(name, figure); those that a package is missing for are named in the last one. `make`: see `direct`."""
    known: list[tuple[str, str, str, Callable[[], str]]] = [
        ("words", "WER", "jiwer", lambda: word_errors(export, reference)),
        ("speakers", "DER", "pyannote.metrics", lambda: speakers(export, reference)),
        ("words by speaker", "cpWER", "meeteval", lambda: words_by_speaker(export, reference)),
    ]
    for target in targets:
        known.append(
            (f"translation {target}", "chrF", "sacrebleu", lambda t=target: translation(export, t, make(t)))  # type: ignore[misc]
        )
    out, missing = list[tuple[str, str]](), dict[str, str]()
    for name, measure, package, count in known:
        if there(package):
            out.append((name, f"{count()} [{package}]"))
        else:
            missing[measure] = package
    if missing:
        out.append((MISSING, ", ".join(f"{measure} ({package})" for measure, package in missing.items())))
    return out


def there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # not even what it is in
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("export", type=Path, help="of swapscribe export --format json")
    parser.add_argument("reference", type=Path, help="path of REFERENCE.tsv and REFERENCE.rttm, without the ending")
    parser.add_argument("--config", help="settings file, as of swapscribe")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    args = parser.parse_args()
    try:
        settings = load(args.config, tuple(args.set))
        export = json.loads(args.export.read_text())
        for line in figures(
            export,
            Reference.read(args.reference),
            settings.translate.targets,
            lambda target: direct(settings, export, target),
        ):
            print("\t".join(line), flush=True)
    except UserError as e:
        print(f"scorecard: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
