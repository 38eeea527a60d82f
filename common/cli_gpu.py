"""`swapscribe gpu ...`: who is on the GPU and why, and the orders a person may give. `common/cli.py` adds it.

Every order is a Command to the arbiter, answered Done or Refused in one line; sent twice it is carried out once.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

import click

from common.settings import Settings, UserError

if TYPE_CHECKING:
    from common import messages as m
    from common.cli import Given

ASK_S = 3.0
SWAP_S = 300.0  # a swap by hand waits for a whole burst


def ask(
    settings: Settings, verb: str, args: dict[str, str] | None = None, timeout_s: float = ASK_S
) -> m.Done | m.Refused | None:
    """Ask the arbiter; None when there is none, or it does not answer."""
    from common import messages as m
    from common import wire
    from common.process import holder

    if holder(wire.run_dir(settings), "arbiter") is None:
        return None  # nobody to wait for
    asker = wire.Requester(wire.ipc(settings, "arbiter"))
    try:
        answer = asker.request(m.Command(id=uuid.uuid4().hex, verb=verb, args=args or {}), timeout_s)
    except wire.Unreachable:
        return None
    finally:
        asker.close()
    return answer if isinstance(answer, m.Done | m.Refused) else None


def state(settings: Settings, timeout_s: float = ASK_S) -> m.GpuState | None:
    """The GPU as the arbiter sees it; None when it does not answer."""
    import msgspec

    from common import messages as m

    answer = ask(settings, "status", timeout_s=timeout_s)
    return msgspec.json.decode(answer.detail, type=m.GpuState) if isinstance(answer, m.Done) else None


def order(settings: Settings, verb: str, **args: str) -> str:
    """The detail of a Done. Raises UserError for everything else."""
    from common import messages as m

    answer = ask(settings, verb, args)
    if answer is None:
        raise UserError(no_arbiter(settings))
    if isinstance(answer, m.Refused):
        raise UserError(answer.reason)
    return answer.detail


def no_arbiter(settings: Settings) -> str:
    from common import wire
    from common.process import holder

    if pid := holder(wire.run_dir(settings), "arbiter"):
        return f"the arbiter (pid {pid}) does not answer; see its log: {settings.data / 'logs' / 'arbiter.log'}"
    return f"no arbiter runs in {settings.data}; start everything with: swapscribe run-all"


@click.group()
def gpu() -> None:
    """Who is on the GPU, and orders to the arbiter."""


@gpu.command("status")
@click.pass_obj
def gpu_status(given: Given) -> None:
    """The device, what is leased, who waits and why, measured swap times."""
    from common import gpu_text

    settings = given.settings()
    seen = state(settings)
    if seen is None:
        raise UserError(no_arbiter(settings))
    for line in gpu_text.lines(seen):
        click.echo(line)


@gpu.command()
@click.argument("worker")
@click.pass_obj
def evict(given: Given, worker: str) -> None:
    """Make a worker leave the GPU now, and stay away for 10 s."""
    click.echo(order(given.settings(), "evict", worker=worker))


@gpu.command()
@click.argument("worker")
@click.pass_obj
def pin(given: Given, worker: str) -> None:
    """Never make this worker leave, until it is unpinned."""
    click.echo(order(given.settings(), "pin", worker=worker))


@gpu.command()
@click.argument("worker")
@click.pass_obj
def unpin(given: Given, worker: str) -> None:
    """Let this worker be asked to leave again."""
    click.echo(order(given.settings(), "unpin", worker=worker))


@gpu.command()
@click.pass_obj
def swap(given: Given) -> None:
    """Serve the waiting burst now, or else swap everybody out and in again; prints what it took."""
    from common import messages as m

    settings = given.settings()
    click.echo(order(settings, "swap"))
    deadline = time.monotonic() + SWAP_S
    while time.monotonic() < deadline:
        answer = ask(settings, "swapped")
        if answer is None:
            raise UserError(no_arbiter(settings))
        if isinstance(answer, m.Done):
            click.echo(answer.detail)
            return
        if not answer.retry_after_s:
            raise UserError(answer.reason)
        time.sleep(answer.retry_after_s)
    raise UserError(f"the swap is still under way after {SWAP_S:.0f} s; see: swapscribe gpu status")
