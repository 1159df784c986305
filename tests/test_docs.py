"""The docs cannot lie: what they print is current, what they name exists, and letters are those of the legend."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "hanlin"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
NAMED_FILE = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|toml|md|jsonl))`")
TARGET = re.compile(r"`make ([a-z]+)[^`]*`|^ {4}make ([a-z]+)", re.MULTILINE)
DECISION_PARTS = ("**Context.**", "**Choice.**", "**Price.**", "**What would change our mind.**")
MAX_FIRST_READING = 1200  # lines of the six files that a newcomer reads

specification = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
assert specification is not None
assert specification.loader is not None
generate = importlib.util.module_from_spec(specification)
specification.loader.exec_module(generate)

per_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def test_what_the_docs_print_is_current(capsys):
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_page_is_named_and_mended(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("# Row\n\n<!-- printed by: row -->\nold\n<!-- end -->\n\nAfter.\n", encoding="utf-8")
    assert generate.main(["--check"], root=tmp_path) == 1
    assert "page.md" in capsys.readouterr().out
    assert "old" in page.read_text(encoding="utf-8")
    assert generate.main([], root=tmp_path) == 0
    assert generate.main(["--check"], root=tmp_path) == 0
    assert generate.ROW["rejected"][0]["content"] in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("loss 6.639", "loss 6.640", True),
        ("loss 6.639", "loss 6.739", False),
        ("loss 6.639", "nll 6.639", False),
        ("36 tokens", "37 tokens", False),
    ],
)
def test_only_decimals_may_differ_and_only_a_little(old, new, same):
    assert generate.agree(old, new) is same


@per_page
def test_links_lead_somewhere(page):
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@per_page
def test_named_files_exist(page):
    """In backticks, from the root, the package, the tests or the page's folder. The journal may name what is gone."""
    if page.name == "journal.md":
        return
    places = (ROOT, SRC, page.parent, ROOT / "tests")
    names = NAMED_FILE.findall(page.read_text(encoding="utf-8"))
    assert [name for name in names if "your" not in name and not any((place / name).exists() for place in places)] == []


@per_page
def test_named_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {one or other for one, other in TARGET.findall(page.read_text(encoding="utf-8"))}
    assert named <= targets


def test_decisions_are_numbered_and_short_and_say_all_four_things():
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        text = record.read_text(encoding="utf-8")
        assert [part for part in DECISION_PARTS if text.count(part) != 1] == [], record.name
        assert text.count("\n") <= 50, record.name


def test_the_first_reading_stays_short():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    files = re.findall(r"^\d\. \[`.*`\]\(\.\./(src/[^)]*)\)", text, re.MULTILINE)
    assert len(files) == 6
    assert sum((ROOT / file).read_text(encoding="utf-8").count("\n") for file in files) <= MAX_FIRST_READING


def test_tensor_names_use_the_letters_of_the_legend():
    legend = set(re.findall(r"`([A-Z1])`", (ROOT / "docs" / "notation.md").read_text(encoding="utf-8")))
    wrong = set()
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else ""
            suffix = re.fullmatch(r"[a-z][a-z0-9_]*_([A-Z1]+)", name)
            if suffix and not legend.issuperset(suffix[1]):
                wrong.add(f"{path.relative_to(SRC)}: {name}")
    assert not wrong
