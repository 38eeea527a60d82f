"""The models of the diarizer: a window of sound in, who speaks when and how each of them sounds out. No stream here.

Two networks: one tells up to three speakers apart in ten seconds (`pyannet`), one makes a vector of a voice
(`campplus`, or `resnet34` of pyannote's own pipelines, which hub users have). The pieces of a generator are what can be
interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from common.messages import SAMPLE_RATE
from common.settings import UserError
from workers.convert_speakers import EMBEDDING, SEGMENTATION
from workers.windows import LOCALS, WINDOW, Active, Floats, Window, alone

LEAST_SAMPLES = SAMPLE_RATE // 4  # shorter speech has no voice to the network
LEAST_WINDOW = SAMPLE_RATE // 4  # shorter windows have too few frames
VOICEPRINT = 10 * SAMPLE_RATE  # samples embedded at once for a voiceprint
INT16 = 32768.0

T = TypeVar("T")
Pieces = Generator[None, None, T]
Wants = Callable[[int, Active], Sequence[int]]  # Voices.wants


class Ears:
    """FINAL signatures. Both networks; `modules` are what residency packs and moves."""

    def __init__(self, torch: Any, segmentation: Any, embedding: Any, fbank: Any, scale: float) -> None:
        from workers import pyannet

        self._torch, self._pyannet, self._scale = torch, pyannet, scale
        self._segmentation, self._embedding, self._fbank = segmentation, embedding, fbank
        self._who = np.array(pyannet.who(segmentation.classifier.out_features), np.bool_)
        self.modules: Sequence[Any] = [segmentation, embedding, fbank]
        self.dimension: int = embedding.dimension  # of an embedding: 192 for CAM++

    def frames(self, samples: int) -> int:
        """Frames of a window of so many samples: what `Window.active` has of them."""
        return int(self._pyannet.frames_of(samples)) if samples >= LEAST_WINDOW else 0

    def hear(self, pcm: Floats, start: int, wants: Wants) -> Pieces[Window]:
        """`pcm`: at most WINDOW float32 samples in -1..1 from sample `start` of the stream. One piece is one network's
        forward: 60 ms and up to 200 ms on one core. Raises on nothing that sound can be."""
        active = np.zeros((self.frames(len(pcm)), LOCALS), np.bool_)
        embeddings = np.full((LOCALS, self.dimension), np.nan, np.float32)
        if len(active):
            classes = self._segmentation(self._moved(pcm)[None, None])[0].argmax(-1)
            active = self._who[classes.cpu().numpy()]
            for local in wants(start, active):
                yield
                speech = alone(pcm, active, local)
                if len(speech) >= LEAST_SAMPLES:
                    embeddings[local] = self._embedded(speech)
        return Window(start, len(pcm), active, embeddings)

    def embed(self, pcm: Floats) -> Pieces[Floats]:
        """A voiceprint of one speaker alone, any length: (dimension,), of unit length; nan where it is too short."""
        total = np.zeros(self.dimension, np.float32)
        for begin in range(0, max(1, len(pcm) - LEAST_SAMPLES + 1), VOICEPRINT):
            part = pcm[begin : begin + VOICEPRINT]
            if len(part) < LEAST_SAMPLES:
                return np.full(self.dimension, np.nan, np.float32)
            total += np.float32(len(part)) * self._embedded(part)
            yield
        unit: Floats = total / np.linalg.norm(total)
        return unit

    def _moved(self, sound: Floats) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(sound)).to(self._segmentation.classifier.weight.device)

    def _embedded(self, speech: Floats) -> Floats:
        bands = self._fbank(self._moved(speech) * self._scale)
        vector = self._embedding((bands - bands.mean(0))[None])[0].cpu().numpy()
        length = np.linalg.norm(vector)
        unit: Floats = vector / length if length > 0 else np.full_like(vector, np.nan)
        return unit

    def working_bytes(self) -> int:
        """Device memory of the largest piece beside the weights."""
        return int(self._embedding.working_bytes(1 + WINDOW // self._fbank.shift))

    def rehearse(self) -> Iterator[None]:
        """The largest pieces, on made-up sound."""
        sound = np.random.default_rng(7).normal(0.0, 0.1, WINDOW).astype(np.float32)
        self._segmentation(self._moved(sound)[None, None])
        yield
        self._embedded(sound)
        yield


def load(torch: Any, folder: Path) -> Ears:
    """FINAL. `folder`: of a model of task "diarization", as `models.available` gives it; `torch` of `_torch.set_up`."""
    from workers._torch import unfilled
    from workers.binary import BadFile
    from workers.campplus import CamPlusPlus
    from workers.fbank import Fbank
    from workers.pyannet import PyanNet
    from workers.resnet34 import ResNet34

    try:
        with unfilled(torch):
            if (folder / SEGMENTATION).exists():
                from safetensors.torch import load_file

                segmentation = PyanNet.of(load_file(folder / SEGMENTATION))
                return Ears(torch, segmentation, CamPlusPlus.of(load_file(folder / EMBEDDING)), Fbank("povey"), 1.0)
            from workers.checkpoints import tensors

            segmentation = PyanNet.of(tensors(folder / "segmentation" / "pytorch_model.bin"))
            embedding = ResNet34.of(tensors(folder / "embedding" / "pytorch_model.bin"))
            return Ears(torch, segmentation, embedding, Fbank("hamming"), INT16)
    except (BadFile, KeyError, RuntimeError, OSError) as e:
        raise UserError(f"{folder}: {str(e).splitlines()[0][:160]}: not networks that the diarizer knows") from None
