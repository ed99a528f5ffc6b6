"""docs/MISTAKES.md says of each mistake what docs/mistakes/runs.csv says, in both languages; and
exercises/bug.py has bugs that can be seen, and tells right guesses from wrong ones."""
import csv
import re
import runpy
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import mutation_runs
from mutation_runs import HEALTHY_SEEDS, MISTAKE_SEED, RUNS
from mutations import MUTATIONS, NOTICED_BY, NUMBERS, ROOT, SECTIONS, copy_project

sys.path.append(str(ROOT / "docs"))
import effects  # noqa: E402
import mistakes  # noqa: E402

BUG = runpy.run_path(str(ROOT / "exercises" / "bug.py"))
BUGS = list(enumerate(BUG["BUGS"], start=1))
ROWS = mutation_runs.read_rows()
PAGES = {language: file.read_text(encoding="utf-8") for language, file in mistakes.PAGES.items()}
CHINESE = "[\u4e00-\u9fff]"


# ------------------------------------------------------------------------------------- the mistakes

def test_each_mistake_can_be_made():
    """Its text stands in its file once, and the new text is other."""
    names = [mutation.name for mutation in MUTATIONS]
    assert len(names) == len(set(names)) >= 60
    for mutation in MUTATIONS:
        source = (ROOT / mutation.file).read_text(encoding="utf-8")
        assert source.count(mutation.old) == 1, mutation.name
        assert mutation.new not in (mutation.old, None), mutation.name
        assert (ROOT / "tests" / mutation.tests.split("::")[0].split()[0]).is_file(), mutation.name


def test_a_copy_has_the_mistake_and_nothing_else(tmp_path):
    mutation = next(m for m in MUTATIONS if m.name == "k1_reversed")
    copy = copy_project(tmp_path, mutation)
    changed = [file.relative_to(copy) for file in copy.rglob("*.py")
               if file.read_bytes() != (ROOT / file.relative_to(copy)).read_bytes()]
    assert changed == [Path("losses.py")]
    assert "return ref_logp - logp\n" in (copy / "losses.py").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="k1_reversed: its text occurs 0 times in losses.py"):
        copy_project(tmp_path / "other", replace(mutation, old="no such line"))


def test_there_is_one_numbering():
    for page in PAGES.values():
        assert re.findall(r"^\| (\d+) \|", page, re.M) == [str(n) for n in NUMBERS.values()]
        assert len(re.findall("^## ", page, re.M)) == len(SECTIONS) + 1
    assert list(NUMBERS.values()) == list(range(1, len(MUTATIONS) + 1))
    for page, words in (("READING_CURVES.md", r"mistake (\d+)"),
                        ("READING_CURVES.zh.md", r"错误 (\d+)")):
        named = re.findall(words, (ROOT / "docs" / page).read_text(encoding="utf-8"))
        assert [int(number) for number in named] == [
            NUMBERS[name] for name in ("low_precision", "temperature_sampling_only",
                                       "k1_reversed")]


# ---------------------------------------------------------------------------------------- the runs

def test_each_mistake_has_a_run_or_a_reason():
    for mutation in MUTATIONS:
        what = effects.kind(mutation)
        assert what in effects.KINDS
        assert bool(mutation.run) == (what != "unseen"), mutation.name
        assert bool(mutation.unseen) == (what in ("same", "unseen")), mutation.name
    assert {m.run for m in MUTATIONS if m.run} == set(RUNS)
    found = {(row["run"], row["mistake"]) for row in ROWS}
    assert found == {(run, "") for run in RUNS} | {
        (m.run, m.name) for m in MUTATIONS if m.run}


def test_the_runs_are_whole():
    runs = effects.runs()
    for (run, mistake), seeds in runs.items():
        assert set(seeds) == ({MISTAKE_SEED} if mistake else set(HEALTHY_SEEDS))
        n_steps = int(re.search(r"--steps (\d+)", RUNS[run]).group(1))
        for rows in seeds.values():
            steps = [int(row["step"]) for row in rows]
            assert steps == list(range(1, len(steps) + 1))
            # Training that ended in an error has fewer rows, and no trained model.
            assert len(steps) == n_steps or mistake and not rows[-1]["right"]
            assert not any(row["right"] for row in rows[:-1])


def test_what_is_there_is_not_run_again(tmp_path, monkeypatch):
    made = []

    def rows_of(run, mutation, seed):
        made.append((run, mutation and mutation.name, seed))
        name = mutation.name if mutation else ""
        return [{"run": run, "mistake": name, "seed": seed, "step": step} for step in (1, 2)]
    monkeypatch.setattr(mutation_runs, "RUNS_CSV", tmp_path / "runs.csv")
    monkeypatch.setattr(mutation_runs, "train_starts", lambda: None)
    monkeypatch.setattr(mutation_runs, "rows_of", rows_of)
    monkeypatch.setattr(mistakes, "write", lambda: None)
    mutation_runs.main(["ipo"])
    assert made == [("ipo", None, 0), ("ipo", "ipo_summed", 0), ("ipo", None, 1), ("ipo", None, 2)]
    mutation_runs.main(["ipo", "simpo"])
    assert {run for run, _, _ in made[4:]} == {"simpo"} and len(made) == 8
    rows = mutation_runs.read_rows()
    assert [(row["run"], row["mistake"], row["seed"], row["step"]) for row in rows[:8]] == [
        ("ipo", name, seed, step) for name, seed in
        (("", "0"), ("", "1"), ("", "2"), ("ipo_summed", "0")) for step in ("1", "2")]


# --------------------------------------------------------------------------------------- the pages

@pytest.mark.parametrize("language", PAGES)
def test_the_page_is_up_to_date(language):
    assert PAGES[language] == mistakes.page(language), "run `python docs/mistakes.py`"
    figure = ROOT / "docs" / mistakes.FIGURES[language]
    assert figure.read_text(encoding="utf-8") == effects.figure(language)


def test_both_pages_say_the_same():
    rows = [[line.split(" | ") for line in page.split("\n") if re.match(r"\| \d+ \|", line)]
            for page in PAGES.values()]
    assert len(rows[0]) == len(rows[1]) == len(MUTATIONS)
    for english, chinese in zip(*rows):
        assert english[0] == chinese[0] and english[5:] == chinese[5:]
        assert all(re.search(CHINESE, cell) for cell in chinese[1:4]), chinese
        assert re.findall(r"\d[\d.]*", english[3]) == re.findall(r"\d[\d.]*", chinese[3])
    with pytest.raises(ValueError, match="no Chinese for 'A new mistake'"):
        mistakes.row(replace(MUTATIONS[0], mistake="A new mistake"), "x", "Chinese")


def test_every_test_is_there():
    with open(NOTICED_BY, newline="", encoding="utf-8") as f:
        tests = {row["mistake"]: row["test"] for row in csv.DictReader(f)}
    assert set(tests) == set(NUMBERS)
    for name, test in tests.items():
        file, function = test.split("::")
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert f"def {function}(" in source, name


def test_the_counts_are_those_of_the_rows():
    counts = map(int, re.search(
        r"Of (\d+) mistakes (\d+) change .*?(\d+) show .*?(\d+) are invisible there\*\*: (\d+) "
        r"differ .*?in (\d+) no number .*?(\d+) there is no run",
        PAGES["English"].replace("\n", " "), re.S).groups())
    everything, model, numbers, hidden, spread, same, unseen = counts
    rows = [line for line in PAGES["English"].split("\n") if re.match(r"\| \d+ \|", line)]
    assert everything == len(rows) == model + numbers + hidden and hidden == spread + same + unseen
    assert unseen == sum("| only a test sees it" in row for row in rows)
    assert same == sum(": the same numbers in every step" in row for row in rows)
    assert spread == sum(": within the spread of the seeds" in row for row in rows)


def test_an_effect_by_hand(monkeypatch):
    """Three seeds and a mistake: means, spreads and what counts, computed again."""
    def run(right, kl):
        first = {column: "" for column in mutation_runs.COLUMNS} | {"step": "1", "kl_exact": "9"}
        last = {**first, "step": "2", "right": str(right), "kl_exact": str(kl)}
        return [first, last]
    found = {("grpo", ""): {0: run(0.8, 0.1), 1: run(0.9, 0.1), 2: run(0.85, 0.1)},
             ("dpo", ""): {0: run(0.5, 0.02), 1: run(0.5, 0.04)},
             ("grpo", "a"): {0: run(0.41, 0.1)},
             ("grpo", "b"): {0: run(0.75, 0.9)},
             ("grpo", "c"): {0: run(0.75, 0.1)},
             ("grpo", "d"): {0: run(0.8, 0.1)}}
    monkeypatch.setattr(effects, "runs", lambda: found)
    effects.typical_spread.cache_clear()
    spread = (statistics.variance([0.8, 0.9, 0.85]) / 2) ** 0.5
    assert effects.typical_spread("right") == pytest.approx(spread)
    a, b, c, d = (replace(MUTATIONS[0], name=name, run="grpo") for name in "abcd")
    # 0.44 lower than 0.85, where a standard deviation is 0.05, which is over the typical one.
    assert effects.distance(a, "right") == pytest.approx(0.44 / 0.05)
    assert effects.effect(a, "English", "") == (
        "`grpo`: sampled answers right 0.41 instead of 0.85 ± 0.05")
    assert effects.effect(a, "Chinese", "") == "`grpo`: 采样回答正确率 0.41，正常为 0.85 ± 0.05"
    # Nine times the KL: its logarithm is 2.2 further, where the other command's seeds differ by
    # log 2.
    expected = 2 * 2.1972 / 0.6931
    assert effects.distance(b, "kl_exact") == pytest.approx(expected, rel=1e-3)
    assert effects.effect(b, "English", "") == (
        "`grpo`: kl_exact 0.90 instead of 0.10 ± 0; "
        "right answers within the spread (0.75, 0.85 ± 0.05)")
    assert [effects.kind(m) for m in (a, b, c, d)] == ["model", "numbers", "spread", "same"]
    assert "(0.75 right; without it 0.85 ± 0.05)" in effects.effect(c, "English", "")
    effects.typical_spread.cache_clear()


# ----------------------------------------------------------------------------------------- the bugs

def test_there_are_a_dozen_bugs_in_an_order_of_their_own():
    numbers = [NUMBERS[bug.mistake] for _, bug in BUGS]
    assert len(numbers) == len(set(numbers)) == 12
    assert numbers != sorted(numbers)
    assert all(number != i for i, number in enumerate(numbers, start=1))


@pytest.mark.parametrize("number, bug", BUGS)
def test_a_bug_can_be_seen(number, bug):
    mutation = BUG["mistake_of"](bug)
    assert effects.kind(mutation) in ("model", "numbers")
    outside = 0
    for column in bug.columns:
        line = effects.curve(BUG["curves_of"](bug), column)
        band = effects.healthy_band(mutation.run, column)
        n_out = sum(not band[step][0] <= line[step] <= band[step][1]
                    for step in line if step in band)
        outside = max(outside, n_out / len(line))
    assert outside >= 0.5, "no number is outside of the band in half of the steps"


@pytest.mark.parametrize("number, bug", BUGS)
def test_a_bug_knows_its_answer(number, bug, capsys, tmp_path):
    main, right = BUG["main"], NUMBERS[bug.mistake]
    main.__globals__["PICTURES"] = tmp_path
    assert main([str(number)]) == 0
    shown = capsys.readouterr().out
    assert RUNS[BUG["mistake_of"](bug).run] in shown and shown.count("*") > 5
    assert f"\n{right:>4}  {BUG['mistake_of'](bug).mistake}\n" in shown
    assert (tmp_path / f"bug_{number}.svg").read_text(encoding="utf-8").count("<polygon") == len(
        bug.columns)
    assert max(map(len, shown.split("\n"))) <= 116
    for hint in "12":
        assert main([str(number), "--hint", hint]) == 0
        hinted = capsys.readouterr().out
        assert 20 < len(hinted) and BUG["mistake_of"](bug).mistake.lower() not in hinted.lower()
    assert main([str(number), "--answer"]) == 0
    assert f"It is mistake {right}: " in capsys.readouterr().out
    assert main([str(number), "--guess", str(right)]) == 0
    assert capsys.readouterr().out.startswith("right: ")
    for guess, guessed in enumerate(MUTATIONS, start=1):
        if guess != right:
            assert main([str(number), "--guess", str(guess)]) == 1
            told = capsys.readouterr().out
            assert told.startswith(f"no: mistake {guess} ({guessed.mistake}) ")
            assert reason(guessed, BUG["mistake_of"](bug).run) in told


def reason(guessed, run: str) -> str:
    """A part of what must be said of a wrong guess."""
    script = RUNS[run].split()[0]
    if guessed.run and RUNS[guessed.run].split()[0] != script:
        return f"; this run is {script}'s"
    if guessed.unseen:
        return "changes no number of such a run"
    if guessed.run != run:
        return f"acts in `{RUNS[guessed.run]}`"
    return "in this command; here it is "


@pytest.mark.parametrize("given, message", [
    (["99"], "argument bug: the bug is 99, expected 1 to 12"),
    (["1", "--guess", "x"], f"argument --guess: the mistake is x, expected 1 to {len(MUTATIONS)}"),
    (["1", "--hint", "3"], "argument --hint: the hint is 3, expected 1 to 2"),
    (["--answer"], "of which bug? expected its number first")])
def test_a_user_s_mistake_is_one_line(given, message, capsys):
    with pytest.raises(SystemExit) as ended:
        BUG["main"](given)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"bug.py: error: {message}\n"


def test_the_list_of_bugs(capsys):
    assert BUG["main"]([]) == 0
    assert capsys.readouterr().out.count("python train_") == 12
