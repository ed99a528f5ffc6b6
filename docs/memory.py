"""What fits into memory: `python docs/memory.py` writes docs/MEMORY.md from support/memory.py, and
from what benchmarks/peak_memory.py measured."""
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "MEMORY.md"
MEASURED = ROOT / "docs" / "benchmarks" / "memory_cpu.json"
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import peak_memory  # noqa: E402

from model import ModelConfig  # noqa: E402
from support.memory import Config, Plan, Sizes  # noqa: E402
from support.plan import LEGEND, fit_table, table  # noqa: E402

# The sizes of their config.json.
MODELS = {
    "SmolLM2-135M": ModelConfig(49152, 576, 30, 9, 3, 1536, 8192),
    "Qwen2.5-0.5B": ModelConfig(151936, 896, 24, 14, 2, 4864, 32768, qkv_bias=True),
    "Qwen3-0.6B": ModelConfig(151936, 1024, 28, 16, 8, 3072, 40960, head_dim=128, qk_norm=True),
    "Qwen2.5-1.5B": ModelConfig(151936, 1536, 28, 12, 2, 8960, 131072, qkv_bias=True),
}
SETTINGS = Config(prompt_tokens=256, max_new_tokens=512)

INTRO = """\
# Memory: does it fit, and with which flags?

    python evaluate.py MODEL --plan --prompt-tokens 256 --max-new-tokens 512

reads MODEL's `config.json` alone and prints what each script holds, when, and what fits into which
card. `--plan --help` lists the flags: rows, `--micro-batch-tokens`, `--grad-checkpoint`, `--dtype`.
[`support/memory.py`](../support/memory.py) has a line for each term, and why it is held then;
[`tests/test_plan.py`](../tests/test_plan.py) compares them with tensors. This page is written by
`python docs/memory.py`. **No GPU has confirmed its numbers yet**: they were measured on a CPU.

## What fits

256 answers per step in GRPO and PPO, rows of 256 + 512 tokens, bfloat16. A cell is the first that
fits: without `--grad-checkpoint` before with it, large micro-batches before small ones, and fewer
answers per step only where nothing else helps.

"""
DETAILS = """
The terms of Qwen2.5-0.5B with micro-batches of 8192 tokens, in MB of 2^20 bytes:

"""
MEASUREMENT = """
## Predicted and measured

Each script runs two steps of two micro-batches in a process of its own, on a CPU, and logs
`peak_memory_mb`. MB, and what the prediction is off:

| script | dtype | model | `--grad-checkpoint` | predicted | measured | |
|---|---|---|---|---|---|---|
"""
METHOD = """
* `deep`: the first 10 layers of SmolLM2-135M; `wide`: the first 4 of Qwen2.5-0.5B, with 65,536 rows
  of its vocabulary. Random weights; rows of {prompt} + {answer} tokens, micro-batches of {tokens}.
* Resident memory holds Python, torch and the program as well. They are measured and subtracted: the
  same command with a model of one narrow layer, minus what is predicted for that model. This leaves
  {low:.0f} to {high:.0f} MB.
* glibc keeps freed blocks for later, in holes that the next tensor often doesn't fit. So the
  processes run with `MALLOC_MMAP_THRESHOLD_=65536`: freed blocks go back at once. Without it,
  resident memory was up to 1 GB larger than what was in use: `train_sft.py` of all of SmolLM2-135M,
  in micro-batches of 2048 tokens, peaked at 6383 MB, where tensors and program take about 5300.

`python benchmarks/peak_memory.py --out docs/benchmarks/memory_cpu.json` measures again.
"""


def predicted(row: dict) -> float:
    config = Config(prompt_tokens=peak_memory.PROMPT, max_new_tokens=peak_memory.ANSWER,
                    rows=peak_memory.ROWS, micro_batch_tokens=peak_memory.MICRO_BATCH_TOKENS,
                    grad_checkpoint=row["grad_checkpoint"], dtype=row["dtype"], device="cpu")
    sizes = Sizes(peak_memory.MODELS[row["model"]])
    return Plan(sizes, config, row["script"]).peak() / 2 ** 20


def comparison() -> tuple[list[dict], list[float]]:
    """-> rows with "predicted" and "tensors", what was measured minus the program; the programs."""
    rows = json.loads(MEASURED.read_text())["rows"]
    programs, compared = {}, []
    for row in rows:
        key = row["script"], row["dtype"]
        if row["model"] == "tiny":
            programs[key] = row["measured MB"] - predicted(row)
        else:
            compared.append({**row, "predicted": predicted(row),
                             "tensors": row["measured MB"] - programs[key]})
    return compared, list(programs.values())


def page() -> str:
    parts = [INTRO]
    for name, sizes in MODELS.items():
        lines = fit_table(Sizes(sizes), SETTINGS)
        parts.append(f"### {name}\n\n" + "".join(f"    {line}\n" for line in lines) + "\n")
    parts.append(LEGEND + "\n" + DETAILS)
    parts.extend(f"    {line}".rstrip() + "\n"
                 for line in table(Sizes(MODELS["Qwen2.5-0.5B"]), SETTINGS))
    parts.append(MEASUREMENT)
    compared, programs = comparison()
    for row in compared:
        cells = [f"`train_{row['script']}.py`", row["dtype"], row["model"],
                 "yes" if row["grad_checkpoint"] else "", f"{row['predicted']:,.0f}",
                 f"{row['tensors']:,.0f}", f"{row['predicted'] / row['tensors'] - 1:+.1%}"]
        parts.append("| " + " | ".join(cells) + " |\n")
    parts.append(METHOD.format(
        prompt=peak_memory.PROMPT, answer=peak_memory.ANSWER,
        tokens=peak_memory.MICRO_BATCH_TOKENS, low=min(programs), high=max(programs)))
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
