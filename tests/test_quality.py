"""Captions of real speech, and none of sounds that are no speech: the whole system with real weights.

What runs here is what fits a test run; `benchmarks/quality.py` runs everything, with both models.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from common.settings import Settings
from tests import quality, speech
from tests.conftest import Processes
from tests.quality import Heard, Tape

pytestmark = [pytest.mark.processes, pytest.mark.speech, pytest.mark.timeout(600)]

# Of the noise and music set: everything that ever became words with one of the models, and some of each family.
SOUNDS = (
    "ambi_choir", "ambi_haunted_hum", "barking", "bass_voxy_c", "bass_woodsy_c", "drum_splash_soft", "elec_chime",
    "glitch_robot1", "guit_em9", "loop_amen_full", "loop_garzul", "loop_perc1", "mehackit_phone3", "mehackit_robot2",
    "perc_door", "tabla_tun2", "vinyl_backspin", "vinyl_rewind",
)  # fmt: skip


class Evening(NamedTuple):
    """One run of the system over everything that these tests look at."""

    heard: dict[str, Heard]
    clips: dict[str, speech.Clip]
    tape: Tape
    sounds_s: float


@pytest.fixture(scope="module")
def evening() -> Iterator[Evening]:
    folder = Path(tempfile.mkdtemp(prefix="sw-"))
    settings = Settings(data_dir=str(folder / "data"))
    processes = Processes(folder, settings)
    jfk, books, (first, *_) = speech.jfk(), speech.librivox(), speech.sonnet_parts()
    clips = {"jfk": jfk, **{f"book{i}": clip for i, clip in enumerate(books)}, "sonnet": first}
    sonnet = speech.samples(first.path)
    placed = [(c.path.stem, speech.samples(c.path)) for c in (jfk, *books)]
    placed += [(f"sonnet phrase {i}", p) for i, p in enumerate(quality.phrases(sonnet))]
    tape = Tape(placed)
    sounds = Tape([(p.stem, speech.samples(p)) for p in speech.noise_and_music() if p.stem in SOUNDS])
    recordings = {name: clip.path for name, clip in clips.items()}
    recordings |= {"tape": tape.write(folder / "tape.wav"), "sounds": sounds.write(folder / "sounds.wav")}
    try:
        heard = quality.hear(processes, settings, recordings)
        yield Evening(heard, clips, tape, len(sounds.samples) / speech.RATE)
    finally:
        processes.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def direct(evening: Evening) -> quality.Direct:
    return quality.Direct(Settings(), Settings().transcriber.model)


@pytest.mark.parametrize("name", ["jfk", *(f"book{i}" for i in range(5)), "sonnet"])
def test_as_many_words_are_right_as_with_whisper_called_on_the_clip(
    evening: Evening, direct: quality.Direct, name: str
) -> None:
    clip, heard = evening.clips[name], evening.heard[name]
    alone = direct(speech.samples(clip.path))
    allowed = 1 if heard.end <= 30 * speech.RATE else 0.03 * len(speech.words(clip.text))
    ours, theirs = speech.word_errors(clip.text, heard.text), speech.word_errors(clip.text, alone)
    assert ours <= theirs + allowed, f"said:  {clip.text}\nours:  {heard.text}\nalone: {alone}"


def test_first_and_last_words_lie_where_the_sound_begins_and_ends(evening: Evening) -> None:
    errors = quality.edge_errors(evening.heard["tape"], evening.tape)
    assert len(errors) >= 12
    assert quality.share_of_edges(errors) >= 0.9, errors


def test_words_are_in_order_and_inside_their_caption(evening: Evening) -> None:
    for name, heard in evening.heard.items():
        assert not quality.disordered(heard), name
        for t in heard.transcripts:
            assert "".join(w.text for w in t.words).split() == t.text.split(), name


def test_sounds_that_are_no_speech_have_no_captions(evening: Evening) -> None:
    heard = evening.heard["sounds"]
    assert heard.end >= evening.sounds_s * speech.RATE - 1
    allowed = 0.5 * evening.sounds_s / 60
    assert quality.phantom_words(heard) <= allowed, [t.text for t in heard.transcripts]


def test_hardly_a_word_that_is_said_is_suppressed(evening: Evening) -> None:
    said = [*evening.clips, "tape"]
    total = sum(len(speech.words(c.text)) for c in evening.clips.values())
    lost = {name: evening.heard[name].suppressed for name in said if evening.heard[name].suppressed}
    assert sum(quality.suppressed_words(evening.heard[name]) for name in said) <= 0.005 * total, lost


def test_hardly_a_second_of_speech_is_called_silence(evening: Evening) -> None:
    parts = [quality.silenced_s(evening.heard[n], speech.samples(c.path)) for n, c in evening.clips.items()]
    parts += [quality.silenced_s(evening.heard["tape"], clip, at[0]) for at, clip in evening.tape.places.values()]
    silenced, spoken = np.sum(parts, axis=0)
    assert spoken > 60
    assert silenced <= 0.01 * spoken, parts


def test_every_second_has_exactly_one_class(evening: Evening) -> None:
    # That the spans of events tile each stream without hole or overlap is asserted where they are read, in hear().
    for name, heard in evening.heard.items():
        assert heard.end > 0
        assert quality.unclassified(heard) == 0, (name, heard.coverage)
