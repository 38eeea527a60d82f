"""`swapscribe doctor`: every verdict from injected findings, and one look at the real machine."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from common import nvml
from common.doctor import Row, judge, text, want_mib
from common.facts import Facts, Weights
from common.settings import Settings
from tests.conftest import ROOT, clean_environment

GPU = nvml.Device(
    name="stand-in card",
    driver="600.1",
    total_mib=16_303,
    free_mib=15_900,
    pcie_now=(1, 16),
    pcie_max=(5, 16),
    by_pid={},
)
MODELS = (
    Weights(name="turbo", mib=1_543, here=True),
    Weights(name="silero_vad", mib=2, here=True),
    Weights(name="llm.nf4", mib=5_522, here=True, of="burst"),
    Weights(name="m2m", mib=4_730, here=False, of="later"),
)
CUDA = Facts(profile="rtx16", card="cuda", cuda_build="13.0", gpu=GPU, models=MODELS)


def rows(base: Facts = CUDA, **changed: object) -> dict[str, Row]:
    return {r.name: r for r in judge(msgspec.structs.replace(base, **changed))}


@pytest.mark.pure
def test_a_good_machine_is_all_ok() -> None:
    for facts in (CUDA, Facts(no_cuda="the installed torch is a CPU build", device="auto")):
        bad = [r for r in judge(facts) if r.verdict != "ok"]
        assert [r.name for r in bad] in ([], ["card"])  # no card is a note, not a fault
        assert all(r.found and "\n" not in r.found + r.do for r in judge(facts))
    assert "PCIe 5.0 x16, at the moment 1.0 x16: at most 63 GB/s" in rows()["link"].found
    assert "0.1 s to load the summarizer" in rows()["link"].found
    assert "all models fit at once" not in rows()["memory"].found or want_mib(MODELS[3]) < 6_500


LACKING = (*MODELS[:2], Weights(name="llm", mib=14_500, fetch_mib=14_500, here=False, gated=True, wrong="is not there"))


@pytest.mark.pure
@pytest.mark.parametrize(
    ("changed", "row", "verdict", "says"),
    [
        ({"models": LACKING}, "models", "bad", "accept the licence"),
        ({"models": LACKING, "token": True}, "models", "bad", "swapscribe models fetch llm (14.2 GiB)"),
        ({"hub_wrong": "no answer within 3 s"}, "hub", "note", "no answer within 3 s"),
        ({"token": True}, "hub", "ok", "there is a token"),
        ({"card_wrong": "settings: gpu.device is cuda, but no NVIDIA driver is installed"}, "card", "bad", "no NVIDIA"),
        ({"card": "simulated", "cuda_build": "", "nvidia_seen": True}, "card", "note", "CUDA build of torch"),
        ({"card": "simulated", "no_cuda": "no NVIDIA driver is installed"}, "card", "note", "the NVIDIA driver"),
        ({"card": "simulated", "device": "simulated", "simulated_mib": 1600}, "card", "note", "1600 MiB, as the"),
        ({"gpu": nvml.Device(error="the package nvidia-ml-py is not installed")}, "card", "bad", "pip install"),
        ({"gpu": nvml.Device(error="the driver does not answer within 5 s")}, "card", "bad", "nvidia-smi"),
        ({"cap_mib": 6_000}, "memory", "bad", "llm.nf4 wants 7.2 GiB"),
        ({"gpu": msgspec.structs.replace(GPU, free_mib=6_000)}, "memory", "bad", "close what else uses the card"),
        ({}, "memory", "ok", "15.5 GiB of 15.9 GiB free"),
        ({"gpu": msgspec.structs.replace(GPU, by_pid=None), "wsl": True}, "figures", "note", "WSL does not tell"),
        ({"gpu": msgspec.structs.replace(GPU, by_pid=None), "container": "Docker"}, "figures", "note", "Docker"),
        ({"wsl": True}, "WSL", "note", "pinned"),
        ({"gpu": msgspec.structs.replace(GPU, pcie_max=(3, 4))}, "link", "note", "slot with 16 lanes"),
        ({"gpu": msgspec.structs.replace(GPU, pcie_max=(0, 0))}, "link", "note", "--measure"),
        ({"measured": {"pinned": 25.0, "pageable": 9.0, "pin": 2.0}}, "link", "ok", "pinned 25.0, pageable 9.0"),
        ({"measured": {"pinned": 3.0}}, "link", "note", "1.9 s to load the summarizer"),
        ({"measure_wrong": "torch sees no CUDA device"}, "link", "note", "torch sees no CUDA device"),
        ({"ram_mib": 8_000, "ram_free_mib": 7_900}, "RAM", "bad", "smaller models"),
        ({"ram_free_mib": 2_000}, "RAM", "note", "close what else needs memory"),
        ({"memlock_mib": 8}, "locked memory", "note", "ulimit -l unlimited"),
        ({"memlock_mib": 8, "card": "simulated"}, "locked memory", "ok", "nothing is pinned"),
        ({"huge_pages": "never"}, "huge pages", "note", "transparent_hugepage"),
        ({"data_free_mib": 400}, "disk", "bad", "data_dir"),
        ({"data_free_mib": 3_000}, "disk", "note", "27 hours"),
        ({"models": LACKING, "cache_free_mib": 20_000}, "cache", "bad", "model_cache"),
        ({"out_of_sight": ("arbiter",)}, "processes", "bad", "arbiter runs in another pid namespace"),
        ({"pidfd": False}, "processes", "bad", "Linux 5.3"),
        ({"container": "Docker"}, "processes", "ok", "container (Docker)"),
        ({"longest_socket": 140}, "sockets", "note", "up to 140 bytes, 107 are allowed"),
    ],
)  # fmt: skip
def test_each_verdict(changed: dict[str, object], row: str, verdict: str, says: str) -> None:
    found = rows(**changed)[row]
    assert found.verdict == verdict and says in f"{found.found} {found.do}"
    if verdict == "bad":
        assert found.do  # who is told that something is wrong is told what to do


@pytest.mark.pure
def test_what_a_terminal_shows() -> None:
    lines = text([Row("disk", "bad", "full", "make room"), Row("processes", "ok", "fine")])
    assert lines == ["bad   disk       full", "                 → make room", "ok    processes  fine"]


def doctor(settings: Settings, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "common.cli", "--data", settings.data_dir]
    argv += ["--set", "summary.enabled=false", *args]
    closed = {"HF_ENDPOINT": "http://127.0.0.1:1"}
    return subprocess.run(
        argv, capture_output=True, text=True, cwd=ROOT, env=clean_environment() | closed | env, check=False
    )


@pytest.mark.processes
def test_a_look_at_this_machine(settings: Settings, folder: Path) -> None:
    """As JSON and as text, before anything was started; it makes no data folder and imports no torch."""
    cache = str(folder / "cache")
    done = doctor(settings, "--set", f"model_cache={cache}", "doctor", "--json")
    told = json.loads(done.stdout)
    by_name = {r["name"]: r for r in told["rows"]}
    assert {"profile", "models", "hub", "card", "RAM", "locked memory", "disk", "processes", "sockets"} <= set(by_name)
    assert by_name["models"]["verdict"] == "bad" and done.returncode == 1 and done.stderr == ""
    assert by_name["models"]["do"].startswith("swapscribe models fetch tiny.en silero_vad")
    assert by_name["hub"]["verdict"] == "note" and "Connection refused" in by_name["hub"]["found"]
    assert by_name["processes"]["verdict"] == "ok" and told["facts"]["ram_mib"] > 500
    assert not settings.data.exists()
    shown = doctor(settings, "--set", f"model_cache={cache}", "doctor").stdout
    assert "bad   models" in shown and "→ swapscribe models fetch" in shown
    code = "import sys\nfrom common import doctor, facts, auto\nassert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean_environment(), check=True)


@pytest.mark.processes
def test_a_card_that_is_asked_for_and_cannot_be_is_bad(settings: Settings) -> None:
    """On a machine with a card this has nothing to show: the status is then the machine's."""
    done = doctor(settings, "--set", "gpu.device=cuda", "doctor", "--json")
    told = json.loads(done.stdout)
    card = {r["name"]: r for r in told["rows"]}["card"]
    if told["facts"]["card_wrong"]:
        assert card["verdict"] == "bad" and "gpu.device is cuda" in card["found"] and done.returncode == 1
    else:
        assert told["facts"]["card"] == "cuda"


@pytest.mark.processes
def test_a_process_of_another_pid_namespace_is_seen(settings: Settings) -> None:
    """A lock held from outside has no pid inside. Where no namespace may be made, only the first half is tested."""
    run = settings.data / "run"
    run.mkdir(parents=True)
    with (run / "arbiter.lock").open("w") as mine:
        fcntl.lockf(mine, fcntl.LOCK_EX)
        look = f"from pathlib import Path\nfrom common.process import holder, out_of_sight\nr=Path({str(run)!r})\n"
        look += "print(holder(r,'arbiter'), out_of_sight(r,'arbiter'))"
        argv = [sys.executable, "-c", look]
        inside = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
        assert inside == [str(os.getpid()), "False"]
        unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
        outside = subprocess.run([*unshare, *argv], capture_output=True, text=True, cwd=ROOT, check=False)
        if outside.returncode == 0:
            assert outside.stdout.split() == ["None", "True"]
