"""The model store: models.toml says what there is; CACHE/models/NAME/ holds what is here, ready to load.

    available(settings, name)      the folder of a model that is here, or one line that says how to get it
    weights(folder)                its weights files, in order
    verify(settings, name)         hash it again
    needed(settings)               names of what the processes load with these settings

A folder has weights, what belongs to them, and model.json (`Stored`: the files, their sha256, where they came from,
dimensions). NAME.nf4 is NAME with its weights in 4 bits. What brings a model here is `common/fetch.py`. No model
library is imported here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from common import profiles
from common.download import Wheel, sha256
from common.hub import COMMIT, Repository
from common.settings import Section, Settings, UserError
from common.settings import Source as SourceOfAudio

CATALOGUE = Path(__file__).with_name("models.toml")
DEFAULT_SET = "embedded"
VAD = "silero_vad"
NF4_SHARE = 0.38  # of the 16-bit bytes: 4 bits a weight, their scales, and what stays in 16 bits
HASHING = 4  # threads: one core reads slower than a disk


class Source(Section, frozen=True, kw_only=True):
    """One place a model can come from: exactly one of these."""

    path: str = ""
    pypi: tuple[Wheel, ...] = ()
    url: str = ""
    hub: Repository | None = None

    def __str__(self) -> str:
        if self.hub:
            return str(self.hub)
        return self.path or self.url or "package " + " + ".join(w.package for w in self.pypi)


class Model(Section, frozen=True, kw_only=True):
    """One row of models.toml."""

    name: str
    task: str
    loader: str  # what can load the stored file: openai-whisper | torchscript | transformers | pyannote | …
    sets: tuple[str, ...] = ()
    languages: tuple[str, ...]  # codes; "*": all that its family knows
    licence: str
    dtype: str
    file: str = ""  # of a model that is one raw file; a repository's weights are found in it
    bytes: int
    about: bool = False  # `bytes` is rounded: the hash alone decides
    sha256: str = ""  # of the raw file; empty for a repository, see its hashes
    source: tuple[Source, ...]
    convert: str = ""
    base: str = ""  # set by us: the model that this one is made from by quantising
    pairs: tuple[str, ...] = ()  # of a translation model: "en-pt"; none: all pairs of its languages
    says: dict[str, str] = msgspec.field(default_factory=dict)  # by target: what stands before a text
    cropped: bool = False  # of a transcription model: measured to hear as well in windows cropped to the speech
    beams: int = 1  # of a translation model: texts that it is used to compare

    def knows(self, language: str) -> bool:
        if language in self.languages or "*" not in self.languages:
            return language in self.languages
        families = {"openai-whisper": whisper_languages(), "m2m100": m2m100_languages()}
        return language in families.get(self.loader, {language})

    def translates(self, source: str, target: str) -> bool:
        """A model of task "translation" knows this pair."""
        if self.pairs:
            return f"{source}-{target}" in self.pairs
        return source != target and self.knows(source) and self.knows(target)

    def targets(self) -> tuple[str, ...]:
        """Languages that it translates into; of a family, a few."""
        return tuple(dict.fromkeys(p.partition("-")[2] for p in self.pairs)) or ("en",)

    @property
    def repository(self) -> Repository | None:
        return next((s.hub for s in self.source if s.hub), None)


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """model.json of a stored model."""

    name: str
    loader: str
    file: str  # the weights, or the index of their shards
    bytes: int
    sha256: str
    raw_sha256: str  # of the downloaded file it was made from: tells another version in the catalogue
    source: str
    dims: dict[str, int] = {}
    files: dict[str, str] = {}  # all the others in the folder: name -> sha256
    revision: str = ""  # commit of the hub repository it came from


class Catalogue(NamedTuple):
    hub: str
    models: dict[str, Model]
    whisper_languages: frozenset[str]
    m2m100_languages: frozenset[str]


@cache
def _read_catalogue(path: Path) -> Catalogue:
    tree = tomllib.loads(path.read_text())
    rows = msgspec.convert(tree["model"], tuple[Model, ...])
    families = [frozenset(tree.get(key, "").split()) for key in ("whisper_languages", "m2m100_languages")]
    return Catalogue(tree.get("hub", ""), {m.name: m for m in rows}, *families)


def catalogue() -> dict[str, Model]:
    """All models we know, by name."""
    return _read_catalogue(CATALOGUE).models


def whisper_languages() -> frozenset[str]:
    """Codes of what all multilingual Whisper models know."""
    return _read_catalogue(CATALOGUE).whisper_languages


def m2m100_languages() -> frozenset[str]:
    """Codes of what M2M100 knows, and what our codes are for some of them."""
    return _read_catalogue(CATALOGUE).m2m100_languages


def default_hub() -> str:
    return _read_catalogue(CATALOGUE).hub


def quantised(name: str, quantise: str) -> str:
    """Name under which a model is stored with `summary.quantise`."""
    return name if quantise == "none" else f"{name}.{quantise}"


def model(name: str) -> Model:
    known = catalogue()
    if name in known:
        return known[name]
    base = known.get(name.removesuffix(".nf4"))
    if base and base.loader == "transformers" and base.task == "summary":
        size = int(base.bytes * NF4_SHARE)
        return msgspec.structs.replace(base, name=name, base=base.name, bytes=size, about=True, dtype="nf4", sets=())
    raise UserError(f"no model named {name!r} (known: {', '.join(known)})")


def needed(settings: Settings) -> list[str]:
    """Names of the models that the processes load with these settings."""
    out = [settings.transcriber.model, VAD]
    if settings.speakers.enabled:
        out.append(settings.speakers.model)
    if settings.translate.targets:
        out += settings.translate.models
    if settings.summary.enabled:
        out.append(quantised(settings.summary.model, settings.summary.quantise))
    return out


def with_targets(settings: Settings) -> tuple[str, ...]:
    """What is needed besides, once `translate.targets` names a language."""
    return () if settings.translate.targets else settings.translate.models


def of_profile(name: str) -> list[str]:
    """Names of what a profile needs, when nothing of it is set otherwise."""
    return needed(only_profile(name))


def only_profile(name: str) -> Settings:
    """The settings of a profile, when nothing of it is set otherwise."""
    return msgspec.convert(profiles.under(name, {}), Settings)


def chosen(names: Iterable[str]) -> list[Model]:
    """Models by name, by the name of a set, or by that of a profile; none named: the embedded set."""
    sets = {s for m in catalogue().values() for s in m.sets}
    out: dict[str, Model] = {}
    for name in list(names) or [DEFAULT_SET]:
        if name in sets:
            found = [m for m in catalogue().values() if name in m.sets]
        else:
            found = [model(n) for n in (of_profile(name) if name in profiles.table() else [name])]
        out |= {m.name: m for m in found}
    return list(out.values())


def unknown_language(known: Model, language: str) -> str:
    """Why `known` cannot write `language` down, and which command gets a model that can; empty: it can."""
    if language in ("", "auto") or known.knows(language):
        return ""
    other = for_language(language, known.task)
    get = (
        f"swapscribe models fetch {other.name}, then set transcriber.model={other.name}" if other else "none here does"
    )
    return f"model {known.name} does not know language {language!r}; one that does: {get}"


def unknown_pair(names: Iterable[str], source: str, target: str) -> str:
    """Why none of these translation models has the pair, and which command gets one that has; empty: one has."""
    names = tuple(names)
    if any(model(n).translates(source, target) for n in names):
        return ""
    fit = [m for m in catalogue().values() if m.task == "translation" and m.translates(source, target)]
    other = min(fit, key=lambda m: m.bytes, default=None)
    list_ = ", ".join(f'"{n}"' for n in (*names, other.name)) if other else ""
    get = (
        f"swapscribe models fetch {other.name}, then set translate.models=[{list_}]" if other else "no model here does"
    )
    return f"{source} to {target}: {' and '.join(names) or 'no model'} cannot; one that can: {get}"


def only_language(settings: Settings) -> str:
    """What language=auto means to a model that knows one; empty: a choice, or there is no question."""
    known = model(settings.transcriber.model)
    asked = "auto" in (settings.transcriber.language, *(s.language for s in settings.source))
    one = len(known.languages) == 1 and "*" not in known.languages
    return f"language auto is {known.languages[0]}, all that {known.name} knows" if asked and one else ""


def check_sources(settings: Settings, more: Iterable[SourceOfAudio] = ()) -> None:
    """Raises UserError when the transcriber's model does not know the language of a source."""
    known = model(settings.transcriber.model)
    for source in (*settings.source, *more):
        if why := unknown_language(known, source.language):
            raise UserError(f"source {source.name}: {why}")
    if why := unknown_language(known, settings.transcriber.language):
        raise UserError(why)


def for_language(language: str, task: str = "transcription") -> Model | None:
    """The smallest model for `task` that knows `language`."""
    fit = [m for m in catalogue().values() if m.task == task and m.knows(language)]
    return min(fit, key=lambda m: m.bytes, default=None)


def available(settings: Settings, name: str, check: bool = False) -> Path:
    """Folder of a model that is here. `check` hashes its files too (0.2 s for 150 MB)."""
    m = model(name)
    folder = settings.cache / "models" / name
    wrong = problem(m, folder, check)
    if wrong:
        raise UserError(f"model {name} {wrong}; get it with: swapscribe models fetch {name}")
    return folder


def missing(settings: Settings, names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that are not in the store, or that we do not know."""
    out = []
    for name in names:
        try:
            available(settings, name)
        except UserError:
            out.append(name)
    return tuple(out)


def verify(settings: Settings, name: str) -> Stored:
    """Hash a stored model again; UserError when it is missing or damaged."""
    return stored(available(settings, name, check=True))


def stored(folder: Path) -> Stored:
    """model.json of a folder that `available` returned."""
    return msgspec.json.decode((folder / "model.json").read_bytes(), type=Stored)


def weights(folder: Path) -> list[Path]:
    """Weights files of a stored model: one, or its shards in order."""
    about = stored(folder)
    if about.file.endswith(".index.json"):
        shards: dict[str, str] = msgspec.json.decode((folder / about.file).read_bytes())["weight_map"]
        return [folder / name for name in sorted(set(shards.values()) & about.files.keys())]
    return [folder / about.file]


def problem(m: Model, folder: Path, check: bool) -> str:
    """Why the model cannot be loaded from `folder`, empty when it can."""
    try:
        about = stored(folder)
        file = folder / about.file
        size = file.stat().st_size
        if about.raw_sha256 != m.sha256 or _other_revision(m, about):
            return f"is there in another version than models.toml names ({folder})"
        if size != about.bytes:
            return f"is damaged ({file} has {size} bytes, should have {about.bytes})"
        should = {about.file: about.sha256} | about.files
        for name in should:
            (folder / name).stat()
        if not check:
            return ""
        with ThreadPoolExecutor(HASHING) as pool:
            for name, found in zip(should, pool.map(lambda n: sha256(folder / n), should), strict=True):
                if found != should[name]:
                    return f"is damaged ({folder / name} has sha256 {found[:12]}…, should have {should[name][:12]}…)"
    except FileNotFoundError as e:
        return f"is not there (looked for {e.filename})"
    except msgspec.MsgspecError as e:
        return f"is damaged ({folder / 'model.json'}: {e})"
    except OSError as e:
        return f"cannot be read ({e.filename}: {e.strerror})"
    return ""


def _other_revision(m: Model, about: Stored) -> bool:
    """The catalogue names a commit or a hash that what is here does not have; a branch is content with any of it."""
    if not m.repository:
        return False
    fixed = COMMIT.fullmatch(m.repository.revision)
    if fixed and about.revision not in ("", fixed[0]):
        return True
    known = {about.file: about.sha256} | about.files
    return not m.base and any(known.get(n) != h for n, h in m.repository.sha256.items())
