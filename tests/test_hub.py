"""Models that are repositories of a hub: listed, resumed, verified, and every refusal one line that says what to do."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from common import fetch as fetching_module
from common import hub, models
from common.download import MB
from common.fetch import fetch
from common.settings import Settings
from tests.conftest import Processes, clean_environment, wait_for
from tests.standin_hub import COMMIT, REPO, StandInHub
from tests.test_models import fetching, left_over, quiet, refused

RNG = np.random.default_rng(2)
FILES = {
    "config.json": b'{"model_type": "stand-in"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "README.md": b"not wanted",
    "consolidated.safetensors": b"the same weights again, not wanted" * 10_000,
    "model-00001-of-00002.safetensors": RNG.bytes(1_500_000),
    "model-00002-of-00002.safetensors": RNG.bytes(700_000),
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
}
WANTED = sorted(set(FILES) - {"README.md", "consolidated.safetensors"})
ROW = """
hub = "https://hub.invalid"
[[model]]
name = "llm"
task = "summary"
loader = "transformers"
languages = ["*"]
licence = "none"
dtype = "bfloat16"
bytes = 2_200_000
about = true
[[model.source]]
path = "incoming/llm"
[[model.source]]
[model.source.hub]
repo = "%s"
files = ["config.json", "tokenizer*", "model*.safetensors", "model.safetensors.index*"]
%s
"""


@pytest.fixture
def standin() -> Iterator[StandInHub]:
    one = StandInHub(dict(FILES))
    yield one
    one.close()


@pytest.fixture
def store(folder: Path, standin: StandInHub, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings whose catalogue has the one model `llm`, and an environment that leads to the stand-in alone."""
    write_catalogue(folder, monkeypatch)
    for key in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1,127.0.0.2")
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", standin.url)
    return Settings(data_dir=str(folder / "data"), model_cache=str(folder / "cache"))


def write_catalogue(folder: Path, monkeypatch: pytest.MonkeyPatch, more: str = "") -> None:
    path = folder / f"hub-models-{len(more)}.toml"
    path.write_text(ROW % (REPO, more))
    monkeypatch.setattr(models, "CATALOGUE", path)


def large_requests(standin: StandInHub, name: str) -> list[str]:
    """The ranges asked for of a large file."""
    return [s.range for s in standin.seen if s.host == "store" and s.path.endswith(name)]


@pytest.mark.joined
def test_fetch_takes_what_is_wanted_and_pins_it(store: Settings, standin: StandInHub) -> None:
    lines: list[str] = []
    fetch(store, ["llm"], lines.append)
    folder = models.available(store, "llm", check=True)
    about = models.stored(folder)
    assert sorted([about.file, *about.files]) == WANTED
    assert {p.name for p in folder.iterdir()} == {*WANTED, "model.json"}
    for name, found in ({about.file: about.sha256} | about.files).items():
        assert (folder / name).read_bytes() == FILES[name] and found == hashlib.sha256(FILES[name]).hexdigest()
    assert about.revision == COMMIT and about.source == f"{REPO}@{COMMIT}"
    assert [p.name for p in models.weights(folder)] == [n for n in WANTED if n.endswith(".safetensors")]
    assert lines[0] == f"llm: fetching {REPO} at {COMMIT[:12]}: 5 files, 2 MB"  # the size, before anything comes
    asked = len(standin.seen)
    fetch(store, ["llm"], lines.append)
    assert lines[-1].startswith("llm: is there") and len(standin.seen) == asked and left_over(store) == []


@pytest.mark.joined
def test_damage_of_any_file_is_found(store: Settings, standin: StandInHub) -> None:
    fetch(store, ["llm"], quiet)
    folder = models.available(store, "llm")
    for name in ("tokenizer.json", "model-00002-of-00002.safetensors"):
        data = bytearray(FILES[name])
        data[5] ^= 1
        (folder / name).write_bytes(data)
        assert name in refused(lambda: models.verify(store, "llm"))
        (folder / name).unlink()
        assert name in refused(lambda: models.available(store, "llm"))
        fetch(store, ["llm"], quiet)
        assert (folder / name).read_bytes() == FILES[name]


@pytest.mark.joined
def test_the_token_reaches_the_hub_and_never_the_store(
    store: Settings, standin: StandInHub, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    standin.token = "hf_secret"
    gate = f"accept the licence at {standin.url}/{REPO} and set HF_TOKEN"
    assert gate in refused(lambda: fetch(store, ["llm"], quiet))
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "(yours is not valid)" in refused(lambda: fetch(store, ["llm"], quiet))
    monkeypatch.delenv("HF_TOKEN")
    (folder / "hf").mkdir()
    (folder / "hf" / "token").write_text("hf_secret\n")
    standin.allowed = False
    line = refused(lambda: fetch(store, ["llm"], quiet))
    assert gate in line and "403" in line and line.endswith("swapscribe models fetch llm")
    standin.allowed = True
    standin.seen.clear()
    fetch(store, ["llm"], quiet)
    assert models.verify(store, "llm").revision == COMMIT
    assert {s.authorization for s in standin.seen if s.host == "hub"} == {"Bearer hf_secret"}
    assert {s.authorization for s in standin.seen if s.host == "store"} == {""}


@pytest.mark.joined
def test_a_repository_that_was_renamed(store: Settings, standin: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.token, standin.moved = "hf_secret", True
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(store, ["llm"], quiet)
    assert (
        models.verify(store, "llm").revision == COMMIT
        and f"/moved/{REPO}/resolve/{COMMIT}/config.json" in standin.paths()
    )
    assert {s.authorization for s in standin.seen if s.host == "store"} == {""}


@pytest.mark.joined
def test_a_wrong_file_is_not_used_and_the_right_ones_are_kept(store: Settings, standin: StandInHub) -> None:
    name = "model-00002-of-00002.safetensors"
    for bad in ("tokenizer.json", name):
        standin.lie = {bad: bytes(len(FILES[bad]))}
        line = refused(lambda: fetch(store, ["llm"], quiet))
        assert bad in line and "not used" in line and not (store.cache / "models" / "llm").exists()
    standin.lie.clear()
    fetch(store, ["llm"], quiet)
    assert models.verify(store, "llm").revision == COMMIT
    assert len(large_requests(standin, "model-00001-of-00002.safetensors")) == 1 and left_over(store) == []


@pytest.mark.joined
def test_a_line_that_breaks_again_and_again(store: Settings, standin: StandInHub) -> None:
    standin.cut = 400_000
    lines: list[str] = []
    fetch(store, ["llm"], lines.append)
    assert models.verify(store, "llm").revision == COMMIT
    first = "model-00001-of-00002.safetensors"
    assert large_requests(standin, first) == ["", "bytes=400000-", "bytes=800000-", "bytes=1200000-"]
    assert sum("broken off; going on at" in line for line in lines) == 4


@pytest.mark.joined
def test_a_line_that_brings_nothing_more_is_given_up(store: Settings, standin: StandInHub) -> None:
    standin.cut, standin.ranges = 400_000, False
    line = refused(lambda: fetch(store, ["llm"], quiet))
    assert "sent 400000 bytes, should be 1500000" in line
    assert len(large_requests(standin, "model-00001-of-00002.safetensors")) == 2
    standin.cut = 0
    fetch(store, ["llm"], quiet)  # without ranges it begins again
    assert models.verify(store, "llm").revision == COMMIT


@pytest.mark.joined
def test_another_commit_begins_anew_and_a_fixed_one_is_held(
    store: Settings, standin: StandInHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standin.lie["model-00002-of-00002.safetensors"] = b"x" * 700_000
    refused(lambda: fetch(store, ["llm"], quiet))
    standin.lie.clear()
    standin.commit = "beef" + "1" * 36
    standin.files["model-00001-of-00002.safetensors"] = RNG.bytes(1_500_000)
    fetch(store, ["llm"], quiet)
    found = models.available(store, "llm", check=True) / "model-00001-of-00002.safetensors"
    assert found.read_bytes() == standin.files[found.name] and models.stored(found.parent).revision == standin.commit
    write_catalogue(folder, monkeypatch, f'revision = "{COMMIT}"')
    assert "another version" in refused(lambda: models.available(store, "llm"))
    assert "the hub answers for commit beef" in refused(lambda: fetch(store, ["llm"], quiet))
    standin.commit = COMMIT
    fetch(store, ["llm"], quiet)
    assert models.verify(store, "llm").revision == COMMIT
    write_catalogue(folder, monkeypatch, 'sha256 = {"tokenizer.json" = "%s"}' % ("ab" * 32))
    assert "another version" in refused(lambda: models.available(store, "llm"))
    assert "tokenizer.json does not have the sha256 abababab" in refused(lambda: fetch(store, ["llm"], quiet))


@pytest.mark.joined
def test_a_folder_put_there_by_hand_needs_no_hub(store: Settings, standin: StandInHub) -> None:
    incoming = store.cache / "incoming" / "llm"
    incoming.mkdir(parents=True)
    for name, data in FILES.items():
        (incoming / name).write_bytes(data)
    fetch(store, ["llm"], quiet)
    about = models.verify(store, "llm")
    assert about.source == "incoming/llm" and sorted([about.file, *about.files]) == WANTED and standin.seen == []


@pytest.mark.joined
@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside"])
def test_a_name_that_leaves_the_folder_is_refused(store: Settings, standin: StandInHub, name: str) -> None:
    standin.files[name] = b"x"
    assert "does not answer as a model hub does" in refused(lambda: fetch(store, ["llm"], quiet))


@pytest.mark.joined
def test_what_the_repository_lacks_is_named(store: Settings, standin: StandInHub) -> None:
    del standin.files["config.json"]
    assert "the repository has no config.json" in refused(lambda: fetch(store, ["llm"], quiet))


@pytest.mark.joined
def test_a_full_disk_is_said_before_the_download(
    store: Settings, standin: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(fetching_module.shutil, "disk_usage", lambda path: usage._replace(free=500 * MB))
    line = refused(lambda: fetch(store, ["llm"], quiet))
    assert "needs 2 MB and 512 MB to spare" in line and "has 500 MB free" in line and "model_cache" in line
    assert standin.paths("store") == []


@pytest.mark.processes
def test_kill_in_mid_file_and_go_on(store: Settings, standin: StandInHub, processes: Processes) -> None:
    first = "model-00001-of-00002.safetensors"
    partial = store.cache / "models" / ".llm.part" / "files" / f"{first}.partial"
    standin.go_on.clear()
    victim = processes.spawn(fetching(store, "llm"), "victim")
    wait_for(lambda: partial.exists() and partial.stat().st_size >= 500_000, what="half of it is written")
    victim.kill()
    had = partial.stat().st_size
    assert "is not there" in refused(lambda: models.available(store, "llm"))
    standin.go_on.set()
    last = processes.spawn(fetching(store, "llm"), "last")
    assert last.wait() == 0, last.output()
    assert large_requests(standin, first) == ["", f"bytes={had}-"] and 0 < had < 1_500_000
    assert "MB of them are here" in last.output()
    assert models.verify(store, "llm").revision == COMMIT and left_over(store) == []


@pytest.mark.processes
def test_no_hub_is_one_line_within_seconds(store: Settings, folder: Path) -> None:
    """A closed port, and an address that swallows everything (a backlog that is full)."""
    deaf = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = [socket.socket() for _ in range(4)]
    for one in fillers:
        one.setblocking(False)
        one.connect_ex(deaf.getsockname())
    for port, says in ((1, "Connection refused"), (deaf.getsockname()[1], "no answer within 3 s")):
        env = clean_environment() | {"HF_ENDPOINT": f"http://127.0.0.1:{port}"}
        began = time.monotonic()
        done = subprocess.run(fetching(store, "llm"), env=env, capture_output=True, text=True, check=False)
        took_s = time.monotonic() - began
        (line,) = [x for x in done.stdout.splitlines() if x.startswith("UserError:")]
        assert done.returncode == 2 and done.stderr == "" and took_s < 30.0
        for part in (says, "incoming/llm: no such folder", f"http://127.0.0.1:{port}", REPO):
            assert part in line
        assert line.endswith("swapscribe models fetch llm") and left_over(store) == []
    for one in (*fillers, deaf):
        one.close()


@pytest.mark.pure
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (TimeoutError("timed out"), "no answer within 20 s"),
        (urllib.error.URLError(TimeoutError("timed out")), "no answer within 20 s"),
        (urllib.error.URLError(ConnectionRefusedError(111, "Connection refused")), "Connection refused"),
        (urllib.error.HTTPError("http://x/", 404, "none", Message(), None), ""),
    ],
)
def test_a_time_out_is_no_answer_whoever_sees_it(monkeypatch: pytest.MonkeyPatch, error: OSError, says: str) -> None:
    def fail(request: object) -> None:
        raise error

    monkeypatch.setattr("urllib.request.build_opener", lambda *handlers: SimpleNamespace(open=fail))
    assert hub.Site("http://hub.invalid").unreachable(20.0) == says


@pytest.mark.joined
def test_progress_tells_speed_and_time_left(
    store: Settings, standin: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.download.TICK_S", 0.0)
    lines: list[str] = []
    fetch(store, ["llm"], lines.append)
    told = [line for line in lines if " MB/s, " in line]
    assert told and all(line.startswith("llm: ") and line.endswith(" left") for line in told)


@pytest.mark.pure
def test_4_bits_of_another_version_are_another_version(folder: Path) -> None:
    """Of a single file by its hash, of a repository by its commit."""
    row = {"task": "summary", "loader": "transformers", "languages": ("*",), "licence": "", "dtype": "", "bytes": 1}
    (folder / "w").write_bytes(b"x")
    about = {"name": "a.nf4", "loader": "transformers", "file": "w", "bytes": 1, "sha256": "", "source": ""}
    repository = hub.Repository(repo="a/b", files=("*",), revision=COMMIT, sha256={"w": "of the raw one"})
    for one, sha256, fits in (
        (models.Source(path="a"), "ab", {"raw_sha256": "ab"}),
        (models.Source(hub=repository), "", {"raw_sha256": "", "revision": COMMIT}),
    ):
        m = models.Model(name="a.nf4", base="a", sha256=sha256, source=(one,), **row)
        for there, says in ((fits, ""), ({k: v[::-1] for k, v in fits.items()}, "another version")):
            stored = models.Stored(**about, **there)
            (folder / "model.json").write_bytes(msgspec.json.encode(stored))
            assert (says in models.problem(m, folder, check=False)) if says else not models.problem(m, folder, False)


@pytest.mark.pure
def test_where_the_token_is_looked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HF_HOME", str(folder))
    assert hub.token() == ""
    (folder / "token").write_text("from-file\n")
    assert hub.token() == "from-file"
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "older")
    assert hub.token() == "older"
    monkeypatch.setenv("HF_TOKEN", "newer")
    assert hub.token() == "newer"
