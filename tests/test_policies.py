"""Policies have the distributions of their definitions; settings that do nothing are refused."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import kstest

from tests.batches import plan, plausible
from vitc.data.augment import policies
from vitc.data.augment.device import draw_erasing, draw_lighting
from vitc.data.augment.ops import CODE, OPERATIONS, OPS, Chain
from vitc.data.augment.policies import AUTOAUGMENT, RAND_OPS, TRIVIAL_OPS, V0, draw_chain
from vitc.data.config import AugmentConfig, DataConfig
from vitc.data.pixels import requests
from vitc.data.sampling import Place, epoch_indices, normal, order_places, uniform
from vitc.errors import ConfigError
from vitc.models.timm import import_peer
from vitc.resolve import load_config

N = 60_000
SIZE = (200, 100)
SEARCHED = {"autoaugment": (AUTOAUGMENT, 9), "v0": (V0, 10)}


def drawn(augment: AugmentConfig, n: int = N, seed: int = 0) -> Chain:
    u = uniform(seed, "policy", 0, np.arange(n), policies.chain_draws(augment))
    return policies.chain(augment, u, SIZE)


# -- searched policies ----------------------------------------------------------------------------


def expected_pairs(policy: tuple[policies.SubPolicy, ...]) -> Counter[tuple[str, str]]:
    """How probable the two operations of an image are, one of the 25 after the other."""
    odds: Counter[tuple[str, str]] = Counter()
    for (a, p, _), (b, q, _) in policy:
        for first, p_first in ((a, p), ("identity", 1 - p)):
            for second, p_second in ((b, q), ("identity", 1 - q)):
                odds[first, second] += p_first * p_second / len(policy)
    return odds


@pytest.mark.parametrize("name", SEARCHED)
def test_sub_policies_come_with_even_odds_and_operations_with_theirs(name: Any) -> None:
    policy, _ = SEARCHED[name]
    assert len(policy) == 25
    codes = drawn(AugmentConfig(policy=name)).codes
    odds = expected_pairs(policy)
    seen = Counter((OPS[a], OPS[b]) for a, b in codes.tolist())
    pairs = sorted(odds | seen)
    assert plausible([seen[p] for p in pairs], N * np.array([odds[p] for p in pairs]))


@pytest.mark.parametrize("name", SEARCHED)
def test_arguments_are_those_of_the_levels_and_signs_are_even(name: Any) -> None:
    policy, levels = SEARCHED[name]
    both = drawn(AugmentConfig(policy=name))
    for slot in (0, 1):
        for op in {sub[slot][0] for sub in policy}:
            args = both.args[both.codes[:, slot] == CODE[op], slot]
            own = {m / levels for name_, p, m in (s[slot] for s in policy) if name_ == op and p > 0}
            scale = OPERATIONS[CODE[op]].ranges[name]
            sides = [scale.argument(np.array([*own]), np.full(len(own), m), SIZE) for m in (0, 1)]
            assert set(args) == {*sides[0], *sides[1]}
            if scale.sign != "none" and (args != 0).any():
                args = args[args != 0]
                assert abs((args > 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(len(args))


@pytest.mark.parametrize(
    ("policy", "op", "expected"),
    [
        ("autoaugment", "shear_x", (0, -0.3)),
        ("autoaugment", "rotate", (0, -30)),
        ("autoaugment", "posterize", (4, 8)),
        ("autoaugment", "solarize", (0, 256)),
        ("autoaugment", "color", (0.1, 1.9)),
        ("v0", "posterize", (1, 4)),
        ("v0", "solarize", (0, 256)),
        ("v0", "solarize_add", (0, 110)),
        ("v0", "translate_x", (0, -45)),
        ("v0", "translate_y", (0, -90)),
        ("v0", "contrast", (0.1, 1.9)),
        ("rand", "posterize", (4, 1)),
        ("rand", "solarize", (256, 0)),
        ("rand", "brightness", (1, 0.1)),
        ("rand", "translate_y", (0, -90)),
        ("trivial", "shear_y", (0, -0.99)),
        ("trivial", "translate_x", (0, -32)),
        ("trivial", "rotate", (0, -135)),
        ("trivial", "posterize", (8, 2)),
        ("trivial", "solarize", (255, 0)),
        ("trivial", "sharpness", (1, 0.01)),
    ],
)
def test_magnitudes_span_the_published_ranges(
    policy: str, op: str, expected: tuple[float, float]
) -> None:
    """From magnitude 0 to 1, the latter with the sign minus."""
    scale = OPERATIONS[CODE[op]].ranges[policy]
    ends = scale.argument(np.array([0.0, 1.0]), np.array([False, True]), SIZE)
    assert ends == pytest.approx(expected, abs=1e-9)


# -- the others -----------------------------------------------------------------------------------


def test_randaugment_draws_operations_alike_and_independently_with_their_probability() -> None:
    for prob, slot in product((0.3, 0.5, 1.0), range(3)):
        augment = AugmentConfig(policy="randaugment", rand_ops=3, rand_prob=prob)
        codes = drawn(augment, 20_000).codes[:, slot]
        odds = np.zeros(len(OPS))
        odds[0] = 1 - prob
        odds[[CODE[name] for name in RAND_OPS]] = prob / 15
        assert plausible(np.bincount(codes, minlength=len(OPS)), 20_000 * odds)
    a, b = drawn(AugmentConfig(policy="randaugment", rand_prob=1.0)).codes.T
    pairs = np.bincount(a.astype(int) * len(OPS) + b, minlength=len(OPS) ** 2)
    assert (pairs > 0).sum() == 15**2
    assert plausible(pairs[pairs > 0])


def test_randaugment_magnitudes_are_normal_and_cut_to_the_range() -> None:
    for mean, std in ((9.0, 0.5), (5.0, 2.0), (0.0, 1.0)):
        both = drawn(AugmentConfig(policy="randaugment", rand_magnitude=mean, rand_std=std))
        rotation = both.args[both.codes == CODE["rotate"]]
        m = np.abs(rotation) / 3
        for x in np.linspace(0.1, 9.9, 15).tolist():
            share = float(ndtr((x - mean) / std))
            assert abs((m < x).mean() - share) < 4.5 * np.sqrt(share * (1 - share) / len(m)) + 1e-9
        assert m.max() <= 10
        assert abs((rotation[m > 0] > 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(len(m))
    both = drawn(AugmentConfig(policy="randaugment", rand_magnitude=7, rand_std=0))
    assert set(both.args[both.codes == CODE["rotate"]].round(9)) == {-21.0, 21.0}
    assert set(both.args[both.codes == CODE["posterize"]]) == {2}
    assert set(both.args[both.codes == CODE["color"]].round(9)) == {0.37, 1.63}


def test_trivialaugment_takes_one_operation_and_one_of_31_levels() -> None:
    both = drawn(AugmentConfig(policy="trivial"))
    assert both.codes.shape == (N, 1)
    counts = np.bincount(both.codes[:, 0], minlength=len(OPS))[[CODE[n] for n in TRIVIAL_OPS]]
    assert counts.sum() == N
    assert plausible(counts)
    angles = both.args[both.codes == CODE["rotate"]]
    level, times = np.unique(np.rint(np.abs(angles) / 4.5).astype(int), return_counts=True)
    assert level.tolist() == list(range(31))
    assert np.abs(np.abs(angles) / 4.5 - np.rint(np.abs(angles) / 4.5)).max() < 1e-9
    assert plausible(times)
    bits, times = np.unique(both.args[both.codes == CODE["posterize"]], return_counts=True)
    assert bits.tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert plausible(times, times.sum() * np.array([3, 5, 5, 5, 5, 5, 3]) / 31)
    moves = both.args[both.codes == CODE["translate_x"]]
    assert np.array_equal(moves, np.rint(moves))


def test_3_augment_takes_one_of_three_and_then_jitters() -> None:
    both = drawn(AugmentConfig(policy="three", jitter=(0.3, 0.3, 0.3)))
    assert both.codes.shape == (N, 4)
    names = [CODE["color"], CODE["solarize"], CODE["blur"]]
    counts = np.bincount(both.codes[:, 0], minlength=len(OPS))
    assert plausible(counts[names])
    assert counts[names].sum() == N
    first = both.args[:, 0]
    assert set(first[both.codes[:, 0] == CODE["color"]]) == {0}
    assert set(first[both.codes[:, 0] == CODE["solarize"]]) == {128}
    sigma = first[both.codes[:, 0] == CODE["blur"]]
    assert kstest((sigma - 0.1) / 1.9, "uniform").pvalue > 1e-3


def test_jitter_factors_are_uniform_and_their_orders_even() -> None:
    both = drawn(AugmentConfig(jitter=(0.4, 0.0, 1.5)))
    names = [CODE[n] for n in ("brightness", "contrast", "color")]
    orders = Counter(map(tuple, both.codes.tolist()))
    assert set(orders) == set(permutations(names))
    assert plausible([*orders.values()])
    for name, low, high in (("brightness", 0.6, 1.4), ("color", 0.0, 2.5)):
        factors = both.args[both.codes == CODE[name]]
        assert kstest((factors - low) / (high - low), "uniform").pvalue > 1e-3
    assert set(both.args[both.codes == CODE["contrast"]]) == {1.0}


def test_only_the_policies_with_smooth_moves_are_bilinear() -> None:
    smooth = {
        p: drawn(AugmentConfig(policy=p), 1).bilinear  # type: ignore[arg-type]
        for p in ("autoaugment", "v0", "randaugment", "trivial", "three")
    }
    assert {p for p, b in smooth.items() if b} == {"v0", "randaugment"}


def test_normal_inverts_its_distribution_function() -> None:
    u = np.array([0.0, 1e-12, 0.025, 0.5, 0.84134474606, 1 - 1e-12, 1 - 2.0**-53])
    assert ndtr(normal(u))[1:-1] == pytest.approx(u[1:-1], rel=3e-5)
    assert np.abs(normal(u)).max() < 8.3
    x = normal(np.random.default_rng(0).random((10_000, 2)))
    assert x.shape == (10_000, 2)
    assert np.array_equal(x, np.round(x * 2**20) / 2**20)


# -- repeated augmentation ------------------------------------------------------------------------


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_an_epoch_shows_its_share_of_the_images_each_so_often(repeats: int) -> None:
    labels = np.zeros(50, np.int64)
    config = DataConfig(augment=AugmentConfig(repeats=repeats))
    asked = [r for r in requests(plan(batch=12), config, labels, 0, 8) if r.place.epoch == 1]
    assert len(asked) == 4 * 3  # 50 // 12 steps, whatever the repeats
    seen = np.concatenate([r.indices for r in asked])
    order = epoch_indices(0, 1, labels, "none")[: 48 // repeats]
    assert np.array_equal(np.sort(seen), np.sort(np.repeat(order, repeats)))


def test_copies_are_dealt_out_over_the_micro_batches_of_a_step() -> None:
    p = plan(batch=24, micro=8)
    for step in (0, 1):
        places = [order_places(p, Place(0, step * 3 + i), 3).tolist() for i in range(3)]
        assert places == [[step * 8 + i for i in range(8)]] * 3  # one copy in each
    alone = order_places(plan(batch=6, micro=6), Place(0, 1), 3).tolist()
    assert alone == [2, 2, 2, 3, 3, 3]
    assert order_places(p, Place(0, 4), 1).tolist() == list(range(32, 40))


def test_copies_of_an_image_differ_in_every_parameter() -> None:
    augment = AugmentConfig(
        crop="random_resized",
        policy="randaugment",
        rand_prob=1.0,
        jitter=(0.3, 0.3, 0.3),
        lighting=0.1,
        erase=1.0,
        repeats=3,
    )
    p = plan(batch=12, micro=4)
    first, *others = requests(p, DataConfig(augment=augment), np.zeros(40, np.int64), 0, 1)
    assert first.chain is not None
    for other in others:
        assert np.array_equal(other.indices, first.indices)
        assert (other.crop != first.crop).any(1).all()
        assert other.chain is not None
        assert (other.chain.args != first.chain.args).any(1).all()
        for draw in (draw_lighting, draw_erasing):
            a, b = draw(p, augment, other.place), draw(p, augment, first.place)
            a, b = (getattr(v, "boxes", v) for v in (a, b))
            assert (a != b).any(1).all()  # type: ignore[union-attr]


# -- fixed for ever -------------------------------------------------------------------------------


PINNED = {
    "autoaugment": "c6b211571fdbffb0",
    "v0": "d812b3001f334f9d",
    "randaugment": "ff536ff35fae49ee",
    "trivial": "b0adf55e9a8ce554",
    "three": "4110f46b00cd3618",
}
PINNED_JITTER = "38a64461179eced7"
PINNED_LIGHTING = [-0.005688024684786797, -0.0072603835724294186, -0.006775873713195324]
PINNED_BOXES = [[0, 0, 0, 0], [0, 0, 0, 0], [7, 9, 25, 20], [9, 6, 31, 16]]
PINNED_KEYS = [683413546, 2984812978, 2058395439, 465404114]


def test_drawn_operations_never_change() -> None:
    """Another value here means that no older run can be resumed or repeated."""

    def digest(augment: AugmentConfig) -> str:
        what = draw_chain(plan(), augment, Place(1, 3))
        assert what is not None
        rows = zip(what.codes.tolist(), what.args.tolist(), strict=True)
        names = [[(OPS[c], round(a, 12)) for c, a in zip(*row, strict=True)] for row in rows]
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]

    assert {p: digest(AugmentConfig(policy=p)) for p in PINNED} == PINNED  # type: ignore[arg-type]
    assert digest(AugmentConfig(jitter=(0.3, 0.3, 0.3))) == PINNED_JITTER
    lighting = draw_lighting(plan(), AugmentConfig(lighting=0.1), Place(1, 3))
    assert lighting is not None
    assert lighting[0].tolist() == PINNED_LIGHTING
    erasing = draw_erasing(plan(), AugmentConfig(erase=0.5), Place(1, 3))
    assert erasing is not None
    assert erasing.boxes.tolist() == PINNED_BOXES
    assert erasing.keys.tolist() == PINNED_KEYS


def test_operations_do_not_depend_on_how_the_batch_is_cut() -> None:
    augment = AugmentConfig(policy="v0", jitter=(0.3, 0.3, 0.3), lighting=0.1, erase=0.5)
    draws: dict[Any, tuple[str, ...]] = {
        draw_chain: ("codes", "args"),
        draw_erasing: ("boxes", "keys"),
        draw_lighting: ("",),  # an array itself
    }
    for draw, fields in draws.items():
        one = draw(plan(micro=8), augment, Place(2, 3))
        two = [draw(plan(micro=4), augment, Place(2, i)) for i in (6, 7)]
        for field in fields:
            together = np.concatenate([getattr(t, field, t) for t in two])
            assert np.array_equal(getattr(one, field, one), together)


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rand_ops": 3}, "data.augment.rand_ops has no effect with data.augment.policy 'none'"),
        ({"rand_std": 0.0, "policy": "v0"}, "it needs --data.augment.policy randaugment"),
        (
            {"erase_fill": "mean"},
            "data.augment.erase_fill has no effect without data.augment.erase",
        ),
        ({"erase_area": (0.1, 0.2)}, "erase_area has no effect without data.augment.erase"),
        ({"mix_per": "sample"}, "mix_per has no effect without data.augment.mixup_alpha or"),
        ({"repeats": 3, "flip": 0.0}, "nothing random would make the copies differ"),
        ({"repeats": 3, "flip": 1.0}, "nothing random would make the copies differ"),
        ({"policy": "randaugment", "rand_prob": 0.0}, "rand_prob 0 leaves"),
        ({"scale": (0.5, 1.0)}, "needs --data.augment.crop random_resized"),
        ({"policy": "randaugment", "rand_ops": 0}, "rand_ops 0 must be at least 1"),
        ({"policy": "randaugment", "rand_magnitude": 11.0}, "rand_magnitude 11.0 must be in [0"),
        ({"policy": "randaugment", "rand_std": -1.0}, "rand_std -1.0 must not be negative"),
        ({"repeats": 0}, "repeats 0 must be at least 1"),
        ({"erase": 1.5}, "erase 1.5 must be in [0, 1]"),
        ({"erase": 0.5, "erase_area": (0.3, 0.2)}, "erase_area (0.3, 0.2) must be 0 < from <= to"),
        ({"erase": 0.5, "erase_ratio": (0.0, 1.0)}, "erase_ratio (0.0, 1.0) must be 0 < from"),
        ({"jitter": (0.1, -0.1, 0.0)}, "jitter (0.1, -0.1, 0.0) must not be negative"),
        ({"lighting": -0.1}, "lighting -0.1 must not be negative"),
    ],
)
def test_a_setting_without_effect_or_out_of_range_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    (found,) = AugmentConfig(**changes).problems()
    assert message in found
    assert AugmentConfig().problems() == []


def test_lighting_without_colours_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.augment\.lighting needs colours"):
        load_config("fashion_vit_c", **{"data.augment.lighting": 0.1}).checked()


# -- peers ----------------------------------------------------------------------------------------


def peer(name: str) -> Any:
    try:
        return import_peer(name)
    except ImportError:
        pytest.skip(f"PEER MISSING: {name}")


def name_of(theirs: str) -> str:
    """The operation that timm or torchvision calls so: ShearX, TranslateXRel, ColorIncreasing."""
    words = re.findall("[A-Z][a-z]*", theirs.removesuffix("Increasing").removesuffix("Rel"))
    return "_".join(words).lower()


def timm_argument(module: Any, op: str, level: float) -> tuple[float, ...]:
    """Both values that timm's table gives for a level, whatever the sign it draws."""
    table = module.LEVEL_TO_ARG[op]
    if table is None:
        return (0.0,)
    return tuple(sorted({round(table(level, {})[0], 9) for _ in range(64)}))


def our_argument(scales: str, op: str, level: float) -> tuple[float, ...]:
    m = np.array([level / 10, level / 10])
    both = OPERATIONS[CODE[op]].ranges[scales].argument(m, np.array([False, True]), (1, 1))
    return tuple(sorted(set(both.round(9).tolist())))


def test_v0_is_timms_policy_of_that_name_but_that_a_bit_is_kept() -> None:
    module = peer("timm.data.auto_augment")
    theirs = module.auto_augment_policy_v0({"translate_const": 1})
    for ours, sub in zip(V0, theirs, strict=True):
        for (op, prob, level), their in zip(ours, sub, strict=True):
            assert (op, prob, level) == (name_of(their.name), their.prob, their.magnitude)
            values = timm_argument(module, their.name, level)
            if op == "posterize":
                values = tuple(max(1, v) for v in values)
            assert our_argument("v0", op, level) == values


def test_randaugment_has_timms_increasing_operations_and_arguments() -> None:
    module = peer("timm.data.auto_augment")
    theirs = module._RAND_INCREASING_TRANSFORMS
    assert sorted(name_of(name) for name in theirs) == sorted(RAND_OPS)
    for name in theirs:
        for level in (0, 0.37, 3, 7, 9, 9.49, 10):
            values = timm_argument(module, name, level)
            if name_of(name) == "posterize":
                values = tuple(max(1, v) for v in values)
            assert our_argument("rand", name_of(name), level) == values, (name, level)


def test_autoaugment_has_torchvisions_operations_and_probabilities() -> None:
    module = peer("torchvision.transforms.autoaugment")
    theirs = module.AutoAugment(module.AutoAugmentPolicy.IMAGENET).policies
    for ours, sub in zip(AUTOAUGMENT, theirs, strict=True):
        for (op, prob, level), (name, p, magnitude) in zip(ours, sub, strict=True):
            assert (op, prob) == (name_of(name), p)
            assert magnitude in (None, level)


def test_trivialaugment_has_torchvisions_arguments() -> None:
    module = peer("torchvision.transforms.autoaugment")
    space = module.TrivialAugmentWide()._augmentation_space(31)
    assert [name_of(name) for name in space] == list(TRIVIAL_OPS)
    for name, (values, signed) in space.items():
        op = name_of(name)
        scale = OPERATIONS[CODE[op]].ranges["trivial"]
        assert (scale.sign != "none") == signed
        ours = scale.argument(np.arange(31) / 30, np.zeros(31, np.bool_), SIZE)
        theirs = np.broadcast_to(np.asarray(values, np.float64), 31)
        if scale.sign == "around_one":
            theirs = 1 + theirs
        elif op.startswith("translate"):
            # It drops what is after the point, of float32: 15 where level 15 of 30 is 16.
            theirs = np.floor(theirs + 1e-5)
        elif op == "solarize":
            theirs = np.ceil(theirs)  # a whole number is below both or neither
        elif op in ("identity", "auto_contrast", "equalize"):
            continue
        assert ours == pytest.approx(theirs, abs=1e-5), op
