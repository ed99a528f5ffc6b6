"""Every figure of docs/ is the one that its script draws now from the data that is there now.

Git keeps no times. So a figure holds a digest of its data and of the code that drew it (see
`save_figure`), and this test draws all of them again and compares the digests. A figure that is
older than what it is drawn from is drawn anew by the command that stands with it.
"""
import json
import runpy
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import compare
import test_closed_form
import training_speed
from support.plot import save_figure

DOCS = ROOT / "docs"
# The curves.png of a run of 20 minutes on downloaded weights: of it, nothing else is kept. And what
# a browser draws: test_trace.py looks at its digests.
KEPT = {"words.png", "trace.png", "trace.zh.png"}


def lab(folder: Path) -> None:
    for file in (DOCS / "lab").glob("*.csv"):
        (folder / file.name).write_bytes(file.read_bytes())
    compare.main(["--figures", "--out", str(folder)])


def curves(folder: Path) -> None:
    runpy.run_path(str(DOCS / "curves.py"))["draw"](folder)


def benchmarks(folder: Path) -> None:
    measured = json.loads((DOCS / "benchmarks" / "growth_cpu.json").read_text(encoding="utf-8"))
    training_speed.draw(measured["rows"], folder / "growth.png")


def closed_form(folder: Path) -> None:
    test_closed_form.draw(folder / "closed_form.png", steps=2)


def tool(folder: Path) -> None:
    runpy.run_path(str(DOCS / "tool.py"))["draw"](folder)


SCRIPTS = {
    "lab": (lab, "python compare.py --figures --out docs/lab"),
    "curves": (curves, "python docs/curves.py --figures"),
    "tool": (tool, "python docs/tool.py --figures"),
    "benchmarks": (benchmarks, "python benchmarks/training_speed.py --figures "
                   "--growth docs/benchmarks/growth.png --out docs/benchmarks/growth_cpu.json"),
    ".": (closed_form, "python tests/test_closed_form.py")}


def stamp(file: Path) -> str:
    """The digest in a figure; "" if there is none."""
    return Image.open(file).text.get("Sources", "")


@pytest.mark.parametrize("folder", SCRIPTS)
def test_figures_are_not_older_than_their_data_or_script(folder, tmp_path):
    redraw, command = SCRIPTS[folder]
    redraw(tmp_path)
    there = {file.name: stamp(file) for file in (DOCS / folder).glob("*.png")}
    now = {file.name: stamp(file) for file in tmp_path.glob("*.png")}
    assert now and "" not in now.values()
    old = {name for name in now.keys() | (there.keys() - KEPT) if now.get(name) != there.get(name)}
    assert not old, f"docs/{folder}: out of date, or drawn by nothing: {old}; draw with: {command}"
    # what compare.py says of its figures
    for page in tmp_path.glob("*.md"):
        assert page.read_bytes() == (DOCS / folder / page.name).read_bytes(), page.name


def test_a_change_of_data_or_code_changes_the_stamp(tmp_path):
    def stamped(*sources):
        save_figure(Figure(), tmp_path / "figure.png", sources)
        return stamp(tmp_path / "figure.png")

    def one(x):
        return x

    def two(x):
        return 2 * x
    data = [{"step": "1", "reward": "0.5"}]
    stamps = [stamped(data, one), stamped(data, two), stamped([{**data[0], "reward": "0.6"}], one),
              stamped(data, one, "title")]
    assert len(set(stamps)) == 4 and "" not in stamps
    assert stamped([dict(data[0])], one) == stamps[0]
