"""`swapscribe export` as a person calls it: with a feed and without, into files, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common import cli_export, wire
from common import messages as m
from common.child import running
from common.cli import Given
from common.feed_client import Appender, FeedClient
from common.process import holder
from common.settings import Settings, Source
from tests.conftest import ROOT, Processes, Started, clean_environment, wait_for
from tests.fold import Subscriber
from tests.pages import STREAM, Producer
from tests.standin_turns import StandinTurns

pytestmark = pytest.mark.processes


class Said:
    """A stream that is told as it goes on: two captions, two speakers, a translation, a name."""

    def __init__(self, producer: Producer) -> None:
        self.settings, self.producer = producer.settings, producer
        producer.append(m.StreamStarted(source="mic", lane="live", started_ns=1_700_000_000_000_000_000))
        self.turns = StandinTurns(producer.settings, STREAM)
        producer.say("Good morning.")
        producer.say("Welcome.")
        self.turns.turn("S1", 0, 1)
        self.turns.turn("S2", 2, 3)
        self.turns.append(m.SpeakerName(speaker="S2", name="Ann"))
        self.translator = Appender(producer.settings, "translator.pt")
        self.n = 0
        self.translate(m.segment_id(STREAM, 0), "Bom dia.")

    def translate(self, segment: str, text: str, revision: int = 0) -> None:
        body = m.Translation(segment=segment, revision=revision, target="pt", text=text, source_language="en")
        answer = self.translator.append(STREAM, self.n, {}, (body,))
        assert isinstance(answer, m.At) and answer.n == self.n + 1
        self.n = answer.n

    def close(self) -> None:
        self.turns.close()
        self.translator.close()


@pytest.fixture
def said(producer: Producer) -> Iterator[Said]:
    said = Said(producer)
    yield said
    said.close()


def export(settings: Settings, *args: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "common.cli", "--data", settings.data_dir, "export", *map(str, args)]
    return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=60)


def test_with_and_without_a_feed_it_is_what_a_subscriber_has(said: Said, feed: Started, settings: Settings) -> None:
    client, subscriber = FeedClient(settings), Subscriber(STREAM)

    def follow(head: int) -> None:
        def caught_up() -> bool:
            for e in client.poll(0.1):
                if isinstance(e, m.Event):
                    subscriber.take(m.encode(e))
            return client.head >= head

        wait_for(caught_up, what="every event")

    first = m.segment_id(STREAM, 0)
    better = m.Transcript(
        segment=first,
        revision=1,
        supersedes=f"{first}/0",
        span=(0, m.SAMPLE_RATE),
        text="Good night.",
        language="en",
        model="y",
    )
    for change in (
        lambda: said.turns.append(m.Relabel(source="S1", target="S2")),
        lambda: said.producer.append(better),
        lambda: said.turns.append(m.SpeakerName(speaker="S2", name="Bo")),
    ):
        follow(change())
        done = export(settings, STREAM, "--format", "json", "--words")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == json.loads(json.dumps(subscriber.state()))
    said.translate(first, "Boa noite.", revision=1)
    texts = export(settings, "--lang", "pt")
    assert texts.stdout == "Bo: Boa noite.\n[en] Welcome.\n", "no stream named: the one that is open"
    assert "1 utterance has words without a translation into pt, at 00:02.0" in texts.stderr
    client.close()
    assert feed.stop() == 0
    alone = export(settings, STREAM, "--lang", "pt")
    assert (alone.returncode, alone.stdout, alone.stderr) == (0, texts.stdout, texts.stderr)
    assert running(wire.run_dir(settings)) == {}, "its feed has ended with it"


def test_without_a_feed_it_ends_and_holds_up_nothing_of_others(
    said: Said, feed: Started, processes: Processes, settings: Settings, folder: Path
) -> None:
    """A recording of another terminal, where neither feed nor launcher runs (any more)."""
    run, mic = wire.run_dir(settings), Source(name="mic", kind="pcm", path=str(folder / "mic"))
    os.mkfifo(mic.path)
    recording = processes.start("capture", "--source", "mic", settings=msgspec.structs.replace(settings, source=(mic,)))
    wait_for(lambda: holder(run, "capture@mic") == recording.pid, what="the recording")
    assert feed.stop() == 0
    since = run / "launcher.since"
    since.write_text("of a launcher that was killed")
    exporting = processes.start("common.cli", "export", STREAM, "--out", str(folder / "a.txt"))
    wait_for(lambda: holder(run, "feed") or not exporting.alive, what="its feed")
    assert holder(run, "launcher") is None, "run-all may begin meanwhile"
    assert exporting.wait() == 0, exporting.output()
    assert recording.alive and running(run) == {"capture@mic": recording.pid}
    assert since.read_text() == "of a launcher that was killed"
    recording.signal(signal.SIGTERM)
    assert recording.wait() == 0


def test_several_at_a_time_all_come_out(said: Said, feed: Started, processes: Processes, settings: Settings) -> None:
    """Each may have asked the feed of another one, which ends with that one."""
    assert feed.stop() == 0
    text = export(settings, STREAM).stdout
    several = [processes.start("common.cli", "export", STREAM) for _ in range(4)]
    assert [one.wait(60) for one in several] == [0] * 4, [one.output() for one in several]
    assert {one.output() for one in several} == {text}
    assert running(wire.run_dir(settings)) == {}


def test_a_feed_that_ends_while_it_is_asked_is_followed_by_one_of_its_own(
    said: Said, feed: Started, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens to an export that asks the feed of another one."""
    asked, answers = cli_export._asked, list[bool]()

    def first_time_too_late(*args: Any) -> Any:
        answers.append(feed.alive and feed.stop() == 0)
        return None if answers == [True] else asked(*args)

    monkeypatch.setattr(cli_export, "_asked", first_time_too_late)
    found = cli_export.events(Given(None, (), settings.data_dir), STREAM)
    assert answers[0] and found and running(wire.run_dir(settings)) == {}


def test_files_are_named_by_what_is_in_them_and_replaced_whole(said: Said, settings: Settings, folder: Path) -> None:
    for form, begins in (
        ("srt", "1\n00:00:00,000 --> "), ("vtt", "WEBVTT\n\n00:00:00.000 --> "), ("txt", "S1: Good morning.\n"),
        ("json", '{"stream":"'), ("md", "# mic\n"), ("rttm", f"SPEAKER {STREAM} 1 0.000 1.000 <NA> <NA> S1 "),
    ):  # fmt: skip
        file = folder / f"talk.{form}"
        file.write_text("old")
        done = export(settings, STREAM, "--out", file)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert file.read_text().startswith(begins) and f"{STREAM}: {file}" in done.stderr
    assert [p.name for p in folder.glob("*.new")] == []
    for name, more, begins in (
        ("TALK.SRT", (), "1\n00:00:00,000 --> "), ("talk", (), "S1: Good morning.\n"),
        ("talk.docx", ("--format", "txt"), "S1: Good morning.\n"),
    ):  # fmt: skip
        assert export(settings, STREAM, "--out", folder / name, *more).returncode == 0
        assert (folder / name).read_text().startswith(begins)


def test_a_link_stays_and_what_is_no_file_is_written_to(said: Said, settings: Settings, folder: Path) -> None:
    wanted = export(settings, STREAM).stdout
    file, link, fifo = folder / "file.txt", folder / "link.txt", folder / "fifo"
    file.write_text("old")
    link.symlink_to("file.txt")
    assert export(settings, STREAM, "--out", link).returncode == 0
    assert link.is_symlink() and file.read_text() == wanted
    os.mkfifo(fifo)
    reader = subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE, text=True)
    assert export(settings, STREAM, "--out", fifo, "--format", "txt").returncode == 0
    assert reader.communicate(timeout=20)[0] == wanted and fifo.is_fifo()
    assert export(settings, STREAM, "--out", "/dev/stdout").stdout == wanted
    argv = [sys.executable, "-m", "common.cli", "--data", settings.data_dir, "export", STREAM, "--out", "/dev/stdout"]
    with file.open("a") as log:
        subprocess.run(argv, stdout=log, cwd=ROOT, env=clean_environment(), timeout=60, check=True)
    assert file.read_text() == 2 * wanted, "a file that the output goes to is not replaced"


def test_what_cannot_be_done_is_one_line(said: Said, settings: Settings, folder: Path) -> None:
    for args, line in (
        (("nobody",), "nobody is not in the journal; there are: swapscribe streams"),
        ((STREAM, "--words"), "--words needs --format json; txt has no place for them"),
        ((STREAM, "--lang", "Portuguese"), "--lang: 'Portuguese' is neither auto nor a code such as en or pt"),
        (
            (STREAM, "--out", folder / "talk.Docx"),
            f"--out {folder / 'talk.Docx'}: .docx is none of srt, vtt, txt, json, md, rttm; "
            "--format says what it is to be",
        ),
        (
            (STREAM, "--out", folder / "no" / "talk.srt"),
            f"--out {folder / 'no' / 'talk.srt'}: No such file or directory",
        ),
    ):
        done = export(settings, *args)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"swapscribe: {line}\n")
    asker = wire.Requester(wire.ipc(settings, "append"))
    assert isinstance(asker.request(m.Purge(stream=STREAM), 5.0), m.Done)
    asker.close()
    done = export(settings, STREAM)
    assert (done.returncode, done.stderr) == (2, f"swapscribe: {STREAM} was purged; there are: swapscribe streams\n")


def test_where_nothing_was_ever_kept_nothing_is_made(settings: Settings) -> None:
    done = export(settings)
    assert done.returncode == 2 and done.stderr == f"swapscribe: nothing is kept in {settings.data}: no journal\n"
    assert not settings.data.exists()


@pytest.mark.parametrize("args", [("export",), ("export", "--format", "json"), ("models", "list")])
def test_output_that_nobody_reads_is_no_failure(said: Said, args: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "common.cli", "--data", said.settings.data_dir, *args]
    with open(writer, "wb") as gone:
        done = subprocess.run(argv, stdout=gone, stderr=subprocess.PIPE, cwd=ROOT, env=clean_environment(), timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
