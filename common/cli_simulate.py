"""`swapscribe simulate`: what a day would be like, on simulated time. `common/cli.py` adds it.

The work is `python -m arbiter.simulate`, which knows its own options; this hands them on with the global ones.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from common.cli import Given


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def simulate(given: Given, options: tuple[str, ...]) -> NoReturn:
    """Hours of captions and minutes on simulated time: how late, how many swaps (--help lists its options)."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "arbiter.simulate", *given.passed(), *options])
