"""Each injected fault is recognised by name, since its step, at its place; and nothing healthy."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vitc
from tests.test_loop import assert_same_run, lines, tiny, weights
from vitc.config import RunConfig, read_config
from vitc.data.loader import MicroBatch
from vitc.errors import DivergedError
from vitc.resolve import load_config
from vitc.runs.checkpoint import TrainState
from vitc.runs.folder import Run, last_step
from vitc.runs.legs import lr_at, read_legs
from vitc.training import divergence, guard, loop
from vitc.training import pace as pacing
from vitc.training.divergence import REMEDIES, SUSTAINED, Finding, Watch
from vitc.training.loop import run
from vitc.training.step import train_step
from vitc.training.vitals import batch_norms, measure


def small(**overrides: Any) -> RunConfig:
    """48 steps of a tiny model in a second, evaluated once."""
    base: dict[str, Any] = {
        "model.depth": 2,
        "model.embed_dim": 16,
        "model.num_heads": 2,
        "data.max_train": 96,
        "train.batch": 8,
        "train.epochs": 4,
        "train.eval_every_epochs": 4,
        "train.log_every_steps": 5,
        "train.save_every_steps": 5,
    }
    return tiny(**{**base, **overrides})


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vitals every 10 steps and good states every 20, so that short runs have some."""
    monkeypatch.setattr(guard, "EVERY", 10)
    monkeypatch.setattr(guard, "GOOD_EVERY", (20, 20))


def before_step(
    step: int,
    act: Callable[[TrainState, Sequence[MicroBatch]], object],
    monkeypatch: pytest.MonkeyPatch,
    again: bool = False,
) -> None:
    """Call `act` before a run's step `step`, each time it is taken or (`again`) from it on."""

    def tampered(state: TrainState, *args: Any) -> dict[str, torch.Tensor]:
        if state.step + 1 == step or (again and state.step + 1 > step):
            act(state, args[1])
        return train_step(state, *args)

    monkeypatch.setattr(loop, "train_step", tampered)


def diverged(out: Path, **settings: Any) -> DivergedError:
    with pytest.raises(DivergedError) as caught:
        run(small(**settings), out, quiet=True)
    assert Run(out).status == "diverged"
    return caught.value


def test_a_nan_gradient_is_named_with_its_parameter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(state: TrainState, micros: object) -> None:
        weight = state.model.get_parameter("blocks.1.mlp.fc1.weight")
        weight.register_hook(lambda gradient: gradient * math.nan)

    before_step(7, spoil, monkeypatch)
    error = diverged(tmp_path / "r")
    assert "NaN gradient since step 7 (blocks.1.mlp.fc1.weight)" in error.message
    assert error.hint == REMEDIES["NaN gradient"]
    assert "step_5." in error.message


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_an_exploding_lr_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optim: str
) -> None:
    monkeypatch.setattr(loop.Setup, "lr", lambda self, step: 1e-3 if step < 12 else 1e8)
    error = diverged(tmp_path / "r", optim=optim)
    assert "exploding lr since step 1" in error.message
    assert "--optim.lr" in str(error.hint)
    assert "step_10" in error.message


def poison(state: TrainState, micros: Sequence[MicroBatch]) -> None:
    """Pixels of one image of the batch become infinite."""
    for micro in micros:
        lighting = torch.zeros(len(micro.images), micro.images.shape[1])
        lighting[3] = math.inf
        object.__setattr__(micro, "lighting", lighting)


def poisoned_loader(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitc.data.loader import TrainLoader

    make = TrainLoader._step

    def tampered(loader: TrainLoader, index: int) -> list[MicroBatch]:
        micros = make(loader, index)
        if index == step - 1:
            poison(None, micros)  # type: ignore[arg-type]
        return micros

    monkeypatch.setattr(TrainLoader, "_step", tampered)


def test_one_poisoned_batch_is_named_with_its_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned_loader(9, monkeypatch)
    error = diverged(tmp_path / "r")
    assert "poisoned batch since step 9" in error.message
    assert "pixels are not finite" in error.message
    assert "vitc data check" in str(error.hint)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_an_overflow_in_attention_is_named_with_its_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    def spoil(state: TrainState, micros: object) -> None:
        with torch.no_grad():
            state.model.get_parameter("blocks.1.attn.qkv.weight").mul_(1e20)

    before_step(8, spoil, monkeypatch)
    error = diverged(tmp_path / "r", **{"train.precision": precision})
    assert "attention overflow since step 8 (block 1 attention logits)" in error.message
    assert precision in error.message
    assert "qk_norm" in str(error.hint)


def warned(out: Path) -> list[str]:
    text = (out / "events.log").read_text().splitlines()
    return [line.split("Warning: ")[1] for line in text if "Warning: " in line]


def test_a_dead_batchnorm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(state: TrainState, micros: object) -> None:
        conv = next(m for m in state.model.modules() if isinstance(m, nn.Conv2d))
        with torch.no_grad():
            conv.weight.zero_()
        for norm in batch_norms(state.model).values():
            norm.momentum = 0.5

    before_step(10, kill, monkeypatch, again=True)
    run(small(), tmp_path / "r", quiet=True)
    found = [w for w in warned(tmp_path / "r") if w.startswith("dead BatchNorm")]
    assert len(found) == 1
    assert "since step 40 (stem.layers.0" in found[0]


def test_a_collapsed_output_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def collapse(state: TrainState, micros: object) -> None:
        norm = state.model.get_submodule("norm")
        norm.register_forward_hook(lambda module, args, output: output * 0)

    before_step(20, collapse, monkeypatch)
    run(small(), tmp_path / "r", quiet=True)
    found = [w for w in warned(tmp_path / "r") if w.startswith("collapsed output")]
    assert len(found) == 1
    assert "(head)" in found[0]


def test_a_loss_that_stays_at_chance_is_noticed_once() -> None:
    watch = Watch(chance=2.303, warmup=50)
    found = [f for step in range(1, 600) for f in watch.observe(step, 2.303, 0.1)]
    assert [(f.cause, f.step) for f in found] == [("not learning", 51)]
    learns = Watch(chance=2.303, warmup=50)
    assert not [f for step in range(1, 600) for f in learns.observe(step, 2.29, 0.1)]


def test_a_run_that_takes_more_steps_than_planned_is_not_judged_while_it_warms_up() -> None:
    """Twenty steps to a planned one: the warm-up of 20 planned steps ends after 400."""
    watch = Watch(chance=2.303, warmup=20)
    vitals = {"logit_spread": 1e-6}
    for step in range(1, 401):
        assert not watch.observe(step, 2.303, 0.1, step / 20)
        assert not watch.inspect(step, vitals, step / 20)
    found = [f for step in range(401, 900) for f in watch.observe(step, 2.303, 0.1, step / 20)]
    assert [(f.cause, f.step) for f in found] == [("not learning", 401)]
    found = [f for step in (450, 500) for f in watch.inspect(step, vitals, step / 20)]
    assert [(f.cause, f.step) for f in found] == [("collapsed output", 500)]


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock takes a tenth of a second, so that a budget is one of steps."""
    ticks = itertools.count()
    monkeypatch.setitem(pacing.CLOCKS, "wall", lambda: next(ticks) / 10)


BUDGET = {"train.epochs": 1, "train.budget_seconds": 20.0, "train.eval_every_epochs": 99}


@pytest.mark.usefixtures("ticking")
def test_no_warning_comes_in_a_stretched_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "chance_loss", lambda setup: 0.0)  # no loss is below it
    monkeypatch.setattr(divergence, "CHANCE_STEPS", 40)
    warm = {"optim.schedule.warmup_epochs": 0.7}
    result = run(small(**BUDGET, **warm), tmp_path / "r", quiet=True)
    places = {m["step"]: m["position"] for m in lines(tmp_path / "r") if m["kind"] == "pace"}
    ends = min(step for step, position in places.items() if position > 0.7 * 12)
    assert ends > 60  # of steps: the warm-up is 8 planned ones
    first = next(w for w in warned(tmp_path / "r") if w.startswith("not learning"))
    since = int(first.split("since step ")[1].split(":")[0])
    assert ends - 20 < since < result.summary["step"]


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize("policy", ["stop", "rollback"])
def test_an_explosion_beyond_the_planned_steps_is_named_with_the_rate_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """12 steps are planned; the 61st of those that fit into the time is not finite."""
    rates: list[float] = []

    def explodes(state: TrainState, *args: Any) -> dict[str, torch.Tensor]:
        outcome = train_step(state, *args)
        if 40 < state.step + 1 <= 61 and len(rates) < 70:
            worth = math.nan if state.step == 60 else 50.0
            outcome = {**outcome, "loss": torch.tensor(worth)}
        rates.append(args[2])
        return outcome

    monkeypatch.setattr(loop, "train_step", explodes)
    monkeypatch.setattr(divergence, "SUSTAINED", 50)  # the nan comes first
    settings = {**BUDGET, "train.on_divergence": policy}
    if policy == "rollback":
        result = run(small(**settings), tmp_path / "r", quiet=True)
        (record,) = result.summary["rollbacks"]
        assert (record["at"], record["cause"]) == (61, "exploding lr")
        assert result.status == "done"
        return
    message = diverged(tmp_path / "r", **settings).message
    assert "exploding lr since step 41" in message
    assert f"lr {rates[60]:.3g}" in message
    total = int(message.split(" of ")[1].split(":")[0])
    assert total > 61  # of the time, not of the plan


def sequence(watch: Watch, values: Sequence[tuple[float, float]]) -> list[Finding]:
    return [f for step, v in enumerate(values, 1) for f in watch.observe(step, *v)]


def test_a_finite_poisoned_batch_and_a_finite_explosion_differ() -> None:
    usual = [(1.0 + 0.1 * (i % 3), 2.0 + i % 2) for i in range(40)]
    found = sequence(Watch(2.3), [*usual, (60.0, 5000.0), *usual])
    assert [(f.cause, f.step) for f in found] == [("poisoned batch", 41)]
    found = sequence(Watch(2.3), [*usual, *[(60.0, 5000.0)] * (SUSTAINED + 5), *usual])
    assert [(f.cause, f.step) for f in found] == [("exploding lr", 41)]
    bursts = [*usual, *[(60.0, 50.0)] * (SUSTAINED - 1), *usual]  # it recovers
    assert not sequence(Watch(2.3), bursts)


def test_a_watch_resumes_where_it_was() -> None:
    values = [(1.0, 2.0 + i % 2) for i in range(40)] + [(60.0, 5000.0)] + [(1.0, 2.0)] * 9
    whole = Watch(2.3)
    expected = [whole.observe(i, *v) for i, v in enumerate(values)]
    for cut in (10, 41, 42, 43):
        first, second = Watch(2.3), Watch(2.3)
        found = [first.observe(i, *v) for i, v in enumerate(values[:cut])]
        second.resume(first.state)
        found += [second.observe(i, *v) for i, v in enumerate(values[cut:], cut)]
        assert found == expected
        assert second.state == whole.state


def test_rollback_returns_to_a_good_state_and_finishes_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned_loader(27, monkeypatch)
    config = small(**{"train.on_divergence": "rollback"})
    result = run(config, tmp_path / "r", quiet=True)
    assert result.status == "done"
    events = (tmp_path / "r" / "events.log").read_text()
    assert "rolled back from step 27 to step 20: poisoned batch since step 27" in events
    record = {"at": 27, "since": 27, "cause": "poisoned batch", "lr_factor": 0.5, "to": 20}
    record["lr"] = config.optim.lr
    assert result.summary["rollbacks"] == [record]
    train = {m["step"]: m for m in lines(tmp_path / "r") if m["kind"] == "train"}
    assert sorted(train) == list(range(5, result.summary["step"] + 1, 5))
    assert train[25]["lr"] < 0.6 * train[20]["lr"]
    assert all(bool(v.isfinite().all()) for v in weights(tmp_path / "r").values())


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [25, 30], ids=["before", "after"])
def test_a_run_that_is_rolled_back_resumes_bit_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    from tests.test_loop import stop_after

    poisoned_loader(27, monkeypatch)
    config = small(**{"train.on_divergence": "rollback"})
    run(config, tmp_path / "whole", quiet=True)
    stop_after(config, tmp_path / "cut", step=stop_at)
    run(config, tmp_path / "cut", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("last", ["after", "before"], ids=lambda v: f"killed {v} the change")
@pytest.mark.parametrize("old", [False, True], ids=["", "begun by an earlier version"])
def test_an_lr_that_is_set_after_a_rollback_is_not_cut_and_resumes_bit_exactly(
    old: bool, last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_loop import stop_after

    poisoned_loader(27, monkeypatch)
    keep = {"train.keep_checkpoints": 99, "train.log_every_steps": 1}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    stop_after(small(**{"train.on_divergence": "rollback", **keep}), whole, step=33)
    border = last_step(whole / "checkpoints")
    if old:
        forget_rates(whole / "checkpoints")
    vitc.train(whole, **{"optim.lr": 4e-4})
    assert "without the 1 cut by rollbacks so far" in (whole / "events.log").read_text()
    config, legs = read_config(whole), read_legs(whole, read_config(whole))
    rates = {m["step"]: m["lr"] for m in lines(whole) if m["kind"] == "train"}
    planned = {step: lr_at(config, legs, step - 1, 12) for step in rates}
    assert rates == {s: lr * (0.5 if 20 < s <= border else 1) for s, lr in planned.items()}
    assert rates[border + 1] == rates[border] * planned[border + 1] / (0.5 * planned[border])

    shutil.copytree(whole, cut)
    (cut / "summary.json").unlink()
    (cut / "checkpoints" / "latest").unlink()
    for path in (cut / "checkpoints").glob("step_*"):
        if int(path.name[5:]) > {"after": border + 6, "before": border - 1}[last]:
            shutil.rmtree(path)
    run(config, cut, quiet=True)
    assert_same_run(whole, cut)


def forget_rates(checkpoints: Path) -> None:
    """Write the checkpoints as versions did that had one factor for the whole run."""
    from vitc.runs.checkpoint import _encode

    for file in checkpoints.glob("step_*/state.json"):
        state = json.loads(file.read_text())
        del state["self"]
        watch = state["extra"]["watch"]
        for record in watch["rollbacks"]:
            del record["lr"]
        watch["lr_factor"] = 0.5 ** len(watch["rollbacks"])
        own = hashlib.sha256(_encode(state).encode()).hexdigest()
        file.write_text(_encode({**state, "self": own}, indent=1))


def test_an_lr_that_is_set_after_too_many_rollbacks_may_be_rolled_back_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MOST_ROLLBACKS", 1)
    for step in (27, 33):
        poisoned_loader(step, monkeypatch)
    message = diverged(tmp_path / "r", **{"train.on_divergence": "rollback"}).message
    assert "Rolled back 1 time; not again" in message
    result = vitc.train(tmp_path / "r", **{"optim.lr": 4e-4})
    assert result.status == "done"
    first, second = result.summary["rollbacks"]
    assert (first["lr"], first["lr_factor"]) == (small().optim.lr, 0.5)
    assert (second["lr"], second["lr_factor"]) == (4e-4, 0.5)


def test_rollback_ends_where_it_does_not_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(state: TrainState, micros: object) -> None:
        with torch.no_grad():
            state.model.get_parameter("blocks.1.attn.qkv.weight").mul_(1e20)

    before_step(8, spoil, monkeypatch, again=True)
    error = diverged(tmp_path / "r", **{"train.on_divergence": "rollback"})
    assert "Rolled back 5 times" in error.message


def test_continue_leaves_the_step_out_and_keeps_the_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned_loader(5, monkeypatch)
    config = small(**{"train.on_divergence": "continue"})
    result = run(config, tmp_path / "r", quiet=True)
    assert result.status == "done"
    assert [w.split(": ")[0] for w in warned(tmp_path / "r")] == ["step 5 is left out"]
    assert result.summary["skipped_steps"] == 1
    assert all(bool(v.isfinite().all()) for v in weights(tmp_path / "r").values())


def test_continue_ends_where_nothing_is_finite_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_step(3, poison, monkeypatch, again=True)
    monkeypatch.setattr(guard, "MOST_SKIPPED", 12)
    error = diverged(tmp_path / "r", **{"train.on_divergence": "continue"})
    assert "12 steps in a row" in error.message


def test_vitals_are_of_each_block_and_change_nothing(tmp_path: Path) -> None:
    run(small(), tmp_path / "r", quiet=True)
    found = [m for m in lines(tmp_path / "r") if m["kind"] == "watch"]
    assert [m["step"] for m in found] == list(range(10, 49, 10))
    first = found[0]
    depth = len(first["activation_rms"])
    assert len(first["attention_logit"]) == len(first["attention_entropy"]) == depth > 1
    assert all(0 < e <= 1.001 for e in first["attention_entropy"])
    assert 0 < first["update_ratio"] < 0.1
    assert first["logit_spread"] > 0.01
    assert not warned(tmp_path / "r")


def test_vitals_equal_what_a_forward_pass_computes() -> None:
    from vitc.models.zoo import create_model

    model = create_model("vit_c_tiny", num_classes=5, img_size=32).train()
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    images = torch.randn(4, 3, 32, 32)
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    vitals = measure(model, images)
    assert model.training
    assert all(torch.equal(v, buffers[k]) for k, v in model.named_buffers())
    model.eval()
    with torch.no_grad():
        logits = model(images)
        tokens = model.embed(images)
        q, k, _ = model.blocks[0].attn.heads(model.blocks[0].norm1(tokens))
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    assert vitals["attention_logit"][0] == pytest.approx(float(scores.abs().max()), rel=1e-4)
    entropy = torch.distributions.Categorical(logits=scores).entropy().mean()
    expected = float(entropy) / math.log(scores.shape[-1])
    assert vitals["attention_entropy"][0] == pytest.approx(expected, rel=1e-4)
    spread = logits.std(0, correction=0).mean() / logits.square().mean().sqrt()
    assert vitals["logit_spread"] == pytest.approx(float(spread), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "optim"), [("fashion_vit_c", "adamw"), ("fashion_vit_p", "sgd")]
)
def test_a_shipped_recipe_gives_no_warning(tmp_path: Path, recipe: str, optim: str) -> None:
    config = load_config(
        recipe,
        optim=optim,
        **{
            "data.max_train": 160,
            "train.batch": 8,
            "train.epochs": 2,
            "train.eval_every_epochs": 2,
            "train.precision": "fp32",
            "train.threads": 1,
        },
    )
    run(config, tmp_path / "r", quiet=True)
    assert len(Run(tmp_path / "r").metrics("watch")) == 4
    assert not warned(tmp_path / "r")
