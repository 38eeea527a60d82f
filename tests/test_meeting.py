"""Composed meetings: where words are said to be there is sound, elsewhere none, and it is the same each time."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scores import rttm
from examples.make_meeting import HERE, MEETINGS, Meeting, compose, turns_of
from tests.conftest import ROOT
from tests.speakers import AROUND, PUBLIC_DOMAIN, Piece, Word, grouped, pieces, trimmed
from tests.speech import RATE, samples

pytestmark = pytest.mark.speech
ROOM = 1  # the largest sample where nobody speaks


@pytest.fixture(scope="module", params=MEETINGS)
def meeting(request: pytest.FixtureRequest) -> Meeting:
    return compose(request.param)


def covered(meeting: Meeting, around: int) -> np.ndarray:
    """(n,) bool: samples inside a turn or `around` of one"""
    inside = np.zeros(len(meeting.samples), np.bool_)
    for start, end, _ in meeting.turns:
        inside[max(0, start - around) : end + around] = True
    return inside


def loud(audio: np.ndarray) -> float:
    return float(np.sqrt(np.square(audio.astype(np.float64)).mean()))


def test_nobody_is_heard_outside_the_turns(meeting: Meeting) -> None:
    outside = meeting.samples[~covered(meeting, AROUND)]
    assert len(outside) > RATE
    assert np.abs(outside).max() <= ROOM


def test_every_turn_begins_and_ends_with_sound(meeting: Meeting) -> None:
    frame = RATE // 100
    for start, end, who in meeting.turns:
        for at in (start, end - frame):
            assert loud(meeting.samples[at : at + frame]) > 20 * ROOM, f"{who} at {at / RATE:.2f} s"


def test_words_lie_inside_a_turn_of_their_speaker_one_after_the_other(meeting: Meeting) -> None:
    for who in {who for *_, who in meeting.turns}:
        turns = [(a, b) for a, b, speaker in meeting.turns if speaker == who]
        mine = [w for w, speaker in meeting.words if speaker == who]
        assert all(any(a <= w.start < w.end <= b for a, b in turns) for w in mine)
        assert all(a.end <= b.start for a, b in pairwise(mine))


def test_the_words_are_those_of_the_recordings(meeting: Meeting) -> None:
    for who in {who for *_, who in meeting.turns}:
        told = [w.text for w, speaker in meeting.words if speaker == who]
        known = [[w.text for w in p.words] for p in pieces(who)]
        whole = [w for p in known for w in p]
        assert any(whole[i : i + len(told)] == told for i in range(len(whole))), who


def test_speakers_come_back_and_at_most_two_speak_at_once(meeting: Meeting) -> None:
    order = [who for *_, who in meeting.turns]
    for who in set(order):
        at = [i for i, speaker in enumerate(order) if speaker == who]
        assert len(at) == 1 or at[-1] - at[0] >= len(at), f"{who} never comes back"
    count = np.zeros(len(meeting.samples), np.int8)
    for start, end, _ in meeting.turns:
        count[start:end] += 1
    assert count.max() == 2


def test_what_is_asked_of_the_meetings() -> None:
    for name, speakers, seconds in (("four", 4, 100), ("six", 6, 180)):
        made = compose(name)
        assert len({who for *_, who in made.turns}) == speakers
        assert len(made.samples) > seconds * RATE
        assert 0.03 < made.overlap < 0.15
    assert {who for *_, who in compose("meeting").turns} == set(PUBLIC_DOMAIN)


def test_another_run_writes_the_same_bytes(tmp_path: Path) -> None:
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        argv = [sys.executable, "-m", "examples.make_meeting", "meeting", "four", str(tmp_path / part)]
        subprocess.run(argv, cwd=ROOT, check=True, capture_output=True)
    made = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert made == [f"{name}.{kind}" for name in ("four", "meeting") for kind in ("flac", "rttm", "tsv")]
    for name in made:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_bundled_one_is_what_the_script_makes() -> None:
    made = compose("meeting")
    # A decoder of MP3 on another machine may round otherwise: what is said when is the same, sound nearly.
    difference = samples(HERE / "meeting.flac").astype(np.int32) - made.samples
    assert np.abs(difference).max() <= 4
    told = rttm(HERE / "meeting.rttm")["meeting"]
    assert [(round(a * RATE), round(b * RATE), who) for a, b, who in told] == [
        (pytest.approx(a, abs=2), pytest.approx(b, abs=2), who) for a, b, who in made.turns
    ]
    rows = [line.split("\t") for line in (HERE / "meeting.tsv").read_text().splitlines()]
    assert [(who, text) for _, _, who, text in rows] == [(who, w.text) for w, who in made.words]


def piece(who: str, seconds: float) -> Piece:
    return Piece(who, np.zeros(round(seconds * RATE), np.int16), (Word("x", 0, 10),), 0.5)


@pytest.mark.parametrize("seed", range(20))
def test_everything_is_said_in_its_order_and_nobody_follows_himself(seed: int) -> None:
    from random import Random

    left = {who: [piece(who, 1.0 + i) for i in range(n)] for who, n in (("a", 5), ("b", 3), ("c", 4))}
    wanted = {who: [id(p) for p in some] for who, some in left.items()}
    turns = turns_of({who: list(some) for who, some in left.items()}, Random(seed))
    said: dict[str, list[int]] = {who: [] for who in left}
    for turn in turns:
        said[turn[0].speaker] += [id(p) for p in turn]
    assert said == wanted
    names = [turn[0].speaker for turn in turns]
    last = next(i for i in range(len(names)) if len(set(names[i:])) == 1)  # from here only one has something left
    assert all(a != b for a, b in pairwise(names[: last + 1]))


def test_a_word_is_cut_to_its_sound_and_pauses_part_pieces() -> None:
    frame = RATE // 100
    sound = np.zeros(300, np.bool_)
    sound[10:50] = sound[60:90] = sound[140:200] = True
    said = [Word("a", 0, 55 * frame), Word("b", 55 * frame, 120 * frame), Word("c", 120 * frame, 290 * frame)]
    cut = [trimmed(w, sound) for w in said]
    assert [(w.start // frame, w.end // frame) for w in cut] == [(10, 50), (60, 90), (140, 200)]
    assert [[w.text for w in group] for group in grouped(cut)] == [["a", "b"], ["c"]]
    faint = Word("d", 210 * frame, 220 * frame)
    assert trimmed(faint, sound) == faint, "a word that cannot be heard is not lost"
