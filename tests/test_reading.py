"""The repository is there to be read: its two main scripts side by side, no line too long, and
files that can be copied."""
import ast
import difflib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def lines(file):
    return file.read_text(encoding="utf-8").split("\n")


def python_files():
    """All of the repository's own: none of runs/, of hidden directories or virtual environments."""
    environments = {config.parent for config in ROOT.rglob("pyvenv.cfg")}
    files = []
    for file in ROOT.rglob("*.py"):
        parts = file.relative_to(ROOT).parts
        hidden = any(part.startswith(".") for part in parts)
        if not hidden and parts[0] != "runs" and not environments & set(file.parents):
            files.append(file)
    return files


def test_ppo_and_grpo_differ_in_few_lines():
    """`diff train_ppo.py train_grpo.py` shows what is PPO's and what is GRPO's, and little else."""
    ppo, grpo = (lines(ROOT / name) for name in ("train_ppo.py", "train_grpo.py"))
    # The first two lines are the headers, with the files' names.
    _, _, *diff = difflib.unified_diff(ppo, grpo, n=0, lineterm="")
    changed = [line for line in diff if line.startswith(("+", "-"))]
    assert 0 < len(changed) <= 100


def test_no_line_is_longer_than_100_columns():
    files = python_files()
    assert ROOT / "train_ppo.py" in files and Path(__file__) in files
    long = [f"{file.relative_to(ROOT)}:{i}" for file in files
            for i, line in enumerate(lines(file), 1) if len(line) > 100]
    assert long == []


@pytest.mark.parametrize("file, needs", [
    ("model.py", set()), ("losses.py", set()), ("advantages.py", set()),
    ("rollout.py", {"losses", "model"})])
def test_what_can_be_copied_needs_torch_and_little_else(file, needs):
    """Besides torch and the standard library, these files import each other at most."""
    imported = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"torch"} | needs
