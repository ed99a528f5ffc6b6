"""The peak memory that support/memory.py predicts, against the one that the scripts log, on a CPU.

    python benchmarks/peak_memory.py                        all, in about an hour
    python benchmarks/peak_memory.py --only grpo --dtype bfloat16

Two models with random weights, one deep and one wide; each script runs two steps of it in a process
of its own, in two micro-batches a step: Adam's states are there from the first update on. Resident
memory holds Python, torch and the program as well. They are measured, not guessed: the same command
with a model of one narrow layer is subtracted, and what is predicted for that model is added.
"""
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench import report

import torch

from model import ModelConfig, ScalarModel, Transformer
from support.cli import parse, script, setting
from support.plot import read_metrics
from support.pretrained import save_pretrained
from support.tokenizer import builtin_tokenizer

ROOT = Path(__file__).parent.parent
MODELS = {
    "tiny": ModelConfig(512, 64, 1, 1, 1, 64, 2048),
    # The first 10 of SmolLM2-135M's 30 layers.
    "deep": ModelConfig(49152, 576, 10, 9, 3, 1536, 2048),
    # The first 4 of Qwen2.5-0.5B's 24 layers, and less than half of its vocabulary.
    "wide": ModelConfig(65536, 896, 4, 14, 2, 4864, 2048, qkv_bias=True),
}
# The C library keeps freed blocks of up to 32 MB for later, in holes that the next tensor often
# doesn't fit. With this they go back to the system at once, as torch has it on a GPU.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}
ALGORITHMS = ("sft", "dpo", "grpo", "ppo")
PROMPT, ANSWER, ROWS, MICRO_BATCH_TOKENS = 112, 16, 16, 1024


@dataclass(kw_only=True)
class Config:
    only: str = setting("", "one algorithm", choices=("", *ALGORITHMS))
    dtype: str = setting("", "one of them", choices=("", "float32", "bfloat16"))
    out: str = setting("", "a JSON file for the numbers")


def write_inputs(folder: Path) -> None:
    """The models, reward models, data and a reward function. All rows are of the same length."""
    torch.manual_seed(0)
    tokenizer = builtin_tokenizer()
    for name, sizes in MODELS.items():
        model = Transformer(sizes)
        save_pretrained(model, tokenizer, folder / name)
        save_pretrained(ScalarModel(model), tokenizer, folder / f"{name}_rm")
    prompts = [f"{i:04}".ljust(PROMPT, "?") for i in range(100)]
    right, wrong = "a" * (ANSWER - 1), "b" * (ANSWER - 1)
    rows = {"sft": [{"prompt": prompt, "completion": right} for prompt in prompts],
            "dpo": [{"prompt": prompt, "chosen": right, "rejected": wrong} for prompt in prompts],
            "grpo": [{"prompt": prompt} for prompt in prompts]}
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "reward.py").write_text(
        "def score(prompts, completions, **columns):\n"
        "    return [float(i % 2) for i in range(len(prompts))]\n")


def flags_of(algorithm: str, folder: Path, name: str) -> list[str]:
    """Two micro-batches a step: ROWS rows of a prompt and an answer, or half as many pairs."""
    if algorithm in ("sft", "dpo"):
        size = ROWS if algorithm == "sft" else ROWS // 2
        return ["--data", f"{folder}/{algorithm}.jsonl", "--batch-size", str(size),
                "--eval-every", "0", "--eval-problems", "1"]
    flags = ["--data", f"{folder}/grpo.jsonl", "--minibatches", "1", "--epochs", "1",
             "--max-new-tokens", str(ANSWER)]
    if algorithm == "grpo":
        return [*flags, "--reward", f"{folder}/reward.py:score", "--eval-every", "0",
                "--group-size", "8", "--prompts-per-step", str(ROWS // 8)]
    return [*flags, "--reward-model", f"{folder}/{name}_rm", "--critic-warmup", "0",
            "--prompts-per-step", str(ROWS)]


def measure(algorithm: str, folder: Path, name: str, dtype: str, grad_checkpoint: bool) -> float:
    """MB: the most that the process of a script held."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, f"train_{algorithm}.py", "--model", str(folder / name),
                   "--steps", "2", "--save-every", "0", "--device", "cpu", "--dtype", dtype,
                   "--micro-batch-tokens", str(MICRO_BATCH_TOKENS), "--out", f"{out}/run",
                   *flags_of(algorithm, folder, name)]
        if grad_checkpoint:
            command.append("--grad-checkpoint")
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True,
                       env={**os.environ, **GIVE_BACK})
        return float(read_metrics(Path(out) / "run")[-1]["peak_memory_mb"])


def main() -> None:
    config = parse(Config, __doc__)
    algorithms = (config.only,) if config.only else ALGORITHMS
    dtypes = (config.dtype,) if config.dtype else ("float32", "bfloat16")
    table = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        # In a process of its own: what this one holds, Linux would count as its children's peak.
        writer = multiprocessing.get_context("spawn").Process(target=write_inputs, args=(folder,))
        writer.start()
        writer.join()
        for dtype, algorithm, name, grad_checkpoint in itertools.product(
                dtypes, algorithms, MODELS, (False, True)):
            # One run is enough to know what the program takes.
            if name == "tiny" and grad_checkpoint:
                continue
            found = measure(algorithm, folder, name, dtype, grad_checkpoint)
            table.append({"script": algorithm, "model": name, "dtype": dtype,
                          "grad_checkpoint": grad_checkpoint, "measured MB": found})
            print(table[-1], flush=True)
    report("peak_memory", table, torch.device("cpu"), config.out)


if __name__ == "__main__":
    script(main)
