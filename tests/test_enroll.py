"""A voiceprint is made of one voice and enough of it, or not at all."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common import models, voiceprints
from common.settings import Settings, UserError
from tests import speech
from tests.conftest import ROOT, clean_environment
from workers.enroll import Part, one_voice

RATE = 16_000


def part(seconds: float, x: float, y: float) -> Part:
    voice = np.array([x, y], np.float32)
    return Part(np.zeros(round(seconds * RATE), np.float32), voice / np.linalg.norm(voice))


@pytest.mark.pure
def test_the_voice_that_speaks_most_is_taken_and_the_others_are_counted() -> None:
    mine = [part(4, 1, 0), part(3, 1, 0.2), part(2, 1, -0.1)]
    other = part(3.5, 0, 1)
    brief = part(1.0, -1, 0)
    found, others_s = one_voice([other, *mine, brief])
    assert [id(p) for p in found] == [id(p) for p in mine] and others_s == 3.5, "what is brief proves no other voice"
    assert one_voice([]) == ([], 0.0)


def enroll(settings: Settings, path: Path, name: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "common.cli", "--data", settings.data_dir, "speakers", "enroll", str(path)]
    return subprocess.run(
        [*argv, "--name", name], capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=200
    )


@pytest.fixture(scope="module")
def weights() -> None:
    try:
        models.available(Settings(), Settings().speakers.model)
    except UserError as e:
        pytest.skip(str(e))


@pytest.mark.speech
def test_a_voice_is_enrolled_and_two_or_too_little_are_refused(settings: Settings, weights: None) -> None:
    kennedy = speech.jfk().path
    done = enroll(settings, kennedy, "John  K.")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.startswith("John K.: voiceprint made from ") and " s of speech in 11.0 s" in done.stdout
    (voice,) = voiceprints.read(settings)
    assert voice.name == "John K." and 5.0 < voice.seconds <= 11.0 and voice.model == settings.speakers.model
    assert abs(np.linalg.norm(voice.embedding) - 1) < 1e-5
    assert stat.S_IMODE((voiceprints.folder(settings) / "John K..json").stat().st_mode) == 0o600
    for path, why in (
        (speech.talks()[0].path, r"two voices at least \(1\d\.\d s of one, \d+\.\d s of others\); one is needed"),
        (ROOT / "README.md", "not an audio or video file"),
    ):
        done = enroll(settings, path, "Two")
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
        assert re.search(why, done.stderr), done.stderr
    short = settings.data / "short.wav"
    speech.write_wav(short, speech.samples(kennedy)[: 4 * RATE])
    done = enroll(settings, short, "Brief")
    assert done.returncode == 2 and "s of speech in 4.0 s; a voiceprint needs 5 s at least" in done.stderr
    assert [v.name for v in voiceprints.read(settings)] == ["John K."], "what was refused left nothing"
    again = voiceprints.read(settings)[0].embedding
    assert enroll(settings, kennedy, "John K.").returncode == 0
    assert voiceprints.read(settings)[0].embedding == again, "the same sound, the same print"
