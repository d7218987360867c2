"""Is this machine ready? Versions, extras, memory, disk, and whether its devices compute rightly.

Whatever imports torch runs in a process of its own (`training.selftest`), so that a library or a
driver that ends or hangs its process is a line of the report. Nothing here needs more than Python.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitc import machine
from vitc.training.selftest import TOLERANCE
from vitc.views.model import Bullets, Part, Table, Text
from vitc.wording import short, size

MODULES = {"pillow": "PIL"}  # import names, where they differ from the package's
TRIED = ("torchvision", "timm")  # of the extras: what a torch of another build keeps from importing
TEST_SECONDS = 120.0
LEAST_SHARED = 256 << 20  # bytes of /dev/shm, through which loader processes hand over images
LEAST_FREE = 1 << 30  # bytes of disk


@dataclass
class Diagnosis:
    """What was found. An error keeps vitc from working, a warning a part of it."""

    values: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def record(self) -> dict[str, Any]:
        """For `--json`."""
        status = "failed" if self.errors else "good"
        return {"status": status, **self.values, "errors": self.errors, "warnings": self.warnings}


def examine() -> Diagnosis:
    """Look at this machine and test its devices; takes seconds and raises nothing."""
    found = Diagnosis()
    required = requirements()
    _versions(found, required.get("", {}))
    _extras(found, required)
    _resources(found)
    _tested(found, list(required.get("", {})))
    return found


def requirements() -> dict[str, dict[str, str]]:
    """Packages with their lowest versions, of each extra and, under "", of vitc itself.

    Of pyproject.toml in a source tree, which may be newer than what pip recorded; else of that.
    """
    lines: list[tuple[str, str]] = []
    with suppress(OSError, ValueError, KeyError):
        project = tomllib.loads((machine.SOURCE / "pyproject.toml").read_text(encoding="utf-8"))[
            "project"
        ]
        if project["name"] == "vitc":
            extras = project["optional-dependencies"]
            lines = [("", line) for line in project["dependencies"]]
            lines += [(extra, line) for extra, each in extras.items() for line in each]
    if not lines:
        with suppress(importlib.metadata.PackageNotFoundError):
            for line in importlib.metadata.requires("vitc") or []:
                package, _, marker = line.partition(";")
                extra = re.search(r"extra == ['\"]([\w-]+)", marker)
                lines.append((extra[1] if extra else "", package))
    required: dict[str, dict[str, str]] = {}
    for extra_name, line in lines:
        if name := re.match(r"[\w.-]+", line):
            least = re.search(r">=\s*([\d.]+)", line)
            required.setdefault(extra_name, {})[name[0]] = least[1] if least else ""
    return required


def _lacking(package: str, least: str) -> str:
    """`torch (absent)`, `torch 2.9 (needs 2.11)`, or "" where it is there."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"{package} (absent)"
    have, need = (
        [int(n) for n in re.findall(r"\d+", v.partition("+")[0])] for v in (version, least)
    )
    return f"{package} {version} (needs {least})" if have < need else ""


def _versions(found: Diagnosis, core: dict[str, str]) -> None:
    versions = {"python": platform.python_version(), "vitc": machine.own_version()}
    for package, least in core.items():
        lacking = _lacking(package, least)
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
        if lacking:
            wanted = f"{package}>={least}" if least else package
            found.errors.append(f"{lacking}: vitc needs it. pip install '{wanted}'")
    found.values |= {"versions": versions, "imported_from": str(machine.SOURCE)}


def _extras(found: Diagnosis, required: dict[str, dict[str, str]]) -> None:
    extras = {}
    for extra, packages in sorted(required.items()):
        if extra:
            lacking = [why for name, least in packages.items() if (why := _lacking(name, least))]
            install = machine.install_line(extra) if lacking else None
            extras[extra] = {"present": not lacking, "lacking": lacking, "install": install}
    found.values["extras"] = extras


def _resources(found: Diagnosis) -> None:
    resources: dict[str, Any] = {
        "platform": platform.platform(),
        "cores": machine.usable_cores(),
        "memory_bytes": machine.memory(),
        "free_memory_bytes": machine.free_memory(),
        "disk_folder": None,
        "free_disk_bytes": None,
        "shared_memory_bytes": None,
    }
    try:
        folder = Path.cwd()
        free = shutil.disk_usage(folder).free
        resources |= {"disk_folder": str(folder), "free_disk_bytes": free}
        if free < LEAST_FREE:
            found.warnings.append(f"Only {size(free)} are free in {folder}, where runs/ goes.")
    except OSError as error:
        found.errors.append(f"The folder you are in cannot be used: {error.strerror}. cd elsewhere")
    with suppress(OSError):
        shared = shutil.disk_usage("/dev/shm").total
        resources["shared_memory_bytes"] = shared
        if shared < LEAST_SHARED:
            found.warnings.append(
                f"/dev/shm has {size(shared)}, little for loader processes: start the container "
                "with more (docker run --shm-size=8g), or use --data.workers 0."
            )
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > resources["cores"]:
        found.warnings.append(
            f"OMP_NUM_THREADS={threads} is more than the {resources['cores']} cores here: threads "
            "wait for each other. Unset it."
        )
    found.values |= resources


def _tested(found: Diagnosis, core: list[str]) -> None:
    """Import what is installed, and compute a step on every device, in another process."""
    tried = [name for name in TRIED if importlib.util.find_spec(name) is not None]
    modules = [MODULES.get(name, name) for name in core]
    lines, end = _run_self_test([*modules, "--", *tried])
    devices: list[dict[str, Any]] = []
    begun, broken = "the self-test", False
    for line in lines:
        begun = line.get("begin", begun)
        if line.get("error") and line.get("module") in TRIED:
            found.warnings.append(_cure(line["module"], line["error"]))
        elif line.get("error") and "module" in line:
            module = line["module"]
            package = next((p for p, m in MODULES.items() if m == module), module)
            cure = f"pip install --force-reinstall {package}"
            broken = True
            found.errors.append(f"{module} cannot be imported: {line['error']}. {cure}")
        elif "torch" in line:
            found.values |= {"cuda": line["cuda"], "threads": line["threads"]}
        elif "failed" in line and not broken:
            found.errors.append(f"The self-test failed: {line['failed']}")
        elif "device" in line:
            devices.append(line)
            if not line["ok"]:
                found.errors.append(_wrong(line))
    if end:
        found.errors.append(f"{begun[0].upper()}{begun[1:]} {end}")
    found.values["devices"] = devices


def _run_self_test(words: list[str]) -> tuple[list[dict[str, Any]], str]:
    """The lines it printed, and how it ended where it did not end well."""
    command = [sys.executable, "-m", "vitc.training.selftest", *words]
    paths = [str(machine.SOURCE), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TEST_SECONDS, env=environment
        )
        output, end = done.stdout, ""
        if done.returncode < 0:
            with suppress(ValueError):
                end = f"ended its process by {signal.Signals(-done.returncode).name}."
        if done.returncode and not end:
            last = (done.stderr.strip().splitlines() or ["without a message"])[-1]
            end = f"ended with exit code {done.returncode}: {short(last)}"
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
        output = printed if isinstance(printed, str) else printed.decode(errors="replace")
        end = f"did not end within {TEST_SECONDS:.0f} s."
    except OSError as error:
        return [], f"cannot be started: {error.strerror}."
    lines = []
    for line in output.splitlines():
        with suppress(ValueError):  # a library printed something of its own
            values = json.loads(line)
            lines += [values] if isinstance(values, dict) else []
    return lines, end


def _cure(module: str, why: str) -> str:
    if "torchvision::" not in why:
        return f"{module} is installed and cannot be imported: {why}."
    there = {}
    for name in ("torch", "torchvision"):
        with suppress(importlib.metadata.PackageNotFoundError):
            there[name] = importlib.metadata.version(name)
    pair = " beside ".join(f"{name} {there.get(name, '')}".strip() for name in (module, "torch"))
    exact = there.get("torchvision", "").partition("+")[0]
    build = there.get("torch", "").partition("+")[2]
    return (
        f"{pair} cannot be imported: torchvision was built for another build of torch. vitc itself "
        "works around it; other programs do not. Fix: install the build that belongs to this "
        f"torch, from where torch came (--index-url): pip install --force-reinstall --no-deps "
        f"'torchvision=={exact}{f'+{build}' if build else ''}'"
    )


def _wrong(line: dict[str, Any]) -> str:
    if "error" in line:
        return f"{line['device']} cannot take a training step: {line['error']}."
    return (
        f"{line['device']} computes wrong values: against {line['against']} the first loss differs "
        f"by {line['loss']:.1e} (relative), the gradient of {line['worst']} by "
        f"{line['gradient']:.1e}, the loss after one update by {line['next_loss']:.1e}; rounding "
        f"makes 1e-5, {TOLERANCE:g} is allowed. Do not train on it: use --train.device cpu, or "
        "another version of torch or of the driver."
    )


def page(found: Diagnosis) -> list[Part]:
    """The diagnosis for people."""
    values = found.values
    versions = " · ".join(f"{name} {version}" for name, version in values["versions"].items())
    free = values["free_memory_bytes"]
    memory = size(values["memory_bytes"]) + ("" if free is None else f", {size(free)} free")
    disk, shared = values["free_disk_bytes"], values["shared_memory_bytes"]
    about = [
        ["versions", versions],
        ["imported from", values["imported_from"]],
        ["platform", values["platform"]],
        ["cores, threads", f"{values['cores']}, {values.get('threads', 'unknown')}"],
        ["memory", memory],
        ["disk", "unknown" if disk is None else f"{size(disk)} free in {values['disk_folder']}"],
        ["/dev/shm", "none" if shared is None else size(shared)],
    ]
    extras = [
        [name, "yes", ""] if e["present"] else [name, ", ".join(e["lacking"]), e["install"]]
        for name, e in values["extras"].items()
    ]
    devices = [
        [
            d.get("about", d["device"]),
            *([f"{d[k]:.1e}" for k in ("loss", "gradient", "next_loss")] if "loss" in d else "---"),
            d.get("against", "-"),
            "good" if d["ok"] else "WRONG" if "loss" in d else "failed",
        ]
        for d in values["devices"]
    ]
    head = ["device", "loss", "gradient", "loss after an update", "against", "verdict"]
    parts: list[Part] = [
        Table("This machine", ["what", "value"], about),
        Table("Extras", ["extra", "present", "to install"], extras),
        Table("Self-test: relative differences of the first training step", head, devices),
    ]
    problems = [f"error: {e}" for e in found.errors] + [f"warning: {w}" for w in found.warnings]
    parts.append(Bullets(problems) if problems else Text("No problems found."))
    return parts
