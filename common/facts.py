"""What `swapscribe doctor` finds on this machine, as plain data (`Facts`); `common/doctor.py` judges it.

Looks only: no socket is opened but the probe of the hub, no CUDA context is made but by `measure`, and what may block
(the driver, torch) is asked in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from common import auto, card, models, nvml, profiles, wire
from common.hub import Site, token
from common.process import out_of_sight
from common.settings import Settings, UserError

MIB = 2**20
MEASURE_S = 120.0


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the profile."""

    name: str
    mib: int
    fetch_mib: int = 0  # to be downloaded for it
    here: bool
    wrong: str = ""  # why it cannot be loaded
    gated: bool = False
    of: str = "live"  # live | burst | later


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is judged; the defaults are of a machine on which nothing is wrong."""

    profile: str = profiles.EMBEDDED
    profile_why: str = ""
    models: tuple[Weights, ...] = ()
    out_of_sight: tuple[str, ...] = ()  # processes of ours in another pid namespace
    container: str = ""
    pidfd: bool = True
    wsl: bool = False
    device: str = "auto"  # the setting
    card: str = "simulated"  # cuda | simulated
    card_wrong: str = ""  # gpu.device is cuda, and cannot be
    no_cuda: str = ""
    cuda_build: str = ""
    nvidia_seen: bool = False  # a driver or its device files are there
    gpu: nvml.Device = nvml.Device()
    cap_mib: int = 0
    margin_mib: int = 256
    simulated_mib: int = 0
    measured: dict[str, float] | None = None  # GB/s: pinned, pageable, pin
    measure_wrong: str = ""
    memlock_mib: int = -1  # soft limit; -1: none
    ram_mib: int = 65_536
    ram_free_mib: int = 65_536
    huge_pages: str = "madvise"
    longest_socket: int = 0  # bytes of the path in DATA/run
    data: str = ""
    data_free_mib: int = 1_000_000
    cache: str = ""
    cache_free_mib: int = 1_000_000
    hub: str = ""
    hub_wrong: str = ""
    token: bool = False


def gather(load: Callable[..., Settings], measure: bool = False) -> Facts:
    """Look at everything. `load(*more)` loads the settings with more overrides."""
    settings, card_wrong, kind = load(), "", "simulated"
    try:
        kind = card.kind(settings)
    except UserError as e:
        card_wrong = str(e)
    seen = Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()
    gpu = nvml.read(settings.gpu.index) if kind == "cuda" or seen else nvml.Device()
    site = Site(models.default_hub())
    hub_wrong = site.unreachable()
    if card_wrong:
        pick = profiles.Pick(profiles.EMBEDDED, "the card that is asked for cannot be used")
    else:
        pick = auto.resolve(load, device=gpu)
    settings = load(f"profile={pick.name}")
    memlock = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    memory = _meminfo()
    measured, measure_wrong = _measure(settings.gpu.index) if measure and kind == "cuda" else (None, "")
    run = settings.data / "run"
    return Facts(
        profile=pick.name,
        profile_why=pick.why,
        models=weights_of(settings),
        out_of_sight=tuple(p.stem for p in sorted(run.glob("*.lock")) if out_of_sight(run, p.stem)),
        container=_container(),
        pidfd=_pidfd_works(),
        wsl="microsoft" in Path("/proc/sys/kernel/osrelease").read_text().lower(),
        device=settings.gpu.device,
        card=kind,
        card_wrong=card_wrong,
        no_cuda=card.no_cuda(),
        cuda_build=card.cuda_build(),
        nvidia_seen=seen,
        gpu=gpu,
        cap_mib=settings.gpu.cap_mib,
        margin_mib=settings.gpu.margin_mib,
        simulated_mib=settings.gpu.simulated_mib,
        measured=measured,
        measure_wrong=measure_wrong,
        memlock_mib=-1 if memlock == resource.RLIM_INFINITY else memlock // MIB,
        ram_mib=memory.get("MemTotal", 0),
        ram_free_mib=memory.get("MemAvailable", 0),
        huge_pages=_huge_pages(),
        longest_socket=len(os.fsencode(run)) + 1 + wire.longest_name(settings),
        data=str(settings.data),
        data_free_mib=_free_mib(settings.data),
        cache=str(settings.cache),
        cache_free_mib=_free_mib(settings.cache),
        hub=site.url,
        hub_wrong=hub_wrong,
        token=bool(token()),
    )


def weights_of(settings: Settings) -> tuple[Weights, ...]:
    """Models that these settings need, and those of the translator when it is not asked for."""
    out = []
    later = models.with_targets(settings)
    burst = models.quantised(settings.summary.model, settings.summary.quantise)
    for name in (*models.needed(settings), *later):
        of = "later" if name in later else "burst" if name == burst else "live"
        try:
            m = models.model(name)
            wrong = models.problem(m, settings.cache / "models" / name, check=False)
            gated = bool(m.repository and m.repository.gated)
            raw = models.model(m.base) if m.base else m  # quantised from it
            todo = models.missing(settings, [raw.name]) if wrong else ()
            sizes = {"mib": m.bytes // MIB, "fetch_mib": raw.bytes // MIB if todo else 0}
            out.append(Weights(name=name, here=not wrong, wrong=wrong, gated=gated, of=of, **sizes))
        except UserError as e:
            out.append(Weights(name=name, mib=0, here=False, wrong=str(e), of=of))
    return tuple(out)


def _meminfo() -> dict[str, int]:
    """MiB by the kernel's names."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) // 1024 for words in lines}


def _container() -> str:
    for file, name in (("/.dockerenv", "Docker"), ("/run/.containerenv", "Podman")):
        if Path(file).exists():
            return name
    return os.environ.get("container", "")  # noqa: SIM112 - systemd writes it so


def _pidfd_works() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
        return True
    except OSError:
        return False


def _huge_pages() -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        return text.partition("[")[2].partition("]")[0]
    except OSError:
        return "unknown"


def _free_mib(folder: Path) -> int:
    """Free space where the folder is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free // MIB


def _measure(index: int) -> tuple[dict[str, float] | None, str]:
    """GB/s of the link, by `workers.link_rate` in a process of its own."""
    argv = [sys.executable, "-m", "workers.link_rate", str(index)]
    root = Path(__file__).parent.parent
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=MEASURE_S, cwd=root, check=False)
    except subprocess.TimeoutExpired:
        return None, f"no figures within {MEASURE_S:.0f} s"
    with contextlib.suppress(ValueError):
        return {str(k): float(v) for k, v in json.loads(done.stdout).items()}, ""
    return None, (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:200]
