"""The guard over translations: what is wrong is named, what is right is left alone."""

from __future__ import annotations

import pytest

from workers.sentence_parts import parts
from workers.translation_guard import suspect

pytestmark = pytest.mark.pure

RIGHT = [  # English, another language, its code
    ("Hello.", "Olá.", "pt"),
    ("OK.", "OK.", "pt"),
    ("Microsoft Word and Excel.", "Microsoft Word e Excel.", "pt"),
    ("No, no, no!", "Não, não, não!", "pt"),
    ("It is very, very, very good.", "É muito, muito, muito bom.", "pt"),
    ("It costs $1,250.75 in 2024.", "Custa US$ 1.250,75 em 2024.", "pt"),
    ("It costs 1,250 euros.", "Das kostet 1\u00a0250 Euro.", "de"),
    ("We meet at 10:30.", "Encontramo-nos às 10h30.", "pt"),
    ("The shop closes at 7 p.m.", "A loja fecha às 19h.", "pt"),
    ("Ten of us came.", "Vieram 10 de nós.", "pt"),
    ("I have 3 dogs and 10 cats.", "Tenho três cães e dez gatos.", "pt"),
    ("Twenty-five people came.", "Vieram 25 pessoas.", "pt"),
    ("About 20 million people live there.", "那里大约有2000万人。", "zh"),
    ("...", "...", "pt"),
    ("...", "", "pt"),
    ("Yes.", "Sim, senhor presidente.", "pt"),
    ("The more you read, the more you know.", "Quanto mais se lê, mais se sabe.", "pt"),
    ("Room 101.", "१०१ कमरा", "hi"),  # other digits
]
WRONG = [
    ("Hello, everybody.", "", "empty"),
    ("Hello, everybody.", " ...", "empty"),
    ("Thank you.", "Obrigado por assistirem ao vídeo e até à próxima, não se esqueçam de se inscrever.", "runaway"),
    ("What a nice day it is today.", "Que dia bonito, bonito, bonito, bonito.", "repetition"),
    (
        "He said that he would come back tomorrow.",
        "Ele disse que voltaria amanhã, ele disse que voltaria amanhã, ele disse que voltaria amanhã.",
        "repetition",
    ),
    (
        "We will talk about this after lunch today.",
        "Vamos falar sobre isso depois do almoço. Vamos falar sobre isso depois do almoço.",
        "repetition",
    ),
    ("The cat sat on the mat this morning.", "The cat sat on the mat this morning.", "copied"),
    ("The cat sat on the mat this morning.", "The cat sat on the mat this manhã.", "copied"),
    ("It was built in 1984.", "Foi construído em 1948.", "numbers"),
    ("It was built in 1984.", "Foi construído.", "numbers"),
    ("There are 3 of them.", "Há 5 deles.", "numbers"),
    ("It costs $1,250.75 today.", "Custa hoje US$ 1.250.", "numbers"),
]


@pytest.mark.parametrize(("text", "translation", "target"), RIGHT)
def test_what_is_right_is_left_alone(text: str, translation: str, target: str) -> None:
    assert suspect(text, translation, "en", target) == ""


@pytest.mark.parametrize(("text", "translation", "what"), WRONG)
def test_what_is_wrong_has_a_name(text: str, translation: str, what: str) -> None:
    assert suspect(text, translation, "en", "pt") == what


def test_a_text_that_did_not_end_ran_away() -> None:
    assert suspect("The day was long.", "O dia foi", "en", "pt", whole=False) == "runaway"
    assert suspect("The day was long.", "O dia foi", "en", "pt", whole=True) == ""


def words(text: str) -> int:
    return len(text.split())


def test_a_text_that_fits_is_whole() -> None:
    assert parts(" One, two, three. ", words, 3) == ["One, two, three."]


@pytest.mark.parametrize("text", ["One two three, four five six seven.", "a b c d e f g", "x. " * 50, "word, " * 33])
def test_parts_have_all_words_in_order_and_fit(text: str) -> None:
    cut = parts(text, words, 5)
    assert " ".join(cut).split() == text.split()
    assert all(0 < words(part) <= 5 for part in cut)


def test_a_text_is_cut_where_a_reader_would_breathe() -> None:
    assert parts("He came late, and nobody knew why he did.", words, 7)[0] == "He came late,"
    assert parts("Late, he came. Nobody knew why, I think.", words, 5)[0] == "Late, he came."


def test_a_text_without_spaces_is_cut_too() -> None:
    cut = parts("語" * 100, len, 30)
    assert "".join(cut) == "語" * 100 and max(map(len, cut)) <= 30
