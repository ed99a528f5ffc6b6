"""The lab: runs that are there are not run again, the table is of their numbers, and a sentence
says what its numbers say."""
import csv
import json
import math
import sys
import time
import zlib
from types import SimpleNamespace

import pytest
import torch

import compare
import train_dpo
import train_grpo
import train_ppo
import train_rm
import train_sft
from lab import report
from lab.experiments import (
    DAPO,
    DPO,
    EXPERIMENTS,
    GRPO,
    METHODS,
    PPO_RM,
    RM,
    SFT,
    Experiment,
)
from support.cli import UserError, parse
from support.models import numpy_rng
from support.plot import read_csv
from support.tokenizer import builtin_tokenizer
from task import make_problems

SCRIPTS = {
    f"{module.__name__}.py": module
    for module in (train_sft, train_rm, train_dpo, train_grpo, train_ppo)}
STUDIES = [compare.TABLE, *EXPERIMENTS.values()]
COMMANDS = {SFT, RM, *(c for e in STUDIES for c in e.runs.values())}
# Of made-up runs.
SHARED = [which for which, e in EXPERIMENTS.items() if e.runs]


def rows(run, **numbers):
    """What a script would have measured in ten steps.

    numbers: column -> value, a function of the step, or None if it has no such column"""
    numbers = {
        "reward": lambda step: step / 10, "answer_kl": lambda step: step / 5,
        "response_length": 20, "samples": 256, "no_signal": 0.5, "explained_variance": 0.5,
        "entropy": 0.1,
        "eval_greedy": lambda step: 0.8 if step == 5 else 0.7 if step == 10 else "",
        "eval_sampled": lambda step: 0.6 if step % 5 == 0 else "",
        "kl": 77, **numbers}
    numbers = {column: value for column, value in numbers.items() if value is not None}
    run.mkdir(parents=True, exist_ok=True)
    with open(run / "metrics.csv", "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["step", *numbers])
        writer.writerows(
            [step, *(v(step) if callable(v) else v for v in numbers.values())]
            for step in range(1, 11))
    (run / "config.json").write_text('{"seed": 7}')
    # One pair, in the second 256 problems that train_rm.py would sample answers to.
    problem = make_problems("sums", 256, numpy_rng(7, 1, "pairs False"))[-1]
    (run / "pairs.jsonl").write_text(json.dumps({"prompt": problem["prompt"], "held_out": False}))


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """compare.py on made-up runs. -> function of its arguments -> text written; .ran: the commands;
    .numbers: (command, seed) -> numbers"""
    ran = []

    def run(out, command, seed, needed, running):
        for future in needed:
            future.result()
        time.sleep({SFT: 0.1, RM: 0.05}.get(command, 0) if seed == 0 else 0)
        path, found = compare.run_path(out, command, seed), lab.numbers(command, seed)
        if command.startswith((DPO, RM)):
            found["samples"] = None
        end = {
            "greedy": 0.95, "sampled": found.pop("sampled", 0.9), "pass@8": 0.99, "length": 25,
            "kl_to_sft": found.pop("kl_to_sft", 1.0)}
        rows(
            path, **found,
            **({"eval_accuracy": 0.9 + 0.02 * seed} if command == RM else {}))
        compare.Path(f"{path}.json").write_text(json.dumps({
            "seconds": 60 + seed, **(end if command != RM else {})}))
        ran.append((command, seed))
        return 1.0

    def lab(*arguments):
        jobs = [] if "--figures" in arguments else ["--jobs", "2"]
        compare.main([*arguments, "--out", str(tmp_path), *jobs])
        return {file.stem: file.read_text() for file in tmp_path.glob("*.md")}
    lab.ran, lab.path, lab.numbers = ran, tmp_path, lambda command, seed: {}
    monkeypatch.setattr(compare, "run", run)
    return lab


def test_every_command_is_one_of_its_script():
    for command in COMMANDS:
        file, *flags = command.split()
        parse(SCRIPTS[file].Config, "", flags)
    assert len({compare.run_path(compare.Path(), c, 0) for c in COMMANDS}) == len(COMMANDS)


def test_the_table(lab, monkeypatch):
    lab.numbers = lambda command, seed: {
        "sampled": 0.8 + 0.1 * seed}
    text = lab("--seeds", "2")["results"]
    lines = {
        line.split(" | ")[0].strip("| "): line
        for line in text.splitlines()[::-1] if line.startswith("| ")}
    assert lines["GRPO"] == (
        "| GRPO | 0.950 | 0.850 ± 0.071 | 0.990 | 25.0 | 1.00 | 2,560 | 60 ± 1 | 2 |")
    assert lines["DPO"].endswith(" | 1,024 | 60 ± 1 | 1 |") and "reward model" not in lines
    assert "ranks 0.910 ± 0.014 of held-out pairs right" in text
    assert ("right answers, sampled (share): Against GRPO, no difference beyond the seeds' spread."
            in text)
    assert "| PPO on RM, no KL | 0.800 | 0.950 | 0.600 | 0.850 ± 0.071 | 0.50 | 1.00 |" in text
    assert [(r["method"], r["seed"]) for r in read_csv(lab.path / "results.csv")] == [
        (m, s) for m in METHODS for s in "01"]
    assert (
        (lab.path / "compare.png").stat().st_size > 20000
        < (lab.path / "methods.png").stat().st_size)

    # What it starts from was there.
    for (command, seed), place in ((job, i) for i, job in enumerate(lab.ran)):
        assert command == SFT or (SFT, seed) in lab.ran[:place]
        assert "{rm}" not in command or (RM, seed) in lab.ran[:place]
    assert sorted(lab.ran) == sorted((c, s) for _, c in METHODS.values() for s in (0, 1))
    before = list(lab.ran)
    # Nothing is run again ...
    assert lab("--seeds", "2")["results"] == text and lab.ran == before
    # ... but what was cut off.
    compare.Path(f"{compare.run_path(lab.path, GRPO, 1)}.json").unlink()
    lab("--seeds", "2")
    assert lab.ran == [*before, (GRPO, 1)]
    # An experiment shares the runs that have the same settings.
    lab("group_size", "--seeds", "2")
    assert len(lab.ran) == len(before) + 1 + 2 * 5


def test_figures_and_text_need_no_runs(lab, tmp_path_factory):
    lab("--seeds", "2")
    texts, docs = lab("kl", "--seeds", "2"), tmp_path_factory.mktemp("docs")
    for file in lab.path.glob("*.csv"):
        (docs / file.name).write_bytes(file.read_bytes())
    compare.main(["--figures", "--out", str(docs)])
    assert {file.stem: file.read_text() for file in docs.glob("*.md")} == texts
    assert {file.name for file in docs.glob("*.png")} == {"compare.png", "methods.png", "kl.png"}


def test_figures_without_one_of_the_files_are_one_line(lab):
    lab("--seeds", "1")
    (lab.path / "curves.csv").unlink()
    with pytest.raises(UserError, match="No such file or directory: .*curves.csv"):
        lab("--figures")


def test_quick_is_one_seed_and_fewer_steps(lab):
    lab("--quick")
    assert len(lab.ran) == len(METHODS) and {
        (SFT, 0), (f"{GRPO} --method rloo --steps 17", 0)} < set(lab.ran)


@pytest.mark.parametrize("experiment", SHARED)
def test_every_experiment_states_and_draws(lab, experiment):
    text = lab(experiment, "--seeds", "2")[experiment]
    assert (
        f"]({experiment}.png)" in text
        and (lab.path / f"{experiment}.png").stat().st_size > 10000)
    assert (lab.path / f"{experiment}.csv").stat().st_size < 50000
    e = EXPERIMENTS[experiment]
    if not e.base:
        return
    # All runs are equal here: no number of the table is bold.
    [table] = [part for part in text.split("\n\n") if part.startswith("| ")]
    assert "**" not in table
    if len(e.runs) <= 8:
        assert text.count("no difference beyond the seeds' spread") == len(e.panels)


def test_a_sentence_says_what_its_numbers_say(lab):
    held = {"--kl-estimator k2": 0.3, "--kl-in reward": 0.4}

    def numbers(command, seed):
        return {
            "kl_to_sft": next((v for flag, v in held.items() if flag in command), 1.0)
            + 0.01 * seed}
    lab.numbers = numbers
    text = lab("kl", "--seeds", "2")["kl"]
    assert "| none | 1.00 ± 0.01 | 0.900 |" in text
    # What differs is bold.
    assert "| k1 in the loss | 1.00 ± 0.01 | 0.900 |" in text
    assert "| k2 in the loss | **0.30 ± 0.01** | 0.900 |" in text
    assert (
        "Against none, beyond the seeds' spread: lower with k2 in the loss, k1 in the reward."
    ) in text

    for file in (lab.path / "runs").glob("*.json"):
        file.unlink()
    held = {"--kl-estimator k1": 2.0}
    assert "Against none, beyond the seeds' spread: higher with k1 in the loss." in (
        lab("kl", "--seeds", "2")["kl"])

    for file in (lab.path / "runs").glob("*.json"):
        file.unlink()
    lab.numbers = lambda command, seed: {
        "kl_to_sft": numbers(command, seed)["kl_to_sft"] * (1 - 0.9 * seed)}
    text = lab("kl", "--seeds", "2")["kl"]
    assert (
        "| k1 in the loss |" in text
        and "| none | 0.55 ± 0.64 |" in text and "**" not in text.split("\n\n")[1]
        and text.count("no difference") == 2)
    assert "One seed, so there is no spread" in lab("kl", "--seeds", "1")["kl"]


def test_the_end_of_a_curve_is_its_last_fifth(lab):
    lab.numbers = lambda command, seed: {"response_length": lambda step: step + seed}
    text = lab("aggregation", "--seeds", "2")["aggregation"]
    assert "| seq-mean | 10.00 ± 0.71 |" in text and "| token-mean | 10.00 ± 0.71 |" in text


def test_student_t_leaves_out_five_percent():
    """By the density of Student's t itself, summed up between -t and t."""
    def share(t, n):
        density = [(1 + (t * (i + 0.5) / 20000) ** 2 / n) ** (-(n + 1) / 2) for i in range(20000)]
        scale = math.gamma((n + 1) / 2) / math.gamma(n / 2) / (n * math.pi) ** 0.5
        return 2 * sum(density) * t / 20000 * scale

    for n in (1, 2, 3, 5, 8, 9, 10, 12, 20, 29, 100):
        t = report.student_t(n)
        assert share(t - 0.006, n) < 0.95 < share(t + 0.006, n), n


def test_a_difference_by_hand():
    """Of 1, 2 and 4 the variance is 7/3: half of the interval is 4.30 * sqrt(7/3 / 3)."""
    by, half_width = report.difference([1, 2, 4], [0, 0, 0])
    assert by == pytest.approx(7 / 3) and half_width == pytest.approx(4.3 * 7 ** 0.5 / 3)
    # Eleven seeds: ten degrees of freedom, for which tables have 2.228.
    _, half_width = report.difference([*range(11)], [0] * 11)
    assert half_width == pytest.approx(2.228, abs=0.003)


def test_a_seed_is_at_its_best_where_the_others_are():
    runs = [[{"eval_greedy": accuracy} for accuracy in mine.split()]
            for mine in (".9 .8 .7", ".2 .9 .8", ".2 .6 .8")]
    assert [row["eval_greedy"] for row in report.peaks(runs)] == [".7", ".8", ".6"]
    assert report.peaks(runs[:1]) == [{"eval_greedy": ".9"}]


def test_the_peak_of_the_table_is_one_evaluation(lab):
    """Not the best greedy accuracy of one and the best sampled accuracy of another."""
    def numbers(command, seed):
        return {"eval_greedy": lambda step: {2: 0.9, 4: 0.8, 10: 0.7}.get(step, ""),
                "eval_sampled": lambda step: {2: 0.5, 4: 0.6, 10: 0.4}.get(step, "")}
    lab.numbers = numbers
    lab("--seeds", "2")
    rows = [row for row in read_csv(lab.path / "results.csv") if row["method"] == "PPO on RM"]
    assert [(row["peak_greedy"], row["peak_sampled"], row["score_at_peak"]) for row in rows] == [
        ("0.9", "0.5", "0.2")] * 2


def test_dpo_s_samples_are_all_that_were_asked_for(tmp_path, monkeypatch):
    """As many as train_rm.py samples until it has its pairs: most of them are in none."""
    asked = []

    def answer(policy, tokenizer, reward, examples, *others):
        rng = numpy_rng(3, len(asked), "rewards")
        asked.extend(examples)
        return [(float(rng.random() < 0.1), [[7, 256]], rng.random() < 0.9)
                for _ in examples], None

    monkeypatch.setattr(train_rm, "answer", answer)
    config = train_rm.Config(pairs=100, eval_problems=1, seed=5)
    text = train_rm.sampled_pairs(config, None, builtin_tokenizer())
    (tmp_path / "pairs.jsonl").write_text(text)
    (tmp_path / "config.json").write_text('{"seed": 5}')
    # The last block of 512 is for the pair that is held out.
    assert compare.count_samples(tmp_path) == len(asked) - 512 > 600


def test_names_are_spread():
    """Moved up where two overlap, and down again where the axis ends."""
    assert report.spread([0.1, 0.15, 0.9], 0.0, 1.0, 0.25) == pytest.approx([0.1, 0.35, 0.9])
    assert report.spread([0.8, 0.9, 0.9], 0.0, 1.0, 0.25) == pytest.approx([0.5, 0.75, 1.0])
    assert report.spread([-1.0], 0.0, 1.0, 0.25) == [0.0]


def test_luck_is_no_hump(lab):
    """Ten evaluations of chance about one mean: a seed's own best is far above its last, but it is
    not where the other seeds are best."""
    def chance(command, seed):
        noise = 0.01 * torch.randn(
            11, generator=torch.Generator().manual_seed(zlib.crc32(command.encode()) + seed))
        return {"eval_greedy": lambda step: 0.9 + noise[step].item()}
    lab.numbers = chance
    text = lab("overoptimization", "--seeds", "5")["overoptimization"]
    assert "| β = 0 |" in text and "**" not in text.split("\n\n")[1]


def test_the_hump_is_stated_only_where_it_is(lab):
    def falls(command, seed):
        return {"eval_greedy": lambda step: {
            5: 0.95,
            10: 0.2 + 0.05 * seed if "--kl-coef 0" == command[-11:] else 0.94}.get(step, "")}
    lab.numbers = falls
    text = lab("overoptimization", "--seeds", "2")["overoptimization"]
    assert "| β = 0 | 0.950 | **0.225 ± 0.035** | 0.50 | 1.00 |" in text
    # A fall of 0.01 in every seed is one, too.
    assert "| β = 0.01 | 0.950 | **0.940** | 0.50 | 1.00 |" in text
    for file in (lab.path / "runs").glob("*.json"):
        file.unlink()
    # The score falls too.
    lab.numbers = lambda command, seed: {
        **falls(command, seed),
        "reward": lambda step: 1 - step / 10}
    assert "**" not in lab("overoptimization", "--seeds", "2")["overoptimization"].split("\n\n")[1]


def test_rank_correlation():
    """By hand: ranks 0, 1, 2, 3 against 0, 2, 1, 3 differ by 1 twice: 1 - 6 * 2 / 60 = 0.8."""
    assert report.rank_correlation([1, 2, 3, 40], [0.1, 0.3, 0.2, 0.9]) == pytest.approx(0.8)
    # Two equal values share rank 0.5.
    assert report.rank_correlation([1, 1, 2], [5, 6, 7]) == pytest.approx(0.75 ** 0.5)
    assert report.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert math.isnan(report.rank_correlation([1, 1], [1, 2]))


def test_an_axis_shows_all_seeds_or_says_which_it_leaves_out():
    low, high = report.limits([[0.0], [0.01, 0.02], [-0.03]], least=0.1)
    # Noise of a hundredth does not fill the figure.
    assert high - low == pytest.approx(0.1) and low < -0.03 and high > 0.02
    low, high = report.limits([[0.0], [0.1], [0.2], [-0.1], [-5.0]], least=0.1)
    assert -1 < low < -0.1 and 0.2 < high < 1
    low, high = report.limits([[0.0], [3.0]], least=0.1)
    assert low < 0 and high > 3


FAKE = """
import os, sys
if "--method" in sys.argv:
    sys.exit("train_grpo.py: error: out of luck")
print("threads", os.environ["OMP_NUM_THREADS"], "from", \
sys.argv[sys.argv.index("--model") + 1] if "--model" in sys.argv else "nothing")
"""


def test_runs_are_processes_and_a_failure_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "fake").mkdir()
    for file in SCRIPTS:
        (tmp_path / "fake" / file).write_text(FAKE)
    (tmp_path / "fake" / "evaluate.py").write_text(
        "import sys; print('{\"kl\": 0.5, \"sampled\": 0.9}')")
    monkeypatch.setattr(compare, "ROOT", tmp_path / "fake")
    monkeypatch.setattr(compare.os, "cpu_count", lambda: 6)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match=(
            "grpo_method_dapo-0 failed, see .*grpo_method_dapo-0.log: "
            "train_grpo.py: error: out of luck")) as failed:
        compare.run_all(tmp_path, [PPO_RM, GRPO, DAPO], 1, 1)
    assert failed.value.status == 1 and "\n" not in str(failed.value)
    runs = tmp_path / "runs"
    assert sorted(p.name for p in runs.glob("*.json")) == [
        f"{n}-0.json" for n in ("grpo", "ppo_reward_model_rm_eval_every_5", "rm", "sft")]
    # One thread, on however many cores: others would give other bits.
    assert (runs / "grpo-0.log").read_text() == f"threads 1 from {runs / 'sft-0'}\n"
    assert (runs / "sft-0.log").read_text() == "threads 1 from nothing\n"
    found = json.loads((runs / "grpo-0.json").read_text())
    assert (
        found["kl_to_sft"] == 0.5
        and 0 < found["seconds"] < 60
        and "sampled" not in json.loads((runs / "rm-0.json").read_text()))
    assert "4/5  grpo-0: 0 s; about 0 min left" in capsys.readouterr().out


def test_a_world_with_a_loop_of_its_own(tmp_path, monkeypatch):
    e = Experiment("Which?", {}, [("share of it (share)", "step", "x")], base="a", seeds=2)
    monkeypatch.setitem(EXPERIMENTS, "island", e)
    asked = []

    def run(out, seeds, quick):
        asked.append((out, seeds, quick, torch.get_num_threads()))
        return [{"line": "", "setting": which, "seed": seed, "step": step, "x": x + 0.01 * seed}
                for which, x in (("a", 0.5), ("b", 0.7)) for seed in range(seeds)
                for step in (1, 2)]
    monkeypatch.setitem(sys.modules, "lab.island", SimpleNamespace(run=run))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    compare.main(["island", "--out", str(tmp_path / "new")])
    torch.set_num_threads(before)
    assert asked == [(tmp_path / "new", 2, False, 1)]
    assert "| b | **0.705 ± 0.007** |" in (tmp_path / "new" / "island.md").read_text()
