"""What the README, in English and in Chinese, says of the files is true, and both give the same commands and outputs."""
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_line_counts(page):
    rows = re.findall(r"^\| \[`(\S+)`\]\(\S+\) \| (\d+) \|", page.read_text(encoding="utf-8"), re.M)
    assert {name for name, _ in rows} == {p.name for p in ROOT.glob("*.py")}
    for name, count in rows:
        assert abs(len((ROOT / name).read_text(encoding="utf-8").splitlines()) - int(count)) <= max(5, 0.05 * int(count)), name


def test_local_links_resolve():
    for page in [*PAGES, *(ROOT / "docs").glob("*.md")]:
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")) if "://" not in link]
        assert all((page.parent / link).exists() for link in links), page


def test_both_languages_have_the_same_code_blocks():
    english, chinese = (re.findall(r"^```.*?^```|^ {4}[^\n]+", page.read_text(encoding="utf-8"), re.M | re.S) for page in PAGES)
    assert english and english == chinese
