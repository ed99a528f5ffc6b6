"""Kill training at random moments, resume it, and compare with the run that was never stopped:
metrics, samples and weights, bit for bit.

    python tests/kills.py              100 kills (SIGKILL), over all scripts; status 1 if a run
                                       differs
    python tests/kills.py --kills 5    the short version that pytest runs

Half of the kills fall into a finished run that is extended (--resume --steps M), whose old model/
is still there.

Each run is a fork of this process, which has imported everything and computed nothing: starting one
costs no time, so kills fall into the training, the writing of checkpoints and the saving of the
model, not into imports.
"""
import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import torch  # noqa: E402

import train_dpo  # noqa: E402
import train_grpo  # noqa: E402
import train_ppo  # noqa: E402
import train_rm  # noqa: E402
import train_sft  # noqa: E402
from conftest import result  # noqa: E402
from tiny_task import write_tiny_task  # noqa: E402

RL = ["--model", "sft", "--data", "sft.jsonl", "--reward", "reward.py:vowels",
      "--max-new-tokens", "6", "--steps", "6", "--save-every", "1", "--eval-every", "2",
      "--kl-target", "0.5"]
PAIRS = ["--model", "sft", "--steps", "8", "--batch-size", "8", "--save-every", "1",
         "--eval-every", "4"]
DATA = ["--data", "pairs.jsonl"]
RUNS = {
    "sft": (train_sft, ["--model", "random", "--data", "sft.jsonl", "--steps", "12",
                        "--batch-size", "8", "--save-every", "1"]),
    "rm": (train_rm, [*PAIRS, *DATA]),
    "dpo": (train_dpo, [*PAIRS, *DATA]),
    "grpo": (train_grpo, [*RL, "--prompts-per-step", "4", "--group-size", "4",
                          "--ref-ema", "0.9"]),
    "ppo": (train_ppo, [*RL, "--prompts-per-step", "16"]),
    "rm on sampled pairs": (train_rm, [*PAIRS, "--pairs", "40", "--eval-problems", "8"]),
}


def sample_pairs(policy, tokenizer, n, seed, max_new_tokens, held_out=False, micro_batch_tokens=0):
    """In place of train_rm's: the tiny model is never right."""
    pairs = []
    for i in range(n):
        answers = [tokenizer.encode(f"{i}{last}") + [tokenizer.eos_id] for last in ("a", "b")]
        prompt = tokenizer.encode(f"{i}+{int(held_out)}=")
        pairs.append({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]})
    return pairs


def start(function, *arguments) -> int:
    """Run function(*arguments) in a fork. -> its process id"""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        silent = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        torch.set_num_threads(1)
        function(*arguments)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def finish(child: int, what: str) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise SystemExit(f"{what}: ended with status {status}:\n{Path('log.txt').read_text()}")


def whole_run(script, flags: list[str], name: str) -> tuple[float, dict]:
    """A run, or the extension of one, that nothing happens to. -> seconds, result"""
    started = time.perf_counter()
    finish(start(script.main, ["--out", "whole", *flags]), name)
    return time.perf_counter() - started, result(Path("whole"))


def steps(flags: list[str]) -> int:
    return int(flags[flags.index("--steps") + 1])


def go_on(flags: list[str]) -> list[str]:
    """What the next process is given: plain --resume as soon as config.json has the steps."""
    settings = Path("cut/config.json")
    begun = settings.exists() and json.loads(settings.read_text())["steps"] == steps(flags)
    return ["--resume"] if begun else flags


def cut(script, flags: list[str], n: int, duration: float, rng) -> int:
    """Kill a run n times. -> how many times that was before its end"""
    killed = 0
    for _ in range(n):
        child = start(script.main, ["--out", "cut", *go_on(flags)])
        time.sleep(rng.uniform(0, duration))
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
    return killed


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    rng, failed, n_runs = random.Random(arguments.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        finish(start(write_tiny_task, Path(folder)), "the start")
        train_rm.sample_pairs = sample_pairs
        for i, (name, (script, flags)) in enumerate(RUNS.items()):
            kills = arguments.kills // len(RUNS) + (i < arguments.kills % len(RUNS))
            if not kills:
                continue
            more = ["--resume", "--steps", str(steps(flags) + 3)]
            whole = [whole_run(script, flags, name), whole_run(script, more, name)]
            while kills:
                n = min(kills, rng.randint(1, 4))
                first = rng.randint(0, n)
                for what, count, (seconds, expected) in zip(
                        (flags, more), (first, n - first), whole):
                    kills -= cut(script, what, count, seconds, rng)
                    finish(start(script.main, ["--out", "cut", *go_on(what)]),
                           f"{name}, resumed")
                    found = result(Path("cut"))
                    differ = [part for part, value in found.items() if value != expected[part]]
                    if differ:
                        failed += 1
                        print(f"{name}: {', '.join(differ)} differ from the unstopped run")
                n_runs += 1
                shutil.rmtree("cut")
            shutil.rmtree("whole")
        os.chdir("/")
    print(f"{arguments.kills} kills in {n_runs} runs and their extensions: {failed} runs differ, "
          "all could be resumed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
