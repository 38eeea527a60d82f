"""A stream cut into utterances, where the audio is not as it was left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common import backlog
from common import messages as m
from common.settings import TranscriberSettings
from workers.session import Utterance
from workers.steps import Step
from workers.utterances import Utterances
from workers.vad import Floats, Rules, Vad

pytestmark = pytest.mark.pure
SECOND = m.SAMPLE_RATE


class StandInVad(Vad):
    """Takes every sound for speech."""

    def __init__(self) -> None:
        pass

    def step(self, frame: Floats, state: Floats) -> tuple[float, Floats]:
        return float(np.any(frame)), np.zeros_like(state)


@pytest.mark.parametrize("heard_s", [0, 3])
def test_audio_deleted_by_hand_becomes_a_gap_and_what_comes_after_is_heard(tmp_path: Path, heard_s: int) -> None:
    """Some of it is in the worker's memory, the rest nobody will ever hear: each sample has exactly one class."""
    folder = tmp_path / "s"
    ear, writer = opened(folder)
    writer.append(0, bytes(2 * heard_s * SECOND))
    assert ear.scan() is None, "silence is told five seconds at a time"
    writer.append(writer.end, bytes(2 * 10 * SECOND))
    writer.anchor()
    writer.close()
    for _first, path in backlog.audio_files(folder):
        path.unlink()
    spans = steps(ear)
    gone = (heard_s * SECOND, (heard_s + 10) * SECOND)
    assert spans == [*([("silence", (0, gone[0]))] if heard_s else []), (backlog.GONE, gone)]
    writer = backlog.Writer(folder, 60 * SECOND)  # capture is back
    writer.append(gone[1] + SECOND, bytes(2 * 6 * SECOND), reason="capture was down")
    back = gone[1] + SECOND
    assert steps(ear) == [("capture was down", (gone[1], back)), ("silence", (back, ear.position))]
    assert ear.position > back


def test_silence_begins_when_an_utterance_is_over_and_decoded(tmp_path: Path) -> None:
    """A burst waits for silence. In a short pause it would begin in the middle of what is decoded whole afterwards."""
    ear, writer = opened(tmp_path / "s")
    sound = b"\1\1" * SECOND

    def hear(pcm: bytes) -> Step | Utterance | None:
        writer.append(writer.end, pcm)
        return ear.scan()

    assert hear(sound + bytes(2 * SECOND // 4)) is None and ear.silence_s == 0.0, "a pause in an utterance"
    assert hear(sound + bytes(2 * SECOND)) and ear.silence_s == 0.0, "it is over, and waits to be decoded"
    ear.moved(m.At(n=1, positions={"audio": 2 * SECOND + SECOND // 2}, state=b"", head=1))
    assert ear.scan() is None and 0.7 < ear.silence_s <= 1.0


def opened(folder: Path) -> tuple[Utterances, backlog.Writer]:
    """An empty live stream."""
    meta = backlog.Meta(stream="s", source="s", lane="live", origin="", started_ns=0, resumable=False)
    writer = backlog.Writer(folder, 60 * SECOND)
    backlog.write_meta(folder, meta)
    at = m.At(n=0, positions={}, state=b"", head=0)
    return Utterances(folder, meta, at, StandInVad(), Rules.of(TranscriberSettings())), writer


def steps(ear: Utterances) -> list[tuple[str, m.Span]]:
    """Everything that can be told now, as (what, span)."""
    found = []
    while isinstance(step := ear.scan(), Step):
        (body,) = step.events
        assert isinstance(body, m.Silence | m.Gap)
        found.append((body.reason if isinstance(body, m.Gap) else "silence", body.span))
        ear.moved(m.At(n=1, positions=step.positions, state=step.state, head=1))
    assert step is None
    return found
