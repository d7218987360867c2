"""Where and in which arithmetic a run computes: device, precision, threads."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import torch

from vitc.errors import ConfigError
from vitc.machine import memory_kept, status_bytes, usable_cores
from vitc.training.config import TrainConfig
from vitc.wording import counted


def pick_device(name: str = "auto") -> torch.device:
    """cuda, else mps, else cpu; or the named one, refused where it is absent."""
    gpus = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    present = [*(n for n, there in gpus.items() if there), "cpu"]
    if name not in ("auto", "cuda", "mps", "cpu"):
        raise ConfigError(f"Unknown device {name!r}.", "Allowed: auto, cuda, mps, cpu.")
    if name == "auto":
        name = present[0]
    if name not in present:
        raise ConfigError(
            f"Device {name!r} is not available here.", f"Available: {', '.join(present)}."
        )
    if name == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(name)


def describe(device: torch.device) -> str:
    """The device in a few words, and whether its platform is untested."""
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        return f"cuda ({p.name}, {p.total_memory / 2**30:.0f} GiB)"
    if device.type == "mps":
        return f"mps ({platform.processor() or 'Apple'}; untested platform)"
    tested = "" if platform.system() == "Linux" else "; untested platform"
    return f"cpu ({counted(torch.get_num_threads(), 'thread')}{tested})"


def kind_of(device: torch.device) -> str:
    """What decides which bits a step has: the sort of device, and of a GPU its name."""
    if device.type != "cuda":
        return device.type
    return f"cuda ({torch.cuda.get_device_name(device)})"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass in that precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextmanager
def machine_settings(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Threads and determinism as configured; the previous settings are restored afterwards."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if config.threads is not None:
        if config.threads > (most := max(16, 4 * usable_cores())):  # they would only wait
            raise ConfigError(
                f"train.threads {config.threads} is far more than the {usable_cores()} cores here.",
                f"At most {most}, 4 a core; leave it out for torch's choice.",
            )
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not config.deterministic
    try:
        with memory_kept() if device.type == "cpu" else nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)
        if config.deterministic:  # torch's setter imports its compiler, which takes two seconds
            torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark


def forget_peak_memory(device: torch.device) -> None:
    """Reset `peak_memory`, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets the peak of VmHWM


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the peak: of the allocator on a GPU, of the whole process on Linux, else None."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return status_bytes("VmHWM")
