"""Shared by all tests: waiting for states, settings in a folder of their own, real processes that end with the test.

`--fail-on-skip` (used by CI) turns any skipped test into a failed run and names it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import hypothesis
import msgspec
import pytest

from common import card
from common.process import signal_holder
from common.settings import Settings, TranscriberSettings
from common.wire import run_dir, socket_dir

if TYPE_CHECKING:
    from tests.pages import Producer

ROOT = Path(__file__).resolve().parent.parent
# Not skipped but not there: CI fails on skips, and has no card.
collect_ignore = [] if card.kind(Settings()) == "cuda" else ["test_cuda.py"]
if find_spec("meeteval") is None:  # optional: a C compiler builds it
    collect_ignore.append("test_cpwer.py")
# As much as the profile that is on (hypothesis' own of CI, say) wants, but a busy machine fails no example.
hypothesis.settings.register_profile(
    "swapscribe", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("swapscribe")
CALIBRATION = "calibration.json"
_calibration: list[bytes] = []  # of the newest test that left one: every start would cost seconds otherwise
T = TypeVar("T")


def wait_for(predicate: Callable[[], T], timeout_s: float = 20.0, what: str = "") -> T:
    """First true result of `predicate`, asked every 10 ms (some states are short); a failed test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = predicate()
        if result:
            return result
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s} s for {what or 'a state'}; last: {result!r}")
        time.sleep(0.01)


class Started:
    """A real process with its log in a file. It leads its own session, so that its children end with it."""

    def __init__(self, argv: list[str], log: Path, env: dict[str, str], **popen: Any) -> None:
        self.argv, self.log = argv, log
        with log.open("ab") as out:
            popen = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out, "start_new_session": True} | popen
            self.popen = subprocess.Popen(argv, env=env, cwd=popen.pop("cwd", ROOT), **popen)
        self.pid = self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self, timeout_s: float = 20.0) -> int:
        return self.popen.wait(timeout_s)

    def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM and wait: a graceful end."""
        if self.alive:
            self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> int:
        """kill -9 and wait."""
        if self.alive:
            self.signal(signal.SIGKILL)
        return self.wait()

    def close(self) -> None:
        self.kill()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # whatever it left in its session
            os.killpg(self.pid, signal.SIGKILL)
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


class Processes:
    """Starts `python -m MODULE` with the test's settings; ends all of them by pid when the test is over."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings, self.started = folder, settings, list[Started]()

    def config(self, settings: Settings | None = None) -> Path:
        """The settings as a TOML file, for --config."""
        path = self.folder / f"settings-{len(self.started)}.toml"
        path.write_text(toml(settings or self.settings))
        return path

    def start(
        self, module: str, *args: str, settings: Settings | None = None, env: dict[str, str] | None = None, **popen: Any
    ) -> Started:
        """`python -m module --config SETTINGS args…`; `env` is added to the environment, `popen` goes to Popen."""
        argv = [sys.executable, "-m", module, "--config", str(self.config(settings)), *args]
        return self.spawn(argv, module, env, **popen)

    def spawn(self, argv: list[str], name: str, env: dict[str, str] | None = None, **popen: Any) -> Started:
        """Any program, under the same care."""
        if _calibration and not (known := self.settings.data / CALIBRATION).exists():
            known.parent.mkdir(parents=True, exist_ok=True)
            known.write_bytes(_calibration[0])
        log = self.folder / f"{len(self.started):02d}-{name}.log"
        process = Started(argv, log, clean_environment() | (env or {}), **popen)
        self.started.append(process)
        return process

    def _left(self) -> list[int]:
        """Pids of processes that were started with a path in this test's folder."""
        found, mark = [], os.fsencode(f"{self.folder}/")
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes() and int(path.parent.name) != os.getpid():
                    found.append(int(path.parent.name))
        return found

    def close(self) -> None:
        for process in reversed(self.started):
            process.close()
        run = run_dir(self.settings)
        for lock in run.glob("*.lock"):  # what a launcher started leads a session of its own
            signal_holder(run, lock.stem, signal.SIGKILL)
        for pid in self._left():  # one that outlives its launcher, and did not hold its name yet
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if (sockets := socket_dir(self.settings)) != run:  # DATA/run goes with the test's folder, this does not
            shutil.rmtree(sockets, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            _calibration[:] = [(self.settings.data / CALIBRATION).read_bytes()]


def clean_environment() -> dict[str, str]:
    """Ours without anybody's SWAPSCRIBE_ settings, and with this tree importable from any folder."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("SWAPSCRIBE_")}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    return env


def toml(settings: Settings) -> str:
    """A settings file with everything in `settings` (tomllib reads, nothing in the standard library writes)."""
    plain, tables = [], []
    for key, value in msgspec.to_builtins(settings).items():
        if key == "source":
            for one in value:
                tables += ["", "[[source]]", *(_line(k, v) for k, v in one.items())]
        elif isinstance(value, dict):
            tables += ["", f"[{key}]", *(_line(k, v) for k, v in value.items())]
        else:
            plain.append(_line(key, value))
    return "\n".join([*plain, *tables]) + "\n"


def _line(key: str, value: object) -> str:
    return f"{key} = {msgspec.json.encode(value).decode()}"  # JSON strings and numbers are valid TOML


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a short path (a socket's path has 107 bytes), removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="sw-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In place of pytest's: in that one's path sockets would not lie beside the data, and nobody would remove them."""
    with tempfile.TemporaryDirectory(prefix="sw-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
def settings(folder: Path) -> Settings:
    """Defaults, with all data in a folder of this test; without text before finals, which costs more than they do."""
    return Settings(data_dir=str(folder / "data"), transcriber=TranscriberSettings(interim=False))


@pytest.fixture
def processes(folder: Path, settings: Settings, request: pytest.FixtureRequest) -> Iterator[Processes]:
    """Real processes of this test; their logs become part of a failed test's report."""
    group = Processes(folder, settings)
    request.node._swapscribe_processes = group
    yield group
    group.close()


@pytest.fixture
def feed(processes: Processes) -> Started:
    """A feed that serves."""
    feed = processes.start("workers.feed")
    wait_for(lambda: "serving" in feed.output(), what="the feed")
    return feed


@pytest.fixture
def producer(feed: Started, settings: Settings) -> Iterator[Producer]:
    """Who appends to `feed` as the transcriber would."""
    from tests.pages import Producer

    producer = Producer(settings)
    yield producer
    producer.appender.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    group: Processes | None = getattr(item, "_swapscribe_processes", None)
    if group and report.failed:
        for p in group.started:
            lines = p.output().splitlines()[-60:]
            state = "running" if p.alive else f"exit status {p.popen.returncode}"
            report.sections.append((f"{p.log.name} pid={p.pid} {state}", "\n".join(lines)))
    return report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fail-on-skip", action="store_true", help="a skipped test fails the run (for CI)")


# Minutes each: one that begins last would be waited for alone. The slowest first.
LONG = (
    "swaps", "kill", "cli", "scorecard", "diarizer", "residency", "retry", "resume", "catchup_speech",
    "languages_speech", "capture_trouble", "capture", "summarizer", "quality", "arbiter_faults", "summaries",
    "arbiter", "ledger",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run for long first, then those with real processes: the short pure ones fill what is left when several
    files run side by side."""
    waiting = {item.path for item in items if item.get_closest_marker("processes") or item.get_closest_marker("speech")}

    def rank(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return LONG.index(name) if name in LONG else len(LONG) + (item.path not in waiting)

    items.sort(key=rank)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and session.config.getoption("--fail-on-skip") and reporter.stats.get("skipped") and not exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped and config.getoption("--fail-on-skip"):
        terminalreporter.write_line(f"FAILED: {len(skipped)} skipped, and --fail-on-skip allows none")
