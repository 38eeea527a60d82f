"""A stand-in for the diarizer's two networks: windows of made-up voices that speak when a script says so. Pure.

A voice is a random vector, an embedding of it has noise; local speakers come in an order that changes with the window,
as they do in the real network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workers.voices import Voices
from workers.windows import FRAME, LEAD, LOCALS, WINDOW, Window

DIMENSION = 32
Script = Sequence[tuple[float, float, int]]  # (start_s, end_s, voice)
SECOND = 16_000


class StandInEars:
    def __init__(self, script: Script, seed: int = 1, noise: float = 0.5) -> None:
        chance = np.random.default_rng(seed)
        self.script, self.seed, self.noise = script, seed, noise
        voices = 1 + max(v for *_, v in script)
        self.voices = np.linalg.qr(chance.normal(size=(DIMENSION, DIMENSION)))[0][:voices]

    def hear(self, end: int, voices: Voices) -> Window:
        """The window that ends at sample `end`, embedded where `voices` wants it."""
        start = max(0, end - WINDOW)
        frames = max(0, (end - start) // FRAME - 3)
        first = start // FRAME + LEAD
        on = np.zeros((frames, len(self.voices)), np.bool_)
        for a, b, voice in self.script:
            on[max(0, round(a * SECOND / FRAME) - first) : max(0, round(b * SECOND / FRAME) - first), voice] = True
        chance = np.random.default_rng((self.seed, end))
        talking = np.flatnonzero(on.any(axis=0))
        order = chance.permutation(LOCALS)[: len(talking)]
        active = np.zeros((frames, LOCALS), np.bool_)
        active[:, order] = on[:, talking[: len(order)]]
        embeddings = np.full((LOCALS, DIMENSION), np.nan, np.float32)
        for local in voices.wants(start, active):
            who = talking[int(np.flatnonzero(order == local)[0])]
            vector = self.voices[who] + self.noise * chance.normal(size=DIMENSION) / np.sqrt(DIMENSION)
            embeddings[local] = vector / np.linalg.norm(vector)
        return Window(start, end - start, active, embeddings)
