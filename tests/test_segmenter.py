"""The cutting rules: pure, the same for a process that starts anywhere, never losing a frame."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.settings import TranscriberSettings
from workers.vad import FRAME, Cut, Rules, Segmenter

pytestmark = pytest.mark.pure
RULES = Rules.of(TranscriberSettings())
SMALL = Rules(
    threshold=0.5, pre_roll=2, end_silence=4, post_roll=2, min_speech=2, longest=20, silence_run=12
)  # so that random sequences reach every rule


def cuts(probs: list[float], rules: Rules, ended: bool = True) -> list[Cut]:
    """All cuts of a stream, in absolute frames."""
    out: list[Cut] = []
    at, seg = 0, Segmenter(rules)

    def take(cut: Cut | None) -> None:
        nonlocal at
        while cut is not None:
            voiced = (at + cut.voiced[0], at + cut.voiced[1])
            out.append(Cut(at + cut.start, at + cut.end, voiced))
            at += cut.end
            cut = seg.rebase(cut.end)

    for p in probs:
        take(seg.push(p))
    if ended:
        while (cut := seg.finish()) is not None:
            take(cut)
    return out


probabilities = st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.4, 0.45, 0.6, 0.9, 1.0]), max_size=120)


@given(probabilities)
def test_cuts_tile_the_stream(probs: list[float]) -> None:
    at = 0
    for cut in cuts(probs, SMALL):
        assert at <= cut.start <= cut.end and cut.end > at
        at = cut.end
    assert at == len(probs)


@given(probabilities, st.integers(0, 40))
def test_a_process_that_starts_at_any_cut_cuts_the_same(probs: list[float], which: int) -> None:
    whole = cuts(probs, SMALL)
    if whole:
        start = whole[min(which, len(whole) - 1)].end
        rest = [Cut(c.start + start, c.end + start, c.voiced) for c in cuts(probs[start:], SMALL)]
        rest = [Cut(c.start, c.end, (c.voiced[0] + start, c.voiced[1] + start)) for c in rest]
        assert rest == [c for c in whole if c.end > start]


@given(probabilities, probabilities)
def test_a_cut_does_not_depend_on_what_comes_later(probs: list[float], more: list[float]) -> None:
    early = cuts(probs, SMALL, ended=False)
    assert cuts(probs + more, SMALL, ended=False)[: len(early)] == early


@given(probabilities)
@example([0.0] * 2 + [0.6, 0.4, 0.4] + [0.0] * 3 + [0.4] + [0.0] * 3 + [0.4, 0.4] + [0.0] * 3 + [0.6, 0.6, 0.0])
def test_no_utterance_is_too_long_and_all_sure_speech_is_in_one(probs: list[float]) -> None:
    found = cuts(probs, SMALL)
    spoken = {f for c in found for f in range(c.start, c.end)}
    for c in found:
        assert c.end - c.start <= SMALL.longest + SMALL.post_roll
    run = 0
    for i, p in enumerate(probs):  # any run of sure frames as long as min_speech is speech to the last frame
        run = run + 1 if p >= SMALL.threshold else 0
        if run >= SMALL.min_speech:
            assert set(range(i + 1 - run, i + 1)) <= spoken


def test_an_utterance_ends_half_a_second_after_its_last_speech_and_keeps_its_rolls() -> None:
    seg = Segmenter(RULES)
    for p in [0.0] * 30 + [0.9] * 40:
        assert seg.push(p) is None
    silent = 0
    while (cut := seg.push(0.0)) is None:
        silent += 1
    assert (silent + 1) * FRAME / 16_000 == pytest.approx(0.5, abs=0.04)
    assert cut.voiced == (30, 70)
    assert cut.start == 30 - RULES.pre_roll and cut.end == 70 + RULES.post_roll


def test_long_speech_is_cut_at_its_best_pause() -> None:
    probs = [0.95] * 300 + [0.2] * 6 + [0.95] * 300
    first = cuts(probs, RULES)[0]
    assert 300 <= first.end <= 306  # inside the pause, which is too short to end an utterance
    assert first.end * FRAME / 16_000 < 15


def test_a_click_is_no_utterance() -> None:
    assert all(c.start == c.end for c in cuts([0.0] * 20 + [0.99] * 2 + [0.0] * 60, RULES))
