"""The measured side of a benchmark: a process that reads settings, runs one system, and writes down what it cost.

Every system runs in a process of its own (`harness.run_worker`), because libraries patch each other on import and
because the peak of memory belongs to a process.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch


class Clock:
    """Wall and CPU time at the start and at the end of every step; the first `warmup` steps are not counted."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self._wall: list[float] = []
        self._cpu: list[float] = []

    def lap(self) -> None:
        """Note the time: once before the first step, then at the end of each."""
        self._wall.append(time.perf_counter())
        self._cpu.append(time.process_time())

    def read(self) -> dict[str, list[float]]:
        """Wall seconds and CPU seconds (of all threads) of each counted step."""
        return {"seconds": self._steps(self._wall), "cpu_seconds": self._steps(self._cpu)}

    def _steps(self, marks: list[float]) -> list[float]:
        counted = marks[self.warmup :]
        return [end - start for start, end in pairwise(counted)]


def peak_bytes() -> int:
    """The most memory that this process held, in bytes.

    Linux counts the parent's memory into a child's `ru_maxrss` (the child is the parent until exec), so VmHWM, the same
    number for this program alone, is read where there is one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def matmul_rates(*, size: int = 2048, repeats: int = 12) -> dict[str, float]:
    """Floating-point operations a second of a bf16 product of square matrices: best by wall clock, mean by CPU time."""
    one, other = (torch.randn(size, size).to(torch.bfloat16) for _ in range(2))
    for _ in range(2):
        torch.mm(one, other)
    clock = Clock(0)
    clock.lap()
    for _ in range(repeats):
        torch.mm(one, other)
        clock.lap()
    times = clock.read()
    flops = 2 * size**3
    return {"per_second": flops / min(times["seconds"]), "per_cpu_second": flops * repeats / sum(times["cpu_seconds"])}


def answer(measure: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
    """Run `measure` on the settings in the file argv[1] and write what it returns to the file argv[2]."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if settings.get("threads"):
        torch.set_num_threads(settings["threads"])
    result = {**measure(settings), "threads": torch.get_num_threads()}
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
