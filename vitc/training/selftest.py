"""Does a device compute what the CPU does? Loss, gradients and one update of a small ViT_C.

Some devices train wrongly without an error. Run as a program, this prints one JSON object a line as
it proceeds, so that whoever started it knows how much was done should a library end the process.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

MODEL, BATCH, CLASSES, LR = "vit_c_tiny", 8, 10, 1e-3
TOLERANCE = 1e-3  # relative; fp32 on a sound device differs by 1e-6 to 1e-5
LEAST_SHARE = 1e-3  # of the whole gradient's norm: a smaller tensor is measured against that


class FirstStep(NamedTuple):
    """What one step gave, on the CPU in fp64."""

    loss: float
    gradients: Mapping[str, torch.Tensor]
    next_loss: float
    """Of the same images after AdamW's update."""


def first_step(device: torch.device, dtype: torch.dtype) -> FirstStep:
    """The first step from fixed weights on fixed images; no parameter is zero."""
    import torch

    from vitc.config import RunConfig
    from vitc.models.zoo import model_config
    from vitc.optim.optimizers import AdamWConfig
    from vitc.training.build import fresh_state

    model_of = model_config(MODEL)
    config = RunConfig(model=model_of, optim=AdamWConfig(lr=LR, weight_decay=0.1))
    state = fresh_state(config, CLASSES, 100, device)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in state.model.parameters():  # a fresh head is zero: no gradient would pass
            noise = 0.02 * torch.randn(parameter.shape, generator=draws)
            parameter.add_(noise.to(device))
    model = state.model.to(dtype)
    images = torch.randn(BATCH, model_of.in_chans, *model_of.size, generator=draws)
    images, labels = images.to(device, dtype), (torch.arange(BATCH) % CLASSES).to(device)

    def loss() -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(images), labels)

    before = loss()
    before.backward()  # type: ignore[no-untyped-call]
    gradients = {
        name: p.grad.detach().to("cpu").double()
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    state.optimizer.step()
    with torch.no_grad():
        after = loss()
    return FirstStep(before.item(), gradients, after.item())


def differences(step: FirstStep, reference: FirstStep) -> dict[str, Any]:
    """Relative differences: `loss`, `gradient` (of the tensor `worst`), `next_loss`; and `ok`."""
    import torch

    norms = {name: g.norm().item() for name, g in reference.gradients.items()}
    least = LEAST_SHARE * torch.tensor([*norms.values()]).norm().item()
    apart = {
        name: (step.gradients[name] - g).norm().item() / max(norms[name], least)
        for name, g in reference.gradients.items()
    }
    worst = max(apart, key=lambda name: (apart[name] != apart[name], apart[name]))  # nan is worst
    found = {
        "loss": abs(step.loss - reference.loss) / abs(reference.loss),
        "gradient": apart[worst],
        "next_loss": abs(step.next_loss - reference.next_loss) / abs(reference.next_loss),
    }
    return {**found, "worst": worst, "ok": all(value <= TOLERANCE for value in found.values())}


def devices() -> list[torch.device]:
    """Every device that torch sees, the CPU first."""
    import torch

    found = [torch.device("cpu")]
    found += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return found + ([torch.device("mps")] if torch.backends.mps.is_available() else [])


def self_test() -> Iterator[dict[str, Any]]:
    """Each device against the CPU in fp32, and that against the CPU in fp64."""
    import torch

    from vitc.training.device import describe

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    reference = first_step(torch.device("cpu"), torch.float64)
    for device in devices():
        yield {"begin": f"the self-test of {device}"}
        about: dict[str, Any] = {"device": str(device)}
        try:
            about["about"] = describe(device)
            step = first_step(device, torch.float32)
            yield {**about, **differences(step, reference), "against": str(reference_name(device))}
        except Exception as error:  # any failure of a driver or a kernel is a finding
            yield {**about, "ok": False, "error": one_line(error)}
            continue
        if device.type == "cpu":
            reference = step


def reference_name(device: torch.device) -> str:
    return "the CPU in fp64" if device.type == "cpu" else "the CPU in fp32"


def imports(modules: list[str]) -> Iterator[dict[str, Any]]:
    """Each module, and why it cannot be imported, if so."""
    for module in modules:
        yield {"begin": f"import {module}"}
        why = None
        try:
            importlib.import_module(module)
        except BaseException as error:
            why = one_line(error)
        yield {"module": module, "error": why}


def versions() -> Iterator[dict[str, Any]]:
    import torch

    yield {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def main() -> None:
    """Core modules, the self-test, then the modules of extras that are named after `--`."""
    split = sys.argv.index("--")
    core, extras = sys.argv[1:split], sys.argv[split + 1 :]
    parts: list[Callable[[], Iterator[dict[str, Any]]]] = [
        lambda: imports(core),
        versions,
        self_test,
        lambda: imports(extras),
    ]
    for part in parts:
        try:
            for line in part():
                print(json.dumps(line), flush=True)
        except Exception as error:
            print(json.dumps({"failed": one_line(error)}), flush=True)


if __name__ == "__main__":
    main()
