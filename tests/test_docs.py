"""The documents hold what the code says. `python -m tests.test_docs` writes the generated parts anew."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
import msgspec
import pytest

from common import messages as m
from common import topology, wire
from common.feed_client import Appender
from common.settings import Settings, Source
from tests.conftest import Processes, wait_for

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURE = ROOT / "docs" / "architecture.md"
README = ROOT / "README.md"
GUIDE, FIGURES = ROOT / "docs" / "guide.md", ROOT / "docs" / "figures.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->"


def bound(e: topology.Endpoint) -> str:
    name = e.name + "SOURCE" * e.name.endswith("@")
    return f"`{name}` {e.pattern}{', may be TCP' * e.may_be_tcp}: {e.doc}"


def table() -> str:
    """The table of processes as markdown."""
    lines = ["| process | module | what it does | reads | writes | binds | GPU | when the launcher dies |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for r in topology.TABLE:
        name = f"`{r.name}@SOURCE`, one per source" if r.per_source else f"`{r.name}`"
        binds = "; ".join(bound(e) for e in r.binds).replace("|", "\\|")
        fate = "lives on, is adopted" if r.survives_launcher else "ends with it"
        cells = [name, f"`{r.module}`", r.doc, ", ".join(r.reads), ", ".join(r.writes), binds or "-", r.gpu, fate]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


def picture(text: str) -> str:
    """The first fenced block."""
    return text.split("```")[1]


def test_the_table_in_architecture_is_the_table_of_the_code() -> None:
    text = ARCHITECTURE.read_text()
    assert text == with_table(text), "write it anew: python -m tests.test_docs"


def test_every_process_and_endpoint_is_in_the_picture() -> None:
    shown = picture(ARCHITECTURE.read_text())
    for r in topology.TABLE:
        assert re.search(rf"\b{r.name}\b", shown), r.name
        for e in r.binds:
            assert f"{e.pattern} {e.name}" in shown, f"{e.pattern} {e.name}"
    assert f"{topology.LAUNCHER_ENDPOINT.pattern} {topology.LAUNCHER_ENDPOINT.name}" in shown


def test_whatever_lies_in_common_has_been_decided() -> None:
    page = (ROOT / "docs" / "decisions" / "common-holds.md").read_text()
    for file in (ROOT / "common").glob("*.py"):
        assert file.name == "__init__.py" or re.search(rf"[ `]{file.name}[ `]", page), file.name


def test_links_between_documents_lead_somewhere() -> None:
    for page in [README, *(ROOT / "docs").rglob("*.md"), ROOT / "common" / "PROTOCOL.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_files_named_for_newcomers_exist() -> None:
    text = "\n".join(p.read_text() for p in (README, GUIDE, FIGURES))
    named = re.findall(r"\b(?:benchmarks|examples|workers|docs|common|tests)/[\w/-]+\.\w+", text)
    named += [f"benchmarks/{name}" for name in re.findall(r"^\|.*\| `(\w+\.py)", FIGURES.read_text(), re.M)]
    assert len(named) >= 40
    for name in named:
        assert (ROOT / name).exists(), name


def settings_paths(cls: type = Settings, prefix: str = "") -> dict[str, object]:
    """`section.key` -> default, for all settings."""
    out: dict[str, object] = {}
    for f in msgspec.structs.fields(cls):
        if isinstance(f.default, msgspec.Struct):
            out |= settings_paths(type(f.default), f"{prefix}{f.name}.")
        elif f.name == "source":
            out |= {f"source.{x.name}": x.default for x in msgspec.structs.fields(Source)}
        else:
            out[prefix + f.name] = f.default
    return out


def test_settings_of_the_guide_exist_with_the_defaults_given_there() -> None:
    known, rows = settings_paths(), 0
    for name, default in re.findall(r"^\| `([a-z_.]+)` \| `([^`]*)` \|", GUIDE.read_text(), re.M):
        assert name in known, name
        value = known[name]
        shown = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        assert shown == default, f"{name}: the code has {shown!r}"
        rows += 1
    assert rows >= 30


def test_settings_named_in_a_sentence_exist() -> None:
    known = settings_paths()
    sections = {name.partition(".")[0] for name in known if "." in name}
    for page in (README, GUIDE):
        for section, name in re.findall(r"[`'\s]([a-z_]+)\.([a-z_]+)(?=[`=])", page.read_text()):
            assert section not in sections or f"{section}.{name}" in known, f"{page.name}: {section}.{name}"


def test_commands_and_targets_named_in_the_documents_exist() -> None:
    from common.cli import cli

    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    pages = [README, *(ROOT / "docs").rglob("*.md"), ROOT / "common" / "PROTOCOL.md"]
    text = "\n".join(p.read_text() for p in pages)
    made = set(re.findall(r"\bmake ([a-z][a-z-]*)(?= W=|`|$|  )", text, re.M))
    assert {"run-all", "test"} <= made <= targets
    code = "\n".join(re.findall(r"`[^`\n]+`|^    .*", text, re.M))
    called = [c.split() for c in re.findall(r"\bswapscribe ([a-z][a-z-]*(?: [a-z][a-z-]*)?)", code)]
    assert called
    for words in called:
        command: click.Command | None = cli
        for word in words[:2]:
            if isinstance(command, click.Group):
                command = command.commands.get(word)
                assert command, f"swapscribe {' '.join(words)}"


@pytest.mark.processes
def test_the_subscriber_in_the_readme_prints_captions(processes: Processes, settings: Settings) -> None:
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.S)
    assert code and "ipc://data/run/pub" in code[1]
    processes.start("workers.feed")
    mine = code[1].replace("ipc://data/run/pub", wire.ipc(settings, "pub"))
    reader = processes.spawn([sys.executable, "-c", mine], "readme")
    said = m.Transcript(segment="s:8000", span=(8000, 24000), text="Hello, world.", language="en", model="stand-in")
    appender, n = Appender(settings, "test"), 0

    def heard() -> bool:  # its subscription takes a moment: say it until it is heard
        nonlocal n
        answer = appender.append("s", n, events=(said,), timeout_s=20.0)
        assert isinstance(answer, m.At)
        n = answer.n
        return "s 0.5 Hello, world." in reader.output()

    wait_for(heard, what="a caption printed by the README's program")
    appender.close()


if __name__ == "__main__":
    ARCHITECTURE.write_text(with_table(ARCHITECTURE.read_text()))
