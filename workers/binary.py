"""Reads binary files of others field by field; used by the converters of downloaded models."""

from __future__ import annotations

import struct


class BadFile(Exception):
    """The file is not what it should be; the text says how."""


class Cursor:
    """Reads little-endian fields one after another; the end of the file in mid-field is a BadFile."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def bytes(self, n: int) -> memoryview:
        if n > len(self.data) - self.at:
            raise BadFile(f"it ends at byte {len(self.data)}, in the middle of a field: truncated")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, code: str) -> int:
        return int(struct.unpack("<" + code, self.bytes(struct.calcsize("<" + code)))[0])
