"""Names show which images belong together, as people name them; plain names show nothing."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable

import numpy as np
import pytest

from vitc.data.name_groups import codes_of, divides, keys_of, name_groups, numbered, time_of
from vitc.data.store import Ints

Name = Callable[[str, int], str]
EACH = 120  # images of a class
PEOPLE = ("alice", "bob", "carol", "dave", "erin", "frank", "gina")
AUGMENTED = ("", "_flip", "_rot90", "_bright")
LEAF = ("", "_90deg", "_new30degFlipLR", "_flipTB")


def digest(text: object) -> str:
    return hashlib.md5(str(text).encode()).hexdigest()


def spread(i: object, most: int) -> int:
    """A number below `most` that looks random."""
    return int(digest(i), 16) % most


def images(name: Name) -> tuple[list[str], Ints]:
    names = [f"{c}/{name(c, i)}" for c in ("cat", "dog") for i in range(EACH)]
    return names, np.repeat([0, 1], EACH)


# Name, what finds it, and how many images have their group in common.
GROUPED: dict[str, tuple[Name, str, int]] = {
    "person and counter": (lambda c, i: f"person{i // 10}_{i % 10:03}.jpg", "numbers", 20),
    "X-rays": (lambda c, i: f"person{i // 4}_{'bact' if i % 2 else 'vir'}_{i}.jpeg", "numbers", 8),
    "patients": (lambda c, i: f"{1000 + i // 3:08}_{i % 3:03}.png", "numbers", 6),
    "eyes": (lambda c, i: f"{i // 2}_{'left' if i % 2 else 'right'}.jpeg", "numbers", 4),
    "cells": (
        lambda c, i: (
            f"C{100 + i // 15}P{61 + i // 15}ThinF_IMG_20150918_14{i // 9:02}04_cell_{i}.png"
        ),
        "numbers",
        30,
    ),
    "actions": (lambda c, i: f"v_{c}_g{i // 20:02}_c{i % 20 // 5}_f{i % 5}.jpg", "numbers", 20),
    "video": (lambda c, i: f"video_{i // 12}_frame_{i % 12}.png", "numbers", 24),
    "glued": (lambda c, i: f"p{i // 20:02}s{i % 20:02}.jpg", "numbers", 40),
    "video by hash": (lambda c, i: f"{digest(i // 6)}_{i % 6}.jpg", "numbers", 12),
    "people": (lambda c, i: f"{PEOPLE[i % 7]}_{i // 7:02}.jpg", "words", 36),
    "folders": (lambda c, i: f"subject{i // 20:02}/{i % 20:04}.png", "folders", 40),
    "Roboflow": (lambda c, i: f"img{i // 3:03}_jpg.rf.{digest((c, i))}.jpg", "copies", 3),
    "augmented": (lambda c, i: f"{i // 4:04}{AUGMENTED[i % 4]}.jpg", "copies", 4),
    "leaves": (
        lambda c, i: f"{uuid.UUID(digest((c, i // 4)))}___B.Sp 58{LEAF[i % 4]}.JPG",
        "copies",
        4,
    ),
    "copied": (lambda c, i: f"photo{i // 2}{' - Copy' if i % 2 else ''}.jpg", "copies", 2),
}
PLAIN: dict[str, Name] = {
    "numbers": lambda c, i: f"{i:03}.jpg",
    "numbers over all": lambda c, i: f"{i + EACH * (c == 'dog'):05}.jpg",
    "camera": lambda c, i: f"IMG_{i:04}.jpg",
    "class": lambda c, i: f"{c}_{i:03}.jpg",
    "class and dot": lambda c, i: f"{c}.{i}.jpg",
    "ImageNet": lambda c, i: f"n0144{len(c) + (c == 'dog')}764_{spread((c, i), 20000)}.JPEG",
    "UUID": lambda c, i: f"{uuid.UUID(digest((c, i)))}.jpg",
    "hash": lambda c, i: f"{digest((c, i))}.jpg",
    "short hash": lambda c, i: f"{digest((c, i))[:8]}.jpg",
    "shorter hash": lambda c, i: f"{digest((c, i))[:5]}.jpg",
    "flickr": lambda c, i: f"{10**9 + spread((c, i), 10**9)}_{digest(i)[:10]}.jpg",
    "downloads": lambda c, i: f"images ({i}).jpg" if i else "images.jpg",
    "days": lambda c, i: f"IMG_2020{1 + i % 12:02}{1 + i % 28:02}_{spread(i, 235959):06}.jpg",
    "dashes": lambda c, i: f"2020-{1 + i % 12:02}-{1 + i % 28:02} 12.{i % 60:02}.{i % 59:02}.jpg",
    "WhatsApp": lambda c, i: f"IMG-2020{1 + i % 12:02}{1 + i % 28:02}-WA{i % 30:04}.jpg",
    "COCO": lambda c, i: f"COCO_train2014_{spread((c, i), 500000):012}.jpg",
    "times": lambda c, i: f"{1578234567890 + spread((c, i), 10**9)}.jpg",
    "generated": lambda c, i: f"{c}-{i}-{i % 3}.jpg",
}


@pytest.mark.parametrize("case", GROUPED)
def test_what_names_say_of_groups_is_found(case: str) -> None:
    name, why, size = GROUPED[case]
    names, labels = images(name)
    first = name_groups(names, labels)[0]
    assert first.why == why
    keys = keys_of(first.regex, names)
    sizes = {keys.count(key) for key in set(keys)}
    assert None not in keys
    assert max(sizes) == size
    assert divides(codes_of(keys), labels)


@pytest.mark.parametrize("case", PLAIN)
def test_plain_names_form_no_groups(case: str) -> None:
    assert name_groups(*images(PLAIN[case])) == []


def test_a_word_for_people_or_videos_makes_it_certain() -> None:
    assert name_groups(*images(GROUPED["person and counter"][0]))[0].named
    assert name_groups(*images(GROUPED["folders"][0]))[0].named
    assert not name_groups(*images(GROUPED["glued"][0]))[0].named


def test_the_start_is_that_of_the_file_and_not_of_its_folders() -> None:
    names, labels = images(lambda c, i: f"{i // 4}_{i % 4}.jpg")
    names = [name.replace("cat/", "2020_set/cat1/") for name in names]
    keys = keys_of(name_groups(names, labels)[0].regex, names)
    assert keys == [str(i // 4) for i in range(EACH)] * 2


def test_several_shapes_of_names_are_joined() -> None:
    names, labels = images(
        lambda c, i: f"person{i // 4}_{i}.jpg" if i % 2 else f"IM-{i // 6:04}-{i:04}.jpg"
    )
    (found,) = name_groups(names, labels)
    keys = keys_of(found.regex, names)
    assert {keys[0], keys[1]} == {"IM-0000", "person0"}


@pytest.mark.parametrize(
    ("name", "block", "last", "series"),
    [
        (lambda c, i: f"IMG_{1000 + i + EACH * (c == 'dog')}.JPG", r"IMG_(\d*)\d\.", "123", 1),
        (lambda c, i: f"IMG_{1000 + i}.JPG", r"([^/]+/IMG_\d*)\d\.", "dog/IMG_111", 2),
        (lambda c, i: f"{1000 + i + EACH * (c == 'dog')}_l.jpg", r"(\d*)\d_l\.", "123", 1),
    ],
    ids=["all folders", "each folder", "with an end"],
)
def test_running_numbers_are_cut_into_blocks(
    name: Name, block: str, last: str, series: int
) -> None:
    names, _ = images(name)
    files = numbered(names)
    assert files is not None
    assert [names[i] for i in files.order.tolist()] == names
    assert (~files.follows).sum() == series - 1
    assert files.blocks[0] == block
    keys = keys_of(block, names)
    assert keys[-1] == last
    assert {keys.count(key) for key in set(keys)} == {10}


def test_names_without_running_numbers_are_in_no_order() -> None:
    assert numbered(images(PLAIN["hash"])[0]) is None
    assert numbered(["a.jpg", "b.jpg"]) is None


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("a/IMG_20200102_030405.jpg", 5),
        ("2020-01-02 03.04.07.png", 7),
        ("Screenshot 2020-01-02 at 03.04.09.png", 9),
        ("PXL_20200102_030411123.jpg", 11),
        ("20209902_030405.jpg", None),
        ("IMG_1234.jpg", None),
    ],
)
def test_a_time_in_a_name_is_read(name: str, seconds: int | None) -> None:
    found = time_of(name)
    if seconds is None:
        assert np.isnan(found)
    else:
        assert found % 60 == seconds
