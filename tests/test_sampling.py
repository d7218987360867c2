"""Which image when, with which parameters: fixed for ever, evenly spread, independent."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc

from tests.batches import HERE, plan, plausible
from vitc.data.augment.crop import draw_crop, random_resized_boxes, shift_offsets
from vitc.data.augment.device import draw_flip
from vitc.data.augment.mixing import draw_mix
from vitc.data.config import AugmentConfig, DataConfig
from vitc.data.pixels import requests
from vitc.data.sampling import (
    Place,
    betas,
    draw_drop_path,
    drop_path_rates,
    epoch_indices,
    eval_batches,
    hashes,
    stand_ins,
    steps_per_epoch,
    uniform,
)
from vitc.errors import ConfigError

AUGMENT = AugmentConfig(crop="random_resized", mixup_alpha=0.8, cutmix_alpha=1.0)


# -- numbers from counters ------------------------------------------------------------------------


def test_hashes_never_change() -> None:
    """Another value here means that no older run can be resumed or repeated."""
    assert hashes(0, "order", 0, np.arange(3), 1)[:, 0].tolist() == [
        0x288B28392682BD83,
        0xC0EA22A30B7E5AB5,
        0x18961E6D460B8D1,
    ]
    assert hashes(1, "crop", 2, [3, 1 << 40], 2, repeat=4).ravel().tolist() == [
        0xB0FFC4DC7533A41B,
        0x89415C25A72BB029,
        0x1E15AA7C324C418C,
        0xC0BBBE268E4408A5,
    ]
    assert hashes(-1, 7, 0, [0], 1).tolist() == [[0x548B9A3E70AB50B1]]
    assert uniform(5, "flip", 1, [0, 1], 2).tolist() == [
        [0.7847210874005697, 0.1184775319480944],
        [0.1797947601212908, 0.37916658686469973],
    ]


def test_parameters_never_change() -> None:
    here = Place(1, 3)
    rare = np.array([0] * 9 + [1] * 3)
    assert epoch_indices(0, 0, rare, "none").tolist() == [2, 0, 7, 4, 8, 3, 9, 10, 1, 11, 5, 6]
    assert epoch_indices(0, 1, rare, "full").tolist() == [9, 3, 6, 10, 4, 11, 9, 2, 0, 10, 11, 7]
    assert epoch_indices(0, 1, rare, "sqrt").tolist() == [8, 3, 6, 9, 4, 10, 1, 2, 0, 9, 11, 7]
    assert random_resized_boxes(draw_crop(plan(), AUGMENT, here), 375, 500, AUGMENT).tolist() == [
        [74, 145, 281, 305],
        [32, 167, 331, 271],
        [160, 119, 134, 133],
        [35, 118, 294, 329],
    ]
    assert draw_flip(plan(), AUGMENT, here).tolist() == [False, False, False, True]
    cutmix, mixup = draw_mix(plan(), AUGMENT, Place(1, 0)), draw_mix(plan(), AUGMENT, Place(1, 1))
    assert (cutmix.kind, cutmix.lam, cutmix.box) == ("cutmix", 0.55078125, (9, 0, 32, 25))
    assert (mixup.kind, mixup.lam, mixup.box) == ("mixup", 0.4311819076538086, (0, 0, 0, 0))
    assert (cutmix.partner.tolist(), mixup.partner.tolist()) == ([1, 0, 3, 2], [2, 1, 0, 3])
    drop = draw_drop_path(plan(), here)
    assert drop is not None
    assert drop.tolist() == [[1] * 4, [1] * 4, [0] * 4, [2, 2, 0, 2]]
    assert shift_offsets(uniform(0, "crop", 0, [0, 1], 2), 4).tolist() == [[3, 0], [5, 0]]
    assert list(stand_ins(0, 0, 5, 7, 100)) == [7, 56, 88, 55, 98, 95, 56, 74, 27, 32, 34]


def test_a_number_does_not_depend_on_what_is_drawn_with_it() -> None:
    many = uniform(3, "crop", 5, np.arange(100), 6)
    assert np.array_equal(uniform(3, "crop", 5, [42], 3)[0], many[42, :3])
    assert np.array_equal(uniform(3, "crop", 5, np.arange(99, -1, -1), 6), many[::-1])
    assert many.min() >= 0
    assert many.max() < 1


def test_numbers_are_uniform() -> None:
    n, bins = 200_000, 256
    for stream in ("order", "crop", "flip", "mix", "drop_path", "partner"):
        for draw in range(2):
            u = uniform(0, stream, 0, np.arange(n), 2)[:, draw]
            counts = np.bincount((u * bins).astype(int), minlength=bins)
            assert plausible(counts, p=1e-4), (stream, draw)
            assert not plausible(counts, p=1 - 1e-4), (stream, draw)  # nor too even


def test_pairs_of_neighbours_fill_the_square_evenly() -> None:
    n, side = 200_000, 16
    u = uniform(0, "crop", 0, np.arange(n + 1), 2)
    for a, b in ((u[:-1, 0], u[1:, 0]), (u[:-1, 0], u[:-1, 1])):
        cells = (a * side).astype(int) * side + (b * side).astype(int)
        counts = np.bincount(cells, minlength=side**2)
        assert plausible(counts, p=1e-4)
        assert not plausible(counts, p=1 - 1e-4)


def test_seeds_streams_epochs_repeats_and_draws_are_uncorrelated() -> None:
    n = 40_000
    all_of = product((0, 1, 2**63), ("crop", "flip"), (3, 4, 400), (0, 1), (0, 1))
    columns = [
        uniform(seed, stream, epoch, np.arange(n) + shift, 2, repeat)[:, 0]
        for seed, stream, epoch, repeat, shift in all_of
    ]
    correlation = np.corrcoef(np.stack(columns))
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 4.8 / np.sqrt(n)  # 1,128 pairs: p = 0.002


def test_every_bit_of_a_counter_turns_half_of_the_bits() -> None:
    places = np.arange(2000)
    before = hashes(0, "order", 0, places, 1)[:, 0]
    for bit in (0, 1, 7, 20, 40):
        after = hashes(0, "order", 0, places ^ (1 << bit), 1)[:, 0]
        turned = np.unpackbits((before ^ after).view(np.uint8)).reshape(-1, 64).mean(0)
        assert np.abs(turned - 0.5).max() < 0.06  # 5 standard deviations


# -- which image when -----------------------------------------------------------------------------


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own() -> None:
    labels = np.zeros(1000, np.int64)
    orders = [epoch_indices(s, e, labels, "none") for s in range(3) for e in range(3)]
    for order in orders:
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(1000))
    assert len({o.tobytes() for o in orders}) == 9
    assert abs(np.corrcoef(np.stack(orders))[0, 1:]).max() < 0.15


@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any),
    balance=st.sampled_from(["sqrt", "full"]),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_balanced_epochs_share_the_places_in_proportion(
    counts: list[int], balance: str, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    order = epoch_indices(seed, 2, labels, balance)  # type: ignore[arg-type]
    assert len(order) == len(labels)
    times = np.bincount(order, minlength=len(labels))
    weights = np.sqrt(counts) if balance == "sqrt" else np.sign(counts).astype(float)
    for c, count in enumerate(counts):
        share = len(labels) * weights[c] / weights.sum()
        got = times[labels == c]
        assert abs(got.sum() - share) < 1
        assert count == 0 or got.max() - got.min() <= 1


def test_the_images_left_out_of_a_balanced_epoch_change() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    seen = set()
    for epoch in range(40):
        seen |= set(epoch_indices(0, epoch, labels, "full").tolist())
    assert seen == set(range(100))


def test_an_epoch_is_its_whole_batches_of_whole_micro_batches() -> None:
    assert steps_per_epoch(1000, 128) == 7
    with pytest.raises(ConfigError, match=r"(?s)128 is more than the 100 .*--train\.batch 64"):
        steps_per_epoch(100, 128)
    with pytest.raises(ConfigError, match=r"train\.batch 10 is not a multiple of the micro"):
        plan(batch=10)


@pytest.mark.parametrize("start", [0, 1, 6, 7, 13, 20])
def test_a_step_is_the_same_wherever_the_run_starts(start: int) -> None:
    labels = np.zeros(61, np.int64)
    config = DataConfig(augment=AUGMENT)
    whole = list(requests(plan(), config, labels, 0, 20))
    part = list(requests(plan(), config, labels, start, 20))
    assert len(whole) == 40
    assert len(part) == 40 - 2 * start
    for a, b in zip(whole[2 * start :], part, strict=True):
        assert a.place == b.place
        assert np.array_equal(a.indices, b.indices)
        assert np.array_equal(a.crop, b.crop)
    epoch = np.concatenate([r.indices for r in whole if r.place.epoch == 1])
    assert np.array_equal(epoch, epoch_indices(0, 1, labels, "none")[:56])


def test_processes_take_contiguous_blocks_of_whole_micro_batches() -> None:
    alone = list(plan(batch=24).places(3, 9, steps=4))
    parts = [list(plan(batch=24, rank=r, world=3).places(3, 9, steps=4)) for r in range(3)]
    together = [p for step in range(6) for r in range(3) for p in parts[r][2 * step : 2 * step + 2]]
    assert together == alone
    assert plan(batch=24, world=3).micros_here == 2
    indices = [place.index for place in alone if place.epoch == 1]
    assert indices == list(range(24))  # counted over the epoch


@given(micro=st.integers(1, 64), micros=st.integers(1, 12), world=st.integers(1, 16))
@settings(max_examples=80, deadline=None)
def test_the_way_out_of_an_uneven_share_works(micro: int, micros: int, world: int) -> None:
    batch = micro * micros
    if micros % world == 0:
        assert plan(batch=batch, micro=micro, world=world).micros_here == micros // world
        return
    with pytest.raises(ConfigError, match=f"{world} processes cannot share") as caught:
        plan(batch=batch, micro=micro, world=world)
    hint = str(caught.value.hint)
    if "--train.micro_batch" in hint:
        smaller = int(hint.split("--train.micro_batch ")[1].split()[0])
        plan(batch=batch, micro=smaller, world=world)
    larger = int(hint.split("--train.batch ")[1].rstrip("."))
    plan(batch=larger, micro=micro, world=world)


@given(n=st.integers(0, 70), batch=st.integers(1, 20), world=st.integers(1, 5))
def test_evaluation_sees_every_image_once_over_all_processes(
    n: int, batch: int, world: int
) -> None:
    parts = [eval_batches(n, batch, rank, world) for rank in range(world)]
    assert len({len(p) for p in parts}) == 1
    assert len({len(b) for p in parts for b in p}) <= 1
    everything = [i for p in parts for b in p for i in b.tolist()]
    assert [i for i in everything if i >= 0] == list(range(n))
    assert all(len(b) <= batch for p in parts for b in p)


# -- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 0.8, 1.0, 2.0, 4.0, 32.0])
def test_beta_inverts_its_distribution_function(alpha: float) -> None:
    us = (np.arange(2000) + 0.5) / 2000
    xs = betas(alpha, us)
    assert (np.diff(xs) >= 0).all()
    assert np.array_equal(xs, 1 - xs[::-1])
    step = 2.0**-20  # to which it is rounded; that matters where the density is infinite
    assert (us >= betainc(alpha, alpha, np.clip(xs - step, 0, 1)) - 2e-5).all()
    assert (us <= betainc(alpha, alpha, np.clip(xs + step, 0, 1)) + 2e-5).all()


def test_drop_path_rises_linearly_and_keeps_the_mean() -> None:
    assert drop_path_rates(5, 0.4) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert drop_path_rates(1, 0.4) == pytest.approx([0.4])
    big = plan(batch=20_000, micro=20_000, depth=3, drop_path_rate=0.4)
    drop = draw_drop_path(big, HERE)
    assert drop is not None
    assert drop.shape == (6, 20_000)
    assert drop.dtype == np.float32
    assert (drop == 0).mean(1) == pytest.approx([0, 0, 0.2, 0.2, 0.4, 0.4], abs=0.015)
    assert drop.mean(1) == pytest.approx([1] * 6, abs=0.03)
    assert np.abs(np.corrcoef(drop[2:])[np.triu_indices(4, 1)]).max() < 4 / np.sqrt(20_000)
    assert draw_drop_path(plan(drop_path_rate=0.0), HERE) is None


def test_parameters_of_a_sample_do_not_depend_on_how_the_batch_is_cut() -> None:
    whole, parts = plan(micro=8), plan(micro=4)
    for draw in (
        lambda p, place: draw_crop(p, AUGMENT, place),
        lambda p, place: draw_flip(p, AUGMENT, place),
        lambda p, place: draw_drop_path(p, place).T,  # type: ignore[union-attr]
    ):
        two = np.concatenate([draw(parts, Place(2, 6)), draw(parts, Place(2, 7))])  # type: ignore[no-untyped-call]
        assert np.array_equal(draw(whole, Place(2, 3)), two)  # type: ignore[no-untyped-call]


def test_stand_ins_are_other_images_and_others_each_time() -> None:
    seen = [tuple(stand_ins(0, e, p, 7, 1000))[1:] for e in range(3) for p in range(3)]
    assert len(set(seen)) == 9
    assert all(len(set(s)) > 8 for s in seen)
    assert all(a != b for a, b in pairwise(seen))
