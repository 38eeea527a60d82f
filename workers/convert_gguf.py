"""Format `gguf_llama` of `workers.convert`: one llama.cpp file becomes a folder that transformers loads.

In: a GGUF file (version 2 or 3) of a Llama model. Out: bf16 weights under transformers' names (model.safetensors),
config.json, generation_config.json, tokenizer.json and tokenizer_config.json with the chat template, rebuilt from the
file's own metadata. The layouts of file and blocks are those of ggml (docs/gguf.md, ggml-quants.c). Needs only numpy.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from workers.binary import BadFile, Cursor

Floats = np.ndarray[Any, np.dtype[np.float32]]

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
F32, F16, Q4_1, Q8_0 = 0, 1, 3, 8
BLOCK = {F32: (1, 4), F16: (1, 2), Q4_1: (32, 20), Q8_0: (32, 34)}  # values and bytes of a block
CONTROL = 3  # type of a token that is no text
# How text is split before the merges, by the name that llama.cpp gives it (llama-vocab.cpp).
SPLITS = {"smollm": [{"type": "Digits", "individual_digits": True}]}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class Gguf:
    """Metadata by key, and tensors by name, decoded when they are asked for."""

    def __init__(self, data: memoryview) -> None:
        self.data, cursor = data, Cursor(data)
        if bytes(data[:4]) != b"GGUF":
            raise BadFile("not a GGUF file")
        cursor.at = 4
        version = cursor.number("I")
        if version not in (2, 3):
            raise BadFile(f"a GGUF file of version {version}; only 2 and 3 are known here")
        tensors, keys = cursor.number("Q"), cursor.number("Q")
        self.about: dict[str, Any] = {}
        for _ in range(keys):
            key = _text(cursor)
            self.about[key] = _value(cursor, cursor.number("I"))
        self.tensors: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensors):
            name = _text(cursor)
            shape = tuple(cursor.number("Q") for _ in range(cursor.number("I")))[::-1]  # fastest first in the file
            self.tensors[name] = (shape, cursor.number("I"), cursor.number("Q"))
        align = int(self.about.get("general.alignment", 32))
        self._start = (cursor.at + align - 1) // align * align

    def get(self, key: str) -> Any:
        if key not in self.about:
            raise BadFile(f"it does not say {key}")
        return self.about[key]

    def floats(self, name: str) -> Floats:
        """One tensor as float32 in its shape."""
        shape, code, offset = self.tensors[name]
        if code not in BLOCK:
            raise BadFile(f"{name} has the number format {code}, which is not known here")
        values, size = BLOCK[code]
        count = int(np.prod(shape, dtype=np.int64))
        if count % values:
            raise BadFile(f"{name} with the shape {shape} is no whole number of blocks")
        cursor = Cursor(self.data)
        cursor.at = self._start + offset
        raw = np.frombuffer(cursor.bytes(count // values * size), np.uint8).reshape(-1, size)
        return _decoded(raw, code).reshape(shape)


def _text(cursor: Cursor) -> str:
    try:
        return bytes(cursor.bytes(cursor.number("Q"))).decode()
    except UnicodeDecodeError:
        raise BadFile("a text in it is not UTF-8") from None


def _value(cursor: Cursor, kind: int) -> Any:
    if kind == TEXT:
        return _text(cursor)
    if kind == ARRAY:
        inner, count = cursor.number("I"), cursor.number("Q")
        return [_value(cursor, inner) for _ in range(count)]
    if kind not in NUMBERS:
        raise BadFile(f"a value in it is of the unknown type {kind}")
    code = "<" + NUMBERS[kind]
    return struct.unpack(code, cursor.bytes(struct.calcsize(code)))[0]


def _decoded(raw: np.ndarray[Any, np.dtype[np.uint8]], code: int) -> Floats:
    """Blocks, one a row, as their values. A quantised block has one scale (and a least value) for all of them."""
    if code == F32:
        return raw.view(np.float32)
    scale: Floats = raw[:, :2].view(np.float16).astype(np.float32)
    if code == F16:
        return scale
    if code == Q8_0:
        return scale * raw[:, 2:].view(np.int8)
    least, packed = raw[:, 2:4].view(np.float16).astype(np.float32), raw[:, 4:]
    values: Floats = scale * np.concatenate([packed & 15, packed >> 4], axis=1) + least
    return values


def gguf_llama(source: Path, folder: Path) -> None:
    """Everything that a model folder of transformers has."""
    model = Gguf(memoryview(source.read_bytes()))
    kind = model.get("general.architecture")
    if kind != "llama":
        raise BadFile(f"a GGUF file of the family {kind!r}; only llama is known here")
    config = _config(model)
    files = {
        "config.json": config,
        "generation_config.json": {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "tokenizer.json": _tokenizer(model),
        "tokenizer_config.json": _tokenizer_config(model),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    _write_bf16(folder / "model.safetensors", _weights(model, config))
    about = {"file": "model.safetensors", "format": "transformers"}
    (folder / "model.json").write_bytes(msgspec.json.format(msgspec.json.encode(about)))


def _config(model: Gguf) -> dict[str, Any]:
    get = model.get
    heads, hidden = get("llama.attention.head_count"), get("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": len(get("tokenizer.ggml.tokens")),
        "hidden_size": hidden,
        "intermediate_size": get("llama.feed_forward_length"),
        "num_hidden_layers": get("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("llama.attention.head_count_kv"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": get("llama.context_length"),
        "rms_norm_eps": round(get("llama.attention.layer_norm_rms_epsilon"), 12),
        "rope_theta": get("llama.rope.freq_base"),
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "bos_token_id": get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": get("tokenizer.ggml.padding_token_id"),
    }


def _tokenizer(model: Gguf) -> dict[str, Any]:
    """tokenizer.json of the library `tokenizers`: byte-level BPE."""
    get = model.get
    if get("tokenizer.ggml.model") != "gpt2" or get("tokenizer.ggml.pre") not in SPLITS:
        raise BadFile("its tokenizer is of a kind that is not known here")
    tokens = get("tokenizer.ggml.tokens")
    same = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    kinds = get("tokenizer.ggml.token_type")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": t} | same for i, t in enumerate(tokens) if kinds[i] == CONTROL],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*SPLITS[get("tokenizer.ggml.pre")], BYTES]},
        "post_processor": None,
        "decoder": BYTES,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": tokens[get("tokenizer.ggml.unknown_token_id")],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": [m.split(" ") for m in get("tokenizer.ggml.merges")],
        },
    }


def _tokenizer_config(model: Gguf) -> dict[str, Any]:
    get = model.get
    tokens = get("tokenizer.ggml.tokens")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[get("tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[get("tokenizer.ggml.eos_token_id")],
        "unk_token": tokens[get("tokenizer.ggml.unknown_token_id")],
        "pad_token": tokens[get("tokenizer.ggml.padding_token_id")],
        "clean_up_tokenization_spaces": False,
        "model_max_length": get("llama.context_length"),
        "chat_template": get("tokenizer.chat_template"),
    }


def _weights(model: Gguf, config: dict[str, Any]) -> dict[str, Floats]:
    """By transformers' names; an unknown tensor is an error."""
    out: dict[str, Floats] = {}
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name in model.tensors:
        if name == "rope_freqs.weight":  # follows from the configuration
            continue
        stem = name.removesuffix(".weight")
        block, _, inner = stem.removeprefix("blk.").partition(".")
        if stem in OUTER:
            out[f"{OUTER[stem]}.weight"] = model.floats(name)
        elif stem.startswith("blk.") and inner in LAYER:
            values = model.floats(name)
            if inner in heads:  # llama.cpp keeps the two halves of each rotation side by side, transformers apart
                rows = values.reshape(heads[inner], -1, 2, values.shape[1])
                values = rows.swapaxes(1, 2).reshape(values.shape)
            out[f"model.layers.{block}.{LAYER[inner]}.weight"] = values
        else:
            raise BadFile(f"{name} is no tensor of a Llama model")
    return out


def bf16(values: Floats) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """The upper half of each float32, rounded to nearest, ties to even (numpy has no bfloat16)."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)).astype(np.uint16)


def _write_bf16(path: Path, tensors: dict[str, Floats]) -> None:
    """A safetensors file: the length of the header, the header, the values."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, values in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [at, at + 2 * values.size]}
        at += 2 * values.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            f.write(bf16(values).data)
