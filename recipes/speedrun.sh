#!/usr/bin/env bash
# The whole story on a CPU, in minutes: pre-train -> SFT -> reward model -> ORPO -> RLHF -> evaluate -> chat, with
# SmolLM2 135M and the pairs that Hanlin ships. Every stage is a recipe of this folder, cut short with --set: what comes
# out shows that the stages fit together, not how good they can be.
#
#   make speedrun                     recipes/speedrun.sh [RUN]     RUN is runs/speedrun when left out
#   MODEL=gemma-3-270m make speedrun  another start, by any name that Hanlin takes
#
# A stage that is done is not done again, one that was interrupted goes on: run it again after Ctrl-C or a failure. The
# closing table is also written to RUN/speedrun.md.
set -euo pipefail
cd "$(dirname "$0")/.."

RUN=${1:-runs/speedrun}
BIN=${BIN:-.venv/bin}
MODEL=${MODEL:-smollm2}
QUESTION="天空为什么是蓝色的？"
mkdir -p "$RUN/data" "$RUN/log"

fail() {  # one line; the rest is in the log
    local reason
    reason=$(grep -E "error|Error" "$RUN/log/$1.log" | tail -1 || true)
    echo "speedrun: the stage $1 failed: ${reason:-see the log} (all of it: $RUN/log/$1.log; run again to go on)" >&2
    exit 2
}

stage() {  # stage NAME COMMAND...: run it unless it is done, keep its log and the seconds that it took
    local name=$1 began=$SECONDS
    shift
    if [ -f "$RUN/log/$name.seconds" ]; then
        echo "== $name: done before"
        return
    fi
    echo "== $name"
    # What a first try took counts too.
    echo "-- $(date)" >> "$RUN/log/$name.log"
    if "$@" >> "$RUN/log/$name.log" 2>&1; then :; else
        [ $? -eq 130 ] && { echo "speedrun: stopped in $name; run again to go on" >&2; exit 130; }
        fail "$name"
    fi
    echo $((SECONDS - began)) > "$RUN/log/$name.seconds"
}

train() {  # train STAGE RECIPE SECTION.KEY=VALUE...: the stage's model is RUN/STAGE
    local name=$1 recipe=$2 sets=()
    shift 2
    for value in "output.directory=$RUN/$name" "$@"; do sets+=(--set "$value"); done
    stage "$name" "$BIN/hanlin" train "recipes/$recipe.toml" "${sets[@]}" --resume
}

# The shipped pairs in the form that each stage reads; held out is a part of the held-out file.
prepare() {
    "$BIN/python" - "$RUN/data" <<'PYTHON'
import json, sys
from pathlib import Path

folder = Path(sys.argv[1])
for name, source, number in (("train", "starter-zh-en", None), ("held-out", "starter-zh-en.heldout", 32)):
    pairs = [json.loads(line) for line in Path(f"data/{source}.jsonl").read_text(encoding="utf-8").splitlines()][:number]
    forms = {
        "pairs": pairs,
        "talks": [{"id": pair["id"], "messages": pair["prompt"] + pair["chosen"]} for pair in pairs],
        "texts": [{"text": "\n".join(turn["content"] for turn in pair["prompt"] + pair["chosen"])} for pair in pairs],
        "prompts": [{"id": pair["id"], "prompt": pair["prompt"]} for pair in pairs if pair["language"] == "zh"],
    }
    for form, rows in forms.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{form}.{name}.jsonl").write_text(lines, encoding="utf-8")
PYTHON
}

files() { echo "data.train=[\"$RUN/data/$1.train.jsonl\"]" "data.held_out=[\"$RUN/data/$1.held-out.jsonl\"]"; }

[ -x "$BIN/hanlin" ] || { echo "speedrun: $BIN/hanlin is not there; run make setup first" >&2; exit 2; }
[ "$MODEL" = smollm2 ] && echo "SmolLM2 135M Instruct, Apache License 2.0, 98 MB (cached 会缓存)"
stage fetch "$BIN/hanlin" inspect "$MODEL"
stage data prepare
# shellcheck disable=SC2046  # two words, without spaces
train pretrain pretrain-smollm2 $(files texts) "model.path=$MODEL" 'objective.weights=[]' 'objective.final_weights=[]' \
    data.held_out_pairs=0 data.max_length=256 training.steps=8 training.batch_pairs=8
train sft sft-smollm2 $(files talks) "model.path=$RUN/pretrain" data.held_out_pairs=0 training.steps=24
train reward reward-smollm2 $(files pairs) "model.path=$RUN/sft" training.steps=16 training.batch_pairs=6
train orpo demo $(files pairs) "model.path=$RUN/sft" training.steps=24 training.evaluate_every=0
train rlhf rlhf-smollm2 $(files prompts) "model.path=$RUN/orpo" \
    "objective.rewards=[\"$RUN/reward\", \"chinese\"]" training.steps=10 training.evaluate_every=0
stage evaluate "$BIN/hanlin" compare "$MODEL" "$RUN/rlhf" --data "$RUN/data/pairs.held-out.jsonl" --max-tokens 96 \
    --json "$RUN/evaluate.json"
stage chat "$BIN/hanlin" chat "$RUN/rlhf" --prompt "$QUESTION" --max-tokens 96 --seed 0

"$BIN/python" - "$RUN" "$QUESTION" <<'PYTHON'
import json, sys
from pathlib import Path

run, question = Path(sys.argv[1]), sys.argv[2]
MEASURED = {
    "pretrain": ("eval_nll_loss", "NLL a token, held-out texts"),
    "sft": ("eval_nll_loss", "NLL a token, held-out answers"),
    "reward": ("eval_rewards/accuracies", "pair accuracy, held-out pairs"),
    "orpo": ("eval_rewards/accuracies", "reward accuracy, held-out pairs"),
    "rlhf": ("eval_reward", "reward of answers to held-out questions"),
}
rows, total = [], 0
for name in (*MEASURED, "evaluate", "chat"):
    seconds = int((run / "log" / f"{name}.seconds").read_text())
    total += seconds
    before = after = "–"
    said = f"{question} (answer: log/chat.log)"
    if name in MEASURED:
        key, said = MEASURED[name]
        records = [json.loads(line) for line in (run / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        values = [record[key] for record in records if key in record]
        before, after = f"{values[0]:.3f}", f"{values[-1]:.3f}"
    elif name == "evaluate":
        metrics = json.loads((run / "evaluate.json").read_text(encoding="utf-8"))["metrics"]
        passed = metrics["zh.pass"]
        said = "Chinese questions answered in clean Chinese, the start → the last stage"
        before, after = (f"{passed[side]['value']:.3f}" for side in ("before", "after"))
    rows.append(f"| {name} | {seconds // 60} min {seconds % 60:02} s | {said} | {before} | {after} |")
lines = [
    "| stage 阶段 | time 用时 | measured 测量 | before 之前 | after 之后 |",
    "|---|---|---|---|---|",
    *rows,
    f"| all 合计 | {total // 60} min {total % 60:02} s | | | |",
]
text = "\n".join(lines) + "\n"
(run / "speedrun.md").write_text(text, encoding="utf-8")
print(f"\n{text}\nwritten to {run / 'speedrun.md'}; talk to it: hanlin chat {run / 'rlhf'}")
PYTHON
