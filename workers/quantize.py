"""`python -m workers.quantize SOURCE FOLDER`: weights of a language model in 4 bits (nf4), packed and stored once.

In: a stored model in the layout of transformers. Out: FOLDER/model.safetensors as bitsandbytes and transformers write
it (packed weights beside their scales), config.json that says so, and the other files. One matrix at a time, on the
CPU: it needs no GPU memory, so no lease, and disturbs nobody. Started by `models fetch`; prints lines of progress.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from common import models
from common.settings import Settings
from workers._torch import set_up, torchaudio_beside_cpu_torch

BLOCK = 64  # weights that share a scale
TICK_S = 2.0
CONFIG = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,  # the scales are quantised too: 4.1 bits a weight instead of 4.5
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
}


class Unsuitable(Exception):
    """The model cannot be quantised; the text says why."""


def matrices(source: Path) -> set[str]:
    """Names of the weights to pack: all linear layers but the last, whose errors would go straight into the words."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    head = model.get_output_embeddings()
    return {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}


def quantize(source: Path, folder: Path) -> None:
    import torch
    from bitsandbytes.functional import quantize_4bit
    from safetensors import safe_open
    from safetensors.torch import save_file

    todo, done, total = matrices(source), set[str](), 0
    out: dict[str, Any] = {}
    told = time.monotonic()
    shards = models.weights(source)
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                tensor = file.get_tensor(name)
                if tensor.is_floating_point():
                    tensor = tensor.to(torch.bfloat16)
                total += tensor.nbytes
                if name not in todo:
                    out[name] = tensor
                    continue
                packed, state = quantize_4bit(tensor, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
                out[name] = packed
                out |= {f"{name}.{part}": t for part, t in state.as_dict(packed=True).items()}
                done.add(name)
                if time.monotonic() - told >= TICK_S:
                    told = time.monotonic()
                    print(f"{len(done)} of {len(todo)} matrices", flush=True)
    if not done or done != todo:
        raise Unsuitable(f"{len(todo - done)} of its {len(todo)} matrices are not in its weights")
    save_file({k: v.contiguous() for k, v in out.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": CONFIG}, indent=2))
    about = models.stored(source)
    left_out = {"config.json", about.file, *(s.name for s in shards)}
    for name in about.files.keys() - left_out:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        sys.exit("usage: python -m workers.quantize SOURCE FOLDER")
    source, folder = Path(argv[0]), Path(argv[1])
    set_up(os.cpu_count() or 1, Settings().cache)
    torchaudio_beside_cpu_torch()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        quantize(source, folder)
    except ImportError as e:
        sys.exit(f"the package {e.name} is needed to quantise; install it with pip")
    except Unsuitable as e:
        sys.exit(f"{source}: {e}")
    except (OSError, ValueError, KeyError) as e:
        sys.exit(f"{source}: {type(e).__name__}: {(str(e).splitlines() or [''])[0][:160]}")


if __name__ == "__main__":
    main(sys.argv[1:])
