"""How large the diarizer's steps are, by how late it is and how late captions are. Pure.

Where a machine has too much to do, steps grow first and captions never suffer: fewer windows are heard, so that
speakers are told a little later and less exactly. Then the same audio may give other turns; with equal
`speakers.hop_s` and `speakers.longest_hop_s` it never does.
"""

from __future__ import annotations

from common.settings import SpeakerSettings


def stride(late_s: float, captions_late_s: float, s: SpeakerSettings) -> int:
    """Hops in one step: one more for each `busy_lag_s` that turns are late, or captions if they are later."""
    most = max(1, int(s.longest_hop_s / s.hop_s + 1e-6))
    return max(1, min(most, 1 + int(max(late_s, captions_late_s) / s.busy_lag_s)))


def note(strides: list[int], hop_s: float) -> str:
    """For people; empty when every stream is heard as finely as it should be."""
    most = max(strides, default=1)
    return f"diarization steps of {most * hop_s:g} s instead of {hop_s:g}: the machine is busy" if most > 1 else ""
