"""Hundreds of files of every layout, each decoded as ImageMagick or libtiff does, or refused.

Needs `convert` (or `magick`) and `tiff2rgba`: Debian's packages imagemagick and libtiff-tools.
"""

from __future__ import annotations

import io
import itertools
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.mutants import photo
from tests.test_tiff import samples
from tests.tiffs import BLACK_IS_ZERO, CMYK, DEFLATE, NONE, PALETTE, RGB, WHITE_IS_ZERO, png, tiff
from vitc.data.decode import read_image, read_opened, to_channels
from vitc.errors import BrokenFileError

pytestmark = pytest.mark.slow
Pixels = NDArray[np.uint8]
EXTRA = {"": {}, "unspecified": {338: [0]}, "premultiplied": {338: [1]}, "opacity": {338: [2]}}
KINDS = (
    *((WHITE_IS_ZERO, 1, ""), (BLACK_IS_ZERO, 1, ""), (RGB, 3, ""), (CMYK, 4, "")),
    *((RGB, 4, extra) for extra in EXTRA),
    *((BLACK_IS_ZERO, 2, extra) for extra in EXTRA if extra),
)


def tiffs() -> Iterator[tuple[str, bytes]]:
    for (kind, channels, extra), bits, order, planar, tile, compression in itertools.product(
        KINDS, (1, 2, 4, 6, 8, 10, 12, 14, 16), "<>", (False, True), (0, 16), (NONE, DEFLATE)
    ):
        stored = samples(channels, bits)
        if (planar and channels == 1) or (kind != BLACK_IS_ZERO and 1 < bits < 4):
            continue
        if extra == "premultiplied":
            scaled = stored[..., :-1].astype(int) * stored[..., -1:] // (2**bits - 1)
            stored[..., :-1] = scaled.astype(stored.dtype)
        way: dict[str, Any] = {"order": order, "planar": planar, "tile": tile}
        name = f"{kind}-{channels}-{extra}-{bits}-{order}-{planar}-{tile}-{compression}.tif"
        data = tiff(stored, kind, bits, tags=EXTRA[extra], compression=compression, **way)
        yield name.replace("<", "II").replace(">", "MM"), data
    for orientation, bits in itertools.product(range(1, 9), (8, 12, 16)):
        data = tiff(samples(1, bits), BLACK_IS_ZERO, bits, tags={274: [orientation]})
        yield f"turned-{orientation}-{bits}.tif", data
    for bits in (1, 2, 4, 8):
        colours = np.random.default_rng(bits).integers(1, 256, 3 * 2**bits)
        for scale in (1, 257):
            tags = {320: (colours * scale).tolist()}
            yield f"map-{bits}-{scale}.tif", tiff(samples(1, bits), PALETTE, bits, tags=tags)


def pngs() -> Iterator[tuple[str, bytes]]:
    for (kind, channels), bits in itertools.product(
        ((0, 1), (2, 3), (4, 2), (6, 4)), (1, 2, 4, 8, 16)
    ):
        if kind and bits < 8:
            continue
        stored = samples(channels, bits)
        yield f"{kind}-{bits}.png", png(stored, kind, bits)
        if kind in (0, 2):
            key = b"".join(int(k).to_bytes(2, "big") for k in stored[9, 20])
            yield f"{kind}-{bits}-key.png", png(stored, kind, bits, [(b"tRNS", key)])


def saved() -> Iterator[tuple[str, bytes]]:
    """What Pillow writes: lossless kinds, JPEG in all its forms, animations."""
    colours = photo(40, 53, 1)
    clear = np.dstack([colours, np.indices((40, 53))[1].astype(np.uint8) * 4])
    image = Image.fromarray(colours)
    modes = {mode: image.convert(mode) for mode in ("RGB", "L", "1", "P", "CMYK", "YCbCr")}
    modes |= {"RGBA": Image.fromarray(clear), "LA": Image.fromarray(clear).convert("LA")}
    compressions = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4", "lzma")
    ways: list[tuple[str, dict[str, Any]]] = [
        *(("tif", {"compression": c}) for c in compressions),
        *((kind, {}) for kind in ("jpg", "png", "gif", "bmp", "ppm", "jp2")),
        ("webp", {"lossless": True}),
        *(("jpg", {"subsampling": s}) for s in (0, 1, 2)),
        *(("jpg", o) for o in ({"progressive": True}, {"keep_rgb": True}, {"quality": 30})),
    ]
    for (mode, one), (i, (suffix, options)) in itertools.product(modes.items(), enumerate(ways)):
        out = io.BytesIO()
        try:
            kind = Image.registered_extensions()[f".{suffix}"]
            one.save(out, kind, **options)
        except (OSError, ValueError, KeyError):  # a mode that the kind does not have
            continue
        if out.getvalue() and (mode, suffix) != ("CMYK", "jp2"):  # ImageMagick ignores its inks
            yield f"saved-{mode}-{i}.{suffix}", out.getvalue()
    for orientation, mode in itertools.product(range(1, 9), ("RGB", "L", "CMYK")):
        exif, out = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        modes[mode].save(out, "JPEG", exif=exif)
        yield f"turned-{mode}-{orientation}.jpg", out.getvalue()
    frames = [Image.fromarray(np.roll(clear, 9 * i, axis=1)) for i in range(3)]
    for kind, suffix in (("GIF", "gif"), ("PNG", "png"), ("TIFF", "tif")):
        out = io.BytesIO()
        frames[0].save(out, kind, save_all=True, append_images=frames[1:])
        yield f"frames.{suffix}", out.getvalue()


def by_imagemagick(program: str, file: Path) -> Pixels | None:
    over_white = "-background white -alpha remove -alpha off -colorspace sRGB -depth 8 -strip"
    command = [program, f"{file}[0]", "-auto-orient", *over_white.split(), "-type", "truecolor"]
    done = subprocess.run([*command, "ppm:-"], capture_output=True, check=False, timeout=60)
    return np.asarray(Image.open(io.BytesIO(done.stdout))) if done.stdout else None


def by_libtiff(file: Path) -> Pixels | None:
    """With the stored order of rows and columns: `tiff2rgba` does not swap them."""
    out = file.with_suffix(".rgba")
    command = ["tiff2rgba", "-c", "none", str(file), str(out)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    if done.returncode or not out.exists():
        return None
    try:
        with Image.open(out) as image:
            return to_channels(np.asarray(image.convert("RGBA")), 3)
    except OSError:
        return None


def agree(seen: Pixels, reference: Pixels | None, file: Path) -> bool:
    """To 2 of 255; JPEG's decoders differ a little more at sharp edges of colour."""
    if reference is None or reference.shape != seen.shape:
        return False
    difference = np.abs(seen.astype(int) - reference)
    lossy = file.suffix == ".jpg" or file.read_bytes()[6:8] == b"JF"
    return bool(difference.max() <= (8 if lossy else 2))


def test_every_file_is_the_reference_s_picture_or_refused(tmp_path: Path) -> None:
    program = shutil.which("magick") or shutil.which("convert")
    version = program and subprocess.run([program, "-version"], capture_output=True, check=False)
    if not version or not version.stdout.startswith(b"Version: ImageMagick"):
        pytest.skip("ImageMagick is not installed: no file was compared (imagemagick)")
    if shutil.which("tiff2rgba") is None:
        pytest.skip("libtiff's tools are not installed: no file was compared (libtiff-tools)")
    pytest.importorskip("imagecodecs")
    count, different = Counter[str](), []
    for name, data in itertools.chain(tiffs(), pngs(), saved()):
        file = tmp_path / name
        file.write_bytes(data)
        try:
            seen = read_image(file, 3, name)
        except BrokenFileError as error:
            assert repr(name) in error.message  # noqa: PT017
            assert error.hint  # noqa: PT017
            count["refused"] += 1
            continue
        with Image.open(file) if opens(file) else Image.fromarray(seen) as image:
            assert (read_opened(image, 3, name) == seen).all(), name
        if agree(seen, by_imagemagick(str(program), file), file):
            count["as ImageMagick"] += 1
        elif file.suffix == ".tif" and agree(seen, by_libtiff(file), file):
            count["as libtiff"] += 1
        else:
            different.append(name)
    print(count)
    assert different == []
    assert count["as ImageMagick"] + count["as libtiff"] >= 400
    assert count["as libtiff"] <= 60  # ImageMagick does not invert 2 and 4 bits where white is 0


def opens(file: Path) -> bool:
    try:
        Image.open(file).close()
    except OSError:
        return False
    return True
