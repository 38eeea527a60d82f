"""What streams have of some kinds already, asked for by replay without waiting: for who comes later than they began."""

from __future__ import annotations

import time
from collections.abc import Iterable

from common import messages as m
from common import wire
from common.feed_client import FeedClient
from common.settings import Settings


class Past:
    """What streams have of some kinds, fetched without waiting, for who looks at a stream that has begun already."""

    def __init__(self, settings: Settings, kinds: Iterable[str]) -> None:
        self._kinds = tuple({*kinds, "purged"})
        self._asker = wire.Asker(wire.ipc(settings, "replay"))
        self._upto: dict[str, int] = {}
        self._wanted: dict[str, None] = {}
        self._asked = ""  # the stream that the open question is about
        self._again: set[str] = set()  # wanted once more while it was asked for
        self._next_ask_s = 0.0
        self.journal = ""  # another one: what was had is void

    @property
    def busy(self) -> bool:
        return bool(self._wanted)

    def want(self, stream: str) -> None:
        """All that came after the last time."""
        if stream in self._wanted:
            self._again.add(stream)  # the answer on its way may be older
        self._wanted[stream] = None

    def forget(self, stream: str) -> None:
        """Begin anew the next time."""
        self._upto.pop(stream, None)
        self._wanted.pop(stream, None)
        self._again.discard(stream)
        if stream == self._asked:  # the answer on its way goes on from where we were
            self._asked, self._next_ask_s = "", 0.0

    def events(self) -> list[m.Event]:
        """What came since the last call, each once."""
        page, now = self._asker.answer(), time.monotonic()
        found: list[m.Event] = []
        if isinstance(page, m.Page) and (stream := self._asked) in self._wanted:
            self._next_ask_s = 0.0
            if self.journal not in ("", page.journal):
                self._upto.clear()  # and the answer is about the other one
            else:
                found = list(page.events)
                self._upto[stream] = page.upto
            self.journal = page.journal
            if self._upto.get(stream, -1) >= page.head:
                del self._wanted[stream]
                if stream in self._again:
                    self._again.discard(stream)
                    self._wanted[stream] = None
        if self._wanted and now >= self._next_ask_s:
            self._asked = stream = next(iter(self._wanted))
            ask = m.Replay(after=self._upto.get(stream, 0), kinds=self._kinds, stream=stream)
            self._next_ask_s = now + (FeedClient.REPLAY_TIMEOUT_S if self._asker.ask(ask) else 0.1)
        return found
