"""Systemd units for the processes of the table: systemd in the launcher's place, with its rules. Pure.

A unit for each process that these settings want, and `swapscribe.target` for all of them. What the table says decides:
everybody begins after the feed, GPU workers after the arbiter; captures end first and the feed last; what outlives the
launcher is the last to be killed where memory is short. Nothing may be written outside DATA.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import msgspec

from common import topology
from common.process import EXIT_USER_ERROR
from common.settings import Settings, Source, UserError

TARGET = "swapscribe.target"
SWEEPS = f"swapscribe-{topology.SWEEPER.name}.timer"
RESTART_S, STOP_S = 1, 10
# Who may not become root cannot make the driver's devices, where nobody has used the card since the machine started.
NVIDIA = "+-/bin/sh -c 'nvidia-modprobe -u -c 0'"
HARDENING = (
    ("NoNewPrivileges", "yes"),
    ("CapabilityBoundingSet", ""),
    ("ProtectSystem", "strict"),
    ("ProtectHome", "read-only"),
    ("PrivateTmp", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectControlGroups", "yes"),
    ("ProtectHostname", "yes"),
    ("RestrictNamespaces", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("LockPersonality", "yes"),
    ("SystemCallArchitectures", "native"),
    ("UMask", "0077"),
)


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where and as whom the processes run."""

    python: str
    folder: Path  # working folder: relative paths of the settings begin there
    user: str
    uid: int
    passed: tuple[str, ...] = ()  # options that load the settings
    cuda: bool = False  # a real card


def units(settings: Settings, place: Place) -> dict[str, str]:
    """Texts by file name. Raises UserError."""
    rows = {name: topology.row(name) for name in topology.names(settings)}
    for source in settings.source:
        if source.kind == "stdin":
            raise UserError(f"source {source.name} reads standard input, which no unit can give it: use kind pcm")
    files = {unit(name): _service(name, row, settings, place, rows) for name, row in rows.items()}
    target = [("Description", "Swapscribe: live captions"), ("Wants", " ".join([*files, SWEEPS]))]
    timer = [("OnActiveSec", "1min"), ("OnUnitActiveSec", "1h")]
    return {
        TARGET: _text(Unit=target, Install=[("WantedBy", "multi-user.target")]),
        **files,
        unit(topology.SWEEPER.name): _service(topology.SWEEPER.name, topology.SWEEPER, settings, place, rows),
        SWEEPS: _text(Unit=[("Description", f"Swapscribe: {topology.SWEEPER.doc}"), ("PartOf", TARGET)], Timer=timer),
    }


def unit(process: str) -> str:
    """File name of a process's unit."""
    return f"swapscribe-{process}.service"


def keeps(process: str, pid: int, proc: Path = Path("/proc")) -> bool:
    """Does systemd run this process, by our unit? Its control group has the unit's name."""
    try:
        groups = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:  # gone
        return False
    return any(line.endswith(f"/{unit(process)}") for line in groups)


def _service(name: str, row: topology.Row, settings: Settings, place: Place, rows: dict[str, topology.Row]) -> str:
    feed, arbiter = unit("feed"), unit("arbiter")
    needs = [feed] * (name != "feed") + [arbiter] * (row.gpu != "no")
    after = list(needs)
    if row.per_source:  # not that it waits for them: what begins after others ends before them
        after = [unit(other) for other, r in rows.items() if not r.per_source]
    elif not row.survives_launcher:
        after = [feed, *([arbiter] if arbiter in needs else [])]
    source = settings.source_named(name.partition("@")[2]) if row.per_source else None
    about = [
        ("Description", f"Swapscribe {name}: {row.doc}"),
        ("PartOf", TARGET),
        ("Wants", " ".join(needs)),
        ("After", " ".join(after)),
        ("StartLimitIntervalSec", "0"),  # never given up: what it misses waits on the disk
    ]
    command = [place.python, "-m", row.module, *place.passed, *(["--source", source.name] if source else [])]
    once = row is topology.SWEEPER
    service = [
        ("Type", "oneshot" if once else "exec"),
        ("User", place.user),
        ("WorkingDirectory", _path(place.folder)),
        *([("ExecStartPre", NVIDIA)] if place.cuda and row.gpu != "no" else []),
        ("ExecStart", " ".join(map(_quoted, command))),
        *([] if once else _restart(source)),
        ("TimeoutStopSec", str(STOP_S)),
        ("OOMScoreAdjust", "-500" if row.survives_launcher else "200" if row.gpu != "no" else "0"),
        *HARDENING,
        ("ReadWritePaths", _quoted(str(settings.data), command=False)),
        *_devices(row, source, place),
        ("RestrictAddressFamilies", "AF_UNIX" + " AF_INET AF_INET6 AF_NETLINK" * _online(name, row, settings)),
    ]
    return _text(Unit=[x for x in about if x[1]], Service=service)


def _restart(source: Source | None) -> list[tuple[str, str]]:
    """As the launcher: always, but for a source that has come to its end; a person's mistake is not tried again."""
    restart = "on-failure" if source and source.kind in ("file", "pcm") else "always"
    prevent = [] if source else [("RestartPreventExitStatus", str(EXIT_USER_ERROR))]
    return [("Restart", restart), ("RestartSec", str(RESTART_S)), *prevent]


def _devices(row: topology.Row, source: Source | None, place: Place) -> list[tuple[str, str]]:
    """Devices and locked memory for those who need them, for the others none."""
    if place.cuda and (row.gpu != "no" or row.name == "arbiter"):
        return [("PrivateDevices", "no"), ("LimitMEMLOCK", "infinity")]
    if source and source.kind in ("microphone", "loopback"):
        # The sound server of the user's session, if there is one, lies there.
        session = ("Environment", f"XDG_RUNTIME_DIR=/run/user/{place.uid}")
        return [("PrivateDevices", "no"), ("SupplementaryGroups", "audio"), session]
    return [("PrivateDevices", "yes"), ("ProtectClock", "yes")]


def _online(name: str, row: topology.Row, settings: Settings) -> bool:
    """Does it talk to anything outside this machine's files?"""
    served = any(e.may_be_tcp for e in row.binds) and bool(settings.feed.pub_tcp or settings.feed.replay_tcp)
    return served or row.per_source or "web page" in row.writes


def _text(**sections: Sequence[tuple[str, str]]) -> str:
    return "\n".join("\n".join([f"[{name}]", *(f"{k}={v}" for k, v in rows), ""]) for name, rows in sections.items())


def _quoted(argument: str, command: bool = True) -> str:
    """A word of a setting: `%` would be replaced, in a `command` also `$`, and spaces would part it."""
    _check(argument)
    text = argument.replace("\\", "\\\\").replace("%", "%%").replace('"', '\\"')
    text = text.replace("$", "$$") if command else text
    return f'"{text}"' if not text or set(text) & set(" \\\"';#") else text


def _path(path: Path) -> str:
    _check(str(path))
    return str(path).replace("%", "%%")


def _check(text: str) -> None:
    """A line break would end the key in the middle, and what follows would be a key of its own. Raises UserError."""
    if any(unicodedata.category(c) == "Cc" for c in text):
        raise UserError(f"{text.partition('=')[0]!r} cannot stand in a unit: a line break, a tab or the like is in it")
