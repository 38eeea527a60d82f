"""The demo's scorecard: each figure on a case whose answer is known, and what is said where a package is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from benchmarks import scorecard, scores
from benchmarks.scorecard import Reference
from common import backlog, cli_demo
from common import messages as m
from common.demo import MEETING, Demo, late_s, middle_and_worst, over, translated_late_s
from common.settings import Settings, Source

pytestmark = pytest.mark.pure
SECOND, SECOND_NS = m.SAMPLE_RATE, 1_000_000_000

# chrF of two translations that are cut differently

LIVE = [("One sentence.", "Uma frase."), ("Another", "Outra"), ("one, cut.", "uma, cortada.")]
DIRECT = [("One sentence.", "Uma frase."), ("Another one, cut.", "Outra, cortada.")]


def test_translations_meet_where_both_end_a_sentence() -> None:
    assert scores.stretches(LIVE, DIRECT) == [("Uma frase.", "Uma frase."), ("Outra uma, cortada.", "Outra, cortada.")]
    assert scores.stretches(DIRECT, DIRECT) == [(text, text) for _, text in DIRECT]


def test_behind_words_that_are_missing_nothing_meets_any_more() -> None:
    live = [DIRECT[0], ("One, cut.", "Uma, cortada.")]
    more = [*DIRECT, ("The end.", "O fim.")]
    assert scores.stretches([*live, more[2]], more) == [
        ("Uma frase.", "Uma frase."),
        ("Uma, cortada. O fim.", "Outra, cortada. O fim."),
    ]


def test_as_many_characters_of_other_words_are_no_meeting_place() -> None:
    assert scores.stretches([("abc", "x"), ("def", "y")], [("abd", "x"), ("cef", "y")]) == [("x y", "x y")]


def test_chrf_of_the_same_is_100_and_less_for_what_differs() -> None:
    pytest.importorskip("sacrebleu")
    assert scores.chrf(DIRECT, DIRECT) == pytest.approx(100)
    assert scores.chrf([], DIRECT) == scores.chrf([], []) == 0
    swapped = [(said, other) for (said, _), (_, other) in zip(DIRECT, reversed(DIRECT), strict=True)]
    assert scores.chrf(swapped, DIRECT) < scores.chrf(LIVE, DIRECT) < 100


# The scorecard

SAID = [("a", "good"), ("a", "morning"), ("b", "shall"), ("b", "we"), ("b", "begin"), ("b", "now?")]
REFERENCE = Reference([(0.0, 2.0, "a"), (2.0, 6.0, "b")], SAID)
EXPORT: dict[str, Any] = {
    "duration_s": 7.0,
    "segments": [
        {"text": "Good morning. Shall", "language": "en",
         "runs": [{"speaker": "S1", "text": "Good morning."}, {"speaker": "S2", "text": "Shall"}]},
        {"text": "we begin here?", "language": "en", "runs": [{"speaker": None, "text": "we begin here?"}]},
    ],
    "turns": [{"speaker": "S2", "start_s": 2.0, "end_s": 5.0}, {"speaker": "S1", "start_s": 0.0, "end_s": 2.0}],
    "translations": {"pt": [
        {"source": "Good morning.", "text": "Bom dia.", "suspect": None, "model": "m"},
        {"source": "Shall we begin here?", "text": "", "suspect": "empty", "model": "m"},
        {"source": "Sim.", "text": "Sim.", "suspect": None, "model": None},
    ]},
}  # fmt: skip
WHOLE = [("Good morning.", "Bom dia."), ("Shall we begin here?", "Vamos começar aqui?")]


def counted(export: dict[str, Any] = EXPORT) -> dict[str, str]:
    return dict(scorecard.figures(export, REFERENCE, ["pt"], lambda target: WHOLE))


def test_words_speakers_and_translation_of_a_small_meeting() -> None:
    for package in ("jiwer", "pyannote.metrics", "sacrebleu"):
        pytest.importorskip(package)
    found = counted()
    assert found["words"] == "WER 16.7 % (1 of 6 words) [jiwer]"
    assert found["speakers"].startswith(
        "DER 16.7 % (missed 16.7, false alarm 0.0, confusion 0.0; 2 speakers heard, 2 are"
    )
    assert found["translation pt"].startswith("chrF ") and "2 sentences, 1 of them suspect" in found["translation pt"]
    spoiled = float(found["translation pt"].split()[1])
    assert 20 < spoiled < 100, "a sentence without a translation counts"
    good = msgspec.json.decode(msgspec.json.encode(EXPORT))
    good["translations"]["pt"][1]["text"] = WHOLE[1][1]
    assert float(counted(good)["translation pt"].split()[1]) == pytest.approx(100)


def test_words_by_speaker_of_a_small_meeting() -> None:
    pytest.importorskip("meeteval")
    # of b's four words two are nobody's and one is wrong: best is nobody as b, so "shall" is missing there and invented
    assert counted()["words by speaker"] == "cpWER 50.0 % (3 of 6 words) [meeteval]"


def test_who_speaks_may_be_unknown() -> None:
    pytest.importorskip("pyannote.metrics")
    bare = EXPORT | {"segments": [{"text": "Good morning", "language": "en"}]}
    del bare["turns"]
    found = counted(bare)
    assert "0 speakers heard" in found["speakers"] and found["words"].startswith("WER 66.7 %")


def test_a_missing_package_leaves_out_its_figure_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec

    def without(name: str) -> Any:
        if name == "pyannote.metrics":
            raise ModuleNotFoundError(name)  # as where nothing of pyannote is
        return None if name == "meeteval" else there(name)

    monkeypatch.setattr(scorecard, "find_spec", without)
    found = counted()
    assert {"speakers", "words by speaker"} & found.keys() == set() and "words" in found
    assert found[scorecard.MISSING] == "DER (pyannote.metrics), cpWER (meeteval)"


def test_the_bundled_meeting_is_known_to_the_word() -> None:
    known = Reference.read(MEETING.with_suffix(""))
    assert len({who for *_, who in known.turns}) == 3 == len({who for who, _ in known.words})
    assert len(known.words) == 114


# What people read of it


def test_figures_that_are_missing_are_one_line_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "standin_scorecard.py"
    program.write_text("print('words\\tWER 5.0 %')\nprint('missing\\tDER (pyannote.metrics)')\n")
    monkeypatch.setattr(cli_demo, "SCORECARD", program)
    figures, (line,) = cli_demo.scored(tmp_path / "none.json", [])
    assert figures == [("words", "WER 5.0 %")]
    assert "DER (pyannote.metrics)" in line and "make demo" in line and "\n" not in line


def test_a_scorecard_that_fails_says_why_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "standin_scorecard.py"
    program.write_text("import sys\nprint('words\\tWER 5.0 %')\nsys.exit('model x is not there')\n")
    monkeypatch.setattr(cli_demo, "SCORECARD", program)
    figures, lines = cli_demo.scored(tmp_path / "none.json", [])
    assert len(figures) == 1 and lines == ["  not counted: model x is not there"]


class Watched:
    """Stand-in for `common.demo.Demo` after a run: what it holds."""

    def __init__(self, events: list[m.Event], of: m.StreamBeat) -> None:
        self.events, self.streams, self.swaps = events, {"s": of}, 2


def test_all_exports_and_every_line_of_the_scorecard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "standin_scorecard.py"
    program.write_text("import sys\nprint('words\\tof ' + sys.argv[1].rpartition('/')[2] + ' ' + sys.argv[-1])\n")
    monkeypatch.setattr(cli_demo, "SCORECARD", program)
    settings = msgspec.structs.replace(
        WANTED, data_dir=str(tmp_path), source=(Source(name="meeting", kind="file", path="x", pace="realtime"),)
    )
    (settings.streams / "s").mkdir(parents=True)
    (settings.streams / "s" / "anchors.jsonl").write_bytes(msgspec.json.encode(anchor(0, 100.0)) + b"\n")
    started = m.StreamStarted(source="meeting", lane="live", started_ns=0)
    minutes = m.Summary(first="s:0", last="s:0", bullets=(), model="m", coverage=1.0, span=(0, 5 * SECOND))
    bodies = [started, text(0, 5), translation(0), m.SpeakerTurn(span=(0, SECOND), speaker="S1", provisional=False)]
    bodies += [minutes, m.StreamEnded(end=5 * SECOND, reason="end of file")]
    events = [event(i, body, 105.0 + i) for i, body in enumerate(bodies, 1)]
    watch: Any = Watched(events, beat())
    cli_demo.export(watch, settings, tmp_path / "exports")
    files = {p.name: p.read_text() for p in (tmp_path / "exports").iterdir()}
    assert files.keys() == {f"meeting.{form}" for form in (*cli_demo.FORMATS, "pt.srt")}
    assert " --> " in files["meeting.srt"] and "S1: x" in files["meeting.pt.srt"] and "S1" in files["meeting.rttm"]
    lines = cli_demo.scorecard(watch, settings, tmp_path / "exports", ["--set", "a=b"])
    told = dict(line.strip().split("  ", 1) for line in lines[1:])
    assert {name: figure.strip() for name, figure in told.items()} == {
        "words": "of meeting.json a=b",
        "coverage": "text 0.0 s  silence 0.0 s  suppressed 0.0 s  gap 0.0 s  pending 0.0 s",
        "swaps": "2; minutes written: 1",
        "caption delay": "median 3.0 s, worst 3.0 s after the last word, while models load, too",
        "delay to pt": "median 1.0 s, worst 1.0 s after the caption that brings the sentence's last word",
    }


# From the journal


def event(seq: int, body: m.Body, at_s: float, producer: str = "transcriber") -> m.Event:
    kind = str(type(body).__struct_config__.tag)
    at_ns, raw = round(at_s * SECOND_NS), m.encode(body)
    return m.Event(seq=seq, prev=0, stream="s", kind=kind, producer=producer, n=seq, at_ns=at_ns, body=raw)


def text(first_s: int, last_s: int, revision: int = 0) -> m.Transcript:
    span = (first_s * SECOND, last_s * SECOND)
    words = (m.Word(text=" a", span=(span[0], span[1] - SECOND), p=1.0),)
    return m.Transcript(
        segment=f"s:{span[0]}", span=span, text="a", language="en", words=words, model="m", revision=revision
    )  # fmt: skip


def anchor(sample: int, wall_s: float) -> backlog.Anchor:
    return backlog.Anchor(sample=sample, wall_ns=round(wall_s * SECOND_NS), boot_ns=0, boot_id="b")


def test_a_caption_is_late_from_its_last_word_by_the_nearest_anchor() -> None:
    told = [event(1, text(0, 5), 106.5), event(2, text(60, 65), 167.0), event(3, text(0, 5, revision=1), 200.0)]
    anchors = [anchor(0, 100.0), anchor(60 * SECOND, 161.0)]
    assert late_s(told, anchors, 1.0) == pytest.approx([2.5, 2.0]), "a correction is no late caption"
    assert late_s(told[:1], anchors[:1], 4.0) == pytest.approx([5.5])
    assert late_s(told, anchors, 0.0) == late_s(told, [], 1.0) == [], "as fast as it goes: nothing is late"


def translation(first_s: int, *goes_on: str, target: str = "pt", words: str = "x", place: int = 0) -> m.Translation:
    return m.Translation(
        segment=f"s:{first_s * SECOND}", revision=0, target=target, text=words, goes_on=goes_on, place=place
    )  # fmt: skip


def test_a_translation_is_late_from_the_caption_with_its_last_word() -> None:
    told = [
        event(1, text(0, 5), 10.0),
        event(2, text(6, 9), 14.0),
        event(3, translation(0, f"s:{6 * SECOND}/0"), 14.5, "translator.pt"),
        event(4, translation(6, place=1), 15.0, "translator.pt"),
        event(5, translation(0, target="en"), 99.0, "translator.en"),
        event(6, translation(0, f"s:{6 * SECOND}/0"), 50.0, "translator.pt"),
        event(7, translation(6, words="", place=2), 60.0, "translator.pt"),
    ]
    assert translated_late_s(told, "pt") == pytest.approx([0.5, 1.0]), "what is translated anew is not late"
    assert translated_late_s(told, "en") == pytest.approx([89.0])


def test_median_and_worst_in_words() -> None:
    assert middle_and_worst([3.0, 1.0, 2.0]) == "median 2.0 s, worst 3.0 s"
    assert middle_and_worst([]) == "not known"


# When it is over

WANTED = msgspec.structs.replace(Settings(), translate=msgspec.structs.replace(Settings().translate, targets=("pt",)))
PLACES = {
    "transcriber": {"audio": 100, "meta": 1},
    "translator.pt": {"transcript": 9},
    "diarizer": {"audio": 100, "meta": 2},
    "summarizer": {"transcript": 7},
}


def beat(**changed: Any) -> m.StreamBeat:
    places: dict[str, dict[str, int]] = changed.pop("places", PLACES)
    return m.StreamBeat(
        source="meeting", lane="live", ended=changed.pop("ended", True), audio_head=100, lag_s=0.0,
        heads={"transcript": 7, "stream_ended": 9} | changed, coverage=m.Coverage(),
        producers={name: m.ProducerBeat(n=1, positions=at) for name, at in places.items()},
    )  # fmt: skip


def test_it_is_over_when_everybody_is_done() -> None:
    assert over(beat(), WANTED)
    assert not over(beat(ended=False), WANTED)
    for name, behind in {"transcriber": {"audio": 99}, "translator.pt": {"transcript": 8}, "diarizer": {"meta": 1},
                         "summarizer": {"transcript": 6}}.items():  # fmt: skip
        assert not over(beat(places=PLACES | {name: behind}), WANTED), name
        assert not over(beat(places={k: v for k, v in PLACES.items() if k != name}), WANTED), name


class Turns:
    """Stand-in for launcher, feed and clock of a demo: what its turns see, and whether they have ended it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told = m.Beat(protocol=1, journal="j", head=0, at_ns=0, streams={"s": beat()}, workers={}, captures={})
        self.captions = SimpleNamespace(beat=told, gpu=None, lines=list)
        self.slots, self.all_up, self.stopped, self.now_s = list[Any](), True, False, 0.0
        monkeypatch.setattr("common.demo.time", SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr("common.demo.FeedClient", lambda settings: SimpleNamespace(poll=lambda timeout_s: []))
        monkeypatch.setattr("common.demo.console.Captions", lambda settings, after: self.captions)
        one = Source(name="meeting", kind="file", path="x", pace="max")
        self.demo = Demo(msgspec.structs.replace(WANTED, source=(one,)), print)

    def stop(self) -> None:
        self.stopped = True

    def turn(self, now_s: float, resume_in_s: float) -> bool:
        """Has it ended?"""
        self.now_s, self.captions.gpu = now_s, SimpleNamespace(captions_resume_in_s=resume_in_s)
        self.demo.turn(self)  # type: ignore[arg-type]
        return self.stopped


def test_it_ends_when_captions_are_back(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch)
    assert not turns.turn(1.0, 3.0) and not turns.turn(2.0, 0.0)
    assert turns.turn(3.0, -1.0) and turns.demo.finished


def test_captions_that_do_not_come_back_hold_up_nothing_that_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch)
    assert not turns.turn(1.0, 3.0) and not turns.turn(1.0 + Demo.BACK_S, 3.0)
    assert turns.turn(1.1 + Demo.BACK_S, 3.0) and turns.demo.finished
    assert Demo.BACK_S < Demo.STUCK_S


def test_nobody_waits_for_who_is_not_there() -> None:
    alone = Settings()
    off = msgspec.structs.replace
    alone = off(alone, summary=off(alone.summary, enabled=False), speakers=off(alone.speakers, enabled=False))
    assert over(beat(places={"transcriber": {"audio": 100}}), alone)
