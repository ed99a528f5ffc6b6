"""All rungs over several seeds: the numbers and the figure of README.md.

    python ladder/curves.py              runs what results.csv lacks, then draws
    python ladder/curves.py --figures    draws from the CSV files: no runs

Writes ladder/steps.csv (a row a step), ladder/results.csv (a row a run) and ladder/curves.png. All
runs start from the same runs/sft: seeds differ in problems and samples. Forty runs, about a minute
each on one core.
"""
import csv
import importlib
import sys
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from support.ladder import RUNGS, read_results
from support.plot import read_csv, save_figure

FOLDER = ROOT / "ladder"
SEEDS = range(5)
# The first rung once more, with 1 added to every reward.
SHIFTED = "1_reinforce, R + 1"
CURVES = (RUNGS[0], SHIFTED, *RUNGS[1:])


def run(name: str, seed: int):
    """One rung from its start to its end. -> its log"""
    module = importlib.import_module(name.partition(",")[0])
    if name == SHIFTED:
        module.OFFSET = 1.0
    log = module.train(seed)
    if name == SHIFTED:
        module.OFFSET = 0.0
    return log


def append(file: Path, row: dict) -> None:
    is_new = not file.exists()
    with open(file, "a", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, row, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def run_what_is_missing() -> None:
    """Seed by seed, so that what is there after an interruption has as many runs of each rung."""
    done = {(row["rung"], int(row["seed"])) for row in read_results()}
    for seed in SEEDS:
        for name in CURVES:
            if (name, seed) in done:
                continue
            print(f"\n{name}, seed {seed}", flush=True)
            log = run(name, seed)
            key = {"rung": name, "seed": seed}
            for row in log.steps:
                append(FOLDER / "steps.csv", key | {
                    "step": row["step"], "accuracy": f"{row['accuracy']:.4g}",
                    "reward": f"{row['reward']:.4g}" if "reward" in row else ""})
            append(FOLDER / "results.csv", key | {
                name: x and f"{x:.4g}" for name, x in log.result.items()})


def draw(folder: Path = FOLDER) -> None:
    """curves.png, from steps.csv alone: of each rung the mean of its seeds, and all within the
    band."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    rows = read_csv(FOLDER / "steps.csv")
    figure, axes = plt.subplots(2, 4, figsize=(13, 6), sharex=True, sharey=True,
                                layout="constrained")
    means, bands = {}, {}
    for name in CURVES:
        at = {}
        for row in rows:
            if row["rung"] == name:
                at.setdefault(int(row["step"]), []).append(float(row["accuracy"]))
        means[name] = [(step, mean(values)) for step, values in at.items()]
        bands[name] = (list(at), [min(v) for v in at.values()], [max(v) for v in at.values()])
    for i, (axis, name) in enumerate(zip(axes.flat, CURVES)):
        for other in CURVES:
            axis.plot(*zip(*means[other]), color="0.8", linewidth=1)
        axis.fill_between(*bands[name], color=f"C{i}", alpha=0.2, linewidth=0)
        axis.plot(*zip(*means[name]), color=f"C{i}", linewidth=2.5)
        axis.set(ylim=(0, 1), xlim=(0, None))
        axis.set_title(name, fontsize=11)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy of sampled answers")
    save_figure(figure, folder / "curves.png", [rows, CURVES, draw], dpi=85)
    plt.close(figure)


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--figures"]):
        sys.exit(__doc__)
    if not sys.argv[1:]:
        run_what_is_missing()
    draw()
