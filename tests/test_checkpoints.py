"""Files that are no checkpoints, or no whole ones: one error, which says so in one line."""

from __future__ import annotations

import io
import pickle
import random
from pathlib import Path

import pytest
import torch

from workers.binary import BadFile
from workers.checkpoints import tensors

pytestmark = pytest.mark.pure


def saved(zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"a": torch.ones(3)}}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "damaged, cut short or empty"),
        (b"\x80\x02.", "damaged, cut short or empty"),
        (saved(zipped=False)[:-9], "unexpected EOF"),
        (saved(zipped=True)[:200], "failed reading zip archive"),
        (b"no checkpoint", "Unsupported operand"),
        (pickle.dumps({"a": 1}, 2), "Invalid magic number"),
        (pickle.dumps(pickle.dumps, 2), "Unsupported|unsupported"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(data)
    with pytest.raises(BadFile, match=says) as e:
        tensors(path)
    assert len(str(e.value).splitlines()) == 1 and "load failed" not in str(e.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_is_read_or_refused(zipped: bool) -> None:
    whole, chance = saved(zipped), random.Random(1)
    assert tensors(io.BytesIO(whole))["a"].tolist() == [1.0, 1.0, 1.0]
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            tensors(io.BytesIO(bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])))
        except BadFile:
            refused += 1
    assert refused > 50


def test_a_file_that_is_not_there_is_not_taken_for_a_bad_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        tensors(tmp_path / "none.bin")
