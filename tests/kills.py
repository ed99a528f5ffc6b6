"""Kill training at random moments, resume it, and compare with the run that was never stopped: metrics, samples and weights, bit for bit.

    python tests/kills.py                    100 kills (SIGKILL), spread over the five scripts; status 1 if a run differs
    python tests/kills.py --kills 5          the short version that pytest runs

Each run is a fork of this process, which has imported everything and computed nothing: starting one costs no time, so kills fall
into the training, the writing of checkpoints and the saving of the model, not into imports.
"""
import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import matplotlib.pyplot  # noqa: E402, F401  (imported once, not in every fork)
import torch  # noqa: E402

import train_dpo  # noqa: E402
import train_grpo  # noqa: E402
import train_ppo  # noqa: E402
import train_rm  # noqa: E402
import train_sft  # noqa: E402
from conftest import result, write_tiny_task  # noqa: E402

RL = ["--model", "sft", "--data", "sft.jsonl", "--reward", "reward.py:vowels", "--max-new-tokens", "6", "--steps", "6", "--save-every", "1",
      "--eval-every", "2", "--kl-target", "0.5"]
PAIRS = ["--model", "sft", "--data", "pairs.jsonl", "--steps", "8", "--batch-size", "8", "--save-every", "1", "--eval-every", "4"]
RUNS = {"sft": (train_sft, ["--model", "random", "--data", "sft.jsonl", "--steps", "12", "--batch-size", "8", "--save-every", "1"]),
        "rm": (train_rm, PAIRS), "dpo": (train_dpo, PAIRS),
        "grpo": (train_grpo, [*RL, "--prompts-per-step", "4", "--group-size", "4", "--ref-ema", "0.9"]),
        "ppo": (train_ppo, [*RL, "--prompts-per-step", "16"])}


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


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    rng, failed, n_runs = random.Random(arguments.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        finish(start(write_tiny_task, Path(folder)), "the start")
        for i, (name, (script, flags)) in enumerate(RUNS.items()):
            started = time.perf_counter()
            finish(start(script.main, [*flags, "--out", f"whole-{name}"]), name)
            duration, expected = time.perf_counter() - started, result(Path(f"whole-{name}"))
            kills = arguments.kills // len(RUNS) + (i < arguments.kills % len(RUNS))
            while kills:
                shutil.rmtree("cut", ignore_errors=True)
                for _ in range(min(kills, rng.randint(1, 4))):
                    child = start(script.main, ["--out", "cut", *(["--resume"] if Path("cut/config.json").exists() else flags)])
                    time.sleep(rng.uniform(0, duration))
                    os.kill(child, signal.SIGKILL)
                    kills -= os.waitpid(child, 0)[1] == signal.SIGKILL        # 0 if it had finished before
                finish(start(script.main, ["--out", "cut", *(["--resume"] if Path("cut/config.json").exists() else flags)]), f"{name}, resumed")
                n_runs += 1
                differ = [part for part, value in result(Path("cut")).items() if value != expected[part]]
                if differ:
                    failed += 1
                    print(f"{name}: {', '.join(differ)} differ from the run that was never stopped")
        os.chdir("/")
    print(f"{arguments.kills} kills in {n_runs} runs of {len(RUNS)} scripts: {failed} runs differ, all could be resumed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
