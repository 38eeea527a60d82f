"""What `swapscribe transcribe` writes: finished texts in their places, and on the terminal how far it is."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from common import backlog, exports, topology
from common import messages as m
from common.batch import Batch, Job
from common.document import document as document_of
from common.put import Notes, put
from common.settings import Settings, UserError

TERMINAL_EVERY_S, LOG_EVERY_S = 0.5, 10.0


class Output:
    """The files of one command, and where the text of each goes. On standard output they keep their order."""

    def __init__(
        self,
        settings: Settings,
        files: Sequence[str],
        form: str,
        folder: Path | None,
        words: bool,
        language: str = "",
    ) -> None:
        self.settings, self.form, self.folder, self.words = settings, form, folder, words
        self.failed, self.notes = False, Notes(settings.data)
        if folder:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise UserError(f"--out {folder}: {e.strerror}") from None
        self.files: list[tuple[str, Job | None]] = []
        jobs: dict[str, Job] = {}
        for name in dict.fromkeys(files):
            try:
                job = Job(Path(os.path.expanduser(name)), settings.streams, language)
                self.files.append((name, jobs.setdefault(job.stream, job)))  # twice the same sound is work for once
            except (OSError, UserError) as e:
                self._fail(name, getattr(e, "strerror", "") or str(e))
        self.jobs = list(jobs.values())
        self._texts: dict[str, str] = {}  # by stream, of what waits for those before it

    @property
    def open_jobs(self) -> list[Job]:
        return [job for job in self.jobs if not job.settled]

    def _fail(self, name: str, why: str) -> None:
        self.failed = True
        why = why.removeprefix(f"{Path(name).absolute()}: ")
        print(f"swapscribe: {name}: {why}", file=sys.stderr, flush=True)

    def settle(self, job: Job) -> None:
        """A job is done or has failed: write what can be written now. Raises UserError."""
        for name, its in self.files:
            if its is job:
                if job.state == "failed":
                    self._fail(name, job.problem)
                else:
                    self._done(name, job)
        self._print_ready()

    def _done(self, name: str, job: Job) -> None:
        from common import feed_client
        from common.wire import Unreachable

        try:
            events = list(feed_client.replay(self.settings, stream=job.stream, timeout_s=10.0))
        except Unreachable:
            raise UserError("the feed does not answer; without --again the same command goes on from here") from None
        document = document_of(job.stream, events, topology.COVERAGE_PRODUCER)
        if job.before:
            models = ", ".join(sorted({t.model for t in document.segments})) or "no words in it"
            print(f"{name}: was transcribed before ({models}); --again does it anew", file=sys.stderr, flush=True)
        if job.problem:
            self._fail(name, job.problem)
        if document.end_reason != "end of file":
            self._fail(name, f"{document.end_reason}; what can be read of it is transcribed")
        for gap in document.gaps:
            self._fail(name, f"no text from {_clock(gap.span[0])} to {_clock(gap.span[1])}: {gap.reason}")
        if self.form == "json":
            text = exports.json(document, words=self.words, file=name)
        else:
            text = exports.FORMATS[self.form](document, "")
        if self.folder is None:
            self._texts[name] = text
            return
        same = [n for n, _ in self.files if Path(n).stem == Path(name).stem]
        path = self._path(self.folder, name, job, apart=len(same) > 1)
        if self.notes.strange(path, job.path, job.stream):
            path = self._path(self.folder, name, job, apart=True)
        instead = ", in place of what was there" * (path.exists() and not self.notes.known(path))
        try:
            put(path, text)
            self.notes.note(path, job.path, job.stream)
        except OSError as e:
            self._fail(name, f"{path}: {e.strerror}")
            return
        print(f"{name}: {path}{instead}", file=sys.stderr, flush=True)

    def _path(self, folder: Path, name: str, job: Job, apart: bool) -> Path:
        """Named as the sound. `apart`: another one of that name has its text there."""
        digest = f"-{job.stream[-8:]}"
        stem, end = (Path(name).name, digest) if apart else (Path(name).stem, "")
        if len(f"{stem}{end}.{self.form}".encode()) > backlog.LONGEST_NAME:
            end = digest
            stem = stem.encode()[: backlog.LONGEST_NAME - len(f"{end}.{self.form}")].decode(errors="ignore")
        return folder / f"{stem}{end}.{self.form}"

    def _print_ready(self) -> None:
        while self.files and self.folder is None:
            name, job = self.files[0]
            if job is None or not job.settled:
                return
            self.files.pop(0)
            if name in self._texts:
                head = f"== {name} ==\n" if self.form == "txt" and len(self.jobs) > 1 else ""
                click.echo(head + self._texts.pop(name), nl=False)

    def purge(self, job: Job) -> None:
        """Delete what an earlier run made of it. Raises UserError."""
        from common.cli_data import purge_stream

        purge_stream(self.settings, job.stream)


class Progress:
    """One line that moves on a terminal, one every ten seconds elsewhere, on standard error."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.terminal = quiet, sys.stderr.isatty()
        self._next = time.monotonic() + (0.0 if self.terminal else LOG_EVERY_S)
        self._shown = False
        self._began: tuple[str, float, int] = ("", 0.0, 0)  # stream, since when, place then

    def clear(self) -> None:
        if self._shown and self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        self._shown = False

    def show(self, batch: Batch, output: Output) -> None:
        now = time.monotonic()
        if self.quiet or now < self._next or not (line := self._line(batch, output, now)):
            return
        self._next = now + (TERMINAL_EVERY_S if self.terminal else LOG_EVERY_S)
        self._shown = True
        if self.terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            print(f"\r\033[K{line[: max(20, width - 1)]}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _line(self, batch: Batch, output: Output, now: float) -> str:
        """How far the first unfinished file is."""
        left = output.open_jobs
        if not left:
            return ""
        job, count = left[0], len(output.jobs)
        place = batch.place(job)
        head = (f"[{count - len(left) + 1}/{count}] " if count > 1 else "") + job.path.name
        if job.state == "speakers":
            return f"{head}  who says it is being found out"
        if not place.captured:
            words = batch.states.get(topology.COVERAGE_PRODUCER, "")
            return f"{head}  {'waits for the transcriber' if words != 'up' else 'begins'}"
        if self._began[0] != job.stream or place.read < self._began[2]:
            self._began = (job.stream, now, place.read)
        _, since_s, began = self._began
        return f"{head}  {line(place.read, place.captured, place.whole, place.read - began, now - since_s)}"


def line(read: int, captured: int, whole: bool, since: int, took_s: float) -> str:
    """Audio done, share, speed, time left. `since`: samples read in the last `took_s`."""
    bar_of = captured if whole else 0
    share = f"{_bar(read / bar_of)} {read / bar_of:4.0%}" if bar_of else f"{_bar(0.0)}     "
    total = _clock(captured) if whole else f"at least {_clock(captured)}"
    text = f"{share}  {_clock(read)} of {total}"
    if since > 0 and took_s > 0:
        speed = since / m.SAMPLE_RATE / took_s
        text += f"  {speed:.1f}× real time"
        if whole:
            text += f"  {_clock(round((captured - read) / speed))} left"
    return text


def _bar(share: float) -> str:
    full = round(20 * min(1.0, share))
    return "█" * full + "░" * (20 - full)


def _clock(samples: int) -> str:
    seconds = samples // m.SAMPLE_RATE
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
