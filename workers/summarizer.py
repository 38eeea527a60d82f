"""The summarizer: final text of a stream in, minutes out; in bursts, for its model does not fit beside the captions.

`minutes` says what is due, `minutes_text` what is asked and what an answer is worth, `generation` decodes in pieces,
`drafts` keeps what a burst has written when it has to end. Its minutes stay due, and the next burst goes on from there.
After a kill it goes on where the journal stands, for what is due follows from the journal alone.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import card, models
from common import messages as m
from common.feed_client import FeedClient
from common.process import Process, arguments, main
from common.settings import SummarySettings, UserError
from workers import minutes_text as words
from workers._torch import set_up, torchaudio_beside_cpu_torch
from workers.base import Runner
from workers.drafts import Burst, settled
from workers.minutes import KINDS, Book, Cut, Line
from workers.pace import BLOCK_TOKENS
from workers.plans import Planner, Prompt, put_off
from workers.shelf import Shelf
from workers.steps import Step, Worker
from workers.tenancy import NotCarriedOut

if TYPE_CHECKING:
    from workers.generation import Answer


class Summarizer(Worker):
    """A causal language model with a chat template, started whenever minutes are due."""

    name = "summarizer"
    lane = "burst"

    def __init__(self, process: Process) -> None:
        self.process, self.settings, self.log = process, process.settings, process.log
        self.s: SummarySettings = process.settings.summary
        self.shelf = Shelf(process.settings)
        self.books = self.shelf.books  # of streams that go on, or that minutes are owed of
        self._client = FeedClient(self.settings, kinds=KINDS)
        self._journal = ""
        self._waiting: list[m.Event] = []  # not in order yet
        self._passed = 0  # how far we came in all streams together
        self._due_s: dict[str, float] = {}  # since when the oldest minutes of a stream are due, monotonic clock
        self.planner = Planner(self.prompt, self._asked, self.s, self.settings.gpu)

    # The model

    def load(self, process: Process) -> Sequence[Any]:
        known = models.model(self.s.model)
        if known.task != "summary" or known.loader != "transformers":
            fit = ", ".join(k.name for k in models.catalogue().values() if k.task == "summary")
            raise UserError(f"summary.model: {self.s.model} writes no summaries; one of these does: {fit}")
        if self.s.quantise == "nf4":
            self._check_nf4()
        folder = models.available(process.settings, models.quantised(self.s.model, self.s.quantise), check=True)
        about = models.stored(folder)
        self._sha256 = hashlib.sha256(repr([about.sha256, sorted(about.files.items())]).encode()).hexdigest()
        self.torch = set_up(self.s.threads, process.settings.cache)
        torchaudio_beside_cpu_torch()
        os.environ["HF_HUB_OFFLINE"] = "1"  # everything is in the store; nothing is looked up
        import transformers as library

        transformers: Any = library  # half of it has no types
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        from workers import generation

        self.generation = generation
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        added = self.tokenizer.added_tokens_decoder  # it is made anew each time
        self._controls, self._added = [str(token) for token in added.values()], frozenset(added)
        self._before, self._after = self._frame()
        self.model = self._load_model(transformers, folder)
        self.config = self.model.config.get_text_config()
        self.context = min(self.s.context_tokens, self.config.max_position_embeddings)
        self.planner.know(self.room, self.context, self.config.vocab_size)
        self._stop = self._stop_tokens()
        return [self.model]

    def _check_nf4(self) -> None:
        if card.kind(self.settings) == "simulated":
            raise UserError("summary.quantise=nf4 needs an NVIDIA card; set summary.quantise=none")
        if not find_spec("bitsandbytes") or not find_spec("accelerate"):
            raise UserError("summary.quantise=nf4 needs two packages: pip install bitsandbytes accelerate")

    def _load_model(self, transformers: Any, folder: Path) -> Any:
        # 4-bit weights go into RAM packed as they are stored; without a device map they would go to the card at once
        extra = {"device_map": {"": "cpu"}} if self.s.quantise == "nf4" else {}
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True, **extra
        )
        from workers import wide_linear

        if card.kind(self.settings) == "simulated" and not wide_linear.multiplies_bfloat16():
            wide_linear.widen(model)
        return model.eval()

    def _frame(self) -> tuple[list[int], list[int]]:
        """Tokens before and after the transcript, as the model's chat template has them."""
        text = self._chat(system_role=True)
        if words.SYSTEM not in text:  # templates of some families drop a system message without a word
            text = self._chat(system_role=False)
        before, _, after = text.partition(words.PLACE)
        return self._template_tokens(before), self._template_tokens(after + words.BEGUN)

    def _chat(self, system_role: bool) -> str:
        try:
            chat = words.chat(system_role)
            return str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        except Exception as e:  # templates refuse roles with errors of their own
            if system_role:
                return ""
            raise UserError(f"model {self.s.model} has no usable chat template: {e}") from None

    def _template_tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _stop_tokens(self) -> frozenset[int]:
        said = [getattr(self.model.generation_config, "eos_token_id", None), self.tokenizer.eos_token_id]
        flat = [i for s in said for i in (s if isinstance(s, list) else [s])]
        return frozenset(i for i in flat if i is not None)

    def key(self) -> str:
        s = self.s
        shape = f"{self._sha256} {s.quantise} {self.context} {s.max_new_tokens} {s.prefill_tokens}"
        wide = self._wide_bytes()
        return f"{shape} wide={wide}" if wide else shape  # what was measured of the narrow layers is too little

    def working_bytes(self) -> int:
        size, step = self.model.dtype.itemsize, self.s.prefill_tokens
        return int(self.generation.working_bytes(self.config, self.context, step, size)) + self._wide_bytes()

    def _wide_bytes(self) -> int:
        from workers import wide_linear

        return wide_linear.working_bytes(self.model, self.s.prefill_tokens)

    def rehearse(self) -> Iterator[None]:
        return self.generation.rehearse(self.model, self.context, self.s.prefill_tokens)

    # What is due

    def look(self, runner: Runner, now: float) -> None:
        events = [e for e in self._client.poll(0.0) if isinstance(e, m.Event)]
        follower = self._client.follower
        if self._journal not in ("", follower.journal):  # another journal: what we know is of no use
            self.shelf.clear()
            self._waiting.clear()
        self._journal = follower.journal
        self._waiting += events
        # A hole in one kind is healed after later events of another came: in order is only what is complete.
        ready = sorted((e for e in self._waiting if e.seq <= self._client.head), key=lambda e: e.seq)
        self._waiting = [e for e in self._waiting if e.seq > self._client.head]
        for e in ready:
            if not self.shelf.take(runner, e):
                return
        if not self.shelf.tidy(runner):
            return
        due = {name for name, book in self.books.items() if book.due()}
        self._due_s = {name: self._due_s.get(name, now) for name in due}

    def needs_model(self) -> bool:
        return any(self._next(book) for book in list(self.books.values()))

    def _next(self, book: Book) -> Cut | None:
        """The oldest minutes of a stream that need the model."""
        cut = None if book.stale else book.due()
        return cut if cut and book.lines(cut) else None

    def lags(self) -> dict[str, float]:
        now = time.monotonic()
        return {name: round(now - since, 1) for name, since in list(self._due_s.items())}

    def positions(self) -> dict[str, int]:
        return {"transcript": self._passed}  # it only rises: streams that are over are not counted again

    def least_s(self) -> float:
        return self.planner.least_s

    def note(self) -> str:
        return self.planner.note

    # Work

    def turn(self, runner: Runner) -> bool:
        waiting = sorted(self._due_s, key=lambda name: self._due_s[name])
        ahead = False
        for book in [self.books[name] for name in waiting if name in self.books]:
            cut = None if book.stale else book.due()
            if cut is None or not settled(runner, book, self._client.head):
                continue
            lines = book.lines(cut)
            if not lines:
                self.log.info("nothing new to summarise", stream=book.stream, reason=cut.reason)
                self._commit(runner, book, book.step(cut))
                return True
            if not runner.poison.allows(book.stream, cut.upto):
                self.log.warning("gave up", stream=book.stream, span=cut.span, reason=cut.reason)
                self._commit(runner, book, book.skipped(cut))
                return True
            if runner.ready:
                self._write(runner, book, cut, book.named(lines))
                return True
            if not ahead:  # (another stream may have something to do that needs no model)
                ahead = True
                self.planner.look_ahead(runner, book, book.named(lines))
        if not ahead:
            self.planner.note = ""  # what waited was purged, or needs no model any more
        return False

    def _commit(self, runner: Runner, book: Book, step: Step) -> None:
        before, at = book.position, runner.commit(book.stream, book.at.n, step)
        if at and book.moved(at, step):
            self._passed += book.position - before
        elif at:
            self.log.warning("place taken from the journal", stream=book.stream, n=at.n)
        self._due_s.pop(book.stream, None)
        if book.due():
            self._due_s[book.stream] = time.monotonic()

    def _write(self, runner: Runner, book: Book, cut: Cut, lines: list[Line]) -> None:
        stream = book.stream
        plan = self.planner.begin(runner, book, lines, self.log)
        runner.poison.begin(stream, cut.upto)
        runner.phase = "inferring"
        answer = self.generation.Answer(plan.tokens, plan.loops)
        burst = Burst(runner, book, plan, answer)
        try:
            finished = runner.carry(burst.pieces(self.pieces(plan.prompt, answer)), self.working_bytes())
        except NotCarriedOut:
            runner.poison.failed(counts=False)
            raise
        except Exception:
            failures = runner.poison.failed()
            self.log.exception("minutes failed", stream=stream, span=cut.span, failures=failures)
            raise
        burst.tell(self.planner.pace)
        if not finished and not answer.over(self.s.max_new_tokens):
            runner.poison.failed(counts=False)
            self.log.info(put_off(burst.put_off()), stream=stream, **burst.figures)
            return
        if burst.gone or not burst.settle():
            runner.poison.failed(counts=False)
            self.log.warning("minutes dropped: their text was purged, or somebody else wrote them", stream=stream)
            return
        summary = self.summary(cut, lines, plan.first, answer)
        self.log.info(
            "minutes written",
            stream=stream,
            reason=cut.reason,
            **burst.figures,
            bullets=len(summary.bullets),
            coverage=summary.coverage,
        )
        self._commit(runner, book, book.step(cut, summary))
        self.pieces_done += 1

    def _asked(self, prompt: Sequence[int]) -> bytes:
        """What an answer depends on: it goes on only under the same."""
        shapes = (self.key(), self.torch.__version__, sorted(self._stop), BLOCK_TOKENS)
        return hashlib.sha256(repr((shapes, list(prompt))).encode()).digest()

    @property
    def room(self) -> int:
        """Tokens that the transcript has in a prompt."""
        return int(self.context) - self.s.max_new_tokens - len(self._before) - len(self._after)

    def prompt(self, lines: Sequence[Line], room: int | None = None) -> Generator[None, None, Prompt]:
        """Tokens of the question, and the index of the first line in it: the newest lines that fit into `room`.

        Line by line, from the newest on, until it is full: all of a long day would take a minute and more.
        """
        left = room = self.room if room is None else room
        rows: list[list[int]] = []
        for i in range(len(lines), 0, -1):
            row = self._line_tokens(i, lines[i - 1])
            if rows and len(row) > left:
                break
            rows.append(row)
            left -= len(row)
            yield
        rows.reverse()
        first = len(lines) - len(rows)
        if first:  # what is cited is counted from the first line that is read
            for i, line in enumerate(lines[first:]):
                rows[i] = self._line_tokens(i + 1, line)
                yield
        transcript = [token for row in rows for token in row]
        return [*self._before, *transcript[-room:], *self._after], first

    def _line_tokens(self, number: int, of: Line) -> list[int]:
        """What was said can never be a control token: neither its text is left whole, nor would it be read as one."""
        line = words.quoted(number, of.text, self._controls, of.said)
        ids = self.tokenizer(line, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [i for i in ids if i not in self._added]

    def pieces(self, prompt: Sequence[int], answer: Answer) -> Iterator[None]:
        s = self.s
        return self.generation.write(self.model, prompt, answer, s.max_new_tokens, s.prefill_tokens, self._stop)

    def summary(self, cut: Cut, lines: Sequence[Line], first: int, answer: Answer) -> m.Summary:
        text = words.BEGUN + self.tokenizer.decode(answer.tokens, skip_special_tokens=True)
        return m.Summary(
            first=lines[first].segment,
            last=lines[-1].segment,
            bullets=words.bullets(text, lines[first:], answer.whole),
            model=self.s.model,
            coverage=words.coverage(lines, first),
            span=cut.span,
            reason=cut.reason,
        )


def run(process: Process) -> None:
    Runner(process, Summarizer(process)).run()


if __name__ == "__main__":
    main("summarizer", run, arguments(__doc__ or ""))
