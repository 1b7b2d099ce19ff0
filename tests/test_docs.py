"""The documentation's links lead somewhere, its code is executed, and CI builds it with the documented command."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BUILT = ("_build", "jupyter_execute")
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page.relative_to(DOCS).parts[0] not in BUILT]
PAGES.remove(DOCS / "reference.md")  # made from docstrings, whose examples are doctests of their modules
SOURCES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
CONTRIBUTING = (DOCS / "contributing.md").read_text()
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


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_fits_the_page(page):
    """A longer line of Python is cut off at the width of the column; commands and output are wrapped."""
    long = [
        line for _, info, block in FENCE.findall(page.read_text()) if "python" in info for line in block.splitlines()
    ]
    assert [line for line in long if len(line) > 100] == []


def test_every_picture_of_a_notebook_has_a_description():
    draws = re.compile(r"\bplt\.(subplots|figure|semilogy)\(|\bplot\.(learning_curves|memory|time_constants)\(")
    cells = [
        (page, block)
        for page in (DOCS / "tutorials").glob("*.md")
        for _, info, block in FENCE.findall(page.read_text())
        if info.startswith("{code-cell}") and draws.search(block)
    ]
    assert len(cells) > 8
    assert [(name(page), block) for page, block in cells if "    alt: " not in block] == []


def test_a_number_and_its_unit_stay_on_one_line(monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    keep = importlib.import_module("units").UNIT.sub
    assert keep("~", "98.1 % of 1 000 in 6.89 MiB, 85 s") == "98.1~% of 1 000 in 6.89~MiB, 85~s"
    assert keep("~", "81.1 % (n = 3, 6 tried)") == "81.1~% (n~=~3, 6~tried)"
    assert keep("~", "T = 10 steps, 3 seeds") == "T = 10 steps, 3 seeds"


def test_every_tutorial_says_what_one_will_have_and_can_be_downloaded():
    for page in [*(DOCS / "tutorials").glob("*.md"), DOCS / "start.md", DOCS / "migration.md"]:
        first = page.read_text().split("\n# ")[1].split("\n## ")[0]
        for word in ("**You will have**", "**Time:**", f"{{nb-download}}`{page.stem}.ipynb`"):
            assert word in first, (page, word)


def test_every_example_is_in_the_gallery_with_its_picture():
    gallery = (DOCS / "gallery.md").read_text()
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py") if path.stem[0] != "_"}
    scripts -= {"models", "models_conv", "models_detection"}  # parts of others
    assert {stem for stem in scripts if f"{stem}.py" not in gallery} == set()
    pictures = set(re.findall(r":img-top: (\S+)", gallery))
    assert len(pictures) > 10
    assert all((DOCS / picture).is_file() for picture in pictures)


def test_a_build_fetches_nothing():
    """Formulas need no script from elsewhere, and inventories of other projects lie in the repository."""
    conf = (DOCS / "conf.py").read_text()
    assert 'html_math_renderer = "mathml"' in conf
    assert "intersphinx_mapping = local_inventories.mapping()" in conf
    lists = list((DOCS / "inventories").glob("*.txt"))
    assert len(lists) > 3
    for path in lists:
        address, *objects = path.read_text().splitlines()
        assert address.startswith("https://")
        assert all(len(line.split()) == 3 for line in objects)


def test_every_picture_of_the_readme_has_a_script():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "README.md").read_text()):
        scripts = [script for script in (ROOT / "examples").rglob("*.py") if Path(picture).name in script.read_text()]
        assert scripts, picture


def tree(text):
    """Files of a directory tree drawn by indentation, relative to its root."""
    folders, files = {}, set()
    for line in filter(str.strip, text.splitlines()[1:]):
        depth, entry = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        path = folders.get(depth - 1, "") + entry
        if entry.endswith("/"):
            folders[depth] = path
        else:
            files.add(path)
    return files


def test_the_layout_lists_every_file_of_the_package():
    """The ``__init__.py`` of a folder is its line."""
    block = re.search(r"^```text\n(fptt_plugin/\n.*?)^```", CONTRIBUTING, flags=re.DOTALL | re.MULTILINE)
    package = ROOT / "fptt_plugin"
    files = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    assert tree(block.group(1)) == {file for file in files if not file.endswith("/__init__.py")}


def test_the_five_paths_lead_to_functions():
    """Each row names a file and the function to start at; further ones are in the package."""
    rows = re.findall(r"^\| [^|]+\? \| `([\w/]+\.py)` \| `(\w+)`(.*)\|$", CONTRIBUTING, flags=re.MULTILINE)
    assert len(rows) == 5
    sources = {path: path.read_text() for path in (ROOT / "fptt_plugin").rglob("*.py")}
    for file, function, more in rows:
        assert f"def {function}(" in sources[ROOT / "fptt_plugin" / file], function
        for name in set(re.findall(r"`(_\w+|find_\w+|refuse_\w+|preflight|state_dict)`", more)):
            assert any(f"def {name}(" in source for source in sources.values()), name
        for path in re.findall(r"`([\w/]+\.py)`", more):
            assert ROOT / "fptt_plugin" / path in sources, path


def test_ci_runs_the_documented_command():
    commands = [line for line in CONTRIBUTING.splitlines() if "sphinx-build" in line]
    assert len(commands) == 1
    assert "constraints.txt" in commands[0]
    assert " -W " in commands[0]
    assert "grep -m 1 'sphinx-build' docs/contributing.md" in (ROOT / ".ci" / "run").read_text()
