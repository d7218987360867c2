"""Tensors to disk and back, bit for bit: safetensors files, and the strides that they leave out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitc.errors import CheckpointError
from vitc.files import write_file
from vitc.wording import few, short

# Names of the safetensors format (https://github.com/huggingface/safetensors, "Format").
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def dtype_shape(tensor: Tensor) -> str:
    return f"{dtype_name(tensor)} {tuple(tensor.shape)}"


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file, one tensor in memory at a time; returns its SHA-256.

    The library's own writer makes files that only their owner can read, hides the disk's error
    number, and would have to be read back for the checksum.
    """
    names = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))  # keeps all aligned
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def chunks() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little")
        yield text
        for name in names:
            if tensors[name].numel():
                flat = tensors[name].detach().cpu().contiguous().reshape(-1)
                yield flat.view(torch.uint8).numpy().data

    return write_file(path, chunks())


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, its header checked by the library: tensors that fill the file exactly.

    Raises CheckpointError: damaged, or another kind of file.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (OSError, SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is cut short, damaged or not a safetensors file: {str(error)[:200]}.",
            "Copy or download it again.",
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file on CPU: views of the file, so not all of it in memory."""
    with opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


class Kind(NamedTuple):
    """What a tensor must share with another to take its values: shape, and sort of numbers."""

    shape: tuple[int, ...]
    numbers: str = ""

    def __str__(self) -> str:
        return f"{self.shape}{self.numbers}"


def kinds(tensors: Mapping[str, Tensor]) -> dict[str, Kind]:
    """The kind of each tensor of a state_dict."""
    found = {}
    for name, t in tensors.items():
        numbers = "" if t.is_floating_point() else " complex" if t.is_complex() else " integers"
        found[name] = Kind(tuple(t.shape), numbers)
    return found


def misfits(there: Mapping[str, object], here: Mapping[str, object]) -> str:
    """How the tensors of a file differ from a model's, by name and kind; empty: in nothing."""
    problems = {
        "missing": [name for name in here if name not in there],
        "unexpected": [short(name) for name in there if name not in here],
        "of another shape or type": [
            f"{name} ({there[name]} in the file, {kind} in the model)"
            for name, kind in here.items()
            if there.get(name, kind) != kind
        ],
    }
    return "; ".join(
        f"{len(names)} {what}: {few(names)}" for what, names in problems.items() if names
    )


def fill(target: Tensor, value: Tensor, stride: tuple[int, ...]) -> None:
    """Copy `value` into a parameter or buffer, which takes on the memory format it had."""
    if target.stride() != stride:
        target.data = torch.empty_strided(
            target.shape, stride, dtype=target.dtype, device=target.device
        )
    with torch.no_grad():
        target.copy_(value)


def row_major(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def is_dense(shape: torch.Size, stride: Sequence[int]) -> bool:
    """Whether the strides are a permutation of row-major ones: no gaps, nothing twice."""
    expected = 1
    for step, size in sorted((t, s) for s, t in zip(shape, stride, strict=True) if s != 1):
        if step != expected:
            return False
        expected *= size
    return True


def odd_strides(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The strides of the tensors that are not row-major, such as channels_last ones."""
    return {
        name: list(t.stride())
        for name, t in tensors.items()
        if t.stride() != row_major(t.shape) and is_dense(t.shape, t.stride())
    }
