"""The lab: every method from the same SFT models, and experiments that turn one setting. Built-in task, several seeds.

    python compare.py                      the table: results.csv and .md, curves.csv, compare.png, methods.png
    python compare.py EXPERIMENT           EXPERIMENT.csv, .png, and .md: what was found, as sentences computed from the numbers
    python compare.py --quick              one seed, a third to half of the steps: the table in a quarter of an hour on two cores
    python compare.py --figures --out DIR  draws and states again what DIR has csv files of; needs no runs

EXPERIMENT: overoptimization, group_size, kl, clip, lambda, reference, aggregation, no_signal. A seed has its own SFT model and reward
model. Runs go to OUT/runs, named by their settings, so the table and the experiments share them. What is finished is not run again;
what was cut off is run anew, so that its time is a whole run's. Accuracy, length and KL are evaluate.py's: 8 samples to each of 512
problems that nothing trains on. Two settings differ "beyond the seeds' spread" by a t-test at 5 % of their differences, seed by seed:
runs of one seed start from one SFT model, and how good that is moves them all. Each pair of settings is tested on its own.
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

from support.cli import UserError, parse, script, setting
from support.plot import save_figure
from support.run import read_csv, read_metrics

ROOT = Path(__file__).parent
SFT, RM, DPO, GRPO = "train_sft.py", "train_rm.py", "train_dpo.py", "train_grpo.py"
PPO, PPO_RM = "train_ppo.py --reward verifier", "train_ppo.py --reward-model {rm} --eval-every 5"         # {rm}: the seed's
QUICK = {DPO: 27, GRPO: 17, "train_ppo.py": 25}                 # steps; PPO needs 25 to show how far it falls on a reward model

# name: full models in memory while it trains; script and flags. DPO's reference is gone by then, its log-probs were taken before
METHODS = {
    "SFT": (1, SFT), "reward model": (1, RM),
    "DPO": (1, DPO), "DPO without NLL": (1, f"{DPO} --nll-coef 0"), "IPO": (1, f"{DPO} --loss ipo"), "KTO": (1, f"{DPO} --loss kto"),
    "PPO": (3, PPO), "A2C": (3, f"{PPO} --epochs 1 --minibatches 1"),
    "PPO on RM": (4, PPO_RM), "PPO on RM, no KL": (4, f"{PPO_RM} --kl-coef 0"),
    "GRPO": (2, GRPO), "Dr. GRPO": (2, f"{GRPO} --advantage dr_grpo"), "DAPO": (2, f"{GRPO} --loss dapo --dynamic-sampling"),
    "RLOO": (2, f"{GRPO} --advantage rloo"), "REINFORCE++": (2, f"{GRPO} --advantage reinforce_pp"),
    "ReMax": (2, f"{GRPO} --advantage remax"), "GSPO": (2, f"{GRPO} --loss gspo"), "CISPO": (2, f"{GRPO} --loss cispo"),
}
# results.csv, as results.md shows it; pairs: the share of held-out ones that the reward model ranks right; peak: the best evaluation
COLUMNS = {"greedy": ".3f", "sampled": ".3f", "pass@8": ".3f", "length": ".1f", "kl_to_sft": ".2f", "samples": ",.0f", "seconds": ".0f",
           "models": ".0f", "pairs": ".3f", "peak_greedy": ".3f", "peak_sampled": ".3f", "score_at_peak": ".2f", "score": ".2f"}


@dataclass
class Experiment:
    question: str
    runs: dict[tuple[str, str], str]                             # (line in the figure, setting) -> script and flags
    panels: list[tuple[str, str, str]]                           # y label, x (step, answer_kl or setting), y
    base: str = ""                                               # what the other settings are held against


RIGHT, KL = ("right answers, sampled (share)", "setting", "sampled"), ("KL to the SFT model (nats an answer)", "setting", "kl_to_sft")
NO_SIGNAL = ("groups without signal (share)", "step", "no_signal")
# RLOO: no std that changes what β weighs. Its loss is GRPO's, which may hold any KL. 0.5: to show it
RLOO = f"{GRPO} --advantage rloo --loss grpo"
STRONG = f"{RLOO} --kl-in loss --kl-coef 0.5"

EXPERIMENTS = {
    "overoptimization": Experiment(                              # Gao et al. 2022, arXiv:2210.10760, fig. 1
        "PPO on a reward model: when does pleasing it stop being right?",
        {("", f"β = {beta}"): PPO_RM if beta == 0.05 else f"{PPO_RM} --kl-coef {beta}" for beta in (0, 0.01, 0.02, 0.05)},
        [("right answers, greedy (share)", "answer_kl", "eval_greedy"), ("the reward model's score", "answer_kl", "reward")]),
    "group_size": Experiment(
        "GRPO, 256 samples a step: many prompts, or many answers to each?",
        {("", f"G = {g}"): GRPO if g == 8 else f"{GRPO} --prompts-per-step {256 // g} --group-size {g}" for g in (2, 4, 8, 16, 32, 64)},
        [RIGHT, NO_SIGNAL], "G = 8"),
    "kl": Experiment(
        "RLOO with β = 0.5: which penalty keeps the policy near its start?",
        {("", "none"): f"{RLOO} --kl-coef 0", ("", "k1 in the loss"): f"{STRONG} --kl-estimator k1",
         ("", "k2 in the loss"): f"{STRONG} --kl-estimator k2", ("", "k3 in the loss"): STRONG,
         ("", "k1 in the reward"): f"{RLOO} --kl-in reward --kl-coef 0.5"},
        [KL, RIGHT], "none"),
    "clip": Experiment(
        "GRPO: how many passes over a batch, and what does the clip do?",
        {(clip, f"epochs = {n}"): f"{GRPO} --steps 25 --epochs {n}{flags}" for n in (1, 2, 4)
         for clip, flags in (("clip 0.2", ""), ("no clip", " --clip-low 1e9 --clip-high 1e9"))},
        [RIGHT, KL], "clip 0.2, epochs = 1"),
    "lambda": Experiment(
        "PPO on the verifier: λ of GAE, and what the critic starts as",
        {(start, f"λ = {lam}"): f"{PPO} --steps 25 --lam {lam}{flags}" for lam in (0, 0.5, 0.95, 1)
         for start, flags in (("critic from the policy", ""), ("critic from the reward model", " --critic {rm}"))},
        [RIGHT, ("explained variance of the critic", "setting", "explained_variance")], "critic from the policy, λ = 0.95"),
    "reference": Experiment(
        "RLOO with β = 0.5: a reference that stays, follows, or is replaced",
        {("", "frozen"): STRONG, ("", "EMA 0.9"): f"{STRONG} --ref-ema 0.9", ("", "synced every 10"): f"{STRONG} --ref-sync 10"},
        [KL, RIGHT], "frozen"),
    "aggregation": Experiment(
        "GRPO: what is averaged over what, and what that does to length",
        {("", mode): GRPO if mode == "seq-mean" else f"{GRPO} --aggregate {mode}" for mode in ("seq-mean", "token-mean", "seq-sum")},
        [("answer length (tokens)", "step", "response_length"), RIGHT], "seq-mean"),
    "no_signal": Experiment(
        "DAPO: groups without signal, left out or replaced",
        {("", "left out"): f"{GRPO} --loss dapo", ("", "replaced"): METHODS["DAPO"][1]},
        [NO_SIGNAL, ("samples a step", "step", "samples"), RIGHT], "left out"),
}


@dataclass(kw_only=True)
class Config:
    seeds: int | None = setting(None, "how many; 5 for the table, 2 for an experiment, 1 with --quick, if not given", low=1)
    quick: bool = setting(False, "a third to half of the steps")
    out: str = setting("", "where everything goes; runs/compare, and runs/quick with --quick, if not given")
    jobs: int = setting(os.cpu_count() or 1, "runs at a time; each gets its share of the cores", low=1)
    figures: bool = setting(False, "run nothing: draw and state again what --out has csv files of")


# ------------------------------------------------------------------------------------------------------ runs

def run_path(out: Path, command: str, seed: int) -> Path:
    """train_grpo.py --loss dapo -> OUT/runs/grpo_loss_dapo-0"""
    return out / "runs" / (re.sub(r"[^\w.]+", "_", command.removeprefix("train_").replace(".py", "", 1)).strip("_") + f"-{seed}")


def run(out: Path, command: str, seed: int, threads: int, needed: list, running: set) -> float:
    """Train and evaluate one model, in processes of their own, once what it starts from is there. -> seconds"""
    for future in needed:
        future.result()
    path, sft, rm = (run_path(out, c, seed) for c in (command, SFT, RM))

    def execute(log, file, *arguments) -> str:
        with subprocess.Popen([sys.executable, ROOT / file, *map(str, arguments)], stdout=subprocess.PIPE, stderr=log, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": str(threads)}) as process:
            running.add(process)
            output = process.communicate()[0]
        if process.returncode:
            log.seek(0)
            raise UserError(f"{path.name} failed, see {path}.log: {''.join(log.readlines()[-1:]).strip()}", status=1)
        return output

    begun = time.perf_counter()
    with open(f"{path}.log", "w+", encoding="utf-8") as log:
        start = [] if command == SFT else ["--model", sft]
        log.write(execute(log, *(word.format(rm=rm) for word in command.split()), *start, "--seed", seed, "--out", path, "--overwrite"))
        found = {"seconds": time.perf_counter() - begun}
        if command != RM:
            found |= json.loads(execute(log, "evaluate.py", path, "--reference", sft, "--json"))
            found["kl_to_sft"] = found.pop("kl")
    Path(f"{path}.part").write_text(json.dumps(found))
    os.replace(f"{path}.part", f"{path}.json")                   # is there only when the run is finished
    return time.perf_counter() - begun


def run_all(out: Path, commands: list[str], seeds: int, jobs: int) -> None:
    """Every command with every seed, `jobs` at a time, SFT models first. The first that fails ends the others."""
    wanted = dict.fromkeys([SFT, *([RM] if any("{rm}" in c for c in commands) else []), *commands])
    order = sorted(((c, seed) for seed in range(seeds) for c in wanted), key=lambda job: (job[0] != SFT, job[0] != RM))
    todo = [(c, seed) for c, seed in order if not Path(f"{run_path(out, c, seed)}.json").is_file()]
    print(f"{len(order)} runs, {len(order) - len(todo)} of them there already", flush=True)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    begun, futures, running, cores = time.perf_counter(), {}, set(), os.cpu_count() or 1
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for c, seed in todo:                                 # a run waits only for runs before it: the pool can't block itself
                needed = [futures[n, seed] for n in (SFT, RM) if (n, seed) in futures and (n == SFT or "{rm}" in c)]
                threads = cores if c == SFT and seeds == 1 else max(1, cores // jobs)                  # all else waits for that one
                futures[c, seed] = pool.submit(run, out, c, seed, threads, needed, running)
            names = {future: run_path(out, *job).name for job, future in futures.items()}
            for n, future in enumerate(as_completed(names), 1):
                seconds, left = future.result(), (time.perf_counter() - begun) / n * (len(todo) - n)
                print(f"{n}/{len(todo)}  {names[future]}: {seconds:.0f} s; about {left / 60:.0f} min left", flush=True)
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise UserError("interrupted: the same command runs what is left", status=130) if isinstance(error, KeyboardInterrupt) else error


# ------------------------------------------------------------------------------------------------------ numbers

def number(value) -> str:
    return "" if value == "" else f"{float(value):.5g}"


def history(out: Path, command: str, seed: int) -> list[dict]:
    """The rows of metrics.csv; before them the SFT model it starts from, as step 0; in the last what evaluate.py found."""
    rows, start = read_metrics(run_path(out, command, seed)), read_metrics(run_path(out, SFT, seed))[-1]
    rows[-1] |= json.loads(Path(f"{run_path(out, command, seed)}.json").read_text())
    return [{"step": "0", "answer_kl": 0, "eval_greedy": start["eval_greedy"], "eval_sampled": start["eval_sampled"]}, *rows]


def result(out: Path, method: str, command: str, seed: int) -> dict:
    """A row of results.csv."""
    _, *rows = history(out, command, seed)
    pairs = json.loads((run_path(out, command, seed) / "config.json").read_text()).get("pairs", 0)
    row = rows[-1] | {"samples": sum(float(r.get("samples", 0)) for r in rows) or 2 * pairs or "", "models": METHODS[method][0],
                      "pairs": rows[-1].get("eval_accuracy", "")}
    if "--reward-model" in command:
        evaluated = [r for r in rows if r["eval_greedy"]]
        best = max(evaluated, key=lambda r: float(r["eval_greedy"]))
        row |= {"peak_greedy": best["eval_greedy"], "peak_sampled": max(float(r["eval_sampled"]) for r in evaluated),
                "score_at_peak": best["reward"], "score": row["reward"]}
    return {"method": method, "seed": seed, **{column: number(row.get(column, "")) for column in COLUMNS}}


def curves(out: Path, runs: dict, seeds: int, columns: list[str]) -> list[dict]:
    """A row for each step of each run, with these columns, if any but the KL was measured at that step."""
    rows = [{"line": line, "setting": at, "seed": seed, "step": row["step"], **{c: number(row.get(c, "")) for c in columns}}
            for (line, at), command in runs.items() for seed in range(seeds) for row in history(out, command, seed)]
    return [row for row in rows if any(row[c] for c in columns if c != "answer_kl")]


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


def ends(rows: list[dict], column: str) -> dict[str, list[float]]:
    """name -> for each seed, the mean of what was measured in the last fifth of the steps."""
    found = {}
    for (which, _), mine in grouped(rows, lambda row: (name(row), row["seed"])).items():
        late = [float(row[column]) for row in mine if row[column] and int(row["step"]) > 0.8 * int(mine[-1]["step"])]
        found.setdefault(which, []).append(mean(late))
    return found


# ------------------------------------------------------------------------------------------------------ sentences

def std(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def shown(values: list[float], form: str = "") -> str:
    form = form or (".2f" if mean(values) < 100 else ".0f")
    return f"{mean(values):{form}}" + (f" ± {std(values):{form}}" if std(values) else "")


def apart(a: list[float], b: list[float]) -> bool:
    """Do they differ beyond the seeds' spread? Student's t at 5 % of the n differences, seed by seed, with n - 1 degrees of freedom."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(a), 2.57)
    return abs(mean(differences)) > t * std(differences) / len(a) ** 0.5


def against(found: dict[str, list[float]], base: str) -> str:
    """Which settings differ from `base` beyond the seeds' spread, and to which side. found: name -> a number for each seed"""
    if len(found[base]) == 1:
        return "One seed, so there is no spread to hold differences against."
    differ = {which: mean(values) - mean(found[base]) for which, values in found.items() if apart(values, found[base])}
    sides = {"higher": [which for which in differ if differ[which] > 0], "lower": [which for which in differ if differ[which] < 0]}
    told = "; ".join(f"{side} with {', '.join(names)}" for side, names in sides.items() if names)
    return f"Against {base}, " + (f"beyond the seeds' spread: {told}." if told else "no difference beyond the seeds' spread.")


def stated(rows: list[dict], what: str, column: str, base: str) -> str:
    """How a column ends with each setting, and against `base`."""
    found = ends(rows, column)
    return f"At the end, {what}: " + ", ".join(f"{shown(values)} ({which})" for which, values in found.items()) + f". {against(found, base)}"


def hump(rows: list[dict]) -> str:
    """Whether true accuracy falls from its best while the reward model's score rises. A seed's best evaluation is taken to be where
    the other seeds are best: picked by its own accuracy it would be partly luck, and a fall from it nothing but the luck's end."""
    text, fallen = [], []
    for which, some in grouped(rows, name).items():
        runs = [[row for row in mine if row["eval_greedy"] and row["reward"]] for mine in grouped(some, lambda row: row["seed"]).values()]
        found = []                                               # a seed: accuracy at its best and at the end, the score at both
        for mine in runs:
            others = [run for run in runs if run is not mine] or runs
            best = max(range(len(mine)), key=lambda at: mean(float(run[at]["eval_greedy"]) for run in others))
            found.append([float(mine[at][column]) for column in ("eval_greedy", "reward") for at in (best, -1)])
        best, last, score, last_score = map(list, zip(*found))
        text.append(f"{shown(best)} → {shown(last)} ({shown(score)} → {shown(last_score)}) with {which}")
        if len(best) > 1 and apart(best, last) and mean(last_score) > mean(score):
            fallen.append(which)
    return "Greedy accuracy (and the reward model's score), from the best evaluation to the last: " + ", ".join(text) + ". " + (
        "One seed, so there is no spread to hold a fall against." if len(best) == 1 else
        f"Accuracy falls beyond the seeds' spread while the score rises with {', '.join(fallen)}." if fallen else
        "With none does accuracy fall beyond the seeds' spread while the score rises.")


def markdown(rows: list[dict]) -> str:
    """results.md: means and standard deviations over the seeds."""
    methods = grouped(rows, lambda row: row["method"])
    policies = [m for m in methods if methods[m][0]["sampled"]]

    def values(method, column):
        return [float(row[column]) for row in methods[method] if row[column]]

    def table(columns, names):
        def cell(method, column):
            found = values(method, column)
            return shown(found, COLUMNS[column]) if found else ""
        return "\n".join([f"| | {' | '.join(columns).replace('_', ' ')} |", "|---" * (len(columns) + 1) + "|",
                          *(f"| {method} | {' | '.join(cell(method, column) for column in columns)} |" for method in names)])
    return f"""Seeds: {len({row["seed"] for row in rows})}. Mean ± standard deviation.

{table([*COLUMNS][:8], policies)}

length: tokens an answer. kl to sft: exact, in nats an answer. samples: answers that the policy sampled to learn from; DPO and its
relatives learn from pairs. seconds: of the training script. models: full models in memory while it trains.

Right answers, sampled: {against({m: values(m, "sampled") for m in policies}, "GRPO")}

The reward model ranks {shown(values("reward model", "pairs"), ".3f")} of held-out pairs right. PPO on it (RM), at its best evaluation and at the end:

{table(["peak_greedy", "greedy", "peak_sampled", "sampled", "score_at_peak", "score"], [m for m in policies if values(m, "score")])}
"""


# ------------------------------------------------------------------------------------------------------ figures

def panel(axis, rows: list[dict], label: str, x: str, y: str, title: str = "") -> None:
    """Over steps: the seeds' mean and range. Over √KL: each seed's way. Over settings: each seed's end, and mean ± std."""
    for i, (line, some) in enumerate(grouped(rows, lambda row: row["line"] if x == "setting" else name(row)).items()):
        color = f"C{i}"
        if x == "setting":
            settings, found = list(dict.fromkeys(row["setting"] for row in some)), ends(some, y).values()
            axis.errorbar(settings, [mean(v) for v in found], [std(v) for v in found], color=color, label=line or None, capsize=3,
                          fmt="o-" if "=" in settings[0] else "o")
            for at, values in zip(settings, found):
                axis.plot([at] * len(values), values, ".", color=color)
            slanted = {"rotation": 80 if len(settings) > 8 else 20, "ha": "right"} if len("".join(settings)) > 36 else {}
            axis.set_xticks(settings, settings, fontsize=8, **slanted)
        elif x == "step":
            steps = grouped([row for row in some if row[y]], lambda row: int(row[x]))
            found = [[float(row[y]) for row in at] for at in steps.values()]
            axis.plot([*steps], [mean(v) for v in found], color=color, label=line, marker="o" if y.startswith("eval") else None, ms=3)
            axis.fill_between([*steps], [min(v) for v in found], [max(v) for v in found], color=color, alpha=0.2)
        else:
            for n, way in enumerate(grouped([row for row in some if row[y]], lambda row: row["seed"]).values()):
                axis.plot([max(0.0, float(row[x])) ** 0.5 for row in way], [float(row[y]) for row in way], ".-", color=color, linewidth=0.8,
                          ms=4, label=None if n else line)
    xlabels = {"step": "step", "answer_kl": "√KL to the SFT model (nats an answer)"}
    axis.set_xlabel(xlabels.get(x, ""))
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
    figure, axes = plt.subplots(high, wide, figsize=(4 * wide + 1, 3.8 * high), layout="constrained")
    for axis, arguments in zip(axes.flat, panels):
        panel(axis, *arguments)
    figure.suptitle(title)
    save_figure(figure, file, [panels, title, draw, panel, name, ends, std], dpi=110)
    plt.close(figure)


def report(out: Path, which: str) -> None:
    """Figures and text, from the csv files alone."""
    rows = read_csv(out / f"{which}.csv")
    if which == "results":
        right, fooled = ([row for row in read_csv(out / "curves.csv") if ("RM" in row["setting"]) == on_rm] for on_rm in (False, True))
        draw(out / "compare.png", [(right, "right answers, sampled (share)", "step", "eval_sampled", "rewarded for right answers"),
                                   (right, "answer length (tokens)", "step", "response_length", "… it comes to think first"),
                                   (fooled, "the reward model's score", "step", "reward", "rewarded by a model of them"),
                                   (fooled, "right answers, greedy (share)", "step", "eval_greedy", "… which it learns to fool")])
        methods = [{"line": "", "setting": row["method"], "step": "1", **row} for row in rows if row["sampled"]]
        draw(out / "methods.png", [(methods, *RIGHT), (methods, *KL), (methods, "answer length (tokens)", "setting", "length")])
        text = markdown(rows)
    else:
        e = EXPERIMENTS[which]
        draw(out / f"{which}.png", [(rows, *p) for p in e.panels], e.question)
        sentences = [stated(rows, what, y, e.base) for what, _, y in e.panels] if e.base else [hump(rows)]
        text = f"**{e.question}** {' '.join(sentences)}\n\n![{e.question}]({which}.png)\n"
    (out / f"{which}.md").write_text(text, encoding="utf-8")
    print(text)


def main(argv=None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    which = argv.pop(0) if argv and not argv[0].startswith("-") else "results"
    config = parse(Config, __doc__, argv)
    if which not in ("results", *EXPERIMENTS):
        raise UserError(f"unknown experiment {which}, expected {', '.join(EXPERIMENTS)}, or none for the table")
    out = Path(config.out or ("runs/quick" if config.quick else "runs/compare"))
    if config.figures:
        there = [t for t in ("results", *EXPERIMENTS) if which in ("results", t) and (out / f"{t}.csv").is_file()]
        if not there:
            raise UserError(f"{out / which}.csv: not found, expected the numbers to draw")
        for t in there:
            report(out, t)
        return

    seeds = config.seeds or (1 if config.quick else 5 if which == "results" else 2)
    runs = EXPERIMENTS[which].runs if which in EXPERIMENTS else {("", method): command for method, (_, command) in METHODS.items()}
    if config.quick:
        runs = {key: c + "".join(f" --steps {n}" for file, n in QUICK.items() if c.startswith(file)) for key, c in runs.items()}
    run_all(out, list(runs.values()), seeds, config.jobs)
    if which in EXPERIMENTS:
        columns = dict.fromkeys(c for _, x, y in EXPERIMENTS[which].panels for c in (x, y) if c not in ("step", "setting"))
        write_csv(out / f"{which}.csv", curves(out, runs, seeds, list(columns)))
    else:
        write_csv(out / "results.csv", [result(out, method, c, seed) for (_, method), c in runs.items() for seed in range(seeds)])
        drawn = {key: c for key, c in runs.items() if key[1] == "GRPO" or key[1].startswith("PPO")}
        write_csv(out / "curves.csv", curves(out, drawn, seeds, ["reward", "response_length", "eval_greedy", "eval_sampled"]))
    report(out, which)


if __name__ == "__main__":
    script(main)
