"""What to run on the day that a GPU is there: is the code right on it, how fast is it, what fits.

    python benchmarks/gpu_day.py                         all sections, in this order
    python benchmarks/gpu_day.py parity logp             these two
    python benchmarks/gpu_day.py --tiny --device cpu     a rehearsal with small sizes, without a GPU

Every check prints one line of JSON, `--out FILE` keeps them as well, and one that fails costs no
other; its traceback goes to stderr. Where there is a right result a line says whether it was met:
"ok". Minutes are estimates for one H100, made without one.

    parity   4   Every script, method and loss: a float32 run on the GPU has the metrics of the
                 CPU's to 1e-3, and in bfloat16 all are finite. A column that is further off is
                 named: look for what computes it. A sampled token that rounding turned into
                 another shows as an error of many columns from some step on, in one run only.
    logp     1   Log-probs and their gradient against float64 on the CPU, and the sampler's against
                 the scorer's. If float32 is off, products are not in float32 (TF32); if only the
                 sampler is, look at the KV cache or the decoder.
    resume   1   Two steps and two more against four, in weights. "repeated" is the same run twice:
                 if that isn't 0 either, a kernel is not deterministic. Rows are short here; those
                 of over some 100 tokens may differ, by attention's backward pass.
    learn    5   The README's first command from an empty directory, and what evaluate.py says of
                 it: 0.97 greedy and 0.93 sampled, as on a CPU, within the seeds' spread (0.05).
    profile  5   A decode step and a micro-batch: seconds against the limit of bench.py, launches,
                 waits, the share of the time in which the GPU is busy, the longest kernels. With
                 busy under 0.5 the launches cost more than the work: fuse, compile or capture.
                 With busy near 1 and far from the limit, the longest kernels are what to change.
    sweep    3   rollout.LOGITS_AT_ONCE and the size of a micro-batch: seconds and memory. The
                 defaults should be the smallest that are within 3 % of the fastest.
    memory   4   A whole GRPO step of real sizes, random weights: what a README may promise of a
                 GPU. What is over "states" (weights, gradients, Adam's moments, the reference and
                 the sampler's copy) is activations and the cache: --micro-batch-tokens.
    graphs   2   --decode-graph against plain decoding: in float32 the same tokens and log-probs;
                 and milliseconds of a token, in the default dtype. Where it is faster and right,
                 it should be the default on a GPU. It comes last: after an access to memory that
                 isn't there, CUDA refuses all that follows in the process.

A further section is a function of a Day, in SECTIONS: it gives Day.check functions that return a
dict. `Work` and `measure` time a rollout, a micro-batch, or what does the same another way.
"""
import contextlib
import copy
import gc
import io
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from unittest import mock

from bench import decode_limit, interleaved, limits, product_dtype, training_limit

# A directory of the tests, for the tiny task.
sys.path.append(str(Path(__file__).parent.parent / "tests"))

import torch

import rollout
import train_grpo
from model import ModelConfig, Transformer
from rollout import generate, token_log_probs, token_log_probs_and_entropies
from support.cli import RunConfig, UserError, parse, script, setting, user_errors
from support.decoding import Decoder
from support.graphs import GraphDecoder
from support.memory import logits_of_a_chunk
from support.models import peak_memory_mb, pick_device
from support.plot import read_metrics
from support.pretrained import load_pretrained, save_pretrained
from support.tokenizer import builtin_tokenizer
from tiny_task import MEASURED, runs_of_all, write_tiny_task
from train_sft import SMALL

ROOT = Path(__file__).parent.parent
# Shares of a few pairs or tokens: rounding may tip one of them.
TIPPED = {"accuracy", "clip_fraction", "value_clip_fraction", "eval_accuracy"}
FEW = "--steps 3 --micro-batch-tokens 128".split()
RUNS = runs_of_all("--eval-every 2 --eval-problems 8")
# Largest errors of log-probs, in nats, and of their gradient, relative.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
# Tokens of an answer: the profiler takes a minute and 5 GB for 200 000 events.
PROFILED = 64


@dataclass(kw_only=True)
class Config:
    device: str = setting("cuda", "the GPU, or cpu for a rehearsal")
    tiny: bool = setting(False, "small sizes: a rehearsal")
    out: str = setting("", "a file to which the lines of JSON are added as well")
    folder: str = setting("", "for models and runs; a temporary directory if not given")


@dataclass
class Shape:
    """A model's sizes, and a rollout for it: rows, tokens of a prompt and of an answer."""
    model: ModelConfig
    rows: int
    prompt: int
    answer: int


SHAPES = {
    "built-in": Shape(
        ModelConfig(builtin_tokenizer().vocab_size, **SMALL), rows=256, prompt=10, answer=32),
    "SmolLM2-135M": Shape(
        ModelConfig(49152, 576, 30, 9, 3, 1536), rows=256, prompt=64, answer=256),
    "Qwen2.5-0.5B": Shape(
        ModelConfig(151936, 896, 24, 14, 2, 4864, qkv_bias=True), rows=256, prompt=128, answer=256),
    "Qwen2.5-1.5B": Shape(
        ModelConfig(151936, 1536, 28, 12, 2, 8960, qkv_bias=True), rows=256, prompt=128, answer=128)
}
TINY = {"tiny": Shape(ModelConfig(300, 32, 2, 4, 2, 64, 128), rows=16, prompt=8, answer=8)}


class Day:
    """Where checks run, and what they found: a line of JSON each."""

    def __init__(self, config, folder: Path):
        self.config = config
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.device = pick_device(RunConfig(device=config.device))
        self.shapes = TINY if config.tiny else SHAPES
        # Of a micro-batch: the scripts' own default, unless small.
        self.tokens = 512 if config.tiny else RunConfig().micro_batch_tokens
        self.lines = []

    def check(self, name: str, function, *arguments) -> None:
        """Say what the function, which returns a dict or None, finds or how it fails."""
        started = time.perf_counter()
        try:
            found = function(*arguments) or {}
        except Exception as error:
            traceback.print_exc()
            found = {"ok": False, "error": repr(error)[:500]}
        line = {"check": name}
        for key, value in found.items():
            line[key] = float(f"{value:.4g}") if isinstance(value, float) else value
        line["took_s"] = round(time.perf_counter() - started, 1)
        self.lines.append(line)
        print(json.dumps(line), flush=True)
        if self.config.out:
            with open(self.config.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self.device.type == "cuda":
            # What this check held would be missing to the next one.
            gc.collect()
            torch.cuda.empty_cache()

    def use(self, dtype: str) -> torch.device:
        """The device, with autocast as a script with --dtype has it; "" is a script's default."""
        return pick_device(RunConfig(device=self.config.device, dtype=dtype))

    def place(self) -> Path:
        """The directory with the tiny task in it, and a reward model for it in `rm`."""
        place = self.folder / "place"
        if not place.exists():
            unfinished = make_empty(self.folder / "place.unfinished")
            with quietly():
                write_tiny_task(unfinished)
            with contextlib.chdir(unfinished):
                main, flags = RUNS["rm"]
                train(main, flags, "rm", "--steps", "2", "--device", "cpu")
            unfinished.rename(place)
        return place


def make_empty(folder: Path) -> Path:
    """A new folder, in the place of what an earlier day left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@contextlib.contextmanager
def quietly():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def train(main, flags: list[str], out: str, *more: str) -> list[dict[str, str]]:
    """Run a script's main. -> the rows of its metrics.csv"""
    with quietly():
        main([*flags, "--out", out, "--overwrite", *more])
    return read_metrics(Path(out))


# ------------------------------------------------------------------------------------ is it right

def parity(day: Day) -> None:
    for name, (main, flags) in RUNS.items():
        day.check(f"parity: {name}", compare_devices, day, name, main, flags)


def compare_devices(day: Day, name: str, main, flags: list[str]) -> dict:
    """A float32 run on the CPU and on the device, and one in bfloat16, which must be finite."""
    rows = {}
    with contextlib.chdir(day.place()):
        for device, dtype in (("cpu", "float32"), (day.config.device, "float32"),
                              (day.config.device, "bfloat16")):
            out = f"{name} {len(rows)}".replace(" ", "_")
            rows[len(rows)] = train(main, [*flags, *FEW], out, "--device", device, "--dtype", dtype)
    column, relative = largest_difference(rows[0], rows[1])
    numbers = [float(text) for row in rows[2] for text in row.values() if text]
    finite = all(map(math.isfinite, numbers))
    return {"ok": relative < 1e-3 and finite, "furthest": column, "relative": relative,
            "bfloat16_is_finite": finite}


def largest_difference(expected: list[dict], found: list[dict]) -> tuple[str, float]:
    """-> the column of the metrics that differs most, and by how much of itself or of 0.01."""
    furthest, largest = "", 0.0
    for a, b in zip(expected, found, strict=True):
        for column in a.keys() - MEASURED - TIPPED:
            if a[column] == b[column]:
                continue
            x, y = float(a[column]), float(b[column])
            relative = abs(x - y) / max(abs(x), 0.01)
            # nan is no smaller than anything.
            if not relative <= largest:
                furthest, largest = column, relative
    return furthest, largest


def logp(day: Day) -> None:
    for name in list(day.shapes)[:2]:
        shape = day.shapes[name]
        for dtype, n_chunks in itertools.product(("float32", "bfloat16"), (1, 4)):
            day.check(f"logp: {name}, {dtype}, {n_chunks} chunks", compare_log_probs, day, shape,
                      dtype, n_chunks)


def compare_log_probs(day: Day, shape: Shape, dtype: str, n_chunks: int) -> dict:
    """Log-probs and gradient on the device against float64 on the CPU; the sampler's log-probs
    against the scorer's."""
    device = day.use(dtype)
    model = new_model(shape, device)
    exact = copy.deepcopy(model).cpu().double()
    rows, P, N = 4, 20, 40
    tokens = torch.randint(shape.model.vocab_size, (rows, P + N))
    mask = (torch.arange(P + N) >= P).expand(tokens.shape)
    expected = token_log_probs(exact, tokens, mask)
    expected.sum().backward()
    with logits_at_once(-(-rows * N // n_chunks) * shape.model.vocab_size):
        found = token_log_probs(model, tokens.to(device), mask.to(device))
        found.sum().backward()
    sampled = generate(Decoder(model), [row[:P].tolist() for row in tokens], N, [], 1.0,
                       torch.Generator().manual_seed(0))
    with torch.no_grad():
        scored = token_log_probs(model, sampled.tokens, sampled.mask)
    gradient, expected_gradient = flat_gradient(model), flat_gradient(exact)
    errors = {
        "logp_error": (found.cpu() - expected).abs().max().item(),
        "gradient_error": ((gradient - expected_gradient).norm()
                           / expected_gradient.norm()).item(),
        "sampler_against_scorer": (scored - sampled.logp).abs().max().item()}
    return {"ok": max(errors.values()) < TOLERANCE[dtype], **errors}


def logits_at_once(n: int):
    """On the CPU and on a GPU."""
    return mock.patch.multiple(rollout, LOGITS_AT_ONCE=n, LOGITS_AT_ONCE_GPU=n)


def flat_gradient(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten().cpu().double() for p in model.parameters()])


def resume(day: Day) -> None:
    day.check("resume", compare_resumed, day)


def compare_resumed(day: Day) -> dict:
    """The largest difference of a weight: of two steps and two more to four steps, and of four
    steps to four steps."""
    main, flags = RUNS["grpo grpo"]
    flags = [*flags, "--save-every", "1", "--device", day.config.device]
    with contextlib.chdir(day.place()):
        for out, steps in (("four", "4"), ("again", "4"), ("two", "2")):
            train(main, flags, out, "--steps", steps)
        with quietly():
            main(["--out", "two", "--resume", "--steps", "4"])
        four, again, resumed = (load_pretrained(f"{out}/model", torch.float32)[0].state_dict()
                                for out in ("four", "again", "two"))
    difference = lambda a, b: max((a[key] - b[key]).abs().max().item() for key in a)
    return {"ok": difference(four, resumed) == 0, "resumed": difference(four, resumed),
            "repeated": difference(four, again)}


def learn(day: Day) -> None:
    day.check("learn", learn_from_nothing, day)


def learn_from_nothing(day: Day) -> dict:
    """`python train_grpo.py`, and what evaluate.py says of the run."""
    folder = make_empty(day.folder / "learn")
    small = []
    if day.config.tiny:
        small = ["--model", str(day.place() / "sft"), "--steps", "2", "--eval-problems", "8"]
    device = ["--device", day.config.device]
    started = time.perf_counter()
    run_script(folder, "train_grpo.py", *small, *device)
    minutes = (time.perf_counter() - started) / 60
    evaluated = run_script(folder, "evaluate.py", "runs/grpo", "--json", *device)
    seconds = [float(row["seconds"]) for row in read_metrics(folder / "runs/grpo")]
    return {"minutes": minutes, "step_seconds": median(seconds), **json.loads(evaluated)}


def run_script(folder: Path, name: str, *flags: str) -> str:
    """-> what it prints. RuntimeError with the end of its stderr if it fails."""
    done = subprocess.run([sys.executable, ROOT / name, *flags], cwd=folder, capture_output=True,
                          text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[-400:]}")
    return done.stdout


# ---------------------------------------------------------------------------------- how fast is it

def new_model(shape: Shape, device) -> Transformer:
    torch.manual_seed(0)
    with device:
        return Transformer(shape.model).to(device)


class Work:
    """A rollout and a micro-batch of `tokens` tokens of one shape, as functions to be timed."""

    def __init__(self, shape: Shape, device, tokens: int):
        self.shape = shape
        self.model = new_model(shape, device)
        length = shape.prompt + shape.answer
        rows = max(1, tokens // length)
        ids = torch.randint(shape.model.vocab_size, (shape.rows, shape.prompt))
        self.prompts = ids.tolist()
        self.tokens = torch.randint(shape.model.vocab_size, (rows, length)).to(device)
        self.mask = (torch.arange(length, device=device) >= shape.prompt).expand(rows, length)

    def sample(self, decoder=Decoder, temperature: float = 1.0):
        """Answers of full length to all prompts."""
        return generate(decoder(self.model), self.prompts, self.shape.answer, [], temperature,
                        torch.Generator().manual_seed(0))

    def learn(self) -> None:
        logp, _ = token_log_probs_and_entropies(self.model, self.tokens, self.mask)
        logp.sum().backward()
        self.model.zero_grad()


def graphs(day: Day) -> dict | None:
    if day.device.type != "cuda":
        return {"left_out": "there are no graphs without a GPU"}
    for name, shape in day.shapes.items():
        day.check(f"graphs: {name}", compare_graphs, day, shape)


def compare_graphs(day: Day, shape: Shape) -> dict:
    """The share of tokens before a row first differs, which rounding may tip; log-probs of those;
    milliseconds of a token with graphs and without."""
    exact = Work(shape, day.use("float32"), day.tokens)
    # Greedy: of tokens that are drawn from 150 000, rounding tips one in 300.
    plain, found = (exact.sample(decoder, temperature=0) for decoder in (Decoder, GraphDecoder))
    same = (plain.tokens == found.tokens).cummin(1).values
    error = (plain.logp - found.logp)[same].abs().max().item()
    share = same.float().mean().item()
    work = Work(shape, day.use(""), day.tokens)
    seconds = interleaved({"ms": work.sample, "ms_graphs": lambda: work.sample(GraphDecoder)},
                          day.device, repeats=3)
    return {"ok": share > 0.9 and error < TOLERANCE["float32"], "same": share, "logp_error": error,
            **{name: 1e3 * median(times) / shape.answer for name, times in seconds.items()}}


def profile(day: Day) -> None:
    device = day.use("")
    rate, bandwidth = limits(device, product_dtype(device))
    for name, shape in day.shapes.items():
        for part in ("decode step", "micro-batch"):
            day.check(f"profile: {name}, {part}", profile_part, shape, part, device, day.tokens,
                      rate, bandwidth)


def profile_part(shape: Shape, part: str, device, tokens: int, rate: float,
                 bandwidth: float) -> dict:
    work = Work(shape, device, tokens)
    if part == "decode step":
        limit = decode_limit(work.model, [shape.prompt] * shape.rows, [shape.answer] * shape.rows,
                             product_dtype(device).itemsize, rate, bandwidth)
        brief = copy.copy(work)
        brief.shape = replace(shape, answer=min(shape.answer, PROFILED))
        return measure(work.sample, device, limit, shape.answer, shape.rows * shape.answer,
                       brief.sample, brief.shape.answer)
    n_tokens = work.tokens.numel()
    limit = training_limit(work.model, n_tokens, int(work.mask.sum()), work.tokens.shape[1], rate)
    return measure(work.learn, device, limit, 1, n_tokens, work.learn, 1)


def measure(function, device, limit: float, n_parts: int, n_tokens: int, profiled,
            n_profiled: int) -> dict:
    """Of a call that takes `limit` seconds at least, and goes over n_tokens tokens in n_parts equal
    parts: milliseconds, launches and waits are a part's.

    profiled: does n_profiled such parts."""
    seconds, peak = timed(function, device)
    profiled_seconds, _ = timed(profiled, device)
    with torch.profiler.profile(activities=torch.profiler.supported_activities()) as profiler:
        profiled()
        if device.type == "cuda":
            torch.cuda.synchronize()
    events = profiler.key_averages()
    # The operations that launched them have the same time once more.
    kernels = [event for event in events if event.device_type != torch.autograd.DeviceType.CPU]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    count = lambda *names: sum(event.count for event in events
                               if any(name in event.key for name in names))
    busy = sum(event.self_device_time_total for event in kernels) / 1e6
    return {"ms": 1e3 * seconds / n_parts,
            "of_the_limit": limit / seconds,
            "tokens_per_s": n_tokens / seconds,
            "launches": count("LaunchKernel", "GraphLaunch") / n_profiled,
            "waits": count("StreamSynchronize") / n_profiled,
            "busy": busy / profiled_seconds,
            "peak_gib": peak,
            "longest_ms": {event.key[:60]: round(event.self_device_time_total / 1e3 / n_profiled, 3)
                           for event in kernels[:6]}}


def timed(function, device) -> tuple[float, float]:
    """-> seconds of a call, the median of three; the memory that it needs at most, in GiB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = interleaved({"": function}, device, repeats=3)[""]
    return median(seconds), peak_memory_mb(device) / 1024


def sweep(day: Day) -> None:
    device = day.use("")
    # With few words a batch's logits are few: the built-in model's chunks are all one.
    for name, shape in list(day.shapes.items())[-3:]:
        for power in (22, 24, 26, 28, 30):
            day.check(f"sweep: {name}, LOGITS_AT_ONCE = 2 ** {power}", time_micro_batch, shape,
                      device, day.tokens, 2 ** power)
        for times in (0.25, 0.5, 1, 2, 4, 8):
            tokens = int(times * day.tokens)
            day.check(f"sweep: {name}, micro-batches of {tokens}", time_micro_batch, shape, device,
                      tokens, logits_of_a_chunk(device.type))


def time_micro_batch(shape: Shape, device, tokens: int, at_once: int) -> dict:
    work = Work(shape, device, tokens)
    with logits_at_once(at_once):
        seconds, peak = timed(work.learn, device)
    return {"ms": 1e3 * seconds, "tokens_per_s": work.tokens.numel() / seconds, "peak_gib": peak}


# -------------------------------------------------------------------------------------- what fits

def memory(day: Day) -> None:
    for name, shape in day.shapes.items():
        day.check(f"memory: {name}", take_steps, day, name, shape)


def take_steps(day: Day, name: str, shape: Shape) -> dict:
    """Two steps of train_grpo.py on a model with random weights: what the second one took."""
    # Of the built-in tokenizer, each digit is a token.
    rows = [{"prompt": f"{i:0{shape.prompt}}", "answer": i} for i in range(400)]
    lines = "\n".join(map(json.dumps, rows))
    n_parameters = sum(p.numel() for p in new_model(shape, torch.device("meta")).parameters())
    with contextlib.chdir(day.folder):
        Path("prompts.jsonl").write_text(lines)
        save_pretrained(new_model(shape, torch.device("cpu")), builtin_tokenizer(), name)
        if day.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        flags = ["--model", name, "--data", "prompts.jsonl", "--reward", "exact",
                 "--steps", "2", "--eval-every", "0", "--eval-problems", "8", "--save-every", "0",
                 "--prompts-per-step", str(shape.rows // 8), "--minibatches", "1",
                 "--max-new-tokens", str(shape.answer), "--device", day.config.device]
        row = train(train_grpo.main, flags, "steps")[-1]
        # Of the largest model they are 50 GB.
        shutil.rmtree(name)
        shutil.rmtree("steps")
    found = {column: float(row[column])
             for column in ("seconds", "tokens_per_second", "response_length")}
    # Weights, gradients and two moments in float32; two copies in bfloat16.
    return {**found, "peak_gib": float(row["peak_memory_mb"]) / 1024,
            "states_gib": n_parameters * (4 * 4 + 2 * 2) / 2 ** 30}


SECTIONS = {section.__name__: section
            for section in (parity, logp, resume, learn, profile, sweep, memory, graphs)}


def main(argv=None) -> list[dict]:
    """-> the lines."""
    argv = sys.argv[1:] if argv is None else argv
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    config = parse(Config, __doc__, argv[len(names):])
    for name in names:
        if name not in SECTIONS:
            raise UserError(f"section {name}: expected some of {', '.join(SECTIONS)}")
    with tempfile.TemporaryDirectory() as temporary:
        with user_errors():
            day = Day(config, Path(config.folder or temporary).resolve())
        day.check("machine", describe, day)
        for name in names or SECTIONS:
            day.check(f"{name}: all", SECTIONS[name], day)
    return day.lines


def describe(day: Day) -> dict:
    name = "CPU"
    if day.device.type == "cuda":
        name = torch.cuda.get_device_name()
    return {"device": name, "torch": torch.__version__, "cores": os.cpu_count()}


if __name__ == "__main__":
    script(main)
