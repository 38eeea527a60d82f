"""How the running transcriber makes text: it writes RUN/transcriber.json when it begins, and `transcribe` reads it.

What the launcher was started with may not be true any more: a restart reads the settings file anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from common import backlog
from common.messages import UNDECODABLE
from common.process import holder
from common.settings import Settings, TranscriberSettings
from common.topology import COVERAGE_PRODUCER

ONLY_SPEED = {"threads", "batch_most", "batch_lag_s", "batch_windows", "interim", "interim_every_s"}


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one life of the transcriber."""

    pid: int
    profile: str
    transcriber: TranscriberSettings


def tell(run: Path, settings: Settings) -> None:
    """I, the transcriber, work like this. Raises OSError."""
    mine = Told(pid=os.getpid(), profile=settings.profile, transcriber=settings.transcriber)
    backlog.replace_file(_path(run), msgspec.json.encode(mine), durable=False)


def told(run: Path) -> Told | None:
    """By the transcriber that runs now; None when there is none, or it has not told."""
    try:
        found = msgspec.json.decode(_path(run).read_bytes(), type=Told)
    except (OSError, *UNDECODABLE):
        return None
    return found if found.pid == holder(run, COVERAGE_PRODUCER) else None


def differences(mine: TranscriberSettings, running: TranscriberSettings) -> str:
    """Settings with which the text would be another one, for people; empty when there are none."""
    names = [f for f in TranscriberSettings.__struct_fields__ if f not in ONLY_SPEED]
    other = [
        (name, has, mine_is) for name in names if (has := getattr(running, name)) != (mine_is := getattr(mine, name))
    ]
    return ", ".join(f"transcriber.{name} {_shown(has)} and not {_shown(mine_is)}" for name, has, mine_is in other)


def _shown(value: object) -> str:
    return msgspec.json.encode(value).decode().strip('"')


def _path(run: Path) -> Path:
    return run / f"{COVERAGE_PRODUCER}.json"
