"""The diarizer's way through a stream, in memory: a journal, real backlog and voices, and a STAND-IN for the networks.

What must come out of it is the same wherever it is killed, offloaded, or has no room on the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import itertools
import os
import random
import shutil
import time
import tracemalloc
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from common import backlog
from common import messages as m
from common.process import Process
from common.settings import Settings, SpeakerSettings
from common.voiceprints import Voiceprint
from workers import kept_windows, settling
from workers.diarizer import Diarizer
from workers.hops import Hearer, State
from workers.kept_windows import KeptWindows
from workers.poison import Poison
from workers.recognised import recognised
from workers.settling import turns_told
from workers.steps import Step
from workers.stride import note, stride
from workers.turns import Turn
from workers.vad import Floats, Vad
from workers.voices import Rules, Voice
from workers.windows import FRAME, LOCALS, Window, on_grid

SECOND = m.SAMPLE_RATE
S = SpeakerSettings(hop_s=1.0, longest_hop_s=1.0, settle_every_s=20.0)
ALONE = (1000, 2000, 4000)  # level of each of three voices; together they add up


class StandInVad(Vad):
    """Every sound is speech; the state counts frames."""

    def __init__(self) -> None:
        pass

    def step(self, frame: Floats, state: Floats) -> tuple[float, Floats]:
        after = state.copy()
        after[0] += 1
        return float(np.any(frame)), after


class StandInEars:
    """Hears by level who speaks; a voice is an axis of its own, a little off it from window to window."""

    modules: Sequence[Any] = ()
    dimension = 8

    def working_bytes(self) -> int:
        return 0

    def hear(self, pcm: Floats, start: int, wants: Any) -> Generator[None, None, Window]:
        frames = max(0, (len(pcm) - 991) // FRAME + 1)
        levels = np.rint(pcm[2 * FRAME :: FRAME][:frames] * 32768 / 1000).astype(int)
        levels = np.pad(levels, (0, frames - len(levels)))
        there = [k for k in range(len(ALONE)) if np.any(levels & 1 << k)]
        active = np.zeros((frames, LOCALS), np.bool_)
        for i, k in enumerate(sorted(there, key=lambda k: (start // FRAME + k) % 3)):  # locals come in any order
            active[:, i] = levels & 1 << k > 0
        yield
        embeddings = np.full((LOCALS, self.dimension), np.nan, np.float32)
        order = sorted(there, key=lambda k: (start // FRAME + k) % 3)
        for i in wants(start, active):
            voice = np.full(self.dimension, 0.1 * ((start // FRAME) % 3), np.float32)
            voice[order[i]] = 1.0
            embeddings[i] = voice / np.linalg.norm(voice)
            yield
        return Window(start, len(pcm), active, embeddings)


class StandInDiarizer(Diarizer):
    """The real one but for its models; `bad` samples end it."""

    def __init__(self, settings: Settings, bad: Sequence[int] = ()) -> None:
        super().__init__(Process("diarizer", settings, argparse.Namespace()))
        self.bad = bad
        self.ears = StandInEars()  # type: ignore[assignment]
        self.hearer = Hearer(
            vad=StandInVad(),
            model="stand-in",
            rules=Rules(),
            hop=on_grid(self.s.hop_s * SECOND),
            voiced_from=0.35,
            settle_every=round(self.s.settle_every_s * SECOND),
        )

    def infer(self, state: bytes, work: Any) -> Generator[None, None, Step]:
        if any(work.span[0] <= sample < work.span[1] for sample in self.bad):
            raise ArithmeticError("the stand-in was told to fail here")
        return (yield from super().infer(state, work))


class Killed(BaseException):
    """The process ends here."""


class Memory:
    """A journal in memory, and a lease that is there or not."""

    def __init__(self, run: Path) -> None:
        self.run, self.phase, self.ready = run, "", True
        self.control = self
        self.at = m.At(n=0, positions={}, state=b"", head=0)
        self.events: list[tuple[int, m.Body]] = []
        self.poison = Poison(run, "diarizer")
        self.at_moment: Callable[[str], None] = lambda what: None
        self.piece: Callable[[], bool] = lambda: True  # False: revoked there

    def changed(self) -> None:
        """A Status would go out now."""

    def step(self, work: Generator[None, None, Any], working_bytes: int | None = None) -> Any:
        try:
            while True:
                self.at_moment("piece")
                if not self.piece():
                    work.close()
                    return None
                next(work)
        except StopIteration as end:
            return end.value

    def commit(self, stream: str, expect_n: int, step: Step | None) -> m.At | None:
        if step is None or expect_n != self.at.n:
            return self.at
        self.at_moment("before")
        self.events += [(self.at.n + 1, body) for body in step.events]
        self.at = m.At(n=self.at.n + 1, positions=self.at.positions | step.positions, state=step.state, head=1)
        self.at_moment("after")
        return self.at

    def replay(self, settings: Settings, kinds: Sequence[str], stream: str, timeout_s: float) -> Iterator[m.Event]:
        for seq, (n, body) in enumerate(self.events, 1):
            kind = str(body.__struct_config__.tag)
            fixed = {"prev": 0, "stream": stream, "producer": "diarizer", "at_ns": 0}
            if kind in kinds:
                yield m.Event(seq=seq, kind=kind, n=n, body=m.encode(body), **fixed)

    def bodies(self) -> list[m.Body]:
        return [body for _, body in self.events]


def meeting(rng: random.Random, seconds: int) -> bytes:
    """Three voices, pauses, now and then two at once; not a whole number of frames."""
    levels: list[int] = []
    while len(levels) < seconds * 10:
        who = rng.choice([0, 0, *ALONE, *ALONE, ALONE[0] + ALONE[1]])
        levels += [who] * rng.randrange(5, 60)
    return np.repeat(np.array(levels[: seconds * 10], "<i2"), SECOND // 10).tobytes()[: -2 * rng.randrange(SECOND)]


class Heard:
    """A stream nobody has heard yet, and those who hear it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, pcm: bytes, live: bool = False) -> None:
        self.settings = Settings(data_dir=str(folder / "data"), speakers=S)
        (folder / "run").mkdir(parents=True)
        self.meta = backlog.Meta(stream="s", source="s", lane="live", origin="", started_ns=1, resumable=False)
        self.writer = backlog.Writer(self.settings.streams / "s", 7 * SECOND)
        self.pcm, self.at = pcm, 0
        backlog.write_meta(self.writer.folder, self.meta)
        if not live:
            self.more(len(pcm))
        self.memory: Any = Memory(folder / "run")
        monkeypatch.setattr(settling, "replay", self.memory.replay)

    @property
    def kept(self) -> KeptWindows:
        return KeptWindows(self.settings.windows("s"))

    def more(self, samples: int) -> None:
        """So much is captured; all of it, and the stream has ended."""
        self.writer.append(self.writer.end, self.pcm[self.at : self.at + 2 * samples])
        self.at += 2 * samples
        if self.at >= len(self.pcm):
            self.writer.close()
            self.meta = msgspec.structs.replace(self.meta, ended=True, end=self.writer.end)
            backlog.write_meta(self.writer.folder, self.meta)

    def life(self, bad: Sequence[int] = ()) -> StandInDiarizer:
        """Until the end of the stream, or of the process."""
        worker = StandInDiarizer(self.settings, bad)
        self.memory.poison = Poison(self.memory.run, "diarizer")
        worker.look(self.memory, time.monotonic())
        while self.memory.at.positions.get("meta") != 2:
            if not worker.turn(self.memory):
                if self.at < len(self.pcm):
                    self.more(SECOND // 3)
                worker.look(self.memory, time.monotonic())
        return worker

    def lives(self, bad: Sequence[int] = ()) -> int:
        """As many as it takes; how many that were."""
        for count in range(1, 200):
            try:
                self.life(bad)
            except (Killed, ArithmeticError):
                continue
            return count
        raise AssertionError("it never came to the end")


@pytest.fixture
def pcm() -> bytes:
    return meeting(random.Random(5), 70)


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pcm: bytes) -> list[m.Body]:
    heard = Heard(tmp_path / "undisturbed", monkeypatch, pcm)
    heard.life()
    bodies: list[m.Body] = heard.memory.bodies()
    assert {b.speaker for b in bodies if isinstance(b, m.SpeakerTurn)} >= {"S1", "S2", "S3"}
    return bodies


@pytest.mark.joined
@pytest.mark.parametrize("seed", range(6))
def test_turns_are_the_same_wherever_it_is_killed_or_offloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pcm: bytes, expected: list[m.Body], seed: int
) -> None:
    rng, heard = random.Random(seed), Heard(tmp_path / "killed", monkeypatch, pcm, live=seed % 2 == 0)

    def moment(what: str) -> None:
        if rng.random() < 0.06:
            raise Killed

    heard.memory.at_moment = moment
    heard.memory.piece = lambda: rng.random() > 0.1
    assert heard.lives() > 5
    assert heard.memory.bodies() == expected
    assert not heard.kept.newest() and not self_folder(heard).exists(), "what is over needs no windows"


def self_folder(heard: Heard) -> Path:
    return heard.settings.windows("s")


@pytest.mark.joined
def test_a_full_disk_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pcm: bytes, expected: list[m.Body]
) -> None:
    heard, rng, add = Heard(tmp_path / "full", monkeypatch, pcm), random.Random(1), KeptWindows.add
    monkeypatch.setattr("workers.hearing.UNREADABLE_S", 0.0)
    refused = []

    def sometimes(self: KeptWindows, end: int, record: bytes) -> None:
        if rng.random() < 0.2:
            refused.append(end)
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, end, record)

    monkeypatch.setattr(KeptWindows, "add", sometimes)
    heard.life()
    assert len(refused) > 5 and heard.memory.bodies() == expected


@pytest.mark.joined
def test_what_cannot_be_heard_is_a_gap_of_its_own_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pcm: bytes, expected: list[m.Body]
) -> None:
    heard = Heard(tmp_path / "poison", monkeypatch, pcm)
    turn = next(b for b in expected if isinstance(b, m.SpeakerTurn) and b.span[0] > 20 * SECOND)
    assert heard.lives(bad=[turn.span[0] + 10]) == 4, "three tries"
    bodies = heard.memory.bodies()
    (gap,) = [b for b in bodies if isinstance(b, m.Gap)]
    assert gap.span[0] <= turn.span[0] + 10 < gap.span[1] and not gap.retryable and not gap.segment
    last = max(b.span[1] for b in bodies if isinstance(b, m.SpeakerTurn))
    assert last == max(b.span[1] for b in expected if isinstance(b, m.SpeakerTurn))


@pytest.mark.joined
def test_a_hole_is_silence_and_costs_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A microphone was away for an hour; and for a moment."""
    heard = Heard(tmp_path / "hole", monkeypatch, b"", live=True)
    voice = np.full(4 * SECOND, ALONE[0], "<i2").tobytes()
    for at_s in (0.0, 4.4, 3600.7):
        heard.writer.append(round(at_s * SECOND), voice, reason="away")
    heard.more(1)
    heard.life()
    bodies = heard.memory.bodies()
    assert all(isinstance(b, m.SpeakerTurn | m.Relabel) for b in bodies), "holes are the transcriber's to tell"
    spans = sorted(b.span for b in bodies if isinstance(b, m.SpeakerTurn))
    assert spans[0][0] < SECOND // 4 and abs(spans[-1][1] - 3604.7 * SECOND) < SECOND // 4
    assert not [s for s in spans if 9 * SECOND < s[0] < 3600 * SECOND]
    assert heard.memory.at.n < 60


@pytest.mark.joined
def test_a_clustering_that_ends_it_again_and_again_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pcm: bytes, expected: list[m.Body]
) -> None:
    heard, calls = Heard(tmp_path / "bad", monkeypatch, pcm), list[int]()

    def settle(windows: Sequence[Window], *rest: Any) -> Any:
        calls.append(len(windows))
        raise ArithmeticError("told to fail")

    monkeypatch.setattr(settling, "settle", settle)
    assert heard.lives() > 3
    bodies = heard.memory.bodies()
    assert not [b for b in bodies if isinstance(b, m.Gap | m.Relabel)]
    assert len(calls) == 3 * len(set(calls)) > 3, "each of them was tried three times"
    ends = [max(b.span[1] for b in all_ if isinstance(b, m.SpeakerTurn)) for all_ in (bodies, expected)]
    assert ends[0] == ends[1]


@pytest.mark.joined
def test_every_clustering_sees_what_was_heard_up_to_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pcm: bytes
) -> None:
    heard, seen, real = Heard(tmp_path / "settle", monkeypatch, pcm), list[tuple[int, int]](), settling.settle

    def settle(windows: Sequence[Window], turns: Sequence[Turn], *rest: Any) -> Any:
        seen.append((windows[-1].end, max(t.span[1] for t in turns)))
        return real(windows, turns, *rest)

    monkeypatch.setattr(settling, "settle", settle)
    heard.life()
    places = [end / SECOND for end, _ in seen]
    assert len(seen) == 4 and all(b - a <= 21.0 for a, b in itertools.pairwise(places))
    assert all(turns <= windows for windows, turns in seen)
    assert heard.memory.at.state == b"", "of who spoke nothing is left but the turns"


@pytest.mark.joined
@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "bad disk")])
def test_a_clustering_without_memory_or_disk_is_left_out_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pcm: bytes, error: Exception
) -> None:
    heard = Heard(tmp_path / "out", monkeypatch, pcm)

    def settle(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(settling, "settle", settle)
    for _ in range(20):
        try:
            heard.life()
        except RuntimeError as e:
            assert "no clustering" in str(e)
            continue
        break
    assert heard.memory.at.positions["meta"] == 2, "its turns are told to the end"


@pytest.mark.joined
def test_windows_that_cannot_be_read_stop_no_other_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pcm: bytes
) -> None:
    heard = Heard(tmp_path / "bad", monkeypatch, pcm)
    bad = heard.settings.windows("s") / "windows"
    bad.mkdir(parents=True)  # whoever opens it gets an error, also root
    worker = StandInDiarizer(heard.settings)
    worker.look(heard.memory, 0.0)
    assert not worker.sessions and "s cannot be read" in worker.trouble()
    bad.rmdir()
    worker.look(heard.memory, time.monotonic() + 60.0)
    assert list(worker.sessions) == ["s"]


@pytest.mark.joined
def test_a_clustering_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pcm: bytes) -> None:
    heard, seen, real = Heard(tmp_path / "bound", monkeypatch, pcm), list[int](), settling.settle

    def settle(windows: Sequence[Window], *rest: Any) -> Any:
        seen.append(len(windows))
        return real(windows, *rest)

    monkeypatch.setattr(settling, "settle", settle)
    monkeypatch.setattr(kept_windows, "MOST", 25)
    heard.life()
    assert max(seen) == 25 and len(seen) == 4
    turns = turns_told(heard.memory.replay(heard.settings, ("speaker_turn", "relabel"), "s", 1.0))
    speakers = {t.speaker for t in turns}
    assert speakers >= {"S1", "S2"} and len(speakers) >= 3, "who is not heard any more is not forgotten"
    assert min(t.span[0] for t in turns) < 12 * SECOND and max(t.span[1] for t in turns) > 65 * SECOND


@pytest.mark.joined
def test_clusterings_of_a_long_stream_are_farther_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One costs what the stream is long; all of them together must stay a small share of the work."""
    heard = Heard(tmp_path / "long", monkeypatch, b"", live=True)
    worker = StandInDiarizer(heard.settings)
    worker.look(heard.memory, time.monotonic())
    (session,), every = worker.sessions.values(), worker.hearer.settle_every
    places, at = list[int](), 0
    while at < 8 * 3600 * SECOND:
        at += SECOND
        session.position, session.state = at, State(settled=places[-1] if places else 0, windows=1)
        if session.settling_due:
            places.append(at)
    assert places[0] == every and places[9] == 10 * every, "often while it is short"
    assert sum(places) < 30 * 8 * 3600 * SECOND, "not 8 * 3600 / 20 / 2 times as long as the stream is"
    session.position, session.state = at + SECOND, State(settled=at, windows=1, over=True)
    assert session.settling_due, "and at its end"


@pytest.mark.pure
def test_turns_told_are_as_labelled_after_the_relabels_of_later_appends() -> None:
    def turn(a: int, b: int, speaker: str) -> m.SpeakerTurn:
        return m.SpeakerTurn(span=(a * FRAME, b * FRAME), speaker=speaker, provisional=True)

    def relabel(source: str, target: str) -> m.Relabel:
        return m.Relabel(source=source, target=target, span=(0, 100 * FRAME))

    memory = Memory(Path("/nowhere"))
    memory.events = [
        (1, turn(0, 9, "S1")), (2, turn(9, 20, "S2")), (3, relabel("S1", "S2")), (3, relabel("S2", "S1")),
        (3, turn(20, 30, "S2")), (4, turn(30, 40, "S1")), (5, relabel("S1", "S3")),
    ]  # fmt: skip
    events = memory.replay(Settings(), ("speaker_turn", "relabel"), "s", 0.0)
    assert [t.speaker for t in turns_told(events)] == ["S2", "S3", "S2", "S3"], "two change places in one append"


@pytest.mark.pure
def test_a_voiceprint_names_one_speaker_and_nobody_in_doubt() -> None:
    def voice(speaker: str, seconds: float, *values: float) -> Voice:
        vector = np.array(values, np.float32)
        return Voice(speaker, vector / np.linalg.norm(vector), seconds)

    def print_(name: str, *values: float) -> Voiceprint:
        return Voiceprint(name=name, model="m", embedding=values, seconds=9.0, made_ns=1)

    ana, ben = print_("Ana", 1.0, 0.0, 0.0), print_("Ben", 0.0, 1.0, 0.0)
    near, nearer, far = voice("S1", 9, 1, 0.5, 0.5), voice("S2", 9, 1, 0.1, 0.1), voice("S3", 9, 0.2, 0.2, 1)
    assert recognised([near, nearer, far], [ana, ben], {}) == {"S2": "Ana"}, "one name, for the nearest"
    assert recognised([voice("S1", 2, 1, 0, 0)], [ana, ben], {}) == {}, "too little was heard"
    assert recognised([voice("S1", 9, 1, 0.95, 0)], [ana, ben], {}) == {}, "either could be it"
    assert recognised([near, voice("S9", 1, 0, 0, 1)], [ana, ben], {"S9": "Ana"}) == {}
    assert recognised([near], [ana], {"S1": "Ana"}) == {}
    assert recognised([near], [ana, ben], {"S9": "Ana"}) == {"S1": "Ana"}, "S9 was found to be S1, and is no more"
    assert recognised([near], [], {}) == {}
    assert SpeakerSettings().threshold == Rules().threshold, "the default is the one that was tuned"


@pytest.mark.pure
def test_steps_grow_with_what_is_late_and_say_so() -> None:
    s = SpeakerSettings(hop_s=1.0, longest_hop_s=5.0, busy_lag_s=5.0)
    assert [stride(late_s, 0.0, s) for late_s in (0, 4.9, 5.1, 12, 60)] == [1, 1, 2, 3, 5]
    assert stride(0.0, 12.0, s) == 3, "captions that are late come first"
    assert stride(600.0, 600.0, S) == 1, "who wants the same turns each time says so"
    assert note([1, 3, 2], 1.0) == "diarization steps of 3 s instead of 1: the machine is busy"
    assert note([1, 1], 1.0) == note([], 1.0) == ""


@pytest.mark.joined
def test_larger_steps_hear_every_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pcm: bytes) -> None:
    """Fewer windows, the same speech."""

    def said(step: int) -> tuple[int, int]:
        heard = Heard(tmp_path / str(step), monkeypatch, pcm)
        monkeypatch.setattr(StandInDiarizer, "_stride", lambda *_: step)
        heard.life()
        spans = [b.span for b in heard.memory.bodies() if isinstance(b, m.SpeakerTurn)]
        return heard.memory.at.n, sum(b - a for a, b in spans)

    (appends, speech), (fewer, same) = said(1), said(4)
    assert fewer < appends / 2 and abs(speech - same) < 0.05 * speech


@pytest.mark.pure
def test_kept_windows_end_at_the_position_and_are_for_their_owner_alone(tmp_path: Path) -> None:
    kept = KeptWindows(tmp_path / "speakers" / "s")
    assert kept.newest() == []
    kept.cut(0)
    for end in (10, 20, 30):
        kept.add(end, b"%d" % end)
    file = tmp_path / "speakers" / "s" / "windows"
    assert [p.stat().st_mode & 0o777 for p in (file, file.parent, file.parent.parent)] == [0o600, 0o700, 0o700]
    file.write_bytes(file.read_bytes() + b"torn")
    assert kept.newest() == [b"10", b"20", b"30"]
    kept.cut(25)
    kept.add(40, b"40")
    assert kept.newest() == [b"10", b"20", b"40"]
    damaged = bytearray(file.read_bytes())
    damaged[20] ^= 255
    file.write_bytes(damaged)
    assert len(kept.newest()) < 3, "a damaged record ends it"
    kept.remove()
    kept.remove()
    assert not file.parent.exists()


@pytest.mark.pure
def test_kept_windows_are_bounded_and_the_newest_are_there_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_windows, "MOST", 10)
    rng, replace, folder = random.Random(3), os.replace, tmp_path / "s"
    kept, killed = KeptWindows(folder), 0

    def killing(*names: Path) -> None:
        moment = rng.choice(["before", "after", "", ""])
        if moment != "before":
            replace(*names)
        if moment:
            raise Killed

    monkeypatch.setattr(os, "replace", killing)
    for end in range(1, 200):
        while True:
            try:
                kept.add(end, b"%d" % end)
                break
            except Killed:
                killed += 1
                kept = KeptWindows(folder)
                kept.cut(end - 1)
        assert kept.newest() == [b"%d" % i for i in range(max(1, end - 9), end + 1)]
        if rng.random() < 0.1:
            kept = KeptWindows(folder)  # another life; sometimes it has heard one more than the journal knows
            with contextlib.suppress(Killed):
                kept.add(end + 1, b"lost")
            kept.cut(end)
    assert killed > 5 and sum(p.stat().st_size for p in folder.iterdir()) <= 20 * 20


@pytest.mark.pure
def test_zeros_that_a_machine_left_are_no_windows(tmp_path: Path) -> None:
    kept = KeptWindows(tmp_path / "s")
    kept.add(10, b"10")
    with (tmp_path / "s" / "windows").open("ab") as file:
        file.write(bytes(100))
    assert kept.newest() == [b"10"]


@pytest.mark.pure
def test_what_is_read_of_a_long_file_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_windows, "MOST", 10**9)
    kept = KeptWindows(tmp_path / "s")
    for end in range(2000):
        kept.add(end, bytes([1]) * 10_000)
    monkeypatch.setattr(kept_windows, "MOST", 10)
    tracemalloc.start()
    found = KeptWindows(tmp_path / "s").newest()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 10 and peak < 1_000_000


@pytest.mark.joined
@pytest.mark.parametrize("mount_point", [False, True])
def test_a_disk_that_is_away_for_a_look_costs_no_voices_and_a_purge_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pcm: bytes, mount_point: bool
) -> None:
    heard = Heard(tmp_path / "away", monkeypatch, pcm, live=True)
    worker, streams, elsewhere = StandInDiarizer(heard.settings), heard.settings.streams, tmp_path / "elsewhere"
    heard.more(15 * SECOND)

    def works() -> list[bytes]:
        worker.look(heard.memory, time.monotonic())
        while worker.turn(heard.memory):
            pass
        return heard.kept.newest()

    before = works()
    assert before and worker._bells._connected
    streams.rename(elsewhere)
    if mount_point:
        streams.mkdir()
    assert works() == before and not worker.sessions and not worker._bells._connected
    if mount_point:
        streams.rmdir()
    elsewhere.rename(streams)
    assert works() == before and worker.sessions
    shutil.rmtree(streams / "s")
    heard.memory.at = m.At(n=heard.memory.at.n + 2, positions={}, state=b"", head=9)
    assert works() == [] and not self_folder(heard).exists()
