"""The real transcriber without a system around it: its weights, and what it makes of a stream that is on disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from common import backlog
from common import messages as m
from common.settings import Settings
from tests.system import weights
from workers.session import Utterance
from workers.transcriber import Transcriber
from workers.vad import Rules


@cache
def transcriber() -> Transcriber:
    """With its weights in RAM, no lease and no feed."""
    weights()
    settings = Settings(data_dir="/nowhere")  # it keeps nothing
    worker = Transcriber.__new__(Transcriber)
    worker.settings, worker.s, worker.rules = settings, settings.transcriber, Rules.of(settings.transcriber)
    worker.load(SimpleNamespace(settings=settings, log=logging.getLogger()))  # type: ignore[arg-type]
    return worker


def run(pieces: Iterator[None]) -> Any:
    """A generator to its result."""
    try:
        while True:
            next(pieces)
    except StopIteration as e:
        return e.value


def finals(folder: Path) -> list[str]:
    """Bodies of all events that classify a finished stream, as `tests.system.content` writes them."""
    worker, meta = transcriber(), backlog.read_meta(folder)
    assert meta and meta.ended
    at = m.At(n=0, positions={"meta": 1, "audio": 0}, state=b"", head=0)
    session, bodies = worker.open(folder, meta, at), list[m.Body]()
    while session.position < meta.end:
        found = session.scan()
        step = run(worker.infer(session.at.state, found)) if isinstance(found, Utterance) else found
        assert step, "audio is missing"
        bodies += step.events
        at = m.At(n=at.n + 1, positions=at.positions | step.positions, state=step.state, head=0)
        session.moved(at)
    return [msgspec.json.encode(b).decode().replace(meta.stream, "STREAM") for b in bodies]
