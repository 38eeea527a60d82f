"""Texts into the files that people name. Whose text a file holds is noted in DATA/texts, a file for each of them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from common import backlog

OPEN = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))  # what is open already, also where that is a file


def put(path: Path, text: str) -> None:
    """Replace a file, also behind a link; what is no file is written to. Raises OSError."""
    if path.absolute().parent in OPEN or (path.exists() and not path.is_file()):
        with path.open("ab") as f:  # a file that standard output goes to keeps what it has
            f.write(text.encode())
    else:
        backlog.replace_file(Path(os.path.realpath(path)), text.encode(), durable=False, mode=0o666)


class Notes:
    """Of which sound the texts are that were put into files: another one of that name must not take their place.

    A sound is known by its file, or by what is in it; of both there are only digests, so a purge leaves no name here.
    """

    def __init__(self, data: Path) -> None:
        self.folder = data / "texts"

    def strange(self, path: Path, sound: Path, stream: str) -> bool:
        """It holds the text of another sound."""
        try:
            noted = self._of(path).read_text().split()
        except OSError:
            return False
        return os.path.exists(path) and not set(noted) & set(_marks(sound, stream))

    def known(self, path: Path) -> bool:
        return self._of(path).exists()

    def note(self, path: Path, sound: Path, stream: str) -> None:
        """Raises OSError."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        backlog.replace_file(self._of(path), " ".join(_marks(sound, stream)).encode(), durable=False)

    def _of(self, path: Path) -> Path:
        return self.folder / _digest(path)


def _marks(sound: Path, stream: str) -> tuple[str, str]:
    return _digest(sound), stream.rpartition("-")[2]


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
