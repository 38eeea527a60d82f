"""`swapscribe speakers` as a person uses it, over a real feed; the diarizer is a stand-in that appends turns."""

from __future__ import annotations

import stat
from collections.abc import Iterator

import pytest

from common import messages as m
from common import voiceprints
from common.feed_client import Appender, replay
from common.settings import Settings, UserError
from common.voiceprints import Voiceprint, proper_name
from tests.conftest import Processes, wait_for
from tests.standin_turns import StandinTurns
from tests.test_cli import Swapscribe


@pytest.fixture
def turns(processes: Processes, settings: Settings) -> Iterator[StandinTurns]:
    """A stream `talk` in which S1 spoke for 30 s, and S2 for 10."""
    feed = processes.start("workers.feed")
    wait_for(lambda: "serving" in feed.output(), what="the feed")
    transcriber = Appender(settings, "transcriber")
    began = m.StreamStarted(source="talk", lane="live", started_ns=1)
    assert isinstance(transcriber.append("talk", 0, {}, [began]), m.At)
    transcriber.close()
    turns = StandinTurns(settings, "talk")
    turns.turn("S1", 0, 20)
    turns.turn("S2", 20, 30)
    turns.turn("S1", 25, 35)
    yield turns
    turns.close()


@pytest.fixture
def swapscribe(processes: Processes, settings: Settings) -> Swapscribe:
    return Swapscribe(processes, settings)


def said(swapscribe: Swapscribe, *args: str) -> str:
    done = swapscribe("speakers", *args)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def refused(swapscribe: Swapscribe, *args: str) -> str:
    done = swapscribe("speakers", *args)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done
    return done.stderr.removeprefix("swapscribe: ").strip()


@pytest.mark.processes
def test_names_and_merges_are_events_and_hold_for_what_comes(swapscribe: Swapscribe, turns: StandinTurns) -> None:
    rows = [line.split() for line in said(swapscribe, "list").splitlines()]
    assert rows == [["talk:"], ["S1", "-", "30.0", "s", "75%"], ["S2", "-", "10.0", "s", "25%"]]
    assert said(swapscribe, "rename", "S2", " Ann  B.") == "talk: S2 is called Ann B.\n"
    assert "S2   Ann B." in said(swapscribe, "list", "talk")
    assert said(swapscribe, "rename", "ann b.", "Bea", "--stream", "talk") == "talk: S2 is called Bea\n"
    turns.turn("S3", 40, 50)
    assert said(swapscribe, "merge", "S3", "Bea") == "talk: what S3 said is Bea's now\n"
    turns.turn("S3", 60, 70)
    rows = [line.split()[:3] for line in said(swapscribe, "list").splitlines()]
    assert rows == [["talk:"], ["S1", "-", "30.0"], ["S2", "Bea", "30.0"]]
    assert refused(swapscribe, "merge", "S3", "S2") == "S3 and S2 are one speaker already: S2"
    assert said(swapscribe, "rename", "S3", "") == "talk: S2 has no name any more\n"
    events = [e for e in replay(swapscribe.settings, stream="talk") if e.producer.startswith("cli.")]
    assert [e.kind for e in events] == ["speaker_name", "speaker_name", "relabel", "speaker_name"]
    assert len({e.producer for e in events}) == 4, "each is an append of its own, which can be sent twice"


@pytest.mark.processes
def test_every_mistake_is_one_line_that_says_what_to_do(swapscribe: Swapscribe, turns: StandinTurns) -> None:
    assert refused(swapscribe, "rename", "S9", "Ann") == "no speaker 'S9' in talk; there are: S1, S2"
    assert refused(swapscribe, "list", "none") == "no stream 'none'; there are: swapscribe streams"
    assert refused(swapscribe, "rename", "S1", "S2") == "S2 is no name: speakers without one are called so"
    assert refused(swapscribe, "rename", "S1", "x" * 61) == "a name has at most 60 characters"
    said(swapscribe, "rename", "S1", "Ann")
    said(swapscribe, "rename", "S2", "ann")
    assert refused(swapscribe, "merge", "Ann", "S2") == "S1, S2 are all called Ann: say which one, by id"
    assert refused(swapscribe, "forget", "Ann") == "no voiceprint of 'Ann'; there are: none"
    assert "No such file" in refused(swapscribe, "enroll", "none.wav", "--name", "Ann")
    assert "--name is empty" in refused(swapscribe, "enroll", "none.wav", "--name", " ")


@pytest.mark.processes
def test_without_a_feed_voiceprints_are_still_listed_and_forgotten(swapscribe: Swapscribe) -> None:
    assert refused(swapscribe, "list") == "the feed does not answer; see: swapscribe status"
    voiceprints.write(swapscribe.settings, voice("Ann"))
    assert said(swapscribe, "list").split()[:4] == ["voiceprint", "Ann", "12.5", "s"]
    assert said(swapscribe, "forget", "Ann") == "Ann: the voiceprint is deleted\n"
    assert refused(swapscribe, "list") == "the feed does not answer; see: swapscribe status"


def voice(name: str) -> Voiceprint:
    return Voiceprint(name=name, model="campplus", embedding=(0.6, 0.8), seconds=12.5, made_ns=1)


NAMES = ("Ann", "../../etc/passwd", ".hidden", "100 % Bo", "%2Fx", "a\0b", "李小龍" * 20, "x" * 60)


@pytest.mark.pure
def test_a_voiceprint_is_private_and_its_name_leads_nowhere(settings: Settings) -> None:
    for name in NAMES:
        path = voiceprints.write(settings, voice(name))
        assert path.parent == settings.data / "voiceprints" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    (path.parent / "broken.json").write_text("{")
    assert [v.name for v in voiceprints.read(settings)] == sorted(NAMES)
    again = Voiceprint(name="Ann", model="other", embedding=(1.0,), seconds=9.0, made_ns=2)
    voiceprints.write(settings, again)
    assert [v for v in voiceprints.read(settings) if v.name == "Ann"] == [again]
    path.with_name("Ann.json.new").write_bytes(b"of a write that was killed")
    voiceprints.forget(settings, "Ann")
    assert [v.name for v in voiceprints.read(settings)] == sorted(set(NAMES) - {"Ann"})
    assert not list(path.parent.glob("Ann*"))
    with pytest.raises(UserError, match="no voiceprint of 'Ann'"):
        voiceprints.forget(settings, "Ann")


@pytest.mark.pure
@pytest.mark.parametrize("bad", ["S1", "S27", "s1", " s27 ", "ſ1", "?", "a\x07b", "x" * 61])
def test_what_is_no_name(bad: str) -> None:
    with pytest.raises(ValueError):
        proper_name(bad)
    assert proper_name(" Sam\n Smith ") == "Sam Smith" and proper_name("  ") == ""
