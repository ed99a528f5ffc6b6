"""Does a model fit into memory, and with which flags?

    python evaluate.py MODEL --plan --prompt-tokens 256 --max-new-tokens 512

MODEL is a run, or a model directory of which config.json is enough. It prints what each script
holds, when, and what fits into which card. The arithmetic is support/memory.py.
"""
from dataclasses import replace

from support.cli import UserError, parse, user_errors
from support.memory import ALGORITHMS, PHASES, SAMPLING, UPDATE, Config, Plan, Sizes
from support.pretrained import read_config
from support.run import find_model

CARDS = (16, 24, 48, 80)                # GB of 10^9 bytes
LEGEND = """\
8192: --micro-batch-tokens 8192; gc: with --grad-checkpoint; 64 rows: so many answers per step.
A tenth of the peak is left free, and 1 GB for the GPU's context. No GPU has confirmed this yet."""


def table(sizes: Sizes, config: Config) -> list[str]:
    """A line for each term, each phase and the peak, in MB as peak_memory_mb is logged: 2^20."""
    plans = [Plan(sizes, config, algorithm) for algorithm in ALGORITHMS]

    def line(name: str, amounts, held: str = "") -> str:
        cells = [f"{nbytes / 2 ** 20:9,.0f}" if nbytes else f"{'-':>9}" for nbytes in amounts]
        return f"{name:28}{''.join(cells)}   {held}".rstrip()

    lines = [f"{'MB':28}" + "".join(f"{name:>9}" for name in ALGORITHMS) + "   held"]
    for name in dict.fromkeys(name for plan in plans for name in plan.terms):
        found = [plan.terms.get(name, (0, ())) for plan in plans]
        phases = max((phases for _, phases in found), key=len)
        held = {PHASES: "always", UPDATE: "update"}.get(phases, ", ".join(phases))
        lines.append(line(name, [nbytes for nbytes, _ in found], held))
    lines.append("")
    for phase in PHASES:
        lines.append(line(phase, [plan.phase(phase) for plan in plans]))
    return [*lines, line("peak: the largest of them", [plan.peak() for plan in plans])]


def fit(sizes: Sizes, config: Config, algorithm: str, card: int) -> str:
    """The first flags with which `card` GB are enough, or "no": the fewest rows last, before that
    --grad-checkpoint, before that smaller micro-batches."""
    for part in (1, 4, 16) if algorithm in SAMPLING else (1,):
        for grad_checkpoint in (False, True):
            for size in (8192, 4096, 2048, 1024):
                rows = max(1, config.rows // part)
                tried = replace(config, rows=rows, grad_checkpoint=grad_checkpoint,
                                micro_batch_tokens=size)
                if 1.1 * Plan(sizes, tried, algorithm).peak() + 1e9 <= card * 1e9:
                    fewer = "" if part == 1 else f", {rows} rows"
                    return f"{size}{' gc' if grad_checkpoint else ''}{fewer}"
    return "no"


def fit_table(sizes: Sizes, config: Config) -> list[str]:
    """A line for each card, a column for each algorithm."""
    lines = [f"{'fits into':9}" + "".join(f"{name:>17}" for name in ALGORITHMS)]
    for card in CARDS:
        cells = [f"{fit(sizes, config, algorithm, card):>17}" for algorithm in ALGORITHMS]
        lines.append(f"{card:6} GB" + "".join(cells))
    return lines


def main(path: str, argv: list[str]) -> None:
    config = parse(Config, __doc__, argv)
    with user_errors():
        model = read_config(find_model(path) / "config.json")
    length = config.prompt_tokens + config.max_new_tokens
    if length > model.max_seq_len:
        raise UserError(f"--prompt-tokens {config.prompt_tokens} and --max-new-tokens "
                        f"{config.max_new_tokens}: {length} tokens, expected at most the "
                        f"model's context of {model.max_seq_len}")
    sizes = Sizes(model)
    print("\n".join([*table(sizes, config), "", *fit_table(sizes, config), "", LEGEND]))
