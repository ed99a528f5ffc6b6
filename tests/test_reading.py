"""The repository is there to be read: its two main scripts side by side, and no line too long."""
import difflib
from pathlib import Path

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
