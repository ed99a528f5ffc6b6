"""docs/READING_CURVES.md, in English and in Chinese, names every number that a run logs, its tables
are those of docs/curves/curves.csv, and its answers are true."""
import csv
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train_dpo
import train_grpo
import train_ppo
import train_rm
import train_sft
from advantages import grpo_advantages
from losses import dpo_loss, grpo_loss, kl_k3, masked_mean
from support.cli import parse
from support.plot import read_metrics
from support.run import ALGORITHMS

ROOT = Path(__file__).parent.parent
SCRIPT = runpy.run_path(str(ROOT / "docs" / "curves.py"))
PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8")
         for name in ("READING_CURVES.md", "READING_CURVES.zh.md")}
with open(ROOT / "docs" / "curves" / "curves.csv", newline="", encoding="utf-8") as f:
    ROWS = {(row["run"], row["step"]): row for row in csv.DictReader(f)}


@pytest.fixture(scope="module")
def logged(place, tmp_path_factory):
    """Of each algorithm, the columns of a run's metrics.csv."""
    def flags(start, data, *more):
        return ["--model", place / start, "--data", place / data, "--steps", "1", *more]
    answers = ["--reward", f"{place / 'reward.py'}:vowels", "--max-new-tokens", "6",
               "--prompts-per-step", "4"]
    runs = {train_sft: flags("random", "sft.jsonl"),
            train_rm: flags("sft", "pairs.jsonl"),
            train_dpo: flags("sft", "pairs.jsonl"),
            train_grpo: flags("sft", "sft.jsonl", *answers),
            train_ppo: flags("sft", "sft.jsonl", *answers)}
    columns = {}
    for script, given in runs.items():
        algorithm = script.Config.algorithm
        out = tmp_path_factory.mktemp("logged") / algorithm
        script.main([*map(str, given), "--out", str(out)])
        columns[algorithm] = set(read_metrics(out)[0])
    return columns


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_number_that_is_logged_is_explained(logged, algorithm):
    names = logged[algorithm] | set(next(iter(ROWS.values()))) - {"run"}
    assert {"step", "grad_norm", "seconds", "skipped_updates"} < logged[algorithm]
    for page in PAGES.values():
        assert {name for name in names if f"`{name}`" not in page} == set()


def test_both_languages_have_the_same_numbers_and_names():
    """Section by section: so neither can be changed alone."""
    english, chinese = (page.split("\n## ") for page in PAGES.values())
    assert len(english) == len(chinese)
    for section, other in zip(english, chinese):
        for pattern in (r"[−-]?\d+\.\d+", r"`[^`\n]+`", r"\]\(([^)]+)\)"):
            found, expected = (sorted(re.findall(pattern, text)) for text in (other, section))
            # The pages link to each other.
            expected = [link.replace(".zh.md", ".md") for link in expected]
            found = [link.replace(".zh.md", ".md") for link in found]
            assert found == expected, section[:40]


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_are_what_the_runs_gave(page):
    checked, run, steps = 0, None, []
    for line in PAGES[page].split("\n"):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if head := re.match(r"run `(\w+)`, step", cells[0]):
            run, steps = head[1], [cell for cell in cells[1:] if cell.isdigit()]
        elif run and line.startswith("| `"):
            for step, cell in zip(steps, cells[1:]):
                found = ROWS[run, step][cells[0].strip("`")]
                last = 10.0 ** -len(cell.partition(".")[2])
                assert (cell == "") == (found == "") and (
                    not cell or abs(float(cell) - float(found)) <= 0.501 * last), (run, step, line)
                checked += 1
    assert checked > 100


def test_runs_are_commands_and_the_page_knows_them():
    for name, command in SCRIPT["RUNS"].items():
        file, *flags = (command + " " + SCRIPT["COMMON"]).split()
        parse({"train_grpo.py": train_grpo, "train_ppo.py": train_ppo,
               "train_dpo.py": train_dpo}[file].Config, "", flags)
    assert {run for run, _ in ROWS} == set(SCRIPT["RUNS"])
    for page in PAGES.values():
        assert set(re.findall(r"`((?:grpo|ppo|dpo)_\w+)`", page)) - set(SCRIPT["RUNS"]) == set()


def test_pictures_are_shown_and_small():
    for name in SCRIPT["FIGURES"]:
        assert (all(f"](curves/{name}.png)" in page for page in PAGES.values())
                and (ROOT / "docs" / "curves" / f"{name}.png").stat().st_size < 100_000)


def test_k3_is_never_negative_and_k1_is_at_times():
    kl, answer_kl = ([float(row[c]) for row in ROWS.values() if row[c]]
                     for c in ("kl", "answer_kl"))
    assert min(kl) >= 0 > min(answer_kl)


def test_the_value_of_grpos_loss_is_its_kl():
    """At ratio 1 the advantages cancel in the value, whatever the rewards, and not in the
    gradient."""
    generator = torch.Generator().manual_seed(0)
    logp, ref_logp = -torch.rand(2, 8, 5, dtype=torch.float64, generator=generator)
    advantages, mask = (
        grpo_advantages(torch.tensor([1., 0, 0, 0, 1, 1, 0, 1], dtype=torch.float64), 4),
        torch.ones(8, 5))
    logp.requires_grad_()
    for ref, kl_coef in ((logp.detach(), 0.1), (ref_logp, 0.0), (ref_logp, 0.1)):
        loss, _ = grpo_loss(logp, logp.detach(), ref, advantages, mask, kl_coef=kl_coef)
        torch.testing.assert_close(loss, kl_coef * masked_mean(kl_k3(logp, ref), mask))
        assert torch.autograd.grad(loss, logp)[0].abs().max() > 0.01


def test_dpo_does_not_see_both_sides_fall():
    logp = -torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dpo_loss(*logp)[0],
                               dpo_loss(logp[0] - 10, logp[1] - 10, *logp[2:])[0])


def test_what_ran_to_its_end_is_not_run_again(tmp_path, monkeypatch):
    run = SCRIPT["run_what_is_missing"]
    (tmp_path / "done" / "model").mkdir(parents=True)
    (tmp_path / "done" / "model" / "config.json").touch()
    (tmp_path / "cut off").mkdir()
    commands = []
    monkeypatch.setitem(run.__globals__, "subprocess", SimpleNamespace(
        run=lambda command, **how: commands.append(list(map(str, command[1:])))))
    run({"done": "a.py", "cut off": "b.py --steps 2", "new": "c.py"}, tmp_path)
    assert commands == [
        ["b.py", "--steps", "2", "--out", str(tmp_path / "cut off"), "--overwrite"],
        ["c.py", "--out", str(tmp_path / "new"), "--overwrite"]]


def test_the_tool_s_runs_begin_with_their_models():
    names = list(runpy.run_path(str(ROOT / "docs" / "tool.py"))["all_commands"]())
    assert names[:3] == ["sft_0", "sft_1", "sft_2"] and len(names) == 12
