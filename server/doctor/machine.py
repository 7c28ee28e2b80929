"""Python, packages, PyTorch and memory."""

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from server.doctor import Finding

PACKAGE = "innerloop"
OLDEST_PYTHON = (3, 11)
GIB = 2**30


def python() -> Iterator[Finding]:
    """Whether Python is new enough."""
    shown = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info >= OLDEST_PYTHON:
        yield Finding("python", "ok", shown)
    else:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield Finding("python", "problem", shown, f"use Python {oldest} or newer")


def packages() -> Iterator[Finding]:
    """Whether every package is there in a version that was declared to work."""
    try:
        needed = [Requirement(line) for line in requires(PACKAGE) or ()]
    except PackageNotFoundError:
        told = "innerloop runs from a tree that was never installed: versions cannot be compared"
        yield Finding("packages", "warning", told, "pip install -e . in the repository")
        return
    wrong = False
    wanted = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    for one in wanted:
        try:
            found = version(one.name)
        except PackageNotFoundError:
            wrong = True
            yield Finding("packages", "problem", f"{one.name} is missing", f"pip install '{one}'")
            continue
        if not one.specifier.contains(Version(found), prereleases=True):
            wrong = True
            told = f"{one.name} {found} is not {one.specifier}"
            yield Finding("packages", "problem", told, f"pip install '{one}'")
    if not wrong:
        yield Finding("packages", "ok", f"{len(wanted)}, each in a version that is known to work")


def pytorch(device: str) -> Iterator[Finding]:
    """Which build of PyTorch there is, and whether it sees the device that the settings want."""
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    seen = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(seen))
    shown = f"{torch.__version__}, built for {built}, {f'sees {names}' if seen else 'sees no GPU'}"
    wanted = device.partition(":")
    if wanted[0] == "cuda" and int(wanted[2] or 0) >= seen:
        mend = "set INNERLOOP_DEVICE=auto, or install the driver and a CUDA build of PyTorch"
        yield Finding("torch", "problem", f"{shown}, and INNERLOOP_DEVICE is {device}", mend)
    elif not seen and torch.version.cuda:
        mend = "fine without a GPU; else look at nvidia-smi"
        yield Finding("torch", "warning", shown, mend)
    elif not seen and Path("/proc/driver/nvidia/version").exists():
        mend = "install a CUDA build of PyTorch to use the NVIDIA GPU of this machine"
        yield Finding("torch", "warning", shown, mend)
    else:
        yield Finding("torch", "ok", shown)


def kernels() -> Iterator[Finding]:
    """Whether decode steps on a CPU can have their own operations."""
    from server.engine.kernels import compiler, found_kernels

    found = found_kernels()
    if found is not None:
        yield Finding("kernels", "ok", f"operations for decode steps are compiled: {found}")
    elif command := compiler():
        told = f"operations for decode steps are compiled at the first start, by {command[0]}"
        yield Finding("kernels", "ok", told)
    else:
        told = "there is no C++ compiler: answers on a CPU take a quarter to a half longer"
        yield Finding("kernels", "warning", told, "install one (Debian, Ubuntu: apt install g++)")


def memory(needed_bytes: int, budgets_bytes: int) -> Iterator[Finding]:
    """Whether a model and the budgets of the settings fit into what is free."""
    free = free_bytes()
    needs = f"the model takes {_gib(needed_bytes)}, the settings allow {_gib(budgets_bytes)} more"
    if free is None:
        yield Finding("memory", "warning", f"{needs}; what is free is not known on this system")
        return
    shown = f"{_gib(free)} free; {needs}"
    if needed_bytes > free:
        yield Finding("memory", "problem", shown, "take a smaller model, or free memory")
    elif needed_bytes + budgets_bytes > free:
        mend = "under load it may run out: lower INNERLOOP_KV_BYTES or INNERLOOP_HOST_ADAPTER_BYTES"
        yield Finding("memory", "warning", shown, mend)
    else:
        yield Finding("memory", "ok", shown)


def free_bytes() -> int | None:
    """Memory that can still be had, in a container what its limit leaves; None: not known."""
    found = [_system_bytes(), _container_bytes(Path("/sys/fs/cgroup"))]
    return min((known for known in found if known is not None), default=None)


def _system_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # macOS says only what there is altogether
        names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
        known = all(name in os.sysconf_names for name in names)
        return os.sysconf(names[0]) * os.sysconf(names[1]) if known else None
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def _container_bytes(cgroup: Path) -> int | None:
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        counts = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    # Files that were read and are not in use are counted as used, and given up for whoever asks.
    used = max(0, used - int(counts.get("inactive_file", 0)))
    return None if limit == "max" else max(0, int(limit) - used)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB"
