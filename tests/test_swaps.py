"""The mission's case: a model that does not fit beside the others gets the card for bursts, and nothing is lost.

Real Whisper on real speech at real-time pace, real processes, the simulated card. `benchmarks/mission.py` plays it for
longer and prints the figures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from common.settings import Settings, SummarySettings
from tests.conftest import Processes, wait_for
from tests.swaps import SwapSystem, Watch, gpu, turns_of
from tests.system import Undisturbed, file_source

pytestmark = [pytest.mark.processes, pytest.mark.speech, pytest.mark.timeout(300)]
TENTH = {  # of 6 : 5 : 3 beside 14 on a card of 16, in MiB; the transcriber is the real one, with ballast
    "transcriber": {"ballast_mib": 250},
    "translator": {"mib": 480},
    "diarizer": {"mib": 280},
    "summarizer": {"mib": 1350, "every_s": 3.0, "burst_s": 2.0},
}


@pytest.fixture(scope="module")
def undisturbed() -> Iterator[Undisturbed]:
    with tempfile.TemporaryDirectory(prefix="sw-") as folder:
        yield Undisturbed(Path(folder))


def swapped(system: SwapSystem, undisturbed: Undisturbed, cycles: int) -> Watch:
    """Play the clip; the journal must be that of a run without swaps, and the card never over its cap."""
    system.start()
    watch = Watch(system.settings)
    try:
        stream = system.ended(240.0).stream
        undisturbed.assert_same(system, stream)
        assert watch.swaps() >= cycles, [s.reason for _, s in watch.states[-5:]]
        assert watch.samples > 100
    finally:
        watch.close()
    for name in ("transcriber", "summarizer"):
        assert "out of GPU memory" not in system.log(name)
        assert "died" not in system.launcher.output()
    return watch


def test_four_models_of_which_one_needs_all_the_others_room(
    processes: Processes, settings: Settings, undisturbed: Undisturbed
) -> None:
    settings = msgspec.structs.replace(settings, gpu=gpu(simulated_mib=1600))
    system = SwapSystem(processes, settings, TENTH, file_source(undisturbed.clip, "1.0"), summaries=True)
    watch = swapped(system, undisturbed, 3)
    assert 1350 < watch.most_mib <= 1600
    turns = turns_of(system, "transcriber")
    assert len(turns) >= 3 and all(t.away_s > 2.0 for t in turns)
    assert {w.worker for w in watch.states[-1][1].workers} == {"transcriber", "translator", "diarizer", "summarizer"}
    system.stop()


def test_whisper_and_the_summarizer_share_a_card_that_holds_one(
    processes: Processes, settings: Settings, undisturbed: Undisturbed
) -> None:
    settings = msgspec.structs.replace(
        settings,
        gpu=gpu(simulated_mib=700),
        summary=SummarySettings(interval_s=15.0, max_new_tokens=24),
    )
    system = SwapSystem(processes, settings, {}, file_source(undisturbed.clip, "1.0"), summaries=True)
    watch = swapped(system, undisturbed, 3)
    assert watch.most_mib <= 700
    stream = system.ended().stream
    summaries = wait_for(lambda: [e for e in system.journal(stream) if e.kind == "summary"], 60, "minutes")
    assert len(summaries) >= 3
    system.stop()
