"""What profiles there are (`profiles.toml`) and what `auto` means here: pure, so that every process may ask.

A profile is a set of values for settings. `auto` is resolved once, by who starts the others (`run-all`, `doctor`,
`models fetch auto`), and handed down as `profile=NAME`; to a process that is started without that it means `embedded`.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

AUTO, EMBEDDED = "auto", "embedded"


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of profiles.toml."""

    doc: str
    settings: dict[str, dict[str, Any]] = {}
    card_mib: int = 0
    auto: bool = True  # may be picked by `auto`


class Pick(msgspec.Struct, frozen=True):
    """What `auto` came to, and why: a line for a person."""

    name: str
    why: str


@cache
def table() -> dict[str, Profile]:
    """All profiles by name, in the order of the file."""
    text = Path(__file__).with_name("profiles.toml").read_text()
    return msgspec.convert(tomllib.loads(text)["profile"], dict[str, Profile])


def names() -> tuple[str, ...]:
    """What the setting `profile` may be."""
    return (AUTO, *table())


def under(name: str, tree: dict[str, Any]) -> dict[str, Any]:
    """`tree` (what a person set) laid over the values of profile `name`. KeyError when there is no such profile."""
    return _over({} if name == AUTO else table()[name].settings, tree)


def _over(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    out = dict(low)
    for key, value in high.items():
        below = out.get(key)
        out[key] = _over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return out


def fitting(card_mib: int | None) -> list[str]:
    """Profiles that `auto` may pick on this card (None: no CUDA card), the largest first."""
    fit = [(p.card_mib, n) for n, p in table().items() if p.auto and p.card_mib and p.card_mib <= (card_mib or 0)]
    return [n for _, n in sorted(fit, reverse=True)]


def pick(card_mib: int | None, card: str, missing: dict[str, tuple[str, ...]], hub: str | None) -> Pick:
    """The profile for this machine.

    card_mib: memory of the CUDA device, None without one; `card` names it or says why there is none. missing: models
    of each fitting profile that are not in the store. hub: None when it was not asked (then only what is here counts),
    empty when it can be reached, else why not.
    """
    fit = fitting(card_mib)
    if not fit:
        least = min(p.card_mib for p in table().values() if p.card_mib)
        small = f"{card} has {card_mib} MiB, larger profiles need {least}" if card_mib else card
        return Pick(EMBEDDED, small)
    for name in fit:
        if not missing.get(name):
            return Pick(name, f"{card} has {card_mib} MiB, and its models are here")
    best = fit[0]
    lacking = f"{card} could run {best}, but {', '.join(missing[best])} {'is' if len(missing[best]) == 1 else 'are'}"
    get = f"swapscribe models fetch {best}"
    if hub is None:
        return Pick(EMBEDDED, f"{lacking} not here; to get that: {get}")
    if hub:
        return Pick(EMBEDDED, f"{lacking} not here and the hub cannot be reached ({hub}); when it can: {get}")
    return Pick(best, f"{card} has {card_mib} MiB, and the hub can be reached")
