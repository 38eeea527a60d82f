"""What the model is asked next: how much of the text, from which draft on, and how long a burst must last for it.

In: the lines that are due, the draft in their book, how fast it went so far (`pace`). Out: a Plan; for the arbiter,
the seconds until the next burst has got on; for people, how far the minutes are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from common.process import Log
from common.settings import GpuSettings, SummarySettings
from workers.minutes import Book, Draft, Line
from workers.pace import Pace

if TYPE_CHECKING:
    from workers.base import Runner

Prompt = tuple[list[int], int]  # tokens, index of the first line in it
T = TypeVar("T")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the model is asked, and what it has answered so far."""

    prompt: list[int]
    first: int  # index of the first line in it
    room: int  # tokens that the transcript could have had
    asked: bytes
    draft: Draft | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.draft.tokens if self.draft else ()

    @property
    def loops(self) -> int:
        return self.draft.loops if self.draft else 0


class Planner:
    """`prompt` makes the question of the newest lines that fit into so many tokens, `sign` names what is asked of whom.

    `least_s` and `note` are read by the control thread. It plans nothing before `know`.
    """

    def __init__(
        self,
        prompt: Callable[[Sequence[Line], int], Generator[None, None, Prompt]],
        sign: Callable[[Sequence[int]], bytes],
        summary: SummarySettings,
        gpu: GpuSettings,
    ) -> None:
        self._prompt, self._sign, self._s, self._gpu = prompt, sign, summary, gpu
        self._room = self._beside = self._vocabulary = 0
        self.pace = Pace()
        self.least_s = 0.0  # on the GPU, until the next burst has got on; 0: not known
        self.note = ""
        self._seen: object = None

    def know(self, room: int, context: int, vocabulary: int) -> None:
        """Of the model: tokens for the transcript, for everything, and that there are."""
        self._room, self._beside, self._vocabulary = room, context - room, vocabulary

    def plan(self, book: Book, lines: Sequence[Line], hold_s: float) -> Generator[None, None, Plan]:
        """In pieces: what can be read in `hold_s` at the pace so far; the draft is used if it answers exactly this."""
        if draft := book.draft:
            prompt, first = yield from self._prompt(lines, draft.room)
            fits = self.pace.fits(len(prompt) + len(draft.tokens), hold_s)
            known = all(0 <= t < self._vocabulary for t in draft.tokens)
            if fits and known and self._sign(prompt) == draft.asked:
                return Plan(prompt=prompt, first=first, room=draft.room, asked=draft.asked, draft=draft)
        room = self._room
        prompt, first = yield from self._prompt(lines, room)
        if not self.pace.fits(len(prompt), hold_s):
            room = max(1, int(min(room, self.pace.most_tokens(hold_s) - self._beside)))
            prompt, first = yield from self._prompt(lines, room)
        return Plan(prompt=prompt, first=first, room=room, asked=self._sign(prompt))

    def begin(self, runner: Runner, book: Book, lines: Sequence[Line], log: Log) -> Plan:
        """The plan of a burst that begins now."""
        plan = self._made(runner, book, self.plan(book, lines, runner.hold_s))
        if plan.room < self._room:
            log.warning(
                "the transcript takes longer to read than a burst may last: its end is read; raise gpu.max_hold_s",
                stream=book.stream,
                lines=len(lines) - plan.first,
                of=len(lines),
                hold_s=round(runner.hold_s, 1),
            )
        self._foresee(plan, runner)
        self.note, self._seen = "", None
        log.info("minutes begun", stream=book.stream, went_on_from=len(plan.tokens), least_s=round(self.least_s, 2))
        return plan

    def look_ahead(self, runner: Runner, book: Book, lines: Sequence[Line]) -> None:
        """These minutes are next: say what they need, and how far they are."""
        seen = (book.stream, book.at.n, runner.piece_s, [(line.segment, line.revision) for line in lines])
        if seen != self._seen:
            plan = self._made(runner, book, self.plan(book, lines, self._gpu.max_hold_s))
            self._seen = seen
            self._foresee(plan, runner)
            self.note = put_off(len(plan.tokens)) if plan.tokens else ""

    def _made(self, runner: Runner, book: Book, work: Generator[None, None, T]) -> T:
        """Its text may crash us here, too. Leases are obeyed between two pieces: no step is under way."""
        cut = book.due()
        runner.poison.begin(book.stream, cut.upto if cut else book.position)
        while True:
            try:
                next(work)
            except StopIteration as e:
                runner.poison.rest()
                return e.value  # type: ignore[no-any-return]
            except Exception:
                runner.poison.failed()
                raise
            runner.edge()

    def _foresee(self, plan: Plan, runner: Runner) -> None:
        to_read = len(plan.prompt) + len(plan.tokens)
        self.least_s = self.pace.least_s(to_read, self._s.prefill_tokens, runner.piece_s)


def put_off(tokens: int) -> str:
    return f"minutes put off at {tokens} tokens; resumes" if tokens else "minutes put off; begins anew"
