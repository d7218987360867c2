"""Which files does a tar hold, and where in it? Every size is checked before it is used.

(Python's tarfile read two of five members of a damaged file without an error.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from vitc.data.store import shown

BLOCK = 512
MAX_EXTENDED = 1 << 20  # bytes of a pax header or a long name


class Damaged(Exception):
    """Why a tar is refused, and what to do, if it is not the tar itself that is damaged."""

    def __init__(self, why: str, hint: str | None = None) -> None:
        super().__init__(why)
        self.hint = hint


_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"K": "a link with a long name",
}


def members(f: BinaryIO, length: int) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the content, its size) of every plain file (POSIX.1-2017 pax, 4.18; GNU).

    Raises Damaged.
    """
    at = 0
    long_name: str | None = None
    long_size: int | None = None
    while True:
        f.seek(at)
        block = f.read(BLOCK)
        if len(block) < BLOCK:
            if at == 0 or block:
                raise Damaged("it is cut off, or no tar file")
            return  # without the two zero blocks, as some writers leave it
        if not any(block):
            return
        name, size, kind = header(block)
        content = at + BLOCK
        if kind not in b"xgL":
            size = size if long_size is None else long_size
            name = name if long_name is None else long_name
        if content + size > length:
            raise Damaged(f"it is cut off, or the size {size:,} of {shown(name)!r} is wrong")
        at = content + -(-size // BLOCK) * BLOCK
        if kind in (b"x", b"g", b"L"):
            if size > MAX_EXTENDED:
                raise Damaged(f"a header of {size:,} bytes")
            raw = f.read(size)
            if kind == b"L":
                long_name = raw.rstrip(b"\0").decode("utf-8", "surrogateescape")
                continue
            values = _pax(raw)
            if values.keys() & {"linkpath", "GNU.sparse.major", "GNU.sparse.map"}:
                raise Damaged("it has links or sparse files")
            if kind == b"x":
                long_name = values.get("path", long_name)
                digits = values.get("size")
                if digits is not None:
                    if not re.fullmatch("[0-9]{1,20}", digits):
                        raise Damaged(f"a size of {digits[:40]!r}")
                    long_size = int(digits)
            elif values.keys() & {"path", "size"}:
                raise Damaged("a name or size for all its members at once")
            continue
        long_name = long_size = None
        if kind == b"5":
            _check_name(name.rstrip("/") or ".")
            continue
        if kind not in (b"0", b"\0", b"7"):
            what = _KINDS.get(kind, f"an entry of kind {kind!r}")
            raise Damaged(f"{shown(name)!r} is {what}")
        yield _check_name(name), content, size


def _check_name(name: str) -> str:
    """The name without a leading ./; refused where it would lead out of a folder."""
    while name.startswith("./"):
        name = name[2:]
    if not name or name.startswith("/") or ".." in re.split(r"[/\\]", name) or "\0" in name:
        raise Damaged(f"the name {shown(name)!r} leads outside")
    if "\\" in name:
        raise Damaged(
            f"the name {shown(name)!r} has a backslash", "Write the shards again, with / in names."
        )
    return name


def header(block: bytes) -> tuple[str, int, bytes]:
    """(name, size, kind) of a member."""
    if len(block) < BLOCK:
        raise Damaged("it is cut off")
    checksum = block[148:156].split(b"\0")[0].strip()
    total = sum(block) - sum(block[148:156]) + 8 * 32
    if not checksum.isdigit() or _octal(checksum) != total:
        raise Damaged("a header does not match its checksum, or it is no tar file")
    size = block[124:136]
    if size[0] & 0x80:  # GNU: base 256
        bytes_ = int.from_bytes(bytes([size[0] & 0x7F]) + size[1:], "big")
    else:
        bytes_ = _octal(size.split(b"\0")[0].strip() or b"0")
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    whole = prefix + b"/" + name if prefix else name
    return whole.decode("utf-8", "surrogateescape"), bytes_, block[156:157]


def _octal(digits: bytes) -> int:
    try:
        return int(digits, 8)
    except ValueError:
        raise Damaged("a header holds no numbers where they belong") from None


def _pax(raw: bytes) -> dict[str, str]:
    """The records `LENGTH KEY=VALUE\\n` of an extended header."""
    values = {}
    at = 0
    while at < len(raw) and raw[at : at + 1] != b"\0":
        match = re.compile(rb"(\d{1,7}) ").match(raw, at)
        if match is None or int(match[1]) <= len(match[0]):
            raise Damaged("a damaged extended header")
        record = raw[match.end() : at + int(match[1])]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise Damaged("a damaged extended header")
        values[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        at += int(match[1])
    return values
