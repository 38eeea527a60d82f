"""PROTOCOL.md says what messages.py does, and both sides of the wire tolerate what they do not know."""

from __future__ import annotations

import hashlib
import re
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import messages as m
from common import topology

DOC = (Path(m.__file__).parent / "PROTOCOL.md").read_text()
BASES = (m.Struct, m.Body, m.Request)
Fields = dict[str, tuple[str, str]]


def documented() -> dict[str, tuple[str | None, Fields]]:
    """Struct name -> (tag, field -> (type, default)), from the tables of the document."""
    out: dict[str, tuple[str | None, Fields]] = {}
    section = DOC.partition("\n## 7.")[2].partition("\n## 8.")[0]
    for part in section.split("\n### ")[1:]:
        head, _, text = part.partition("\n")
        name, _, tag = head.partition(" ")
        rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]*\S[^|]*) \|$", text, re.MULTILINE)
        tables = [line for line in text.splitlines() if line.startswith("|")]
        assert len(tables) == (len(rows) + 2 if rows else 0), f"{name}: a row of its table is malformed"
        out[name] = (tag.strip("`") or None, {field: (kind, default) for field, kind, default, _ in rows})
    return out


def written(kind: Any) -> str:
    """A Python type as PROTOCOL.md writes it."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return written(next(a for a in args if a is not type(None))) + "?"
    if args == (int, int) and origin is tuple:
        return "span"
    if origin is tuple:
        return f"[{written(args[0])}]"
    if origin is dict:
        return f"{{{written(args[0])}: {written(args[1])}}}"
    return "body" if kind is msgspec.Raw else str(kind.__name__)


def default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "—"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    plain = {"None": "nil", "True": "true", "False": "false", "''": '""', "()": "[]", "0.0": "0"}
    return plain.get(repr(value), repr(value))


def test_the_document_has_every_struct_and_no_other() -> None:
    assert set(documented()) == {c.__name__ for c in m.wire_types() if c not in BASES}


@pytest.mark.parametrize("cls", [c for c in m.wire_types() if c not in BASES], ids=lambda c: c.__name__)
def test_the_document_has_every_field_with_its_type_and_default(cls: type[msgspec.Struct]) -> None:
    tag, fields = documented()[cls.__name__]
    assert tag == cls.__struct_config__.tag
    assert fields == {f.encode_name: (written(f.type), default(f)) for f in msgspec.structs.fields(cls)}


def test_the_document_names_every_endpoint_and_limit() -> None:
    for endpoint in (*(e for r in topology.TABLE for e in r.binds), topology.LAUNCHER_ENDPOINT):
        name = endpoint.name + ("SOURCE" if endpoint.name.endswith("@") else "")
        tcp = "yes" if endpoint.may_be_tcp else "no"
        assert f"| `{name}` | {endpoint.pattern} | {tcp} |" in DOC
    assert f"`protocol` is {m.PROTOCOL}." in DOC
    assert f"below {m.PAGE_BYTES // 1024} KiB" in DOC
    assert f"over {m.APPEND_BYTES >> 20} MiB of events and state, or one of them over {m.EVENT_BYTES >> 20} MiB" in DOC


strings = st.text(max_size=20)
ints = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a wire type, built from its annotations."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    plain = {int: ints, str: strings, float: floats, bool: st.booleans(), bytes: st.binary(max_size=30)}
    if kind in plain:
        return plain[kind]
    if origin in (typing.Union, types.UnionType):
        return st.one_of([st.none() if a is type(None) else values(a) for a in args])
    if origin is tuple and args[-1] is Ellipsis:
        return st.lists(values(args[0]), max_size=4).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, args))
    if origin is dict:
        return st.dictionaries(values(args[0]), values(args[1]), max_size=4)
    if kind is msgspec.Raw:
        return bodies.map(m.raw)
    return st.builds(kind, **{f.name: values(f.type) for f in msgspec.structs.fields(kind)})


bodies = st.one_of([values(c) for c in m.BODIES.values()])


@pytest.mark.parametrize("cls", [c for c in m.wire_types() if c not in BASES], ids=lambda c: c.__name__)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_message_survives_the_wire(cls: type[msgspec.Struct], data: st.DataObject) -> None:
    sent = data.draw(values(cls))
    got = msgspec.msgpack.decode(m.encode(sent), type=cls)
    assert m.encode(got) == m.encode(sent)
    if cls is not m.Append:  # msgspec.Raw compares by identity
        assert got == sent


@pytest.mark.parametrize("cls", [c for c in m.wire_types() if c not in BASES], ids=lambda c: c.__name__)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_unknown_fields_are_skipped(cls: type[msgspec.Struct], data: st.DataObject) -> None:
    sent = data.draw(values(cls))
    more = msgspec.msgpack.decode(m.encode(sent)) | {"field_of_tomorrow": [1, {"x": None}]}
    assert m.encode(msgspec.msgpack.decode(m.encode(more), type=cls)) == m.encode(sent)


def event(body: bytes, kind: str) -> m.Event:
    return m.Event(seq=7, prev=3, stream="mic-1", kind=kind, producer="p", n=2, at_ns=2**60 + 1, body=body)


@settings(max_examples=200, deadline=None)
@given(body=bodies)
def test_the_body_of_an_event_is_decoded_by_its_kind(body: m.Body) -> None:
    kind = str(type(body).__struct_config__.tag)
    got = msgspec.msgpack.decode(m.encode(event(m.encode(body), kind)), type=m.Event)
    assert got.decode() == body
    assert next(iter(msgspec.msgpack.decode(got.body))) == "type"
    assert got.tombstone().decode() is None and got.tombstone().body == b""


def test_an_unknown_kind_is_skipped_but_counts_in_the_state_hash() -> None:
    body = m.encode({"type": "weather", "sky": "blue"})
    got = msgspec.msgpack.decode(m.encode(event(body, "weather")), type=m.Event)
    assert got.decode() is None
    line = f"7 3 mic-1 weather p 2 1152921504606846977 {hashlib.sha256(body).hexdigest()}\n"
    assert got.canonical() == line.encode()
    assert got.tombstone().canonical() == b"7 3 mic-1 weather p 2 1152921504606846977 purged\n"


@pytest.mark.parametrize("cls", [m.Append, m.Replay, m.StateHash, m.Purge], ids=lambda c: c.__name__)
def test_requests_carry_the_protocol_version(cls: type[m.Request]) -> None:
    assert {f.name: f.default for f in msgspec.structs.fields(cls)}["protocol"] == m.PROTOCOL
