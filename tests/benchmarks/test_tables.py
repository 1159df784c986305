"""What stands in the tables: rates, shares, ratios the right way round, and reasons instead of numbers."""

import family_step
import pytest
from flops import Shape, step_flops
from harness import markdown_table, versions
from memory import Line, Point, expected, fit, pair_lengths
from memory import tables as memory_tables
from orpo_systems import BATCH_PAIRS, Conditions, choose, systems
from orpo_tables import Score, Workload, comparison_table, ladder_table, matmul_rate, score, system_table

KNOWN = systems(Conditions())
SHAPE = Shape(num_layers=2, width=10, ffn_width=30, q_width=8, kv_width=4, vocab_size=100)


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def result(seconds: list[float], **other) -> dict:
    return {"seconds": seconds, "cpu_seconds": [2.0] * len(seconds), "processed": [300] * len(seconds)} | {
        "peak_bytes": 4_000_000_000,
        "loss": 2.5,
        "matmul": {"per_second": 1e9, "per_cpu_second": 5e8},
        **other,
    }


def reached(speed: float, *, cpu: float = 1.0, peak: float = 1e9) -> Score:
    return Score([speed], 100.0, 120.0, cpu, peak, 0.5, 2.0)


def test_a_markdown_table():
    assert markdown_table(["name", "n"], [["a", "1"]]) == "| name | n |\n| --- | ---: |\n| a | 1 |"


def test_a_score_counts_only_what_was_timed():
    lengths = [(4, 2, 6)] * BATCH_PAIRS + [(5, 5, 5)] * BATCH_PAIRS  # a step of warm-up, a timed one
    rounds = [result([4.0]), result([2.0], peak_bytes=5_000_000_000), result([8.0])]
    workload = Workload("real", lengths, "")
    made = score(rounds, workload, shape=SHAPE, score_prompt=True, frozen=False, warmup=1, rate=1e6)
    assert made.pairs_per_second == [2.0, 4.0, 1.0]
    assert made.speed == 2.0
    assert made.logical_per_second == BATCH_PAIRS * 20 / 4.0
    assert made.processed_per_second == 75.0
    assert made.peak_bytes == 5e9
    assert made.share == pytest.approx(step_flops(SHAPE, lengths[BATCH_PAIRS:], score_prompt=True) / 4.0 / 1e6)


def test_the_rate_of_products_is_the_median_of_all_runs():
    runs = {"a": [result([1.0]), result([1.0], matmul={"per_second": 3e9})], "b": [result([1.0])]}
    assert matmul_rate(runs) == 1e9
    assert matmul_rate({"a": [{"seconds": [1.0]}]}) is None, "on CUDA nothing is measured"


def test_every_row_has_every_column():
    table = cells(system_table({"hanlin": reached(2.0), "unsloth": "needs a GPU"}, KNOWN, share="MFU"))
    assert {len(row) for row in table} == {8}
    assert table[0][6] == "MFU"
    assert table[2][1] == "2.000 (2.000-2.000)"
    assert table[3][1] == "not measured: needs a GPU"
    assert table[3][2:] == [""] * 6


def test_ratios_are_the_right_way_round():
    scores = {"hanlin": reached(3.0, cpu=1.0, peak=1e9), "trl": reached(1.5, cpu=4.0, peak=2e9), "unsloth": "no"}
    table = cells(comparison_table(scores, KNOWN))
    assert table[2] == ["TRL, defaults", "2.00x", "4.00x", "0.50x"]
    assert len(table) == 3, "nothing is said of what was not measured, or of ourselves"


def test_a_peer_is_compared_with_ours_of_its_own_objective():
    scores = {"hanlin": reached(9.0), "hanlin-lf": reached(3.0), "llamafactory": reached(1.0)}
    rows = {row[0]: row[1] for row in cells(comparison_table(scores, KNOWN))[2:]}
    assert rows == {KNOWN["llamafactory"].name: "3.00x"}
    assert comparison_table({"llamafactory": reached(1.0)}, KNOWN) == ""


def test_the_ladder():
    scores = {"hanlin": reached(8.0, peak=1e9), "padded4": reached(1.0, peak=4e9), "packed": reached(2.0, peak=2e9)}
    table = cells(ladder_table(scores, KNOWN))
    assert [row[1:] for row in table[2:]] == [
        ["", "1.00x", ""],
        ["2.00x", "2.00x", "0.50x"],
        ["4.00x", "8.00x", "0.50x"],
    ]
    assert ladder_table({"hanlin": reached(8.0), "packed": reached(2.0)}, KNOWN) == ""


def test_versions_name_together_what_is_alike():
    mine, theirs = {"versions": {"torch": "2"}}, {"versions": {"torch": "2", "trl": "1"}}
    assert versions({"a": [mine], "b": [mine], "c": []}) == "torch 2"
    assert versions({"a": [mine], "b": [mine], "c": [theirs]}) == "a and b: torch 2; c: torch 2, trl 1"


def test_groups_name_systems_that_exist():
    assert choose(["default", "trl"]) == ["hanlin", "trl", "trl-b1"]
    assert set(choose(["ladder", "trl-grid", "liger", "lf", "gpu"])) <= set(KNOWN)
    grid = [name for name in KNOWN if name.startswith("trl-b")]
    assert len(grid) == 6
    assert {KNOWN[name].settings["micro_batch"] for name in grid} == {1, 2, 4}


def test_a_line_through_points():
    assert fit([1, 2], [1.0, 2.0]) is None, "two points always lie on a line"
    line = fit([1000, 2000, 4000], [3.0, 5.0, 9.0])
    assert isinstance(line, Line)
    assert (line.start, line.slope, line.r_squared) == pytest.approx((1.0, 0.002, 1.0))
    bent = fit([1, 2, 3, 4], [1.0, 4.0, 9.0, 16.0])
    assert bent is not None
    assert bent.slope == pytest.approx(5.0)
    assert bent.r_squared == pytest.approx(1 - 4 / 129)


def test_what_the_next_point_would_need():
    points = [Point(1000, 3.0, 1.0), Point(2000, 4.0, 1.0)]
    assert expected(points, 4000) == pytest.approx(6.0)
    assert expected(points[:1], 4000) == 0.0, "one point predicts nothing: it is run"


@pytest.mark.parametrize(("tokens", "pair_tokens", "count"), [(2048, 512, 4), (2048, 0, 1), (96, 32, 3)])
def test_pairs_fill_the_stream(tokens, pair_tokens, count):
    lengths = pair_lengths(tokens, pair_tokens)
    assert len(lengths) == count
    assert sum(map(sum, lengths)) == tokens


def test_the_memory_tables_say_what_is_missing():
    points = {"hanlin": [Point(size, 1 + size / 1000, size / 512) for size in (512, 1024, 2048)], "trl": []}
    missing = {"hanlin": {}, "trl": dict.fromkeys((512, 1024, 2048), "about 99 GB")}
    sizes, lines = memory_tables(points, missing, (512, 1024, 2048)).split("\n\n")
    assert cells(sizes)[2] == ["512", "1.51 / 1.0", "not run: about 99 GB"]
    assert cells(lines)[2][1:] == ["1.00", "1000.00", "1.0000", "1.95", "1.0000"]
    assert len(cells(lines)) == 3, "no line through no points"


def test_a_trainer_of_the_family_is_compared_by_its_examples_and_by_what_it_needs_above_the_states():
    ours = result([2.0, 2.0], real=[100, 300], num_parameters=10**8, peak_bytes=2_000_000_000)
    theirs = result([8.0, 8.0], real=[100, 300], num_parameters=10**8, peak_bytes=2_400_000_000)
    known = family_step.systems("reward", 1024)
    table = family_step.table({"hanlin": [ours], "trl": [theirs]}, known)
    _, _, hanlin, trl = cells(table)
    assert hanlin[1:] == ["100", "100", "2.00", "0.40", "1.00x", "1.00x", "1.00x"]
    assert trl[1:] == ["25", "100", "2.40", "0.80", "4.00x", "1.00x", "0.50x"]
