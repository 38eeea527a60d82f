"""Which language a stream is decoded in, pure: evidence adds up, a language stays, a real switch is followed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.language import PAUSED, SETTLED, STICKY, Belief
from workers.prompts import MOST, PROMPT_TOKENS, Told
from workers.utterances import State, unpack

pytestmark = pytest.mark.pure
CODES = ("en", "es", "pt", "ru")
EN = Belief().heard({"en": 0.95, "es": 0.03, "pt": 0.02}, 5.0)


def clear(code: str, p: float = 0.96) -> dict[str, float]:
    return {c: p if c == code else (1 - p) / (len(CODES) - 1) for c in CODES}


def test_nothing_is_believed_before_somebody_has_spoken() -> None:
    assert Belief().best == "" and not Belief().settled


def test_one_clear_utterance_settles_it_and_unclear_ones_add_up() -> None:
    assert Belief().heard(clear("pt"), 4.0).settled
    belief, unclear = Belief(), {"pt": 0.45, "es": 0.35, "en": 0.15, "ru": 0.05}
    settled = []
    for _ in range(12):
        belief = belief.heard(unclear, 4.0)
        assert belief.best == "pt"
        settled.append(belief.settled)
    assert settled[0] is False and settled[-1] is True


def test_a_short_first_word_does_not_settle_it() -> None:
    belief = Belief().heard(clear("ru", 0.7), 0.5)
    assert belief.best == "ru" and not belief.settled
    assert belief.heard(clear("en"), 4.0).best == "en"


def test_a_language_stays_against_a_short_or_unclear_utterance_in_another() -> None:
    assert EN.heard(clear("es"), 0.8).best == "en"
    assert EN.heard({"es": 0.6, "en": 0.3, "pt": 0.1}, 6.0).best == "en"


def test_a_clear_switch_is_followed_at_once_and_short_ones_together() -> None:
    assert EN.heard(clear("es", 0.99), 5.0).best == "es"
    once = EN.heard(clear("es", 0.99), 1.2)
    assert once.best == "en" and not once.settled, "what follows must be listened to"
    assert once.heard(clear("es", 0.99), 1.2).best == "es"


def test_between_two_short_doubts_the_language_is_heard_again_and_they_do_not_add_up() -> None:
    belief = EN
    for _ in range(5):
        belief = belief.heard(clear("es", 0.99), 1.2).heard(clear("en"), 4.0)
        assert belief.best == "en" and belief.settled


def test_after_a_long_pause_less_will_do_and_the_old_language_is_still_the_first_guess() -> None:
    said = {"es": 0.6, "en": 0.2, "pt": 0.2}
    assert EN.heard(said, 4.0).best == "en" and EN.paused().heard(said, 4.0).best == "es"
    assert EN.paused().heard({"es": 0.4, "en": 0.35, "pt": 0.25}, 4.0).best == "en"
    assert not EN.paused().settled


def test_a_text_that_fits_badly_is_tried_in_what_the_utterance_itself_sounds_like() -> None:
    usual = EN.wrote(-0.3).wrote(-0.25)
    assert usual.rival(clear("es"), -0.35, failed=False) == ""
    assert usual.rival(clear("es"), -0.9, failed=False) == "es"
    assert usual.rival(clear("es"), -0.3, failed=True) == "es"
    assert usual.rival(clear("en"), -0.9, failed=True) == "", "it sounds like the language that it is"
    proved = usual.proved("es")
    assert proved.best == "es" and not proved.settled and proved.usual == 0.0
    assert proved.heard(clear("en"), 4.0).best == "en", "a language that was proved once does not stay for long"


def test_while_nothing_is_settled_a_close_second_is_tried_too() -> None:
    unclear = {"pt": 0.45, "es": 0.35, "en": 0.2}
    assert Belief().heard(unclear, 4.0).rival(unclear, -0.3, failed=False) == "es"
    assert Belief().heard(clear("pt"), 4.0).rival(clear("pt"), -0.3, failed=False) == ""


def test_another_language_has_another_usual_fit() -> None:
    assert EN.wrote(-0.3).heard(clear("es", 0.99), 5.0).usual == 0.0
    assert EN.wrote(-0.3).heard(clear("en"), 5.0).usual == -0.3


def test_text_before_in_another_language_is_no_context() -> None:
    told = Told(before=(1, 2), belief=EN)
    assert told.within("en").before == (1, 2) and told.within("es").before == ()
    assert Told(language="es", before=(1, 2), belief=EN).within("es").before == (1, 2), "as it was asked for"
    assert MOST > 2 * PROMPT_TOKENS


@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4), st.floats(0.0, 15.0), st.booleans(), st.floats(-3, 0)
        ),
        max_size=20,
    )
)
def test_whatever_is_heard_the_belief_is_bounded_and_travels_as_it_is(
    heard: list[tuple[list[float], float, bool, float]],
) -> None:
    belief = Belief()
    for probs, seconds, paused, logprob in heard:
        before = belief.paused() if paused else belief
        belief = before.heard(dict(zip(CODES, probs, strict=True)), seconds).wrote(logprob)
        assert belief.best in CODES and belief.best not in belief.rivals
        assert all(0.0 <= odds <= STICKY for odds in belief.rivals.values())
        assert unpack(msgspec.msgpack.encode(State(belief=belief))).belief == belief
    assert STICKY > SETTLED > PAUSED
