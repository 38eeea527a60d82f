"""A small Marian "student" model (Mozilla's, of Firefox's translations) for `workers.convert`.

In: three files, one behind the other: the binary model, the binary shortlist, the SentencePiece vocabulary. The first
two say themselves how long they are. Out: FOLDER/model.safetensors with the weights as integers and their scales, by
the names of `marian_student`; the shortlist in it, too; FOLDER/vocabulary.spm.

Known here is one shape: transformer encoder, decoder of "simpler simple recurrent units" (SSRU, Kim et al. 2019, "From
Research to Production and Back"), norms behind each block, all embeddings tied.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import save_file

from workers.binary import BadFile, Cursor

Array = np.ndarray[Any, np.dtype[Any]]

VERSION = 1
CHARACTERS, FLOAT32, INT8 = 0x101, 0x404, 0x4101  # int8 is prepared for 8-bit products; matrices lie transposed
CONFIG = "special:model.yml"
SHORTLIST = 0xF11A48D5013417F5  # its first number
WEIGHTS, VOCABULARY = "model.safetensors", "vocabulary.spm"
MUST_SAY = {  # of the network that we have
    "type": "transformer",
    "transformer-decoder-autoreg": "rnn",
    "dec-cell": "ssru",
    "tied-embeddings-all": "true",
    "transformer-preprocess": '""',
    "transformer-postprocess": "dan",
    "transformer-postprocess-emb": "d",
    "transformer-postprocess-top": '""',
    "transformer-ffn-activation": "relu",
    "transformer-ffn-depth": "2",
    "transformer-no-projection": "false",
    "transformer-train-position-embeddings": "false",
}


class Item(msgspec.Struct, frozen=True):
    """One tensor as the file has it."""

    kind: int
    shape: tuple[int, ...]
    data: memoryview


def read_items(cursor: Cursor) -> dict[str, Item]:
    """The tensors of a binary Marian model: the header tells lengths, then names, shapes, padding, values."""
    if cursor.number("Q") != VERSION:
        raise BadFile("not a binary Marian model of version 1")
    count = cursor.number("Q")
    if count > 10_000:
        raise BadFile(f"a Marian model of {count} tensors: damaged")
    heads = [tuple(cursor.number("Q") for _ in range(4)) for _ in range(count)]  # length of name, kind, dimensions, …
    names = [bytes(cursor.bytes(head[0])).removesuffix(b"\0").decode("ascii", "replace") for head in heads]
    shapes = [tuple(cursor.number("i") for _ in range(head[2])) for head in heads]
    cursor.bytes(cursor.number("Q"))
    return {
        name: Item(head[1], shape, cursor.bytes(head[3]))
        for name, head, shape in zip(names, heads, shapes, strict=True)
    }


def read_shortlist(cursor: Cursor) -> dict[str, Array]:
    """For each token of the source, tokens that may come of it; and how many of the commonest always may."""
    if cursor.number("Q") != SHORTLIST:
        raise BadFile("no binary shortlist follows the model")
    cursor.number("Q")  # a checksum that is not needed: all of this is hashed
    first, _, offsets, tokens = (cursor.number("Q") for _ in range(4))
    starts = np.frombuffer(cursor.bytes(8 * offsets), np.uint64)
    after = np.frombuffer(cursor.bytes(4 * tokens), np.uint32)
    if not offsets or starts[-1] != tokens or (np.diff(starts.astype(np.int64)) < 0).any():
        raise BadFile("the shortlist's offsets do not fit its length")
    return {
        "shortlist.always": np.array([first], np.int32),
        "shortlist.starts": starts.astype(np.int32),
        "shortlist.tokens": after.astype(np.int32),
    }


class Weights:
    """Takes tensors out of a Marian model one by one under their new names; what is left over is an error."""

    def __init__(self, items: dict[str, Item]) -> None:
        self.source, self.out = dict(items), dict[str, Array]()

    def take(self, name: str, kind: int) -> Item:
        if name not in self.source:
            raise BadFile(f"it has no tensor {name!r}")
        item = self.source.pop(name)
        if item.kind != kind:
            raise BadFile(f"{name} has the number format {item.kind:#x}, should have {kind:#x}")
        return item

    def vector(self, name: str, source: str) -> None:
        item = self.take(source, FLOAT32)
        self.out[name] = np.frombuffer(item.data, np.float32, int(np.prod(item.shape)))

    def matrix(self, name: str, source: str, transposed: bool = True) -> tuple[int, int]:
        """Integers (out, in) and what they were multiplied with. The scale of inputs is of no use to us: dropped."""
        item = self.take(source, INT8)
        size = int(np.prod(item.shape))
        if len(item.shape) != 2 or len(item.data) < size + 4:
            raise BadFile(f"{source} has {len(item.data)} bytes, which does not fit its shape {item.shape}")
        rows, columns = reversed(item.shape) if transposed else item.shape
        self.out[f"{name}.weight"] = np.frombuffer(item.data, np.int8, size).reshape(rows, columns)
        self.out[f"{name}.scale"] = np.frombuffer(item.data, np.float32, 1, size)
        self.source.pop(f"{source}_QuantMultA", None)
        return rows, columns

    def linear(self, name: str, weight: str, bias: str) -> None:
        self.matrix(name, weight)
        self.vector(f"{name}.bias", bias)

    def norm(self, name: str, source: str) -> None:
        self.vector(f"{name}.weight", f"{source}_ln_scale")
        self.vector(f"{name}.bias", f"{source}_ln_bias")

    def attention(self, name: str, source: str) -> None:
        for part in "qkvo":
            self.linear(f"{name}.{part}", f"{source}_W{part}", f"{source}_b{part}")
        self.norm(f"{name}.norm", f"{source}_Wo")

    def layers(self, side: str) -> Iterator[tuple[str, str]]:
        """Name of each layer of `encoder` or `decoder`, here and there; its feed-forward block is done."""
        at = 0
        while f"{side}_l{at + 1}_ffn_W1" in self.source:
            name, source = f"{side}.{at}", f"{side}_l{at + 1}"
            for inner in "12":
                self.linear(f"{name}.wide.fc{inner}", f"{source}_ffn_W{inner}", f"{source}_ffn_b{inner}")
            self.norm(f"{name}.wide.norm", f"{source}_ffn_ffn")
            yield name, source
            at += 1


def student_tensors(items: dict[str, Item]) -> tuple[dict[str, int], dict[str, Array]]:
    """(dimensions, parameters by the names of `marian_student.Student`)"""
    w = Weights(items)
    said = _config(bytes(w.take(CONFIG, CHARACTERS).data).rstrip(b"\0").decode("utf-8", "replace"))
    for key, value in MUST_SAY.items():
        if said.get(key, value) != value:
            raise BadFile(f"a Marian model with {key}={said[key]}; only {value} is known here")
    vocabulary, width = w.matrix("embed", "Wemb", transposed=False)
    w.vector("bias", "decoder_ff_logit_out_b")
    layers = {"encoder": 0, "decoder": 0}
    for name, source in w.layers("encoder"):
        w.attention(f"{name}.attention", f"{source}_self")
        layers["encoder"] += 1
    for name, source in w.layers("decoder"):
        w.matrix(f"{name}.recurrent.into", f"{source}_rnn_W")
        w.linear(f"{name}.recurrent.forget", f"{source}_rnn_Wf", f"{source}_rnn_bf")
        w.norm(f"{name}.recurrent.norm", f"{source}_rnn_ffn")
        w.attention(f"{name}.attention", f"{source}_context")
        layers["decoder"] += 1
    w.source.pop("none_QuantMultA", None)
    if w.source:
        raise BadFile(f"it has {len(w.source)} tensors that a student has not, such as {min(w.source)!r}")
    if not all(layers.values()):
        raise BadFile("it has no layers")
    dims = {
        "vocabulary": vocabulary,
        "width": width,
        "wide": len(w.out["encoder.0.wide.fc1.weight"]),
        "heads": int(said["transformer-heads"]),
        "encoder_layers": layers["encoder"],
        "decoder_layers": layers["decoder"],
    }
    return dims, w.out


def _config(text: str) -> dict[str, str]:
    """Its flat lines `key: value`; lists are of no use to us."""
    pairs = (line.partition(": ") for line in text.splitlines() if not line.startswith(" "))
    return {key: value.strip() for key, _, value in pairs}


def marian_student(source: Path, folder: Path) -> None:
    cursor = Cursor(memoryview(source.read_bytes()))
    dims, tensors = student_tensors(read_items(cursor))
    tensors |= read_shortlist(cursor)
    if len(tensors["shortlist.starts"]) != dims["vocabulary"] + 1 or cursor.at == len(cursor.data):
        raise BadFile("model, shortlist and vocabulary do not fit together")
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / WEIGHTS)
    (folder / VOCABULARY).write_bytes(cursor.data[cursor.at :])
    about = {"file": WEIGHTS, "format": "marian-student", "dims": dims}
    (folder / "model.json").write_bytes(msgspec.json.format(msgspec.json.encode(about)))
