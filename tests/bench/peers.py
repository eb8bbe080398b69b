"""What others made and nobody has to have: grpc-go, as a client and as a server, and pygrpc-native.

Both are kept in a cache folder and never become dependencies. Where one cannot be had, there is a reason to print.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PYGRPC: Final = "pygrpc-native==0.5.0"
_SOURCE: Final = Path(__file__).parent / "go"
_PATIENCE: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Where it is, or else why it is not there."""

    path: Path | None = None
    missing: str = ""


@functools.cache
def grpc_go() -> Peer:
    """Return the program of ``go/``, built when it is not there yet or older than its source."""
    built = _cache() / "grpc-go"
    sources = [file.stat().st_mtime for file in _SOURCE.iterdir()]
    if built.is_file() and built.stat().st_mtime > max(sources):
        return Peer(path=built)
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        return Peer(missing="Go is not installed")
    return _made(built, [go, "build", "-o", str(built), "."], "go build")


@functools.cache
def pygrpc_native() -> Peer:
    """Return a folder for PYTHONPATH with nothing in it but pygrpc-native."""
    folder = _cache() / _PYGRPC
    if (folder / "pygrpc_native").is_dir():
        return Peer(path=folder)
    # There is a pip in the Python that the venv was made of, if not in the venv.
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), _PYGRPC]
    return _made(folder, [getattr(sys, "_base_executable", sys.executable), *install], "pip install")


def _made(wanted: Path, command: list[str], name: str) -> Peer:
    try:
        done = subprocess.run(command, cwd=_SOURCE, timeout=_PATIENCE, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired:
        return Peer(missing=f"{name} took more than {_PATIENCE:.0f} s")
    if done.returncode or not wanted.exists():
        return Peer(missing=f"{name}: {(done.stderr.strip() or 'nothing was made').splitlines()[-1]}")
    return Peer(path=wanted)


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "servicekit-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
