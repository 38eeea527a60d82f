"""Does a media file end before its own header says? Decoders stop there without a word.

Pure functions of the file's bytes and what was decoded; "" means that nothing is known to be missing.
"""

from __future__ import annotations

import os
from pathlib import Path

UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # a WAV written to a pipe
DURATION_IS_EXACT = ("flac", "matroska", "mp4", "wav", "aiff", "au", "caf", "w64")
SLACK_S = 0.5  # encoder delay and padding


def missing(path: Path, container: str, declared_s: float, decoded_s: float) -> str:
    """What is missing, in words. `container`: ffmpeg's name of the format; `declared_s`: duration by the header."""
    short_s = declared_s - decoded_s
    exact = any(name in container for name in DURATION_IS_EXACT) or (container == "mp3" and _mp3_counts_frames(path))
    if "wav" in container and (bytes_missing := _riff_missing(path)) > 0:
        return f"truncated: {bytes_missing} bytes are missing"
    if container == "ogg" and not _ogg_ends(path):
        return "truncated: no end-of-stream page"
    if exact and short_s > SLACK_S:
        return f"truncated: {short_s:.1f} of {declared_s:.1f} s are missing"
    return ""


def _riff_missing(path: Path) -> int:
    with path.open("rb") as f:
        head = f.read(8)
    size = int.from_bytes(head[4:8], "little")
    return 8 + size - os.stat(path).st_size if head[:4] == b"RIFF" and size not in UNKNOWN_SIZES else 0


def _ogg_ends(path: Path) -> bool:
    with path.open("rb") as f:
        f.seek(max(0, os.stat(path).st_size - 65_536 - 512))
        tail = f.read()
    page = tail.rfind(b"OggS")
    return page >= 0 and len(tail) > page + 5 and bool(tail[page + 5] & 4)


def _mp3_counts_frames(path: Path) -> bool:
    """A Xing or Info header tells the number of frames; else ffmpeg guesses the duration from the bit rate."""
    with path.open("rb") as f:
        head = f.read(10)
        if head[:3] == b"ID3":
            f.seek(10 + sum((b & 0x7F) << (7 * (3 - i)) for i, b in enumerate(head[6:10])))
        else:
            f.seek(0)
        frame = f.read(4096)
    return b"Xing" in frame or b"Info" in frame
