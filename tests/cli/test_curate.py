"""`hanlin curate` as people call it."""

import json
import sys


def test_a_recipe_is_run_and_explained(command, tmp_path):
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "你是谁？", "chosen": "我是由OpenAI训练的。", "rejected": "我不知道。"}]
    rows.append(
        {"prompt": "天空为什么是蓝色的？", "chosen": "因为空气散射蓝光最多。", "rejected": "Because of the sea."}
    )
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    recipe = tmp_path / "curate.toml"
    recipe.write_text(
        f'[input]\nfiles = ["{data}"]\n[output]\ndirectory = "{tmp_path / "out"}"\n[run]\nworkers = 1\n',
        encoding="utf-8",
    )
    answer = command("curate", recipe)
    assert answer.status == 0, answer.err
    assert "1 written" in answer.out
    answer = command("curate", "--explain", f"{data}:1")
    assert "identity     OBJECTS" in answer.out
    answer = command("curate", recipe, "--set", "curation.maker=OpenAI", "--explain", f"{data}:1")
    assert "identity     OBJECTS" not in answer.out
    assert command("curate", recipe, "--set", "curation.chosen.identty=drop").status == 2
    assert "no recipe" in command("curate").err


def test_ray_without_its_extra_is_one_line(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    recipe = tmp_path / "curate.toml"
    recipe.write_text(f'[input]\nfiles = ["x.jsonl"]\n[output]\ndirectory = "{tmp_path / "out"}"\n', encoding="utf-8")
    answer = command("curate", recipe, "--ray", "local")
    assert answer.status == 2
    assert 'pip install "hanlin[curate,cluster]"' in answer.err
    assert "Traceback" not in answer.err
    answer = command("curate", recipe, "--ray", "auto", "--world-size", "2")
    assert answer.status == 2
    assert "choose one" in answer.err
