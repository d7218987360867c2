"""How is a stranger's weights file read safely? No code runs, no size that it claims is believed.

    .safetensors                     by its library, which checks the header against the file's size
    .pt .pth .pyth .bin .ckpt .tar   PyTorch's zip archive, or its older form, both by torch's own
                                     restricted unpickler (weights_only)

Tensors of a safetensors file or a zip archive are views of the file: no memory until they are used.

A config from a stranger may ask for a model of terabytes, or of a billion blocks. `blueprint`
builds it without memory and compares it with the tensors of the file before anything of that size
is allocated or looped over: the model of a file is as large as that file.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import shlex
import stat
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from vitc.config import leaves
from vitc.errors import CheckpointError, VitcError, suggest_beside
from vitc.models.config import ModelConfig
from vitc.models.zoo import build_model
from vitc.runs.tensors import DTYPES, Kind, dtype_shape, kinds, misfits, opened
from vitc.wording import few, short

SAFETENSORS = (".safetensors",)
TORCH = (".pt", ".pth", ".pyth", ".bin", ".ckpt", ".tar")

COPY_AGAIN = "Copy or download it again."
PICKLE_LIMIT = 64 << 20  # bytes
ENTRIES_LIMIT = 100_000  # tensors in one file

_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number torch writes first


@dataclass(frozen=True, eq=False)
class WeightsFile:
    """What a weights file holds."""

    content: Any
    """As saved: tensors by name, or a dict with these somewhere in it."""
    metadata: dict[str, str]
    """The texts of a safetensors file; else empty."""
    sha256: str
    """Of the whole file, in hex."""


def read_weights_file(path: Path) -> WeightsFile:
    """Read a safetensors or PyTorch file; tensors on CPU, views of the file where they can be.

    Raises CheckpointError: none there (with its neighbours), a folder, empty, cut short, damaged,
    another kind of file, or not the kind of its suffix, one that would run code, one that claims
    more tensors than it holds.
    """
    _check_there(path)
    try:
        with open(path, "rb") as file:
            kind = _kind(path, file.read(512))
            if kind == "safetensors":
                content, metadata = _read_safetensors(path)
            else:
                if kind == "zip":
                    _check_archive(path)
                content, metadata = _load(path, mmap=kind == "zip"), {}
                _check_sizes(path, content)
            file.seek(0)  # hashed last, so that other large files are refused at once
            return WeightsFile(content, metadata, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


def _check_there(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise CheckpointError(
            f"There is no file {path}.{suggest_beside(path)}",
            _weights_beside(path.parent),
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if stat.S_ISDIR(status.st_mode):
        raise no_weights_in(path)
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a regular file.")
    if status.st_size == 0:
        raise CheckpointError(f"{path} is empty.", COPY_AGAIN)


def no_weights_in(folder: Path) -> CheckpointError:
    """The error for an unsupported folder, with the weights files in it."""
    return CheckpointError(
        f"{folder} is a folder, but neither a run nor a model saved by save_pretrained or timm.",
        _weights_beside(folder) or "Give a weights file, or a run's folder.",
    )


def _weights_beside(folder: Path) -> str | None:
    """The weights files in a folder, for a hint."""
    try:
        names = sorted(p.name for p in folder.iterdir() if p.suffix in (*SAFETENSORS, *TORCH))
    except OSError:
        return None
    return f"Weights files in {folder}: {', '.join(names[:8])}." if names else None


# -- which kind of file ----------------------------------------------------------------------------

_OTHER_KINDS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself; run git lfs pull"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras)"),
    (b"\x93NUMPY", "a numpy array"),
    (b"GGUF", "a GGUF file"),
    (b"\x80", "a Python pickle that torch.save did not write; reading one would run its code"),
)


def _kind(path: Path, start: bytes) -> str:
    """zip, legacy or safetensors, by content; the suffix must not contradict it."""
    if start.startswith(b"PK\x03\x04"):
        kind = "zip"
    elif start.startswith(_LEGACY_MAGIC):
        kind = "legacy"
    elif start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 40:
        kind = "safetensors"
    else:
        raise _not_weights(path, start)
    suffix = path.suffix.lower()
    if (kind == "safetensors" and suffix in TORCH) or (
        kind != "safetensors" and suffix in SAFETENSORS
    ):
        real = "a safetensors file" if kind == "safetensors" else "a file of torch.save"
        raise CheckpointError(
            f"{path} has the suffix {suffix}, but is {real}.",
            f"Rename it to {path.stem}{'.safetensors' if kind == 'safetensors' else '.pth'}.",
        )
    return kind


def _not_weights(path: Path, start: bytes) -> CheckpointError:
    for magic, what in _OTHER_KINDS:
        if start.startswith(magic):
            return CheckpointError(f"{path} is {what}.", _KINDS_HINT)
    if path.suffix.lower() in SAFETENSORS and len(start) < 16:
        return CheckpointError(f"{path} is cut short.", COPY_AGAIN)
    text = start.decode("utf-8", errors="replace")
    if b"\0" not in start and (start.isascii() or text.isprintable()):
        first = text.strip().splitlines()[0][:60] if text.strip() else ""
        return CheckpointError(
            f"{path} is a text file, not weights; it begins {first!r}.",
            "A failed download often leaves a web page under the file's name.",
        )
    return CheckpointError(
        f"{path} is not a weights file, or its beginning is damaged.", _KINDS_HINT
    )


_KINDS_HINT = "Weights are read from safetensors and from files of torch.save (.pt, .pth, .pyth)."

# -- safetensors -----------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    odd = [f"{n:.80} ({dtype_shape(t)})" for n, t in tensors.items() if t.dtype not in DTYPES]
    if odd:
        raise CheckpointError(f"{path} has unsupported types: {few(odd)}.")
    return tensors, metadata


# -- PyTorch ---------------------------------------------------------------------------------------


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that torch.save would not write: compressed, overlapping, a program."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise CheckpointError(f"{path} is cut short or damaged: {error}.", COPY_AGAIN) from error
    names = [entry.filename.partition("/")[2] for entry in entries]
    if "constants.pkl" in names or "code" in {name.partition("/")[0] for name in names}:
        raise CheckpointError(
            f"{path} is a TorchScript archive: a program, not only weights.",
            "If you trust it, save its state_dict() as a file of its own.",
        )
    if "data.pkl" not in names:
        raise CheckpointError(f"{path} is a zip archive, but not one of torch.save.", _KINDS_HINT)
    packed = [e for e in entries if e.compress_type != zipfile.ZIP_STORED]
    if packed or any(e.file_size != e.compress_size for e in entries):
        raise CheckpointError(
            f"{path} holds compressed entries ({(packed or entries)[0].filename:.80}); torch.save "
            f"never compresses, and they could unpack to any size."
        )
    if sum(e.file_size for e in entries) > size or len(entries) > ENTRIES_LIMIT:
        raise CheckpointError(f"{path} is damaged: its entries take more than the file holds.")
    for entry, name in zip(entries, names, strict=True):
        if name == "data.pkl" and entry.file_size > PICKLE_LIMIT:
            raise CheckpointError(
                f"{path} is damaged: a list of tensors of {entry.file_size} bytes."
            )


def _load(path: Path, mmap: bool) -> Any:
    """`torch.load` with weights_only: tensors and plain containers, and argparse's Namespace, which
    training scripts store and which only holds values."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        asked = re.search(r"(?:GLOBAL|Unsupported global: GLOBAL|class) ([\w.]+)", str(error))
        if asked is None and "Unsupported operand" not in str(error):
            raise _damaged(path, error) from error
        what = f"{asked[1]}" if asked else "more"
        raise CheckpointError(
            f"{path} holds more than tensors: reading it would run {what}. It was not run.",
            f"Ask its author for a safetensors file. If you trust the file, extract the tensors in "
            f"the environment that wrote it, and use the new file here:\n"
            f"  {_way_out(path)}",
        ) from error
    except (MemoryError, Exception) as error:  # a damaged pickle can fail in any way
        raise _damaged(path, error) from error


def _way_out(path: Path) -> str:
    """A command that saves the tensors and plain values of a trusted file; it runs what is in it.

    With torch alone: an old environment has no safetensors.
    """
    code = (
        "import sys, torch; "
        "new = 'weights_only' in torch.load.__code__.co_varnames; "
        "all = {'weights_only': False} if new else {}; "
        "c = torch.load(sys.argv[1], map_location='cpu', **all); "
        "c = c.state_dict() if hasattr(c, 'state_dict') else c; "
        "tensors = lambda d: {k: v for k, v in d.items() if torch.is_tensor(v)}; "
        "torch.save({k: tensors(v) if hasattr(v, 'items') else v for k, v in c.items() "
        "if hasattr(v, 'items') or torch.is_tensor(v) or type(v) in (str, int, float)}, "
        "sys.argv[2])"
    )
    return f'python -c "{code}" {shlex.quote(str(path))} {shlex.quote(path.stem + "-plain.pth")}'


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    return CheckpointError(f"{path} is cut short or damaged: {reason}", COPY_AGAIN)


def _check_sizes(path: Path, content: Any) -> None:
    """Refuse tensors that are larger than what is stored for them, or have no plain storage.

    A tensor may repeat stored numbers (strides of 0), and so be of any size; a storage may be
    allocated, untouched, before the older form of file is found not to fill it.
    """
    held: dict[int, int] = {}
    for name, tensor in _tensors_in(content):
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_quantized or tensor.is_nested:
            raise CheckpointError(
                f"{path}: {name:.80} is not a dense tensor (quantized, sparse or without content)."
            )
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise CheckpointError(
                f"{path}: {name:.80} claims the shape {tuple(tensor.shape)}, but the file stores "
                f"{storage.nbytes()} bytes for it."
            )
    if sum(held.values()) > path.stat().st_size:
        raise CheckpointError(f"{path} is damaged: it claims more tensors than it holds.")


def _tensors_in(content: Any) -> list[tuple[str, Tensor]]:
    """The tensors of a dict and of the dicts in it; deeper ones are never used."""
    found: list[tuple[str, Tensor]] = []
    for key, value in content.items() if isinstance(content, Mapping) else ():
        inner = value.items() if isinstance(value, Mapping) else ((key, value),)
        found += [(str(name), tensor) for name, tensor in inner if isinstance(tensor, Tensor)]
    return found


# -- a model for the tensors of a file ------------------------------------------------------------

SMALL = 1 << 16
"""An integer setting up to this needs no weights to justify it, such as the side of an image."""
SPARE = 64
"""Parameters a model may make and replace while it is built, beyond twice those it ends with."""
SAME_SAVE = "config.json and the weights must come from the same save."


def blueprint(
    config: ModelConfig, num_classes: int, there: Mapping[str, Kind], where: str
) -> nn.Module:
    """The model of `config` on the meta device, which fits the tensors `there` exactly.

    `where` names their file in messages. Raises CheckpointError: the config cannot work, or asks
    for another model than that of those tensors; ConfigError: timm is not installed, or a custom
    class is not trusted.
    """
    problems = config.problems()
    if problems:
        raise CheckpointError(
            f"{where}: the config of the model cannot work.\n"
            + few(map(short, problems), join="\n")
        )
    _check_integers(config, there, where)
    most = 2 * len(there) + SPARE
    try:
        with _at_most(most, where), torch.device("meta"):
            model = build_model(config, num_classes)
    except (RuntimeError, TypeError, ValueError, OverflowError, AttributeError) as error:
        if isinstance(error, VitcError):  # ConfigError is a ValueError
            raise
        raise CheckpointError(
            f"{where}: the model it asks for cannot be built: {short(str(error))}."
        ) from error
    problem = misfits(there, kinds(model.state_dict()))
    if problem:
        raise CheckpointError(
            f"{where}: the weights are not those of the model in the config. {problem}.", SAME_SAVE
        )
    return model


def _check_integers(config: ModelConfig, there: Mapping[str, Kind], where: str) -> None:
    """No integer of a config exceeds the number of its weights, or it is not these weights'."""
    most = max(SMALL, sum(prod(kind.shape) for kind in there.values()))
    for name, value in leaves(config, "model.").items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not abs(number) <= most:  # nan too
                raise CheckpointError(
                    f"{where}: with {name} {short(str(number))} the model is not that of these "
                    f"weights."
                )


@contextmanager
def _at_most(parameters: int, where: str) -> Iterator[None]:
    """Stop a build in this thread once it has made more than so many parameters."""
    made, thread = 0, threading.get_ident()

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal made
        made += threading.get_ident() == thread
        if made > parameters:
            raise CheckpointError(
                f"{where}: the config is that of a model with more tensors than the weights have.",
                SAME_SAVE,
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
