"""Readers of what is exported: each file by a strict reading of its format's grammar and by a library of others.

They must agree, so that neither what a forgiving library overlooks nor what we misread of the grammar passes.
"""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import av
import srt
import webvtt
from av.subtitles.subtitle import AssSubtitle

CLOCK = r"(\d{2,}):([0-5]\d):([0-5]\d)%s(\d{3})"
SECOND = timedelta(seconds=1)
Cues = list[tuple[float, float, list[str]]]  # start, end in seconds, lines


def read_srt(text: str) -> Cues:
    """A strict SubRip reader: counted from 1, `HH:MM:SS,mmm --> HH:MM:SS,mmm`, lines, one empty line.

    Nothing may look like a tag; brackets that were made wide for that are returned as they were said.
    """
    out, blocks = [], text.split("\n\n")
    assert blocks.pop() == "", "ends with an empty line"
    for n, block in enumerate(blocks, 1):
        number, times, *lines = block.split("\n")
        assert number == str(n)
        found = re.fullmatch(f"{CLOCK % ','} --> {CLOCK % ','}", times)
        assert found and lines and all(line.strip() == line and line for line in lines), block
        assert not re.search(r"(?s)<.*>|{.*}", "\n".join(lines)), block
        out.append((seconds(found.groups()[:4]), seconds(found.groups()[4:]), lines))
    read = [(c.start / SECOND, c.end / SECOND, c.content.split("\n")) for c in srt.parse(text)]
    assert read == out
    said = str.maketrans("＜｛", "<{")
    return [(start, end, [line.translate(said) for line in lines]) for start, end, lines in out]


def shown(text: str, folder: Path) -> list[str]:
    """The text of each cue of a SubRip file as ffmpeg makes it of it for players (ASS)."""
    path = folder / "talk.srt"
    path.write_text(text)
    with av.open(path) as file:
        found = [rect for packet in file.demux() for rect in packet.decode() if isinstance(rect, AssSubtitle)]
    return [rect.ass.decode().split(",", 8)[8] for rect in found]


def read_vtt(text: str) -> Cues:
    """A strict WebVTT reader (W3C, section 4): the cue text has no bare `&`, `<` and no `-->`."""
    head, *blocks = text.split("\n\n")
    assert head == "WEBVTT" and blocks.pop() == ""
    out = []
    for block in blocks:
        times, *lines = block.split("\n")
        found = re.fullmatch(f"{CLOCK % '.'} --> {CLOCK % '.'}", times)
        assert found and lines
        lines[0] = re.sub(r"^<v [^<>\n]+>", "", lines[0])  # whose voice it is
        for line in lines:
            assert "-->" not in line and "<" not in line and re.fullmatch(r"(?:[^&]|&(?:amp|lt|gt);)+", line), line
        plain = [x.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for x in lines]
        out.append((seconds(found.groups()[:4]), seconds(found.groups()[4:]), plain))
    read = [(c.start_in_seconds, c.end_in_seconds) for c in webvtt.from_string(text)]
    assert read == [(int(start), int(end)) for start, end, _ in out] and len(read) == len(blocks)
    return out


def seconds(clock: tuple[str, ...]) -> float:
    h, minutes, s, ms = map(int, clock)
    return round(h * 3600 + minutes * 60 + s + ms / 1000, 3)


def read_rttm(text: str, folder: Path) -> dict[str, list[tuple[float, float, str]]]:
    """(start, end, speaker) in order, by stream."""
    from pyannote.database.util import load_rttm

    path = folder / "turns.rttm"
    path.write_text(text)
    return {
        stream: sorted((round(s.start, 3), round(s.end, 3), who) for s, _, who in turns.itertracks(yield_label=True))
        for stream, turns in load_rttm(path).items()
    }
