"""Recipes: TOML files that become frozen, strictly checked `Section`s, and resolved sections that become TOML again.

A config class lives beside the code that it configures and derives from `Section`; this file knows none of them. A
recipe states only what differs from the defaults, an override (`training.steps=20`) only what differs from the
recipe. Surprising, and on purpose: paths stay exactly as they are written (the caller resolves them against the
current directory, not against the recipe's); TOML has no null, so None is written by leaving the key out, and a field
that admits None must default to it; a date without quotes is an error, not text.
"""

import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from hanlin.errors import ConfigError

MOST_MISTAKES = 20  # named in one message
_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_SUBJECT = re.compile(r"^[A-Z]\w+ should ")  # "Input should be ...", "Tuple should have ..."
_EXPECTED = {
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "string_type": "should be text in quotes",
    "path_type": "should be a path in quotes",
    "bool_type": "should be true or false",
    "list_type": "should be a list in [ ]",
    "tuple_type": "should be a list in [ ]",
    "dict_type": "should be a table",
    "model_type": "should be a table",
}


class Section(BaseModel):
    """Base of every config class: frozen, no unknown keys, no conversions.

    "3" is no int, true is no int, 1 is a float, nan is nothing. A docstring under a field is its description in the
    JSON schema. Validators raise ValueError; the message becomes one line of the user's ConfigError. Use tuples for
    lists, `Path` for paths.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        for name, field in cls.model_fields.items():
            if NoneType in get_args(field.annotation) and (field.is_required() or field.default is not None):
                raise TypeError(f"{cls.__name__}.{name} admits None, which TOML cannot write: its default must be None")


S = TypeVar("S", bound=Section)


def load_recipe(cls: type[S], path: str | Path, overrides: Sequence[str] = ()) -> S:
    """Read the TOML file `path` as a `cls`, after the `section.key=value` overrides.

    An override's value is TOML; bare words are text; the last one wins. Raises ConfigError with one line for each
    mistake: the file, the dotted key, the value, what is expected.
    """
    path = Path(path)
    tree = _read_toml(path)
    overridden = {_override(tree, item) for item in overrides}
    if found := next(_dates(tree, ""), None):
        raise ConfigError(f"{path}: {found[0]} = {found[1]} is a date or time; write it in quotes")
    try:
        # JSON mode takes a list for a tuple and text for a Path, and stays strict in everything else.
        return cls.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        mistakes = _mistakes(cls, tree, error.errors(include_url=False, include_context=False), overridden)
    lines = [f"{path}: {mistake}" for mistake in mistakes[:MOST_MISTAKES]]
    if len(mistakes) > MOST_MISTAKES:
        lines.append(f"{path}: and {len(mistakes) - MOST_MISTAKES} more")
    raise ConfigError("\n".join(lines))


def dump_toml(section: Section) -> str:
    """The whole section as TOML, defaults included, None left out: `load_recipe` reads an equal section back."""
    return "".join(_table(section.model_dump(), "")).lstrip("\n")


def json_schema(cls: type[Section]) -> dict[str, Any]:
    """The JSON schema of a recipe, for editors that complete and check TOML as it is typed."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **cls.model_json_schema()}


def missing_file(path: Path) -> str:
    """One line for a path that does not exist: the nearest names in its folder, or that the folder is missing too."""
    if not path.parent.is_dir():
        return f"{path} does not exist: there is no folder {path.parent}"
    names = sorted(entry.name for entry in path.parent.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3)
    here = f"; near it: {', '.join(near)}" if near else ""
    return f"{path} does not exist in {path.parent.resolve()}{here}"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"recipe {missing_file(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"recipe {path} is a folder; name the .toml file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read: {error.strerror}") from None
    try:
        return tomllib.loads(text + "\n")  # so that an error on the last line has a line number
    except tomllib.TOMLDecodeError as error:
        hint = ""
        if (at := re.search(r"line (\d+)", str(error))) and int(at[1]) <= len(lines := text.split("\n")):
            hint = f" in {shown(lines[int(at[1]) - 1].strip())}; text needs quotes, a list [ ], a section [name]"
        raise ConfigError(f"{path} is not TOML: {error}{hint}") from None
    except RecursionError:
        raise ConfigError(f"{path} is not a recipe: its lists or tables are nested too deep") from None


def _override(tree: dict[str, Any], item: str) -> tuple[str, ...]:
    """Set one `section.key=value` in the tree; its key as a tuple of names."""
    dotted, sign, text = (part.strip() for part in item.partition("="))
    if not sign or not _KEY.fullmatch(dotted):
        raise ConfigError(f"override {shown(item)} should have the form section.key=value, such as training.steps=20")
    if not text:
        raise ConfigError(f"override {shown(item)} has no value; write {dotted}='\"\"' for empty text")
    *parents, leaf = keys = tuple(dotted.split("."))
    node = tree
    for depth, name in enumerate(parents, start=1):
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {shown(item)}: {'.'.join(keys[:depth])} = {shown(node)} is not a section")
    node[leaf] = _override_value(item, text)
    return keys


def _override_value(item: str, text: str) -> Any:
    try:
        text.encode()  # bytes of a command line that are no UTF-8 arrive as lone surrogates
        parsed = tomllib.loads(f"x = {text}")
    except UnicodeEncodeError:
        raise ConfigError(f"override {item!a} is not UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError):
        if text[0] in "[{\"'":
            raise ConfigError(
                f"override {shown(item)}: {shown(text)} is not TOML; text inside [ ] and {{ }} needs quotes"
            ) from None
        return text
    value = parsed["x"]
    return text if len(parsed) > 1 or isinstance(value, date | time) else value


def _dates(node: Any, key: str) -> Iterator[tuple[str, date | time]]:
    """Every date or time in the tree, with its dotted key: JSON has none, and no field of ours takes one."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _dates(value, f"{key}.{name}" if key else name)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _dates(value, f"{key}[{index}]")
    elif isinstance(node, date | datetime | time):
        yield key, node


def _mistakes(
    cls: type[Section], tree: dict[str, Any], errors: Sequence[ErrorDetails], overridden: set[tuple[str, ...]]
) -> list[str]:
    """One line for each wrong key; what the arms of a union say of the same key is joined by "or"."""
    complaints: dict[str, tuple[str, list[str]]] = {}
    for error in errors:
        names, value = _locate(tree, error["loc"], missing=error["type"] == "missing")
        key = _dotted(names) or "the recipe"
        if any(names[: len(one)] == one for one in overridden):
            key += " (an override)"
        if error["type"] == "missing":
            subject, complaint = key, "is missing; it has no default"
        elif error["type"] == "extra_forbidden":
            subject, complaint = key, f"is not a known key; {_nearest(cls, names, error['loc'])}"
        elif error["type"] in ("value_error", "assertion_error"):
            subject = f"{key}:" if isinstance(value, dict) else f"{key} = {shown(value)}:"
            complaint = error["msg"].partition(", ")[2]
        else:
            subject, complaint = f"{key} = {shown(value)}", _expectation(error, value)
        said = complaints.setdefault(_dotted(names), (subject, []))[1]
        if complaint not in said:
            said.append(complaint)
    return [f"{subject} {' or '.join(said)}" for subject, said in complaints.values()]


def _expectation(error: ErrorDetails, value: Any) -> str:
    if error["type"] == "union_tag_invalid":
        return f"should have a kind of {error['msg'].partition('expected tags: ')[2]}"
    expected = _EXPECTED.get(error["type"]) or _SUBJECT.sub("should ", error["msg"]).partition(" after validation")[0]
    if error["type"] == "int_type" and isinstance(value, float) and value.is_integer():
        return f"{expected}: write {int(value)}"
    if error["type"] == "literal_error" and isinstance(value, str):
        near = difflib.get_close_matches(value, re.findall(r"'([^']*)'", error["msg"]), n=1)
        return f"{expected}; did you mean {near[0]!r}?" if near else expected
    return expected


def _locate(tree: Any, loc: tuple[int | str, ...], *, missing: bool) -> tuple[tuple[int | str, ...], Any]:
    """Follow pydantic's location through the raw tree: the path and the value there.

    Names that pydantic adds for a union's arms are not in the tree and are skipped; a missing key's own name is kept.
    """
    names: list[int | str] = []
    node = tree
    for depth, part in enumerate(loc, start=1):
        children: Any = dict(enumerate(node)) if isinstance(node, list) else node
        if isinstance(children, dict) and part in children:
            node = children[part]
            names.append(part)
        elif missing and depth == len(loc):
            names.append(part)
    return tuple(names), node


def _dotted(names: Sequence[int | str]) -> str:
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names).removeprefix(".")


def _nearest(cls: type[Section], names: tuple[int | str, ...], loc: tuple[int | str, ...]) -> str:
    """Which known key was meant: one spelled alike in the same section, or the same one in another section.

    Of a union of sections that have a `kind`, only the one that pydantic's location names is the same section.
    """
    *parents, leaf = names
    here = [cls]
    for name in parents:
        inner = [
            sub
            for section in here
            if name in section.model_fields
            for sub in _sections(section.model_fields[str(name)].annotation)
        ]
        here = [one for one in inner if _kinds(one).intersection(loc)] or inner or here
    known = sorted({name for section in here for name in section.model_fields})
    prefix = f"{_dotted(parents)}." if parents else ""
    if near := difflib.get_close_matches(str(leaf), known, n=1):
        return f"did you mean {prefix}{near[0]}?"
    everywhere = list(_known_keys(cls, ""))
    for dotted in everywhere:
        if parents and dotted.startswith(prefix):
            continue  # of another section of the union
        if difflib.SequenceMatcher(None, str(leaf), dotted.rpartition(".")[2]).ratio() > 0.8:
            return f"did you mean {dotted}?"
    return f"known here: {', '.join(known)}"


def _kinds(section: type[Section]) -> set[Any]:
    """What a section's `kind` may be, where it has one."""
    return set(get_args(section.model_fields["kind"].annotation)) if "kind" in section.model_fields else set()


def _sections(annotation: Any) -> list[type[Section]]:
    """The Section classes anywhere inside an annotation (optional, union, list, table of sections)."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections(argument)]


def _known_keys(cls: type[Section], prefix: str) -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield prefix + name
        for section in _sections(field.annotation):
            yield from _known_keys(section, f"{prefix}{name}.")


def shown(value: Any, limit: int = 60) -> str:
    """Any value that a user wrote, as one short printable line for a message, cut in the middle."""
    text = _value(value) if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 4 :]}"
    return text.encode("utf-8", "backslashreplace").decode()


def _table(table: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """A table's lines: plain values first, since TOML gives every line after a [header] to that header."""
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    for key, value in table.items():
        if key not in inner and value is not None:
            yield f"{_name(key)} = {_value(value)}\n"
    for key, value in inner.items():
        yield f"\n[{prefix}{_name(key)}]\n"
        yield from _table(value, f"{prefix}{_name(key)}.")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{_name(key)} = {_value(item)}" for key, item in value.items() if item is not None) + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    raise TypeError(f"TOML cannot write {value!r}, a {type(value).__name__}")


def _name(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)
