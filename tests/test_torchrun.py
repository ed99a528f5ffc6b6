"""torchrun: two processes give the numbers of one and stop together; when one dies the other says
so, and the run can be resumed."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train_dpo
import train_grpo
import train_ppo
import train_rm
import train_sft
from conftest import write_chats
from kills import sample_pairs
from model import ScalarModel
from support import plot, rl
from support import run as run_module
from support.cli import RunConfig, UserError, script
from support.parallel import rank, world
from support.plot import read_metrics
from support.pretrained import load_pretrained, load_scalar_model, save_pretrained
from support.run import ensure_trained
from tiny_task import MEASURED

COMMON = ["--steps", "3", "--eval-every", "2", "--micro-batch-tokens", "40"]
SAMPLED = [
    "--model", "sft", "--data", "sft.jsonl", "--max-new-tokens", "6", "--kl-target", "0.5",
    "--steps", "3", "--micro-batch-tokens", "40"]
RL = [*SAMPLED, "--eval-every", "2", "--reward", "reward.py:vowels"]
SCORED = [*SAMPLED, "--reward-model", "scores"]
PAIRS = [*COMMON, "--model", "sft", "--data", "pairs.jsonl", "--batch-size", "5"]
SFT = [*COMMON, "--model", "random", "--data", "sft.jsonl"]
RUNS = {
    "sft": (train_sft, [*SFT, "--batch-size", "5"]),
    # No row for the second process.
    "sft_idle": (train_sft, [*SFT, "--batch-size", "1", "--eval-problems", "1"]),
    "rm_sampled": (train_rm, [
        *COMMON, "--model", "sft", "--batch-size", "5", "--pairs", "12", "--eval-problems", "4"]),
    "rm": (train_rm, PAIRS),
    "dpo": (train_dpo, PAIRS),
    "kto": (train_dpo, [*PAIRS, "--loss", "kto"]),
    "ppo": (train_ppo, [*RL, "--prompts-per-step", "7", "--critic-warmup", "1"]),
    "grpo": (train_grpo, [
        *RL, "--prompts-per-step", "3", "--group-size", "5", "--minibatches", "1",
        "--epochs", "2"]),
    "ppo_scored": (train_ppo, [*SCORED, "--prompts-per-step", "7", "--critic-warmup", "1"]),
    "grpo_scored": (train_grpo, [*SCORED, "--prompts-per-step", "3", "--group-size", "5"]),
    # The second mini-batch has one row. Evaluations have one problem.
    "dapo_idle": (train_grpo, [
        *RL, "--method", "dapo", "--prompts-per-step", "1", "--group-size", "3",
        "--kl-coef", "0.01", "--eval-problems", "1"]),
    # The environment is asked in each process, for its own rows.
    "grpo_asks": (train_grpo, [
        *SAMPLED, "--model", "chat", "--data", "chats.jsonl", "--environment", "world.py:echo",
        "--reward", "world.py:score", "--prompts-per-step", "3", "--group-size", "5",
        "--max-new-tokens", "40", "--eval-every", "2"]),
    # One prompt has one greedy answer.
    "remax_idle": (train_grpo, [
        *RL, "--method", "remax", "--prompts-per-step", "1", "--group-size", "3"])}


def train(name, out, *more):
    RUNS[name][0].main([*RUNS[name][1], "--out", str(out / name), *more])


def in_step(n, action):
    """Do `action` in the second process when the n-th step of GRPO begins."""
    sample_answers, steps = train_grpo.sample_answers, []

    def counted(*arguments):
        steps.append(rank())
        if steps == [1] * n:
            action()
        return sample_answers(*arguments)
    train_grpo.sample_answers = counted


# ----------------------------------------------------------------------------- what torchrun starts

def rm_on_sampled_pairs_goes_on(out):
    train_rm.main(["--out", str(out / "rm_sampled"), "--resume", "--steps", "4"])


def all_runs(out):
    """RUNS; one that a signal to the second process ends, resumed; one that another run needs; one
    with a wrong reward function."""
    assert world() == 2

    def never(prompts, completions, **columns):
        raise AssertionError("rewards may cost, or be random: they are the first process's")
    if rank() == 1:
        rl.load_reward = lambda *arguments: never
        run_module.digest = run_module.lock = never
    for name in RUNS:
        train(name, out)
    rm_on_sampled_pairs_goes_on(out)
    in_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(UserError, match="interrupted after step 2 and saved"):
        train("grpo", out / "stopped")
    train_grpo.main(["--out", str(out / "stopped" / "grpo"), "--resume"])
    load_pretrained(Path(ensure_trained(
        str(out / "trained" / "sft"), lambda argv: train_sft.main([*RUNS["sft"][1], *argv]),
        RunConfig())) / "model")
    train("grpo", out / "wrong", "--reward", "reward.py:too_few")


def kill_one(out):
    in_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL))
    train("grpo", out, "--save-every", "1")


if __name__ == "__main__":
    plot.draw_curves = lambda *arguments: None
    train_rm.sample_pairs = sample_pairs
    script(lambda: globals()[sys.argv[1]](Path(sys.argv[2])))


# ------------------------------------------------------------------------------- what must come out

@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(plot, "draw_curves", lambda *arguments: None)
    monkeypatch.setattr(train_rm, "sample_pairs", sample_pairs)
    if not Path("chat").exists():
        write_chats(place, place)
    if not Path("scores").exists():
        policy, tokenizer = load_pretrained("sft/model")
        scores = ScalarModel(policy)
        torch.nn.init.normal_(scores.score.weight)
        save_pretrained(scores, tokenizer, "scores")


def torchrun(function, out):
    """-> the lines with an error in what two processes print"""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         __file__, function.__name__, str(out)],
        capture_output=True, text=True, timeout=120,
        env={
            **os.environ, "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parent.parent)})
    assert done.returncode == 1
    return [line for line in done.stderr.splitlines() if "test_torchrun.py: error: " in line]


def assert_same(one, two):
    """Metrics without what was measured, and weights, to rounding."""
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    for row, other in zip(read_metrics(one), read_metrics(two), strict=True):
        a, b = (
            {k: float(v) for k, v in r.items() if v and k not in MEASURED}
            for r in (row, other))
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    load = load_scalar_model if one.name.startswith("rm") else load_pretrained
    weights, others = (load(run / "model")[0].state_dict() for run in (one, two))
    torch.testing.assert_close(weights, others, rtol=0, atol=1e-5)


def test_two_processes_give_the_numbers_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    errors = torchrun(all_runs, two)
    assert len(errors) == 1 and (
        "the reward function too_few gave 1 values for 6 answers" in errors[0])
    for name in RUNS:
        train(name, one)
        if name == "rm_sampled":
            rm_on_sampled_pairs_goes_on(one)
        assert_same(one / name, two / name)
    assert_same(one / "grpo", two / "stopped" / "grpo")
    assert_same(one / "sft", two / "trained" / "sft")


def test_when_one_dies_the_other_says_so_and_one_process_goes_on(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    errors = torchrun(kill_one, two)
    assert len(errors) == 1 and (
        "lost another process of this run: the same command goes on from the last checkpoint "
        "with --resume") in errors[0]
    assert torch.load(two / "grpo" / "checkpoint.pt", weights_only=True)["step"] == 2
    train_grpo.main(["--out", str(two / "grpo"), "--resume"])
    train("grpo", one)
    assert_same(one / "grpo", two / "grpo")
