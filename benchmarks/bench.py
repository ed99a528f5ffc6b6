"""What the benchmarks share: interleaved timing, this machine's limits, the work that a model's
pass takes, tables and JSON.

A limit is the larger of floating-point operations over the machine's measured matrix-product rate
in that dtype, and bytes over its measured memory bandwidth: no program can be faster without doing
less. For the libraries that are compared with: `pip install -r benchmarks/requirements.txt`.
"""
import json
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402

from support.cli import setting, user_errors  # noqa: E402
from support.pretrained import load_pretrained  # noqa: E402


@dataclass(kw_only=True)
class BenchConfig:
    device: str = setting("", "cuda, mps or cpu; the first of them there is, if not given")
    dtype: str = setting("", "if not given, bfloat16 on a GPU that has it, else float32",
                         choices=("", "float32", "bfloat16"))
    out: str = setting("", "a JSON file for the numbers")


@user_errors()
def load_model(path: str | Path, device=None):
    """-> a model in float32, which autocast rounds, and its tokenizer"""
    return load_pretrained(path, torch.float32, device)


def product_dtype(device) -> torch.dtype:
    """What matrix products are computed in, as pick_device set it."""
    return torch.bfloat16 if torch.is_autocast_enabled(device.type) else torch.float32


def clock(device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def interleaved(contestants: dict, device, repeats: int = 5,
                warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each function, measured in turns so that a slow minute of the machine meets all
    of them; warm-up left out."""
    seconds = {name: [] for name in contestants}
    for i in range(warm_up + repeats):
        for name, function in contestants.items():
            started = clock(device)
            function()
            if i >= warm_up:
                seconds[name].append(clock(device) - started)
    return seconds


def limits(device, dtype) -> tuple[float, float]:
    """-> operations a second of a large matrix product in dtype, bytes a second of a large copy
    (read and written). Best of five."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    x = torch.empty(2 ** 28 if device.type == "cuda" else 2 ** 25, device=device)
    y = torch.zeros_like(x)
    products = interleaved({"": lambda: a @ b}, device)[""]
    copies = interleaved({"": lambda: x.copy_(y)}, device)[""]
    return 2 * n ** 3 / min(products), 2 * x.numel() * 4 / min(copies)


def forward_operations(model, tokens: int, scored: int, keys: float) -> float:
    """Of a forward pass over `tokens` tokens, of which `scored` get logits, each attending to
    `keys` tokens on average.

    Two a weight and token in matrix products; the backward pass takes twice as many again."""
    config = model.config
    weights = sum(p.numel() for p in model.layers.parameters() if p.dim() == 2)
    attention = 4 * keys * config.n_layers * config.n_heads * config.head_dim
    return tokens * (2 * weights + attention) + scored * 2 * config.vocab_size * config.dim


def training_limit(model, tokens: int, scored: int, length: int, rate: float) -> float:
    """Seconds that forward and backward of `tokens` tokens in rows of `length` take at least."""
    return 3 * forward_operations(model, tokens, scored, length / 2) / rate


def decode_limit(model, prompt_lengths: list[int], answer_lengths: list[int], itemsize: int,
                 rate: float, bandwidth: float) -> float:
    """Seconds that sampling takes at least: the prompts' pass, then a pass a token over the rows
    that have not ended."""
    config = model.config
    weights = (sum(p.numel() for p in model.layers.parameters())
               + model.lm_head.weight.numel()) * itemsize
    # A token's keys and values.
    key_bytes = 2 * config.n_layers * config.n_kv_heads * config.head_dim * itemsize
    seconds = sum(forward_operations(model, P, 1, P / 2) for P in prompt_lengths) / rate
    for i in range(1, max(answer_lengths)):
        # How many tokens each row that is still running attends to.
        keys = [P + i for P, n in zip(prompt_lengths, answer_lengths) if n > i]
        operations = forward_operations(model, len(keys), len(keys), sum(keys) / len(keys))
        seconds += max(operations / rate, (weights + sum(keys) * key_bytes) / bandwidth)
    return seconds


def show(value) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def report(name: str, rows: list[dict], device, out: str) -> None:
    """Print a Markdown table; add what it was measured on and write it to a JSON file."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(show(row.get(column, "")) for column in columns) + " |")
    where = (torch.cuda.get_device_name(device) if device.type == "cuda"
             else f"{platform.machine()} CPU, {torch.get_num_threads()} threads")
    if out:
        Path(out).write_text(json.dumps(
            {"benchmark": name, "device": where, "torch": torch.__version__, "rows": rows},
            indent=1) + "\n")
