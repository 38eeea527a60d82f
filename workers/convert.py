"""`python -m workers.convert FORMAT SOURCE FOLDER`: a downloaded model file becomes what our workers load.

In: one file in a foreign format. Out: FOLDER/model.safetensors, tensors under the names the loader wants and in the
precision they were stored in, and FOLDER/model.json with the dimensions. Started by `models fetch` in a folder of its
own that is moved into place only when all is done, so a kill leaves nothing half. Needs torch for torch files only.

`ct2_whisper`: CTranslate2's Whisper model.bin to openai-whisper's parameters.
`gguf_llama`: a llama.cpp file with its tokenizer to what transformers loads (`convert_gguf`).
`marian_student`: model, shortlist and vocabulary of a small Marian model (`convert_marian`).
`openai_whisper`: openai-whisper's own NAME.pt, read with weights_only=True: nothing of a stranger's is unpickled.
`speakers_wheel`: the package that carries the diarizer's two networks (`convert_speakers`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import save_file

from workers.binary import BadFile, Cursor
from workers.convert_gguf import gguf_llama
from workers.convert_marian import marian_student
from workers.convert_speakers import speakers_wheel

Tensor = np.ndarray[Any, np.dtype[Any]]

CT2_VERSION = 6  # the newest binary version whose layout is known here
CT2_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
# What the file says about itself rather than weights: read as numbers, or of no use to openai-whisper.
CT2_REMARKS = {
    "encoder/num_heads",
    "decoder/num_heads",
    "decoder/activation",
    "decoder/alibi",
    "decoder/alignment_heads",
    "decoder/alignment_layer",
    "decoder/pre_norm",
    "decoder/scale_embeddings",
    "decoder/start_from_zero_embedding",
}


def name_in(cursor: Cursor) -> str:
    """Length with the closing zero, then the characters."""
    try:
        return bytes(cursor.bytes(cursor.number("H"))).removesuffix(b"\0").decode("ascii")
    except UnicodeDecodeError:
        raise BadFile("a name in it is not text: not a CTranslate2 model") from None


def read_ct2(path: Path) -> dict[str, Tensor]:
    """All variables of a CTranslate2 Whisper model by name (model_spec.py of CTranslate2 writes this layout)."""
    cursor = Cursor(memoryview(path.read_bytes()))
    version = cursor.number("I")
    if not 2 <= version <= CT2_VERSION:
        raise BadFile(f"not a CTranslate2 model of version 2 to {CT2_VERSION} (its first number is {version})")
    spec = name_in(cursor)
    if spec != "WhisperSpec":
        raise BadFile(f"a CTranslate2 model, but of {spec!r} instead of 'WhisperSpec'")
    cursor.number("I")  # revision of the spec
    tensors: dict[str, Tensor] = {}
    for _ in range(cursor.number("I")):
        name = name_in(cursor)
        shape = tuple(cursor.number("I") for _ in range(cursor.number("B")))
        code, size = cursor.number("B"), cursor.number("I")
        if code not in CT2_DTYPES:
            raise BadFile(f"{name} has the unknown number format {code}")
        dtype = np.dtype(CT2_DTYPES[code])
        if size != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
            raise BadFile(f"{name} has {size} bytes, which does not fit its shape {shape}")
        tensors[name] = np.frombuffer(cursor.bytes(size), dtype).reshape(shape)
    if version >= 3:
        for _ in range(cursor.number("I")):  # ties: alias, variable
            name_in(cursor)
            name_in(cursor)
    if cursor.at != len(cursor.data):
        raise BadFile(f"{len(cursor.data) - cursor.at} bytes follow its end")
    return tensors


class Renaming:
    """Takes variables out of a CTranslate2 model one by one under their new names; what is left over is an error."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.source = dict(tensors)
        self.out: dict[str, Tensor] = {}

    def take(self, name: str) -> Tensor:
        try:
            tensor = self.source.pop(name)
        except KeyError:
            raise BadFile(f"it has no variable {name!r}") from None
        if tensor.dtype not in (np.float16, np.float32):
            raise BadFile(f"{name} is quantised ({tensor.dtype}); only float16 and float32 files can be converted")
        return tensor

    def put(self, name: str, source: str) -> None:
        self.out[name] = self.take(source)

    def linear(self, name: str, source: str) -> None:
        self.put(f"{name}.weight", f"{source}/weight")
        self.put(f"{name}.bias", f"{source}/bias")

    def norm(self, name: str, source: str) -> None:
        self.put(f"{name}.weight", f"{source}/gamma")
        self.put(f"{name}.bias", f"{source}/beta")

    def fused(self, name: str, source: str, parts: tuple[str, ...]) -> None:
        """One matrix that CTranslate2 stacked from `parts`; keys have no bias in Whisper, so theirs must be zero."""
        weight, bias = self.take(f"{source}/weight"), self.take(f"{source}/bias")
        if weight.ndim != 2 or weight.shape[0] % len(parts) or bias.shape != weight.shape[:1]:
            raise BadFile(f"{source} is not {len(parts)} matrices stacked: {weight.shape}")
        for part, w, b in zip(parts, np.split(weight, len(parts)), np.split(bias, len(parts)), strict=True):
            self.out[f"{name}.{part}.weight"] = w
            if part != "key":
                self.out[f"{name}.{part}.bias"] = b
            elif b.any():
                raise BadFile(f"{source} gives keys a bias, which Whisper has not")

    def layers(self, side: str) -> int:
        """All blocks of `encoder` or `decoder`; how many there are."""
        n = 0
        while f"{side}/layer_{n}/ffn/linear_0/weight" in self.source:
            source, name = f"{side}/layer_{n}", f"{side}.blocks.{n}"
            self.fused(f"{name}.attn", f"{source}/self_attention/linear_0", ("query", "key", "value"))
            self.linear(f"{name}.attn.out", f"{source}/self_attention/linear_1")
            self.norm(f"{name}.attn_ln", f"{source}/self_attention/layer_norm")
            if side == "decoder":
                self.linear(f"{name}.cross_attn.query", f"{source}/attention/linear_0")
                self.fused(f"{name}.cross_attn", f"{source}/attention/linear_1", ("key", "value"))
                self.linear(f"{name}.cross_attn.out", f"{source}/attention/linear_2")
                self.norm(f"{name}.cross_attn_ln", f"{source}/attention/layer_norm")
            self.linear(f"{name}.mlp.0", f"{source}/ffn/linear_0")
            self.linear(f"{name}.mlp.2", f"{source}/ffn/linear_1")
            self.norm(f"{name}.mlp_ln", f"{source}/ffn/layer_norm")
            n += 1
        return n

    def heads(self, side: str) -> int:
        name = f"{side}/num_heads"
        if name not in self.source:
            raise BadFile(f"it has no variable {name!r}")
        return int(self.source[name])


def whisper_tensors(ct2: dict[str, Tensor]) -> tuple[dict[str, int], dict[str, Tensor]]:
    """(dimensions as whisper.model.ModelDimensions wants them, parameters by openai-whisper's names)."""
    r = Renaming(ct2)
    for conv in ("conv1", "conv2"):
        r.linear(f"encoder.{conv}", f"encoder/{conv}")
    r.put("encoder.positional_embedding", "encoder/position_encodings/encodings")
    r.norm("encoder.ln_post", "encoder/layer_norm")
    r.put("decoder.token_embedding.weight", "decoder/embeddings/weight")
    r.put("decoder.positional_embedding", "decoder/position_encodings/encodings")
    r.norm("decoder.ln", "decoder/layer_norm")
    layers = {side: r.layers(side) for side in ("encoder", "decoder")}
    heads = {side: r.heads(side) for side in ("encoder", "decoder")}
    unknown = sorted(set(r.source) - CT2_REMARKS)
    if unknown:
        raise BadFile(f"it has {len(unknown)} variables that Whisper has not, such as {unknown[0]!r}")
    out = r.out
    dims = {
        "n_mels": out["encoder.conv1.weight"].shape[1],
        "n_audio_ctx": out["encoder.positional_embedding"].shape[0],
        "n_audio_state": out["encoder.positional_embedding"].shape[1],
        "n_audio_head": heads["encoder"],
        "n_audio_layer": layers["encoder"],
        "n_vocab": out["decoder.token_embedding.weight"].shape[0],
        "n_text_ctx": out["decoder.positional_embedding"].shape[0],
        "n_text_state": out["decoder.positional_embedding"].shape[1],
        "n_text_head": heads["decoder"],
        "n_text_layer": layers["decoder"],
    }
    return dims, out


def ct2_whisper(source: Path, folder: Path) -> None:
    dims, tensors = whisper_tensors(read_ct2(source))
    # safetensors writes the memory behind an array as it lies: parts of a fused matrix need memory of their own
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "model.safetensors")
    about = {"file": "model.safetensors", "format": "openai-whisper", "dims": dims}
    (folder / "model.json").write_bytes(msgspec.json.format(msgspec.json.encode(about)))


def openai_whisper(source: Path, folder: Path) -> None:
    import pickle

    import torch
    from safetensors.torch import save_file as save_tensors

    try:
        told = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        dims = {str(k): int(v) for k, v in told["dims"].items()}
        tensors = {k: v.contiguous() for k, v in told["model_state_dict"].items() if k != "alignment_heads"}
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, pickle.UnpicklingError) as e:
        raise BadFile(f"not a checkpoint of openai-whisper ({str(e).splitlines()[0][:120]})") from None
    save_tensors(tensors, folder / "model.safetensors")
    about = {"file": "model.safetensors", "format": "openai-whisper", "dims": dims}
    (folder / "model.json").write_bytes(msgspec.json.format(msgspec.json.encode(about)))


FORMATS = {
    "ct2_whisper": ct2_whisper,
    "gguf_llama": gguf_llama,
    "marian_student": marian_student,
    "openai_whisper": openai_whisper,
    "speakers_wheel": speakers_wheel,
}


def main(argv: list[str]) -> None:
    if len(argv) != 3 or argv[0] not in FORMATS:
        sys.exit(f"usage: python -m workers.convert {'|'.join(FORMATS)} SOURCE FOLDER")
    source, folder = Path(argv[1]), Path(argv[2])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        FORMATS[argv[0]](source, folder)
    except BadFile as e:
        sys.exit(f"{source}: {e}")
    except OSError as e:
        sys.exit(f"{e.filename or source}: {e.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
