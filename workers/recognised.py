"""Whose voiceprint a speaker of a stream is. Pure: voices and prints in, names out, and none where there is a doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from common.voiceprints import Voiceprint
from workers.voices import Voice

LEAST_S = 6.0  # of speech: of less a voice is not known well enough
SURE = 0.6  # cosine from which two voices are one; those of different people are rarely above 0.5
APART = 0.15  # so much nearer than the next print


def recognised(voices: Sequence[Voice], prints: Sequence[Voiceprint], named: Mapping[str, str]) -> dict[str, str]:
    """Speaker -> name, of those that have none yet. A name is given to one speaker only: to the one who is nearest.

    A speaker whom a clustering found to be somebody else has no voice any more, and gives the name free.
    """
    taken = {named[v.speaker] for v in voices if v.speaker in named}
    free = [p for p in prints if p.name not in taken]
    best: dict[str, tuple[float, str]] = {}
    for voice in voices:
        if voice.seconds < LEAST_S or voice.speaker in named:
            continue
        near = sorted(
            ((float(np.dot(voice.centroid, np.array(p.embedding, np.float32))), p.name) for p in prints), reverse=True
        )
        if not near or near[0][0] < SURE or (len(near) > 1 and near[0][0] - near[1][0] < APART):
            continue
        cosine, name = near[0]
        if name in {p.name for p in free} and cosine > best.get(name, (0.0, ""))[0]:
            best[name] = (cosine, voice.speaker)
    return {speaker: name for name, (_, speaker) in best.items()}
