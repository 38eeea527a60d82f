"""Several live streams share one worker in turn."""

from __future__ import annotations

import pytest

from common.feed_client import replay
from common.settings import Settings
from tests.conftest import Processes, wait_for
from tests.test_unreadable import ended, recorded

pytestmark = [pytest.mark.processes, pytest.mark.speech]


def test_a_live_stream_that_always_has_work_starves_no_other(processes: Processes, settings: Settings) -> None:
    recorded(settings, "a", 60.0)
    recorded(settings, "b", 60.0)
    feed = processes.start("workers.feed")
    wait_for(lambda: "serving" in feed.output())
    processes.start("arbiter")
    processes.start("workers.transcriber")
    wait_for(lambda: ended(settings) == {"a", "b"}, 60, "the end of both")
    steps = [e.stream for e in replay(settings, kinds=("silence",))]
    assert steps[:8] in (["a", "b"] * 4, ["b", "a"] * 4)
