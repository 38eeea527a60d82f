"""Profiles: under what a person set, over the defaults; `auto` picks by the card and by what is here, and says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common import auto, card, models, nvml, profiles
from common.cli import Given
from common.hub import Site
from common.settings import Section, Settings, UserError, load
from tests.conftest import ROOT, Processes, clean_environment, wait_for

CARD = nvml.Device(name="stand-in card", total_mib=16_303, free_mib=16_000)
BOTH = {"rtx24": (), "rtx16": ()}
LACKING = {"rtx24": ("turbo", "qwen2.5-7b"), "rtx16": ("qwen2.5-7b.nf4",)}


def settings_of(folder: Path, toml: str = "", *overrides: str, **environ: str) -> Settings:
    file = folder / "settings.toml"
    file.write_text(toml)
    return load(file, overrides, environ)


@pytest.mark.pure
def test_what_a_person_set_wins_over_the_profile(folder: Path) -> None:
    by_profile = settings_of(folder, 'profile = "rtx16"')
    assert (by_profile.transcriber.model, by_profile.summary.quantise) == ("turbo", "nf4")
    assert by_profile.summary.interval_s == Settings().summary.interval_s  # neither says anything of it
    by_file = settings_of(folder, 'profile = "rtx16"\n[transcriber]\nmodel = "base"')
    assert (by_file.transcriber.model, by_file.summary.model) == ("base", "qwen2.5-7b")
    env = {"SWAPSCRIBE_TRANSCRIBER__MODEL": "tiny.en", "SWAPSCRIBE_PROFILE": "rtx24"}
    by_env = settings_of(folder, 'profile = "rtx16"\n[transcriber]\nmodel = "base"', **env)
    assert (by_env.profile, by_env.transcriber.model, by_env.summary.quantise) == ("rtx24", "tiny.en", "none")
    by_line = settings_of(folder, "", "profile=rtx16-14b", "summary.model=mistral-7b", **env)
    assert (by_line.summary.model, by_line.summary.quantise) == ("mistral-7b", "nf4")
    for open_key in ("", 'profile = "auto"', 'profile = "embedded"'):
        one = settings_of(folder, open_key)
        assert (one.transcriber, one.summary) == (Settings().transcriber, Settings().summary)


@pytest.mark.pure
@pytest.mark.parametrize("wrong", ['profile = "rtx17"', "profile = 3", 'profile = ["rtx16"]'])
def test_a_profile_that_is_none_is_one_line(folder: Path, wrong: str) -> None:
    with pytest.raises(UserError) as e:
        settings_of(folder, wrong)
    assert "settings: profile:" in str(e.value) and "auto, embedded, rtx16, rtx16-14b, rtx24" in str(e.value)


@pytest.mark.pure
@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("key", ["gpu.lag_hard_s", "gpu.overdue_s", "summary.interval_s", "retention.read_audio_h"])
def test_a_number_without_an_end_is_one_line(folder: Path, key: str, value: str) -> None:
    section, _, name = key.partition(".")
    for layer in ((f"[{section}]\n{name} = {value}",), ("", f"{key}={value}")):
        with pytest.raises(UserError, match=rf"^settings: {key}: {value} is no finite number; give one"):
            settings_of(folder, *layer)


@pytest.mark.pure
def test_no_number_is_below_zero_but_levels(folder: Path) -> None:
    sections = {n: getattr(Settings(), n) for n in Settings.__struct_fields__}
    numbers = [
        f"{section}.{key}"
        for section, values in sections.items()
        if isinstance(values, Section)
        for key, value in msgspec.structs.asdict(values).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    assert len(numbers) > 60
    levels = {"transcriber.level_gate_dbfs", "transcriber.logprob_threshold"}
    for key in {*numbers} - levels:
        with pytest.raises(UserError, match=rf"^settings: {key}: -1(\.0)? is (below|not within)"):
            settings_of(folder, "", f"{key}=-1")
    assert all(settings_of(folder, "", f"{key}=-1") for key in levels)


@pytest.mark.pure
def test_there_is_no_port_over_the_last(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^settings: viewer\.port: 65536 is over 65535"):
        settings_of(folder, "", "viewer.port=65536")


@pytest.mark.pure
def test_there_is_no_device_before_the_first(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^settings: gpu\.index: -1 is below the least allowed, 0"):
        settings_of(folder, "", "gpu.index=-1")


@pytest.mark.pure
def test_every_profile_loads_and_names_models_we_know(folder: Path) -> None:
    for name in profiles.table():
        settings = settings_of(folder, "", f"profile={name}")
        assert models.of_profile(name) == models.needed(settings)
        for one in models.needed(settings):
            assert models.model(one).name == one
    assert models.of_profile("rtx16")[-1] == "qwen2.5-7b.nf4"
    least = "[summary]\nenabled = false\n[speakers]\nenabled = false"
    assert models.needed(settings_of(folder, least)) == ["tiny.en", "silero_vad"]


@pytest.mark.pure
@pytest.mark.parametrize(
    ("mib", "missing", "hub", "name", "says"),
    [
        (None, {}, None, "embedded", "no CUDA"),
        (8_188, {}, "", "embedded", "no CUDA has 8188 MiB, larger profiles need 15360"),
        (16_303, {"rtx16": ()}, None, "rtx16", "16303 MiB, and its models are here"),
        (24_564, BOTH, None, "rtx24", "24564 MiB"),
        (24_564, LACKING | {"rtx16": ()}, None, "rtx16", "its models are here"),  # better than to wait
        (24_564, LACKING, "", "rtx24", "the hub can be reached"),
        (24_564, LACKING, None, "embedded", "turbo, qwen2.5-7b are not here; to get that: swapscribe models"),
        (16_303, {"rtx16": LACKING["rtx16"]}, "no answer", "embedded", "cannot be reached (no answer)"),
    ],
)  # fmt: skip
def test_what_auto_picks(mib: int | None, missing: dict[str, Any], hub: str | None, name: str, says: str) -> None:
    found = profiles.pick(mib, "no CUDA", missing, hub)
    assert found.name == name and says in found.why and "\n" not in found.why


@pytest.mark.pure
def test_which_profiles_fit_a_card() -> None:
    assert profiles.fitting(None) == profiles.fitting(12_288) == []
    assert profiles.fitting(16_303) == ["rtx16"]  # the 14B is for who asks for it
    assert profiles.fitting(24_564) == ["rtx24", "rtx16"]


@pytest.mark.pure
def test_auto_looks_at_the_store_and_asks_the_hub_only_when_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[str] = []

    def unreachable(site: Site, timeout_s: float = 3.0) -> str:
        probes.append(site.url)
        return ""

    monkeypatch.setattr(Site, "unreachable", unreachable)
    monkeypatch.setattr(card, "no_cuda", lambda: "")
    here: set[str] = set()
    monkeypatch.setattr(models, "missing", lambda settings, names: tuple(n for n in names if n not in here))

    def given(*more: str) -> Settings:
        return settings_of(folder, f'model_cache = "{folder}"', *more)

    assert auto.resolve(given, device=CARD).name == "embedded" and probes == []
    assert auto.resolve(given, ask_hub=True, device=CARD).name == "rtx16" and len(probes) == 1
    here |= {"turbo", "silero_vad", "qwen2.5-7b.nf4"}  # who speaks is another matter: captions are no worse without
    assert auto.resolve(given, ask_hub=True, device=CARD).name == "rtx16" and len(probes) == 1
    here -= {"turbo"}  # who set another model does not need that of the profile
    here |= {"base"}
    assert auto.resolve(lambda *more: given("transcriber.model=base", *more), device=CARD).name == "rtx16"
    chosen = auto.resolve(lambda *more: given("profile=rtx24", *more), device=CARD)
    assert chosen == profiles.Pick("rtx24", "as the settings say")
    broken = auto.resolve(given, device=nvml.Device(error="the driver does not answer within 5 s"))
    assert broken.name == "embedded" and "does not answer within 5 s" in broken.why


@pytest.mark.pure
def test_a_simulated_card_means_embedded(folder: Path) -> None:
    found = auto.resolve(lambda *more: settings_of(folder, "", "gpu.device=simulated", *more), device=CARD)
    assert found == profiles.Pick("embedded", "gpu.device is simulated")


@pytest.mark.joined
def test_a_process_started_by_hand_has_the_profile_of_the_last_run_all(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWAPSCRIBE_SOURCE", "[]")  # put back afterwards
    given = Given(None, (), settings.data_dir)
    run = settings.data / "run"
    assert given.as_last_run() == ()
    run.mkdir(parents=True, exist_ok=True)
    (run / "profile").write_text("profile=rtx16")
    (run / "source").write_text('source=[{"name": "mic", "kind": "microphone"}]')
    assert set(given.as_last_run()) == {"profile=rtx16"}
    assert [s.name for s in given.settings().source] == ["mic"], "in the environment: a URL may hold a password"
    os.environ["SWAPSCRIBE_SOURCE"] = "[]"
    assert Given(None, ("profile=embedded",), settings.data_dir).as_last_run() == ()


@pytest.mark.processes
def test_run_all_says_the_profile_and_hands_it_down(settings: Settings, processes: Processes) -> None:
    source = json.dumps([{"name": "pipe", "kind": "stdin"}])
    options = ["--data", settings.data_dir, "--set", f"source={source}", "--set", "viewer.port=0"]
    options += ["--set", "gpu.device=simulated", "--set", "summary.enabled=false"]
    running = processes.spawn([sys.executable, "-m", "common.cli", *options, "run-all"], "run-all")
    wait_for(lambda: "started as pid" in running.output(), what="something is started")
    assert "-- profile embedded: gpu.device is simulated" in running.output()
    lock = settings.data / "run" / "feed.lock"
    wait_for(lock.exists, what="the feed")
    assert (settings.data / "run" / "profile").read_text() == "profile=embedded"
    commands = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if _mine(p, settings.data_dir)]
    assert any(b"workers.feed" in c and b"profile=embedded" in c for c in commands)


def _mine(path: Path, data: str) -> bool:
    try:
        return data.encode() in path.read_bytes()
    except OSError:
        return False


@pytest.mark.processes
def test_models_list_shows_profiles_and_fetch_auto_says_what_it_picks(settings: Settings, folder: Path) -> None:
    def swapscribe(*args: str) -> subprocess.CompletedProcess[str]:
        options = ["--set", f"model_cache={folder / 'cache'}", "--set", "gpu.device=simulated"]
        argv = [sys.executable, "-m", "common.cli", "--data", settings.data_dir, *options, *args]
        nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null"}
        closed = {"https_proxy": "http://127.0.0.1:1", "HTTPS_PROXY": "http://127.0.0.1:1"}
        env = clean_environment() | nowhere | closed
        return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=env, check=False)

    listed = swapscribe("models", "list").stdout
    assert "profile rtx16: 16 GB card" in listed and "needs turbo (not here), silero_vad (not here)" in listed
    assert "qwen2.5-7b.nf4" in listed and "licence to accept: not here" in listed
    fetched = swapscribe("models", "fetch", "auto")
    assert fetched.stdout.splitlines()[0] == "profile embedded: gpu.device is simulated"
    assert fetched.returncode == 2 and len(fetched.stderr.splitlines()) == 1
    assert "swapscribe models fetch" in fetched.stderr
