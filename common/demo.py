"""The demo meeting: what it is played on, when it is over, and what its own journal says about it.

In: the feed, as any subscriber has it. Nothing is kept but what a subscriber holds at the end, for the exports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from math import inf
from pathlib import Path
from statistics import median

from common import backlog, card, console, topology
from common import messages as m
from common.feed_client import FeedClient
from common.launch import Launcher
from common.settings import Settings, UserError
from common.spans import clock
from common.translations import parts_of

MEETING = Path(__file__).resolve().parent.parent / "examples" / "meeting.flac"
TARGET = "pt"  # what it is translated to, if the settings name no language
# Its card. Captions, translation and speakers need 428 + 177 + 114 MiB together, the summarizer 470: all of them do not
# fit, and beside a burst captions do not. Minutes are due often, and wait less long than they would in a real meeting.
TIGHT_MIB = 880
TIGHT = ("gpu.margin_mib=0", "gpu.patience_s=5", "gpu.overdue_s=20", "summary.interval_s=15")


def meeting(pace: str) -> dict[str, str]:
    """It as a source."""
    if not MEETING.exists():
        raise UserError(f"{MEETING}: the bundled meeting is missing; the demo needs a whole copy of the project")
    return {"name": MEETING.stem, "kind": "file", "path": str(MEETING), "pace": pace}


def tight_card(settings: Settings) -> tuple[tuple[str, ...], str]:
    """(settings of a simulated card on which the embedded models take turns, the line that says so); nothing where
    there is a real card, other models, or a size that a person chose."""
    embedded = (settings.transcriber.model, settings.summary.model) == ("tiny.en", "smollm2-135m")
    if not (embedded and settings.summary.enabled and not settings.gpu.simulated_mib):
        return (), ""
    if card.kind(settings) != "simulated":
        return (), ""
    line = f"demo: a simulated card of {TIGHT_MIB} MiB holds the models of captions, or the summarizer: they take turns"
    return (f"gpu.simulated_mib={TIGHT_MIB}", *TIGHT), line


class Demo:
    """Watches a run over file sources: prints captions, stops the launcher when everything is done, sums it up."""

    STUCK_S = 120.0  # no process of the demo has a reason to do nothing for so long,
    START_S = 600.0  # but on a busy machine models may take long to be loaded
    BACK_S = 20.0  # captions that still wait for the GPU at the end are back by then, or the arbiter has gone

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._expected, self._say, self._settings = len(settings.source), say, settings
        self._captions = console.Captions(settings, after=0)
        self._everything = FeedClient(settings)
        self.events: list[m.Event] = []
        self._began = self._moved_at = time.monotonic()
        self._over_at = inf
        self._place = 0
        self._failure = "interrupted"

    @property
    def finished(self) -> bool:
        """It came to its end by itself."""
        return bool(self.streams) and not self._failure

    @property
    def swaps(self) -> int:
        return self._captions.gpu.swaps if self._captions.gpu else 0

    @property
    def streams(self) -> dict[str, m.StreamBeat]:
        return self._captions.beat.streams if self._captions.beat else {}

    def turn(self, launcher: Launcher) -> None:
        self._read()
        now, beat = time.monotonic(), self._captions.beat
        if beat:
            place = sum(s.audio_head + s.coverage.pending + beat.head for s in beat.streams.values())
            if place != self._place:
                self._place, self._moved_at = place, now
            if self._is_over(beat):
                self._over_at = min(self._over_at, now)
                gpu = self._captions.gpu
                if gpu is None or gpu.captions_resume_in_s < 0 or now - self._over_at > self.BACK_S:
                    self._failure = ""
                    launcher.stop()
        if complaints := [s for s in launcher.slots if s.complaint]:
            self._failure = f"{complaints[0].want.name} cannot run"
            launcher.stop()
        loading = not launcher.all_up or (beat and any(w.phase == "loading" for w in beat.workers.values()))
        if now - (self._began if loading else self._moved_at) > (self.START_S if loading else self.STUCK_S):
            self._failure = f"nothing has moved for {now - self._moved_at:.0f} s"
            launcher.stop()
        elif loading:
            self._moved_at = now

    def _read(self) -> None:
        for line in self._captions.lines():
            self._say(line)
        self.events += [e for e in self._everything.poll(0.0) if isinstance(e, m.Event)]

    def _is_over(self, beat: m.Beat) -> bool:
        """Every source has ended, everybody has done what is to be done about it, and we have heard of it."""
        streams = beat.streams.values()
        there = self.events[-1].seq if self.events else 0
        return len(streams) >= self._expected and there >= beat.head and all(over(s, self._settings) for s in streams)

    def summary(self, say: Callable[[str], None]) -> bool:
        """Print what became of every second; True when none is pending or missing."""
        self._read()  # what came while everything was stopped
        good = self.finished
        for stream, s in self.streams.items():
            say(f"{stream}: {clock(s.audio_head)} of audio: {console.coverage_line(s.coverage)}")
            good = good and not s.coverage.pending and not s.coverage.gap
        say(f"{self._captions.words} words" + f"; {self._failure}" * bool(self._failure))
        self._everything.close()
        return good


def over(s: m.StreamBeat, settings: Settings) -> bool:
    """Captions, speakers, translations and minutes of a stream are there to its end."""
    if not s.ended or "stream_ended" not in s.heads:
        return False
    wanted = {topology.COVERAGE_PRODUCER: ("audio", s.audio_head)}
    wanted |= {
        f"{topology.TRANSLATOR}.{t}": ("transcript", s.heads["stream_ended"]) for t in settings.translate.targets
    }
    if settings.speakers.enabled:
        wanted["diarizer"] = ("meta", 2)  # everything is clustered, and what was kept for that is thrown away
    if settings.summary.enabled and settings.summary.at_end:
        wanted["summarizer"] = ("transcript", s.heads.get("transcript", 0))
    at = {producer: s.producers[producer].positions if producer in s.producers else {} for producer in wanted}
    return all(at[producer].get(name, 0) >= place for producer, (name, place) in wanted.items())


# From the journal


def late_s(events: Iterable[m.Event], anchors: Sequence[backlog.Anchor], pace: float) -> list[float]:
    """For each caption: seconds from its last word, as it was heard, to the journal. `pace`: of a file's time."""
    found = []
    for e in events:
        body = e.decode() if e.kind == "transcript" else None
        if isinstance(body, m.Transcript) and not body.revision and anchors and pace:
            sample = body.words[-1].span[1] if body.words else body.span[1]
            near = next((a for a in reversed(anchors) if a.sample <= sample), anchors[0])
            heard_ns = near.wall_ns + (sample - near.sample) * 1_000_000_000 / m.SAMPLE_RATE / pace
            found.append(max(0.0, (e.at_ns - heard_ns) / 1e9))
    return found


def translated_late_s(events: Iterable[m.Event], target: str) -> list[float]:
    """For each sentence: seconds from the caption that brought its last word to its translation; the first one."""
    told_ns, late = dict[str, int](), dict[tuple[str, int], float]()
    for e in events:
        match e.decode():
            case m.Transcript() as t:
                told_ns[f"{t.segment}/{t.revision}"] = e.at_ns
            case m.Translation() as made if made.target == target and made.text:
                whole_ns = max(told_ns.get(part, e.at_ns) for part in parts_of(made))
                late.setdefault((made.segment, made.place), (e.at_ns - whole_ns) / 1e9)
    return list(late.values())


def middle_and_worst(seconds: Sequence[float]) -> str:
    return f"median {median(seconds):.1f} s, worst {max(seconds):.1f} s" if seconds else "not known"
