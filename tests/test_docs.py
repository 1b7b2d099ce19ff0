"""The documentation's links lead somewhere, its code is executed, and CI builds it with the documented command."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BUILT = ("_build", "jupyter_execute")
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page.relative_to(DOCS).parts[0] not in BUILT]
SOURCES = [ROOT / "README.md", *PAGES]
FENCE = re.compile(r"^(`{3,})(.*?)\n(.*?)^\1$", flags=re.DOTALL | re.MULTILINE)


def name(path):
    return str(path.relative_to(ROOT))


def anchors(page):
    """Of a page's headings, as GitHub and MyST make them."""
    text = FENCE.sub("", page.read_text())
    headings = re.findall(r"^#{1,3} (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page):
    """Targets within the repository, outside code."""
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", target)]


def test_there_is_something_to_check():
    assert len(PAGES) > 15
    assert sum(len(links(page)) for page in SOURCES) > 40
    assert "what-the-dual-sees" in anchors(DOCS / "theory.md")


@pytest.mark.parametrize("page", SOURCES, ids=name)
def test_links_and_anchors_resolve(page):
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_python_block_is_executed(page):
    """As a doctest, or as a cell of a page that is a notebook."""
    text = page.read_text()
    is_notebook = text.startswith("---\njupytext:")
    for _, info, block in FENCE.findall(text):
        if info.startswith("{code-cell}"):
            assert is_notebook, "a page with cells begins with jupytext's header, or nothing runs"
        elif "python" in info or not info:
            assert info == "python", f"{info!r}: a doctest, or a cell, or say what the block is"
            assert ">>> " in block, block
        else:
            assert ">>> " not in block, block
    if is_notebook:
        assert "{code-cell}" in text
        assert ">>> " not in text  # pytest would run it as a doctest, without the cells before it


def test_every_picture_of_the_readme_has_a_script():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "README.md").read_text()):
        scripts = [script for script in (ROOT / "examples").rglob("*.py") if Path(picture).name in script.read_text()]
        assert scripts, picture


def test_ci_runs_the_documented_command():
    commands = [line for line in (DOCS / "contributing.md").read_text().splitlines() if "sphinx-build" in line]
    assert len(commands) == 1
    assert "constraints.txt" in commands[0]
    assert " -W " in commands[0]
    assert "grep -m 1 'sphinx-build' docs/contributing.md" in (ROOT / ".ci" / "run").read_text()
