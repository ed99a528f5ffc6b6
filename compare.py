"""Every algorithm from the same SFT model on the same held-out problems, over several seeds: the README's table.

    python compare.py --seeds 3            everything, into runs/compare (resumable: what is there is not run again)

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

from common import UserError, parse, script, setting

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
    with open(run / "metrics.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    result = {"method": name, "seed": seed, "seconds": json.loads(timing.read_text())["seconds"]}
    if name == "rm":
        return result | {"pairs": float(rows[-1]["eval_accuracy"])}
    evaluated = [float(row["eval_sampled"]) for row in rows if row["eval_sampled"]]
    result |= {"greedy": float(rows[-1]["eval_greedy"]), "sampled": evaluated[-1], "peak": max(evaluated)}
    if "ppo_rm" in name:
        result |= {"score_start": float(rows[0]["reward"]), "score_end": float(rows[-1]["reward"]),
                   "score_at_peak": float(next(row["reward"] for row in rows if row["eval_sampled"] == f"{max(evaluated):.6g}"))}
    return result


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
    print("| method | " + " | ".join(columns[2:]) + " |\n|---" * 1 + "|---" * (len(columns) - 2) + "|")
    for name in METHODS:
        mine = [result for result in results if result["method"] == name]
        medians = (f"{statistics.median(r[c] for r in mine):.3g}" if c in mine[0] else "" for c in columns[2:])
        print(f"| {name} | " + " | ".join(medians) + " |")


if __name__ == "__main__":
    script(main)
