"""Every script, method and loss on a GPU that is not there: no operation mixes devices, and the
waits and kernels of a step are no more than in pretended_gpu.csv.

    python tests/pretended_gpu.py TOOL            status 1, and what went wrong
    python tests/pretended_gpu.py TOOL --write    the numbers that are found become the table
    python tests/pretended_gpu.py TOOL --only "grpo rloo"

TOOL is a Python file that gives PyTorch a CUDA device, computes on the CPU what is done on it, and
counts: `install()`, `PretendedCuda()`, `Counts`, and its variables `root`, `total` and `lines`. It
is not part of this project.

A wait is where the host needs a number from the device, or brings one there: the device is idle
until the host has given it more to do. A kernel is an operation that the host launches. Both are
counted, not timed: with one version of torch they are the same on every machine. "waits" and
"kernels" are those of a run's first step without its sampling, or of evaluate.py's whole work;
"decode_waits" and "decode_kernels" the least from one sampled token to the next. What is sampled
is made a function of the noise, since a token must not depend on a CPU's rounding.
"""
import argparse
import collections
import contextlib
import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLE = Path(__file__).with_suffix(".csv")
NUMBERS = ("waits", "kernels", "decode_waits", "decode_kernels")
FEW = "--steps 2 --save-every 0 --device cuda --overwrite".split()
EVALUATION = "--eval-every 0 --eval-problems 4"
# So many processes share the runs.
PROCESSES = 2
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]
# The built-in tokenizer's stop token.
END = 256


def load_tool(path: str):
    """Before torch, which looks for devices once."""
    spec = importlib.util.spec_from_file_location("pretended_cuda", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.root = ROOT
    tool.install()
    return tool


class Counter:
    """Counts of one run: of its first step, and of its sampling."""

    def __init__(self, tool):
        self.tool = tool
        self.step, self.lines = None, {}
        # Of each rollout, the waits and kernels at each sampled token.
        self.tokens = []

    @contextlib.contextmanager
    def apart(self):
        """What is done inside is counted by itself. -> (its total, its lines)"""
        tool = self.tool
        before = tool.total, tool.lines
        tool.total, tool.lines = tool.Counts(), collections.defaultdict(tool.Counts)
        try:
            yield tool.total, tool.lines
        finally:
            tool.total, tool.lines = before

    def count_generate(self, generate):
        def counted(*arguments, **named):
            with self.apart():
                self.tokens.append([])
                return generate(*arguments, **named)
        return counted

    def count_sample(self, sample):
        def counted(logits, temperature, uniform):
            tokens, logp = sample(logits, temperature, uniform)
            total = self.tool.total
            self.tokens[-1].append((sum(total.waits.values()), total.kernels))
            # Below the pretended device, where nothing is counted: a, b, c, or the end.
            noise = uniform.elem
            letters = 97 + (300 * noise).long() % 3
            tokens.elem.copy_(letters.masked_fill(noise < 0.15, END))
            return tokens, logp
        return counted

    def count_steps(self, steps):
        def counted(run):
            iterator = steps(run)
            first = next(iterator)
            with self.apart() as (total, lines):
                yield first
            self.step, self.lines = total, lines
            yield from iterator
        return counted

    def result(self) -> dict[str, int]:
        steps = [(b[0] - a[0], b[1] - a[1])
                 for rollout in self.tokens for a, b in zip(rollout, rollout[1:])]
        found = {}
        if self.step:
            found |= {"waits": sum(self.step.waits.values()), "kernels": self.step.kernels}
        if steps:
            waits, kernels = zip(*steps)
            found |= {"decode_waits": min(waits), "decode_kernels": min(kernels)}
        return found

    def report(self) -> str:
        """The lines where the step waits, each with the function that main called."""
        waits = {place: sum(counts.waits.values()) for place, counts in self.lines.items()}
        places = sorted((place for place in waits if waits[place]), key=lambda p: -waits[p])
        return "\n".join(f"    {waits[function, line]:3} {line} ({function})"
                         for function, line in places)


def all_runs() -> dict[str, list]:
    """name -> calls of scripts, one after the other: (main, flags)"""
    import evaluate
    from tiny_task import runs_of_all
    runs = {}
    for name, (main, flags) in runs_of_all(EVALUATION).items():
        runs[name] = [(main, [*flags, *FEW, "--out", f"{name} run"])]
    [(grpo, flags)] = runs["grpo grpo"]
    runs["grpo float32"] = [(grpo, [*flags, "--dtype", "float32"])]
    runs["grpo resumed"] = [(grpo, flags), (grpo, [*flags[-2:], "--resume", "--steps", "4"])]
    # The built-in task's model, and an eighth of its answers in as many micro-batches.
    runs["grpo built-in size"] = [(grpo, [
        *FEW, *EVALUATION.split(), "--model", "small", "--prompts-per-step", "4",
        "--micro-batch-tokens", "1024", "--out", "small run"])]
    runs["evaluate"] = [(evaluate.main, "sft --reward reward.py:vowels --device cuda".split())]
    return runs


def run_all(tool, names: list[str]):
    """Yield each run's name, what was counted, its error or "", and the lines that wait most."""
    # Its runs draw no curves and take one thread.
    import conftest  # noqa: F401
    import evaluate
    import rollout
    import torch
    from support.run import Run
    generate, sample, steps = rollout.generate, rollout.sample, Run.steps
    runs = all_runs()
    for name in names:
        counter, error = Counter(tool), ""
        rollout.generate = counter.count_generate(generate)
        rollout.sample = counter.count_sample(sample)
        Run.steps = counter.count_steps(steps)
        silence = io.StringIO()
        # Greedy decoding is given noise of torch's own generator, which it has no use for.
        torch.manual_seed(0)
        try:
            with (contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence),
                  tool.PretendedCuda(), counter.apart() as whole):
                for main, flags in runs[name]:
                    main(flags)
            if main is evaluate.main:
                counter.step, counter.lines = whole
        except Exception:
            error = traceback.format_exc()
        yield name, counter.result(), error, counter.report()


def prepare(place: Path) -> None:
    """The tiny task, a reward model for it, and a model of the built-in task's size."""
    import conftest  # noqa: F401
    import torch
    import train_sft
    from model import ModelConfig, Transformer
    from support.pretrained import save_pretrained
    from support.tokenizer import builtin_tokenizer
    from tiny_task import runs_of_all, write_tiny_task
    with contextlib.redirect_stderr(io.StringIO()), contextlib.chdir(place):
        write_tiny_task(place)
        main, flags = runs_of_all(EVALUATION)["rm"]
        main([*flags, "--out", "rm", "--steps", "1", "--device", "cpu"])
        torch.manual_seed(0)
        tokenizer = builtin_tokenizer()
        small = Transformer(ModelConfig(tokenizer.vocab_size, **train_sft.SMALL))
        save_pretrained(small, tokenizer, "small")


def run_part(arguments) -> None:
    """In a process of its own: a line of JSON for each of --only's runs."""
    tool = load_tool(arguments.tool)
    os.chdir(arguments.place)
    for found in run_all(tool, arguments.only):
        print(json.dumps(found), flush=True)


def run_parts(arguments, names: list[str], place: Path) -> list:
    """What the processes found of their shares of the runs."""
    parts = []
    for i in range(PROCESSES):
        mine = [word for name in names[i::PROCESSES] for word in ("--only", name)]
        if mine:
            parts.append(subprocess.Popen(
                [sys.executable, __file__, arguments.tool, "--place", place, *mine],
                stdout=subprocess.PIPE, text=True))
    found = []
    for part in parts:
        output, _ = part.communicate()
        found += map(json.loads, output.splitlines())
    return found


def compare(name: str, found: dict[str, int], bounds: dict[str, str], lines: str) -> str:
    """What is more than the table says, "" if nothing is."""
    trouble = []
    for number in NUMBERS:
        bound, value = bounds.get(number) or "none", found.get(number, "none")
        if bound == value:
            continue
        if bound == "none" or value == "none" or value > int(bound):
            trouble.append(f"{number}: found {value}, expected at most {bound}")
        elif value < int(bound):
            print(f"{name}: {number} {value}, less than the table's {bound}: --write takes it over")
    if trouble:
        trouble.append(f"where its step waits:\n{lines}")
    return "\n".join(trouble)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("--write", action="store_true", help="make the table anew")
    parser.add_argument("--only", action="append", help="a run's name; several times for several")
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write and arguments.only:
        parser.error("--write makes the whole table, so it goes without --only")
    arguments.tool = str(Path(arguments.tool).resolve())
    if arguments.place:
        return run_part(arguments)

    names = arguments.only or list(all_runs())
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        found = {name: rest for name, *rest in run_parts(arguments, names, Path(folder))}
    bounds = {}
    if TABLE.exists() and not arguments.write:
        with open(TABLE, newline="", encoding="utf-8") as file:
            bounds = {row["run"]: row for row in csv.DictReader(file)}
    failures = 0
    for name in names:
        numbers, error, lines = found.get(name, ({}, "its process ended before it", ""))
        trouble = error
        if not arguments.write and not error:
            trouble = compare(name, numbers, bounds.get(name, {}), lines)
        if trouble:
            failures += 1
            print(f"{name}: failed\n{trouble}\n")
    if arguments.write:
        with open(TABLE, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["run", *NUMBERS], lineterminator="\n")
            writer.writeheader()
            for name in names:
                writer.writerow({"run": name, **found[name][0]})
    print(f"{len(names)} runs on a pretended GPU, {failures} failed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
