"""What a day in the simulated world costs: measured where a start-up round left figures, else assumed, and said so.

In: settings, the catalogue of models, DATA/calibration.json, what a person gave. Out: `Costs`, and for each figure one
line for people: what it is, and whether it was measured, given or assumed.
"""

from __future__ import annotations

from typing import Any

import msgspec

from arbiter.view import GIB, gib
from common import models
from common.messages import UNDECODABLE
from common.settings import Settings, UserError

CONTEXT_BYTES = int(0.45 * GIB)  # CUDA context of a process, the upper end of what is known of them
WORDS = "tokens of transcript a second of speech"
# Working memory beside the weights, as parts of them or in bytes: the sums are the footprints of the mission's stack.
WORKING = {"transcriber": 2.7, "translator": 0.1, "summarizer": 0.05}
DIARIZER_WORKING = 3_000_000_000


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What a person may say about the machine; the defaults are assumptions about an RTX 5080 in a PCIe 4 slot."""

    card_mib: int = 0
    link_gb_s: float = 25.0
    memory_gb_s: float = 960.0  # of the card: the data sheet of an RTX 5080
    prefill_tflops: float = 40.0  # really reached in a prompt
    share_16: float = 0.4  # of the memory's speed reached when tokens are written one by one, weights in 16 bits
    share_4: float = 0.25  # and in 4 bits, which are widened on the way
    rtf: float = 0.05  # seconds of transcriber a second of speech, on top of
    decode_s: float = 0.2  # an utterance
    offload_ms: float = 40.0
    tokens_per_speech_s: float = 3.6


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """One worker on this card."""

    name: str
    lane: str
    weights_bytes: int
    want_bytes: int
    residue_bytes: int
    reload_s: float
    offload_s: float
    step_s: float


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    card_bytes: int
    sizes: tuple[Size, ...]
    prefill_s: float  # of a token
    token_s: float
    said: tuple[str, ...]  # where each figure is from


class _Measured(msgspec.Struct):
    """An entry of calibration.json, as `workers/calibration.py` writes it."""

    weights_bytes: int
    working_bytes: int
    reload_s: float
    reload_gb_s: float
    offload_s: float
    step_s: float
    residue_bytes: int = 0


def costs(settings: Settings, given: Given, told: frozenset[str], card_mib: int) -> Costs:
    """`told`: which of `given` a person really gave. The translator is there, whether or not a target is set."""
    if not (size_mib := given.card_mib or card_mib):
        raise UserError("how much memory has the card? this profile names none: --card-mib 16000")
    known = _calibrated(settings)
    wanted = [("transcriber", "live", settings.transcriber.model, "none")]
    if settings.speakers.enabled:
        wanted.append(("diarizer", "live", settings.speakers.model, "none"))
    wanted += [("translator", "live", name, "none") for name in settings.translate.models]
    wanted += [("summarizer", "burst", settings.summary.model, settings.summary.quantise)]
    said, by_worker = [], dict[str, list[Size]]()
    for worker, lane, name, quantise in wanted:
        size, line = _size(worker, lane, name, quantise, given, known)
        by_worker.setdefault(worker, []).append(size)
        said.append(line)
    sizes = [_together(found) for found in by_worker.values()]
    summary, four = models.model(settings.summary.model), settings.summary.quantise != "none"
    share = given.share_4 if four else given.share_16
    weights = summary.bytes * (models.NF4_SHARE if four else 1.0)
    prefill_s = summary.bytes / (given.prefill_tflops * 1e12)  # two operations a weight; two bytes a weight
    token_s = weights / (share * given.memory_gb_s * 1e9)
    words = {f: "given" if f in told else "assumed" for f in Given.__struct_fields__}
    said += [
        f"card: {size_mib} MiB, {words['card_mib'] if given.card_mib else 'of the profile'}",
        f"link: {given.link_gb_s:g} GB/s, {words['link_gb_s']}",
        f"prompt: {1 / prefill_s:.0f} tokens/s, from {given.prefill_tflops:g} TFLOPS, {words['prefill_tflops']}",
        f"answer: {1 / token_s:.0f} tokens/s, from {share:.0%} (assumed) of {given.memory_gb_s:g} GB/s, "
        f"{words['memory_gb_s']}",
        f"decoding: {given.decode_s:g} s an utterance and {given.rtf:g} s a second of speech, {words['rtf']}; "
        f"{given.tokens_per_speech_s:g} {WORDS}, {words['tokens_per_speech_s']}",
        "nothing is slowed down by what else is on the card, and a step is not cut into pieces: assumed",
    ]
    return Costs(
        card_bytes=size_mib * 2**20, sizes=tuple(sizes), prefill_s=prefill_s, token_s=token_s, said=tuple(said)
    )


def _together(models: list[Size]) -> Size:
    """Of a worker that holds several models."""
    weights, reload_s = sum(s.weights_bytes for s in models), sum(s.reload_s for s in models)
    most = max(models, key=lambda s: s.want_bytes - s.weights_bytes)  # one of them works at a time
    want_bytes = weights + most.want_bytes - most.weights_bytes
    return msgspec.structs.replace(most, weights_bytes=weights, want_bytes=want_bytes, reload_s=reload_s)


def _calibrated(settings: Settings) -> dict[str, _Measured]:
    path = settings.data / "calibration.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, _Measured])
    except FileNotFoundError:
        return {}
    except (OSError, *UNDECODABLE) as e:
        raise UserError(f"{path} cannot be read ({e}); remove it, it is measured again at the next start") from None


def _size(
    worker: str, lane: str, name: str, quantise: str, given: Given, known: dict[str, _Measured]
) -> tuple[Size, str]:
    model = models.model(name)
    sums = {model.sha256} - {""}
    for key, m in known.items():
        begins = key.split(" ", 1)[0]
        if begins == name or begins in sums:
            size: dict[str, Any] = {
                "weights_bytes": m.weights_bytes,
                "want_bytes": m.weights_bytes + m.working_bytes,
                "residue_bytes": m.residue_bytes,
                "reload_s": m.reload_s,
                "offload_s": m.offload_s,
                "step_s": m.step_s,
            }
            where = key.split(" · ")[1] if " · " in key else "?"
            line = f"{worker}: {name}, {gib(size['want_bytes'])}, reload {m.reload_s:.2f} s, measured on {where}"
            return Size(name=worker, lane=lane, **size), line
    weights = int(model.bytes * (models.NF4_SHARE if quantise != "none" else 1.0))
    working = DIARIZER_WORKING if worker == "diarizer" else int(WORKING[worker] * model.bytes)
    reload_s = 0.05 + weights / (given.link_gb_s * 1e9)
    line = (
        f"{worker}: {name}{'' if quantise == 'none' else ' ' + quantise}, {gib(weights)} of weights (catalogue) and "
        f"{gib(working)} to work with (assumed), reload {reload_s:.2f} s, offload {given.offload_ms:g} ms (assumed)"
    )
    return Size(
        name=worker,
        lane=lane,
        weights_bytes=weights,
        want_bytes=weights + working,
        residue_bytes=CONTEXT_BYTES,
        reload_s=reload_s,
        offload_s=given.offload_ms / 1000,
        step_s=0.3,
    ), line
