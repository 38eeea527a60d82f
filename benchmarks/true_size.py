"""The mission's models at true size (DESIGN §1), with random weights: `benchmarks/swap.py --true-size`.

Built on `meta` from configurations in code, so that nothing is downloaded and no model is held twice; the arena is
filled from a seeded generator. Figures of swaps depend on sizes and counts of tensors only, not on what weights say.
Needs torch and transformers, no other package.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

import torch
from figures import Figure
from torch import nn
from true_models import SPECS, Noise, Spec, build

from workers._torch import torchaudio_beside_cpu_torch
from workers.residency import Device, Residency

MIB = 2**20
GB = 1e9
WORKING_BYTES = 1024 * MIB  # of a prefill of PROMPT tokens
PROMPT = 256
NAIVE_S = {
    "stack to RAM": (1.0, 2.0),
    "summariser in": (1.0, 1.0),
    "summariser out": (1.0, 1.0),
    "stack in": (1.0, 2.0),
}


def link_bytes_s(device: Device) -> float:
    """What the link does at its best: the median of copies of 1 GiB of pinned memory (memory to memory, simulated)."""
    if device.torch_device.type != "cuda":
        return 0.0
    size = 1024 * MIB
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    device.limit(2 * size)
    there = torch.empty(size, dtype=torch.uint8, device=device.torch_device)
    seconds = []
    for _ in range(9):
        torch.cuda.synchronize()
        began = time.perf_counter()
        there.copy_(host, non_blocking=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    device.release(there)
    return size / statistics.median(seconds)


def first_token(device: Device, model: Any) -> int:
    """Prefill of PROMPT tokens and the next token, as a number on the host."""
    text = torch.randint(5, 900, (1, PROMPT)).to(device.torch_device)
    return int(model(input_ids=text, use_cache=True).logits[0, -1].argmax())


def naive(device: Device, spec: Spec, scale: float) -> tuple[float, float]:
    """`model.to(device)` and back, of an ordinary model in pageable memory: seconds in, seconds out."""
    device.limit(2**62)
    model = build(spec, scale, "cpu")
    noise = Noise()
    for name, tensor in model.named_parameters():
        noise(name, tensor.data)
    ins, outs = [], []
    for _ in range(3):
        began = time.perf_counter()
        model.to(device.torch_device)
        torch.cuda.synchronize()
        there = time.perf_counter()
        model.to("cpu")
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        ins.append(there - began)
        outs.append(time.perf_counter() - there)
    del model, tensor
    gc.collect()
    device.release(torch.empty(0, dtype=torch.uint8))
    device.limit(0)
    return statistics.median(ins), statistics.median(outs)


def run(device: Device, scale: float, rounds: int) -> list[Figure]:
    """All of it, in one process: the live stack, then each summariser alone and in whole cycles with the stack."""
    cuda = device.torch_device.type == "cuda"
    torchaudio_beside_cpu_torch()
    import transformers  # its modules must not be imported while `meta` is the default device

    for name in ("WhisperFor", "M2M100For"):
        getattr(transformers, f"{name}ConditionalGeneration")
    assert transformers.Qwen2ForCausalLM and transformers.LlamaForCausalLM
    rounds = min(rounds, 15)
    link = link_bytes_s(device)
    figures = [Figure("pinned link rate, host to device", link / GB, "GB/s")] if cuda else []
    figures.append(Figure("residue of one process (CUDA context)", device.residue_bytes / MIB, "MiB"))
    stack: list[Residency] = []
    for spec in SPECS:
        moves = naive(device, spec, scale) if cuda else None
        model = build(spec, scale, "meta")
        residency = Residency(device, [model], Noise())
        size = residency.arena_bytes
        if cuda and size + WORKING_BYTES > torch.cuda.mem_get_info()[0]:
            print(f"{spec.name}: left out, its {size / GB:.1f} GB and a step do not fit this card")
            residency.close()
            continue
        figures += alone(device, spec, residency, link, moves, rounds)
        if spec.stack:
            stack.append(residency)
        else:
            figures += cycles(device, spec, model, residency, stack, link, rounds, full=scale == 1.0)
            residency.close()
        if residency.note:
            print(f"{spec.name}: {residency.note}")
    return figures


def alone(
    device: Device, spec: Spec, residency: Residency, link: float, moves: tuple[float, float] | None, rounds: int
) -> list[Figure]:
    """Reloads and offloads of one model, beside the link and `moves`, the seconds of `.to()` in and out."""
    size, ins, outs, copied = residency.arena_bytes, [], [], 0
    for _ in range(rounds):
        device.limit(size + WORKING_BYTES)
        there = residency.reload()
        assert there
        ins.append(there.seconds)
        away = residency.offload()
        device.limit(0)
        outs.append(away.seconds)
        copied += away.copied_bytes
    in_s, out_s = statistics.median(ins), statistics.median(outs)
    name = spec.name
    figures = [
        Figure(f"{name}: weights", size / GB, "GB"),
        Figure(f"{name}: reload p50", in_s * 1e3, "ms"),
        Figure(f"{name}: offload p50 (<= 40)", out_s * 1e3, "ms"),
        Figure(f"{name}: copied to the host in {rounds} offloads (0)", copied, "bytes"),
    ]
    if moves:
        rate = size / in_s / GB
        figures.append(Figure.against(f"{name}: reload p50, beside the link (>= 0.92)", rate, "GB/s", link / GB))
        figures.append(Figure.against(f"{name}: reload p50, beside .to(device)", in_s * 1e3, "ms", moves[0] * 1e3))
        figures.append(Figure.against(f"{name}: offload p50, beside .to(host)", out_s * 1e3, "ms", moves[1] * 1e3))
    return figures


def cycles(
    device: Device,
    spec: Spec,
    model: nn.Module,
    burst: Residency,
    stack: list[Residency],
    link: float,
    rounds: int,
    full: bool,
) -> list[Figure]:
    """Stack out, summariser in, summariser out, stack in; and with a first token in between."""
    stack_bytes = sum(r.arena_bytes for r in stack)
    bare, tokens = [], []
    for turn in range(2 * rounds):
        device.limit(stack_bytes + 64 * MIB)
        for r in stack:
            r.reload()
        began = time.perf_counter()
        for r in stack:
            r.offload()
        device.limit(burst.arena_bytes + WORKING_BYTES)
        granted = time.perf_counter()
        burst.reload()
        if turn % 2:
            with device.working(WORKING_BYTES // 2):
                first_token(device, model)
            tokens.append(time.perf_counter() - granted)
        burst.offload()
        device.limit(stack_bytes + 64 * MIB)
        for r in stack:
            r.reload()
        if not turn % 2:
            bare.append(time.perf_counter() - began)
        for r in stack:
            r.offload()
        device.limit(0)
    cycle = statistics.median(bare)
    out = [
        Figure(f"cycle with {spec.name}, no generation", cycle, "s"),
        Figure(f"{spec.name}: grant -> first token, {PROMPT} tokens of prompt", statistics.median(tokens) * 1e3, "ms"),
    ]
    if link:
        ideal = (burst.arena_bytes + stack_bytes) / link
        out.append(Figure.against(f"cycle with {spec.name}, beside bytes / link rate (<= 1.2)", cycle, "s", ideal))
    if link and full:
        for which, estimate in NAIVE_S.items():
            out.append(
                Figure.against(f"cycle with {spec.name}, beside the naive estimate's {which}", cycle, "s", estimate)
            )
    return out
