"""4-bit weights: made once from a fetched repository, stored packed, and the same as transformers makes them.

The model is a tiny random one, built from a configuration and named so; it proves the path, not the quality.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from common import models
from common.fetch import fetch
from common.settings import Settings
from tests.conftest import ROOT, clean_environment
from tests.standin_hub import COMMIT, StandInHub
from tests.test_hub import store, write_catalogue  # noqa: F401 - the fixture
from tests.test_models import left_over, refused

CONFIG = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def tiny_random_qwen2() -> dict[str, bytes]:
    """Files of a repository: configuration, two shards and their index, an empty tokenizer."""
    rng = np.random.default_rng(0)

    def w(*shape: int) -> np.ndarray:
        return rng.normal(scale=0.02, size=shape).astype(np.float16)

    shards: list[dict[str, np.ndarray]] = [{"model.embed_tokens.weight": w(256, 128)}, {}]
    for i in range(2):
        layer = f"model.layers.{i}"
        for name, outputs in (("q", 128), ("k", 64), ("v", 64)):
            shards[i] |= {f"{layer}.self_attn.{name}_proj.weight": w(outputs, 128)}
            shards[i] |= {f"{layer}.self_attn.{name}_proj.bias": w(outputs)}
        shards[i] |= {f"{layer}.self_attn.o_proj.weight": w(128, 128), f"{layer}.mlp.down_proj.weight": w(128, 256)}
        shards[i] |= {f"{layer}.mlp.gate_proj.weight": w(256, 128), f"{layer}.mlp.up_proj.weight": w(256, 128)}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shards[i][f"{layer}.{norm}.weight"] = np.ones(128, np.float16)
    shards[1]["model.norm.weight"] = np.ones(128, np.float16)
    names = [f"model-{i + 1:05}-of-00002.safetensors" for i in range(2)]
    index = {"metadata": {}, "weight_map": {k: name for name, shard in zip(names, shards, strict=True) for k in shard}}
    files = {name: save(shard, metadata={"format": "pt"}) for name, shard in zip(names, shards, strict=True)}
    files |= {"model.safetensors.index.json": json.dumps(index).encode(), "tokenizer.json": b"{}"}
    return files | {"config.json": json.dumps(CONFIG).encode()}


COMPARE = """
import json, sys, torch
from workers._torch import torchaudio_beside_cpu_torch
torchaudio_beside_cpu_torch()
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
full = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
ours = AutoModelForCausalLM.from_pretrained(sys.argv[2], device_map="cpu")
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                            bnb_4bit_compute_dtype=torch.bfloat16)
given = dict(device_map="cpu", dtype=torch.bfloat16)
theirs = AutoModelForCausalLM.from_pretrained(sys.argv[1], quantization_config=config, **given)
x = torch.arange(24)[None]
with torch.no_grad():
    a, b, c = (m(x).logits.float() for m in (full, ours, theirs))
from pathlib import Path
from workers.quantize import Unsuitable, quantize
lacking = Path(sys.argv[1])
config = json.loads((lacking / "config.json").read_text())
config |= {"num_hidden_layers": 3}  # more than the weights have
(lacking / "config.json").write_text(json.dumps(config))
try:
    quantize(lacking, lacking / "out")
except Unsuitable as e:
    refusal = str(e)
print(json.dumps({
    "refusal": refusal,
    "same": torch.equal(b, c),
    "alike": float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]),
    "packed": sum(isinstance(m, Linear4bit) for m in ours.modules()),
    "head": type(ours.lm_head).__name__,
}))
"""


def python(code: str, *args: Path) -> str:
    argv = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=clean_environment(), check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def standin() -> Iterator[StandInHub]:
    """Holds the tiny random model, in several shards."""
    one = StandInHub(tiny_random_qwen2())
    yield one
    one.close()


@pytest.mark.processes
def test_fetched_quantised_stored_and_the_same_as_transformers_makes_it(
    store: Settings,  # noqa: F811
    standin: StandInHub,
) -> None:
    lines: list[str] = []
    fetch(store, ["llm.nf4"], lines.append)
    assert "llm.nf4: quantising llm once" in "\n".join(lines)
    base, packed = models.available(store, "llm", check=True), models.available(store, "llm.nf4", check=True)
    about = models.stored(packed)
    assert about.revision == COMMIT and about.source.startswith("llm (") and left_over(store) == []
    assert sorted([about.file, *about.files]) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert "no model named 'llm.int8'" in refused(lambda: models.model("llm.int8"))
    asked = len(standin.seen)
    fetch(store, ["llm.nf4"], lines.append)
    assert lines[-1].startswith("llm.nf4: is there") and len(standin.seen) == asked
    found = json.loads(python(COMPARE, base, packed).splitlines()[-1])
    assert found["same"] and found["packed"] == 14 and found["head"] == "Linear" and found["alike"] > 0.95
    assert found["refusal"] == "7 of its 21 matrices are not in its weights"
