"""The network that tells speakers apart in a window: PyanNet, by pyannote's names for its parameters.

SincNet filters (Ravanelli and Bengio 2018) with normalised max pooling, a bidirectional LSTM, two linear layers, and a
class for every set of at most two of three speakers ("powerset", Plaquet and Bredin 2023). Written here so that a
worker need not import pyannote.audio with its trainer: 250 MiB and seconds. Its output is pyannote's, bit for bit
(tests/test_speaker_models.py).
"""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

LOCALS = 3  # speakers of a window
AT_ONCE = 2  # of them, in one frame
STRIDE = 10
TAPS = 251
FILTERS = 80
KERNELS = ((TAPS, STRIDE), (3, 3), (5, 1), (3, 3), (5, 1), (3, 3))  # (length, stride) of what makes frames of samples
LEAST_SAMPLES = 991  # what one frame sees

Tensor = torch.Tensor


def frames_of(samples: int) -> int:
    """How many frames the network makes of so many samples."""
    n = samples
    for length, stride in KERNELS:
        n = 1 + (n - length) // stride
    return max(n, 0)


class SincFilters(nn.Module):
    """Band-pass filters that are given by two frequencies each: 40 even ones, then the same 40 odd."""

    def __init__(self, rate: int = 16_000, least_hz: float = 50.0) -> None:
        super().__init__()
        self.rate, self.least_hz = rate, least_hz
        half = TAPS // 2
        self.low_hz_ = nn.Parameter(torch.zeros(FILTERS // 2, 1))
        self.band_hz_ = nn.Parameter(torch.zeros(FILTERS // 2, 1))
        self.register_buffer("window_", torch.zeros(half))
        self.register_buffer("n_", torch.zeros(1, half))
        self.window_: Tensor
        self.n_: Tensor

    def forward(self) -> Tensor:
        """(FILTERS, 1, TAPS)"""
        low = self.least_hz + self.low_hz_.abs()
        high = torch.clamp(low + self.least_hz + self.band_hz_.abs(), self.least_hz, self.rate / 2)
        at_low, at_high = low @ self.n_, high @ self.n_
        width = (high - low)[:, 0]
        even = (at_high.sin() - at_low.sin()) / (self.n_ / 2) * self.window_
        odd = (at_low.cos() - at_high.cos()) / (self.n_ / 2) * self.window_
        middle = 2 * width[:, None]
        filters = torch.cat(
            [
                torch.cat([even, middle, even.flip(1)], dim=1) / middle,
                torch.cat([odd, torch.zeros_like(middle), -odd.flip(1)], dim=1) / middle,
            ]
        )
        return filters[:, None]


class Encoder(nn.Module):
    """The filters as a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.filterbank = SincFilters()

    def forward(self, sound: Tensor) -> Tensor:
        return functional.conv1d(sound, self.filterbank(), stride=STRIDE)


class SincNet(nn.Module):
    """(batch, 1, samples) -> (batch, 60, frames)"""

    def __init__(self) -> None:
        super().__init__()
        self.wav_norm1d = nn.InstanceNorm1d(1, affine=True)
        self.conv1d = nn.ModuleList([Encoder(), nn.Conv1d(FILTERS, 60, 5), nn.Conv1d(60, 60, 5)])
        self.norm1d = nn.ModuleList([nn.InstanceNorm1d(n, affine=True) for n in (FILTERS, 60, 60)])

    def forward(self, sound: Tensor) -> Tensor:
        x = self.wav_norm1d(sound)
        for i, (convolve, normalise) in enumerate(zip(self.conv1d, self.norm1d, strict=True)):
            x = convolve(x)
            x = functional.max_pool1d(x.abs() if i == 0 else x, 3)
            x = functional.leaky_relu(normalise(x))
        y: Tensor = x
        return y


class PyanNet(nn.Module):
    """(batch, 1, samples) -> (batch, frames, classes): log probabilities."""

    def __init__(self, layers: int, hidden: int, linear: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.sincnet = SincNet()
        self.lstm = nn.LSTM(60, hidden, layers, bidirectional=True, batch_first=True)
        sizes = [2 * hidden, *linear]
        self.linear = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(sizes)])
        self.classifier = nn.Linear(sizes[-1], classes)

    @classmethod
    def of(cls, tensors: dict[str, Any]) -> PyanNet:
        """With these parameters, which say its size. Raises KeyError or RuntimeError if they do not fit."""
        layers = sum(1 for name in tensors if name.startswith("lstm.weight_hh_l") and not name.endswith("_reverse"))
        linear: list[int] = []
        while f"linear.{len(linear)}.weight" in tensors:
            linear.append(len(tensors[f"linear.{len(linear)}.weight"]))
        hidden, classes = tensors["lstm.weight_hh_l0"].shape[1], len(tensors["classifier.weight"])
        net = cls(layers, hidden, tuple(linear), classes)
        net.load_state_dict(tensors)
        return net.eval()

    def forward(self, sound: Tensor) -> Tensor:
        x, _ = self.lstm(self.sincnet(sound).transpose(1, 2))
        for linear in self.linear:
            x = functional.leaky_relu(linear(x))
        y: Tensor = functional.log_softmax(self.classifier(x), dim=-1)
        return y


def who(classes: int) -> list[list[bool]]:
    """Which of the LOCALS speak in each class of the powerset: none, one, two."""
    sets = [set(s) for n in range(AT_ONCE + 1) for s in combinations(range(LOCALS), n)]
    if len(sets) != classes:
        raise ValueError(f"{classes} classes are not the sets of at most {AT_ONCE} of {LOCALS} speakers")
    return [[speaker in s for speaker in range(LOCALS)] for s in sets]
