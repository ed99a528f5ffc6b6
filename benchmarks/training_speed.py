"""How far a training step is from the machine's limit, and how its cost grows: forward, backward
and update of `token_log_probs`.

    python benchmarks/training_speed.py --model SmolLM2-135M      one size, as a share of the limit
    python benchmarks/training_speed.py --growth FIGURE.png       small models, one size varied
    ... --growth FIGURE.png --out NUMBERS.json --figures          draws it again, measures nothing

All tokens of a row but the first quarter are answer tokens, which get logits.
"""
import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from bench import (BenchConfig, clock, interleaved, limits, load_model, product_dtype, report,
                   training_limit)

import torch

from model import ModelConfig, Transformer
from rollout import token_log_probs
from support.cli import UserError, parse, script, setting
from support.models import pick_device
from support.plot import save_figure

SMALL = ModelConfig(vocab_size=4096, dim=256, n_layers=4, n_heads=4, n_kv_heads=2,
                    ffn_dim=512, max_seq_len=1024)
GROWTH = {"rows": (8, 16, 32, 64),
          "tokens a row": (64, 128, 256, 512),
          "vocab_size": (1024, 4096, 16384, 65536),
          "n_layers": (2, 4, 8, 16),
          "dim": (128, 256, 512, 1024)}


@dataclass(kw_only=True)
class Config(BenchConfig):
    model: str = setting("", "a Hugging Face directory; a small random model if not given")
    rows: int = setting(16, "rows at once", low=1)
    tokens: int = setting(256, "tokens a row", low=4)
    growth: str = setting("", "draw how the cost grows into this file, instead")
    figures: bool = setting(False, "measure nothing: draw --growth again from the numbers in --out")
    repeats: int = setting(5, "timed turns; the median counts", low=1)


def measure(model, rows: int, length: int, rate: float, device, repeats: int) -> dict:
    tokens = torch.randint(0, model.config.vocab_size, (rows, length), device=device)
    mask = (torch.arange(length, device=device) >= max(1, length // 4)).expand(rows, length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    parts = {"forward": [], "backward": [], "update": []}

    def step():
        times = [clock(device)]
        loss = token_log_probs(model, tokens, mask).sum()
        times.append(clock(device))
        loss.backward()
        times.append(clock(device))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(clock(device))
        for part, start, end in zip(parts.values(), times, times[1:]):
            part.append(end - start)

    seconds = median(interleaved({"step": step}, device, repeats)["step"])
    limit = training_limit(model, rows * length, int(mask.sum()), length, rate)
    return {**{f"{name} (s)": median(times[1:]) for name, times in parts.items()},
            "step (s)": seconds,
            "tokens/s": rows * length / seconds,
            "limit (s)": limit,
            "of the limit": limit / seconds}


def draw(table: list[dict], file: str | Path) -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, len(GROWTH), figsize=(16, 3.2), sharey=True,
                                layout="constrained")
    for axis, name in zip(axes, GROWTH):
        mine = [row for row in table if row["varied"] == name]
        for column in ("step (s)", "limit (s)"):
            axis.loglog([row["value"] for row in mine], [row[column] for row in mine],
                        marker="o", label=column)
        axis.set_xticks([row["value"] for row in mine], [str(row["value"]) for row in mine])
        axis.minorticks_off()
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds")
    axes[0].legend(fontsize=8)
    save_figure(figure, file, [table, GROWTH, draw], dpi=110)


def draw_again(config) -> None:
    """The figure of --growth, from the numbers in --out."""
    try:
        table = json.loads(Path(config.out).read_text())["rows"]
        draw(table, config.growth)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--out {config.out}: holds no numbers of --growth: {error!r}") from error


def sizes_of(name: str, value: int) -> ModelConfig:
    """The small model, with one of its sizes changed if GROWTH names one."""
    sizes = {name: value} if hasattr(SMALL, name) else {}
    if name == "dim":
        # The heads' size grows too, so that the model keeps its shape.
        sizes["ffn_dim"] = 2 * value
    return replace(SMALL, head_dim=None, **sizes)


def main() -> None:
    config = parse(Config, __doc__)
    if config.figures:
        if not (config.growth and config.out):
            raise UserError("--figures needs --growth and --out")
        return draw_again(config)
    device = pick_device(config)
    rate, _ = limits(device, product_dtype(device))
    torch.manual_seed(0)
    if not config.growth:
        model = (load_model(config.model, device)[0] if config.model
                 else Transformer(SMALL).to(device))
        row = {"model": config.model or "small", "rows": config.rows, "tokens a row": config.tokens}
        return report(
            "training",
            [row | measure(model, config.rows, config.tokens, rate, device, config.repeats)],
            device, config.out)
    table = []
    for name, values in GROWTH.items():
        for value in values:
            model = Transformer(sizes_of(name, value)).to(device)
            rows = value if name == "rows" else 16
            length = value if name == "tokens a row" else 128
            table.append({"varied": name, "value": value}
                         | measure(model, rows, length, rate, device, config.repeats))
    draw(table, config.growth)
    report("growth", table, device, config.out)


if __name__ == "__main__":
    script(main)
