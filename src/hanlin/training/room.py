"""How much memory this process can still get: of its device, of the machine, of the container that it runs in."""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a version of Linux's control groups keeps what it says of memory."""

    line: str  # of /proc/self/cgroup: hierarchy and controllers before the group's name
    folder: str
    limit: str
    taken: str
    cached: str  # key of memory.stat: pages of files that are given back when they are wanted


_LAYOUTS = (
    _Layout("0::", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    _Layout(
        ":memory:", "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    ),
)


def free_memory(device: torch.device) -> float:
    """Bytes that this process can still get: on the device, or of the machine; infinite where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    described = Path("/proc/meminfo")
    if not described.exists():
        return float("inf")
    lines = dict(line.split(":", 1) for line in described.read_text(encoding="ascii").splitlines())
    return min(1024.0 * int(lines["MemAvailable"].split()[0]), allowance(Path("/")))


def allowance(root: Path) -> float:
    """Bytes that this process may still take by its control groups, as containers and Slurm limit them; infinite where
    there is no limit. `root` is that of the file system.
    """
    try:
        named = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("inf")
    least = float("inf")
    for layout in _LAYOUTS:
        names = [line.split(layout.line, 1)[1] for line in named if layout.line in line]
        groups = root / layout.folder
        # In a container the name may be the host's: then only the top is there, which is the container's own group.
        for group in (one for name in names for one in _upwards(groups / name.strip("/"), groups)):
            least = min(least, _left(group, layout))
    return least


def _upwards(group: Path, top: Path) -> list[Path]:
    return [one for one in (group, *group.parents) if one.is_relative_to(top)]


def _left(group: Path, layout: _Layout) -> float:
    try:
        limit = (group / layout.limit).read_text(encoding="ascii").strip()
        taken = int((group / layout.taken).read_text(encoding="ascii"))
        used = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return float("inf")  # no such group, or the root, which has no limit
    if limit == "max":
        return float("inf")
    return max(0.0, float(int(limit) - taken + int(used.get(layout.cached, 0))))
