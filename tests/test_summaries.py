"""Minutes through real processes: feed, arbiter, the summarizer with SmolLM2 on the simulated card, the command line.

The test stands for the transcriber: it appends what the recording says.
"""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from common import messages as m
from common.feed_client import Appender
from common.fetch import fetch
from common.settings import GpuSettings, Settings, SummarySettings
from tests.conftest import ROOT, Processes, clean_environment, wait_for
from tests.system import Following, body
from tests.test_minutes import RATE, spoken
from tests.test_summarizer import RECORDING

pytestmark = [pytest.mark.processes, pytest.mark.speech]
STREAM = "s"


class Transcriber:
    """Appends in the transcriber's name."""

    def __init__(self, settings: Settings) -> None:
        self._appender, self.n, self.at = Appender(settings, "transcriber"), 0, 0
        self._add(0, m.StreamStarted(source="t", lane="live", started_ns=1))

    def _add(self, upto: int, *bodies: m.Body) -> None:
        answer = self._appender.append(STREAM, self.n, {"audio": upto}, bodies, timeout_s=20.0)
        assert isinstance(answer, m.At) and answer.n == self.n + 1, answer
        self.n, self.at = answer.n, upto

    def purged(self) -> None:
        """A purge counts as two appends; a stream of this name that comes again is new."""
        self.n, self.at = self.n + 2, 0
        self._add(0, m.StreamStarted(source="t", lane="live", started_ns=2))

    def say(self, *texts: str, seconds: float = 6.0) -> None:
        for text in texts:
            end = self.at + round(seconds * RATE)
            self._add(end, spoken(self.at, end, text))

    def silent(self, seconds: float) -> None:
        end = self.at + round(seconds * RATE)
        self._add(end, m.Silence(span=(self.at, end)))

    def end(self) -> None:
        self._add(self.at, m.StreamEnded(end=self.at, reason="end of the test"))


def test_minutes_at_intervals_when_asked_and_at_the_end_over_a_kill(processes: Processes, settings: Settings) -> None:
    fetch(Settings(), ["smollm2-135m"])
    settings = msgspec.structs.replace(
        settings,
        gpu=GpuSettings(device="simulated", patience_s=0.2, silence_s=0.0),
        summary=SummarySettings(interval_s=60.0, max_new_tokens=16, context_tokens=1024, prefill_tokens=64),
    )
    feed = processes.start("workers.feed", settings=settings)
    processes.start("arbiter", settings=settings)
    first = processes.start("workers.summarizer", settings=settings)
    wait_for(lambda: "serving" in feed.output(), what="the feed")
    transcriber = Transcriber(settings)
    follower = Following(settings)

    def swapscribe(*args: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "common.cli", "--config", str(processes.config(settings)), *args]
        return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=60)

    def minutes(count: int) -> list[m.Summary]:
        def found() -> list[m.Summary] | None:
            all_of_them = [body(e) for e in follower.events[:] if e.kind == "summary"]
            return all_of_them if len(all_of_them) >= count else None

        return wait_for(found, 90.0, f"{count} summaries")

    assert "nothing was said in s yet" in swapscribe("summarize", "now").stderr
    assert "no minutes of s yet" in swapscribe("summaries").stderr
    transcriber.say(*RECORDING[:2])
    transcriber.silent(60.0)
    (interval,) = minutes(1)
    assert (interval.reason, interval.span, interval.first) == ("interval", (0, 60 * RATE), "s:0")
    assert interval.bullets and interval.bullets[0].segments

    transcriber.say(*RECORDING[2:4])
    done = swapscribe("summarize", "now")
    assert done.returncode == 0 and done.stdout.count("\n") == 1 and "s: minutes are written as soon as" in done.stdout
    asked = minutes(2)[1]
    assert (asked.reason, asked.span) == ("asked", (60 * RATE, 84 * RATE))

    begun = first.output().count("minutes begun")
    transcriber.say(*RECORDING[4:])
    transcriber.end()
    wait_for(lambda: first.output().count("minutes begun") > begun, 60.0, "the last minutes being written")
    first.kill()
    assert len(minutes(2)) == 2, "they were written already"
    processes.start("workers.summarizer", settings=settings)
    end = minutes(3)[2]
    assert (end.reason, end.first, end.last) == ("end", f"s:{84 * RATE}", f"s:{90 * RATE}")
    shown = swapscribe("summaries", STREAM)
    assert shown.returncode == 0 and shown.stdout.count("[minutes ") == 3, shown.stderr
    assert "  • " in shown.stdout and "(00:00.0" in shown.stdout
    assert len(minutes(3)) == 3 and [e for e in follower.events if e.kind == "gap"] == []

    done = swapscribe("purge", STREAM, "--yes")
    assert done.returncode == 0, done.stderr
    assert "no streams yet" in swapscribe("summaries").stderr
    transcriber.purged()
    transcriber.say("The new website costs twelve thousand euros.")
    assert swapscribe("summarize", "now").returncode == 0
    anew = minutes(4)[3]
    assert (anew.reason, anew.span, anew.first, anew.last) == ("asked", (0, 6 * RATE), "s:0", "s:0")
    assert not [b for b in anew.bullets if "American" in b.text or "dashwood" in b.text]
    follower.close()
