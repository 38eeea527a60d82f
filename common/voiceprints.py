"""Voices that people enrolled: one file each in DATA/voiceprints, for their owner's eyes only.

A voiceprint is a unit vector by one model, and says nothing to another one. What is deleted here is nowhere else; a
name that the diarizer gave somebody by it stays in the journal of that stream.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from common import backlog
from common.settings import Settings, UserError

LONGEST = 60  # characters of a name: so a file's name has room for any of them


class Voiceprint(msgspec.Struct, frozen=True, kw_only=True):
    """One voice. `embedding` has unit length."""

    name: str
    model: str  # as in models.toml
    embedding: tuple[float, ...]
    seconds: float  # of speech that it was made from
    made_ns: int


def proper_name(text: str) -> str:
    """A name for people in its plain form. Raises ValueError, in words for whoever typed it."""
    name = " ".join(text.split())
    if len(name) > LONGEST:
        raise ValueError(f"a name has at most {LONGEST} characters")
    if not name.isprintable():
        raise ValueError("a name has only characters that can be printed")
    if name == "?" or re.fullmatch(r"s\d+", name.casefold()):
        raise ValueError(f"{name} is no name: speakers without one are called so")
    return name


def folder(settings: Settings) -> Path:
    return settings.data / "voiceprints"


def read(settings: Settings) -> list[Voiceprint]:
    """All of them, by name; a file that is none is left out."""
    found = [_read(path) for path in sorted(folder(settings).glob("*.json"))]
    return sorted((v for v in found if v), key=lambda v: v.name)


def _read(path: Path) -> Voiceprint | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Voiceprint)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def write(settings: Settings, voice: Voiceprint) -> Path:
    """Takes the place of an older one of the same name. Whole or not at all, whatever is killed."""
    settings.data.mkdir(parents=True, exist_ok=True)
    where = folder(settings)
    where.mkdir(mode=0o700, exist_ok=True)
    where.chmod(0o700)
    path = where / _file(voice.name)
    backlog.replace_file(path, msgspec.json.encode(voice), durable=True)  # 0600
    return path


def forget(settings: Settings, name: str) -> None:
    """Delete one for good. Raises UserError."""
    path = folder(settings) / _file(name)
    path.with_name(path.name + ".new").unlink(missing_ok=True)  # of a write that was killed
    try:
        with path.open("r+b") as f:  # the blocks may live on for a while after the file
            f.write(b"\0" * path.stat().st_size)
            os.fsync(f.fileno())
        path.unlink()
        backlog.sync_dir(path.parent)
    except FileNotFoundError:
        known = ", ".join(v.name for v in read(settings)) or "none"
        raise UserError(f"no voiceprint of {name!r}; there are: {known}") from None


def _file(name: str) -> str:
    """Any name as the name of a file: nothing in it leads to another folder."""
    plain = name.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")
    return f"{f'%2E{plain[1:]}' if plain.startswith('.') else plain}.json"
