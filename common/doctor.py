"""Judges what was found on this machine (`common/facts.py`): a row for each thing that can be wrong. Pure.

A row says: ok, note (it works, but you may want to know) or bad (something will not work), what was found, what to do.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from common.facts import Facts, Weights

PINNED_SHARE = 0.4  # of RAM, at most, is pinned
LANE_GB_S = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}  # PCIe, one lane one way, by generation
SLOW_LINK_GB_S = 10.0
CONTEXT_MIB = 450  # a CUDA context a process, at the upper end
GPU_WORKERS = 4  # transcriber, translator, diarizer, summarizer
FIRST_WANT = 1.25, 512  # weights × this + MiB: what a worker asks for before it has measured (DESIGN §5)
SOCKET_LIMIT = 107  # bytes of a path
DATA_LOW_MIB, DATA_BAD_MIB = 5_000, 500
AUDIO_MIB_H = 110  # an hour of one stream


class Row(msgspec.Struct, frozen=True):
    """One line of the answer."""

    name: str
    verdict: Literal["ok", "note", "bad"]
    found: str
    do: str = ""


def judge(f: Facts) -> list[Row]:
    """All rows, in the order in which a person would ask."""
    rows = [_profile(f), _models(f), _hub(f), _card(f), *_gpu(f), _ram(f), _memlock(f), _huge_pages(f), *_disk(f)]
    return [*rows, _processes(f), _sockets(f)]


def _gib(mib: float) -> str:
    return f"{mib / 1024:.1f} GiB"


def _profile(f: Facts) -> Row:
    return Row("profile", "ok", f"{f.profile}: {f.profile_why}")


def _models(f: Facts) -> Row:
    missing = [w for w in f.models if not w.here and w.of != "later"]
    if not missing:
        there = ", ".join(w.name for w in f.models if w.here)
        return Row("models", "ok", f"{there} {'is' if ',' not in there else 'are'} here")
    names = " ".join(w.name for w in missing)
    gate = ""
    if any(w.gated for w in missing) and not f.token:
        gate = "; accept the licence on the page that it names, and set HF_TOKEN first"
    about = "; ".join(f"{w.name} {w.wrong}" for w in missing)
    return Row(
        "models", "bad", about, f"swapscribe models fetch {names} ({_gib(sum(w.fetch_mib for w in missing))}){gate}"
    )


def _sum(weights: list[Weights]) -> int:
    return sum(w.mib for w in weights)


def _hub(f: Facts) -> Row:
    if not f.hub_wrong:
        return Row("hub", "ok", f"{f.hub} answers" + ", and there is a token" * f.token)
    waiting = any(not w.here for w in f.models)
    do = "check the network, https_proxy, or HF_ENDPOINT; or put the files there by hand (README)" if waiting else ""
    return Row("hub", "note", f"{f.hub} cannot be reached ({f.hub_wrong}); only needed to fetch models", do)


def _card(f: Facts) -> Row:
    if f.card_wrong:
        return Row("card", "bad", f.card_wrong.removeprefix("settings: "), "set gpu.device to auto, or mend that")
    if f.card == "simulated":
        room = f"{f.simulated_mib} MiB" if f.simulated_mib else "room for everything"
        if f.device == "simulated":
            return Row("card", "note", f"simulated, with {room}, as the settings say; models compute on the CPU")
        do = ""
        if f.nvidia_seen and not f.cuda_build:
            do = "there is an NVIDIA driver: install the CUDA build of torch to use the card"
        elif f.cuda_build:
            do = "install the NVIDIA driver, if there is a card"
        return Row("card", "note", f"simulated, with {room}: {f.no_cuda}; models compute on the CPU", do)
    if f.gpu.error:
        do = "pip install nvidia-ml-py" if "nvidia-ml-py" in f.gpu.error else "nvidia-smi tells more"
        return Row("card", "bad", f"CUDA {f.cuda_build}, but the driver cannot be asked: {f.gpu.error}", do)
    return Row("card", "ok", f"{f.gpu.name}, driver {f.gpu.driver}, torch with CUDA {f.cuda_build}")


def _gpu(f: Facts) -> list[Row]:
    """Rows that only a CUDA card has."""
    if f.card != "cuda" or not f.gpu.total_mib:
        return []
    rows = [_vram(f), _link(f)]
    if f.gpu.by_pid is None:
        why = "WSL" if f.wsl else f.container or "this driver"
        rows.append(Row("figures", "note", f"{why} does not tell what each process holds; totals of the card are used"))
    if f.wsl:
        rows.append(Row("WSL", "note", "little memory can be pinned here: reloads go through two small pinned buffers"))
    return rows


def want_mib(w: Weights) -> int:
    """What a worker asks for at first."""
    return int(w.mib * FIRST_WANT[0]) + FIRST_WANT[1]


def _vram(f: Facts) -> Row:
    total = min(f.gpu.total_mib, f.cap_mib) if f.cap_mib else f.gpu.total_mib
    usable = total - f.margin_mib - GPU_WORKERS * CONTEXT_MIB
    found = f"{_gib(f.gpu.free_mib)} of {_gib(f.gpu.total_mib)} free; {_gib(usable)} of it for models"
    for w in f.models:
        if w.of != "later" and want_mib(w) > usable:
            do = "choose a smaller model, summary.quantise=nf4, or another profile"
            return Row("memory", "bad", f"{w.name} wants {_gib(want_mib(w))}, {_gib(usable)} can be had", do)
    others = f.gpu.total_mib - f.gpu.free_mib
    most = max((want_mib(w) for w in f.models if w.of != "later"), default=0)
    if most + others > usable + GPU_WORKERS * CONTEXT_MIB:
        do = f"close what else uses the card; {_gib(most)} are needed at once"
        return Row("memory", "bad", f"{found}; others hold {_gib(others)}", do)
    alone = sum(want_mib(w) for w in f.models)
    fits = "all models fit at once: no swaps" if alone <= usable else "not all models fit at once: they take turns"
    return Row("memory", "ok", f"{found}; {fits}")


def _link(f: Facts) -> Row:
    generation, lanes = f.gpu.pcie_max
    if f.measure_wrong:
        return Row("link", "note", f"not measured: {f.measure_wrong}")
    if f.measured:
        rate = f.measured.get("pinned", 0.0)
        parts = ", ".join(f"{k} {v:.1f}" for k, v in f.measured.items())
        found = f"measured GB/s: {parts}"
    elif generation:
        rate = LANE_GB_S.get(generation, 0.0) * lanes
        now = f", at the moment {f.gpu.pcie_now[0]}.0 x{f.gpu.pcie_now[1]}" if f.gpu.pcie_now != f.gpu.pcie_max else ""
        found = f"PCIe {generation}.0 x{lanes}{now}: at most {rate:.0f} GB/s (--measure measures)"
    else:
        return Row("link", "note", "the driver does not tell the link", "swapscribe doctor --measure")
    burst = max((w.mib for w in f.models if w.of == "burst"), default=0)
    swap = f"; {burst * 2**20 / 1e9 / rate:.1f} s to load the summarizer" if rate and burst else ""
    if rate < SLOW_LINK_GB_S:
        do = "put the card into a slot with 16 lanes, or make swaps rarer (summary.interval_s)"
        return Row("link", "note", found + swap, do)
    return Row("link", "ok", found + swap)


def _ram(f: Facts) -> Row:
    """Weights of all workers stay in RAM, whoever has the card."""
    needed = _sum([w for w in f.models if w.of != "later"])
    found = f"{_gib(f.ram_free_mib)} of {_gib(f.ram_mib)} free, weights of all models take {_gib(needed)}"
    if needed > f.ram_mib * 0.8:
        return Row("RAM", "bad", found, "choose smaller models, or another profile")
    if needed > f.ram_free_mib:
        return Row("RAM", "note", found, "close what else needs memory")
    return Row("RAM", "ok", found)


def _memlock(f: Facts) -> Row:
    plan = min(int(f.ram_mib * PINNED_SHARE), _sum([w for w in f.models if w.of != "later"]))
    limit = "no limit" if f.memlock_mib < 0 else f"limit {f.memlock_mib} MiB"
    if f.card != "cuda":
        return Row("locked memory", "ok", f"{limit}; nothing is pinned for the simulated card")
    found = f"{limit}; {_gib(plan)} are to be pinned"
    if 0 <= f.memlock_mib < plan:
        do = "if pinning fails (the log says so): ulimit -l unlimited, or memlock in /etc/security/limits.conf"
        return Row("locked memory", "note", found, do)
    return Row("locked memory", "ok", found)


def _huge_pages(f: Facts) -> Row:
    if f.huge_pages in ("always", "madvise"):
        return Row("huge pages", "ok", f.huge_pages)
    do = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, as root: loading is quicker"
    return Row("huge pages", "note", f"{f.huge_pages}: weights lie in small pages", do)


def _disk(f: Facts) -> list[Row]:
    hours = f.data_free_mib / AUDIO_MIB_H
    found = f"{f.data}: {_gib(f.data_free_mib)} free, {hours:.0f} hours of one stream"
    low = "bad" if f.data_free_mib < DATA_BAD_MIB else "note" if f.data_free_mib < DATA_LOW_MIB else "ok"
    do = "" if low == "ok" else "make room, or set data_dir to a folder on another disk"
    rows = [Row("disk", low, found, do)]  # type: ignore[arg-type]
    todo = sum(w.fetch_mib + w.mib for w in f.models if not w.here and w.of != "later")
    if todo and todo + DATA_BAD_MIB > f.cache_free_mib:
        found = f"{f.cache}: {_gib(f.cache_free_mib)} free, models to fetch take {_gib(todo)}"
        rows.append(Row("cache", "bad", found, "make room, or set model_cache to a folder on another disk"))
    return rows


def _processes(f: Facts) -> Row:
    if not f.pidfd:
        do = "use Linux 5.3 or newer, and allow pidfd_open in the container's seccomp profile"
        return Row("processes", "bad", "pidfd_open does not work: nobody could be stopped safely", do)
    if f.out_of_sight:
        names = ", ".join(f.out_of_sight)
        do = "run all in one container, or with --pid=host: the arbiter must be able to end a worker that hangs"
        return Row("processes", "bad", f"{names} runs in another pid namespace", do)
    where = f"; this is a container ({f.container}): all processes must be in it" if f.container else ""
    return Row("processes", "ok", f"all that run see each other{where}")


def _sockets(f: Facts) -> Row:
    if f.longest_socket > SOCKET_LIMIT:
        found = (
            f"paths in data_dir would have up to {f.longest_socket} bytes, {SOCKET_LIMIT} are allowed: they are in /tmp"
        )
        return Row("sockets", "note", found, "a shorter data_dir keeps them beside the data")
    return Row("sockets", "ok", f"paths of at most {f.longest_socket} bytes, {SOCKET_LIMIT} are allowed")


def text(rows: list[Row]) -> list[str]:
    """For a terminal."""
    wide = max(len(r.name) for r in rows)
    out = []
    for r in rows:
        out.append(f"{r.verdict:<4}  {r.name:<{wide}}  {r.found}")
        if r.do:
            out.append(f"{'':<4}  {'':<{wide}}  → {r.do}")
    return out
