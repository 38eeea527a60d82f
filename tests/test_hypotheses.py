"""Interim text with real weights and real speech: what is stable stays, nothing is said twice, silence gives nothing.

No process and no clock here: looks are made at fixed places of a recording, as if there were always time for them.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests import speech
from tests.in_process import run, transcriber
from tests.sounds import computed_sounds
from tests.speech import RATE, Samples, samples, word_errors, words
from tests.system import quiet
from workers.captions import looping
from workers.decoding import Sound
from workers.encoder import PLACE, encode, places
from workers.interim import Interim, Shown, UnderWay
from workers.prompts import Told

pytestmark = pytest.mark.speech


def looks(audio: Samples, every_s: float = 0.5) -> list[Shown]:
    """What is shown after each look at a growing utterance, the last one in the pause behind it."""
    known, seen = Interim(0, 0), list[Shown]()
    ends = [*range(RATE, len(audio), round(every_s * RATE)), len(audio)]
    for end in ends:
        now = UnderWay("s", 0, 0, end, end, audio[:end].tobytes())
        pieces, known.language = run(transcriber().glimpses(now, end, known, Told(language="en")))
        seen.append(known.take(pieces, None if end == len(audio) else end // PLACE))
    return seen


def test_stable_words_of_real_speech_grow_and_are_those_of_the_final() -> None:
    changed = errors = said = 0
    for clip in speech.librivox()[:3]:
        audio = np.concatenate([samples(clip.path), quiet(0.3)])
        seen = looks(audio)
        for before, after in itertools.pairwise(seen):
            changed += not after.stable.startswith(before.stable)
        sound = Sound(audio.tobytes(), (0, len(audio)), (0, len(audio)))
        final = run(transcriber().decoder.hear(sound, Told(language="en")))
        whole = seen[-1].stable + seen[-1].unstable
        errors += word_errors(final.text, whole)
        said += len(words(final.text))
        assert len(seen[-3].stable) > len(whole) // 3, "most of it is stable before its end"
        assert not any(looping(s.stable + s.unstable) for s in seen)
    assert changed == 0
    assert errors <= 0.15 * said


def test_the_decoder_does_not_say_again_what_it_has_said_where_the_window_ends_soon() -> None:
    """These beginnings made a cropped window loop: `Ask not. Ask not. Ask not.`"""
    jfk, shows = samples(speech.jfk().path), 0
    for first_s, end_s in ((3.2, 4.6), (5.2, 7.9), (0.0, 2.4)):
        shown = looks(jfk[round(first_s * RATE) : round(end_s * RATE)])
        said = words(shown[-1].stable + shown[-1].unstable)
        shows += bool(said)
        assert len(said) <= 9, said
        assert len(set(itertools.pairwise(said))) == max(0, len(said) - 1), said
    assert shows >= 2


def test_sounds_that_are_none_show_no_words() -> None:
    shown = [looks(sound[: 3 * RATE], 1.0) for sound in list(computed_sounds().values())[:6]]
    invented = [s.stable + s.unstable for seen in shown for s in seen]
    assert sum(len(words(text)) for text in invented) <= 6, invented


def test_the_cropped_encoder_is_whispers_own_where_the_window_is_whole() -> None:
    torch, model = transcriber().decoder.torch, transcriber().decoder.model
    mel = torch.from_numpy(np.random.default_rng(1).standard_normal((80, 3000), np.float32))
    with torch.no_grad():
        assert torch.equal(encode(torch, model, mel, 1500), model.encoder(mel[None]))
        assert encode(torch, model, mel, places(2 * RATE, 1500)).shape == (1, 200, 384)
