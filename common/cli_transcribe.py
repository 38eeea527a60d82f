"""`swapscribe transcribe FILE…`: text of files, at full speed, by the same processes that caption live sources.

With a running system the files are batch streams of it: live captions go first. Without one, feed, arbiter and
transcriber are started for as long as the command lives. Exit status: 0 all files are done, 1 some failed or are not
whole, 2 wrong usage or nothing can run, 130 interrupted; then the same command goes on from there, also after kill -9.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from common.settings import Settings, Source, UserError, check_language

if TYPE_CHECKING:
    from common.batch import Batch
    from common.child import Want
    from common.cli import Given
    from common.launch import Launcher
    from common.transcripts import Output, Progress

PRIVATE = ("feed", "arbiter", "transcriber")
WHO = ("diarizer",)  # with --speakers
SYSTEM_GONE_S = 10.0
INTERRUPTED = 130
FORMATS = ("txt", "srt", "vtt", "json", "md", "rttm")


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option("--format", "form", type=click.Choice(FORMATS), default="txt", show_default=True)
@click.option("--out", metavar="DIR", help="a file for each FILE there (default: standard output)")
@click.option("--language", metavar="CODE", help="auto, or such as pt (default: as in the settings)")
@click.option("--words", is_flag=True, help="with json: each word with its times and probability")
@click.option("--speakers", is_flag=True, help="who says it, too; the text waits for that")
@click.option("--again", is_flag=True, help="delete what an earlier run made of these files, and do them anew")
@click.option("--quiet", is_flag=True, help="no progress")
@click.pass_obj
def transcribe(
    given: Given,
    files: tuple[str, ...],
    form: str,
    out: str | None,
    language: str | None,
    words: bool,
    speakers: bool,
    again: bool,
    quiet: bool,
) -> None:
    """Transcribe audio or video files. What was interrupted goes on with the same command.

    Status: 0 all done, 1 some files failed or are not whole, 2 nothing can be done, 130 interrupted.
    """
    from common.transcripts import Output, Progress

    if words and form != "json":
        raise UserError(f"--words needs --format json; {form} has no place for them")
    if len(files) > 1 and not out and form in ("srt", "vtt"):
        raise UserError(f"several files as {form} need --out DIR: on standard output nobody could tell them apart")
    if form == "rttm" and not speakers:
        raise UserError("rttm is who speaks when: it needs --speakers")
    if language:
        check_language(language, "--language")
    settings = given.settings()
    if speakers and not settings.speakers.enabled:
        raise UserError("speakers are turned off here; set speakers.enabled=true")
    output = Output(settings, files, form, Path(out) if out else None, words, language or "")
    progress = Progress(quiet)
    work = Work(given, language or "", output, progress, again, speakers)
    sys.exit(work.run())


class Work:
    """The command's way through one or more systems."""

    def __init__(
        self, given: Given, language: str, output: Output, progress: Progress, again: bool, speakers: bool
    ) -> None:
        self.given, self.language, self.output, self.progress, self.again = given, language, output, progress, again
        self.speakers = speakers
        self.same_command = "without --again the same command" if again else "the same command"
        self.settings = given.settings()
        self.interrupted = self.agreed = False
        self.asked_at = 0.0  # since when a running transcriber could have said how it works

    def run(self) -> int:
        """Exit status."""
        from common import wire
        from common.launch import NAME
        from common.process import NameTaken, holder

        self.settings.data.mkdir(parents=True, exist_ok=True)
        run = wire.run_dir(self.settings)
        while self.output.open_jobs and not self.interrupted:
            if holder(run, NAME):
                self._joined()
            else:
                try:
                    self._private()
                except NameTaken:  # another one was a moment faster: join it
                    continue
        self.progress.clear()
        if self.interrupted:
            print(f"swapscribe: interrupted; {self.same_command} goes on from here", file=sys.stderr)
            return INTERRUPTED
        return 1 if self.output.failed else 0

    def _batch(self, settings: Settings) -> Batch:
        from common.batch import Batch

        return Batch(settings, self.output.open_jobs, held=True, speakers=self.speakers)

    def _turn(self, batch: Batch, wait_s: float) -> None:
        """One turn of the batch, and what follows from it."""
        if batch.held and batch.heard and self.agreed:
            for job in self.output.open_jobs if self.again else ():
                self.output.purge(job)
                batch.forget(job.stream)
            batch.held = self.again = False
        for job in batch.turn(wait_s):
            self.progress.clear()
            self.output.settle(job)
        self.progress.show(batch, self.output)
        if batch.fatal:
            raise UserError(batch.fatal)

    def _joined(self) -> None:
        """Until everything is done, or the system has ended."""
        from common import wire
        from common.launch import NAME
        from common.process import holder

        batch, run = self._batch(self.settings), wire.run_dir(self.settings)
        gone_at, self.agreed, self.asked_at = 0.0, False, time.monotonic()
        try:
            while not batch.over:
                self.agreed = self.agreed or self._agree(batch, run)
                self._turn(batch, 0.1)
                if holder(run, NAME):
                    gone_at = 0.0
                elif batch.private:
                    return  # go on alone
                elif not gone_at:
                    gone_at = time.monotonic()
                elif time.monotonic() - gone_at > SYSTEM_GONE_S:
                    raise UserError(f"the system was stopped; {self.same_command} goes on from here, alone")
        except KeyboardInterrupt:
            self.interrupted = True
            batch.release_all()
        finally:
            batch.close()

    def _agree(self, batch: Batch, run: Path) -> bool:
        """The running transcriber makes the text that these settings ask for. False: that is not known yet."""
        from common import topology
        from common.process import holder
        from common.profiles import AUTO
        from common.told import differences, told

        running = told(run)
        if running is None or not batch.states:
            now = time.monotonic()
            self.asked_at = self.asked_at if holder(run, topology.COVERAGE_PRODUCER) else now
            if running is None and now - self.asked_at > SYSTEM_GONE_S:
                raise UserError("the transcriber does not say how it works; say: swapscribe restart transcriber")
            return False
        same_profile = (f"profile={running.profile}",) if self.settings.profile == AUTO else ()
        mine = self.given.settings(*same_profile).transcriber
        if self.language:  # goes with the files
            mine = msgspec.structs.replace(mine, language=running.transcriber.language)
        if different := differences(mine, running.transcriber):
            cure = "wait until it is done" if batch.private else "restart it with these settings"
            who = "another transcribe, which runs here," if batch.private else "the running system"
            raise UserError(f"{who} has {different}; {cure}, or say the same")
        return True

    def _private(self) -> None:
        """A system of our own, that ends with us whatever ends us."""
        from common import auto, models, wire
        from common.child import want_capture, wants
        from common.guests import Guests
        from common.launch import Launcher, Slot

        def want(source: Source) -> Want:
            return msgspec.structs.replace(want_capture(source, passed), survives=False)

        more = ["source=[]", "summary.enabled=false", f"speakers.enabled={str(self.speakers).lower()}"]
        more.append(f"profile={auto.resolve(lambda *m: self.given.settings(*more, *m)).name}")
        settings = self.given.settings(*more)
        if why := models.unknown_language(models.model(settings.transcriber.model), self.language):
            raise UserError(why)
        run = wire.run_dir(settings)
        self._nobody_else(run)
        passed = self.given.passed(*more)
        table = {w.name: msgspec.structs.replace(w, survives=False) for w in wants(settings, passed)}
        guests = Guests(run, want, private=True)
        batch, self.agreed = self._batch(settings), True
        problem: list[UserError] = []

        def turn(launcher: Launcher) -> None:
            try:
                self._turn(batch, 0.0)
            except UserError as e:
                problem.append(e)
            if batch.wants_work and len(launcher.slots) == 1:  # only the feed: what is done already needs no more
                launcher.slots += [Slot(table[n]) for n in (*PRIVATE[1:], *WHO * self.speakers)]
            if problem or batch.over:
                launcher.stop()

        def say(line: str) -> None:
            if " died (" in line:
                self.progress.clear()
                print(f"-- {line}", file=sys.stderr)

        try:
            Launcher(settings, [table["feed"]], say, turn, guests=guests, private=True).run()
            self.interrupted = not batch.over and not problem
        finally:
            batch.close()
        if problem:
            raise problem[0]

    def _nobody_else(self, run: Path) -> None:
        """Captures of other terminals do not matter: what they write is transcribed, now or by the next system."""
        from common.child import running
        from common.orders import until
        from common.units import keeps

        def others() -> dict[str, int]:
            return {name: pid for name, pid in running(run).items() if not name.startswith("capture@")}

        if any(keeps(name, pid) for name, pid in others().items()):
            raise UserError(
                "systemd runs Swapscribe here, without a launcher that takes up files; say instead: "
                "swapscribe capture --source 'FILE pace=max', then swapscribe export; or give another --data"
            )
        if not until(lambda: not others(), SYSTEM_GONE_S):  # those of a killed `transcribe` are ending
            names = ", ".join(others())
            raise UserError(f"{names} run here without their launcher; say swapscribe run-all, or swapscribe stop")
