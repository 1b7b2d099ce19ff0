"""The README's Python blocks run as one script, and CI runs the README's own test command."""

import re
from pathlib import Path

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
