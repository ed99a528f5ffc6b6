"""The lab: every method from the same SFT models, and experiments that turn one setting. Built-in
task, several seeds.

    python compare.py                      the table: results.csv and .md, curves.csv, compare.png,
                                           methods.png
    python compare.py EXPERIMENT           EXPERIMENT.csv, .png, and .md: what was
                                           expected, a table, which settings differ
    python compare.py gradient             the same, of how good each method's gradient is at a
                                           fixed policy: see lab/gradient.py
    python compare.py --quick              one seed, a third to half of the steps: the table in a
                                           quarter of an hour on two cores, and how
                                           far its order is that of docs/lab/results.csv
    python compare.py --figures --out DIR  draws and states again what DIR has csv files of; needs
                                           no runs

EXPERIMENT: a row of lab/experiments.py, or gradient. A seed has its own SFT model and reward model.
Runs go to OUT/runs, named by their settings, so the table and the experiments share them. What is
finished is not run again; what was cut off is run anew, so that its time is a whole run's.
Accuracy, length and KL are evaluate.py's: 8 samples to each of 512 problems that nothing trains on.

Two settings differ "beyond the seeds' spread" by a t-test at 5 % of their differences, seed by
seed: runs of one seed start from one SFT model, and how good that is moves them all. Each pair of
settings is tested on its own.
"""
import importlib
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from lab import gradient_page
from lab.experiments import EXPERIMENTS, METHODS, QUICK, RM, SFT, Experiment
from lab.report import COLUMNS, grouped, rank_correlation, report, write_csv
from support.cli import UserError, parse, script, setting
from support.plot import read_csv, read_metrics

ROOT = Path(__file__).parent
HALFWAY = "train_grpo.py --steps 25"
TABLE = Experiment("", {("", method): command for method, (_, command) in METHODS.items()}, [],
                   seeds=5)


@dataclass(kw_only=True)
class Config:
    seeds: int | None = setting(
        None, "how many; 5 for the table, an experiment's own, 1 with --quick, if not given", low=1)
    quick: bool = setting(False, "a third to half of the steps")
    out: str = setting(
        "", "where everything goes; runs/compare, and runs/quick with --quick, if not given")
    jobs: int = setting(
        os.cpu_count() or 1, "runs at a time; each gets its share of the cores", low=1)
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


def run(out: Path, command: str, seed: int, threads: int, needed: list, running: set) -> float:
    """Train and evaluate one model, in processes of their own, once what it starts from is there.

    -> seconds"""
    for future in needed:
        future.result()
    path, sft, rm = (run_path(out, c, seed) for c in (command, SFT, RM))

    def execute(log, file, *arguments) -> tuple[str, float]:
        """-> what it printed, and its processor time in seconds, whatever else the machine does"""
        with subprocess.Popen([sys.executable, ROOT / file, *map(str, arguments)],
                              stdout=subprocess.PIPE, stderr=log, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": str(threads)}) as process:
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
    # Written under another name first: the .json is there only when the run is finished.
    Path(f"{path}.part").write_text(json.dumps(found))
    os.replace(f"{path}.part", f"{path}.json")
    return time.perf_counter() - begun


def run_all(out: Path, commands: list[str], seeds: int, jobs: int) -> None:
    """Every command with every seed, `jobs` at a time, SFT models first. The first that fails ends
    the others."""
    needs_rm = RM in commands or any("{rm}" in c for c in commands)
    first = [SFT, RM] if needs_rm else [SFT]
    rest = [c for c in dict.fromkeys(commands) if c not in first]
    order = [(c, seed) for c in first for seed in range(seeds)]
    order += [(c, seed) for seed in range(seeds) for c in rest]
    todo = [(c, seed) for c, seed in order if not Path(f"{run_path(out, c, seed)}.json").is_file()]
    print(f"{len(order)} runs, {len(order) - len(todo)} of them there already", flush=True)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    cores = os.cpu_count() or 1
    futures, running = {}, set()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            # A run waits only for runs before it: the pool can't block itself.
            for c, seed in todo:
                needed = [futures[n, seed] for n in needed_by(c) if (n, seed) in futures]
                # The only SFT model gets all cores: all else waits for it.
                threads = cores if c == SFT and seeds == 1 else max(1, cores // jobs)
                futures[c, seed] = pool.submit(run, out, c, seed, threads, needed, running)
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


def result(out: Path, method: str, command: str, seed: int) -> dict:
    """A row of results.csv."""
    _, *rows = history(out, command, seed)
    config = json.loads((run_path(out, command, seed) / "config.json").read_text())
    sampled = sum(float(row.get("samples", 0)) for row in rows)
    row = rows[-1] | {
        "samples": sampled or 2 * config.get("pairs", 0) or "",
        "models": METHODS[method][0],
        "pairs": rows[-1].get("eval_accuracy", "")}
    if "--reward-model" in command:
        evaluated = [r for r in rows if r["eval_greedy"]]
        best = max(evaluated, key=lambda r: float(r["eval_greedy"]))
        row |= {"peak_greedy": best["eval_greedy"],
                "peak_sampled": max(float(r["eval_sampled"]) for r in evaluated),
                "score_at_peak": best["reward"],
                "score": row["reward"]}
    numbers = {column: number(row.get(column, "")) for column in COLUMNS}
    return {"method": method, "seed": seed, **numbers}


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
    # It needs torch: nothing else here does.
    from lab import gradient
    run_all(out, [HALFWAY], 1, config.jobs)
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


def main(argv=None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    which = argv.pop(0) if argv and not argv[0].startswith("-") else "results"
    config = parse(Config, __doc__, argv)
    if which not in ("results", *EXPERIMENTS, "gradient"):
        raise UserError(f"unknown experiment {which}, expected {', '.join(EXPERIMENTS)}, gradient, "
                        "or none for the table")
    out = Path(config.out or ("runs/quick" if config.quick else "runs/compare"))
    if config.figures:
        asked = ["results", *EXPERIMENTS, "gradient"] if which == "results" else [which]
        there = [each for each in asked if (out / f"{each}.csv").is_file()]
        if not there:
            raise UserError(f"{out / which}.csv: not found, expected the numbers to draw")
        for each in there:
            state(out, each)
        return
    if which == "gradient":
        run_gradient(out, config)
        return

    e = EXPERIMENTS.get(which) or TABLE
    seeds = config.seeds or (1 if config.quick else e.seeds)
    if not e.runs:
        # A world with a training loop of its own.
        out.mkdir(parents=True, exist_ok=True)
        write_csv(out / f"{which}.csv",
                  importlib.import_module(f"lab.{which}").run(out, seeds, config.quick))
        state(out, which)
        return
    if config.quick:
        e = replace(e, runs={key: shortened(command) for key, command in e.runs.items()})
    run_all(out, list(e.runs.values()), seeds, config.jobs)
    if e.panels:
        drawn = [c for _, x, y in e.panels for c in (x, y)]
        columns = [c for c in dict.fromkeys(drawn) if c not in ("step", "setting")]
        write_csv(out / f"{which}.csv", curves(out, e.runs, seeds, columns))
    else:
        rows = [result(out, method, command, seed)
                for (_, method), command in e.runs.items() for seed in range(seeds)]
        write_csv(out / "results.csv", rows)
        drawn = {key: command for key, command in e.runs.items()
                 if key[1] == "GRPO" or key[1].startswith("PPO")}
        columns = ["reward", "response_length", "eval_greedy", "eval_sampled"]
        write_csv(out / "curves.csv", curves(out, drawn, seeds, columns))
        if config.quick:
            print_correlation(rows)
    state(out, which)


if __name__ == "__main__":
    script(main)
