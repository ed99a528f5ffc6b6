"""What the README says of the files is true."""
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_line_counts():
    rows = re.findall(r"^\| \[`(\S+)`\]\(\S+\) \| (\d+) \|", README, re.M)
    assert {name for name, _ in rows} == {p.name for p in ROOT.glob("*.py")}
    for name, count in rows:
        assert abs(len((ROOT / name).read_text(encoding="utf-8").splitlines()) - int(count)) <= max(5, 0.05 * int(count)), name


def test_local_links_resolve():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")) if "://" not in link]
        assert all((page.parent / link).exists() for link in links), page
