"""Operations of our own for decode steps on a CPU: compiled once, where there is a compiler.

A decode step of a small model is hundreds of small operations, each of which costs more to call
than to compute. Those that the engine adds to the model's own are one each in `kernels.cpp`. Where
they cannot be compiled or loaded, PyTorch's do the same, slower. Knows files and compilers; knows
nothing about models or batches.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Final

import torch

from adapters.config import one_line

_log = logging.getLogger(__name__)
_SOURCE: Final = Path(__file__).with_name("kernels.cpp")
_FLAGS: Final = ("-O3", "-std=c++20", "-fPIC", "-fno-math-errno")
_COMPILING_S: Final = 300.0  # it takes ten seconds


class KernelsError(RuntimeError):
    """The operations cannot be compiled; the message says why."""


@lru_cache
def load_kernels() -> bool:
    """Make ``torch.ops.innerloop`` available, compiling it where no process did before.

    Returns:
        Whether it is there. Where it is not, the log says why.
    """
    if _is_loaded():
        return True
    try:
        found = found_kernels()
        if found is not None and _loads(found):
            return True
        _log.info("compiling operations for decode steps, once; it takes some ten seconds")
        torch.ops.load_library(compile_kernels())
    except (KernelsError, OSError, RuntimeError) as error:
        _log.warning("decode steps are computed the slower way: %s", one_line(error))
        return False
    return True


def found_kernels() -> Path | None:
    """The library, where it was compiled for this PyTorch before."""
    return next((place for f in _folders() if (place := f / _name()).is_file()), None)


def compiler() -> list[str]:
    """The command of this machine's C++ compiler, ``$CXX`` or a usual name; empty without one."""
    if named := os.environ.get("CXX"):
        return shlex.split(named)
    found = shutil.which("c++") or shutil.which("g++")
    return [found] if found else []


def compile_kernels() -> Path:
    """Compile for this PyTorch, beside it or in the user's cache; returns the library.

    Raises:
        KernelsError: there is no compiler, it fails, or there is no place to write to.
    """
    with tempfile.TemporaryDirectory() as place:
        built = _compile(Path(place))
        for folder in _folders():
            try:
                return _put(built, folder)
            except OSError as error:
                failed = error
    raise KernelsError(f"there is no place for what kernels.cpp is compiled to: {failed}")


def _put(built: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        copy = Path(shutil.copy(built, place))
        return copy.replace(folder / _name())  # at once, whoever else does the same


def _compile(place: Path) -> Path:
    command = compiler()
    if not command:
        raise KernelsError("there is no C++ compiler (g++, or $CXX) to compile kernels.cpp with")
    torch_folder = Path(torch.__file__).parent
    # PyTorch's own threads are meant, and found once it is loaded: linked here, they were others.
    linking = ["-shared", f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu"]
    threads = "-fopenmp"
    if sys.platform == "darwin":
        linking, threads = [*linking, "-undefined", "dynamic_lookup"], "-fopenmp-simd"
    parts, built = place / "kernels.o", place / "kernels.so"
    include = f"-I{torch_folder / 'include'}"
    _run(command, [*_FLAGS, threads, include, "-c", str(_SOURCE), "-o", str(parts)])
    _run(command, [str(parts), "-o", str(built), *linking])
    return built


def _run(command: list[str], arguments: list[str]) -> None:
    name = command[0]
    try:
        done = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMPILING_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsError(f"the C++ compiler {name} does not run: {error}") from error
    if done.returncode:
        lines = done.stderr.splitlines()
        wrong = next((line for line in lines if "error" in line), done.stderr)
        raise KernelsError(f"the C++ compiler {name} fails: {' '.join(wrong.split())[:300]}")


def _is_loaded() -> bool:
    return hasattr(torch.ops.innerloop, "attend")  # to register it twice would end the process


def _loads(library: Path) -> bool:
    try:
        torch.ops.load_library(library)
    except OSError as error:  # from another machine, in a home that is shared
        _log.info("%s is compiled again: %s", library, one_line(error))
        return False
    return True


def _folders() -> tuple[Path, Path]:
    """Beside what is installed, where an image has it; else the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(sys.prefix) / "lib" / "innerloop", cache / "innerloop"


@lru_cache
def _name() -> str:
    """Other sources, another PyTorch or another kind of processor have another library."""
    parts = (_SOURCE.read_text("utf-8"), *_FLAGS, torch.__version__, platform.machine())
    return f"kernels-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
