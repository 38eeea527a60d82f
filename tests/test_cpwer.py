"""cpWER on cases whose answer is known. Left out where meeteval is not installed: a C compiler builds it."""

from __future__ import annotations

import pytest

from benchmarks.scores import cpwer

pytestmark = pytest.mark.pure
SAID = {"a": "Good morning, everybody.", "b": "Shall we begin now?"}


def test_other_names_are_no_error() -> None:
    assert cpwer(SAID, {"S2": "good morning everybody", "S1": "shall we begin now"}) == (0, 7)


def test_a_word_of_the_wrong_speaker_is_missed_and_invented() -> None:
    assert cpwer(SAID, {"S1": "good morning", "S2": "everybody shall we begin now"}) == (2, 7)


def test_a_wrong_word_counts_once() -> None:
    assert cpwer(SAID, {"S1": "good evening everybody", "S2": "shall we begin now"}) == (1, 7)


def test_one_speaker_too_many_or_too_few() -> None:
    assert cpwer(SAID, {"S1": "good morning everybody", "S2": "shall we", "S3": "begin now"}) == (4, 7)
    assert cpwer(SAID, {"S1": "good morning everybody shall we begin now"}) == (6, 7), "it is b, with a's 3 words"


def test_nothing_heard() -> None:
    found = cpwer(SAID, {})
    assert found == (7, 7)
    assert found.percent == 100
