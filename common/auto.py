"""Which profile these settings mean on this machine: looks at the card, the store and, when asked to, the hub.

Only who starts the others asks (`run-all`, `doctor`, `models fetch auto`); the answer goes down as `profile=NAME`.
"""

from __future__ import annotations

from collections.abc import Callable

from common import card, models, nvml, profiles
from common.hub import Site
from common.settings import Settings


def resolve(load: Callable[..., Settings], ask_hub: bool = False, device: nvml.Device | None = None) -> profiles.Pick:
    """The profile, and why. `load(*more)` loads the settings with more overrides.

    Without `ask_hub` only models that are here count, and nothing is waited for but the driver (`device`: its answer,
    when it was asked already); with it, models that are missing cost one probe of at most 3 s.
    """
    settings = load()
    if settings.profile != profiles.AUTO:
        return profiles.Pick(settings.profile, "as the settings say")
    mib, name = card_of(settings, device)
    missing: dict[str, tuple[str, ...]] = {}
    for n in profiles.fitting(mib):
        with_it = load(f"profile={n}")  # what a person set wins over the profile, so it may need other models
        # A profile is about captions: without the model that tells speakers apart it is the same one.
        needed = [name for name in models.needed(with_it) if name != with_it.speakers.model]
        missing[n] = models.missing(with_it, needed)
    hub = Site(models.default_hub()).unreachable() if ask_hub and missing and all(missing.values()) else None
    return profiles.pick(mib, name, missing, hub)


def card_of(settings: Settings, device: nvml.Device | None = None) -> tuple[int | None, str]:
    """(memory in MiB, name) of the CUDA card that would be used; (None, why there is none)."""
    if card.kind(settings) == "simulated":
        return None, "gpu.device is simulated" if settings.gpu.device == "simulated" else f"no CUDA: {card.no_cuda()}"
    found = device or nvml.read(settings.gpu.index)
    if not found.total_mib:
        return None, f"the card's memory cannot be read ({found.error})"
    return found.total_mib, found.name
