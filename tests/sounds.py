"""Computed sounds in which nobody speaks, 30 s each: noises of three colours and many levels, tones, clicks, claps."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.speech import RATE, Samples

SECONDS = 30
N = SECONDS * RATE
Wave = np.ndarray[Any, np.dtype[np.float64]]  # (N,) in -1..1


def computed_sounds() -> dict[str, Samples]:
    """By name. The same ones at each call."""
    rng = np.random.default_rng(11)
    t = np.arange(N) / RATE
    white = rng.standard_normal(N)
    found: dict[str, Wave] = {"digital silence": np.zeros(N)}
    for level in (-60, -50, -40, -30, -20, -10):
        found[f"white noise {level} dBFS"] = at_level(white, level)
        found[f"pink noise {level} dBFS"] = at_level(coloured(white, 0.5), level)
        found[f"brown noise {level} dBFS"] = at_level(coloured(white, 1.0), level)
    found["mains hum 50 Hz"] = at_level(sum_of_sines(t, {50 * k: 1 / k for k in (1, 2, 3, 5, 7)}), -25)
    found["mains hum 60 Hz"] = at_level(sum_of_sines(t, {60 * k: 1 / k for k in (1, 2, 3, 5, 7)}), -25)
    found["tone 1 kHz"] = 0.3 * np.sin(2 * np.pi * 1000 * t)
    found["sweep 0.1 to 3.7 kHz"] = 0.3 * np.sin(2 * np.pi * (100 + 60 * t) * t)
    found["siren"] = 0.3 * np.sin(2 * np.pi * np.cumsum(700 + 300 * np.sin(np.pi * t)) / RATE)
    found["ringing tone"] = 0.2 * sum_of_sines(t, {440: 1, 480: 1}) * (t % 6 < 2)
    found["busy tone"] = 0.2 * sum_of_sines(t, {425: 1}) * (t % 1 < 0.5)
    found["DTMF"] = dtmf(rng, t)
    found["clicks"] = bursts(rng, count=80, decay=20, longest=200) * 0.5
    found["claps"] = at_level(bursts(rng, count=6000, decay=120, longest=800), -22)
    found["breathing"] = at_level(white * np.sin(2 * np.pi * 0.3 * t) ** 2, -35)
    return {name: np.rint(np.clip(wave, -1, 1) * 32767).astype(np.int16) for name, wave in found.items()}


def at_level(wave: Wave, dbfs: float) -> Wave:
    return wave / np.sqrt(np.square(wave).mean()) * 10 ** (dbfs / 20)


def coloured(white: Wave, power: float) -> Wave:
    """Amplitude falls with frequency to this power: 0.5 is pink, 1 is brown."""
    spectrum = np.fft.rfft(white)
    spectrum[1:] /= np.fft.rfftfreq(len(white), 1 / RATE)[1:] ** power
    spectrum[0] = 0
    return np.fft.irfft(spectrum, len(white))


def sum_of_sines(t: Wave, amplitudes: dict[int, float]) -> Wave:
    return np.sum([a * np.sin(2 * np.pi * hz * t) for hz, a in amplitudes.items()], axis=0)  # type: ignore[no-any-return]


def dtmf(rng: np.random.Generator, t: Wave) -> Wave:
    """A number dialled: two tones for 0.2 s, 0.2 s of rest."""
    wave = np.zeros(len(t))
    for start in np.arange(0, SECONDS, 0.4):
        key = (t >= start) & (t < start + 0.2)
        low, high = rng.choice([697, 770, 852, 941]), rng.choice([1209, 1336, 1477])
        wave[key] = 0.3 * sum_of_sines(t[key], {int(low): 1, int(high): 1})
    return wave


def bursts(rng: np.random.Generator, count: int, decay: float, longest: int) -> Wave:
    """Short noises that die away, at random places."""
    wave = np.zeros(N)
    shape = np.exp(-np.arange(longest) / decay)
    for at in rng.integers(0, N - longest, count):
        wave[at : at + longest] += shape * rng.standard_normal(longest) * rng.uniform(0.2, 1.0)
    return wave
