"""What people see of the GPU and may order: `swapscribe gpu`, lines between captions, the page, health, metrics."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from common import messages as m
from common.cli_gpu import state
from common.console import Captions
from common.feed_client import FeedClient
from common.gpu_text import Pauses, lines, summary
from common.process import holder
from common.settings import Settings
from tests.conftest import ROOT, Processes, clean_environment, wait_for
from tests.gpu import Gpu
from workers.health import UNHEARD_S, Health

MIB = 2**20


def worker(name: str, **more: Any) -> m.GpuWorker:
    plain = {"pid": 7, "state": "granted", "residency": "resident", "lane": "live", "bytes": 0, "held_bytes": 0}
    return m.GpuWorker(**({"worker": name, "wants_bytes": 0} | plain | more))


def gpu_state(*workers: m.GpuWorker, **more: Any) -> m.GpuState:
    plain = {"device": "card", "simulated": True, "total_bytes": 1000 * MIB, "used_bytes": 910 * MIB}
    rest = {"foreign_bytes": 10 * MIB, "cap_bytes": 984 * MIB, "counted_bytes": 900 * MIB, "phase": "idle"}
    return m.GpuState(**(plain | rest | {"workers": workers} | more))


WANTS: Any = {"state": "free", "residency": "offloaded", "wants_bytes": 600 * MIB, "waits_s": 2.4}
WAITS = worker("transcriber", reason="summarizer has the GPU", **WANTS)
HAS = worker("summarizer", lane="burst", bytes=900 * MIB, reload_s=0.41, reload_gb_s=2.25, offload_s=0.012)
BURST = gpu_state(HAS, WAITS, phase="burst", reason="summarizer has the GPU", captions_resume_in_s=8.7, swaps=3)


@pytest.mark.pure
def test_lines_say_who_is_there_who_waits_and_why() -> None:
    text = "\n".join(lines(BURST))
    assert "total 1 000 MiB, used 910 MiB, of other programs 10 MiB" in text
    assert "leases: 900 MiB of 984 MiB; swaps so far: 3" in text
    assert "phase: burst; summarizer has the GPU; captions resume in about 9 s" in text
    assert re.search(
        r"summarizer +granted +resident +900 MiB leased +burst +reload 0\.41 s at 2\.2 GB/s, off.* 12 ms", text
    )
    assert "    waits for 2 s: summarizer has the GPU" in text
    assert "trouble" not in text and "trouble: no driver" in "\n".join(lines(gpu_state(trouble="no driver")))
    assert summary(BURST).count("\n") == 0 and "transcriber waits: summarizer has the GPU" in summary(BURST)


@pytest.mark.pure
def test_captions_pause_and_resume_is_said_once_each() -> None:
    pauses = Pauses()
    assert list(pauses.lines(gpu_state(HAS), 0.0)) == []
    assert list(pauses.lines(BURST, 1.0)) == ["[captions pause: summarizer has the GPU, back in about 9 s]"]
    assert list(pauses.lines(BURST, 2.0)) == []
    assert list(pauses.lines(msgspec.structs.replace(BURST, phase="giving back"), 9.0)) == []
    assert list(pauses.lines(gpu_state(HAS), 10.4)) == ["[captions resume after 9.4 s]"]
    loads = gpu_state(WAITS, phase="idle", captions_resume_in_s=1.0)
    assert list(pauses.lines(loads, 11.0)) == [], "a start is no pause"


@pytest.mark.pure
def test_a_dead_arbiter_is_red_while_somebody_waits_for_it() -> None:
    settings = Settings()
    health = Health(settings, 0.0)
    beat = m.Beat(protocol=1, journal="j", head=0, at_ns=0, streams={}, workers={}, captures={})
    alive = {"feed": True, "transcriber": True, "arbiter": False}
    health.take(beat, 1.0)
    assert list(health.reasons(alive, 1.0)) == [], "nobody waits"
    health.take_gpu(BURST, 1.0)
    assert list(health.reasons(alive, 1.0)) == ["arbiter is not running, and transcriber waits for the GPU"]
    assert list(health.reasons(alive | {"arbiter": True}, 1.0)) == []
    said = m.WorkerStatus(worker="summarizer", pid=1, phase="waiting")
    health.take(msgspec.structs.replace(beat, workers={"summarizer": said}), 1.0)
    assert "summarizer, transcriber waits" in next(health.reasons(alive, 1.0))
    assert health.status(alive, 1.0)["gpu"] == BURST
    assert health.status(alive, 1.1 + UNHEARD_S)["gpu"] is None, "old news is no news"


@pytest.fixture
def gpu(processes: Processes, settings: Settings) -> Iterator[Gpu]:
    one = Gpu(processes, settings)
    yield one
    one.close()


class Cli:
    def __init__(self, gpu: Gpu) -> None:
        self.argv = [sys.executable, "-m", "common.cli", "--config", str(gpu.processes.config(gpu.settings))]

    def __call__(self, *args: str, fails: bool = False) -> str:
        done = subprocess.run(
            [*self.argv, *args], capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=60
        )
        assert (done.returncode == 2) if fails else (done.returncode == 0), done
        assert not fails or done.stderr.count("\n") == 1
        return done.stderr if fails else done.stdout


@pytest.mark.processes
def test_orders_by_hand(gpu: Gpu) -> None:
    cli = Cli(gpu)
    assert "no arbiter runs in" in cli("gpu", "status", fails=True)
    gpu.arbiter()
    gpu.worker("transcriber", want_mib=600)
    gpu.has("transcriber")
    assert "transcriber    granted    resident   600 MiB leased" in cli("gpu", "status")
    there_are = "there are: diarizer, summarizer, transcriber"
    assert f"no GPU worker 'viewer'; {there_are}" in cli("gpu", "evict", "viewer", fails=True)
    assert "not on the GPU" in cli("gpu", "evict", "summarizer", fails=True)

    assert "transcriber keeps the GPU" in cli("gpu", "pin", "transcriber")
    assert "is pinned" in cli("gpu", "evict", "transcriber", fails=True)
    gpu.worker("summarizer", want_mib=900, lane="burst")
    gpu.until(lambda s: "is pinned" in s["summarizer"].reason if "summarizer" in s else False)
    assert "summarizer cannot be served: transcriber is pinned" in cli("gpu", "swap", fails=True)
    cli("gpu", "unpin", "transcriber")
    gpu.has("summarizer")
    gpu.script("summarizer", want_mib=0, lane="burst")
    gpu.has("transcriber")

    assert "may come back in 10 s" in cli("gpu", "evict", "transcriber")
    gpu.until(lambda s: s["transcriber"].state == "free" and "evicted by hand" in s["transcriber"].reason)


@pytest.mark.processes
def test_pins_outlive_the_arbiter(gpu: Gpu) -> None:
    arbiter = gpu.arbiter()
    gpu.worker("transcriber", want_mib=600)
    gpu.has("transcriber")
    gpu.command("pin", worker="transcriber")
    arbiter.kill()
    gpu.arbiter()
    gpu.until(lambda s: "transcriber" in s and s["transcriber"].pinned)


@pytest.mark.processes
def test_a_swap_by_hand_says_what_it_took(processes: Processes, settings: Settings) -> None:
    gpu = Gpu(processes, settings, silence_s=3600.0, patience_s=3600.0, overdue_s=3600.0)
    cli = Cli(gpu)
    gpu.arbiter()
    gpu.worker("transcriber", want_mib=600)
    gpu.has("transcriber")
    text = cli("gpu", "swap")
    assert "nobody waits: transcriber leaves the GPU and comes back" in text
    assert re.search(r"transcriber: offload \d+ ms, reload \d+ ms at [\d.]+ GB/s; all of it \d\.\d\d s", text)
    gpu.worker("summarizer", want_mib=900, lane="burst", works_s=0.2)
    gpu.until(lambda s: "somebody speaks" in s["summarizer"].reason if "summarizer" in s else False)
    text = cli("gpu", "swap")
    assert "summarizer gets the GPU now" in text and text.count("offload") == 2
    gpu.close()


@pytest.mark.processes
def test_an_order_is_carried_out_once_per_id(gpu: Gpu) -> None:
    gpu.arbiter()
    gpu.worker("transcriber", want_mib=600)
    gpu.has("transcriber")
    order = m.Command(id="one", verb="swap")
    first = gpu.ask(order)
    assert isinstance(first, m.Done)
    gpu.until(lambda s: s["transcriber"].state != "granted" or s["transcriber"].residency == "resident")
    gpu.has("transcriber")
    n = msgspec.json.decode((gpu.run / "roster").read_bytes())["n"]
    assert gpu.ask(order) == first
    gpu.has("transcriber")
    assert msgspec.json.decode((gpu.run / "roster").read_bytes())["n"] == n, "nothing moved again"


@pytest.mark.processes
def test_the_feed_the_captions_and_the_page_show_a_burst(processes: Processes, settings: Settings) -> None:
    from tests.pages import Page

    gpu = Gpu(processes, settings)
    processes.start("workers.feed", settings=gpu.settings)
    client = FeedClient(gpu.settings, kinds=(), gpu=True)
    captions = Captions(gpu.settings)
    page = Page(processes)
    gpu.arbiter()
    gpu.worker("transcriber", want_mib=600)
    gpu.has("transcriber")
    seen: list[m.GpuState] = []
    said: list[str] = []

    def look() -> None:
        seen.extend(x for x in client.poll(0.0) if isinstance(x, m.GpuState))
        said.extend(captions.lines())

    wait_for(lambda: look() or (captions._client and captions.beat and seen), what="the feed")
    gpu.worker("summarizer", want_mib=900, lane="burst", works_s=1.5)
    wait_for(lambda: look() or any("captions resume after" in x for x in said), what="a pause and its end")
    assert [x.split(":")[0].split(" after")[0] for x in said] == ["[captions pause", "[captions resume"]
    assert re.fullmatch(r"\[captions pause: summarizer has the GPU, back in about \d+ s\]", said[0])
    phases = [s.phase for s in seen]
    assert "burst" in phases and phases.index("burst") > phases.index("idle")
    assert any(s.captions_resume_in_s >= 0 for s in seen)

    def metrics() -> str:
        return page.get("/metrics")[1]

    wait_for(lambda: "swapscribe_gpu_swaps_total 1.0" in metrics(), what="the swap in the metrics")

    def leased() -> float:
        found = re.search(r'swapscribe_gpu_worker_bytes{worker="transcriber"} (\S+)', metrics())
        return float(found[1]) if found else 0.0

    wait_for(lambda: leased() == 600 * MIB, what="the lease in the metrics")
    status = next(data for kind, _, data in page.events() if kind == "status" and data["gpu"])
    assert {w["worker"] for w in status["gpu"]["workers"]} == {"transcriber", "summarizer"}
    cli, line = Cli(gpu), r"gpu: +simulated card, 600 MiB of 984 MiB leased; idle"
    wait_for(lambda: re.search(line, cli("status")), what=line)
    client.close()
    gpu.close()


@pytest.mark.processes
def test_state_without_an_arbiter_is_none(settings: Settings) -> None:
    settings.data.mkdir(parents=True)
    began = time.monotonic()
    assert state(settings, timeout_s=60.0) is None and time.monotonic() - began < 30.0, "nobody is waited for"
    assert holder(settings.data / "run", "arbiter") is None
