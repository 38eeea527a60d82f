"""The mission's models at true size (DESIGN §1), with random weights: `benchmarks/swap.py --true-size`.

Built on `meta` from configurations in code, so that nothing is downloaded and no model is held twice; the arena is
filled from a seeded generator. Figures of swaps depend on sizes and counts of tensors only, not on what weights say.
Needs torch and transformers, no other package.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from figures import Figure
from torch import nn

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


class Spec(NamedTuple):
    """One model: who holds it, how it is built (on whatever device is current), and a first step."""

    name: str
    stack: bool  # of the live stack; else a summariser
    dtype: torch.dtype
    build: Callable[[float], nn.Module]


def whisper_turbo(scale: float) -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    return WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=some(51_866, scale, 1000),
            num_mel_bins=128,
            d_model=1280,
            encoder_layers=some(32, scale),
            decoder_layers=some(4, scale),
            encoder_attention_heads=20,
            decoder_attention_heads=20,
            encoder_ffn_dim=5120,
            decoder_ffn_dim=5120,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            decoder_start_token_id=0,
        )
    )


def m2m100(scale: float) -> nn.Module:
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    return M2M100ForConditionalGeneration(
        M2M100Config(
            vocab_size=some(128_112, scale, 1000),
            d_model=1024,
            encoder_layers=some(24, scale),
            decoder_layers=some(24, scale),
            encoder_ffn_dim=8192,
            decoder_ffn_dim=8192,
        )
    )


def qwen(hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int, tied: bool) -> Callable[..., nn.Module]:
    def build(scale: float) -> nn.Module:
        from transformers import Qwen2Config, Qwen2ForCausalLM

        return Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=some(vocab, scale, 1000),
                hidden_size=hidden,
                intermediate_size=inner,
                num_hidden_layers=some(layers, scale),
                num_attention_heads=heads,
                num_key_value_heads=kv,
                tie_word_embeddings=tied,
            )
        )

    return build


def llama(scale: float) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=some(128_256, scale, 1000),
            hidden_size=4096,
            intermediate_size=14_336,
            num_hidden_layers=some(32, scale),
            num_attention_heads=32,
            num_key_value_heads=8,
        )
    )


class DiarizerSized(nn.Module):
    """A stand-in with the kinds and sizes of tensors that pyannote's two models have (LSTM; convolutions and norms)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(60, 128, num_layers=4, bidirectional=True, batch_first=True)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(128, 128, 3), nn.BatchNorm2d(128), nn.ReLU()) for _ in range(45))
        )


SPECS = (
    Spec("Whisper turbo", True, torch.float32, whisper_turbo),
    Spec("M2M100 1.2B", True, torch.float32, m2m100),
    Spec("stand-in of pyannote's size", True, torch.float32, lambda _: DiarizerSized()),
    Spec("Qwen2-1.5B", False, torch.float16, qwen(1536, 8960, 28, 12, 2, 151_936, True)),
    Spec("Qwen2.5-7B", False, torch.float16, qwen(3584, 18_944, 28, 28, 4, 152_064, False)),
    Spec("Llama-3.1-8B", False, torch.float16, llama),
)


def some(n: int, scale: float, least: int = 1) -> int:
    return max(least, round(n * scale))


class Noise:
    """Fills tensors from one seeded block of small normal numbers: fast, finite, and not compressible to nothing."""

    def __init__(self) -> None:
        self.block = torch.randn(2**22, generator=torch.Generator().manual_seed(1)) * 0.02

    def __call__(self, name: str, tensor: torch.Tensor) -> None:
        if not tensor.is_floating_point():
            tensor.zero_()
            return
        flat = tensor.view(-1)
        for start in range(0, len(flat), len(self.block)):
            part = flat[start : start + len(self.block)]
            part.copy_(self.block[: len(part)])
        if "norm" in name and name.endswith("weight"):
            tensor.add_(1.0)
        if "running_var" in name or "inv_freq" in name:
            tensor.abs_().add_(1e-3)


def build(spec: Spec, scale: float, where: str) -> nn.Module:
    """The model with whatever is in its memory: initialising 8 * 10^9 numbers takes minutes."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # transformers before 5
        from transformers.modeling_utils import no_init_weights

    default = torch.get_default_dtype()
    torch.set_default_dtype(spec.dtype)
    try:
        with torch.device(where), no_init_weights():
            model = spec.build(scale).eval()
    finally:
        torch.set_default_dtype(default)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model


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
    if not cuda:
        from tests.torch_models import cure_torchaudio

        cure_torchaudio()
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
