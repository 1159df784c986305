"""How a step is made to fit: what is chosen as memory shrinks, and that no choice changes the numbers."""

from pathlib import Path

import pytest
import torch

from hanlin.data.pack import count_pairs, pack_pairs
from hanlin.errors import ConfigError
from hanlin.objectives.orpo import OrpoConfig, orpo
from hanlin.training import fit
from hanlin.training.checkpoint import Progress
from hanlin.training.fit import Fit, StepShape, choose_fit, measure_fit
from hanlin.training.recipe import TrainingConfig
from hanlin.training.room import allowance, free_memory
from tiny import CONFIGS, random_pairs, tiny_model

CPU = torch.device("cpu")
SHAPE = StepShape(tokens=1000, predictions=800, compute=torch.bfloat16, residual_bytes=4)


def choose(free_bytes: float, **settings) -> Fit:
    return choose_fit(CONFIGS["llama"], TrainingConfig(**settings), SHAPE, device=CPU, free_bytes=free_bytes)


def test_with_room_nothing_is_computed_twice():
    assert choose(1e12) == Fit(attention="segments", head="fast", recomputed_layers=0, compiled=False)


def test_as_memory_shrinks_the_head_goes_lean_then_layer_after_layer_is_recomputed():
    levels = [10**9 * 0.93**step for step in range(300)]
    found = [choose(level) for level in levels]
    order = [(fit.recomputed_layers, fit.head == "lean") for fit in found]
    assert order == sorted(order)
    assert order[0] == (0, False)
    assert order[-1] == (CONFIGS["llama"].num_layers, True)


def test_what_the_recipe_sets_is_kept():
    assert choose(1e12, head="lean", recomputed_layers=2, compile=True) == Fit(
        attention="segments", head="lean", recomputed_layers=2, compiled=True
    )
    assert choose(0, head="fast", recomputed_layers=99).recomputed_layers == CONFIGS["llama"].num_layers
    with pytest.raises(ConfigError, match='choose "segments"'):
        choose(1e12, attention="varlen")


def test_a_loaded_model_on_this_machine_gets_a_fit():
    assert 1e6 < free_memory(CPU) < 1e15
    found = measure_fit(tiny_model("gemma3"), TrainingConfig(), random_pairs(5), lambda pair: 1.0)
    assert (found.head, found.recomputed_layers) == ("fast", 0)
    assert Progress().fit == Fit()


def group(folder: Path, limit: str, taken: int, cached: int, *, old: bool = False) -> None:
    """A control group as the kernel shows it."""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
    folder.mkdir(parents=True)
    for name, text in zip(names, (limit, str(taken)), strict=True):
        (folder / name).write_text(f"{text}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{'total_' if old else ''}inactive_file {cached}\n")


def member_of(root: Path, *lines: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))


def test_a_container_s_limit_counts(tmp_path: Path):
    member_of(tmp_path, "0::/slurm/job_7/step_0")
    group(tmp_path / "sys/fs/cgroup/slurm", "max", 90, 0)
    group(tmp_path / "sys/fs/cgroup/slurm/job_7", "1000", 300, 100)
    group(tmp_path / "sys/fs/cgroup/slurm/job_7/step_0", "5000", 200, 0)
    assert allowance(tmp_path) == 800  # the job's: files that are only cached are given back


def test_the_limits_of_older_control_groups_count_where_the_name_is_the_host_s(tmp_path: Path):
    member_of(tmp_path, "4:memory:/docker/abc", "1:cpu:/", "0::/")
    group(tmp_path / "sys/fs/cgroup/memory", "700", 900, 100, old=True)
    assert allowance(tmp_path) == 0


def test_without_control_groups_there_is_no_limit(tmp_path: Path):
    assert allowance(tmp_path) == float("inf")
    member_of(tmp_path, "0::/")
    assert allowance(tmp_path) == float("inf")


def test_ranks_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch):
    model, pairs = tiny_model("llama"), random_pairs(5)
    taken = 16 * sum(parameter.numel() for parameter in model.parameters())

    def head(free: float, num_local: int) -> str:
        monkeypatch.setattr(fit, "free_memory", lambda device: free)
        return measure_fit(model, TrainingConfig(), pairs, lambda pair: 1.0, num_local=num_local).head

    enough = next(free for free in range(taken, 100 * taken, 1000) if head(free, 1) == "fast")
    assert head(enough, 2) == "lean"
    assert head(2 * enough, 2) == "fast"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler itself warns
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_compiled_layers_give_the_same_gradients_from_padded_streams(family, monkeypatch):
    # Setuptools refuses to be imported, as the compiler does it, after Python's own distutils was.
    monkeypatch.setenv("SETUPTOOLS_USE_DISTUTILS", "stdlib")
    pairs = random_pairs(4)
    counts, config = count_pairs(pairs), OrpoConfig()

    def step(model, batch):
        model.zero_grad(set_to_none=True)
        loss = orpo(model, batch, counts, config=config).total
        loss.backward()
        return loss.detach(), [one.grad.to_dense() if one.grad.is_sparse else one.grad for one in model.parameters()]

    plain, compiled = tiny_model(family), tiny_model(family)
    Fit(compiled=True, recomputed_layers=1).apply(compiled)
    loss, expected = step(plain, pack_pairs(pairs))
    mine, got = step(compiled, pack_pairs(pairs, pad_to=300))
    torch.testing.assert_close(mine, loss)
    for one, other in zip(got, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
