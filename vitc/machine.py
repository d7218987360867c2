"""What machine is this: its cores, memory and versions, as far as this process may use them."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from vitc.errors import ConfigError, InterruptedRun

if TYPE_CHECKING:
    import torch

SOURCE = Path(__file__).parents[1]  # where vitc is imported from
CGROUP = Path("/sys/fs/cgroup")
CGROUPS_HERE = Path("/proc/self/cgroup")
# kill, Ctrl-C, a terminal that hangs up, and SLURM's --signal=USR1; Windows lacks the last two.
STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)


@contextlib.contextmanager
def sigterm_raises(message: str = "Stopped by SIGTERM.") -> Iterator[None]:
    """SIGTERM raises InterruptedRun within, so that what must be done at the end is done."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise InterruptedRun(message, None, number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def usable_cores() -> int:
    """CPU cores that this process may use, by its affinity and its container's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    for group in _groups("cpu"):
        quota, _, period = _first_line(group / "cpu.max").partition(" ")  # "max 100000": no quota
        if not quota:  # version 1: -1 without a quota
            quota, period = (_first_line(group / f"cpu.cfs_{n}_us") for n in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):
            cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def cores() -> int:
    """This process's share of the usable cores among the processes of a run on this machine."""
    return max(1, usable_cores() // _processes_here())


def memory() -> int:
    """Bytes of memory of the machine or container: this process's share of them."""
    if hasattr(os, "sysconf"):
        limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    else:
        limits = [8 << 30]  # Windows gives no number (untested)
    for group in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _first_line(group / name)
            limits += [int(text)] if text.isdigit() else []  # "max": no limit
    return min(limits) // _processes_here()


SHARED = Path("/dev/shm")


def free_shared_memory() -> int | None:
    """Bytes that are free for batches of loader processes, this process's share; None: no limit is
    known. Containers often have 64 MB."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage(SHARED).free // _processes_here()
    return None


def free_memory() -> int | None:
    """Bytes of memory that can still be taken here; None: not known."""
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [int(s.split()[1]) * 1024 for s in lines if s.startswith("MemAvailable:")]
        for group in _groups("memory"):
            for names in (("max", "current"), ("limit_in_bytes", "usage_in_bytes")):
                most, used = (_first_line(group / f"memory.{name}") for name in names)
                if most.isdigit() and used.isdigit():
                    free.append(max(0, int(most) - int(used) + _cached_files(group)))
        return min(free)
    return None


def status_bytes(key: str) -> int | None:
    """Memory of this process by its name in /proc/self/status, in bytes; None: not on Linux."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None


def _cached_files(group: Path) -> int:
    """Bytes of files that a control group counts as used memory, and gives up when asked."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = (group / "memory.stat").read_text().splitlines()
        values = {name: int(number) for name, number in map(str.split, lines)}
        whole = "total_" if "total_inactive_file" in values else ""  # version 1: with its children
        return values[f"{whole}inactive_file"] + values[f"{whole}active_file"]
    return 0


def _groups(controller: str) -> list[Path]:
    """The control groups that limit this process, from the root to its own: of version 2, and of
    version 1, which has a tree for each controller. In a container its own may be the root."""
    found = {CGROUP, CGROUP / controller}
    with contextlib.suppress(OSError):
        for line in CGROUPS_HERE.read_text().splitlines():
            _, controllers, path = [*line.split(":", 2), "", ""][:3]
            if controllers and controller not in controllers.split(","):
                continue
            root = CGROUP / controller if controllers else CGROUP
            own = root / path.strip("/")
            found |= {own, *(p for p in own.parents if p.is_relative_to(root))}
    return sorted(found)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Within it freed memory stays with this process, where the C library is glibc.

    It returns blocks above 32 MB to the system at once otherwise, which fills the next ones with
    zeros, page by page: of a network at 224 pixels a third to a half of the processor time.
    """
    library = ctypes.CDLL(None) if platform.system() == "Linux" else None
    set_to = getattr(library, "mallopt", None)
    if library is None or set_to is None:
        yield
        return
    set_to(M_MMAP_MAX, 0)
    set_to(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:  # as glibc is after a while
        set_to(M_MMAP_MAX, 65536)
        set_to(M_MMAP_THRESHOLD, 32 << 20)
        set_to(M_TRIM_THRESHOLD, 64 << 20)
        library.malloc_trim(0)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 instructions; without them bf16 is emulated, and slow."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def threads_spin_briefly() -> None:
    """Threads that wait for each other soon sleep, unless the environment asks for something else;
    to be called before torch is imported.

    By default they spin ten times as long, on cores that other programs could use: beside one or
    two of those a core, steps by two threads take 1.5 to 2 times as long (docs/performance.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch computes in one thread, as a loader process does."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def several_processes() -> bool:
    """Whether torchrun has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _processes_here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun


def _first_line(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text().partition("\n")[0].strip()
    return ""


def environment() -> dict[str, Any]:
    """`versions`, `hardware` and `git_commit` (of the working folder; None outside git)."""
    import numpy as np
    import torch

    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        cpu = names[0] if names else cpu
    commit = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        commit = done.stdout.strip()
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return {
        "versions": {
            "vitc": own_version(),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
        "hardware": {
            "platform": platform.platform(),
            "cpu": cpu,
            "cores": usable_cores(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in gpus],
        },
        "git_commit": commit,
    }


def install_line(extra: str) -> str:
    """The command that installs an extra of vitc: of its source tree with the versions that are
    tested, where it is imported from there; else of the vitc that is installed."""
    versions = SOURCE / "constraints.txt"
    if not versions.is_file() or not (SOURCE / "pyproject.toml").is_file():
        return f"pip install 'vitc[{extra}]'"
    with contextlib.suppress(OSError):  # the current folder may have been removed
        if Path.cwd().samefile(SOURCE):
            return f"pip install -c constraints.txt -e '.[{extra}]'"
    return f"pip install -c {shlex.quote(str(versions))} -e {shlex.quote(f'{SOURCE}[{extra}]')}"


def check_installed(what: str, extra: str, *packages: str) -> None:
    """Raises ConfigError: packages of an extra are missing, with the line to install them."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{what} needs {', '.join(missing)}, which is not installed.",
            f"Install it with: {install_line(extra)}",
        )


def own_version() -> str:
    """The version of vitc; "unknown" when run from the source tree."""
    return deciding_versions()["vitc"]


def deciding_versions() -> dict[str, str]:
    """The versions that runs to be compared must share; torch is not imported for them."""
    found = dict.fromkeys(("torch", "vitc"), "unknown")
    for name in found:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def other_versions(then: Mapping[str, Any], here: Mapping[str, Any] | None = None) -> list[str]:
    """`torch 2.13.0 -> 2.14.0`: the deciding versions in which `here` (default: this machine)
    differs, local builds aside."""
    here = deciding_versions() if here is None else here

    def public(text: object) -> str:
        return str(text).partition("+")[0]

    return [
        f"{name} {then.get(name)} -> {here.get(name)}"
        for name in ("torch", "vitc")
        if public(then.get(name)) != public(here.get(name))
    ]


def core_seconds() -> tuple[float, float]:
    """(Seconds that this thread ran, seconds that it could have and waited for a core).

    Known on Linux only; elsewhere (0, 0).
    """
    with contextlib.suppress(OSError, ValueError):
        ran, waited, _ = Path("/proc/thread-self/schedstat").read_text().split()
        return int(ran) / 1e9, int(waited) / 1e9
    return 0.0, 0.0


def processor_seconds() -> float:
    """Processor time of this process and its children since it began, theirs as far as known.

    Children that run are asked for on Linux only; elsewhere they count once they have ended.
    """
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    ticks = 0
    for listing in Path("/proc/self/task").glob("*/children"):
        for pid in listing.read_text().split():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, stat[11:15]))  # its own and its ended children's
    return total + (ticks / os.sysconf("SC_CLK_TCK") if ticks else 0.0)
