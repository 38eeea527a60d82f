"""Sources that were added to a running system: the launcher's part. Its commands `capture` and `release` end up here.

Each is a slot like that of a source of the settings, and a file of its own (`given_sources.Added`): a killed capture is
started again, a killed launcher's successor takes all of them up. A graceful stop, or another boot, forgets them.
Those of a private launcher end with it, so it takes up files at full speed only: they go on where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from common import messages as m
from common import models
from common.child import Want
from common.given_sources import Added, describe
from common.settings import Source, UserError, check_source, lane

if TYPE_CHECKING:
    from common.launch import Slot


class Guests:
    """See the module. `want` makes the process of a source; `first`: those that are there from the start; `model` will
    write down what they say; `private`: of a launcher that ends with its command."""

    def __init__(
        self,
        run: Path,
        want: Callable[[Source], Want],
        first: Sequence[Source] = (),
        model: str = "",
        private: bool = False,
    ) -> None:
        self.added, self.want, self.first, self.model = Added(run), want, first, model
        self.private = private
        self._taken = set[str]()

    def at_start(
        self, fresh: bool, slots: list[Slot], slot: Callable[[Want], Slot], say: Callable[[str], None]
    ) -> None:
        """Give slots to those of a killed launcher, unless this is a fresh start, and to the first ones."""
        if fresh:
            for source in self.added.all():
                say(f"{describe(source)} was added to a system that is no more; forgotten, add it again if you want it")
            self.added.clear()
        for source in self.first:
            self.added.put(source)
        for source in self.added.all():
            if any(s.want.source == source.name for s in slots):
                self.added.drop(source.name)  # the settings have one of this name by now
            else:
                slots.append(slot(self.want(source)))

    def capture(self, slots: list[Slot], slot: Callable[[Want], Slot], text: str) -> m.Answer:
        """Take up the source in this JSON, or begin it again if it has come to its end."""
        try:
            source = msgspec.json.decode(text, type=Source)
            check_source(source, "source")
        except (UserError, msgspec.DecodeError) as e:
            return m.Refused(reason=f"not a source: {e}")
        if self.model and (why := models.unknown_language(models.model(self.model), source.language)):
            return m.Refused(reason=f"source {source.name}: {why}")
        if self.private and lane(source) == "live":
            return m.Refused(reason="this launcher ends with its command; a live source needs swapscribe run-all")
        if source.kind == "stdin":
            return m.Refused(reason="the launcher has another standard input than you")
        there = next((s for s in slots if s.want.source == source.name), None)
        known = self.added.get(source.name)
        if there and known is None and not there.leaving:
            return m.Refused(reason=f"{source.name} is a source of the settings; give this one another name=")
        if there and known and known != source:
            return m.Refused(reason=f"{source.name} is another source already; give this one another name=")
        try:
            self.added.put(source)
        except OSError as e:
            return m.Refused(reason=f"it cannot be remembered: {e.strerror}")
        self._taken.add(source.name)
        if there is None:
            slots.append(there := slot(self.want(source)))
        there.done = there.leaving = False
        there.next_at, there.fails, there.complaint = 0.0, 0, ""
        return m.Done(detail=there.want.name)

    def forget(self) -> None:
        """At a graceful end."""
        if self.private:
            for name in self._taken:
                self.added.drop(name)
        else:
            self.added.clear()

    def release(self, slots: list[Slot], name: str) -> Slot | m.Refused:
        """Forget the source; its slot goes when its capture has ended, which is the launcher's to ask."""
        there = next((s for s in slots if s.want.source == name), None)
        if there is None:
            return m.Refused(reason=f"no source {name!r} is captured here")
        if self.added.get(name) is None:
            return m.Refused(reason=f"{name} is a source of the settings; take it out of there, then start again")
        self.added.drop(name)
        there.leaving = there.done = True
        return there
