"""Sources that are not of the settings: `--source WHAT` in words, and the file that keeps each of them.

RUN/added/NAME.json (0600) is what the captures of added sources read, after every restart and under the next launcher
too; a graceful stop forgets them. A URL may hold a password: it stands there and in settings, never in an argument of
a process, a log, the feed or the status. What is shown of a source has gone through `shown`.
"""

from __future__ import annotations

import contextlib
import re
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from common import backlog
from common.settings import Settings, Source, UserError, check_source, readable, sound_path

FORMS = "a file, a URL, mic, mic:NAME, loopback, loopback:NAME, pcm:PATH, or - for PCM on standard input"
KEYS = tuple(f for f in Source.__struct_fields__ if f != "kind")
_OPTION = re.compile(r"\s+([a-z_]+)=(\S*)$")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^\s'\"<>]*)")


def shown(text: str) -> str:
    """`text` with no secret in its URLs: without user and password, query values and fragment."""
    return _URL.sub(lambda found: found[1] + _harmless(found[2]), text)


def _harmless(rest: str) -> str:
    head, _, query = rest.partition("#")[0].partition("?")
    place, slash, path = head.partition("/")
    user = place.rpartition("@")[0]
    host, colon, port = place.rpartition(":")
    if not user and colon and not port.isdigit() and not host.startswith("[") and "@" in rest:
        head, query = rest.rpartition("@")[2], ""  # a password with `/`, `?` or `#` in it: no valid URL, yet a secret
        head = head.partition("?")[0].partition("#")[0]
    else:
        head = place.rpartition("@")[2] + slash + path
    values = "&".join(
        name + "=…" if equals else "…" for name, equals, _ in (q.partition("=") for q in query.split("&"))
    )
    return head + (f"?{values}" if query else "")


def describe(source: Source) -> str:
    """One source for people, without secrets."""
    what = source.path or source.device
    return f"{source.name} ({source.kind}{' ' + shown(what) if what else ''})"


def parse(text: str, taken: Collection[str] = ()) -> Source:
    """`WHAT [KEY=VALUE …]`, the keys being those of a [[source]]: `rtsp://cam/1 name=hall`, `mic glossary=Orsk,Ufa`.

    Without a name it gets one that is not `taken`. Raises UserError.
    """
    what, given = text.strip(), dict[str, str]()
    while (found := _OPTION.search(what)) and found[1] in KEYS:
        given.setdefault(found[1], found[2])
        what = what[: found.start()]
    kind, _, rest = what.partition(":")
    fields: dict[str, Any]
    if what == "-":
        fields = {"kind": "stdin"}
    elif kind in ("mic", "loopback"):
        fields = {"kind": "microphone" if kind == "mic" else kind, "device": rest}
    elif kind == "pcm" and rest == "-":
        fields = {"kind": "stdin"}
    elif kind == "pcm":
        fields = {"kind": "pcm", "path": str(_existing(rest, text))}
    elif "://" in what and not what.startswith("file://"):
        fields = {"kind": "file", "path": what}
    else:
        fields = {"kind": "file", "path": str(_existing(what, text))}
    fields |= given
    if "glossary" in given:
        fields["glossary"] = [term.strip() for term in given["glossary"].split(",")]
    fields.setdefault("name", _free(_name_of(fields, kind), taken))
    try:
        source = msgspec.convert(fields, Source, strict=False)
        msgspec.json.encode(source)
    except UnicodeEncodeError:
        raise UserError(f"--source {shown(text)}: its path is not UTF-8; rename it") from None
    except msgspec.ValidationError as e:
        raise UserError(f"--source {shown(text)}: {readable(str(e))}") from None
    check_source(source, f"--source {shown(text)}")
    if source.name in taken:
        raise UserError(f"--source {shown(text)}: another source is called {source.name!r}; give it another name=")
    return source


def _existing(path: str, text: str) -> Path:
    absolute = sound_path(path)
    try:
        kind = absolute.stat().st_mode
    except (OSError, ValueError):
        raise UserError(f"--source {shown(text)}: no such file; a source is {FORMS}") from None
    if stat.S_ISDIR(kind):
        raise UserError(f"--source {shown(text)}: is a folder; a source is {FORMS}")
    return absolute


def _name_of(fields: dict[str, str], kind: str) -> str:
    path = fields.get("path", "")
    if "://" in path:
        host = shown(path).partition("://")[2].partition("/")[0]
        return plain_name(re.sub(r":\d+$", "", host))
    return plain_name(Path(path).stem) if path else {"-": "stdin", "pcm": "stdin"}.get(kind, kind)


def plain_name(text: str, longest: int = 32) -> str:
    """`text` as a name that a source may have."""
    name = re.sub(r"[^a-z0-9_.-]+", "-", text.lower()).strip("-_.")[:longest].rstrip("-_.")
    return name or "source"


def _free(name: str, taken: Collection[str]) -> str:
    names = (name, *(f"{name[:28]}-{n}" for n in range(2, len(taken) + 3)))
    return next(n for n in names if n not in taken)


class Added:
    """The sources that were added to the system of one run folder."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "added"

    def all(self) -> tuple[Source, ...]:
        """In the order in which they were added."""
        found = []
        for path in self.folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime_ns, path.name.removesuffix(".json")))
        return tuple(s for _, name in sorted(found) if (s := self.get(name)))

    def get(self, name: str) -> Source | None:
        try:
            return msgspec.json.decode((self.folder / f"{name}.json").read_bytes(), type=Source)
        except (OSError, msgspec.DecodeError):  # not there, or of another version
            return None

    def put(self, source: Source) -> None:
        """Raises OSError."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        backlog.replace_file(self.folder / f"{source.name}.json", msgspec.json.encode(source), durable=False)

    def drop(self, name: str) -> None:
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    def clear(self) -> None:
        for path in self.folder.glob("*.json*"):
            path.unlink(missing_ok=True)


def with_added(settings: Settings) -> Settings:
    """These settings, and the sources that were added to the system they describe."""
    known = {s.name for s in settings.source}
    more = tuple(s for s in Added(settings.data / "run").all() if s.name not in known)
    return msgspec.structs.replace(settings, source=settings.source + more) if more else settings
