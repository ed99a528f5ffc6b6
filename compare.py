"""Every algorithm from the same SFT model on the same held-out problems, over several seeds: the README's table.

    python compare.py --seeds 3            everything, into runs/compare, half an hour; what is there is not run again

A seed has its own SFT model, reward model and runs. Each script is timed as a whole process, start-up and evaluations included.
"""
import csv
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from common import UserError, parse, read_metrics, script, setting

ROOT = Path(__file__).parent

# name: script and flags; {sft} and {rm} are the seed's own
METHODS = {
    "sft": ["train_sft.py"],
    "rm": ["train_rm.py", "--model", "{sft}"],
    "dpo": ["train_dpo.py", "--model", "{sft}"],
    "dpo_without_nll": ["train_dpo.py", "--model", "{sft}", "--nll-coef", "0"],
    "grpo": ["train_grpo.py", "--model", "{sft}"],
    "ppo_verifier": ["train_ppo.py", "--model", "{sft}", "--reward", "verifier"],
    "ppo_rm": ["train_ppo.py", "--model", "{sft}", "--reward-model", "{rm}", "--eval-every", "5"],
    "ppo_rm_no_kl": ["train_ppo.py", "--model", "{sft}", "--reward-model", "{rm}", "--eval-every", "5", "--kl-coef", "0"],
}


@dataclass(kw_only=True)
class Config:
    seeds: int = setting(3, "how many", low=1)
    out: str = setting("runs/compare", "where the runs and results.csv go")


def run_method(out: Path, name: str, seed: int) -> dict:
    """Run one method unless it is there, and read what it reached."""
    run = out / f"{name}-{seed}"
    timing = out / f"{name}-{seed}.json"
    if not timing.exists():
        flags = [flag.format(sft=out / f"sft-{seed}", rm=out / f"rm-{seed}") for flag in METHODS[name]]
        started = time.perf_counter()
        command = [sys.executable, ROOT / flags[0], *flags[1:], "--seed", str(seed), "--out", str(run), "--overwrite"]
        if subprocess.run(command).returncode:
            raise UserError(f"{name}, seed {seed}: failed, see above", status=1)
        timing.write_text(json.dumps({"seconds": time.perf_counter() - started}))
    rows = read_metrics(run)
    result = {"method": name, "seed": seed, "seconds": json.loads(timing.read_text())["seconds"]}
    if name == "rm":
        return result | {"pairs": float(rows[-1]["eval_accuracy"])}
    evaluated = [row for row in rows if row["eval_sampled"]]
    result |= {"greedy": float(evaluated[-1]["eval_greedy"]), "sampled": float(evaluated[-1]["eval_sampled"])}
    if "ppo_rm" in name:                                         # true accuracy at its best, and the score there and at the end
        best = max(evaluated, key=lambda row: float(row["eval_greedy"]))
        result |= {"peak_greedy": float(best["eval_greedy"]), "peak_sampled": max(float(row["eval_sampled"]) for row in evaluated),
                   "score_at_peak": float(best["reward"]), "score": float(rows[-1]["reward"])}
    return result


def draw(out: Path, seeds: int) -> None:
    """compare.png: medians over the seeds, and the range from the lowest to the highest."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    panels = [("right answers, sampled (share)", "eval_sampled", ("grpo", "ppo_verifier")),
              ("answer length (tokens)", "response_length", ("grpo", "ppo_verifier")),
              ("the reward model's score", "reward", ("ppo_rm", "ppo_rm_no_kl")),
              ("right answers, greedy (share)", "eval_greedy", ("ppo_rm", "ppo_rm_no_kl"))]
    labels = {"grpo": "GRPO", "ppo_verifier": "PPO", "ppo_rm": "PPO, KL penalty β = 0.05", "ppo_rm_no_kl": "PPO, no KL penalty"}
    figure, axes = plt.subplots(1, 4, figsize=(16, 3.6), layout="constrained")
    for axis, (label, column, names) in zip(axes, panels):
        for name in names:
            points = {}                                          # step -> a value of each seed
            for seed in range(seeds):
                if column.startswith("eval"):                    # where all start
                    points.setdefault(0, []).append(float(read_metrics(out / f"sft-{seed}")[-1][column]))
                for row in read_metrics(out / f"{name}-{seed}"):
                    if row[column]:
                        points.setdefault(int(row["step"]), []).append(float(row[column]))
            line, = axis.plot(list(points), [statistics.median(values) for values in points.values()], label=labels[name],
                              marker="o" if column.startswith("eval") else None, markersize=3)
            axis.fill_between(list(points), [min(v) for v in points.values()], [max(v) for v in points.values()],
                              color=line.get_color(), alpha=0.2)
        axis.set(xlabel="update", ylabel=label)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_title("rewarded for right answers", loc="left")
    axes[1].set_title("… it comes to think first", loc="left")
    axes[2].set_title("rewarded by a model of them", loc="left")
    axes[3].set_title("… which it learns to fool", loc="left")
    figure.savefig(out / "compare.png", dpi=110)
    plt.close(figure)


def main(argv=None) -> None:
    config = parse(Config, __doc__, argv)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    results = [run_method(out, name, seed) for seed in range(config.seeds) for name in METHODS]
    columns = list(dict.fromkeys(key for result in results for key in result))
    with open(out / "results.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows(results)
    draw(out, config.seeds)
    print("| method | " + " | ".join(columns[2:]) + " |\n|---" + "|---" * (len(columns) - 2) + "|")
    for name in METHODS:
        mine = [result for result in results if result["method"] == name]
        medians = (f"{statistics.median(r[c] for r in mine):.3g}" if c in mine[0] else "" for c in columns[2:])
        print(f"| {name} | " + " | ".join(medians) + " |")


if __name__ == "__main__":
    script(main)
