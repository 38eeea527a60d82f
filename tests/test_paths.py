"""Paths, names and times as people write them: homes, file URLs, keys of clients, byte order marks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from capture.files import File
from capture.pipe import Pipe
from common.cli_data import samples
from common.settings import Settings, Source, UserError, full_path, load
from common.wire import Curve


@pytest.fixture
def home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_a_folder_of_the_settings_may_be_in_the_home(home: Path) -> None:
    settings = Settings(data_dir="~/data", model_cache="~/models")
    assert (settings.data, settings.cache) == (home / "data", home / "models")
    assert full_path("~nobody-here/x") == Path.cwd() / "~nobody-here" / "x"
    (home / "s.toml").write_text('data_dir = "~/zz"')
    assert load("~/s.toml", environ={}).data == home / "zz"


@pytest.mark.parametrize(
    "path", ["~/my talk.wav", "file://{home}/my%20talk.wav", "file://localhost{home}/my%20talk.wav"]
)
def test_a_source_may_be_in_the_home_or_a_file_url(home: Path, path: str) -> None:
    sound = home / "my talk.wav"
    sound.write_bytes(b"any sound")
    assert File(Source(name="x", kind="file", path=path.format(home=home))).path == sound
    sound.unlink()
    os.mkfifo(sound)
    pipe = Pipe(Source(name="x", kind="pcm", path=path.format(home=home)))
    os.close(pipe.fd)


@pytest.mark.parametrize("name", ["server", "../../evil", "a/b", "", ".", "..", "x\n", "x" * 65])
def test_a_client_has_a_plain_name(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="no client can be called"):
        Curve.make(folder / "keys", name)
    assert not (folder / "keys").exists()


def test_keys_of_clients(folder: Path) -> None:
    for name in ("client", "Anna.laptop-2"):
        Curve.make(folder, name)
        assert (folder / "clients" / f"{name}.key").exists() and (folder / "clients" / f"{name}.pub").exists()


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1:nan", "-1", "x", "1:2:3:4"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UserError, match="is no time"):
        samples(text)
    assert samples("1:02.5") == 62.5 * 16_000


def test_a_settings_file_may_begin_with_a_byte_order_mark(folder: Path) -> None:
    (folder / "s.toml").write_text('data_dir = "/ä"', "utf-8-sig")
    assert load(folder / "s.toml", environ={}).data == Path("/ä")
