"""The lab: every method from the same SFT models, and experiments that turn one setting. Built-in
task, several seeds.

    python compare.py                      the table: results.csv and .md, curves.csv, compare.png,
                                           methods.png
    python compare.py EXPERIMENT           EXPERIMENT.csv, .png, and .md: what was
                                           expected, a table, which settings differ
    python compare.py gradient             the same, of how good each method's gradient is at a
                                           fixed policy: see lab/gradient.py
    python compare.py --quick              one seed, and fewer steps where a run has many: the
                                           table in a quarter of an hour on two cores,
                                           and how far its order is that of docs/lab/results.csv
    python compare.py --figures --out DIR  draws and states again what DIR has csv files of; needs
                                           no runs

EXPERIMENT: a row of lab/experiments.py, or gradient. A seed has its own SFT model and reward model.
Runs go to OUT/runs, named by their settings, so the table and the experiments share them. What is
finished is not run again; what was cut off is run anew, so that its time is a whole run's. Each run
has one thread, whatever the machine: with two, sums of floats have other last bits.
Accuracy, length and KL are evaluate.py's: 8 samples to each of 512 problems that nothing trains on.

Two settings differ "beyond the seeds' spread" by a t-test at 5 % of their differences, seed by
seed: runs of one seed start from one SFT model, and how good that is moves them all. Each pair of
settings is tested on its own.
"""
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean

import torch

from lab import gradient, gradient_page
from lab.experiments import DPO, EXPERIMENTS, METHODS, QUICK, RM, SFT, Experiment
from lab.report import COLUMNS, grouped, peaks, rank_correlation, report, write_csv, write_whole
from support.cli import UserError, parse, refuse, script, setting, user_errors
from support.models import numpy_rng
from support.plot import read_csv, read_metrics
from task import make_problems

ROOT = Path(__file__).parent
HALFWAY = "train_grpo.py --steps 25"
TABLE = Experiment("", {("", method): command for method, (_, command) in METHODS.items()}, [],
                   seeds=5)


@dataclass(kw_only=True)
class Config:
    seeds: int | None = setting(
        None, "how many; 5 for the table, an experiment's own, 1 with --quick, if not given", low=1)
    quick: bool = setting(False, "fewer steps where a run has many")
    out: str = setting(
        "", "where everything goes; runs/compare, and runs/quick with --quick, if not given")
    jobs: int | None = setting(
        None, "runs at a time, each with one thread; as many as there are cores, if not given",
        low=1)
    figures: bool = setting(
        False, "run nothing: draw and state again what --out has csv files of")


# --------------------------------------------------------------------------------------------- runs

def run_path(out: Path, command: str, seed: int) -> Path:
    """train_grpo.py --method dapo -> OUT/runs/grpo_method_dapo-0"""
    plain = command.removeprefix("train_").replace(".py", "", 1)
    stem = re.sub(r"[^\w.]+", "_", plain).strip("_")
    return out / "runs" / f"{stem}-{seed}"


def needed_by(command: str) -> list[str]:
    """The commands that must have run before."""
    if command == SFT:
        return []
    return [SFT, RM] if "{rm}" in command else [SFT]


def run(out: Path, command: str, seed: int, needed: list, running: set) -> float:
    """Train and evaluate one model, in processes of their own, once what it starts from is there.

    -> seconds"""
    for future in needed:
        future.result()
    path, sft, rm = (run_path(out, c, seed) for c in (command, SFT, RM))

    def execute(log, file, *arguments) -> tuple[str, float]:
        """-> what it printed, and its processor time in seconds, whatever else the machine does"""
        with subprocess.Popen([sys.executable, ROOT / file, *map(str, arguments)],
                              stdout=subprocess.PIPE, stderr=log, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
            running.add(process)
            output = process.stdout.read()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            last_line = "".join(log.readlines()[-1:]).strip()
            raise UserError(f"{path.name} failed, see {path}.log: {last_line}", status=1)
        return output, used.ru_utime + used.ru_stime

    begun = time.perf_counter()
    with open(f"{path}.log", "w+", encoding="utf-8") as log:
        file, *flags = (word.format(rm=rm) for word in command.split())
        if command != SFT:
            flags += ["--model", sft]
        printed, seconds = execute(log, file, *flags, "--seed", seed, "--out", path, "--overwrite")
        log.write(printed)
        found = {"seconds": seconds}
        if command != RM:
            printed, _ = execute(log, "evaluate.py", path, "--reference", sft, "--json")
            found |= json.loads(printed)
            found["kl_to_sft"] = found.pop("kl")
    # The .json is there only when the run is finished.
    write_whole(Path(f"{path}.json"), json.dumps(found))
    return time.perf_counter() - begun


def run_all(out: Path, commands: list[str], seeds: int, jobs: int | None) -> None:
    """Every command with every seed, SFT models first, `jobs` at a time (None: one for each core).
    The first that fails ends the others."""
    needs_rm = RM in commands or any("{rm}" in c for c in commands)
    first = [SFT, RM] if needs_rm else [SFT]
    rest = [c for c in dict.fromkeys(commands) if c not in first]
    order = [(c, seed) for c in first for seed in range(seeds)]
    order += [(c, seed) for seed in range(seeds) for c in rest]
    todo = [(c, seed) for c, seed in order if not Path(f"{run_path(out, c, seed)}.json").is_file()]
    print(f"{len(order)} runs, {len(order) - len(todo)} of them there already", flush=True)
    begun = time.perf_counter()
    futures, running = {}, set()
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        try:
            # A run waits only for runs before it: the pool can't block itself.
            for c, seed in todo:
                needed = [futures[n, seed] for n in needed_by(c) if (n, seed) in futures]
                futures[c, seed] = pool.submit(run, out, c, seed, needed, running)
            names = {future: run_path(out, *job).name for job, future in futures.items()}
            for n, future in enumerate(as_completed(names), 1):
                seconds = future.result()
                left = (time.perf_counter() - begun) / n * (len(todo) - n)
                print(f"{n}/{len(todo)}  {names[future]}: {seconds:.0f} s; "
                      f"about {left / 60:.0f} min left", flush=True)
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            if isinstance(error, KeyboardInterrupt):
                raise UserError("interrupted: the same command runs what is left", status=130)
            raise


# ------------------------------------------------------------------------------------------ numbers

def number(value) -> str:
    return "" if value == "" else f"{float(value):.5g}"


def history(out: Path, command: str, seed: int) -> list[dict]:
    """The rows of metrics.csv; before them the SFT model it starts from, as step 0; in the last
    what evaluate.py found."""
    path = run_path(out, command, seed)
    rows = read_metrics(path)
    rows[-1] |= json.loads(Path(f"{path}.json").read_text())
    start = read_metrics(run_path(out, SFT, seed))[-1]
    before = {"step": "0", "answer_kl": 0,
              "eval_greedy": start["eval_greedy"], "eval_sampled": start["eval_sampled"]}
    return [before, *rows]


def count_samples(run: Path) -> int:
    """How many answers were sampled until the pairs of a run were enough.

    train_rm.py samples two to each of 256 problems, and again. So this draws the same problems,
    until it has come past those of all pairs."""
    seed = json.loads((run / "config.json").read_text())["seed"]
    pairs = map(json.loads, (run / "pairs.jsonl").read_text(encoding="utf-8").splitlines())
    left = [pair["prompt"] for pair in pairs if not pair["held_out"]][::-1]
    for block in itertools.count():
        if not left:
            return 2 * 256 * block
        for problem in make_problems("sums", 256, numpy_rng(seed, block, "pairs False")):
            if left and problem["prompt"] == left[-1]:
                left.pop()


def results(out: Path, method: str, command: str, seeds: int) -> list[dict]:
    """A method's rows of results.csv: a seed each."""
    runs = [history(out, command, seed)[1:] for seed in range(seeds)]
    if "--reward-model" in command:
        evaluated = [[row for row in rows if row["eval_greedy"]] for rows in runs]
        for rows, peak in zip(runs, peaks(evaluated)):
            rows[-1] |= {"peak_greedy": peak["eval_greedy"], "peak_sampled": peak["eval_sampled"],
                         "score_at_peak": peak["reward"], "score": rows[-1]["reward"]}
    found = []
    for seed, rows in enumerate(runs):
        samples = sum(float(row.get("samples", 0)) for row in rows)
        if command.startswith((DPO, RM)):
            samples = count_samples(run_path(out, command, seed))
        row = rows[-1] | {"samples": samples or "", "models": METHODS[method][0],
                          "pairs": rows[-1].get("eval_accuracy", "")}
        numbers = {column: number(row.get(column, "")) for column in COLUMNS}
        found.append({"method": method, "seed": seed, **numbers})
    return found


def curves(out: Path, runs: dict, seeds: int, columns: list[str]) -> list[dict]:
    """A row for each step of each run, with these columns, if any but the KL was measured at that
    step."""
    rows = []
    for (line, at), command in runs.items():
        for seed in range(seeds):
            for row in history(out, command, seed):
                numbers = {c: number(row.get(c, "")) for c in columns}
                if any(numbers[c] for c in columns if c != "answer_kl"):
                    rows.append({"line": line, "setting": at, "seed": seed, "step": row["step"],
                                 **numbers})
    return rows


# --------------------------------------------------------------------------------- the command line

def run_gradient(out: Path, config: Config) -> None:
    """Two policies of one seed, the SFT model and GRPO after half of its steps, and the gradient at
    each."""
    if config.seeds not in (None, 1):
        raise UserError(f"--seeds {config.seeds}: gradient has one seed, expected 1 or none")
    run_all(out, [HALFWAY], 1, 1)
    models = {gradient_page.SFT: run_path(out, SFT, 0) / "model",
              gradient_page.HALFWAY: run_path(out, HALFWAY, 0) / "model"}
    gradient.run(out, models, config.quick)
    gradient_page.report(out)


def shortened(command: str) -> str:
    """The command with the steps of --quick."""
    for file, steps in QUICK.items():
        if command.startswith(file):
            return f"{command} --steps {steps}"
    return command


def state(out: Path, which: str) -> None:
    """The figures and the page of an experiment, from its csv files alone."""
    if which == "gradient":
        gradient_page.report(out)
        return
    report(out, which)
    if which in EXPERIMENTS and EXPERIMENTS[which].draws:
        importlib.import_module(f"lab.{which}").draw(out)


def print_correlation(rows: list[dict]) -> None:
    """How far a quick table has the methods in the order of the full one."""
    full = ROOT / "docs" / "lab" / "results.csv"
    kept = grouped(read_csv(full), lambda row: row["method"])
    pairs = [(float(row["sampled"]), mean(float(r["sampled"]) for r in kept[row["method"]]))
             for row in rows if row["sampled"] and row["method"] in kept]
    found = rank_correlation(*map(list, zip(*pairs)))
    print(f"Spearman's correlation with docs/lab/results.csv, of {len(pairs)} methods' right "
          f"answers, sampled: {found:.2f}")


def check(config: Config, which: str) -> None:
    """No flag without effect."""
    given = {name for name, value in asdict(config).items() if value is not None}
    if config.figures:
        refuse(given, "seeds", "jobs", why="with --figures")
    if which == "gradient" or which in EXPERIMENTS and not EXPERIMENTS[which].runs:
        refuse(given, "jobs", why=f"on {which}: its runs follow each other")


def state_again(out: Path, which: str) -> None:
    """--figures: of the table, whatever there are csv files of."""
    asked = ["results", *EXPERIMENTS, "gradient"] if which == "results" else [which]
    there = [each for each in asked if (out / f"{each}.csv").is_file()]
    if not there:
        raise UserError(f"{out / which}.csv: not found, expected the numbers to draw")
    for each in there:
        with user_errors():
            state(out, each)


def run_world(out: Path, which: str, seeds: int, config: Config) -> None:
    """An experiment with a training loop of its own, in this process."""
    world = importlib.import_module(f"lab.{which}")
    write_csv(out / f"{which}.csv", world.run(out, seeds, config.quick))


def write_table(out: Path, runs: dict, seeds: int, quick: bool) -> None:
    """results.csv and curves.csv, from finished runs."""
    rows = []
    for (_, method), command in runs.items():
        rows += results(out, method, command, seeds)
    write_csv(out / "results.csv", rows)
    drawn = {key: command for key, command in runs.items()
             if key[1] == "GRPO" or key[1].startswith("PPO")}
    columns = ["reward", "response_length", "eval_greedy", "eval_sampled"]
    write_csv(out / "curves.csv", curves(out, drawn, seeds, columns))
    if quick:
        print_correlation(rows)


def write_experiment(out: Path, which: str, e: Experiment, seeds: int) -> None:
    """EXPERIMENT.csv, from finished runs."""
    drawn = [c for _, x, y in e.panels for c in (x, y)]
    columns = [c for c in dict.fromkeys(drawn) if c not in ("step", "setting")]
    write_csv(out / f"{which}.csv", curves(out, e.runs, seeds, columns))


def main(argv=None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    which = argv.pop(0) if argv and not argv[0].startswith("-") else "results"
    config = parse(Config, __doc__, argv)
    if which not in ("results", *EXPERIMENTS, "gradient"):
        raise UserError(f"unknown experiment {which}, expected {', '.join(EXPERIMENTS)}, gradient, "
                        "or none for the table")
    check(config, which)
    # What runs in this process has one thread as well.
    torch.set_num_threads(1)
    out = Path(config.out or ("runs/quick" if config.quick else "runs/compare"))
    if config.figures:
        state_again(out, which)
        return
    with user_errors():
        (out / "runs").mkdir(parents=True, exist_ok=True)
    if which == "gradient":
        run_gradient(out, config)
        return

    e = EXPERIMENTS.get(which) or TABLE
    seeds = config.seeds or (1 if config.quick else e.seeds)
    if config.quick:
        e = replace(e, runs={key: shortened(command) for key, command in e.runs.items()})
    if e.runs:
        run_all(out, list(e.runs.values()), seeds, config.jobs)
    if not e.runs:
        run_world(out, which, seeds, config)
    elif e.panels:
        write_experiment(out, which, e, seeds)
    else:
        write_table(out, e.runs, seeds, config.quick)
    state(out, which)


if __name__ == "__main__":
    script(main)
