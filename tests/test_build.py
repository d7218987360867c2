"""What cannot work is found while a model is built, before the first step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitc.errors import ConfigError
from vitc.resolve import load_config
from vitc.training.build import initial_model
from vitc.training.device import machine_settings


def build(**settings: Any) -> torch.nn.Module:
    model = settings.pop("model", "vit_c_tiny")
    return initial_model(load_config("debug", model=model, **settings), 10)


def test_batch_norm_of_one_value_is_found_without_a_step() -> None:
    one = {"train.batch": 1, "model.img_size": 8}
    with pytest.raises(ConfigError, match=r"train\.batch 1.*img_size 8.*one value per channel"):
        build(**one)
    build(**{**one, "train.batch": 2})
    build(**{**one, "model.img_size": 32})
    build(**one, model="vit_p_tiny")  # it has no BatchNorm
    build(**one, **{"train.freeze": ("backbone",)})  # frozen norms take no statistics


def test_the_check_draws_no_number() -> None:
    state = torch.get_rng_state()
    weights = [list(build(**{"train.batch": b}).state_dict().values()) for b in (1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_beyond_the_memory_are_refused_with_their_size() -> None:
    with pytest.raises(ConfigError, match=r"take [\d,.]+ GB.*of memory"):
        build(**{"model.embed_dim": 32_768, "model.depth": 50})


def test_more_threads_than_cores_can_serve_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitc.training.device.usable_cores", lambda: 2)
    config = load_config("debug", **{"train.threads": 17}).train
    with (
        pytest.raises(ConfigError, match=r"train\.threads 17.*2 cores"),
        machine_settings(config, torch.device("cpu")),
    ):
        pass
