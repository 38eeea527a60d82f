"""What the transcriber says of silence: only what it has listened to, nothing while an utterance waits, and at once.

The VAD is a stand-in that hears loudness; backlog, cuts and the loop over streams are the real ones.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from common import backlog
from common import messages as m
from common.process import Log
from common.settings import Settings
from tests.standin_hearing import StandInTranscriber
from workers.session import Utterance
from workers.vad import FRAME, Floats, Vad

pytestmark = pytest.mark.joined
RATE = m.SAMPLE_RATE


class StandInVad(Vad):
    """Voice is whatever is not digital silence."""

    def __init__(self) -> None:
        pass

    def step(self, frame: Floats, state: Floats) -> tuple[float, Floats]:
        return float(frame.any()), state


class Room:
    """One live stream, the transcriber that listens to it without a lease, and how often it told the arbiter."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(data_dir=str(folder))
        self.folder = self.settings.streams / "s"
        self.writer = backlog.Writer(self.folder, 60 * RATE)
        meta = backlog.Meta(stream="s", source="s", lane="live", origin="", started_ns=0, resumable=False)
        backlog.write_meta(self.folder, meta)
        process: Any = SimpleNamespace(settings=self.settings, log=Log("test"), run=folder)
        self.ear = StandInTranscriber(process, 1)
        self.ear.vad = StandInVad()
        self.session = self.ear.open(self.folder, meta, m.At(n=0, positions={}, state=b"", head=0))
        self.ear.sessions["s"] = self.session
        self.told = 0
        poison = SimpleNamespace(begin=lambda *_, **__: True)
        self.runner: Any = SimpleNamespace(ready=False, poison=poison, control=SimpleNamespace(changed=self._changed))

    def _changed(self) -> None:
        self.told += 1

    def sounds(self, seconds: float, voice: bool) -> None:
        self.writer.append(self.writer.end, np.full(round(seconds * RATE), 1000 * voice, "<i2").tobytes())

    def turn(self) -> float:
        self.ear.turn(self.runner)
        return self.ear.silence_s()

    def decoded(self) -> None:
        """The utterance that waits is journaled."""
        work = self.session.scan()
        assert isinstance(work, Utterance)
        self.session.moved(m.At(n=1, positions={"audio": work.span[1]}, state=b"", head=1))


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_it_is_not_silent_while_an_utterance_is_under_way_or_waits(room: Room) -> None:
    room.sounds(1.0, voice=True)
    room.sounds(0.3, voice=False)
    assert room.turn() == 0.0, "it may go on any moment"
    room.sounds(0.7, voice=False)
    assert room.turn() == 0.0, "it is not decoded yet"
    room.decoded()
    assert room.turn() == pytest.approx(1.0, abs=0.05)


def test_what_came_meanwhile_is_no_silence_before_somebody_has_listened(room: Room) -> None:
    room.sounds(1.0, voice=True)
    room.sounds(0.6, voice=False)
    room.sounds(0.3, voice=True)  # in memory, behind the cut
    room.turn()
    room.decoded()
    assert room.session.silence_s <= 0.6
    room.sounds(0.4, voice=True)  # on disk
    assert room.ear.silence_s() == 0.0
    assert room.turn() == 0.0


def test_a_pause_is_told_when_it_is_long_enough_and_when_it_is_over(room: Room) -> None:
    said = []
    for voice in (*[False] * 10, True, True):
        room.sounds(0.1, voice)
        room.turn()
        said.append(room.told)
    assert said == [0] * 7 + [1] * 3 + [2, 2], "the next Status may be a second away"


def test_what_is_owed_is_told_at_once(room: Room) -> None:
    """A burst that has waited for long begins in mid-speech, but not while a caption is due."""
    room.sounds(1.0, voice=True)
    room.turn()
    assert not room.ear.owes() and room.told == 0, "it is under way"
    room.sounds(0.6, voice=False)
    room.turn()
    assert room.ear.owes() and room.told == 1
    room.decoded()
    room.turn()
    assert not room.ear.owes() and room.told == 2


def test_silence_in_the_journal_is_no_end_of_the_pause(room: Room) -> None:
    room.sounds(5.5, voice=False)
    step = room.session.scan()
    assert step is not None and not isinstance(step, Utterance)
    assert room.session.silence_s > 5.0


@pytest.mark.parametrize("at_once", [True, False])
def test_a_cut_knows_which_audio_made_it_certain(tmp_path: Path, at_once: bool) -> None:
    """However late it is read: what a caption's delay is counted from owes nothing to a clock."""
    room = Room(tmp_path)
    room.sounds(1.0, True)
    for _ in range(4):
        room.sounds(0.5, False)
        if not at_once:
            room.session.scan()
    found = room.session.scan()
    assert isinstance(found, Utterance)
    assert found.certain == found.voiced[1] + room.ear.rules.end_silence * FRAME


def test_at_the_end_of_a_stream_its_last_sample_makes_the_cut_certain(tmp_path: Path) -> None:
    room = Room(tmp_path)
    room.sounds(1.0, True)
    room.session.meta = msgspec.structs.replace(room.session.meta, ended=True, end=room.writer.end)
    backlog.write_meta(room.folder, room.session.meta)
    found = room.session.scan()
    assert isinstance(found, Utterance) and found.certain == room.writer.end
