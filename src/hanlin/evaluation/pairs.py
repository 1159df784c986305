"""How well a model tells good answers from bad ones: reward accuracy, margin and likelihood on held-out pairs, also per
named fault.

An answer's reward is the mean log-probability of its tokens, or its log-odds as in ORPO. The log-odds grow with the
mean, so both order the two answers of a pair alike and their accuracies agree; the margins differ.
"""

from collections.abc import Callable, Sequence
from typing import Any

from hanlin.evaluation.report import Row, mean_row, rate_row
from hanlin.objectives.scores import PairScore
from hanlin.types import EncodedPair

FAULTS = {
    "english_reply": "整篇英文",
    "chinese_reply": "整篇中文",
    "mixed_reply": "中英混杂",
    "emoji": "表情符号",
    "language_switch": "中途换语言",
    "wrong_sum": "算错",
    "unsafe": "不安全",
    "false_identity": "冒充身份",
    "rambling": "离题啰嗦",
    "ignored_instruction": "不听要求",
    "false_premise": "误信前提",
}


def pair_rows(
    pairs: Sequence[EncodedPair], before: Sequence[PairScore], after: Sequence[PairScore] | None = None
) -> list[Row]:
    """Rows for pairs scored once, or before and after in the same order; per-fault rows where the pairs name faults."""

    def values(pick: Callable[[PairScore], float], indices: Sequence[int] = range(len(pairs))) -> dict[str, Any]:
        old = [pick(before[index]) for index in indices]
        return {"before": old, "after": None if after is None else [pick(after[index]) for index in indices]}

    rows = [
        rate_row(
            "pairs.accuracy_log_odds",
            ("reward accuracy, ORPO log-odds", "奖励准确率（对数几率）"),
            **values(lambda score: score.log_odds > 0),
            better="higher",
        ),
        rate_row(
            "pairs.accuracy_mean_logp",
            ("reward accuracy, mean log-probability", "奖励准确率（平均对数概率）"),
            **values(lambda score: score.margin > 0),
            better="higher",
        ),
        mean_row(
            "pairs.chosen_nll",
            ("NLL of the chosen answer, per token", "优选回答的负对数似然"),
            **values(lambda score: -score.chosen),
            better="lower",
        ),
        mean_row(
            "pairs.margin",
            ("margin, chosen - rejected log-probability", "优劣回答的对数概率差"),
            **values(lambda score: score.margin),
            better="higher",
        ),
        mean_row(
            "pairs.log_odds_margin",
            ("margin, log-odds", "优劣回答的对数几率差"),
            **values(lambda score: score.log_odds),
            better="higher",
        ),
    ]
    for fault in sorted({pair.fault for pair in pairs if pair.fault}):
        indices = [index for index, pair in enumerate(pairs) if pair.fault == fault]
        labels = (f"accuracy where rejected is: {fault}", f"准确率·{FAULTS.get(fault, fault)}")
        rows.append(
            rate_row(f"fault.{fault}", labels, **values(lambda score: score.margin > 0, indices), better="higher")
        )
    return rows
