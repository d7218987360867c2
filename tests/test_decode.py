"""Every kind of picture comes out right, upright and whole, or is refused by name."""

from __future__ import annotations

import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from tests.batches import plan, scene
from tests.mutants import encoded, jpeg_bomb, photo, png_bomb
from vitc.data.augment.crop import eval_image, train_image
from vitc.data.config import AugmentConfig, DataConfig
from vitc.data.dataset import DataSet
from vitc.data.decode import (
    Box,
    crop_resize,
    examined,
    header,
    read_cut,
    read_image,
    read_opened,
    stated_size,
    to_channels,
)
from vitc.data.loader import open_eval, open_train
from vitc.data.sources.base import Split
from vitc.data.store import Files
from vitc.errors import BrokenFileError, ConfigError

Pixels = NDArray[np.uint8]


def distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).max())


# ---------------------------------------------------------------------------- kinds of pictures


def test_lossless_formats_return_the_very_pixels_and_jpegs_those_of_pillow() -> None:
    lossless = [encoded(scene(), kind) for kind in ("PNG", "BMP", "TIFF", "PPM")]
    lossless.append(encoded(scene(), "TIFF", compression="tiff_lzw"))
    lossless.append(encoded(scene(), "WEBP", lossless=True))
    for data in lossless:
        assert (read_image(data, 3, "x") == scene()).all()
    data = encoded(scene(), "JPEG", quality=90)
    assert (read_image(data, 3, "x") == np.asarray(Image.open(io.BytesIO(data)))).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_the_size_is_known_before_a_picture_is_decoded(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def loaded(image: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", loaded)
    data = encoded(scene(), kind)
    assert stated_size(data) == (kind, *scene().shape[:2])
    assert (found := header(data)) is not None
    assert (found.format, found.height, found.width) == (kind, *scene().shape[:2])
    assert stated_size(b"no image") is None


def test_grey_pictures_fill_all_three_channels() -> None:
    grey = scene()[..., 0]
    for kind in ("PNG", "BMP", "TIFF"):
        assert (read_image(encoded(grey, kind), 3, "x") == grey[..., None]).all()
    jpeg = encoded(grey, "JPEG", quality=95)
    assert read_image(jpeg, 3, "x").shape == (48, 64, 3)
    assert distance(read_image(jpeg, 1, "x")[..., 0], grey) < 12


def test_one_channel_is_the_luminance_of_pillow() -> None:
    expected = np.asarray(Image.fromarray(scene()).convert("L"))
    assert (read_image(encoded(scene(), "PNG"), 1, "x")[..., 0] == expected).all()
    jpeg = encoded(scene(), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(jpeg)).convert("L"))
    assert distance(read_image(jpeg, 1, "x")[..., 0], expected) <= 4  # the file's own Y


def test_transparent_parts_become_white_and_half_transparent_ones_half_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = (0, 128, 255)
    for kind in ("PNG", "TIFF"):
        seen = read_image(encoded(rgba, kind), 3, "x")
        assert seen.tolist() == [[[255, 255, 255], [227, 127, 127], [200, 0, 0]]]
    la = np.stack([np.full((2, 2), 100), np.array([[0, 255], [255, 0]])], -1).astype(np.uint8)
    assert read_image(encoded(la, "PNG"), 1, "x")[..., 0].tolist() == [[255, 100], [100, 255]]


def test_four_channels_keep_the_opacity_and_opaque_pictures_get_a_full_one() -> None:
    rgba = np.dstack([scene(), scene()[..., 1]])
    assert (read_image(encoded(rgba, "PNG"), 4, "x") == rgba).all()
    assert (read_image(encoded(scene(), "PNG"), 4, "x")[..., 3] == 255).all()
    assert (read_image(encoded(scene(), "JPEG"), 4, "x")[..., 3] == 255).all()


def test_palettes_are_looked_up_and_transparent_colours_become_white() -> None:
    palette = Image.frombytes("P", (2, 2), bytes([0, 1, 2, 1]))
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    for kind in ("PNG", "GIF", "BMP"):
        assert read_image(encoded(palette, kind), 3, "x").tolist() == expected
    one = encoded(palette, "PNG", transparency=1)  # one clear entry
    many = encoded(palette, "PNG", transparency=b"\xff\x00\xff")  # an opacity for each entry
    for data in (one, many, encoded(palette, "GIF", transparency=1)):
        seen = read_image(data, 3, "x").tolist()
        assert seen == [[[10, 20, 30], [255] * 3], [[70, 80, 90], [255] * 3]]
    data = encoded(Image.new("RGB", (2, 2), (9, 8, 7)), "PNG", transparency=(9, 8, 7))
    assert (read_image(data, 3, "x") == 255).all()


def test_one_bit_pictures_are_black_and_white() -> None:
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    for kind in ("PNG", "TIFF", "BMP"):
        assert read_image(encoded(bits, kind), 1, "x")[..., 0].tolist() == [[0, 255], [255, 0]]


def test_sixteen_bits_are_scaled_by_their_full_range() -> None:
    deep = np.array([[0, 128, 129, 257], [32768, 65406, 65407, 65535]], np.uint16)
    rounded = [[0, 0, 1, 1], [128, 254, 255, 255]]  # 257 steps of 16 bits to one of 8
    for kind in ("PNG", "TIFF", "PPM"):
        assert read_image(encoded(deep, kind), 1, "x")[..., 0].tolist() == rounded
    wide = Image.fromarray(deep.astype(np.int32))  # Pillow's own way of holding 16 bits
    assert read_opened(wide, 1, "x")[..., 0].tolist() == rounded
    with pytest.raises(BrokenFileError, match=r"'scan'.*-5 … 70,000"):
        read_opened(Image.fromarray(np.array([[-5, 70_000]], np.int32)), 3, "scan")
    with pytest.raises(BrokenFileError, match=r"'scan\.tif'.*no standard range"):
        read_image(encoded(wide, "TIFF"), 3, "scan.tif")


def test_floating_point_values_in_0_1_are_scaled_and_others_refused() -> None:
    unit = np.array([[0.0, 0.5, 1.0]], np.float32)
    assert read_image(encoded(unit, "TIFF"), 1, "x")[..., 0].tolist() == [[0, 128, 255]]
    for wrong in (unit * 255, unit - 1, unit * np.float32("nan")):
        with pytest.raises(BrokenFileError, match=r"not in 0 … 1"):
            read_image(encoded(wrong, "TIFF"), 3, "x")


def test_cmyk_comes_out_as_the_colours_one_sees() -> None:
    inks = Image.fromarray(scene()).convert("CMYK")
    tiff = read_image(encoded(inks, "TIFF"), 3, "x")
    assert distance(tiff, np.asarray(inks.convert("RGB"))) <= 1
    jpeg = encoded(inks, "JPEG", quality=98)  # Pillow writes Adobe's inverted inks
    assert b"Adobe" in jpeg
    seen = read_image(jpeg, 3, "x")
    assert distance(seen, np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))) <= 1
    assert distance(seen, scene()) < 30
    grey = read_image(jpeg, 1, "x")
    assert (grey == to_channels(seen, 1)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_the_camera_was_held(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        data = encoded(scene(), kind, exif=exif)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        seen = read_image(data, 3, "x")
        assert (found := header(data)) is not None
        assert found.orientation == orientation
        assert seen.flags.c_contiguous
        assert (seen == np.asarray(upright.convert("RGB"))).all()
        assert seen.shape == ((48, 64, 3) if orientation < 5 else (64, 48, 3))


def test_an_orientation_in_xmp_counts_and_damaged_exif_is_ignored() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>'
    assert read_image(encoded(scene(), "JPEG", xmp=xmp), 3, "x").shape == (64, 48, 3)
    data = encoded(scene(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    assert read_image(data, 3, "x").shape == (48, 64, 3)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (5, 4), c) for c in ("red", "green", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        first = read_image(data, 3, "x")
        assert first.shape == (4, 5, 3)
        assert distance(first, np.full((4, 5, 3), (255, 0, 0))) < 6


# -------------------------------------------------------------------------------- broken files


KINDS: dict[str, list[dict[str, Any]]] = {
    "JPEG": [{}, {"progressive": True}, {"subsampling": 0}],
    "TIFF": [{}, {"compression": "tiff_lzw"}],
    **{kind: [{}] for kind in ("PNG", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")},
}


@pytest.mark.parametrize(("kind", "options"), [(k, o) for k, every in KINDS.items() for o in every])
def test_a_truncated_file_is_refused_or_lacks_no_pixel(kind: str, options: dict[str, Any]) -> None:
    data = encoded(scene(), kind, **options)
    whole = read_image(data, 3, "x")
    messages = []
    for n in (1, 2, 3, 10, 30, len(data) // 4, len(data) // 2, len(data) * 9 // 10):
        try:  # only padding may be cut off
            assert (read_image(data[:-n], 3, "part.jpg") == whole).all()
        except BrokenFileError as error:
            messages.append(error.message)
    assert len(messages) >= 4
    assert all("part.jpg" in message for message in messages)


def test_a_jpeg_cut_short_and_closed_again_is_read_with_a_doubt() -> None:
    for ink in ("RGB", "L", "CMYK"):
        whole = encoded(Image.fromarray(scene(200, 300)).convert(ink), "JPEG")
        cut = whole[: len(whole) // 2] + b"\xff\xd9"
        seen, doubt = examined(cut, 3, "x")
        assert (seen == read_image(cut, 3, "x")).all()
        assert "premature end" in doubt
        assert examined(whole, 3, "x").doubt == ""
        with pytest.raises(BrokenFileError, match=r"damaged or incomplete"):
            read_image(whole[: len(whole) // 2], 3, "x")
    data = encoded(scene(), "JPEG")
    for extra, doubted in ((20, False), (5000, True)):  # before the end marker: padding if few
        padded = data[:-2] + bytes(extra) + b"\xff\xd9"
        with pytest.raises(ValueError, match="extraneous bytes"):
            simplejpeg.decode_jpeg(padded)
        seen, doubt = examined(padded, 3, "x")
        assert (seen == read_image(data, 3, "x")).all()
        assert ("extraneous bytes" in doubt) == doubted


def test_a_png_with_a_wrong_checksum_or_no_end_is_refused() -> None:
    data = encoded(scene(), "PNG")
    assert data.endswith(b"\0\0\0\0IEND\xaeB`\x82")
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4 : at], "big")
    flipped = bytearray(data)
    flipped[at + 4 + length] ^= 1
    for broken in (bytes(flipped), data[:-12]):
        with pytest.raises(BrokenFileError, match=r"checksum|truncated"):
            read_image(broken, 3, "x")


def test_jpegs_that_turbojpeg_cannot_describe_are_left_to_pillow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(scene(), "JPEG", exif=exif)
    expected = read_image(data, 3, "x")

    def unknown(*_: Any, **__: Any) -> None:
        raise KeyError(-1)  # what it does at an unusual sampling of the colours

    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", unknown)
    assert (read_image(data, 3, "x") == expected).all()
    with pytest.raises(BrokenFileError):
        read_image(data[: len(data) // 2], 3, "x")


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"hello", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0garbage" * 9, b"\x89PNG\r\n\x1a\n"),
        *(b"GIF89a", b"II*\0\x08\0\0\0", b"RIFF\0\0\0\0WEBPVP8 ", b"P6 2 2 255\n", b"\0" * 5000),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
)
def test_what_is_no_image_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(BrokenFileError, match=r"'notes\.jpg' cannot be used") as error:
        read_image(data, 3, "notes.jpg")
    assert error.value.hint is not None
    assert "--data.bad_files skip" in error.value.hint


def test_missing_empty_and_special_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    for name, why in (
        ("gone.png", "No such file"),
        ("empty.png", "empty"),
        ("pipe.png", "not a regular file"),
        (".", "not a regular file"),
    ):
        with pytest.raises(BrokenFileError, match=why):
            read_image(tmp_path / name, 3, name)


BOMB = jpeg_bomb(encoded(scene(), "JPEG"))


@pytest.mark.parametrize("data", [png_bomb(12_000, 12_000), png_bomb(60_000, 60_000), BOMB])
def test_decompression_bombs_are_refused_before_any_memory_is_asked_for(data: bytes) -> None:
    with pytest.raises(BrokenFileError, match=r"134,217,728 allowed"):
        read_image(data, 3, "bomb")


def test_a_large_photo_within_the_limit_raises_no_warning_of_pillows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # it warns of 3,072 pixels now
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (read_image(encoded(scene(), "PNG"), 3, "x") == scene()).all()


def test_many_threads_may_decode_at_once_and_the_warning_filters_survive() -> None:
    files = [encoded(scene(), "PNG"), encoded(scene(), "GIF"), encoded(scene(), "JPEG")] * 20
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        shapes = set(pool.map(lambda data: read_image(data, 3, "x").shape, files))
    assert shapes == {(48, 64, 3)}
    assert warnings.filters == before


# ------------------------------------------------------------------------------------- channels


def test_channels_convert_single_images_and_stacks_alike() -> None:
    stack = np.stack([scene(), scene()[::-1]])
    for have in (1, 3, 4):
        given = to_channels(stack, have)
        for want in (1, 3, 4):
            converted = to_channels(given, want)
            assert converted.shape == (2, 48, 64, want)
            assert (converted[1] == to_channels(given[1], want)).all()
    assert to_channels(stack, 3) is stack
    rgb = np.random.default_rng(0).integers(0, 256, (700, 600, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(rgb).convert("L"))
    assert (to_channels(rgb, 1)[..., 0] == expected).all()
    for in_chans in (0, 2, 5):
        with pytest.raises(ConfigError, match=r"1, 3 or 4"):
            to_channels(scene(), in_chans)


# ----------------------------------------------------------------------------------------- size


def test_crop_resize_copies_a_box_of_the_right_size_rounds_edges_and_stays_inside() -> None:
    seen = crop_resize(scene(), (8.0, 16.0, 32.0, 32.0), (32, 32))
    assert (seen.permute(1, 2, 0).numpy() == scene()[8:40, 16:48]).all()
    image = scene()
    for box in ((-5.0, -9.0, 300.0, 300.0), (0.4, 0.4, 47.3, 63.4)):
        assert (crop_resize(image, box, (48, 64)).permute(1, 2, 0).numpy() == image).all()
    corner = crop_resize(image, (47.9, 63.9, 0.01, 0.01), (4, 4))
    assert (corner.permute(1, 2, 0).numpy() == image[47, 63]).all()


def test_arrays_of_any_kind_resize_without_a_warning_and_antialiased() -> None:
    frozen = scene()
    frozen.setflags(write=False)
    shrunk = eval_image(frozen, (24, 24), "squash", 1.0)
    assert torch.equal(shrunk, eval_image(scene(), (24, 24), "squash", 1.0))
    mirrored = crop_resize(scene()[:, ::-1], (0, 0, 48, 64), (48, 64))
    assert (mirrored.permute(1, 2, 0).numpy() == scene()[:, ::-1]).all()
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    shrunk = eval_image(stripes, (16, 16), "squash", 1.0)
    assert ((shrunk > 110) & (shrunk < 145)).all()


# ------------------------------------------------------------------------------- smaller decoding


def cut_both_ways(data: bytes, box: Box, size: tuple[int, int], chans: int = 3) -> tuple[Any, Any]:
    """The cut as training takes it, and from the full decode: int16 (C, H, W) each."""
    quick = read_cut(data, chans, "x", lambda *_: box, size)
    full = crop_resize(read_image(data, chans, "x"), box, size)
    assert quick.shape == full.shape
    assert quick.dtype == torch.uint8
    return quick.to(torch.int16), full.to(torch.int16)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes (H, W) of the frames that JPEGs were decoded to."""
    sizes: list[tuple[int, int]] = []
    original = simplejpeg.decode_jpeg

    def spy(*args: Any, **options: Any) -> Pixels:
        pixels: Pixels = original(*args, **options)
        sizes.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    return sizes


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_scaled_decode_gives_the_cut_of_the_full_one_whatever_the_orientation(
    orientation: int, decoded: list[tuple[int, int]]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    boxes = ((0.0, 0.0, 301.0, 400.0), (33.3, 41.7, 205.4, 222.2), (101.0, 161.0, 200.0, 240.0))
    for seed, options in enumerate(
        ({"quality": 90}, {"quality": 75, "progressive": True}, {"quality": 95, "subsampling": 0})
    ):
        stored = (301, 403) if orientation < 5 else (403, 301)
        data = encoded(photo(*stored, seed), "JPEG", exif=exif, **options)
        for box in boxes:
            decoded.clear()
            quick, full = cut_both_ways(data, box, (64, 64))
            assert min(decoded[0]) < 301  # a smaller frame, and then all of it
            assert min(decoded[1]) == 301
            difference = (quick - full).abs().float()
            # 0.6 and 5 of 255; a box misplaced by part of a frame's pixel: 1.6 to 5, 15 to 37.
            assert difference.mean() < 1.0
            assert difference.quantile(0.999) < 8


def test_only_a_power_of_two_that_is_reached_shrinks_the_frame(
    decoded: list[tuple[int, int]],
) -> None:
    data = encoded(photo(259, 387, 0), "JPEG")
    frames = {130: (259, 387), 129: (130, 194), 65: (130, 194), 64: (65, 97), 32: (33, 49)}
    for side, frame in {**frames, 4: (33, 49)}.items():
        decoded.clear()
        read_cut(data, 3, "x", lambda h, w: (0, 0, h, w), (side, 60 if side > 64 else side))
        assert decoded == [frame]
    decoded.clear()
    read_cut(data, 3, "x", lambda h, w: (0, 0, 100, 100), (64, 64))  # of a box, not of the picture
    assert decoded == [(259, 387)]


@pytest.mark.parametrize("chans", [1, 3, 4])
def test_scaled_decoding_serves_all_channels_and_grey_files(chans: int) -> None:
    for image in (photo(200, 200, 3), photo(200, 200, 3)[..., 0]):
        quick, full = cut_both_ways(encoded(image, "JPEG"), (10, 20, 170, 160), (40, 40), chans)
        assert quick.shape == (chans, 40, 40)
        assert (quick - full).abs().float().mean() < 1.5


def test_what_cannot_be_scaled_is_cut_from_the_full_picture() -> None:
    box = (10.0, 20.0, 170.0, 160.0)
    image = photo(200, 200, 4)
    jpeg = encoded(image, "JPEG")
    irregular = jpeg[:-2] + bytes(20) + b"\xff\xd9"
    inks = encoded(Image.fromarray(image).convert("CMYK"), "JPEG")
    for data in (encoded(image, "PNG"), irregular, inks):
        quick, full = cut_both_ways(data, box, (40, 40))
        assert torch.equal(quick, full)
    with pytest.raises(BrokenFileError, match=r"'x\.jpg'.*damaged or incomplete"):
        read_cut(jpeg[: len(jpeg) // 2], 3, "x.jpg", lambda *_: box, (40, 40))
    with pytest.raises(BrokenFileError, match=r"134,217,728 allowed"):
        read_cut(BOMB, 3, "x.jpg", lambda *_: box, (40, 40))


def test_fit_pad_decodes_training_images_fully(decoded: list[tuple[int, int]]) -> None:
    config = DataConfig(fit="pad", augment=AugmentConfig(crop="random_resized", scale=(1.0, 1.0)))
    train_image(encoded(photo(512, 512, 5), "JPEG"), "x", 3, np.zeros(22), (64, 64), config)
    assert decoded == [(512, 512)]


def test_the_training_loader_decodes_at_a_fraction_and_the_evaluation_loader_fully(
    tmp_path: Path, decoded: list[tuple[int, int]]
) -> None:
    files = [tmp_path / f"{i}.jpg" for i in range(4)]
    for i, file in enumerate(files):
        file.write_bytes(encoded(photo(260, 260, i), "JPEG"))
    split = Split(
        np.arange(4) % 2, [f.name for f in files], store=Files(tmp_path, [f.name for f in files])
    )
    third = (1 / 3, 1 / 3, 1 / 3)
    data = DataSet("folder", ("a", "b"), {"train": split}, third, third, (), "")
    crop = AugmentConfig(crop="random_resized", scale=(0.9, 1.0))
    config = DataConfig(source="folder", path="x", workers=0, resident="off", augment=crop)
    four = plan(batch=4, size=(32, 32))
    cpu = torch.device("cpu")
    with open_train(data, config, four, cpu, 0, 1) as loader:
        list(loader)
    assert len(decoded) == 4
    assert max(decoded) < (260, 260)
    decoded.clear()
    list(open_eval(split, data, config, four, cpu, 4))
    assert decoded == [(260, 260)] * 4
