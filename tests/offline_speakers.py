"""pyannote's offline diarization, the yardstick of ours: its own pipeline on the weights that our diarizer has.

    Offline()(samples) -> [(start_s, end_s, speaker), ...]

SpeakerDiarization of pyannote.audio with segmentation-3.0, CAM++ as the embedding, and agglomerative clustering as in
its pipeline 3.1 but for the threshold, 0.7, which suits CAM++. Nothing of our workers is in it but the set-up of torch;
the networks are those of their authors.
"""

from __future__ import annotations

import warnings
from typing import Any

from benchmarks.scores import Turns
from common.settings import Settings
from tests.speech import RATE, Samples
from workers._torch import set_up, torchaudio_beside_cpu_torch

PARAMETERS = {
    "segmentation": {"min_duration_off": 0.0},
    "clustering": {"method": "centroid", "min_cluster_size": 12, "threshold": 0.7},
}


class Offline:
    def __init__(self, threads: int = 1) -> None:
        self._torch = set_up(threads, Settings().cache)
        torchaudio_beside_cpu_torch()
        with warnings.catch_warnings():  # about a decoder of audio files, which nobody needs
            warnings.simplefilter("ignore")
            from pyannote.audio.core.plda import PLDA
            from pyannote.audio.pipelines import SpeakerDiarization

            from tests.torch_models import campplus, segmentation

            self._pipeline = SpeakerDiarization(
                segmentation=segmentation().model,
                embedding=embedding_model(campplus().model),
                clustering="AgglomerativeClustering",
                embedding_exclude_overlap=True,
                plda=PLDA.__new__(PLDA),  # only another clustering uses it, and None is refused
            )
        self._pipeline.instantiate(PARAMETERS)

    def __call__(self, audio: Samples) -> Turns:
        waveform = self._torch.from_numpy(audio.astype("float32") / 32768)[None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = self._pipeline({"waveform": waveform, "sample_rate": RATE, "uri": "audio"}).speaker_diarization
        return [(segment.start, segment.end, who) for segment, _, who in out.itertracks(yield_label=True)]


def embedding_model(network: Any) -> Any:
    """CAM++ as pyannote wants an embedding: (batch, 1, samples) and weights (batch, frames) -> (batch, dimension)."""
    import torch
    from pyannote.audio import Model
    from torch.nn.functional import interpolate
    from torchaudio.compliance.kaldi import fbank

    least = 400 + 25 * 160  # samples of 25 frames

    class Embedding(Model):
        dimension = 192

        def __init__(self) -> None:
            super().__init__(sample_rate=RATE, num_channels=1)
            self.network = network

        def forward(self, waveforms: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
            out = waveforms.new_full((len(waveforms), self.dimension), torch.nan)
            for i, (sound,) in enumerate(waveforms):
                heard = sound
                if weights is not None:  # only where this speaker talks
                    where = interpolate(weights[i][None, None].float(), size=len(sound), mode="nearest")[0, 0]
                    heard = sound[where > 0.5]
                if len(heard) >= least:
                    bands = fbank(heard[None], num_mel_bins=80, sample_frequency=RATE, dither=0.0)
                    out[i] = self.network((bands - bands.mean(0))[None])[0]
                elif weights is None:
                    raise ValueError("too short")  # so that the pipeline learns what is long enough
            return out

    return Embedding().eval()
