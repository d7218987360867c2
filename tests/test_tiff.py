"""TIFF and PNG files of every layout come out as they are meant, or are refused by name."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.mutants import encoded
from tests.tiffs import (
    BLACK_IS_ZERO,
    CMYK,
    DEFLATE,
    LAB,
    PACKBITS,
    PALETTE,
    RGB,
    WHITE_IS_ZERO,
    png,
    tiff,
)
from vitc.data.check import check
from vitc.data.check_images import BROKEN
from vitc.data.config import DataConfig
from vitc.data.dataset import open_data
from vitc.data.decode import header, read_image, read_opened, to_channels
from vitc.data.pack import PackOptions, pack
from vitc.deploy.predict import _pixels
from vitc.errors import BrokenFileError
from vitc.machine import install_line

Pixels = NDArray[np.uint8]
SHAPE = (23, 33)  # no multiple of 8, of a strip or of a tile
PREMULTIPLIED, OPACITY = {338: [1]}, {338: [2]}


def ramp(channels: int) -> NDArray[np.float64]:
    """Values 0 ... 1, (H, W, C), different in each channel."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    every = x / x.max(), y / y.max(), (x + y) / (x + y).max(), (3 * x + y) % 33 / 32, x * y % 7 / 6
    return np.stack(every[:channels], axis=-1)


def samples(channels: int, bits: int) -> NDArray[Any]:
    kind = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    return np.rint(ramp(channels) * (2**bits - 1)).astype(kind)


def expected(stored: NDArray[Any], bits: int, photometric: int, tags: dict[int, Any]) -> Pixels:
    """uint8 (H, W, 3): by the definition of TIFF 6.0, transparency over white."""
    unit = stored / (2**bits - 1)
    if photometric == WHITE_IS_ZERO:
        unit[..., 0] = 1 - unit[..., 0]
    if photometric == CMYK:
        unit = (1 - unit[..., :3]) * (1 - unit[..., 3:])
    if 338 in tags:
        colours, opacity = unit[..., :-1], unit[..., -1:]
        unit = colours * (opacity if tags == OPACITY else 1) + 1 - opacity
    return np.broadcast_to(np.clip(unit, 0, 1) * 255, (*SHAPE, 3))


def close(seen: Pixels, right: NDArray[Any], to: float = 1.5) -> None:
    assert seen.shape == right.shape
    assert np.abs(seen - right.astype(float)).max() <= to


# Photometric interpretation, bits, channels, tags: of chunky files that need no other library.
BY_PILLOW: list[tuple[int, int, int, dict[int, Any]]] = [
    *((p, bits, 1, {}) for p in (WHITE_IS_ZERO, BLACK_IS_ZERO) for bits in (1, 2, 4, 8, 16)),
    (BLACK_IS_ZERO, 12, 1, {}),
    *((RGB, bits, 3, {}) for bits in (8, 16)),
    *((RGB, bits, 4, tags) for bits in (8, 16) for tags in (PREMULTIPLIED, OPACITY)),
    *((BLACK_IS_ZERO, 8, 2, tags) for tags in (PREMULTIPLIED, OPACITY)),
    *((CMYK, bits, 4, {}) for bits in (8, 16)),
]
WAYS = [{}, {"compression": DEFLATE}, {"compression": PACKBITS}, {"tile": 16}]


@pytest.mark.parametrize(("photometric", "bits", "channels", "tags"), BY_PILLOW)
def test_layouts_that_pillow_reads_right_need_no_other_library(
    photometric: int, bits: int, channels: int, tags: dict[int, Any], monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    stored = samples(channels, bits)
    if tags == PREMULTIPLIED:
        whole = 2**bits - 1
        stored[..., :-1] = (stored[..., :-1].astype(int) * stored[..., -1:] // whole).astype("u2")
    for way in WAYS:
        data = tiff(stored, photometric, bits, tags=tags, **way)  # type: ignore[arg-type]
        close(read_image(data, 3, "x"), expected(stored, bits, photometric, tags), 2.5)


RARE: list[tuple[int, int, int, dict[int, Any], bool]] = [
    *((BLACK_IS_ZERO, bits, 1, {}, False) for bits in (6, 10, 14)),
    *((RGB, bits, 3, {}, planar) for bits in (4, 10, 12) for planar in (False, True)),
    (RGB, 16, 3, {}, True),
    *((RGB, 16, 4, tags, True) for tags in (PREMULTIPLIED, OPACITY)),
    *((BLACK_IS_ZERO, 16, 2, tags, False) for tags in (PREMULTIPLIED, OPACITY)),
    (BLACK_IS_ZERO, 8, 2, OPACITY, True),
    (CMYK, 16, 4, {}, True),
]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("photometric", "bits", "channels", "tags", "planar"), RARE)
def test_rare_layouts_are_read_by_tifffile_or_refused_with_the_line_to_install_it(
    photometric: int,
    bits: int,
    channels: int,
    tags: dict[int, Any],
    planar: bool,
    order: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = samples(channels, bits)
    if tags == PREMULTIPLIED:
        whole = 2**bits - 1
        stored[..., :-1] = (stored[..., :-1].astype(int) * stored[..., -1:] // whole).astype("u2")
    data = tiff(stored, photometric, bits, tags=tags, planar=planar, order=order)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tifffile", None)
        with pytest.raises(BrokenFileError, match=rf"'scan\.tif'.*{bits}-bit") as error:
            read_image(data, 3, "scan.tif")
        assert error.value.kind == "unsupported"
        assert install_line("tiff") in str(error.value.hint)
    pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    right = expected(stored, bits, photometric, tags)
    for way in ({}, {"tile": 16}, {"compression": DEFLATE}):
        data = tiff(stored, photometric, bits, tags=tags, planar=planar, order=order, **way)  # type: ignore[arg-type]
        close(read_image(data, 3, "x"), right, 2.5)


def test_big_endian_and_64_bit_files() -> None:
    for bits, photometric in ((8, BLACK_IS_ZERO), (16, BLACK_IS_ZERO), (8, WHITE_IS_ZERO)):
        stored = samples(1, bits)
        data = tiff(stored, photometric, bits, order=">")
        close(read_image(data, 3, "x"), expected(stored, bits, photometric, {}))
    stored = samples(1, 16)
    for photometric in (BLACK_IS_ZERO, WHITE_IS_ZERO):
        data = tiff(stored, photometric, 16, big=True)
        close(read_image(data, 3, "x"), expected(stored, 16, photometric, {}))
    with pytest.raises(BrokenFileError, match="BigTIFF in big-endian"):
        read_image(tiff(stored, BLACK_IS_ZERO, 16, big=True, order=">"), 3, "x")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_colour_maps_of_16_bits_and_those_of_8_that_some_programs_write(bits: int) -> None:
    colours = np.random.default_rng(bits).integers(1, 256, (3, 2**bits))
    index = samples(1, bits)
    right = colours.T[index[..., 0]]
    data = tiff(index, PALETTE, bits, tags={320: (colours * 257).ravel().tolist()})
    close(read_image(data, 3, "x"), right)
    pytest.importorskip("imagecodecs")
    data = tiff(index, PALETTE, bits, tags={320: colours.ravel().tolist()})
    close(read_image(data, 3, "x"), right)


def test_floats_in_0_1_of_any_depth() -> None:
    close(
        read_image(tiff(ramp(1).astype("f4"), BLACK_IS_ZERO, 32), 3, "x"), ramp(1) * [[[255] * 3]]
    )
    pytest.importorskip("imagecodecs")
    for kind in ("f2", "f4", "f8"):
        bits = 8 * np.dtype(kind).itemsize
        data = tiff(ramp(3).astype(kind), RGB, bits)
        close(read_image(data, 3, "x"), ramp(3) * 255)
        with pytest.raises(BrokenFileError, match=r"not in 0 … 1"):
            read_image(tiff((ramp(3) * 255).astype(kind), RGB, bits), 3, "x")


UNREADABLE = [
    (tiff(samples(3, 8), LAB, 8), "CIELAB"),
    (tiff(samples(1, 32), BLACK_IS_ZERO, 32), "32-bit integers"),
    (tiff(samples(1, 16).astype(np.int16), BLACK_IS_ZERO, 16), "signed"),
    (tiff(samples(1, 8).astype(np.int8), BLACK_IS_ZERO, 8), "signed"),
    (tiff(samples(1, 12), WHITE_IS_ZERO, 12), "white is 0"),
    (tiff(samples(5, 8), CMYK, 8, tags=OPACITY), "extra"),
    (tiff(samples(5, 8), RGB, 8, tags={338: [2, 0]}), "extra"),
    (tiff(samples(5, 8), RGB, 8), "5 channels"),
]


@pytest.mark.parametrize(("data", "why"), UNREADABLE)
def test_layouts_without_one_agreed_picture_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(BrokenFileError, match=rf"'scan\.tif'.*{why}") as error:
        read_image(data, 3, "scan.tif")
    assert error.value.kind == "unsupported"
    assert "Convert it" in str(error.value.hint)


def test_an_extra_channel_of_unspecified_meaning_must_be_opaque() -> None:
    pytest.importorskip("imagecodecs")
    stored = samples(4, 8)
    with pytest.raises(BrokenFileError, match="unspecified meaning"):
        read_image(tiff(stored, RGB, 8, tags={338: [0]}), 3, "x")
    stored[..., 3] = 255
    close(read_image(tiff(stored, RGB, 8, tags={338: [0]}), 3, "x"), stored[..., :3])


def test_damaged_files_of_rare_layouts_are_refused_and_bombs_ask_for_no_memory() -> None:
    pytest.importorskip("imagecodecs")
    for way in ({}, {"compression": DEFLATE}, {"tile": 16}):
        data = tiff(samples(3, 16), RGB, 16, planar=True, **way)  # type: ignore[arg-type]
        whole = read_image(data, 3, "x")
        rng = np.random.default_rng(0)
        for _ in range(60):
            hurt = bytearray(data)
            hurt[int(rng.integers(8, len(data)))] ^= 1 << int(rng.integers(8))
            try:
                assert read_image(bytes(hurt), 3, "x").shape[2] == 3
            except BrokenFileError as error:
                assert "'x' cannot be used" in error.message  # noqa: PT017
        for cut in (10, len(data) // 2):
            with pytest.raises(BrokenFileError):
                read_image(data[:cut], 3, "x")
        assert whole.shape == (*SHAPE, 3)
    for size, why in ((60_000, "allowed"), (9_000, "missing|contradict|more than")):
        bomb = tiff(samples(3, 16), RGB, 16, planar=True, tags={256: [size], 257: [size]})
        with pytest.raises(BrokenFileError, match=why):
            read_image(bomb, 3, "x")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_door_turns_and_scales_alike(orientation: int, tmp_path: Path) -> None:
    tags = {274: [orientation]}
    cases = [
        tiff(samples(1, 16), WHITE_IS_ZERO, 16, tags=tags),
        tiff(samples(1, 16), BLACK_IS_ZERO, 16, tags=tags),
        tiff(samples(1, 12), BLACK_IS_ZERO, 12, tags=tags),
        tiff(samples(1, 8), BLACK_IS_ZERO, 8, tags=tags),
        tiff(samples(3, 8), RGB, 8, tags=tags),
    ]
    for i, data in enumerate(cases):
        file = tmp_path / f"{i}.tif"
        file.write_bytes(data)
        seen = read_image(data, 3, "x")
        stored = read_image(
            data.replace(b"\x12\1\3\0\1\0\0\0" + bytes([orientation]), b"\x12\1\3\0\1\0\0\0\1"),
            3,
            "x",
        )
        turned = stored.swapaxes(0, 1) if orientation > 4 else stored
        turned = turned[:: -1 if orientation in (3, 4, 7, 8) else 1]
        assert (seen == turned[:, :: -1 if orientation in (2, 3, 6, 7) else 1]).all()
        with Image.open(file) as lazily:
            assert (read_opened(lazily, 3, "x") == seen).all()
        with Image.open(file) as loaded:
            loaded.load()
            assert (read_opened(loaded, 3, "x") == seen).all()


def test_folders_tars_packs_and_the_predictor_read_the_same_pixels(tmp_path: Path) -> None:
    key = [(b"tRNS", b"\0\7")]
    rare = {
        "white.tif": tiff(samples(1, 16), WHITE_IS_ZERO, 16, tags={274: [6]}),
        "twelve.tif": tiff(samples(1, 12), BLACK_IS_ZERO, 12),
        "key.png": png(samples(1, 16), 0, 16, key),
    }
    right = {name: read_image(data, 3, name) for name, data in rare.items()}
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for name, data in rare.items():
            (tmp_path / "photos" / label / name).write_bytes(data)
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(tmp_path / "photos", arcname=".")
    whole = {"val_fraction": 0.0, "test_fraction": 0.0}
    folder = DataConfig(source="folder", path=str(tmp_path / "photos"), **whole)  # type: ignore[arg-type]
    pack(folder, tmp_path / "p.vitc", PackOptions(), workers=1)
    pack(folder, tmp_path / "raw.vitc", PackOptions(raw=True), workers=1)
    for source, path in (
        ("folder", "photos"),
        ("tar", "photos.tar"),
        ("packed", "p.vitc"),
        ("packed", "raw.vitc"),
    ):
        config = DataConfig(source=source, path=str(tmp_path / path), **whole)  # type: ignore[arg-type]
        split = open_data(config, 3).splits["train"]
        assert len(split) == 6
        for i, name in enumerate(split.names):
            assert (split.read(i, 3) == right[name.rpartition("/")[2]]).all(), (path, name)
    report = check(folder, workers=1)
    assert not (report.records["marks"] & BROKEN).any()
    for name, data in rare.items():
        with Image.open(io.BytesIO(data)) as opened:
            assert (_pixels(name, opened, 3) == right[name]).all()
        assert (_pixels(name, tmp_path / "photos" / "cat" / name, 3) == right[name]).all()


def test_what_pillow_loaded_wrongly_is_refused_and_its_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "planes.tif"
    file.write_bytes(tiff(samples(3, 16), RGB, 16, planar=True))
    with Image.open(file) as loaded:
        loaded.load()
        with pytest.raises(BrokenFileError, match="Pillow, which loaded it"):
            read_opened(loaded, 3, "x")
    pytest.importorskip("imagecodecs")
    with Image.open(file) as lazily:
        assert (read_opened(lazily, 3, "x") == read_image(file, 3, "x")).all()


def test_headers_of_rare_layouts() -> None:
    found = header(tiff(samples(3, 10), RGB, 10, tags={274: [6]}))
    assert found is not None
    assert (found.format, found.mode, found.height, found.width) == ("TIFF", "RGB", *SHAPE)
    assert (found.bits, found.orientation) == (10, 6)
    found = header(tiff(samples(1, 14), BLACK_IS_ZERO, 14))
    assert found is not None
    assert found.mode == "I;16"


# ------------------------------------------------------------------------------------------ PNG


@pytest.mark.parametrize(
    ("kind", "bits"), [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16)]
)
def test_the_transparent_colour_of_a_png_becomes_white_at_its_own_depth(
    kind: int, bits: int, tmp_path: Path
) -> None:
    stored = samples(3 if kind else 1, bits)
    key = stored[9, 20]
    chunks = [(b"tRNS", b"".join(int(k).to_bytes(2, "big") for k in key))]
    right = np.broadcast_to(stored / (2**bits - 1) * 255, (*SHAPE, 3)).copy()
    right[(stored == key).all(axis=2)] = 255
    data = png(stored, kind, bits, chunks)
    close(read_image(data, 3, "x"), right)
    if bits == 16:  # a value that differs in its lower byte alone is not transparent
        stored[0, 0] = key + 1
        right[0, 0] = (key + 1) / 257
        close(read_image(png(stored, kind, bits, chunks), 3, "x"), right)
    file = tmp_path / "a.png"
    file.write_bytes(data)
    with Image.open(file) as lazily:
        assert (read_opened(lazily, 3, "x") == read_image(data, 3, "x")).all()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_pngs_of_8_and_16_bits(kind: int, channels: int, bits: int) -> None:
    stored = samples(channels, bits)
    right = expected(stored, bits, RGB, OPACITY if channels in (2, 4) else {})
    close(read_image(png(stored, kind, bits), 3, "x"), right, 2)


# ---------------------------------------------------------------------------------- other kinds


def test_a_bmp_with_something_in_its_fourth_bytes_is_refused() -> None:
    rgba = np.dstack([np.rint(ramp(3) * 255), np.full(SHAPE, 255)]).astype(np.uint8)
    close(read_image(encoded(rgba, "BMP"), 3, "x"), rgba[..., :3])
    rgba[..., 3] = 0
    close(read_image(encoded(rgba, "BMP"), 3, "x"), rgba[..., :3])
    rgba[3:5, :, 3] = 99
    with pytest.raises(BrokenFileError, match="fourth bytes"):
        read_image(encoded(rgba, "BMP"), 3, "x")


def test_heic_is_read_where_its_plugin_is_and_otherwise_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disguised = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(BrokenFileError, match=r"'photo\.jpg'.*HEIC") as error:
            read_image(disguised, 3, "photo.jpg")
        assert install_line("heif") in str(error.value.hint)
    heif = pytest.importorskip("pillow_heif")
    with pytest.raises(BrokenFileError, match="damaged"):
        read_image(disguised, 3, "photo.jpg")
    for channels in (3, 4):
        smooth = np.rint(ramp(4)[..., [0, 1, 2, 1]] * 255).astype(np.uint8)[..., :channels]
        out = io.BytesIO()
        heif.from_pillow(Image.fromarray(smooth)).save(out, quality=100)
        seen = read_image(out.getvalue(), 3, "x")
        assert np.abs(seen.astype(int) - to_channels(smooth, 3)).mean() < 4
        found = header(out.getvalue())
        assert found is not None
        assert (found.format, found.height, found.width) == ("HEIF", *SHAPE)


def test_avif_is_read() -> None:
    smooth = np.rint(ramp(3) * 255).astype(np.uint8)
    seen = read_image(encoded(smooth, "AVIF", quality=95), 3, "photo.jpg")
    assert np.abs(seen.astype(int) - smooth).mean() < 6
