"""The planner's promise: within 15% of the peak that a run on a CPU has, on a real model.

`benchmarks/plan.py` measures every objective.
"""

from pathlib import Path

import plan as benchmark
import pytest


@pytest.mark.slow
@pytest.mark.assets
@pytest.mark.parametrize("name", ["ORPO, 1,024 tokens a pass", "SFT, 2,048 tokens a pass", "ORPO, LoRA"])
def test_the_plan_is_within_15_percent_of_the_measured_peak(name: str, tmp_path: Path):
    if not benchmark.MODEL.exists() or not benchmark.DATA.exists():
        pytest.skip("needs SmolLM2-135M (make assets) and the shared data")
    found = benchmark.measure(name, tmp_path, steps=2)
    assert found["planned_bytes"] == pytest.approx(found["peak_bytes"], rel=benchmark.WITHIN)


def test_every_objective_and_every_method_is_measured():
    kinds = {sections["objective"]["kind"] for sections in benchmark.SETTINGS.values()}
    assert kinds == {"orpo", "sft", "dpo", "simpo", "reward", "pretraining", "rlhf"}
    for key in ("lora", "quantization", "frozen_layers", "step_in_backward", "recomputed_layers", "adamw_bf16"):
        assert any(key in str(sections) for sections in benchmark.SETTINGS.values()), key
