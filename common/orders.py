"""Orders to the launcher, as the commands of the terminal give them; and waiting for what they were to bring about."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable

from common import messages as m
from common import wire
from common.settings import Settings


def command(settings: Settings, verb: str, timeout_s: float = 3.0, **args: str) -> m.Done | m.Refused | None:
    """Ask the launcher; None when there is none or it does not answer."""
    asker = wire.Requester(wire.ipc(settings, "launcher"))
    try:
        answer = asker.request(m.Command(id=uuid.uuid4().hex, verb=verb, args=args), timeout_s)
    except wire.Unreachable:
        return None
    finally:
        asker.close()
    return answer if isinstance(answer, m.Done | m.Refused) else None


def states(settings: Settings, timeout_s: float = 2.0) -> dict[str, str] | None:
    """The state of each process in the launcher's words; None when it does not answer."""
    answer = command(settings, "status", timeout_s)
    return json.loads(answer.detail) if isinstance(answer, m.Done) else None


def private(settings: Settings) -> bool:
    """Is the launcher that of a `transcribe`, which ends with its command? One that does not answer is just ending."""
    from common.launch import NAME, PRIVATE

    told = states(settings)
    return told is None or told.get(NAME) == PRIVATE


def until(reached: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True
