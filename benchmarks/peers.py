"""Makes ready the peers that cannot live in Hanlin's own environment, on demand, under ~/.cache/hanlin/bench.

Two kinds. A folder of one package without its dependencies, put on the path of its worker alone: Liger (asks for
Triton, which the CPU build of torch lacks and its ORPO loss does not use) and llama.cpp (the wheel with its server, and
a build for the CPU at hand: the wheel is made for any). And a whole virtual environment: LLaMA-Factory 0.9.5, whose
pins (transformers <= 5.6, trl <= 0.24) exclude ours. Run this file with names to make them ahead of a measurement:
`python benchmarks/peers.py llamafactory`.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import BenchmarkError

from hanlin.models.fetch import cache_directory

TORCH = "torch==2.13.0"  # the release in the Makefile: a peer must not run on another torch
_READY = ".ready"


@dataclass(frozen=True, slots=True)
class Peer:
    """What pip is told to do, in order, with which environment variables; and whether it needs an interpreter of its
    own.
    """

    about: str
    steps: tuple[tuple[str, ...], ...]
    own_python: bool = False
    variables: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """How a worker reaches a peer: another interpreter, or more on its path."""

    python: Path | None
    environment: Mapping[str, str]


PEERS = {
    "presidio": Peer(
        "Presidio's analyzer with spaCy, without models, 300 MB",
        (("install", "presidio-analyzer==2.2.366", "phonenumbers"),),
        own_python=True,
    ),
    "datasketch": Peer("datasketch with SciPy, 200 MB", (("install", "datasketch==1.10.0"),), own_python=True),
    "liger": Peer("Liger's fused losses, 10 MB", (("install", "--no-deps", "liger-kernel==0.8.5"),)),
    "llama.cpp": Peer("llama.cpp's server in Python, 110 MB", (("install", "--no-deps", "xllamacpp==2026.10.11549"),)),
    "llama.cpp-built": Peer(
        "llama.cpp built here, with what this CPU has; a compiler and 10 CPU minutes",
        (("install", "--no-deps", "--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36", "diskcache"),),
        variables=(("CMAKE_ARGS", "-DGGML_NATIVE=ON"),),
    ),
    "llamafactory": Peer(
        "LLaMA-Factory with its pins, 2.2 GB where torch is the CPU build",
        (
            ("install", TORCH),
            ("install", "llamafactory==0.9.5", TORCH),
            # PyPI's are built for CUDA and do not load beside a CPU torch; text needs neither.
            ("uninstall", "--yes", "torchvision", "torchaudio"),
        ),
        own_python=True,
    ),
}


def place(name: str, *, root: Path | None = None) -> Place:
    """Where the peer is, made first if it is not there (minutes, and says so). Raises BenchmarkError when pip fails."""
    peer = PEERS[name]
    folder = (root or cache_directory() / "bench") / name
    stamp = "\n".join(" ".join(step) for step in peer.steps)
    if not (folder / _READY).exists() or (folder / _READY).read_text(encoding="utf-8") != stamp:
        print(f"making {folder} ({peer.about}; once)", flush=True)
        _make(peer, folder)
        (folder / _READY).write_text(stamp, encoding="utf-8")
    if peer.own_python:
        return Place(_interpreter(folder), {})
    return Place(None, {"PYTHONPATH": str(folder)})


def _interpreter(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _make(peer: Peer, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if peer.own_python:
        _run([sys.executable, "-m", "venv", str(folder)], {})
    for action, *arguments in peer.steps:
        python, where = (_interpreter(folder), []) if peer.own_python else (sys.executable, ["--target", str(folder)])
        _run([str(python), "-m", "pip", action, "--quiet", *where, *arguments], dict(peer.variables))


def _run(command: Sequence[str], variables: Mapping[str, str]) -> None:
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise BenchmarkError(f"`{' '.join(command)}` failed: {last}")


def main() -> int:
    """Make the named peers."""
    parser = argparse.ArgumentParser(description="Make ready what the benchmarks compare with.")
    about = "; ".join(f"{name}: {peer.about}" for name, peer in PEERS.items())
    parser.add_argument("names", nargs="+", choices=PEERS, metavar="NAME", help=about)
    try:
        for name in parser.parse_args().names:
            found = place(name)
            print(f"{name}: {found.python or found.environment['PYTHONPATH']}")
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
