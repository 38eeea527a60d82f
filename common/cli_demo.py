"""`swapscribe demo`: the bundled meeting through everything, with a scorecard and exports. `common/cli.py` adds it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from common.cli_export import FORMATS, written

if TYPE_CHECKING:
    from common.cli import Given
    from common.demo import Demo
    from common.settings import Settings

SCORECARD = Path(__file__).resolve().parent.parent / "benchmarks" / "scorecard.py"
FASTER = "not counted: nothing is late that is played as fast as it goes"
SCORING_S = 300.0  # it loads models, on a machine that may have other things to do
HOW = "make demo, or: pip install -c constraints.txt -e '.[scores,cpwer]'"


@click.command()
@click.option("--pace", default="realtime", show_default=True, help="realtime, max, or a factor such as 4")
@click.option("--keep", is_flag=True, help="keep the recording and journal it makes, too")
@click.pass_obj
def demo(given: Given, pace: str, keep: bool) -> None:
    """Play the bundled meeting through everything in a data folder of its own; ends by itself.

    Then a scorecard: captions, speakers and translations beside what is known of the meeting. The exports stay.
    Status 1 when a second of it stayed without text, silence or a reason why it was suppressed.
    """
    from common import auto, console, wire
    from common import demo as of
    from common.child import wants
    from common.cli import news, say
    from common.launch import Launcher

    pick = auto.resolve(given.settings)
    data = given.settings().data / f"demo-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}"
    more: tuple[str, ...] = (
        f"profile={pick.name}",
        f"data_dir={data}",
        "source=" + json.dumps([of.meeting(pace)]),
        f"viewer.port={console.free_port()}",
    )
    if not given.settings(*more).translate.targets:
        more += (f'translate.targets=["{of.TARGET}"]',)
    tight, line = of.tight_card(given.settings(*more))
    more += tight
    settings = given.settings(*more)
    data.mkdir(parents=True)
    news(f"demo: {of.MEETING.name} at pace {pace}; ends by itself")
    if line:
        news(line)
    for line in console.addresses(settings):
        news(line)
    watch = of.Demo(settings, say)
    Launcher(settings, wants(settings, given.passed(*more)), news, watch.turn).run()
    good = watch.summary(news)
    if watch.finished:
        exports = data / "exports"
        export(watch, settings, exports)
        lines = scorecard(watch, settings, exports, given.passed(*more))
        (exports / "scorecard.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        for line in lines:
            say(line)
        news(f"exports: {exports}: {' '.join(sorted(p.name for p in exports.iterdir()))}")
    if keep or not good:
        news(f"its recording, journal and logs: {data}")
    else:
        shutil.rmtree(wire.run_dir(settings), ignore_errors=True)
        for part in (p for p in data.iterdir() if p.name != "exports"):
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)
    sys.exit(0 if good else 1)


def export(watch: Demo, settings: Settings, folder: Path) -> None:
    """Every format, and subtitles in each language, of what a subscriber holds at the end."""
    from common.document import document
    from common.topology import COVERAGE_PRODUCER

    folder.mkdir()
    for stream, s in watch.streams.items():
        whole = document(stream, watch.events, COVERAGE_PRODUCER)
        for form in FORMATS:
            (folder / f"{s.source}.{form}").write_text(written(whole, form), encoding="utf-8")
        for target in settings.translate.targets:
            (folder / f"{s.source}.{target}.srt").write_text(written(whole, "srt", target), encoding="utf-8")


def scorecard(watch: Demo, settings: Settings, exports: Path, passed: list[str]) -> list[str]:
    """What the meeting is worth beside what is known of it, and what its journal says: one line each."""
    from common import backlog, console
    from common import demo as of
    from common.settings import pace

    (stream, s), source = next(iter(watch.streams.items())), settings.source[0]
    mine = [e for e in watch.events if e.stream == stream]
    found, left_out = scored(exports / f"{s.source}.json", passed)
    late = of.late_s(mine, backlog.anchors(settings.streams / stream), pace(source))
    found += [
        ("coverage", console.coverage_line(s.coverage)),
        ("swaps", f"{watch.swaps}; minutes written: {sum(e.kind == 'summary' for e in mine)}"),
        (
            "caption delay",
            f"{of.middle_and_worst(late)} after the last word, while models load, too" if late else FASTER,
        ),
    ]
    for target in settings.translate.targets:
        seconds = of.middle_and_worst(of.translated_late_s(mine, target))
        found.append((f"delay to {target}", f"{seconds} after the caption that brings the sentence's last word"))
    return ["scorecard", *(f"  {name:<17} {figure}" for name, figure in found), *left_out]


def scored(export: Path, passed: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Figures that need the tools of benchmarks, by a process of its own; what is left out, as lines for people."""
    from common.demo import MEETING

    argv = [sys.executable, str(SCORECARD), str(export), str(MEETING.with_suffix("")), *passed]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SCORING_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return [], [f"  not counted: the scorecard has taken longer than {SCORING_S:.0f} s"]
    rows = [(name, figure) for name, tab, figure in (x.partition("\t") for x in done.stdout.splitlines()) if tab]
    left_out = [
        f"  not counted, for packages are missing: {figure}; to get them: {HOW}"
        for name, figure in rows
        if name == "missing"
    ]
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        left_out.append(f"  not counted: {why}")
    return [row for row in rows if row[0] != "missing"], left_out
