"""The weight file of a Core ML package, and values of fewer than eight bits.

"MIL blob storage", version 2, as coremltools writes it: a header of 64 bytes (uint32 count, uint32 version), then for each blob, aligned to 64 bytes,
a record of 64 bytes (uint32 0xDEADBEEF, uint32 type, uint64 bytes of data, uint64 offset of the data, uint64 unused bits at the end of the data)
and its data.  A program names the offset of the record.  Source: mlmodel/src/MILBlob/Blob in https://github.com/apple/coremltools.

Values of 1, 2, 3, 4 or 6 bits are packed without gaps, the first in the least significant bits of the first byte; one may span two bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketqa.errors import CorruptFolder

SENTINEL = 0xDEADBEEF
HEADER = np.dtype([("count", "<u4"), ("version", "<u4")])
RECORD = np.dtype([("sentinel", "<u4"), ("type", "<u4"), ("bytes", "<u8"), ("offset", "<u8"), ("unused_bits", "<u8")])
RECORD_TYPES = {
    "float16": 1,
    "float32": 2,
    "uint8": 3,
    "int8": 4,
    "int16": 6,
    "uint16": 7,
    "int4": 8,
    "uint1": 9,
    "uint2": 10,
    "uint4": 11,
    "uint3": 12,
    "uint6": 13,
    "int32": 14,
    "uint32": 15,
}
SUB_BYTE = {"uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6, "int4": 4}  # type -> bits; in memory one byte a value
GROUP = 3  # bytes: 24 bits hold a whole number of values of each of these widths


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """How values of a type are held in memory."""
    return np.dtype(("int8" if dtype.startswith("int") else "uint8") if dtype in SUB_BYTE else dtype)


def stored_bits(dtype: str) -> int:
    """Bits that one value takes in a file."""
    return SUB_BYTE.get(dtype, numpy_dtype(dtype).itemsize * 8)


def stored_bytes(dtype: str, count: int) -> int:
    """Bytes that `count` values take in a file."""
    return -(-count * stored_bits(dtype) // 8)


def unpack(packed: NDArray[np.uint8], dtype: str, count: int) -> NDArray[Any]:
    """The `count` values (count,) that lie in packed bytes."""
    bits = SUB_BYTE[dtype]
    groups = -(-len(packed) // GROUP)
    whole = np.zeros((groups, GROUP), np.uint32)
    whole.reshape(-1)[: len(packed)] = packed
    words = whole[:, 0] | whole[:, 1] << 8 | whole[:, 2] << 16  # (groups,) 24 bits each
    shifts = np.arange(0, 8 * GROUP, bits, dtype=np.uint32)  # (values a group,)
    values: NDArray[Any] = ((words[:, None] >> shifts) & (2**bits - 1)).astype(np.uint8).reshape(-1)[:count]  # (count,)
    if dtype.startswith("int"):  # two's complement
        values = values.astype(np.int8)
        values[values >= 2 ** (bits - 1)] -= 2**bits
    return values


class WeightFile:
    """A weight file as a memory map."""

    def __init__(self, path: Path) -> None:
        """Raises CorruptFolder where the file is no weight file of version 2."""
        self.path = path
        self._bytes = np.memmap(path, np.uint8, mode="r") if path.stat().st_size >= HEADER.itemsize else np.zeros(HEADER.itemsize, np.uint8)
        version = int(self._bytes[: HEADER.itemsize].view(HEADER)[0]["version"])
        if version != 2:
            raise CorruptFolder(f"{path}: expected weight storage of version 2, found {version}")

    def read(self, name: str, offset: int, dtype: str, count: int) -> NDArray[Any]:
        """Values (count,) of the blob whose record lies at `offset`.  Raises CorruptFolder naming the constant where the record says otherwise."""
        if offset + RECORD.itemsize > len(self._bytes):
            raise CorruptFolder(f"{self.path}: constant {name} lies at byte {offset}, beyond the end of the weight file")
        record = self._bytes[offset : offset + RECORD.itemsize].view(RECORD)[0]
        start, size = int(record["offset"]), int(record["bytes"])
        expected = stored_bytes(dtype, count)
        fits = size == expected and start + size <= len(self._bytes)
        if dtype in SUB_BYTE:
            fits = fits and int(record["unused_bits"]) == 8 * expected - count * SUB_BYTE[dtype]
        if record["sentinel"] != SENTINEL or record["type"] != RECORD_TYPES.get(dtype) or not fits:
            raise CorruptFolder(
                f"{self.path}: expected {expected} bytes of {dtype} for {name} at byte {offset} of the weight file, found another record"
            )
        data = self._bytes[start : start + size]
        return unpack(data, dtype, count) if dtype in SUB_BYTE else data.view(dtype)
