"""Recipes: what a user may write, what each mistake says, and that a resolved recipe reads back equal."""

import json
import random
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from hanlin.config import Section, dump_toml, json_schema, load_recipe, missing_file
from hanlin.errors import ConfigError


class Adam(Section):
    kind: Literal["adam"] = "adam"
    beta: float = 0.9


class Sgd(Section):
    kind: Literal["sgd"] = "sgd"
    momentum: float = 0.0


class Training(Section):
    steps: Annotated[int, Field(ge=1)] = 10
    "Optimizer steps."
    learning_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = None
    resume: bool = False
    optimizer: Annotated[Adam | Sgd, Field(discriminator="kind")] = Adam()

    @model_validator(mode="after")
    def _betas_rise(self) -> "Training":
        if self.betas[0] > self.betas[1]:
            raise ValueError("betas must rise")
        return self


class Source(Section):
    path: str
    weight: float = 1.0


class Data(Section):
    train: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    on_long: Literal["drop", "truncate_prompt", "error"] = "drop"
    folder: Path = Path("data")
    weights: dict[str, float] = Field(default_factory=dict)
    length: int | str = 1024


class Recipe(Section):
    name: str
    system: str = ""
    training: Training = Training()
    data: Data = Data()


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(Recipe, path, overrides)
    return str(caught.value)


def test_a_recipe_states_only_differences(write):
    recipe = load_recipe(Recipe, write('name = "demo"\n[training]\nlearning_rate = 1\n[data]\ntrain = ["甲.jsonl"]\n'))
    assert recipe == Recipe(name="demo", training=Training(learning_rate=1.0), data=Data(train=("甲.jsonl",)))
    assert isinstance(recipe.training.learning_rate, float)


def test_sections_are_frozen(write):
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(Recipe, write('name = "demo"')).name = "other"  # type: ignore[misc]


def test_paths_stay_as_written(write):
    recipe = load_recipe(Recipe, write('name = "x"\n[data]\nfolder = "../some/./where"\ntrain = ["./a.json"]'))
    assert recipe.data.folder == Path("../some/./where")
    assert recipe.data.train == ("./a.json",)


def test_a_byte_order_mark_and_windows_lines_are_accepted(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_bytes(b'\xef\xbb\xbfname = "demo"\r\nsystem = "\xe4\xbd\xa0"\r\n')
    assert load_recipe(Recipe, path) == Recipe(name="demo", system="你")


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("training.steps = '3'", 'training.steps = "3" should be a whole number'),
        ("training.steps = true", "training.steps = true should be a whole number"),
        ("training.steps = 1e3", "training.steps = 1000.0 should be a whole number: write 1000"),
        ("training.steps = 0", "training.steps = 0 should be greater than or equal to 1"),
        ("training.learning_rate = '1e-5'", 'training.learning_rate = "1e-5" should be a number'),
        ("training.learning_rate = true", "training.learning_rate = true should be a number"),
        ("training.learning_rate = nan", "training.learning_rate = nan should be a finite number"),
        ("training.resume = 1", "training.resume = 1 should be true or false"),
        ("training.clip = 'none'", 'training.clip = "none" should be a number'),
        ("training.betas = [0.9]", "training.betas[1] is missing"),
        ("training.betas = [0.9, 0.5]", "training: betas must rise"),
        ("training = 3", "training = 3 should be a table"),
        ("training.optimizer = {kind = 'adan'}", "should have a kind of 'adam', 'sgd'"),
        ("training.betas = [1, 2, 3]", "training.betas = [1, 2, 3] should have at most 2 items"),
        ("data.length = [1]", "data.length = [1] should be a whole number or should be text in quotes"),
        ("training.optimizer = {kind = 'sgd', beta = 1}", "training.optimizer.beta is not a known key"),
        ("system = 2024-07-26", "system = 2024-07-26 is a date or time; write it in quotes"),
        ("system = 3", "system = 3 should be text in quotes"),
        ("data.train = 'a.json'", 'data.train = "a.json" should be a list in [ ]'),
        ("data.train = ['a', 3]", "data.train[1] = 3 should be text in quotes"),
        ("data.on_long = 'truncate'", "should be 'drop', 'truncate_prompt' or 'error'"),
        ("data.on_long = 'dorp'", "did you mean 'drop'?"),
        ("data.folder = 3", "data.folder = 3"),
        ("data.weights.zh = 'x'", 'data.weights.zh = "x" should be a number'),
        ("data.length = 1.5", "data.length = 1.5 should be a whole number or should be text in quotes"),
        ("data.sources = [{path = 'a'}, {paht = 'b'}]", "data.sources[1].path is missing"),
        ("data.sources = [{path = 'a', wieght = 1}]", "did you mean data.sources[0].weight?"),
        ("training.learning_rte = 1", "training.learning_rte is not a known key; did you mean training.learning_rate?"),
        ("learning_rate = 1", "learning_rate is not a known key; did you mean training.learning_rate?"),
        ("trainign.steps = 1", "trainign is not a known key; did you mean training?"),
        ("training.zzz = 1", "known here: betas, clip, learning_rate, optimizer, resume, steps"),
    ],
)
def test_a_mistake_is_one_line_with_file_key_and_expectation(write, toml, expected):
    path = write(f'name = "demo"\n{toml}\n')
    message = refusal(path)
    lines = message.splitlines()
    assert expected in message
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert len(lines) == (2 if "paht" in toml else 1)


def test_a_missing_key_is_named(write):
    assert refusal(write("")).endswith("recipe.toml: name is missing; it has no default")


def test_several_mistakes_are_several_lines(write):
    message = refusal(write("[training]\nsteps = '3'\nlr = 1\n"))
    assert len(message.splitlines()) == 3
    assert "name is missing" in message


def test_a_thousand_mistakes_stay_readable(write):
    text = "".join(f"key{i} = 1\n" for i in range(1000))
    assert len(refusal(write(text)).splitlines()) < 30


def test_a_long_value_is_cut(write):
    assert len(refusal(write(f'name = "x"\ntraining.steps = "{"长" * 5000}"'))) < 300


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("name = demo\n", "line 1"),
        ('name = "x"\n\n[training\nsteps = 3', "line 3"),
        ('name = "x"\nname = "y"', "line 2"),
        ('name = "a\nb"', "line 1"),
        ('name = "x', "is not TOML"),
        ("name = " + "[" * 20000, "nested too deep"),
    ],
)
def test_a_syntax_error_names_its_line(write, toml, expected):
    message = refusal(write(toml))
    assert expected in message
    assert len(message.splitlines()) == 1


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "demo.toml").write_text('name = "x"')
    assert "near it: demo.toml" in refusal(tmp_path / "dmo.toml")
    assert "there is no folder" in refusal(tmp_path / "no" / "demo.toml")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"')
    assert "is not UTF-8 (byte 11)" in refusal(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("name=gemma-2b", "gemma-2b"),
        ("name = runs/a b", "runs/a b"),
        ("name='12'", "12"),
        ("name=a=b", "a=b"),
        ("name=2024-07-26", "2024-07-26"),
        ("name=中文#1", "中文#1"),
        ("name=x\ntraining = 3", "x\ntraining = 3"),
        ("name=1\nsystem = 'injected'", "1\nsystem = 'injected'"),
    ],
)
def test_bare_words_are_text(write, override, value):
    assert load_recipe(Recipe, write('name = "demo"'), [override]) == Recipe(name=value)


def test_overrides_win_and_the_last_most(write):
    path = write('name = "demo"\n[training]\nsteps = 5\nresume = true')
    recipe = load_recipe(
        Recipe,
        path,
        [
            "training.steps=7",
            "training.steps=8",
            "training.betas=[0.5, 0.6]",
            'data.weights={zh = 2, "en us" = 1.5}',
            "training.resume=false",
            "data.sources=[{path='x'}]",
        ],
    )
    assert recipe.training == Training(steps=8, betas=(0.5, 0.6))
    assert recipe.data == Data(weights={"zh": 2.0, "en us": 1.5}, sources=(Source(path="x"),))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.steps", "section.key=value"),
        ("=3", "section.key=value"),
        ("training..steps=3", "section.key=value"),
        ("training.steps=", "has no value"),
        ("training.steps=three", 'training.steps (an override) = "three" should be a whole number'),
        ("training.stesp=3", "training.stesp (an override) is not a known key; did you mean training.steps?"),
        ("name.first=3", 'name = "demo" is not a section'),
        ("data.train=[a.json, b.json]", "is not TOML"),
        ("name='half", "is not TOML"),
        ("name=\udce4", "is not UTF-8"),
    ],
)
def test_a_wrong_override_is_named(write, override, expected):
    message = refusal(write('name = "demo"'), override)
    assert expected in message
    assert len(message.splitlines()) == 1


def test_a_resolved_recipe_reads_back_equal(write):
    rng = random.Random(0)
    alphabet = [
        "a",
        '"',
        "'",
        "\\",
        "\n",
        "\r",
        "\t",
        "\x00",
        "\x1b",
        "\x7f",
        "\u2028",
        "你",
        "🙂",
        "{",
        "}",
        "#",
        "=",
        " ",
    ]

    def text() -> str:
        return "".join(rng.choices(alphabet, k=rng.randrange(12)))

    for _ in range(200):
        recipe = Recipe(
            name=text(),
            system=text(),
            training=Training(
                steps=rng.randrange(1, 10**12),
                learning_rate=10 ** rng.uniform(-30, 30),
                clip=rng.choice([None, 0.0, 1.0]),
                resume=rng.random() < 0.5,
                optimizer=rng.choice([Adam(), Sgd(momentum=0.5)]),
            ),
            data=Data(
                train=tuple(text() for _ in range(rng.randrange(3))),
                sources=tuple(Source(path=text(), weight=rng.random()) for _ in range(rng.randrange(3))),
                weights={text(): rng.random() for _ in range(rng.randrange(3))},
                folder=Path("数据") / "x",
                length=rng.choice([3, "3"]),
            ),
        )
        toml = dump_toml(recipe)
        path = write("")
        path.write_bytes(toml.encode())
        assert load_recipe(Recipe, path) == recipe


def test_a_dumped_recipe_is_what_a_person_would_write():
    recipe = Recipe(name="demo", data=Data(sources=(Source(path="a.jsonl"),), weights={"zh": 1.0}))
    assert dump_toml(recipe) == (
        'name = "demo"\nsystem = ""\n'
        "\n[training]\nsteps = 10\nlearning_rate = 1e-05\nbetas = [0.9, 0.95]\nresume = false\n"
        '\n[training.optimizer]\nkind = "adam"\nbeta = 0.9\n'
        '\n[data]\ntrain = []\nsources = [{path = "a.jsonl", weight = 1.0}]\n'
        'on_long = "drop"\nfolder = "data"\nlength = 1024\n'
        "\n[data.weights]\nzh = 1.0\n"
    )


def test_a_field_that_admits_none_must_default_to_none():
    with pytest.raises(TypeError, match=r"Wrong\.clip admits None"):

        class Wrong(Section):
            clip: float | None = 1.0


def test_the_schema_is_json_and_carries_the_docstrings():
    schema = json.loads(json.dumps(json_schema(Recipe)))
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Training"]["properties"]["steps"]["description"] == "Optimizer steps."


def test_missing_file_suggests_near_names(tmp_path):
    (tmp_path / "dpo_zh.json").touch()
    assert "near it: dpo_zh.json" in missing_file(tmp_path / "dpo-zh.json")
    assert "near it" not in missing_file(tmp_path / "qqqq.parquet")
