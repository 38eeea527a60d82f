"""`swapscribe units`: systemd units instead of the launcher. `common/cli.py` adds it.

What the settings leave open is decided now and written down: profile, folders. So units mean the same whoever starts
them, from wherever.
"""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from common.settings import ENV_PREFIX, UserError

if TYPE_CHECKING:
    from common.cli import Given


@click.command()
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path, file_okay=False), help="a file for each there")
@click.option("--user", metavar="NAME", help="who the processes run as (default: you)")
@click.pass_obj
def units(given: Given, out: Path | None, user: str | None) -> None:
    """Print systemd units for all processes of these settings, made from the table that the launcher reads.

    They are for the system's manager: swapscribe units --out /etc/systemd/system, then systemctl daemon-reload and
    systemctl enable --now swapscribe.target.
    """
    from common import auto, backlog, card, wire
    from common.units import Place
    from common.units import units as texts

    try:
        person = pwd.getpwnam(user) if user else pwd.getpwuid(os.getuid())
    except KeyError:
        raise UserError(f"--user {user}: no such user") from None
    settings = given.settings()
    more = [
        f"profile={auto.resolve(given.settings).name}",
        f"data_dir={settings.data}",
        f"model_cache={settings.cache}",
    ]
    config = ["--config", str(Path(given.config or "swapscribe.toml").absolute())]
    passed = [part for o in (*given.overrides, *more) for part in ("--set", o)]
    passed = [*(config if given.config or Path(config[1]).exists() else []), *passed]
    settings = given.settings(*more)
    settings.data.mkdir(parents=True, exist_ok=True)  # what may be written must be there
    if not wire.socket_dir(settings).is_relative_to(settings.data):
        raise UserError(f"{settings.data} is too long a path: sockets would be in a /tmp that units do not share")
    place = Place(
        python=sys.executable,
        folder=Path.cwd(),
        user=person.pw_name,
        uid=person.pw_uid,
        passed=tuple(passed),
        cuda=card.kind(settings) == "cuda",
    )
    files = texts(settings, place)
    if named := sorted(k for k in os.environ if k.startswith(ENV_PREFIX)):
        click.echo(f"swapscribe: {', '.join(named)}: units do not have your environment; use --set or a file", err=True)
    if not settings.source:
        click.echo("swapscribe: no [[source]] in the settings, so no unit captures anything", err=True)
    if out is None:
        click.echo("\n".join(f"# {name}\n{text}" for name, text in files.items()), nl=False)
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            backlog.replace_file(out / name, text.encode(), durable=False, mode=0o600)
    except OSError as e:
        raise UserError(f"--out {out}: {e.strerror}") from None
    click.echo(f"{len(files)} units in {out}, for you alone to read: --set may hold passwords", err=True)
