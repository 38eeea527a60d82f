"""Who said it, on the page: it comes after the words and may change; what a person says there is an event."""

from __future__ import annotations

import re
import time

from common import messages as m
from common.feed_client import Appender, replay
from tests.conftest import Processes
from tests.pages import STREAM, Page, Producer, lasting_port, until
from tests.standin_turns import StandinTurns


def test_captions_come_at_once_and_their_speakers_when_they_are_known(processes: Processes, producer: Producer) -> None:
    page, turns = Page(processes), StandinTurns(producer.settings, STREAM)
    producer.append(m.StreamStarted(source="mic", lane="live", started_ns=time.time_ns()))
    events = page.events()
    seq = producer.say("hello")
    row = next(d for kind, i, d in events if kind == "message" and i == seq)
    assert row["runs"] == []
    segment = row["segment"]
    turns.turn("S1", 0, 1)
    told = until(events, "speakers", lambda d: segment in d["runs"])
    assert told == {"stream": STREAM, "runs": {segment: [["S1", "hello"]]}, "names": {}}
    turns.relabel("S1", "S2", 0, 1)
    assert until(events, "speakers", lambda d: d["runs"])["runs"] == {segment: [["S2", "hello"]]}
    turns.append(m.SpeakerName(speaker="S2", name="Ann"))
    assert until(events, "speakers", lambda d: d["names"]) == {"stream": STREAM, "runs": {}, "names": {"S2": "Ann"}}
    again = page.events(0)  # a page that was away while all that happened
    told = until(again, "speakers", lambda d: d["names"])
    assert told == {"stream": STREAM, "runs": {segment: [["S2", "hello"]]}, "names": {"S2": "Ann"}}
    fresh = page.events()
    row = next(d for kind, i, d in fresh if kind == "message" and i == seq)
    assert row["runs"] == [["S2", "hello"]]
    turns.close()


def test_a_viewer_that_was_killed_knows_the_speakers_again(processes: Processes, producer: Producer) -> None:
    page, turns = Page(processes, port=lasting_port()), StandinTurns(producer.settings, STREAM)
    turns.turn("S1", 0, 9)
    seq = producer.say("hello")
    until(page.events(0), "speakers", lambda d: d["runs"])
    page.process.kill()
    page = Page(processes, port=page.port)
    events = page.events(0)
    assert next(d for kind, i, d in events if kind == "message" and i == seq)["text"] == "hello"
    until(events, "speakers", lambda d: [["S1", "hello"]] in d["runs"].values())
    turns.close()


def test_a_name_said_in_the_page_is_an_event_that_comes_back(processes: Processes, producer: Producer) -> None:
    page, turns = Page(processes), StandinTurns(producer.settings, STREAM)
    turns.turn("S1", 0, 1)
    turns.turn("S2", 2, 3)
    events = page.events(0)
    producer.say("hello")
    producer.say("you")
    until(events, "speakers", lambda d: d["runs"])
    assert page.post({"stream": STREAM, "speaker": "S1", "name": " Ann  <b> "}) == (204, "")
    assert until(events, "speakers", lambda d: d["names"])["names"] == {"S1": "Ann <b>"}
    assert page.post({"stream": STREAM, "speaker": "S2", "into": "S1"}) == (204, "")
    told = until(events, "speakers", lambda d: d["runs"])
    assert list(told["runs"].values()) == [[["S1", "you"]]]
    said = list(replay(producer.settings, kinds=("speaker_name", "relabel")))
    assert all(re.fullmatch(r"cli\.[0-9a-f]{12}", e.producer) for e in said) and len(said) == 2
    turns.close()


def test_what_no_page_of_ours_says_changes_nothing(processes: Processes, producer: Producer) -> None:
    page, turns = Page(processes), StandinTurns(producer.settings, STREAM)
    turns.turn("S1", 0, 1)
    producer.say("hello")
    until(page.events(0), "speakers", lambda d: d["runs"])
    good = {"stream": STREAM, "speaker": "S1", "name": "Ann"}
    own = f"127.0.0.1:{page.port}"
    assert page.get("/speakers")[0] == 405
    assert page.post(good, Origin="http://elsewhere.example")[0] == 403
    assert page.post(good, Origin="null")[0] == 403
    assert page.post(good, Origin=f"http://127.0.0.1:{page.port + 1}")[0] == 403
    assert page.post(good, Host="rebound.example", Origin="http://rebound.example")[0] == 421
    for plain in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert page.post(good, Content_Type=plain)[0] == 415, "a form of another page can send it"
    assert page.post(good | {"name": "x" * 5000})[0] == 413
    wrong = ("{", "[]", {}, good | {"x": 1}, good | {"into": "S2"}, {"stream": STREAM, "speaker": "S1"})
    for body in (*wrong, good | {"name": "S7"}, good | {"name": "x" * 61}, good | {"name": 7}):
        assert page.post(body)[0] == 400, body
    for body in (good | {"speaker": "S9"}, good | {"speaker": ""}, good | {"stream": "another"}):
        assert page.post(body) == (404, "no such speaker is shown")
    assert page.post({"stream": STREAM, "speaker": "S1", "into": "S9"})[0] == 404
    assert page.post({"stream": STREAM, "speaker": "S1", "into": "S1"})[0] == 400
    assert list(replay(producer.settings, kinds=("speaker_name", "relabel"))) == []
    assert page.post(good, Origin=f"http://{own}", Content_Type="application/json; charset=utf-8")[0] == 204
    turns.close()


def test_a_token_is_needed_to_say_something(processes: Processes, producer: Producer) -> None:
    page, turns = Page(processes, token="geheim"), StandinTurns(producer.settings, STREAM)
    turns.turn("S1", 0, 1)
    good = {"stream": STREAM, "speaker": "S1", "name": "Ann"}
    for path in ("/speakers", "/speakers?token=wrong"):
        assert page.post(good, path)[0] == 401
    assert page.post(good, "/speakers?token=geheim") == (404, "no such speaker is shown"), "no page has asked for it"
    assert page.post(good, "/speakers?token=geheim", Origin="http://elsewhere.example")[0] == 403
    turns.close()


def test_ten_streams_on_one_page_have_their_speakers(processes: Processes, producer: Producer) -> None:
    page, appender = Page(processes), Appender(producer.settings, "transcriber")
    streams = [f"s{i}-20250101T000000Z" for i in range(10)]
    for stream in streams:
        turns = StandinTurns(producer.settings, stream)
        turns.turn("S1", 0, 1)
        turns.close()
        said = m.Transcript(segment=m.segment_id(stream, 0), span=(0, 16_000), text="hello", language="en", model="x")
        assert isinstance(appender.append(stream, 0, {"audio": 16_000}, (said,)), m.At)
    events, missing = page.events(0), set(streams)
    while missing:
        missing.discard(until(events, "speakers", lambda d: d["runs"])["stream"])
    for stream in streams:
        assert page.post({"stream": stream, "speaker": "S1", "name": "Ann"}) == (204, "")
        assert until(events, "speakers", lambda d: d["names"])["stream"] == stream
    appender.close()
