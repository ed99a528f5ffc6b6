"""The lab: every method from the same SFT models, and experiments that turn one setting. Built-in
task, several seeds.

    python compare.py                      the table: results.csv and .md, curves.csv, compare.png,
                                           methods.png
    python compare.py EXPERIMENT           EXPERIMENT.csv, .png, and .md: what was found, as
                                           sentences computed from the numbers
    python compare.py gradient             the same, of how good each method's gradient is at a
                                           fixed policy: see gradient.py
    python compare.py --quick              one seed, a third to half of the steps: the table in a
                                           quarter of an hour on two cores
    python compare.py --figures --out DIR  draws and states again what DIR has csv files of; needs
                                           no runs

EXPERIMENT: overoptimization, group_size, kl, clip, lambda, reference, aggregation, no_signal. A
seed has its own SFT model and reward model. Runs go to OUT/runs, named by their settings, so the
table and the experiments share them. What is finished is not run again; what was cut off is run
anew, so that its time is a whole run's. Accuracy, length and KL are evaluate.py's: 8 samples to
each of 512 problems that nothing trains on.

Two settings differ "beyond the seeds' spread" by a t-test at 5 % of their differences, seed by
seed: runs of one seed start from one SFT model, and how good that is moves them all. Each pair of
settings is tested on its own.
"""
import csv
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from support import gradient_page
from support.cli import UserError, parse, script, setting
from support.plot import read_csv, read_metrics, save_figure

ROOT = Path(__file__).parent
SFT, RM, DPO, GRPO = "train_sft.py", "train_rm.py", "train_dpo.py", "train_grpo.py"
DR_GRPO, DAPO = f"{GRPO} --method dr_grpo", f"{GRPO} --method dapo"
PPO = "train_ppo.py --reward verifier"
# {rm}: the seed's reward model.
PPO_RM = "train_ppo.py --reward-model {rm} --eval-every 5"
# Steps with --quick; PPO needs 25 to show how far it falls on a reward model.
QUICK = {DPO: 27, GRPO: 17, "train_ppo.py": 25}

# name: full models in memory while it trains; script and flags. DPO's reference is gone by then,
# its log-probs were taken before.
METHODS = {
    "SFT": (1, SFT),
    "reward model": (1, RM),
    "DPO": (1, DPO),
    "DPO without NLL": (1, f"{DPO} --nll-coef 0"),
    "IPO": (1, f"{DPO} --loss ipo"),
    "KTO": (1, f"{DPO} --loss kto"),
    "PPO": (3, PPO),
    "A2C": (3, f"{PPO} --epochs 1 --minibatches 1"),
    "PPO on RM": (4, PPO_RM),
    "PPO on RM, no KL": (4, f"{PPO_RM} --kl-coef 0"),
    "GRPO": (2, GRPO),
    "Dr. GRPO": (2, DR_GRPO),
    "DAPO": (2, DAPO),
    "RLOO": (2, f"{GRPO} --method rloo"),
    "REINFORCE++": (2, f"{GRPO} --method reinforce_pp"),
    "ReMax": (2, f"{GRPO} --method remax"),
    "REINFORCE": (2, f"{GRPO} --method reinforce"),
    "GSPO": (2, f"{GRPO} --method gspo"),
    "CISPO": (2, f"{GRPO} --method cispo"),
}
# The columns of results.csv, and how results.md shows them. pairs: the share of held-out ones that
# the reward model ranks right. peak: the best evaluation.
COLUMNS = {
    "greedy": ".3f", "sampled": ".3f", "pass@8": ".3f", "length": ".1f", "kl_to_sft": ".2f",
    "samples": ",.0f", "seconds": ".0f", "models": ".0f", "pairs": ".3f",
    "peak_greedy": ".3f", "peak_sampled": ".3f", "score_at_peak": ".2f", "score": ".2f",
}


@dataclass
class Experiment:
    question: str
    # (line in the figure, setting) -> script and flags
    runs: dict[tuple[str, str], str]
    # y label, x (step, answer_kl or setting), y
    panels: list[tuple[str, str, str]]
    # What the other settings are held against.
    base: str = ""


RIGHT = ("right answers, sampled (share)", "setting", "sampled")
KL = ("KL to the SFT model (nats per answer)", "setting", "kl_to_sft")
NO_SIGNAL = ("groups without signal (share)", "step", "no_signal")
# Dr. GRPO has no std that changes what β weighs, and may have the KL anywhere. A β of 0.5 is there
# to show it.
STRONG = f"{DR_GRPO} --kl-in loss --kl-coef 0.5"
GRPO_25, PPO_25 = f"{GRPO} --steps 25", f"{PPO} --steps 25"
NO_CLIP = "--clip-low 1e9 --clip-high 1e9"
CRITIC_RM = "--critic {rm}"

EXPERIMENTS = {
    # Gao et al. 2022, arXiv:2210.10760, fig. 1
    "overoptimization": Experiment(
        "PPO on a reward model: when does pleasing it stop being right?",
        {("", "β = 0"): f"{PPO_RM} --kl-coef 0",
         ("", "β = 0.01"): f"{PPO_RM} --kl-coef 0.01",
         ("", "β = 0.02"): f"{PPO_RM} --kl-coef 0.02",
         ("", "β = 0.05"): PPO_RM},
        [("right answers, greedy (share)", "answer_kl", "eval_greedy"),
         ("the reward model's score", "answer_kl", "reward")]),
    "group_size": Experiment(
        "GRPO, 256 samples per step: many prompts, or many answers to each?",
        {("", "G = 2"): f"{GRPO} --prompts-per-step 128 --group-size 2",
         ("", "G = 4"): f"{GRPO} --prompts-per-step 64 --group-size 4",
         ("", "G = 8"): GRPO,
         ("", "G = 16"): f"{GRPO} --prompts-per-step 16 --group-size 16",
         ("", "G = 32"): f"{GRPO} --prompts-per-step 8 --group-size 32",
         ("", "G = 64"): f"{GRPO} --prompts-per-step 4 --group-size 64"},
        [RIGHT, NO_SIGNAL],
        base="G = 8"),
    "kl": Experiment(
        "Dr. GRPO with β = 0.5: which penalty keeps the policy near its start?",
        {("", "none"): f"{DR_GRPO} --kl-coef 0",
         ("", "k1 in the loss"): f"{STRONG} --kl-estimator k1",
         ("", "k2 in the loss"): f"{STRONG} --kl-estimator k2",
         ("", "k3 in the loss"): STRONG,
         ("", "k1 in the reward"): f"{DR_GRPO} --kl-in reward --kl-coef 0.5"},
        [KL, RIGHT],
        base="none"),
    "clip": Experiment(
        "GRPO: how many passes over a batch, and what does the clip do?",
        {("clip 0.2", "epochs = 1"): f"{GRPO_25} --epochs 1",
         ("no clip", "epochs = 1"): f"{GRPO_25} --epochs 1 {NO_CLIP}",
         ("clip 0.2", "epochs = 2"): f"{GRPO_25} --epochs 2",
         ("no clip", "epochs = 2"): f"{GRPO_25} --epochs 2 {NO_CLIP}",
         ("clip 0.2", "epochs = 4"): f"{GRPO_25} --epochs 4",
         ("no clip", "epochs = 4"): f"{GRPO_25} --epochs 4 {NO_CLIP}"},
        [RIGHT, KL],
        base="clip 0.2, epochs = 1"),
    "lambda": Experiment(
        "PPO on the verifier: λ of GAE, and what the critic starts as",
        {("critic from the policy", "λ = 0"): f"{PPO_25} --lam 0",
         ("critic from the reward model", "λ = 0"): f"{PPO_25} --lam 0 {CRITIC_RM}",
         ("critic from the policy", "λ = 0.5"): f"{PPO_25} --lam 0.5",
         ("critic from the reward model", "λ = 0.5"): f"{PPO_25} --lam 0.5 {CRITIC_RM}",
         ("critic from the policy", "λ = 0.95"): f"{PPO_25} --lam 0.95",
         ("critic from the reward model", "λ = 0.95"): f"{PPO_25} --lam 0.95 {CRITIC_RM}",
         ("critic from the policy", "λ = 1"): f"{PPO_25} --lam 1",
         ("critic from the reward model", "λ = 1"): f"{PPO_25} --lam 1 {CRITIC_RM}"},
        [RIGHT, ("explained variance of the critic", "setting", "explained_variance")],
        base="critic from the policy, λ = 0.95"),
    "reference": Experiment(
        "Dr. GRPO with β = 0.5: a reference that stays, follows, or is replaced",
        {("", "frozen"): STRONG,
         ("", "EMA 0.9"): f"{STRONG} --ref-ema 0.9",
         ("", "synced every 10"): f"{STRONG} --ref-sync 10"},
        [KL, RIGHT],
        base="frozen"),
    "aggregation": Experiment(
        "GRPO: what is averaged over what, and what that does to length",
        {("", "seq-mean"): GRPO,
         ("", "token-mean"): f"{GRPO} --aggregate token-mean",
         ("", "seq-sum"): f"{GRPO} --aggregate seq-sum"},
        [("answer length (tokens)", "step", "response_length"), RIGHT],
        base="seq-mean"),
    "no_signal": Experiment(
        "DAPO: groups without signal, left out or replaced",
        {("", "left out"): f"{DAPO} --no-signal drop",
         ("", "replaced"): DAPO},
        [NO_SIGNAL, ("samples per step", "step", "samples"), RIGHT],
        base="left out"),
}


@dataclass(kw_only=True)
class Config:
    seeds: int | None = setting(
        None, "how many; 5 for the table, 2 for an experiment, 1 with --quick, if not given", low=1)
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


def run(out: Path, command: str, seed: int, threads: int, needed: list, running: set) -> float:
    """Train and evaluate one model, in processes of their own, once what it starts from is there.

    -> seconds"""
    for future in needed:
        future.result()
    path, sft, rm = (run_path(out, c, seed) for c in (command, SFT, RM))

    def execute(log, file, *arguments) -> str:
        with subprocess.Popen([sys.executable, ROOT / file, *map(str, arguments)],
                              stdout=subprocess.PIPE, stderr=log, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": str(threads)}) as process:
            running.add(process)
            output = process.communicate()[0]
        if process.returncode:
            log.seek(0)
            last_line = "".join(log.readlines()[-1:]).strip()
            raise UserError(f"{path.name} failed, see {path}.log: {last_line}", status=1)
        return output

    begun = time.perf_counter()
    with open(f"{path}.log", "w+", encoding="utf-8") as log:
        file, *flags = (word.format(rm=rm) for word in command.split())
        if command != SFT:
            flags += ["--model", sft]
        log.write(execute(log, file, *flags, "--seed", seed, "--out", path, "--overwrite"))
        found = {"seconds": time.perf_counter() - begun}
        if command != RM:
            found |= json.loads(execute(log, "evaluate.py", path, "--reference", sft, "--json"))
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
                starts_from = [SFT, RM] if "{rm}" in c else [SFT]
                needed = [futures[s, seed] for s in starts_from if (s, seed) in futures]
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


def write_csv(file: Path, rows: list[dict]) -> None:
    with open(file, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def grouped(rows: list[dict], key) -> dict:
    groups = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def name(row: dict) -> str:
    return ", ".join(filter(None, (row["line"], row["setting"])))


def by_seed(rows: list[dict]) -> list[list[dict]]:
    return list(grouped(rows, lambda row: row["seed"]).values())


def ends(rows: list[dict], column: str) -> dict[str, list[float]]:
    """name -> for each seed, the mean of what was measured in the last fifth of the steps."""
    found = {}
    for which, some in grouped(rows, name).items():
        for mine in by_seed(some):
            after = 0.8 * int(mine[-1]["step"])
            late = [float(row[column]) for row in mine if row[column] and int(row["step"]) > after]
            found.setdefault(which, []).append(mean(late))
    return found


# ---------------------------------------------------------------------------------------- sentences

def std(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def shown(values: list[float], form: str = "") -> str:
    form = form or (".2f" if mean(values) < 100 else ".0f")
    spread = f" ± {std(values):{form}}" if std(values) else ""
    return f"{mean(values):{form}}{spread}"


def apart(a: list[float], b: list[float]) -> bool:
    """Do they differ beyond the seeds' spread? Student's t at 5 % of the n differences, seed by
    seed, with n - 1 degrees of freedom."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(a), 2.57)
    return abs(mean(differences)) > t * std(differences) / len(a) ** 0.5


def against(found: dict[str, list[float]], base: str) -> str:
    """Which settings differ from `base` beyond the seeds' spread, and to which side.

    found: name -> a number for each seed"""
    if len(found[base]) == 1:
        return "One seed, so there is no spread to hold differences against."
    differ = {which: mean(values) - mean(found[base])
              for which, values in found.items() if apart(values, found[base])}
    if not differ:
        return f"Against {base}, no difference beyond the seeds' spread."
    sides = {"higher": [which for which, by in differ.items() if by > 0],
             "lower": [which for which, by in differ.items() if by < 0]}
    told = "; ".join(f"{side} with {', '.join(names)}" for side, names in sides.items() if names)
    return f"Against {base}, beyond the seeds' spread: {told}."


def stated(rows: list[dict], what: str, column: str, base: str) -> str:
    """How a column ends with each setting, and against `base`."""
    found = ends(rows, column)
    told = ", ".join(f"{shown(values)} ({which})" for which, values in found.items())
    return f"At the end, {what}: {told}. {against(found, base)}"


def hump(rows: list[dict]) -> str:
    """Whether true accuracy falls from its best while the reward model's score rises.

    A seed's best evaluation is taken to be where the other seeds are best: picked by its own
    accuracy it would be partly luck, and a fall from it nothing but the luck's end."""
    told, fallen = [], []
    for which, some in grouped(rows, name).items():
        runs = [[row for row in mine if row["eval_greedy"] and row["reward"]]
                for mine in by_seed(some)]
        # For each seed: accuracy at its best and at the end, the score at both.
        best, last, score, last_score = [], [], [], []
        for mine in runs:
            others = [run for run in runs if run is not mine] or runs
            accuracy = [mean(float(run[at]["eval_greedy"]) for run in others)
                        for at in range(len(mine))]
            peak = mine[accuracy.index(max(accuracy))]
            best.append(float(peak["eval_greedy"]))
            last.append(float(mine[-1]["eval_greedy"]))
            score.append(float(peak["reward"]))
            last_score.append(float(mine[-1]["reward"]))
        told.append(f"{shown(best)} → {shown(last)} ({shown(score)} → {shown(last_score)}) "
                    f"with {which}")
        if len(best) > 1 and apart(best, last) and mean(last_score) > mean(score):
            fallen.append(which)
    if len(best) == 1:
        verdict = "One seed, so there is no spread to hold a fall against."
    elif fallen:
        verdict = ("Accuracy falls beyond the seeds' spread while the score rises "
                   f"with {', '.join(fallen)}.")
    else:
        verdict = "With none does accuracy fall beyond the seeds' spread while the score rises."
    return ("Greedy accuracy (and the reward model's score), from the best evaluation to the last: "
            f"{', '.join(told)}. {verdict}")


def markdown(rows: list[dict]) -> str:
    """results.md: means and standard deviations over the seeds."""
    methods = grouped(rows, lambda row: row["method"])
    policies = [m for m in methods if methods[m][0]["sampled"]]

    def values(method, column):
        return [float(row[column]) for row in methods[method] if row[column]]

    def cell(method, column):
        found = values(method, column)
        return shown(found, COLUMNS[column]) if found else ""

    def table(columns, names):
        lines = [f"| | {' | '.join(columns).replace('_', ' ')} |",
                 "|---" * (len(columns) + 1) + "|"]
        for method in names:
            cells = [cell(method, column) for column in columns]
            lines.append(f"| {method} | {' | '.join(cells)} |")
        return "\n".join(lines)

    seeds = {row["seed"] for row in rows}
    sampled = {method: values(method, "sampled") for method in policies}
    paragraphs = [
        f"Seeds: {len(seeds)}. Mean ± standard deviation.",
        table([*COLUMNS][:8], policies),
        "length: tokens per answer. kl to sft: exact, in nats per answer. "
        "samples: answers that the policy sampled to learn from; DPO and its\n"
        "relatives learn from pairs. seconds: of the training script. "
        "models: full models in memory while it trains.",
        f"Right answers, sampled: {against(sampled, 'GRPO')}",
        f"The reward model ranks {cell('reward model', 'pairs')} of held-out pairs right. "
        "PPO on it (RM), at its best evaluation and at the end:",
        table(["peak_greedy", "greedy", "peak_sampled", "sampled", "score_at_peak", "score"],
              [m for m in policies if values(m, "score")]),
    ]
    return "\n\n".join(paragraphs) + "\n"


# ------------------------------------------------------------------------------------------ figures

def over_settings(axis, rows: list[dict], y: str, color: str, label: str) -> None:
    """Each seed's end, and mean ± std."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    found = ends(rows, y).values()
    axis.errorbar(settings, [mean(v) for v in found], [std(v) for v in found],
                  color=color, label=label or None, capsize=3,
                  fmt="o-" if "=" in settings[0] else "o")
    for at, values in zip(settings, found):
        axis.plot([at] * len(values), values, ".", color=color)
    slanted = {}
    if len("".join(settings)) > 36:
        slanted = {"rotation": 80 if len(settings) > 8 else 20, "ha": "right"}
    axis.set_xticks(settings, settings, fontsize=8, **slanted)


def over_steps(axis, rows: list[dict], y: str, color: str, label: str) -> None:
    """The seeds' mean and range."""
    steps = grouped([row for row in rows if row[y]], lambda row: int(row["step"]))
    found = [[float(row[y]) for row in at] for at in steps.values()]
    axis.plot([*steps], [mean(v) for v in found], color=color, label=label,
              marker="o" if y.startswith("eval") else None, ms=3)
    axis.fill_between([*steps], [min(v) for v in found], [max(v) for v in found],
                      color=color, alpha=0.2)


def over_kl(axis, rows: list[dict], y: str, color: str, label: str) -> None:
    """Each seed's way."""
    for n, way in enumerate(by_seed([row for row in rows if row[y]])):
        axis.plot([max(0.0, float(row["answer_kl"])) ** 0.5 for row in way],
                  [float(row[y]) for row in way],
                  ".-", color=color, linewidth=0.8, ms=4, label=None if n else label)


def panel(axis, rows: list[dict], label: str, x: str, y: str, title: str = "") -> None:
    """A column over steps, over √KL or over settings."""
    over, xlabel = {"setting": (over_settings, ""),
                    "step": (over_steps, "step"),
                    "answer_kl": (over_kl, "√KL to the SFT model (nats per answer)")}[x]
    lines = grouped(rows, lambda row: row["line"] if x == "setting" else name(row))
    for i, (line, some) in enumerate(lines.items()):
        over(axis, some, y, f"C{i}", line)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(label)
    axis.set_title(title, loc="left")
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=8)


def draw(file: Path, panels: list[tuple], title: str = "") -> None:
    """A figure of panels: (rows, y label, x, y, and a title). Four stand two by two."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    high, wide = (2, 2) if len(panels) == 4 else (1, len(panels))
    figure, axes = plt.subplots(high, wide, figsize=(4 * wide + 1, 3.8 * high),
                                layout="constrained")
    for axis, arguments in zip(axes.flat, panels):
        panel(axis, *arguments)
    figure.suptitle(title)
    code = [draw, panel, over_settings, over_steps, over_kl, name, by_seed, ends, std]
    save_figure(figure, file, [panels, title, *code], dpi=110)
    plt.close(figure)


def report(out: Path, which: str) -> None:
    """Figures and text, from the csv files alone."""
    if which == "gradient":
        gradient_page.report(out)
        return
    rows = read_csv(out / f"{which}.csv")
    if which == "results":
        drawn = read_csv(out / "curves.csv")
        right = [row for row in drawn if "RM" not in row["setting"]]
        fooled = [row for row in drawn if "RM" in row["setting"]]
        draw(out / "compare.png", [
            (right, "right answers, sampled (share)", "step", "eval_sampled",
             "rewarded for right answers"),
            (right, "answer length (tokens)", "step", "response_length",
             "… it comes to think first"),
            (fooled, "the reward model's score", "step", "reward",
             "rewarded by a model of them"),
            (fooled, "right answers, greedy (share)", "step", "eval_greedy",
             "… which it learns to fool")])
        methods = [{"line": "", "setting": row["method"], "step": "1", **row}
                   for row in rows if row["sampled"]]
        draw(out / "methods.png", [
            (methods, *RIGHT),
            (methods, *KL),
            (methods, "answer length (tokens)", "setting", "length")])
        text = markdown(rows)
    else:
        e = EXPERIMENTS[which]
        draw(out / f"{which}.png", [(rows, *p) for p in e.panels], e.question)
        if e.base:
            sentences = [stated(rows, what, y, e.base) for what, _, y in e.panels]
        else:
            sentences = [hump(rows)]
        text = f"**{e.question}** {' '.join(sentences)}\n\n![{e.question}]({which}.png)\n"
    (out / f"{which}.md").write_text(text, encoding="utf-8")
    print(text)


# --------------------------------------------------------------------------------- the command line

def run_gradient(out: Path, config: Config) -> None:
    """Two policies of one seed, the SFT model and GRPO after half of its steps, and the gradient at
    each."""
    if config.seeds not in (None, 1):
        raise UserError(f"--seeds {config.seeds}: gradient has one seed, expected 1 or none")
    # It needs torch: nothing else here does.
    import gradient
    run_all(out, [SFT, GRPO_25], 1, config.jobs)
    models = {gradient_page.SFT: run_path(out, SFT, 0) / "model",
              gradient_page.HALFWAY: run_path(out, GRPO_25, 0) / "model"}
    gradient.run(out, models, config.quick)
    gradient_page.report(out)


def shortened(command: str) -> str:
    """The command with the steps of --quick."""
    for file, steps in QUICK.items():
        if command.startswith(file):
            return f"{command} --steps {steps}"
    return command


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
            report(out, each)
        return
    if which == "gradient":
        run_gradient(out, config)
        return

    usual = 5 if which == "results" else 2
    seeds = config.seeds or (1 if config.quick else usual)
    if which == "results":
        runs = {("", method): command for method, (_, command) in METHODS.items()}
    else:
        runs = EXPERIMENTS[which].runs
    if config.quick:
        runs = {key: shortened(command) for key, command in runs.items()}
    run_all(out, list(runs.values()), seeds, config.jobs)
    if which == "results":
        write_csv(out / "results.csv",
                  [result(out, method, command, seed)
                   for (_, method), command in runs.items() for seed in range(seeds)])
        drawn = {key: command for key, command in runs.items()
                 if key[1] == "GRPO" or key[1].startswith("PPO")}
        columns = ["reward", "response_length", "eval_greedy", "eval_sampled"]
        write_csv(out / "curves.csv", curves(out, drawn, seeds, columns))
    else:
        drawn = [c for _, x, y in EXPERIMENTS[which].panels for c in (x, y)]
        columns = [c for c in dict.fromkeys(drawn) if c not in ("step", "setting")]
        write_csv(out / f"{which}.csv", curves(out, runs, seeds, columns))
    report(out, which)


if __name__ == "__main__":
    script(main)
