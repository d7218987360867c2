"""Both back ends do to an image what Pillow's own functions do, and so the same."""

from __future__ import annotations

import io
import platform
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vitc.data.augment import ops, ops_torch, policies
from vitc.data.augment.ops import CODE, OPERATIONS, OPS, Chain, apply, apply_chain, rotation
from vitc.data.augment.ops_pillow import smoothed
from vitc.data.config import AugmentConfig
from vitc.data.sampling import uniform

Pixels = NDArray[np.uint8]
# Elsewhere Pillow's compiler may fuse a multiplication and an addition, which moves a value by 1.
EXACT = platform.machine() in ("x86_64", "AMD64")


def photo(height: int, width: int, channels: int, seed: int) -> Pixels:
    """Smooth gradients, edges and texture, as a JPEG decoder gives them; opacity in steps."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(9 * (x * rng.random() + y * rng.random()) + 6 * rng.random()) for _ in range(3)]
    light = 0.3 + 0.5 * rng.random(3)
    pixels = 255 * light * (0.7 + 0.3 * np.stack(waves, -1))
    pixels[(x - 0.5) ** 2 + (y - 0.3) ** 2 < 0.04] *= 0.4
    pixels += rng.normal(0, 9, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    rgb = np.asarray(Image.open(file))
    if channels == 1:
        return np.ascontiguousarray(rgb[..., :1])
    if channels == 3:
        return rgb.copy()
    return np.concatenate([rgb, ((x > 0.3) * 155 + (y > 0.5) * 100).astype(np.uint8)[..., None]], 2)


PHOTOS = [photo(64, 48, 3, 0), photo(37, 51, 3, 1), photo(28, 28, 1, 2), photo(40, 40, 4, 3)]
ODD = [np.full((20, 20, 3), 77, np.uint8), photo(3, 3, 3, 4), photo(2, 5, 3, 5), photo(1, 1, 1, 6)]


def picture(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def drawn(augment: AugmentConfig, n: int, size: tuple[int, int]) -> Chain:
    u = uniform(0, "policy", 0, np.arange(n), policies.chain_draws(augment))
    return policies.chain(augment, u, size)


# -- Pillow's own ---------------------------------------------------------------------------------


def affine(*terms: Callable[[float], float]) -> Callable[..., Image.Image]:
    def change(image: Image.Image, v: float, options: dict[str, Any]) -> Image.Image:
        data = tuple(term(v) for term in terms)
        return image.transform(image.size, Image.Transform.AFFINE, data, **options)

    return change


def point(table: Callable[[int, float], int]) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, v: image.point([table(i, v) for i in range(256)] * len(image.getbands()))


one, zero, own = (lambda v: 1.0), (lambda v: 0.0), (lambda v: v)
MOVES: dict[str, Callable[[Image.Image, float, dict[str, Any]], Image.Image]] = {
    "shear_x": affine(one, own, zero, zero, one, zero),
    "shear_y": affine(one, zero, zero, own, one, zero),
    "translate_x": affine(one, zero, own, zero, one, zero),
    "translate_y": affine(one, zero, zero, zero, one, own),
    "rotate": lambda image, v, options: image.rotate(v, **options),
}
PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "solarize": lambda image, v: ImageOps.solarize(image, int(v)),
    "solarize_add": point(lambda i, v: min(255, i + int(v)) if i < 128 else i),
    "invert": lambda image, v: ImageOps.invert(image),
    "brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "auto_contrast": lambda image, v: ImageOps.autocontrast(image),
    "equalize": lambda image, v: ImageOps.equalize(image),
    "contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "blur": lambda image, v: image.filter(ImageFilter.GaussianBlur(v)),
}
FACTORS = [0.0, 0.1, 0.37, 1.0, 1.37, 1.9, 1.99]
ARGS = {
    "shear_x": [-0.99, -0.12, 0.07, 0.3],
    "shear_y": [-0.3, -0.05, 0.21, 0.99],
    "translate_x": [-20.16, -3.0, 0.45, 32.0],
    "translate_y": [-32.0, -0.9, 12.6, 25.0],
    "rotate": [-135.0, -24.0, -1.3, 6.0, 30.0, 90.0],
    "posterize": [1, 2, 4, 7, 8],
    "solarize": [0, 1, 76, 128, 255, 256],
    "solarize_add": [0, 33, 77, 110],
    "invert": [0],
    "auto_contrast": [0],
    "equalize": [0],
    "brightness": FACTORS,
    "contrast": FACTORS,
    "color": FACTORS,
    "sharpness": FACTORS,
    "blur": [0.1, 0.3, 0.8, 1.1, 1.4142, 1.7, 2.0],
}


def test_every_operation_has_a_reference_here() -> None:
    assert set(PILLOW) | set(MOVES) | {"identity"} == set(OPS)
    assert set(MOVES) == {op.name for op in OPERATIONS if op.matrix}
    assert set(ARGS) == set(OPS) - {"identity"}


def assert_as_good_as_equal(ours: Pixels, theirs: Pixels) -> None:
    if EXACT:
        assert np.array_equal(ours, theirs)
    else:
        apart = np.abs(ours.astype(int) - theirs.astype(int))
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.002


@pytest.mark.parametrize("name", PILLOW)
def test_an_operation_is_pillows_bit_by_bit(name: str) -> None:
    for pixels in (*PHOTOS[:3], *ODD):
        for arg in ARGS[name]:
            theirs = np.asarray(PILLOW[name](picture(pixels), arg)).reshape(pixels.shape)
            assert np.array_equal(apply(pixels, [CODE[name]], [arg], True), theirs), arg


@pytest.mark.parametrize("bilinear", [True, False])
@pytest.mark.parametrize("name", MOVES)
def test_a_move_is_pillows(name: str, bilinear: bool) -> None:
    how = Image.Resampling.BILINEAR if bilinear else Image.Resampling.NEAREST
    for pixels in (*PHOTOS[:3], *ODD):
        fill = 128 if pixels.shape[2] == 1 else (128,) * 3
        for arg in ARGS[name]:
            options = {"resample": how, "fillcolor": fill}
            theirs = np.asarray(MOVES[name](picture(pixels), arg, options)).reshape(pixels.shape)
            assert_as_good_as_equal(apply(pixels, [CODE[name]], [arg], bilinear), theirs)


@pytest.mark.parametrize("name", [n for n in PILLOW if n != "blur"])
def test_opacity_is_left_alone(name: str) -> None:
    rgba = PHOTOS[3]
    for arg in ARGS[name]:
        out = apply(rgba, [CODE[name]], [arg], True)
        assert np.array_equal(out[..., 3], rgba[..., 3])
        alone = apply(np.ascontiguousarray(rgba[..., :3]), [CODE[name]], [arg], True)
        assert np.array_equal(out[..., :3], alone)


def test_opacity_moves_with_the_image_and_leaves_nothing_behind() -> None:
    rgba = PHOTOS[3]
    out = apply(rgba, [CODE["translate_x"]], [10.0], True)
    assert np.array_equal(out[:, :30], rgba[:, 10:])
    assert (out[:, 30:] == (128, 128, 128, 0)).all()


def test_where_nothing_changes_the_image_itself_comes_back() -> None:
    pixels = PHOTOS[0]
    neutral = [("identity", 0), ("rotate", 0), ("color", 1), ("posterize", 8), ("solarize", 256)]
    for name, arg in neutral:
        assert apply(pixels, [CODE[name]], [arg], True) is pixels
        if name in PILLOW:
            assert np.array_equal(np.asarray(PILLOW[name](picture(pixels), arg)), pixels)


def test_operations_leave_their_input_alone() -> None:
    before = PHOTOS[0].copy()
    tensor = torch.from_numpy(PHOTOS[0]).permute(2, 0, 1)[None].contiguous()
    kept = tensor.clone()
    for name in OPS[1:]:
        apply(PHOTOS[0], [CODE[name]], [ARGS[name][0]], True)
        apply_chain(tensor, Chain(np.array([[CODE[name]]]), np.array([[ARGS[name][0]]]), True))
    assert np.array_equal(PHOTOS[0], before)
    assert torch.equal(tensor, kept)


@pytest.mark.parametrize("pixels", PHOTOS[:3], ids=lambda p: "x".join(map(str, p.shape)))
def test_composed_tables_are_what_one_operation_after_the_other_gives(pixels: Pixels) -> None:
    rng = np.random.default_rng(0)
    names = list(PILLOW)[:8] * 2 + ["color", "sharpness"]
    for _ in range(60):
        chosen = [names[i] for i in rng.integers(0, len(names), 4)]
        args = [float(rng.choice(ARGS[name])) for name in chosen]
        out = picture(pixels)
        for name, arg in zip(chosen, args, strict=True):
            out = PILLOW[name](out, arg)
        ours = apply(pixels, [CODE[n] for n in chosen], args, True)
        assert np.array_equal(ours, np.asarray(out).reshape(pixels.shape)), (chosen, args)


def test_rotation_is_anticlockwise_about_the_centre() -> None:
    a, b, c, d, e, f = rotation(90.0, 10, 20)
    assert (a * 10 + b * 5 + c, d * 10 + e * 5 + f) == pytest.approx((10, 5))
    assert (a * 10 + b * 0 + c, d * 10 + e * 0 + f) == pytest.approx((15, 5))  # top was right


# -- the batched back end -------------------------------------------------------------------------


def batch_of(images: list[Pixels]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def both(images: list[Pixels], what: Chain) -> tuple[Pixels, Pixels]:
    """(n, H, W, C) from the back end for one image, and from the one for batches."""
    rows = zip(images, what.codes.tolist(), what.args.tolist(), strict=True)
    single = np.stack([apply(p, c, a, what.bilinear) for p, c, a in rows])
    out = apply_chain(batch_of(images), what)
    assert out.dtype == torch.uint8
    return single, out.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", OPS[1:])
def test_the_back_ends_agree_on_each_operation(name: str) -> None:
    args = np.array([0, *ARGS[name]], np.float64)[:, None]
    codes = np.full(args.shape, CODE[name], np.int8)
    codes[0] = CODE["identity"]
    for pixels, bilinear in product((*PHOTOS, *ODD), (True, False)):
        single, batched = both([pixels] * len(args), Chain(codes, args, bilinear))
        assert np.array_equal(batched[0], pixels)
        if name in MOVES:
            assert_as_good_as_equal(batched, single)
        else:
            assert np.array_equal(batched, single)


POLICIES = [
    AugmentConfig(policy="autoaugment"),
    AugmentConfig(policy="v0"),
    AugmentConfig(policy="randaugment", rand_ops=3, rand_prob=0.9),
    AugmentConfig(policy="trivial"),
    AugmentConfig(policy="three", jitter=(0.3, 0.3, 0.3)),
]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("augment", POLICIES, ids=lambda a: a.policy)
def test_the_back_ends_agree_on_whole_policies(augment: AugmentConfig, channels: int) -> None:
    n = 100
    images = [photo(32, 28, channels, i) for i in range(n)]
    what = drawn(augment, n, (32, 28))
    single, batched = both(images, what)
    if EXACT or not what.bilinear:
        assert np.array_equal(single, batched)
    changed = sum(not np.array_equal(a, b) for a, b in zip(single, images, strict=True))
    assert changed > n / 2


def test_an_image_of_a_batch_does_not_depend_on_the_others() -> None:
    augment = AugmentConfig(policy="v0", jitter=(0.4, 0.4, 0.4))
    images = [photo(24, 24, 3, i) for i in range(20)]
    what = drawn(augment, 20, (24, 24))
    together = apply_chain(batch_of(images), what)
    for i in range(20):
        own = Chain(what.codes[i : i + 1], what.args[i : i + 1], what.bilinear)
        assert torch.equal(together[i], apply_chain(batch_of(images[i : i + 1]), own)[0])


def test_either_back_end_can_serve_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    augment = AugmentConfig(policy="autoaugment")
    images = batch_of([photo(24, 20, 3, i) for i in range(20)])
    what = drawn(augment, 20, (24, 20))
    one_by_one = ops.change(images, what)
    assert one_by_one.is_contiguous()
    monkeypatch.setattr(ops, "batches_are_faster", lambda device: True)
    assert torch.equal(ops.change(images, what), one_by_one)


def test_large_batches_are_moved_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    args = np.linspace(-30, 30, 8)[:, None]
    what = Chain(np.full((8, 1), CODE["rotate"], np.int8), args, True)
    images = batch_of([PHOTOS[0]] * 8)
    at_once = apply_chain(images, what)
    monkeypatch.setattr(ops_torch, "BLOCK", PHOTOS[0].size * 3)
    assert torch.equal(apply_chain(images, what), at_once)


@pytest.mark.cuda
@pytest.mark.parametrize("augment", POLICIES, ids=lambda a: a.policy)
def test_a_gpu_gives_what_the_cpu_gives(augment: AugmentConfig) -> None:
    images = batch_of([photo(64, 48, 3, i) for i in range(64)])
    what = drawn(augment, 64, (64, 48))
    assert torch.equal(apply_chain(images.cuda(), what).cpu(), apply_chain(images, what))


def test_smoothing_rounds_as_pillows_floats_do_for_every_sum() -> None:
    """All 3,316 sums that nine weighted pixels can have."""
    for total in range(13 * 255 + 1):
        assert (2 * total + 13) // 26 == int(np.floor(total / 13 + 0.5))
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(pixels).filter(ImageFilter.SMOOTH))
    assert np.array_equal(smoothed(pixels), theirs)
