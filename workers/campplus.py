"""The network that makes a vector of a voice: CAM++, by 3D-Speaker's names for its parameters.

Wang et al. 2023, "CAM++: a fast and efficient network for speaker verification using context-aware masking": a
two-dimensional convolutional head over the spectrum, a time-delay network whose layers see all layers before them
("D-TDNN") and mask what they heard by its context, mean and standard deviation over time, one linear layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

MELS = 80
GROWTH = 32  # channels that a layer adds
BOTTLENECK = 128
CONTEXT = 100  # frames whose mean is a layer's local context
BLOCKS = ((12, 1), (24, 2), (16, 2))  # (layers, dilation)

Tensor = torch.Tensor


def normed(channels: int) -> nn.Sequential:
    """Batch norm, then the positive part."""
    layer = nn.Sequential()
    layer.add_module("batchnorm", nn.BatchNorm1d(channels))
    layer.add_module("relu", nn.ReLU())
    return layer


class Residual(nn.Module):
    """Two convolutions around which the input goes straight; `stride` is along frequency."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.Conv2d(channels, channels, 1, stride=(stride, 1), bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.shortcut(x))


class Head(nn.Module):
    """(batch, MELS, frames) -> (batch, channels x MELS / 8, frames)"""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = nn.Sequential(Residual(channels, 2), Residual(channels, 1))
        self.layer2 = nn.Sequential(Residual(channels, 2), Residual(channels, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.out = channels * MELS // 8

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x[:, None])))
        x = functional.relu(self.bn2(self.conv2(self.layer2(self.layer1(x)))))
        return x.flatten(1, 2)


class TimeDelay(nn.Module):
    """The first layer over time: halves the frames."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, out, 5, stride=2, padding=2, bias=False)
        self.nonlinear = normed(out)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.nonlinear(self.linear(x))
        return y


class Masked(nn.Module):
    """Context-aware masking: a convolution whose output is weighted by what is heard around it, and in all."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.linear_local = nn.Conv1d(BOTTLENECK, GROWTH, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(BOTTLENECK, BOTTLENECK // 2, 1)
        self.linear2 = nn.Conv1d(BOTTLENECK // 2, GROWTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[-1]
        near = functional.avg_pool1d(x, CONTEXT, CONTEXT, ceil_mode=True)
        near = near.repeat_interleave(CONTEXT, dim=-1)[..., :frames]
        context = x.mean(-1, keepdim=True) + near
        mask = torch.sigmoid(self.linear2(functional.relu(self.linear1(context))))
        y: Tensor = self.linear_local(x) * mask
        return y


class Layer(nn.Module):
    """One layer of a block."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.nonlinear1 = normed(channels)
        self.linear1 = nn.Conv1d(channels, BOTTLENECK, 1, bias=False)
        self.nonlinear2 = normed(BOTTLENECK)
        self.cam_layer = Masked(dilation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))
        return y


class Block(nn.Module):
    """Each layer hears what came in and what all before it made of it."""

    def __init__(self, layers: int, channels: int, dilation: int) -> None:
        super().__init__()
        for i in range(layers):
            self.add_module(f"tdnnd{i + 1}", Layer(channels + i * GROWTH, dilation))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = torch.cat([x, layer(x)], dim=1)
        return x


class Transit(nn.Module):
    """Halves the channels after a block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.nonlinear = normed(channels)
        self.linear = nn.Conv1d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.nonlinear(x))
        return y


class Statistics(nn.Module):
    """Mean and standard deviation over time."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(-1), x.std(-1, unbiased=True)], dim=-1)


class Dense(nn.Module):
    """The last layer: normalised, and with its sign; a positive part here would throw half of the vector away."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, out, 1, bias=False)
        self.nonlinear = nn.Sequential()
        self.nonlinear.add_module("batchnorm", nn.BatchNorm1d(out, affine=False))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.nonlinear(self.linear(x[..., None])[..., 0])
        return y


class CamPlusPlus(nn.Module):
    """(batch, frames, MELS): log energies less their mean over time -> (batch, dimension)"""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension
        self.head = Head()
        self.xvector = nn.Sequential()
        channels = BOTTLENECK
        self.xvector.add_module("tdnn", TimeDelay(self.head.out, channels))
        for i, (layers, dilation) in enumerate(BLOCKS, 1):
            self.xvector.add_module(f"block{i}", Block(layers, channels, dilation))
            channels += layers * GROWTH
            self.xvector.add_module(f"transit{i}", Transit(channels))
            channels //= 2
        self.xvector.add_module("out_nonlinear", normed(channels))
        self.xvector.add_module("stats", Statistics())
        self.xvector.add_module("dense", Dense(2 * channels, dimension))

    @classmethod
    def of(cls, tensors: dict[str, Any]) -> CamPlusPlus:
        """With these parameters. Raises KeyError or RuntimeError if they do not fit."""
        net = cls(len(tensors["xvector.dense.linear.weight"]))
        net.load_state_dict(tensors)
        return net.eval()

    def forward(self, features: Tensor) -> Tensor:
        y: Tensor = self.xvector(self.head(features.transpose(1, 2)))
        return y

    def working_bytes(self, frames: int) -> int:
        """Of one vector of so many frames: five maps of the head's first stage, or the widest block twice."""
        maps = 5 * self.head.conv1.out_channels * MELS
        return 4 * frames * max(maps, 2 * 1024)
