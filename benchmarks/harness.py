"""The driver's side of every benchmark: start a measurement in a process of its own, say on what machine, write tables.

The measured side is in `workers/`: a worker is a script that calls `workers.worker.answer`. The driver itself stays
idle and small while a worker runs.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_LOG_LINES = 15  # of a failed worker's output


class BenchmarkError(Exception):
    """A benchmark cannot run, or a measurement failed: one line (and a log's end) that says what to do."""


def installed(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def require_package(package: str, *, release: str) -> None:
    """Raise BenchmarkError unless a package of the extra "bench" is there in the `release` ("1.16") to compare with."""
    found = installed(package)
    if found is None or not f"{found}.".startswith(f"{release}."):
        there = f"is version {found}, expected {release}" if found else "is not installed"
        raise BenchmarkError(f'{package} {there}; run `make bench`, or `pip install --editable ".[bench]"`')


def run_worker(
    script: Path, settings: Mapping[str, Any], *, workspace: Path, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a worker script in a fresh process on `settings` (JSON) and return its result.

    What it prints goes to a log in `workspace`; raises BenchmarkError with the log's end when it fails.
    """
    name = f"{script.stem}-{len(list(workspace.glob('*.settings.json')))}"
    given, made, log = (workspace / f"{name}.{end}" for end in ("settings.json", "result.json", "log"))
    given.write_text(json.dumps(settings), encoding="utf-8")
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, str(script), str(given), str(made)],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode or not made.exists():
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])
        killed = " (killed: most likely out of memory)" if done.returncode == -9 else ""
        raise BenchmarkError(f"{script.name} failed with status {done.returncode}{killed}:\n{tail}")
    return json.loads(made.read_text(encoding="utf-8"))


def describe_run(packages: Sequence[str]) -> dict[str, str]:
    """What a reader must know to judge a number: commit, date, command, machine, load, versions of `packages`."""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    versions = [f"Python {platform.python_version()}", *(f"{name} {installed(name) or 'none'}" for name in packages)]
    return {
        "Commit": _commit(),
        "Date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "Command": f"`{_command()}`",
        "Machine": f"{_processor()}, {_cores()} cores, {_memory_gb():.0f} GB, {platform.system()} {platform.release()}",
        "Load average at the start": load,
        "Versions": ", ".join(versions),
    }


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_result(path: Path, title: str, facts: Mapping[str, str], body: str) -> None:
    """Write a result page: title, tables, then how they came about."""
    notes = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# {title}\n\n{body}\n\n{notes}\n", encoding="utf-8")


def _commit() -> str:
    """The checkout's commit; marked when files differ from it, results apart."""
    try:
        head = _git("rev-parse", "--short=10", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"
    return f"{head} with uncommitted changes" if changed else head


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _command() -> str:
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script
    return shlex.join([".venv/bin/python", str(shown), *sys.argv[1:]])


def _processor() -> str:
    facts: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    model = facts.get("model name") or platform.processor() or platform.machine()
    return f"{model} (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else model


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
