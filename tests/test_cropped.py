"""Finals in a window cropped to their speech, with real weights: as good as in the whole window, and never worse.

No process and no clock here; what it costs is measured by `benchmarks/crop.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.settings import TranscriberSettings
from tests import speech
from tests.in_process import run, transcriber
from tests.sounds import computed_sounds
from tests.speech import RATE, Samples, samples, word_errors
from tests.system import quiet
from workers import cropped
from workers.captions import again
from workers.decoding import Decoded, Decoder, Sound
from workers.encoder import encode
from workers.prompts import Told
from workers.silence import KeptSilence


def sound(audio: Samples) -> Sound:
    return Sound(audio.astype("<i2").tobytes(), (0, len(audio)), (0, len(audio)))


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoder]:
    """The transcriber's; what a test changes in it is as before afterwards."""
    decoder = transcriber().decoder
    monkeypatch.setattr(decoder, "s", decoder.s)
    monkeypatch.setattr(decoder, "whole", decoder.whole)
    monkeypatch.setattr(decoder, "encoder", cropped.Encoder(decoder.torch, decoder.model))
    yield decoder


def hear(decoder: Decoder, audio: Samples, prompt: tuple[int, ...] = (), whole: bool = False) -> Decoded:
    decoder.whole = whole
    done: Decoded = run(decoder.hear(sound(audio), Told(language="en", before=prompt)))
    return done


def asked(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each utterance that the whole window is asked about."""
    times, decode = list[int](), decoder._decode

    def counted(*args: Any) -> Any:
        times.append(1)
        return decode(*args)

    monkeypatch.setattr(decoder, "_decode", counted)
    return times


# Pure


@pytest.mark.pure
def test_the_window_is_the_speech_and_two_seconds_in_steps_of_half_a_second() -> None:
    assert cropped.window(100, 1500) == 150
    assert cropped.window(101, 1500) == 175
    assert cropped.window(1500, 1500) == 850
    assert cropped.window(2790, 1500) == cropped.window(3000, 1500) == 1500, "never more than there is"


@pytest.mark.pure
@pytest.mark.pure
@pytest.mark.parametrize(
    ("model", "window", "whole"),
    [("tiny.en", "auto", False), ("base", "auto", True), ("base", "cropped", False), ("tiny.en", "whole", True)],
)
def test_only_what_was_measured_to_bear_it_is_cropped_by_itself(model: str, window: str, whole: bool) -> None:
    assert cropped.whole(TranscriberSettings(model=model, window=window)) == whole


def test_who_says_the_same_twice_in_a_row_turns_round() -> None:
    assert cropped.turns_round([7, 1, 2, 3, 1, 2, 3]) and cropped.turns_round([5, 5])
    assert not any(cropped.turns_round(some) for some in ([], [1], [1, 2], [1, 2, 1], [1, 2, 3, 9, 1, 2, 3]))
    assert not cropped.turns_round([1, 1, 2]), "it said so when it came to it"


@pytest.mark.pure
def test_four_words_that_come_again_anywhere_are_a_doubt() -> None:
    assert again("Ask not what your country can do. And ask not what your mother can do.")
    assert not again(speech.JFK_TEXT)
    assert not again("It is what it is.") and not again("")


# Speech


@pytest.mark.speech
def test_plain_speech_is_heard_as_well_and_only_once(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {True: 0, False: 0}
    times = asked(decoder, monkeypatch)
    for clip in speech.librivox()[1:4]:
        audio = np.concatenate([samples(clip.path), quiet(0.3)])
        heard = {whole: hear(decoder, audio, whole=whole) for whole in (True, False)}
        for whole, done in heard.items():
            assert not done.reason and done.words
            errors[whole] += word_errors(clip.text, done.text)
        if heard[True].text == heard[False].text:
            for a, b in zip(heard[True].words, heard[False].words, strict=True):
                assert abs(a.span[1] - b.span[1]) <= 0.3 * RATE, (a, b)
    assert len(times) == 3, "once for each that was heard in the whole window on purpose"
    assert errors[False] <= errors[True] + 2, "one word heard as another (of 39)"


@pytest.mark.speech
def test_a_doubt_gives_exactly_what_the_whole_window_gives(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = samples(speech.librivox()[1].path)
    prompt = tuple(decoder.prompts.tokenizer("en").encode(" Mr. John Dashwood had then leisure to consider."))
    noise = computed_sounds()["pink noise -40 dBFS"][: 2 * RATE]
    times = asked(decoder, monkeypatch)
    assert hear(decoder, noise, prompt) == hear(decoder, noise, prompt, whole=True), "it doubts by itself"
    expected = hear(decoder, clip, prompt, whole=True)
    monkeypatch.setattr(cropped, "decode", lambda *args: [None])
    assert hear(decoder, clip, prompt) == expected and expected.words
    assert len(times) == 4


@pytest.mark.speech
def test_the_same_utterance_is_the_same_final_in_another_life(decoder: Decoder) -> None:
    """What the encoder makes of silence is found anew where it was not kept."""
    audio = samples(speech.librivox()[3].path)
    first = hear(decoder, audio)
    decoder.encoder = cropped.Encoder(decoder.torch, decoder.model)
    assert hear(decoder, samples(speech.jfk().path)[: 2 * RATE]).text
    assert hear(decoder, audio) == first


@pytest.mark.speech
def test_what_it_makes_of_silence_is_kept_for_the_next_life(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, times, embed = tmp_path / "silence.safetensors", list[int](), decoder.model.embed_audio
    monkeypatch.setattr(decoder.model, "embed_audio", lambda mel: times.append(1) or embed(mel))
    mel = decoder._spectrum(samples(speech.jfk().path)[: 2 * RATE].astype(np.float32) / 2**15).mel

    def encoded(weights: str = "tiny.en 1a2b") -> Any:
        return cropped.Encoder(decoder.torch, decoder.model, KeptSilence(path, weights))(mel, 200)

    first = encoded()
    assert times == [1] and decoder.torch.equal(encoded(), first) and times == [1]
    encoded("base 3c4d")
    assert times == [1, 1], "another model makes something else of silence"
    encoded("base 3c4d")
    assert times == [1, 1]
    for damaged in (b"", path.read_bytes()[:-1], path.read_bytes()[:-1] + b"x", b"x" * 100):
        path.write_bytes(damaged)
        times.clear()
        assert decoder.torch.equal(encoded(), first) and times == [1]
    path.unlink()
    path.mkdir()  # nothing can be written there
    times.clear()
    assert decoder.torch.equal(encoded(), first) and times == [1]


@pytest.mark.speech
def test_a_glossary_may_spell_a_special_token(decoder: Decoder) -> None:
    terms = ("<|endoftext|>", "Norland")
    assert decoder.prompts.fitting(terms) == terms
    eot = decoder.prompts.tokenizer("en").eot
    assert all(token < eot for token in decoder.prompts.terms(terms))
    told = Told(language="en", terms=terms)
    assert "country" in run(decoder.hear(sound(samples(speech.jfk().path)), told)).text


class Short:
    """A stand-in for a window that ends soon after the speech: whisper is told that it has never been longer."""

    def __init__(self, model: Any, places: int) -> None:
        self._model, self.dims = model, dataclasses.replace(model.dims, n_audio_ctx=places)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.mark.speech
def test_a_loop_is_stopped_early_and_not_believed(decoder: Decoder) -> None:
    """Without the silence behind it tiny.en says this beginning again and again."""
    audio = samples(speech.jfk().path)[1024:40448]
    spectrum = decoder._spectrum(audio.astype(np.float32) / 32768)
    n = cropped.window(spectrum.frames, 1500)
    features = encode(decoder.torch, decoder.model, decoder.moved(spectrum.mel), n)
    short, options = Short(decoder.model, n), decoder._options(0.0, "en", decoder.prompts.first("en"))
    endless = decoder.whisper.decode(short, features[0], dataclasses.replace(options, sample_len=60))
    assert endless.text.count("fellow Americans") > 3, "no loop any more: this test needs another one"
    steps: list[int] = []
    hook = decoder.model.decoder.register_forward_hook(lambda *args: steps.append(1))
    try:
        assert cropped.decode(decoder.whisper, short, features, options, spectrum.frames) == [None]
    finally:
        hook.remove()
    assert len(steps) <= 2 * 8, "twice the sentence"


@pytest.mark.pure
def test_a_text_of_a_batch_that_turns_round_ends_alone() -> None:
    logits = np.zeros((2, 9), np.float32)
    guard = cropped.Circles(begin=1, eot=8)
    tokens = np.array([[0, 1, 2, 3, 4], [0, 1, 2, 1, 2]])
    guard.apply(logits, tokens)
    assert guard.found == {1} and not logits[0].any()
    assert logits[1, 8] == 0 and np.isneginf(logits[1, :8]).all()
