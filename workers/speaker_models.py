"""The models of the diarizer: a window of sound in, who speaks when and how each of them sounds out. No stream here.

Two networks: one tells up to three speakers apart in ten seconds (segmentation-3.0, Bredin 2023, "pyannote.audio 2.1
speaker diarization pipeline"), one makes a vector of a voice (CAM++, Wang et al. 2023). The pieces of a generator are
what can be interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from workers.voices import Active, Floats, Window

T = TypeVar("T")
Pieces = Generator[None, None, T]
Wants = Callable[[int, Active], Sequence[int]]  # Voices.wants


class Ears:
    """FINAL signatures."""

    modules: Sequence[Any]  # torch modules, for residency; the device of their weights is where they are heard
    dimension: int  # of an embedding: 192 for CAM++

    def frames(self, samples: int) -> int:
        """Frames of a window of so many samples; frame i is about `start + (i + 2) * FRAME`."""
        raise NotImplementedError

    def hear(self, pcm: Floats, start: int, wants: Wants) -> Pieces[Window]:
        """`pcm`: at most WINDOW float32 samples in -1..1 from sample `start` of the stream. One piece is one network's
        forward: 60 ms and up to 200 ms on one core. Raises on nothing that sound can be."""
        raise NotImplementedError

    def embed(self, pcm: Floats) -> Pieces[Floats]:
        """A voiceprint of one speaker alone, any length: (dimension,), of unit length."""
        raise NotImplementedError

    def working_bytes(self) -> int:
        """Device memory of the largest piece beside the weights."""
        raise NotImplementedError

    def rehearse(self) -> Iterator[None]:
        """The largest pieces, on made-up sound."""
        raise NotImplementedError


def load(torch: Any, folder: Path) -> Ears:
    """FINAL. `folder`: of a model of task "diarization", as `models.available` returns it; `torch` from `_torch.set_up`."""
    raise NotImplementedError
