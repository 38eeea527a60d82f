"""Who said it, with real models, from a file to its subtitles: two people on the telephone, whose turns are known."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from common import models
from common.settings import Settings, UserError
from tests import speech
from tests.conftest import Processes
from tests.export_readers import read_vtt
from tests.test_transcribe import Alone

pytestmark = pytest.mark.speech
LEAST_RIGHT = 0.85  # of the words; the two interrupt each other in 30 s ten times


@pytest.fixture
def alone(processes: Processes, settings: Settings) -> Alone:
    try:
        models.available(settings, settings.speakers.model)
    except UserError as e:
        pytest.skip(str(e))
    return Alone(processes, settings)


def truth(path: Path) -> list[tuple[float, float, str]]:
    rows = map(str.split, path.with_suffix(".rttm").read_text().splitlines())
    return [(float(r[3]), float(r[3]) + float(r[4]), r[7]) for r in rows]


def right(row: dict[str, object], turns: list[tuple[float, float, str]]) -> float:
    """Share of the words that stand with their speaker, of those spoken in somebody's turn alone."""
    said: list[tuple[str, str]] = []
    for segment in row["segments"]:  # type: ignore[attr-defined]
        of = [r["speaker"] for r in segment["runs"] for _ in r["text"].split()]
        assert len(of) == len(segment["words"])
        for word, speaker in zip(segment["words"], of, strict=True):
            middle = (word["start_s"] + word["end_s"]) / 2
            who = {s for a, b, s in turns if a <= middle < b}
            if len(who) == 1:
                said.append((who.pop(), speaker or "?"))
    real, found = {a for a, _ in said}, sorted({b for _, b in said} - {"?"})
    names = [dict(zip(p, real, strict=False)) for p in itertools.permutations(found, min(len(found), len(real)))]
    return max(sum(name.get(b) == a for a, b in said) for name in names) / len(said)


def test_a_telephone_call_is_told_apart_in_all_formats(alone: Alone, folder: Path) -> None:
    call = speech.talks()[0].path
    done = alone(call, "--speakers", "--format", "json", "--words")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    share = right(row, truth(call))
    assert share >= LEAST_RIGHT, (share, row["speakers"])
    assert len([s for s in row["speakers"] if s["seconds"] >= 2.0]) == 2
    alone.gone()
    done = alone(call, "--speakers", "--format", "vtt")  # nothing is done again
    assert done.returncode == 0 and "was transcribed before" in done.stderr
    voices = set(re.findall("<v ([^>]+)>", done.stdout))
    assert {s["speaker"] for s in row["speakers"] if s["seconds"] >= 2.0} <= voices
    assert read_vtt(done.stdout)
    alone.gone()
    plain = alone(call, "--format", "txt")
    assert plain.returncode == 0
    assert {name.rstrip(":") for name in re.findall(r"^\S+:(?= )", plain.stdout, re.MULTILINE)} - {"?"} == voices - {
        "?"
    }
