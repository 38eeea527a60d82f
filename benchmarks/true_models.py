"""Models at their true size, built from configurations in code: nothing is downloaded; weights are what one fills in.

`Spec` says who holds a model and how it is built on `meta` or on the CPU; `Noise` fills its tensors. Needs torch and
transformers, no other package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn


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
