"""The README's Python blocks run as one script, and CI runs the README's own test command."""

import re
from pathlib import Path

import fptt_plugin

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 4
    exec(compile("\n".join(blocks), "README.md", "exec"), {})
    assert "20" in capsys.readouterr().out  # updates of the first example


def test_ci_finds_the_test_command():
    commands = [line for line in README.splitlines() if line.endswith("&& pytest -n auto")]
    assert len(commands) == 1
    assert "constraints.txt" in commands[0]
    assert "grep -m 1 '&& pytest' README.md" in (ROOT / ".ci" / "run").read_text()


def test_files_that_the_readme_names_exist():
    for name in [*re.findall(r"\]\((?!http)([^)#]+)\)", README), "examples/quickstart.py", "CITATION.cff"]:
        assert (ROOT / name).is_file(), name


def test_one_version():
    """pyproject.toml takes it from the package, and the citation has the same."""
    assert 'path = "fptt_plugin/__init__.py"' in (ROOT / "pyproject.toml").read_text()
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    assert cited.group(1) == fptt_plugin.__version__


def test_no_command_pretends_that_the_package_is_on_an_index():
    sources = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("fptt_plugin/**/*.py")]
    assert len(sources) > 50
    for source in sources:
        assert not re.search(r"pip install [^`\n]*\bfptt_plugin\b(?!-)", source.read_text()), source
