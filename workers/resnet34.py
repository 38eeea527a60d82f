"""The network that makes a vector of a voice in pyannote's own pipelines: WeSpeaker's ResNet34, by their names.

Wang et al. 2023, "Wespeaker: a research and production oriented speaker embedding learning toolkit"; four stages of
residual blocks (He et al. 2016) over the spectrum, mean and standard deviation over time, one linear layer. Held
against pyannote.audio's class with random weights: its own come from the hub, which only users have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

MELS = 80
STAGES = ((32, 3), (64, 4), (128, 6), (256, 3))  # (channels, blocks)

Tensor = torch.Tensor


class Residual(nn.Module):
    """Two convolutions around which the input goes straight."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != out:
            self.shortcut.append(nn.Conv2d(channels, out, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.shortcut(x))


class ResNet34(nn.Module):
    """(batch, frames, MELS): log energies less their mean over time -> (batch, dimension)"""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension
        channels = STAGES[0][0]
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        for i, (out, blocks) in enumerate(STAGES):
            stage = nn.Sequential(Residual(channels, out, 2 if i else 1))
            stage.extend([Residual(out, out, 1) for _ in range(blocks - 1)])
            self.add_module(f"layer{i + 1}", stage)
            channels = out
        self.seg_1 = nn.Linear(2 * channels * MELS // 8, dimension)

    @classmethod
    def of(cls, tensors: dict[str, Any]) -> ResNet34:
        """With these parameters. Raises KeyError or RuntimeError if they do not fit."""
        own = {name.removeprefix("resnet."): tensor for name, tensor in tensors.items() if name.startswith("resnet.")}
        net = cls(len(own["seg_1.weight"]))
        net.load_state_dict(own)
        return net.eval()

    def forward(self, features: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(features.transpose(1, 2)[:, None])))
        for i in range(len(STAGES)):
            x = self.get_submodule(f"layer{i + 1}")(x)
        x = x.flatten(1, 2)
        y: Tensor = self.seg_1(torch.cat([x.mean(-1), x.std(-1, unbiased=True)], dim=-1))
        return y

    def working_bytes(self, frames: int) -> int:
        """Of one vector of so many frames: five maps of the first stage."""
        return 4 * frames * 5 * STAGES[0][0] * MELS
