"""Several finished utterances at once while captions are late: found as one by one, none lost or doubled by a kill, and
one that cannot be decoded is found among its neighbours.

The worker's real loop, cuts, and count of bad ends; voice detector, model, lease and journal are stand-ins.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from common import backlog
from common import messages as m
from common.process import Process
from common.settings import Settings, TranscriberSettings
from workers.captioner import Captioner
from workers.captions import owners, packed
from workers.catchup import how_many
from workers.poison import Poison
from workers.session import Utterance
from workers.steps import Step
from workers.tenancy import NotCarriedOut
from workers.utterances import State, Utterances
from workers.vad import FRAME, Floats, Rules, Vad

SMALL = Rules(
    threshold=0.5, pre_roll=2, end_silence=4, post_roll=2, min_speech=2, longest=20, silence_run=12
)  # so that random sequences reach every rule


@pytest.mark.pure
def test_neighbours_share_a_window_as_long_as_they_fit() -> None:
    assert packed([10, 10, 8, 1, 27, 30, 2], 28) == [range(3), range(3, 5), range(5, 6), range(6, 7)]
    assert packed([], 28) == []


@pytest.mark.pure
def test_a_word_belongs_to_the_voice_it_shares_most_time_with() -> None:
    voices = [(0.3, 2.0), (2.6, 4.0), (4.6, 6.0)]
    first_holds_the_pause = [(0.1, 1.0), (1.0, 2.5), (2.5, 3.9), (4.1, 4.4)]
    assert owners(first_holds_the_pause, voices) == [0, 0, 1, 1]
    second_holds_the_pause = [(0.1, 2.0), (2.0, 2.9), (2.9, 3.9), (3.9, 5.9)]
    assert owners(second_holds_the_pause, voices) == [0, 1, 1, 2]
    assert owners([(2.9, 3.9), (0.3, 1.0)], voices) == [1, 1], "never backwards"


@pytest.mark.pure
def test_more_at_once_the_later_captions_are() -> None:
    s = TranscriberSettings(batch_most=8, batch_lag_s=3.0)
    assert [how_many(late_s, s) for late_s in (0, 2.9, 5.9, 6.1, 12, 60)] == [1, 1, 1, 2, 4, 8]
    assert how_many(60, TranscriberSettings(batch_most=1)) == 1


class StandInVad(Vad):
    """Each frame says itself how much it sounds like speech; the state remembers what was heard."""

    def __init__(self) -> None:
        pass

    def step(self, frame: Floats, state: Floats) -> tuple[float, Floats]:
        p = round(float(frame[0]) * 32768) / 1000
        after = state.copy()
        after[0] = np.float32((state[0] * 31 + p) % 97)
        return p, after


def sound(rng: random.Random, frames: int) -> bytes:
    """Turns of speech and silence; not a whole number of frames."""
    levels: list[int] = []
    while len(levels) < frames:
        speech = rng.random() < 0.5
        levels += [rng.choice((600, 900, 450) if speech else (0, 100, 300)) for _ in range(rng.randrange(1, 25))]
    return np.repeat(np.array(levels[:frames], "<i2"), FRAME).tobytes()[: -2 * rng.randrange(FRAME)]


class Stream:
    """A folder of the backlog."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta = backlog.Meta(stream="s", source="s", lane="live", origin="", started_ns=1, resumable=False)
        self.writer = backlog.Writer(folder, 60 * m.SAMPLE_RATE)
        backlog.write_meta(folder, self.meta)

    def end(self) -> None:
        self.writer.close()
        self.meta = msgspec.structs.replace(self.meta, ended=True, end=self.writer.end)
        backlog.write_meta(self.folder, self.meta)


def told(stream: Stream, ear: Utterances, most: int, out: list[Any]) -> None:
    """Everything that can be told now; `most` utterances at once."""
    ear.meta = stream.meta
    while (found := ear.scan()) is not None:
        works: Sequence[Utterance | Step] = [found]
        if isinstance(found, Utterance) and most > 1:
            ear.look_ahead(most, 40 * FRAME)
            works = ear.waiting(most)
            assert works[0] == found
        for one in works:
            out.append(one)
            if isinstance(one, Utterance):
                one = Step(positions={"audio": one.span[1]}, events=(), state=m.encode(State(vad=one.state)))
            ear.moved(m.At(n=1, positions=one.positions, state=one.state, head=1))


@pytest.mark.pure
@pytest.mark.parametrize("seed", range(12))
def test_looking_ahead_finds_what_is_found_one_by_one(tmp_path: Path, seed: int) -> None:
    """With holes, audio that comes in pieces, and an end in the middle of speech."""
    rng, stream = random.Random(seed), Stream(tmp_path / "s")
    ears = {most: Utterances(stream.folder, stream.meta, AT, StandInVad(), SMALL) for most in (1, 2, 5)}
    heard: dict[int, list[Any]] = {most: [] for most in ears}
    for _ in range(6):
        hole = rng.choice((0, 0, 700)) if stream.writer.end else 0
        stream.writer.append(
            stream.writer.end + hole, sound(rng, rng.randrange(1, 150)), reason="a hole" if hole else ""
        )
        for most, ear in ears.items():
            told(stream, ear, most, heard[most])
    stream.end()
    for most, ear in ears.items():
        told(stream, ear, most, heard[most])
        assert ear.position == stream.meta.end
        assert heard[most] == heard[1], f"{most} at once"
    assert sum(isinstance(one, Utterance) for one in heard[1]) > 5


AT = m.At(n=0, positions={"meta": 1}, state=b"", head=0)


class Killed(BaseException):
    """The process ends here."""


class StandInTranscriber(Captioner):
    """The text of an utterance is its place and what was before it; `bad` samples cannot be decoded."""

    name = "transcriber"

    def __init__(self, settings: Settings, bad: Sequence[int] = ()) -> None:
        super().__init__(Process("transcriber", settings, argparse.Namespace()))
        self.bad, self.sizes = bad, list[int]()
        self.window_pieces = 0  # of several at once, before the first is done
        self.fail: Callable[[], None] = lambda: None  # before the exception

    def load(self, process: Process) -> Sequence[Any]:
        return []

    def key(self) -> str:
        return ""

    def working_bytes(self) -> int:
        return 1

    def rehearse(self) -> Iterator[None]:
        return iter([None])

    def open(self, folder: Path, meta: backlog.Meta, at: m.At) -> Utterances:
        return Utterances(folder, meta, at, StandInVad(), SMALL)

    def together(self, session: Any, late_s: float) -> int:
        return how_many(late_s, TranscriberSettings(batch_most=6, batch_lag_s=0.5))

    def infer(self, state: bytes, work: Utterance) -> Generator[None, None, Step]:
        self.sizes.append(1)
        return (yield from self._written(work))

    def infer_all(self, state: bytes, works: Sequence[Utterance], steps: list[Step]) -> Generator[None, None, None]:
        self.sizes.append(len(works))
        for _ in range(self.window_pieces):
            yield
        for work in works:
            steps.append((yield from self._written(work)))

    def _written(self, work: Utterance) -> Generator[None, None, Step]:
        if any(work.speech[0] <= sample < work.speech[1] for sample in self.bad):
            self.fail()
            raise ArithmeticError("the stand-in was told to fail here")
        yield
        segment = m.segment_id(work.stream, work.speech[0])
        text = f"{work.speech} {hash(work.pcm)} {hash(work.state)}"
        return self._step(work, m.Transcript(segment=segment, span=work.speech, text=text, language="en", model=""))

    def _step(self, work: Utterance, body: m.Body) -> Step:
        silence = (m.Silence(span=(work.span[0], work.speech[0])),) if work.speech[0] > work.span[0] else ()
        return Step(positions={"audio": work.span[1]}, events=(*silence, body), state=m.encode(State(vad=work.state)))

    def skipped(self, state: bytes, work: Utterance, gap: m.Gap) -> Step:
        return self._step(work, gap)

    def again(self, stream: str, gap: m.Gap, pcm: bytes) -> Generator[None, None, m.Body]:
        raise NotImplementedError


class StandInRunner:
    """A journal in memory, which refuses what does not tile the stream, and a lease that is there or not."""

    def __init__(self, run: Path) -> None:
        self.run, self.phase, self.ready = run, "", True
        self.control = self
        self.at, self.events = AT, list[Any]()
        self.poison = Poison(run, "transcriber")
        self.before: Callable[[], None] = lambda: None  # an append
        self.after: Callable[[], None] = lambda: None
        self.piece: Callable[[], bool] = lambda: True  # False: revoked there

    def changed(self) -> None:
        """A Status would go out now."""

    def restarted(self) -> None:
        self.poison = Poison(self.run, "transcriber")

    def step(self, work: Generator[None, None, Any], working_bytes: int | None = None) -> Any:
        self.pieces = 0
        try:
            while True:
                self.pieces += 1
                if not self.piece():
                    work.close()
                    return None
                next(work)
        except StopIteration as end:
            return end.value

    def commit(self, stream: str, expect_n: int, step: Step | None) -> m.At | None:
        if step is None or expect_n != self.at.n:
            return self.at
        self.before()
        at = self.at.positions.get("audio", 0)
        for body in step.events:
            if not isinstance(body, m.StreamEnded):
                assert body.span[0] == at < body.span[1]  # type: ignore[union-attr]
                at = body.span[1]  # type: ignore[union-attr]
        assert at == step.positions.get("audio", at)
        self.events += step.events
        self.at = m.At(n=self.at.n + 1, positions=self.at.positions | step.positions, state=step.state, head=1)
        self.after()
        return self.at

    def texts(self) -> list[str]:
        return [b.text for b in self.events if isinstance(b, m.Transcript)]

    def gaps(self) -> list[m.Span]:
        return [b.span for b in self.events if isinstance(b, m.Gap)]


class Late:
    """A stream nobody has heard yet."""

    def __init__(self, folder: Path, seed: int = 1) -> None:
        self.settings = Settings(data_dir=str(folder / "data"))
        (folder / "run").mkdir(parents=True)
        self.stream = Stream(self.settings.streams / "s")
        self.stream.writer.append(0, sound(random.Random(seed), 900))
        self.stream.end()
        self.runner: Any = StandInRunner(folder / "run")
        self.lives: list[StandInTranscriber] = []

    def crash(self) -> None:
        (self.runner.run / "transcriber.exit").write_text(json.dumps({"pid": os.getpid(), "cause": "signal 11"}))
        raise Killed

    def life(self, bad: Sequence[int] = (), crashes: bool = False, window_pieces: int = 0) -> StandInTranscriber:
        """Until the end of the stream, or until it ends badly."""
        worker = StandInTranscriber(self.settings, bad)
        worker.window_pieces = window_pieces
        if crashes:
            worker.fail = self.crash
        self.lives.append(worker)
        self.runner.restarted()
        worker.look(self.runner, 0.0)
        while self.runner.at.positions.get("meta") != 2:
            assert worker.turn(self.runner), "it waits for ever"
        return worker


@pytest.fixture
def expected(tmp_path: Path) -> list[str]:
    """The texts of a run that is not disturbed."""
    late = Late(tmp_path / "undisturbed")
    late.life()
    return late.runner.texts()  # type: ignore[no-any-return]


@pytest.mark.joined
def test_who_is_late_does_several_at_once_and_who_is_not_goes_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Late(tmp_path / "late")
    sizes = late.life().sizes
    assert max(sizes) == 6 and sizes[-1] == 1, "it shrinks as the stream is caught up with"
    monkeypatch.setattr(StandInTranscriber, "together", Captioner.together)
    alone = Late(tmp_path / "alone")
    assert set(alone.life().sizes) == {1}, "a worker that does not say so"
    assert alone.runner.events == late.runner.events and alone.runner.at.n == late.runner.at.n, "an append each"
    assert len(late.runner.texts()) == sum(sizes)


@pytest.mark.joined
def test_a_kill_at_any_append_loses_and_doubles_nothing(tmp_path: Path, expected: list[str]) -> None:
    """Before it is committed, or after it and before anybody knows; several of one batch are appended in order."""
    for seed in range(5):
        rng, late = random.Random(seed), Late(tmp_path / str(seed))

        def kill(rng: random.Random = rng) -> None:
            if rng.random() < 0.15:
                raise Killed

        late.runner.before = late.runner.after = kill
        while late.runner.at.positions.get("meta") != 2:
            with contextlib.suppress(Killed):
                late.life()
        assert len(late.lives) > 3 and any(size > 1 for life in late.lives for size in life.sizes)
        assert late.runner.texts() == expected and not late.runner.gaps()


@pytest.mark.joined
@pytest.mark.parametrize("crashes", [False, True])
def test_an_utterance_that_cannot_be_decoded_is_found_among_its_neighbours(
    tmp_path: Path, expected: list[str], crashes: bool
) -> None:
    """By an exception, or by the end of the process: three times alone, and the others keep their text."""
    late = Late(tmp_path / "late")
    sizes = Late(tmp_path / "sizes").life().sizes
    run = next(i for i, size in enumerate(sizes) if size > 2)
    at = sum(sizes[:run]) + 1  # neither the first nor the last of those that are done together
    first, last = map(int, expected[at].partition(")")[0].strip("(").split(", "))
    for _ in range(6):
        with contextlib.suppress(ArithmeticError, Killed):
            late.life([(first + last) // 2], crashes)
            break
    assert late.runner.gaps() == [(first, last)]
    assert late.runner.texts() == [text for i, text in enumerate(expected) if i != at]
    assert len(late.lives) == 4 + crashes, "a crash costs one life more than an exception, among neighbours"
    assert max(late.lives[0].sizes) > 1, "it was among neighbours"
    assert all(set(life.sizes) <= {1} for life in late.lives[1:-1]), "it is tried alone"
    assert max(late.lives[-1].sizes) > 1, "at once again behind it"


@pytest.mark.joined
def test_after_a_crash_its_neighbourhood_is_done_one_by_one(tmp_path: Path) -> None:
    """Also when the crash came as it looked ahead: what waits must not be given up for what is far behind it."""
    late = Late(tmp_path / "late")
    worker = StandInTranscriber(late.settings)
    worker.look(late.runner, 0.0)
    (session,) = worker.sessions.values()
    assert isinstance(session.scan(), Utterance)
    assert worker._catch_up.most(late.runner, session) == 6
    late.runner.poison.begin("s together", 50_000, waits=True)
    record = {"pid": os.getpid(), "cause": "signal 11", "ours": False}
    (late.runner.run / "transcriber.exit").write_text(json.dumps(record))
    late.runner.restarted()
    assert worker._catch_up.most(late.runner, session) == 1
    session.position = 50_000
    assert worker._catch_up.most(late.runner, session) == 6
    session.position = 0
    late.runner.poison.begin("s together", 60_000, waits=True)
    record["ours"] = True
    (late.runner.run / "transcriber.exit").write_text(json.dumps(record))
    late.runner.restarted()
    assert worker._catch_up.most(late.runner, session) == 6, "an order is nobody's fault"


@pytest.mark.joined
def test_a_revocation_in_the_middle_moves_nothing_and_is_no_failure(tmp_path: Path, expected: list[str]) -> None:
    late = Late(tmp_path / "late")
    rng = random.Random(1)
    late.runner.piece = lambda: rng.random() > 0.1
    worker = late.life()
    assert late.runner.texts() == expected and sum(worker.sizes) > len(expected)
    assert not late.runner.gaps()

    def not_carried_out() -> bool:
        raise NotCarriedOut

    late = Late(tmp_path / "again")
    late.runner.piece = not_carried_out
    with pytest.raises(NotCarriedOut):
        late.life()
    assert late.runner.poison.ended_badly("s together") == -1


@pytest.mark.joined
@pytest.mark.parametrize("window_pieces", [0, 5])
def test_short_turns_get_on(tmp_path: Path, expected: list[str], window_pieces: int) -> None:
    """The GPU has to be given back after each third piece. What was done at once by then counts; where that is nothing,
    it goes on one by one: a batch that begins again and again would never end."""
    late = Late(tmp_path / "late")
    late.runner.piece = lambda: late.runner.pieces <= 3
    worker = late.life(window_pieces=window_pieces)
    assert late.runner.texts() == expected and not late.runner.gaps()
    assert len(worker.sizes) <= 2 * len(expected)
    assert max(worker.sizes) == 6, "it was tried"
    worker.look(late.runner, 0.0)
    assert not worker._catch_up._alone, "what is known of streams that are over is forgotten"


@pytest.mark.joined
def test_it_looks_ahead_while_the_gpu_is_away(tmp_path: Path) -> None:
    """So that nothing but decoding is left to do when it is back; and it is as late as before."""
    late = Late(tmp_path / "late")
    worker = StandInTranscriber(late.settings)
    worker.look(late.runner, 0.0)
    late.runner.ready = False
    (session,) = worker.sessions.values()
    before = None
    while worker.turn(late.runner):
        before = before or worker.late()
    assert len(session.waiting(6)) + 1 >= 6 or len(session.waiting(9)) < 6
    assert session.heard > session.reached and worker.late() == before and not late.runner.texts()
    assert worker.needs_model()
