"""A llama.cpp file becomes what transformers loads: the same numbers, the same tokens.

python -m tests.test_convert_gguf FILE.gguf     compares all weights and tokens with transformers' own loader,
                                                which needs the packages gguf and accelerate, and half a minute
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import models
from common.fetch import fetch
from common.settings import Settings
from tests.conftest import clean_environment
from workers import convert, convert_gguf
from workers.binary import BadFile

# The whole comparison above was made with this one: 272 tensors equal, tokens of four texts equal.
COMPARED_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
HIDDEN, HEADS, KV, WIDE, VOCAB = 64, 4, 2, 96, 260
RANDOM = np.random.default_rng(5)


def alphabet() -> list[str]:
    """The 256 characters of byte-level BPE, by byte (Radford et al. 2019, encoder.py)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) if b in plain else chr(256 + rest.index(b)) for b in range(256)]


def text(s: str) -> bytes:
    return struct.pack("<Q", len(s.encode())) + s.encode()


def value(v: Any) -> bytes:
    if isinstance(v, str):
        return struct.pack("<I", 8) + text(v)
    if isinstance(v, float):
        return struct.pack("<If", 6, v)
    if isinstance(v, int):
        return struct.pack("<II", 4, v)
    return struct.pack("<I", 9) + value(v[0])[:4] + struct.pack("<Q", len(v)) + b"".join(value(x)[4:] for x in v)


def q4_1(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Blocks, and what they stand for: written element by element, as ggml-quants.c reads them."""
    raw, out = b"", []
    for block in values.reshape(-1, 32):
        least, scale = np.float16(block.min()), np.float16((block.max() - block.min()) / 15)
        codes = [int(c) for c in np.clip(np.round((block - np.float32(least)) / np.float32(scale)), 0, 15)]
        raw += scale.tobytes() + least.tobytes()
        raw += bytes(codes[i] | codes[i + 16] << 4 for i in range(16))
        out += [np.float32(scale) * np.float32(c) + np.float32(least) for c in codes]
    return raw, np.array(out, np.float32).reshape(values.shape)


def q8_0(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    raw, out = b"", []
    for block in values.reshape(-1, 32):
        scale = np.float16(abs(block).max() / 127)
        codes = np.round(block / np.float32(scale)).astype(np.int8)
        raw += scale.tobytes() + codes.tobytes()
        out += [np.float32(scale) * np.float32(c) for c in codes]
    return raw, np.array(out, np.float32).reshape(values.shape)


def plain(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    return values.astype("<f4").tobytes(), values.astype(np.float32)


SHAPES = {
    "attn_norm": (HIDDEN,), "attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN // HEADS * KV, HIDDEN),
    "attn_v": (HIDDEN // HEADS * KV, HIDDEN), "attn_output": (HIDDEN, HIDDEN), "ffn_norm": (HIDDEN,),
    "ffn_gate": (WIDE, HIDDEN), "ffn_up": (WIDE, HIDDEN), "ffn_down": (HIDDEN, WIDE),
}  # fmt: skip


def tiny(**changed: Any) -> tuple[bytes, dict[str, np.ndarray]]:
    """A random Llama with one layer as a GGUF file, and its tensors as they are meant, by the names in the file."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet(), "th"]
    about: dict[str, Any] = {
        "general.architecture": "llama", "llama.block_count": 1, "llama.context_length": 128,
        "llama.embedding_length": HIDDEN, "llama.feed_forward_length": WIDE, "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV, "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (VOCAB - 3),
        "tokenizer.ggml.merges": ["t h"], "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": "{{ 1 }}",
    } | changed  # fmt: skip
    names = {"token_embd": (VOCAB, HIDDEN), "output_norm": (HIDDEN,)} | {f"blk.0.{k}": v for k, v in SHAPES.items()}
    infos, data, meant = b"", b"", {}
    for name, shape in names.items():
        values = RANDOM.normal(size=shape).astype(np.float32)
        code, pack = (0, plain) if len(shape) == 1 else (8, q8_0) if name == "token_embd" else (3, q4_1)
        raw, meant[name] = pack(values)
        infos += text(f"{name}.weight") + struct.pack("<I", len(shape))
        infos += b"".join(struct.pack("<Q", n) for n in shape[::-1]) + struct.pack("<IQ", code, len(data))
        data += raw + b"\0" * (-len(raw) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(names), len(about))
    head += b"".join(text(k) + value(v) for k, v in about.items()) + infos
    return head + b"\0" * (-len(head) % 32) + data, meant


def apart(values: np.ndarray, heads: int) -> np.ndarray:
    """Row 2i and 2i + 1 of a head become rows i and i + half."""
    rows = len(values) // heads
    out = np.empty_like(values)
    for head in range(heads):
        for i in range(rows // 2):
            out[head * rows + i] = values[head * rows + 2 * i]
            out[head * rows + rows // 2 + i] = values[head * rows + 2 * i + 1]
    return out


@pytest.mark.pure
def test_a_small_model_comes_out_as_it_was_meant(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    data, meant = tiny()
    (folder / "m.gguf").write_bytes(data)
    convert.FORMATS["gguf_llama"](folder / "m.gguf", folder)
    found = load_file(str(folder / "model.safetensors"))
    meant["blk.0.attn_q"] = apart(meant["blk.0.attn_q"], HEADS)
    meant["blk.0.attn_k"] = apart(meant["blk.0.attn_k"], KV)
    names = {f"blk.0.{k}": f"model.layers.0.{v}.weight" for k, v in convert_gguf.LAYER.items()}
    names |= {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}
    assert set(found) == set(names.values())
    for name, values in meant.items():
        assert torch.equal(found[names[name]], torch.from_numpy(values).to(torch.bfloat16)), name
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] and config["head_dim"] == HIDDEN // HEADS
    assert json.loads((folder / "model.json").read_text())["file"] == "model.safetensors"


@pytest.mark.pure
def test_its_tokens_are_byte_level_and_digits_stand_alone(folder: Path) -> None:
    from tokenizers import Tokenizer

    data, _ = tiny()
    (folder / "m.gguf").write_bytes(data)
    convert.FORMATS["gguf_llama"](folder / "m.gguf", folder)
    t = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for said in ("the 42nd, über 漢字 🎉\n\tend", "  two  spaces "):
        assert t.decode(t.encode(said).ids) == said
    assert t.encode("thth 12").tokens == ["th", "th", "Ġ", "1", "2"]
    assert t.encode("<|im_start|>").ids == [1], "a control token is one token"


@pytest.mark.pure
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda d: d[:-40], "truncated"),
        (lambda d: d[:200], "truncated"),
        (lambda d: b"GGML" + d[4:], "not a GGUF file"),
        (lambda d: d[:4] + struct.pack("<I", 9) + d[8:], "version 9"),
        (lambda d: d.replace(b"blk.0.ffn_up", b"blk.0.ffn_xx"), "blk.0.ffn_xx.weight is no tensor of a Llama model"),
        (lambda d: d.replace(text("llama"), text("lemma")), "family 'lemma'"),
        (lambda d: d.replace(text("smollm"), text("strong")), "tokenizer is of a kind"),
        (lambda d: d.replace(b"llama.block_count", b"llama.clock_count"), "does not say llama.block_count"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_one_line(folder: Path, spoil: Any, says: str) -> None:
    (folder / "m.gguf").write_bytes(spoil(tiny()[0]))
    with pytest.raises(BadFile, match=says):
        convert_gguf.gguf_llama(folder / "m.gguf", folder)
    done = subprocess.run(
        [sys.executable, "-m", "workers.convert", "gguf_llama", str(folder / "m.gguf"), str(folder)],
        capture_output=True, text=True, env=clean_environment(),
    )  # fmt: skip
    assert done.returncode == 1 and says in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.pure
def test_rounding_to_bf16_is_to_nearest_even() -> None:
    import torch

    bits = RANDOM.integers(0, 2**31, 100_000, np.uint32)
    edges = np.array([0x3F808000, 0x3F818000, 0x3F80FFFF, 0x3F807FFF, 0x00000001, 0x80000000, 0xBF808001], np.uint32)
    values = np.concatenate([bits, edges]).view(np.float32)
    values = values[np.isfinite(values)]
    assert np.array_equal(
        convert_gguf.bf16(values), torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.uint16).numpy()
    )


@pytest.mark.speech
def test_the_stored_smollm2_is_the_one_that_was_compared() -> None:
    fetch(Settings(), ["smollm2-135m"])
    found = models.verify(Settings(), "smollm2-135m")
    assert found.sha256 == COMPARED_SHA256
    assert set(found.files) == {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.speech
def test_a_damaged_side_file_is_found(folder: Path) -> None:
    fetch(Settings(), ["smollm2-135m"])
    there = models.available(Settings(), "smollm2-135m")
    here = Settings(model_cache=str(folder))
    copy = folder / "models" / "smollm2-135m"
    copy.mkdir(parents=True)
    for path in there.iterdir():
        (copy / path.name).symlink_to(path)
    assert models.available(here, "smollm2-135m", check=True) == copy
    (copy / "tokenizer.json").unlink()
    assert "is not there" in problem(here)
    (copy / "tokenizer.json").write_text("{}")
    assert "tokenizer.json has sha256" in problem(here)


def problem(settings: Settings) -> str:
    with pytest.raises(models.UserError) as e:
        models.available(settings, "smollm2-135m", check=True)
    assert "\n" not in str(e.value)
    return str(e.value)


def compare(file: Path) -> None:
    """Everything transformers makes of the file itself, beside what we made of it."""
    from workers._torch import torchaudio_beside_cpu_torch

    torchaudio_beside_cpu_torch()
    import tempfile

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        convert_gguf.gguf_llama(file, Path(folder))
        ours = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
        tokens = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16).state_dict()
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]
    others = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for said in (
        "Hello world",
        "  a\n\nb\té ü 漢字 🎉",
        "I've 12345 ducks, don't 3.14",
        "<|im_start|>user x<|im_end|>",
    ):
        assert tokens(said)["input_ids"] == others(said)["input_ids"], said
    assert tokens.chat_template == others.chat_template
    print(f"{len(ours)} tensors equal, tokens equal")


if __name__ == "__main__":
    compare(Path(sys.argv[1]))
