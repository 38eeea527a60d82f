"""What a decoder makes of a sound: its prompt again, the same words for ever, or what was said."""

from __future__ import annotations

import pytest

from workers.captions import echoes, looping, repeats

pytestmark = pytest.mark.pure

FIRST = "The following is a speech."
BEFORE = "And so, my fellow Americans, ask not what your country can do for you."


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("The following is a speech.", True),
        ("the following is a speech the following", True),
        ("following is a", True),
        ("is a", False),
        ("The following is a", True),
        ("The following was a speech.", False),
        ("", False),
    ],
)
def test_an_echo_of_the_first_prompt_is_all_of_it_or_a_piece(text: str, yes: bool) -> None:
    assert echoes(text, FIRST) is yes


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Ask not what your country can do for you.", True),
        ("what your country", True),
        ("ASK NOT what your country! Ask not what your country?", True),  # twice, without the rest
        ("And so, my fellow Americans, thank you.", True),  # five words of seven
        ("my fellow", False),  # two words are alike by chance: they are judged by P(no speech) alone
        ("Ask what you can do for your country.", False),  # "can do for" is three words of eight
        ("And so, my friends, ask not why.", False),  # "and so my" is three of seven
        ("you for do can country your what not ask", False),
        ("", False),
    ],
)
def test_what_repeats_the_text_before_has_more_than_half_of_its_words_from_there(text: str, yes: bool) -> None:
    assert repeats(text, BEFORE) is yes


def test_nothing_repeats_what_is_not_there() -> None:
    assert not repeats("ask not what your country", "")
    assert not repeats("ask not what", "ask not")


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("no no no no", True),
        ("no no no", False),
        ("come on come on come on come on", True),
        ("ask what you can do, ask what you can do", False),
    ],
)
def test_four_times_the_same_in_a_row_is_a_loop(text: str, yes: bool) -> None:
    assert looping(text) is yes
