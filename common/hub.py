"""Brings chosen files of a hub repository at one commit: listed, sized, resumed, verified.

In: repository, revision, patterns of names. Out: the files in a folder, each under its name only when its hash was
right (`NAME.partial` until then, which the next fetch continues), or `NoLuck` with one line. Protocol: GET
SITE/api/models/REPO/revision/REV?blobs=true lists, GET SITE/REPO/resolve/COMMIT/FILE sends. The token goes to the
site's own origin only, never where it redirects to.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

import msgspec

from common.backlog import sync_dir
from common.download import CONNECT_S, MB, Echo, HttpHandler, HttpsHandler, NoLuck, Progress, from_url, sha256, why
from common.settings import Section

COMMIT = re.compile(r"[0-9a-f]{40}")
PARTIAL = ".partial"
LISTING_BYTES = 16 * MB


class Repository(Section, frozen=True, kw_only=True):
    """What of a repository makes a model."""

    repo: str  # OWNER/NAME
    files: tuple[str, ...]  # names, or patterns such as model*.safetensors
    revision: str = "main"  # a commit is fixed; of a branch, the commit it is at when fetched is recorded
    sha256: dict[str, str] = msgspec.field(default_factory=dict)  # of files whose hash we know
    gated: bool = False  # its owner wants a licence accepted first

    def __str__(self) -> str:
        return f"hub repository {self.repo}"


class File(msgspec.Struct, frozen=True):
    """One file as the hub lists it: large ones by sha256, small ones by git's hash of a blob."""

    name: str
    bytes: int
    sha256: str
    blob: str


class Listing(msgspec.Struct, frozen=True):
    commit: str
    files: tuple[File, ...]

    @property
    def bytes(self) -> int:
        return sum(f.bytes for f in self.files)


def token() -> str:
    """The person's token for the hub, from where its own tools keep it."""
    for key in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if found := os.environ.get(key, "").strip():
            return found
    home = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    try:
        return Path(os.environ.get("HF_TOKEN_PATH") or f"{home}/token").read_text().strip()
    except OSError:
        return ""


class Site:
    """A hub: its address (HF_ENDPOINT, else `default`), and requests to it."""

    def __init__(self, default: str) -> None:
        self.url = (os.environ.get("HF_ENDPOINT") or default).rstrip("/")
        self._token = token()
        self._opener = urllib.request.build_opener(HttpHandler, HttpsHandler, _Redirects(self._with_token))

    def _with_token(self, request: urllib.request.Request) -> None:
        if self._token and _origin(request.full_url) == _origin(self.url):
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")

    def open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        self._with_token(request)
        answer: http.client.HTTPResponse = self._opener.open(request)
        return answer

    def unreachable(self, timeout_s: float = CONNECT_S) -> str:
        """Why the hub cannot be reached, empty when it answers anything; never takes longer than `timeout_s`."""
        said = [f"no answer within {timeout_s:.0f} s"]

        def ask() -> None:
            try:
                request = urllib.request.Request(self.url, method="HEAD", headers={"User-Agent": "swapscribe"})
                with urllib.request.build_opener(HttpHandler, HttpsHandler).open(request):
                    said[0] = ""
            except urllib.error.HTTPError:
                said[0] = ""
            except (OSError, http.client.HTTPException, ValueError) as e:
                reason = e.reason if isinstance(e, urllib.error.URLError) else e
                if not isinstance(reason, TimeoutError):  # that is said already, however the two clocks race
                    said[0] = why(reason)

        asking = threading.Thread(target=ask, daemon=True)  # looking up a name has no time-out of its own
        asking.start()
        asking.join(timeout_s)
        return said[0]

    def page(self, repository: Repository) -> str:
        return f"{self.url}/{repository.repo}"

    def listing(self, repository: Repository) -> Listing:
        """The wanted files at the commit that the revision names. Raises NoLuck."""
        revision = urllib.parse.quote(repository.revision, safe="")
        url = f"{self.url}/api/models/{repository.repo}/revision/{revision}?blobs=true"
        try:
            with self.open(urllib.request.Request(url, headers={"User-Agent": "swapscribe"})) as answer:
                told = json.loads(answer.read(LISTING_BYTES))
            commit = told["sha"]
            listed = tuple(_file(one) for one in told["siblings"])
        except urllib.error.HTTPError as e:
            raise NoLuck(self._refusal(repository, e)) from None
        except urllib.error.URLError as e:
            raise NoLuck(f"{self.url} cannot be reached ({why(e.reason)})") from None
        except (OSError, http.client.HTTPException) as e:
            raise NoLuck(f"{self.url} cannot be reached ({why(e)})") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise NoLuck(f"{self.url} does not answer as a model hub does") from None
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise NoLuck(f"{self.url} names no commit")
        if COMMIT.fullmatch(repository.revision) and commit != repository.revision:
            raise NoLuck(f"the hub answers for commit {commit[:12]}, not {repository.revision[:12]}")
        wanted = tuple(f for f in listed if any(fnmatchcase(f.name, p) for p in repository.files))
        lacking = [p for p in repository.files if "*" not in p and p not in {f.name for f in wanted}]
        if lacking or not wanted:
            raise NoLuck(f"the repository has no {', '.join(lacking or repository.files)}")
        return Listing(commit, wanted)

    def fetch(self, repository: Repository, listing: Listing, into: Path, what: str, echo: Echo) -> dict[str, str]:
        """The listed files in `into`, verified and on disk; name -> sha256. Raises NoLuck and leaves what it has."""
        hashes: dict[str, str] = {}
        done = sum(_there(into, f) for f in listing.files)
        progress, before = Progress(what, listing.bytes, echo, done), 0
        for f in listing.files:
            path = into / f.name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(path.name + PARTIAL)
                self._download(repository, listing.commit, f, part, progress, before)
            else:
                part = path
            hashes[f.name] = found = sha256(part)
            known = repository.sha256.get(f.name) or f.sha256
            right = found == known if known else _blob(part) == f.blob
            if not right:
                part.unlink()
                should = f"sha256 {known[:12]}…" if known else f"git hash {f.blob[:12]}…"
                raise NoLuck(f"{f.name} does not have the {should} it should have: not used")
            if part != path:
                with part.open("rb") as file:
                    os.fsync(file.fileno())
                part.rename(path)
                sync_dir(path.parent)
            before += f.bytes
        return hashes

    def _download(
        self, repository: Repository, commit: str, f: File, part: Path, progress: Progress, before: int
    ) -> None:
        url = f"{self.url}/{repository.repo}/resolve/{commit}/{urllib.parse.quote(f.name)}"
        part.touch()  # an empty file has nothing to download
        refused: list[str] = []

        def send(request: urllib.request.Request) -> http.client.HTTPResponse:
            try:
                return self.open(request)
            except urllib.error.HTTPError as e:
                refused.append(self._refusal(repository, e))
                raise

        try:
            if f.bytes:
                from_url(url, part, f.bytes, progress, before, send=send)
        except NoLuck as e:
            raise NoLuck(refused[-1] if refused else f"{f.name}: {e}") from None

    def _refusal(self, repository: Repository, e: urllib.error.HTTPError) -> str:
        """What to do about an HTTP error."""
        if _origin(e.url or self.url) != _origin(self.url):  # where it redirected to
            return f"where the hub keeps the file says {e.code} {e.reason}"
        gate = f"accept the licence at {self.page(repository)} and set HF_TOKEN to a token of that account"
        if e.code == 401:
            return f"the hub wants to know who asks (401): {gate}" + " (yours is not valid)" * bool(self._token)
        if e.code == 403:
            return f"the hub does not let you have it (403): {gate}"
        if e.code == 404:
            return f"{self.url} has no {repository.repo} at revision {repository.revision}"
        return f"the hub says {e.code} {e.reason}"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect with the token only where it belongs; urllib itself drops it everywhere."""

    def __init__(self, with_token: Any) -> None:
        self._with_token = with_token

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None:
            self._with_token(new)
        return new


def _origin(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _file(told: dict[str, Any]) -> File:
    """One entry of `siblings`. A name that would leave the folder is refused: a stranger wrote it."""
    name, large = told["rfilename"], told.get("lfs") or {}
    if not name or name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
        raise ValueError(name)
    return File(name, int(told.get("size") or large.get("size") or 0), large.get("sha256", ""), told.get("blobId", ""))


def _there(folder: Path, f: File) -> int:
    """Bytes of a file that need not be downloaded again."""
    for path in (folder / f.name, folder / (f.name + PARTIAL)):
        if path.exists():
            return min(path.stat().st_size, f.bytes)
    return 0


def missing_bytes(folder: Path, listing: Listing) -> int:
    """What a fetch into `folder` still has to bring."""
    return listing.bytes - sum(_there(folder, f) for f in listing.files)


def _blob(path: Path) -> str:
    """Git's hash of a file's content."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
