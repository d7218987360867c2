"""Weights files of strangers: what is wrong is said, nothing runs, no lie is allocated."""

from __future__ import annotations

import argparse
import io
import json
import os
import pathlib
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitc.errors import CheckpointError
from vitc.weights.files import read_weights_file

SD = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(7)}
FORMS = {"zip": True, "legacy": False}


def save(content: Any, path: Path, form: str = "zip") -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=FORMS[form])
    return path


def refused(path: Path, words: str) -> CheckpointError:
    with pytest.raises(CheckpointError, match=words) as caught:
        read_weights_file(path)
    assert str(path) in caught.value.message
    return caught.value


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pyth", ".bin", ".ckpt", ".pth.tar", ""])
def test_files_of_torch_save_are_read(tmp_path: Path, form: str, suffix: str) -> None:
    found = read_weights_file(save(SD, tmp_path / f"x{suffix}", form))
    assert found.content.keys() == SD.keys()
    assert all(torch.equal(found.content[n], SD[n]) for n in SD)
    assert len(found.sha256) == 64
    assert found.metadata == {}


def test_safetensors_are_read_with_their_metadata(tmp_path: Path) -> None:
    everything = SD | {
        "empty": torch.empty(0, 3),
        "half": torch.ones(3).half(),
        "yes": torch.tensor([True]),
    }
    save_file(everything, tmp_path / "x.safetensors", metadata={"made": "here"})
    found = read_weights_file(tmp_path / "x.safetensors")
    assert found.metadata == {"made": "here"}
    assert all(torch.equal(found.content[n], t) for n, t in everything.items())


@pytest.mark.parametrize("form", FORMS)
def test_containers_arguments_and_shared_storage_are_read(tmp_path: Path, form: str) -> None:
    whole = torch.arange(10.0)
    model = OrderedDict(SD) | {"part": whole[3:], "whole": whole}
    content = {"model": model, "args": argparse.Namespace(lr=0.1), "epoch": 3}
    found = read_weights_file(save(content, tmp_path / "x.pth", form)).content
    assert found["args"].lr == 0.1
    assert all(torch.equal(found["model"][name], model[name]) for name in model)


# -- what is not a weights file --------------------------------------------------------------------


def test_a_path_without_weights_names_what_is_beside_it(tmp_path: Path) -> None:
    save(SD, tmp_path / "model_best.pth")
    error = refused(tmp_path / "model_bset.pth", "no file.*Did you mean '.*model_best.pth'")
    assert "model_best.pth" in str(error.hint)
    assert "model_best.pth" in str(refused(tmp_path, "is a folder").hint)
    refused(tmp_path / "nowhere" / "x.pth", "no file")
    (tmp_path / "x.pth").touch()
    refused(tmp_path / "x.pth", "is empty")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_huge_file_that_is_none_is_refused_without_reading_it(tmp_path: Path, name: str) -> None:
    with open(tmp_path / name, "wb") as file:
        file.truncate(1 << 40)  # a hole: takes no disk, and an hour to read
    refused(tmp_path / name, "not a weights file")


def test_a_device_or_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "not a regular file")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>404", "is a text.*<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS"),
        (b"\x1f\x8b\x08 rest", "gzip"),
        (b"\x89HDF\r\n", "HDF5"),
        (pickle.dumps({"a": [1.0]}), "pickle that torch.save did not write"),
        (b"\x00\xff\xfe" * 100, "not a weights file"),
        (b"\x00" * 600, "not a weights file"),
        (b"\n\n", "is a text"),
    ],
)
def test_other_files_are_called_by_their_kind(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    refused(tmp_path / "x.pth", words)


@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_suffix_is_said_with_the_right_one(tmp_path: Path, form: str) -> None:
    path = save(SD, tmp_path / "x.safetensors", form)
    assert "x.pth" in str(
        refused(path, "has the suffix .safetensors, but is a file of torch.save").hint
    )
    save_file(SD, tmp_path / "y.pth")
    assert "y.safetensors" in str(refused(tmp_path / "y.pth", "is a safetensors file").hint)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_said_to_be(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    content = {f"t{i}": torch.randn(16, 16) for i in range(8)}
    save_file(content, path) if kind == "safetensors" else save(content, path, kind)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, "cut short")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_no_damage_makes_anything_but_a_clear_error(tmp_path: Path, kind: str) -> None:
    """Bytes changed all over the file: read, or refused in our words."""
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    content = {f"t{i}": torch.randn(3, 2) for i in range(3)}
    save_file(content, path) if kind == "safetensors" else save(content, path, kind)
    data = path.read_bytes()
    g = torch.Generator().manual_seed(0)
    refusals = 0
    for at in torch.randint(len(data), (150,), generator=g).tolist():
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1 :])
        try:
            read_weights_file(path)
        except CheckpointError:
            refusals += 1
    assert refusals > 10


# -- what would run --------------------------------------------------------------------------------


class Payload:
    """A pickle of this makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["alone", "beside", "as a name"])
def test_a_payload_never_runs(tmp_path: Path, form: str, place: str) -> None:
    mark = tmp_path / "ran"
    payload = Payload(mark)
    content: Any = {"alone": payload, "beside": SD | {"x": payload}, "as a name": {payload: 1}}[
        place
    ]
    error = refused(
        save(content, tmp_path / "x.pth", form), "would run posix.system. It was not run"
    )
    assert not mark.exists()
    assert "If you trust the file" in str(error.hint)
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert mark.exists()  # it is a real one


def test_a_payload_in_a_plain_pickle_never_runs(tmp_path: Path) -> None:
    for protocol in range(6):
        (tmp_path / "x.pth").write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol))
        with pytest.raises(CheckpointError):
            read_weights_file(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def test_a_program_of_torchscript_is_not_run(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"x/{name}", b"")
    refused(tmp_path / "x.pt", "TorchScript archive")


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_way_out_of_an_old_checkpoint_works_where_it_is_pasted(
    tmp_path: Path, form: str
) -> None:
    content = {
        "model_state": SD,
        "cfg": "VIT: {}",
        "epoch": 3,
        "folder": pathlib.PurePosixPath("x"),
    }
    path = save(content, tmp_path / "old model.pth", form)
    error = refused(path, "holds more than tensors: reading it would run pathlib.PurePosixPath")
    command = str(error.hint).splitlines()[-1].strip().replace("python -c", f"{sys.executable} -c")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    found = read_weights_file(tmp_path / "old model-plain.pth").content
    assert torch.equal(found["model_state"]["a.weight"], SD["a.weight"])
    assert (found["cfg"], found["epoch"]) == ("VIT: {}", 3)
    assert "folder" not in found


# -- what would fill the memory --------------------------------------------------------------------


def header_file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape: Any, begin: int, end: int, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry([1 << 39, 1 << 39], 0, 8)},
        {"a": entry([2], 0, 1 << 40)},
        {"a": entry([1 << 38], 0, 1 << 40)},
        {"a": entry([2], 0, 8), "b": entry([2], 0, 8)},
        {"a": entry([1], 4, 8)},
        {"a": entry([1], 0, 4)},
        {"a": entry([-1, -2], 0, 8)},
        {"a": entry([2], 0, 8, "Q99")},
        {"a": entry([8], 0, 8, "F8_E4M3")},
        {"a": 3},
        {"__metadata__": {"a": 3}},
        b"{" + b"[" * 50_000,
        b'{"a": NaN',
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any) -> None:
    refused(header_file(tmp_path / "x.safetensors", header, bytes(8)), "damaged|unsupported types")


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    refused(header_file(tmp_path / "x.safetensors", b"{}", length=1 << 30), "damaged")


class Lie:
    """A tensor that claims another shape and other strides than its 4 stored numbers have."""

    def __init__(self, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.shape, self.stride = shape, stride

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        storage = torch.storage.TypedStorage(
            wrap_storage=torch.randn(4).untyped_storage(), dtype=torch.float32, _internal=True
        )
        return torch._utils._rebuild_tensor_v2, (  # type: ignore[attr-defined]
            storage,
            0,
            self.shape,
            self.stride,
            False,
            OrderedDict(),
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("shape", "stride"),
    [((50_000, 50_000), (0, 0)), ((50_000, 50_000), (50_000, 1)), ((20_000, 2), (2, 1))],
)
def test_a_giant_made_of_little_is_refused(
    tmp_path: Path, form: str, nested: bool, shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    content: Any = {"a": Lie(shape, stride)}
    path = save({"model": content} if nested else content, tmp_path / "x.pth", form)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, "claims|damaged")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def repacked(path: Path, compression: int, **replaced: bytes) -> Path:
    """The archive with its entries compressed, or some of them replaced."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", compression) as new:
        for info in old.infolist():
            leaf = info.filename.rpartition("/")[2].replace(".", "_")
            new.writestr(info.filename, replaced.get(leaf, old.read(info)))
    path.write_bytes(out.getvalue())
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_bomb_is_refused_unopened(tmp_path: Path, compression: int) -> None:
    path = repacked(save(SD, tmp_path / "x.pth"), compression, data_pkl=bytes(30 << 20))
    assert path.stat().st_size < 1 << 20
    refused(path, "compressed entries")


def test_entries_that_overlap_are_refused(tmp_path: Path) -> None:
    path = save({"a": torch.randn(1000)}, tmp_path / "x.pth")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    at = data.index(b"PK\x01\x02", start)
    while at >= 0:  # every entry of the directory claims 4,000 bytes
        data[at + 20 : at + 28] = struct.pack("<II", 4000, 4000)
        at = data.find(b"PK\x01\x02", at + 4)
    path.write_bytes(bytes(data))
    refused(path, "take more than the file holds|cut short or damaged")


def test_a_zip_of_something_else_is_said(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "x.pth", "not one of torch.save")


@pytest.mark.parametrize("form", FORMS)
def test_sparse_and_empty_shells_are_refused(tmp_path: Path, form: str) -> None:
    sparse = torch.sparse_coo_tensor(
        torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (9, 9), check_invariants=True
    )
    shells: list[Tensor] = [sparse, torch.empty(1 << 40, device="meta")]
    for tensor in shells:
        refused(
            save({"a": tensor}, tmp_path / "x.pth", form),
            "not a dense tensor|more than tensors|damaged",
        )
