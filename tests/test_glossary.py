"""Names and terms in the decoder's prompt, pure: how many fit, when nothing else was heard, what settings take."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.given_sources import parse
from common.settings import Settings, TranscriberSettings, UserError, load
from workers import glossary
from workers.prompts import MOST, PROMPT_TOKENS, WHOLE, Prompts, Told, Try

pytestmark = pytest.mark.pure
TERMS = ("Norland", "Ana de la Cruz", "niggarding")


def test_half_of_the_words_are_terms_or_it_is_a_sentence_with_terms() -> None:
    assert glossary.mostly("Norland.", TERMS) and glossary.mostly("norland, NIGGARDING!", TERMS)
    assert glossary.mostly("Norland is", TERMS) and glossary.mostly("de la", TERMS)
    assert not glossary.mostly("We go to Norland on Monday", TERMS)
    assert not glossary.mostly("", TERMS) and not glossary.mostly("Norland", ())


def test_something_like_it_was_heard_without_the_terms_or_it_was_not() -> None:
    assert glossary.alike("Norland", "Norlund.") and glossary.alike("Zyblikiewicz", "Ziblikevich")
    assert not glossary.alike("Norland", "you") and not glossary.alike("Norland", "")
    assert not glossary.alike("Norland, niggarding", "Thank you.")


def test_the_first_terms_that_fit_are_told() -> None:
    assert glossary.told(()) == "" and glossary.told(TERMS) == " Norland, Ana de la Cruz, niggarding."
    assert glossary.fitting(TERMS, len, 100) == TERMS
    assert glossary.fitting(TERMS, len, 30) == TERMS[:2]
    assert glossary.fitting(TERMS, len, 3) == ()


class StandInWhisper:
    """A tokenizer that makes a token of each letter."""

    is_multilingual, num_languages = True, 99

    def __init__(self) -> None:
        self.tokenizer = self.encoding = self

    def get_tokenizer(self, *args: object, **more: object) -> StandInWhisper:
        return self

    def encode(self, text: str) -> list[int]:
        return self.encode_ordinary(text)

    def encode_ordinary(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode()


def test_glossary_first_prompt_and_text_before_fit_and_the_oldest_words_go() -> None:
    whisper, s = StandInWhisper(), TranscriberSettings(first_prompt="A speech.")
    prompts = Prompts(s, whisper, whisper)
    before = tuple(range(1000, 1000 + PROMPT_TOKENS))
    for terms in ((), TERMS, ("x" * 97,)):
        told = Told(language="en", before=before, terms=terms)
        tokens = prompts.tokens(told)
        kept = tuple(t for t in tokens if t >= 1000)
        assert len(tokens) <= MOST and kept == before[-len(kept) :] and len(kept) == PROMPT_TOKENS
        assert whisper.decode([t for t in tokens if t < 1000]) == glossary.told(terms) + " A speech."
    short = Told(language="en", before=before, terms=("x" * 150,))
    assert len(prompts.tokens(short)) == MOST and prompts.tokens(short)[-1] == before[-1]
    assert prompts.tokens(Told(language="pt", before=before)) == before, "the first prompt is English"
    assert prompts.tokens(short, Try()) == () and prompts.tokens(short, WHOLE._replace(glossary=False))[0] == ord(" ")


def test_a_language_of_the_source_goes_before_that_of_the_settings() -> None:
    whisper = StandInWhisper()
    for wanted, setting, multilingual, fixed in (
        ("", "auto", True, ""),
        ("", "pt", True, "pt"),
        ("auto", "pt", True, ""),
        ("fr", "pt", True, "fr"),
        ("", "auto", False, "en"),
    ):
        whisper.is_multilingual = multilingual  # type: ignore[misc]
        assert Prompts(TranscriberSettings(language=setting), whisper, whisper).fixed(wanted) == fixed


def test_sources_and_settings_take_languages_and_glossaries(tmp_path: Path) -> None:
    config = tmp_path / "s.toml"
    config.write_text('[transcriber]\nglossary = ["Norland"]\n[[source]]\nname = "a"\nkind = "microphone"\n')
    assert load(config, (), {}).transcriber.glossary == ("Norland",)
    given = load(config, ('transcriber.glossary=["Ana de la Cruz", "Orsk"]', "transcriber.language=pt"), {})
    assert given.transcriber.glossary == ("Ana de la Cruz", "Orsk") and given.source[0].language == ""
    source = parse("mic language=pt glossary=Orsk,Ufa")
    assert (source.language, source.glossary) == ("pt", ("Orsk", "Ufa"))
    for bad in ('transcriber.glossary=["", "x"]', "transcriber.language=Portuguese", "transcriber.language="):
        with pytest.raises(UserError, match="transcriber"):
            load(config, (bad,), {})
    with pytest.raises(UserError, match=r"--source mic language=Français.language: 'Français' is neither auto nor"):
        parse("mic language=Français")
    assert Settings().transcriber.glossary == ()
