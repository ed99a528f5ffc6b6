"""What a run survives: kills, Ctrl-C, numbers gone wrong, a full disk. And that the same command gives the same numbers."""
import csv
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import result

import train_grpo
import train_sft
from common import script, trouble
from pretrained import load_pretrained

def flags(place, out, *more):
    return ["--model", str(place / "sft"), "--data", str(place / "sft.jsonl"), "--reward", f"{place / 'reward.py'}:vowels", "--out", str(out),
            "--max-new-tokens", "6", "--prompts-per-step", "4", "--group-size", "4", "--steps", "6", "--eval-every", "2", "--save-every", "0", *more]


@pytest.fixture(scope="module")
def whole(place):
    """The result of a run that nothing happened to."""
    train_grpo.main(flags(place, place / "whole"))
    return result(place / "whole")


def at_step(monkeypatch, n, action):
    """Do `action` when the n-th rollout begins, counted from 1. -> a list with the count"""
    count, generate = [0], train_grpo.generate

    def counted(*arguments, **named):
        count[0] += 1
        if count[0] == n:
            action()
        return generate(*arguments, **named)
    monkeypatch.setattr(train_grpo, "generate", counted)
    return count


def stopped(main, capsys):
    with pytest.raises(SystemExit) as end:
        script(main)
    return end.value.code, capsys.readouterr().err


def test_the_same_command_gives_the_same_numbers(place, whole, tmp_path):
    train_grpo.main(flags(place, tmp_path / "again"))
    assert result(tmp_path / "again") == whole
    train_grpo.main(flags(place, tmp_path / "other", "--seed", "1"))
    assert result(tmp_path / "other")["model"] != whole["model"]


def test_kills_at_random_moments():
    done = subprocess.run([sys.executable, Path(__file__).parent / "kills.py", "--kills", "5"], capture_output=True, text=True)
    assert done.returncode == 0 and "0 runs differ, all could be resumed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(place, whole, tmp_path, monkeypatch, capsys, number):
    run, handler = tmp_path / "run", signal.getsignal(number)
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), number))
    status, error = stopped(lambda: train_grpo.main(flags(place, run)), capsys)
    assert status == 130 and f"interrupted after step 3 and saved: python train_grpo.py --out {run} --resume goes on" in error
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] == 3 and not (run / "model").exists()
    train_grpo.main(["--out", str(run), "--resume"])
    assert result(run) == whole
    assert signal.getsignal(number) is handler


def test_ctrl_c_twice_stops_at_once(place, whole, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    at_step(monkeypatch, 3, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    status, error = stopped(lambda: train_grpo.main(flags(place, run, "--save-every", "1")), capsys)
    assert status == 130 and "stopped at once" in error
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] == 2
    train_grpo.main(["--out", str(run), "--resume"])
    assert result(run) == whole


def lose(monkeypatch, when):
    """Let the loss be NaN in the steps, counted from 1, for which when(step)."""
    count, loss = at_step(monkeypatch, 0, None), train_grpo.grpo_loss

    def broken(*arguments, **named):
        value, stats = loss(*arguments, **named)
        return (value * float("nan") if when(count[0]) else value), stats
    monkeypatch.setattr(train_grpo, "grpo_loss", broken)


def test_an_update_that_is_not_finite_is_skipped_and_counted(place, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    lose(monkeypatch, lambda step: step == 3)
    train_grpo.main(flags(place, run, "--minibatches", "1", "--eval-every", "0"))
    with open(run / "metrics.csv", newline="") as f:
        assert [row["skipped_updates"] for row in csv.DictReader(f)] == ["0", "0", "1", "0", "0", "0"]
    assert "the gradient's norm is nan: this update is skipped" in capsys.readouterr().err
    assert all(x.isfinite().all() for x in load_pretrained(run / "model")[0].state_dict().values())


def test_five_bad_steps_end_the_run_and_the_checkpoint_stands(place, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    lose(monkeypatch, lambda step: step > 1)
    status, error = stopped(lambda: train_grpo.main(flags(place, run, "--minibatches", "1", "--steps", "20", "--save-every", "1")), capsys)
    assert status == 1 and "no finite gradient in 5 steps in a row" in error.splitlines()[-1]
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert state["step"] == 5 and all(x.isfinite().all() for x in state["parts"]["policy"].values())


def test_a_full_disk_is_one_line_and_the_last_checkpoint_survives(place, whole, tmp_path, monkeypatch, capsys):
    run, (soft, hard) = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    at_step(monkeypatch, 4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, hard)))    # no file may grow over 20 kB
    try:
        status, error = stopped(lambda: train_grpo.main(flags(place, run, "--save-every", "2")), capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 1 and f"{run}/checkpoint.pt.part: can't be written: " in error.splitlines()[-1]
    assert sorted(p.name for p in run.iterdir()) == ["checkpoint.pt", "config.json", "metrics.csv", "samples.txt"]
    train_grpo.main(["--out", str(run), "--resume"])
    assert result(run) == whole


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(place, whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    def killed(*arguments):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_grpo.Run, "_checkpoint", killed)
        train_grpo.main(flags(place, run))
    assert [p.name for p in run.iterdir()] == ["config.json"]
    train_grpo.main(["--out", str(run), "--resume"])
    assert result(run) == whole


def test_steps_may_change_on_resume_and_sft_goes_on_too(place, tmp_path):
    run = tmp_path / "run"
    train_sft.main(["--model", str(place / "random"), "--data", str(place / "sft.jsonl"), "--out", str(run), "--steps", "3"])
    train_sft.main(["--out", str(run), "--resume", "--steps", "5"])
    with open(run / "metrics.csv", newline="") as f:
        assert [row["step"] for row in csv.DictReader(f)] == ["1", "2", "3", "4", "5"]
    assert not (run / "model.old").exists()


def test_trouble_is_named():
    healthy = {"entropy": 0.04, "no_signal": 0.7, "kl": 0.05}
    assert trouble(healthy) == [] and trouble({"loss": 1.0}) == [] and trouble({**healthy, "entropy": ""}) == []
    assert trouble({**healthy, "entropy": 1e-5}) == ["collapsed: entropy near 0"]
    assert trouble({**healthy, "no_signal": 1.0}) == ["no group has a signal"]
    assert trouble({**healthy, "kl": 3.0}) == ["far from the reference"]
