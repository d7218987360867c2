"""Which operations does a policy apply, and how strongly? From uniform numbers alone.

A policy maps uniforms (n, draws) in [0, 1), one row an image, to a `Chain`. Sources and differences
from the originals: docs/augment.md.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from vitc.data.augment.ops import CODE, MAX_BLUR, OPERATIONS, Chain
from vitc.data.config import AugmentConfig
from vitc.data.sampling import BatchPlan, Place, normal

Uniforms = NDArray[np.float64]
SubPolicy = tuple[tuple[str, float, int], tuple[str, float, int]]  # operation, probability, level

# The 25 of arXiv 1805.09501, Table 9; levels 0 to 9.
AUTOAUGMENT: tuple[SubPolicy, ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)

# EfficientNet's code, in no paper; levels 0 to 10. As in pycls.
V0: tuple[SubPolicy, ...] = (
    (("equalize", 0.8, 1), ("shear_y", 0.8, 4)),
    (("color", 0.4, 9), ("equalize", 0.6, 3)),
    (("color", 0.4, 1), ("rotate", 0.6, 8)),
    (("solarize", 0.8, 3), ("equalize", 0.4, 7)),
    (("solarize", 0.4, 2), ("solarize", 0.6, 2)),
    (("color", 0.2, 0), ("equalize", 0.8, 8)),
    (("equalize", 0.4, 8), ("solarize_add", 0.8, 3)),
    (("shear_x", 0.2, 9), ("rotate", 0.6, 8)),
    (("color", 0.6, 1), ("equalize", 1.0, 2)),
    (("invert", 0.4, 9), ("rotate", 0.6, 0)),
    (("equalize", 1.0, 9), ("shear_y", 0.6, 3)),
    (("color", 0.4, 7), ("equalize", 0.6, 0)),
    (("posterize", 0.4, 6), ("auto_contrast", 0.4, 7)),
    (("solarize", 0.6, 8), ("color", 0.6, 9)),
    (("solarize", 0.2, 4), ("rotate", 0.8, 9)),
    (("rotate", 1.0, 7), ("translate_y", 0.8, 9)),
    (("shear_x", 0.0, 0), ("solarize", 0.8, 4)),
    (("shear_y", 0.8, 0), ("color", 0.6, 4)),
    (("color", 1.0, 0), ("rotate", 0.6, 2)),
    (("equalize", 0.8, 4), ("equalize", 0.0, 8)),
    (("equalize", 1.0, 4), ("auto_contrast", 0.6, 2)),
    (("shear_y", 0.4, 7), ("solarize_add", 0.6, 7)),
    (("posterize", 0.8, 2), ("solarize", 0.6, 10)),
    (("solarize", 0.6, 8), ("equalize", 0.6, 1)),
    (("color", 0.8, 6), ("rotate", 0.4, 5)),
)

RAND_OPS = (
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
TRIVIAL_OPS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "auto_contrast",
    "equalize",
)
TRIVIAL_LEVELS = 31
JITTERED = ("brightness", "contrast", "color")  # in the order of data.augment.jitter
BILINEAR = {"v0", "randaugment"}  # the others take the nearest pixel, as in their authors' code


def draw_chain(plan: BatchPlan, augment: AugmentConfig, place: Place) -> Chain | None:
    """Each sample's operations of the policy and of colour jitter; None if there are none."""
    if not augment.alters:
        return None
    return chain(augment, plan.uniforms("policy", place, chain_draws(augment)), plan.size)


def chain_draws(augment: AugmentConfig) -> int:
    """How many uniforms an image's operations need."""
    fixed = {"none": 0, "autoaugment": 5, "v0": 5, "trivial": 3, "three": 2}
    policy = fixed.get(augment.policy, 4 * augment.rand_ops)
    return policy + (4 if any(augment.jitter) else 0)


def chain(augment: AugmentConfig, u: Uniforms, size: tuple[int, int]) -> Chain:
    """The operations on images of `size` (H, W), from uniforms (n, chain_draws)."""
    codes, args = np.zeros((len(u), 0), np.int8), np.zeros((len(u), 0))
    if augment.policy != "none":
        codes, args = _STEPS[augment.policy](augment, u, size)
    if any(augment.jitter):
        more = _jitter(augment.jitter, u[:, -4:])
        codes, args = np.hstack([codes, more[0]]), np.hstack([args, more[1]])
    return Chain(codes, args, augment.policy in BILINEAR)


Steps = tuple[NDArray[np.int8], NDArray[np.float64]]


def _searched(augment: AugmentConfig, u: Uniforms, size: tuple[int, int]) -> Steps:
    """One of the 25 with even odds; each of its two operations with its own probability."""
    policy, levels = (AUTOAUGMENT, 9) if augment.policy == "autoaugment" else (V0, 10)
    which = _pick(u[:, 0], len(policy))
    ops = np.array([[CODE[op] for op, _, _ in sub] for sub in policy], np.int8)[which]
    odds = np.array([[p for _, p, _ in sub] for sub in policy])[which]
    strength = np.array([[level for _, _, level in sub] for sub in policy])[which] / levels
    return _settled(ops, u[:, 1:3] < odds, strength, u[:, 3:5] < 0.5, augment.policy, size)


def _rand(augment: AugmentConfig, u: Uniforms, size: tuple[int, int]) -> Steps:
    """`rand_ops` of the fifteen, each drawn independently and applied with `rand_prob`."""
    which, taken, strength, minus = np.split(u[:, : 4 * augment.rand_ops], 4, axis=1)
    ops = np.array([CODE[n] for n in RAND_OPS], np.int8)[_pick(which, len(RAND_OPS))]
    m = np.full(strength.shape, augment.rand_magnitude)
    if augment.rand_std > 0:
        m = np.clip(m + augment.rand_std * normal(strength), 0, 10)
    return _settled(ops, taken < augment.rand_prob, m / 10, minus < 0.5, "rand", size)


def _trivial(_: AugmentConfig, u: Uniforms, size: tuple[int, int]) -> Steps:
    """One of the fourteen, at one of 31 levels, all with even odds."""
    ops = np.array([CODE[n] for n in TRIVIAL_OPS], np.int8)[_pick(u[:, :1], len(TRIVIAL_OPS))]
    m = _pick(u[:, 1:2], TRIVIAL_LEVELS) / (TRIVIAL_LEVELS - 1)
    return _settled(ops, np.ones(ops.shape, np.bool_), m, u[:, 2:3] < 0.5, "trivial", size)


def _three(_: AugmentConfig, u: Uniforms, size: tuple[int, int]) -> Steps:
    """Grey, solarised, or blurred with a sigma of 0.1 to 2 pixels, with even odds."""
    which = _pick(u[:, :1], 3)
    ops = np.array([CODE["color"], CODE["solarize"], CODE["blur"]], np.int8)[which]
    sigma = 0.1 + u[:, 1:2] * (MAX_BLUR - 0.1)
    return ops, np.choose(which, [np.zeros_like(sigma), np.full_like(sigma, 128), sigma])


_STEPS = {
    "autoaugment": _searched,
    "v0": _searched,
    "randaugment": _rand,
    "trivial": _trivial,
    "three": _three,
}


def _jitter(amounts: tuple[float, float, float], u: Uniforms) -> Steps:
    """Three factors in one of the six orders; the factor is 1 if its amount is 0."""
    most = np.array(amounts)
    low = np.maximum(1 - most, 0)
    factors = low + u[:, 1:] * (1 + most - low)
    orders = np.array(list(itertools.permutations(range(3))))[_pick(u[:, 0], 6)]  # (n, 3)
    ops = np.array([CODE[n] for n in JITTERED], np.int8)[orders]
    return ops, np.take_along_axis(factors, orders, axis=1)


def _pick(u: Uniforms, n: int) -> NDArray[np.int64]:
    return (u * n).astype(np.int64)


def _settled(
    ops: NDArray[np.int8],
    taken: NDArray[np.bool_],
    m: NDArray[np.float64],
    minus: NDArray[np.bool_],
    scales: str,
    size: tuple[int, int],
) -> Steps:
    """Codes and arguments, all (n, S); the identity where an operation is not taken."""
    ops = np.where(taken, ops, CODE["identity"]).astype(np.int8)
    args = np.zeros(ops.shape)
    for code, op in enumerate(OPERATIONS):
        if scales in op.ranges:
            here = ops == code
            args[here] = op.ranges[scales].argument(m[here], minus[here], size)
    return ops, args
