"""Systemd units: what the table says, in systemd's own grammar; and a process starts by the words of its unit."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from common import topology
from common.settings import FeedSettings, Settings, Source, SpeakerSettings, UserError
from common.units import HARDENING, SWEEPS, TARGET, Place, keeps, unit, units
from tests.conftest import ROOT, Processes, clean_environment, wait_for

SOURCES = (
    Source(name="mic", kind="microphone"),
    Source(name="hall", kind="file", path="rtsp://cam/1?a=%20$HOME \\ 'b' \"c\""),
    Source(name="tape_1.a", kind="pcm", path="tape.pcm"),
)


def place(settings: Settings, **more: object) -> Place:
    passed = ("--set", f"data_dir={settings.data}", "--set", "source=" + msgspec.json.encode(settings.source).decode())
    return Place(python=sys.executable, folder=ROOT, user="root", uid=0, passed=passed, **more)


def parsed(text: str) -> configparser.ConfigParser:
    """No key twice, and nothing that is neither a section nor a key."""
    parser = configparser.ConfigParser(interpolation=None, delimiters="=", comment_prefixes="#", strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def command(text: str) -> list[str]:
    """The arguments that systemd would give."""
    assert not re.search(r"(?<!%)%(%%)*(?!%)", parsed(text)["Service"]["ExecStart"])
    return shlex.split(parsed(text)["Service"]["ExecStart"].replace("%%", "%").replace("$$", "$"))


@pytest.mark.pure
@pytest.mark.parametrize(
    ("groups", "kept"),
    [
        ("0::/system.slice/swapscribe-feed.service\n", True),
        ("1:name=systemd:/system.slice/swapscribe-feed.service\n0::/\n", True),
        ("0::/user.slice/user-1000.slice/session-2.scope\n", False),
        ("0::/system.slice/swapscribe-viewer.service\n", False),
        ("0::/system.slice/swapscribe-feed.service.old\n", False),
    ],
)
def test_whose_control_group_is_that_of_a_unit_is_kept_by_systemd(groups: str, kept: bool, folder: Path) -> None:
    assert not keeps("feed", 7, folder), "it has ended"
    (folder / "7").mkdir()
    (folder / "7" / "cgroup").write_text(groups)
    assert keeps("feed", 7, folder) is kept


@pytest.fixture
def many(settings: Settings) -> Settings:
    return msgspec.structs.replace(settings, source=SOURCES)


def test_every_process_of_the_table_has_a_unit_and_systemd_takes_them(many: Settings, folder: Path) -> None:
    many.data.mkdir()
    for cuda in (False, True):
        files = units(many, place(many, cuda=cuda))
        sweeper = unit(topology.SWEEPER.name)
        assert set(files) == {TARGET, SWEEPS, sweeper, *map(unit, topology.names(many))}
        for name, text in files.items():
            (folder / name).write_text(text)
            if name.endswith(".service"):
                service = parsed(text)["Service"]
                assert all(service[key] == value for key, value in HARDENING)
                assert service["ReadWritePaths"] == str(many.data)
        wants = parsed(files[TARGET])["Unit"]["Wants"].split()
        assert sorted(wants) == sorted(set(files) - {TARGET, sweeper})
        if shutil.which("systemd-analyze"):
            argv = ["systemd-analyze", "verify", *(str(folder / name) for name in files)]
            said = subprocess.run(argv, capture_output=True, text=True, timeout=60)
            assert (said.returncode, said.stderr) == (0, "")


def test_they_have_the_rules_of_the_launcher(many: Settings) -> None:
    files = {name: parsed(text) for name, text in units(many, place(many)).items()}
    feed = unit("feed")
    for name in topology.names(many):
        row, about, service = topology.row(name), files[unit(name)]["Unit"], files[unit(name)]["Service"]
        assert about["StartLimitIntervalSec"] == "0" and about["PartOf"] == TARGET, "never given up"
        assert (feed in about.get("After", "")) == (name != "feed"), "what began after the feed ends before it"
        assert (unit("arbiter") in about.get("Wants", "")) == (row.gpu != "no")
        assert (service["OOMScoreAdjust"] == "-500") == row.survives_launcher
        assert "Requires" not in about and "BindsTo" not in about, "no process falls with another"
        if row.per_source:
            before = {unit(r.name) for r in topology.TABLE if topology.wanted(r, many) and not r.per_source}
            assert set(about["After"].split()) == before, "captures end first"
    restarts = [files[unit(f"capture@{s.name}")]["Service"]["Restart"] for s in SOURCES]
    assert restarts == ["always", "on-failure", "on-failure"], "a file comes to its end"
    assert files[feed]["Service"]["RestartPreventExitStatus"] == "2"
    assert "RestartPreventExitStatus" not in files[unit("capture@mic")]["Service"], "a device may come back"


def test_each_has_the_devices_and_the_network_that_it_needs(many: Settings) -> None:
    card = {
        name: parsed(text) for name, text in units(many, place(many, cuda=True)).items() if name.endswith(".service")
    }
    devices = {name for name, text in card.items() if text["Service"]["PrivateDevices"] == "no"}
    holders = {r.name for r in topology.TABLE if topology.wanted(r, many) and (r.gpu != "no" or r.name == "arbiter")}
    assert devices == {unit(name) for name in (*holders, "capture@mic")}
    assert not any("ProtectClock" in card[name]["Service"] for name in devices), "it would hide all other devices"
    online = {name for name, text in card.items() if "AF_INET" in text["Service"]["RestrictAddressFamilies"]}
    assert online == {unit("viewer"), *(unit(f"capture@{s.name}") for s in SOURCES)}
    served = msgspec.structs.replace(many, feed=FeedSettings(pub_tcp="tcp://*:5555", curve_dir="/keys"))
    assert "AF_INET" in units(served, place(served))[unit("feed")]


def test_what_is_turned_off_has_no_unit_and_standard_input_cannot_have_one(settings: Settings) -> None:
    off = msgspec.structs.replace(settings, speakers=SpeakerSettings(enabled=False))
    assert unit("diarizer") in units(settings, place(settings)) and unit("diarizer") not in units(off, place(off))
    piped = msgspec.structs.replace(settings, source=(Source(name="in", kind="stdin"),))
    with pytest.raises(UserError, match="source in reads standard input"):
        units(piped, place(piped))


@pytest.mark.parametrize("odd", ["\n", "\t", "\r", "\0"])
def test_what_would_break_a_line_of_a_unit_is_refused(settings: Settings, odd: str) -> None:
    where = place(settings)
    for broken in (
        msgspec.structs.replace(where, passed=("--set", f'summary.prompt="a{odd}b"')),
        msgspec.structs.replace(where, folder=Path(f"/a{odd}b")),
    ):
        with pytest.raises(UserError, match="cannot stand in a unit") as refused:
            units(settings, broken)
        assert odd not in str(refused.value)


@pytest.mark.processes
def test_a_process_starts_by_the_words_of_its_unit(many: Settings, processes: Processes, folder: Path) -> None:
    sources = "source=" + msgspec.json.encode(SOURCES).decode()
    argv = [
        sys.executable,
        "-m",
        "common.cli",
        "--data",
        many.data_dir,
        "--set",
        sources,
        "units",
        "--out",
        str(folder / "u"),
    ]
    made = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=60)
    assert made.returncode == 0, made.stderr
    assert {p.stat().st_mode & 0o777 for p in (folder / "u").iterdir()} == {0o600}, "addresses may hold passwords"
    assert "for you alone to read" in made.stderr
    shown = subprocess.run(argv[:-2], capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=60)
    files = {p.name: p.read_text() for p in (folder / "u").iterdir()}
    assert all(f"# {name}\n{text}" in shown.stdout for name, text in files.items())
    for source in SOURCES:
        its = command(files[unit(f"capture@{source.name}")])
        assert its[-2:] == ["--source", source.name] and sources in its
    text = files[unit("feed")]
    feed = processes.spawn(command(text), "unit", cwd=parsed(text)["Service"]["WorkingDirectory"])
    wait_for(lambda: "serving" in feed.output(), what="the feed")
    assert feed.stop() == 0
