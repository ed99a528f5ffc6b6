"""What a run survives: kills, Ctrl-C, numbers gone wrong, a full disk. And that the same command
gives the same numbers."""
import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train_dpo
import train_grpo
import train_ppo
import train_rm
import train_sft
from conftest import result
from model import ScalarModel
from support import parallel, plot
from support import run as run_module
from support.cli import UserError, script
from support.models import peak_memory_mb
from support.plot import read_metrics
from support.pretrained import load_pretrained, save_pretrained
from support.run import Run, find_trouble


def flags(place, out, *more):
    return ["--model", str(place / "sft"), "--data", str(place / "sft.jsonl"),
            "--reward", f"{place / 'reward.py'}:vowels", "--out", str(out),
            "--max-new-tokens", "6", "--prompts-per-step", "4", "--group-size", "4",
            "--steps", "6", "--eval-every", "2", "--save-every", "0", *more]


NO_UPDATE = ("in each of the last 5 steps an optimizer made no update, "
             "as no gradient for it was finite")


@pytest.fixture(scope="module")
def whole(place):
    """The result of a run that nothing happened to."""
    train_grpo.main(flags(place, place / "whole"))
    return result(place / "whole")


def at_step(monkeypatch, n, action, module=train_grpo, name="sample_answers"):
    """Do `action` when the n-th rollout, or the n-th call of a script's `name`, begins, counted
    from 1.

    -> a list with the count"""
    count, function = [0], getattr(module, name)

    def counted(*arguments, **named):
        count[0] += 1
        if count[0] == n:
            action()
        return function(*arguments, **named)
    monkeypatch.setattr(module, name, counted)
    return count


def test_curves_are_drawn_while_a_run_goes_on(place, tmp_path, monkeypatch):
    """After each evaluation's row is written; but drawing takes a twentieth of the time at most."""
    drawn, now = [], [100.0]

    def draw(run, algorithm):
        rows = read_metrics(run)
        drawn.append((len(rows), rows[-1]["eval_greedy"] != ""))
        now[0] += 1.0
    monkeypatch.setattr(plot, "draw_curves", draw)
    monkeypatch.setattr(run_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    at_step(monkeypatch, 5, lambda: now.__setitem__(0, now[0] + 20.0))
    train_grpo.main(flags(place, tmp_path / "run"))
    # Not after step 4, a second of drawing after the one before; and always at the end.
    assert drawn == [(2, True), (6, True), (6, True)]


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
    done = subprocess.run([sys.executable, Path(__file__).parent / "kills.py", "--kills", "5"],
                          capture_output=True, text=True)
    assert done.returncode == 0 and "0 runs differ, all could be resumed" in done.stdout, (
        done.stdout + done.stderr)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(
        place, whole, tmp_path, monkeypatch, capsys, number):
    run, handler = tmp_path / "run", signal.getsignal(number)
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), number))
    status, error = stopped(lambda: train_grpo.main(flags(place, run)), capsys)
    assert status == 130 and ("interrupted after step 3 and saved: python train_grpo.py "
                              f"--out {run} --resume goes on") in error
    assert (torch.load(run / "checkpoint.pt", weights_only=True)["step"] == 3
            and not (run / "model").exists())
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
        assert [row["skipped_updates"] for row in csv.DictReader(f)] == [
            "0", "0", "1", "0", "0", "0"]
    assert "the gradient's norm is nan: this update is skipped" in capsys.readouterr().err
    assert all(x.isfinite().all() for x in load_pretrained(run / "model")[0].state_dict().values())


def test_five_bad_steps_end_the_run_and_the_checkpoint_stands(place, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    lose(monkeypatch, lambda step: step > 1)
    status, error = stopped(lambda: train_grpo.main(flags(
        place, run, "--minibatches", "1", "--steps", "20", "--save-every", "1")), capsys)
    assert status == 1 and NO_UPDATE in error.splitlines()[-1]
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert (state["step"] == 5
            and all(x.isfinite().all() for x in state["parts"]["policy"].values()))


def test_a_step_with_one_good_update_is_not_a_bad_one(place, tmp_path, monkeypatch):
    run, count, sum_gradients = tmp_path / "run", [0], parallel.sum_gradients

    def every_second(model):
        if count[0] % 2:
            model.norm.weight.grad.fill_(float("nan"))
        count[0] += 1
        sum_gradients(model)
    monkeypatch.setattr(parallel, "sum_gradients", every_second)
    train_grpo.main(flags(place, run, "--minibatches", "2", "--steps", "7", "--eval-every", "0"))
    with open(run / "metrics.csv", newline="") as f:
        assert [row["skipped_updates"] for row in csv.DictReader(f)] == ["1"] * 7


@pytest.mark.parametrize("lost", ["ppo_policy_loss", "value_loss"])
def test_ppo_ends_when_one_optimizer_gets_nothing(place, tmp_path, monkeypatch, capsys, lost):
    """The other one, whose gradients are finite, must not hide it."""
    loss = getattr(train_ppo, lost)

    def broken(*arguments, **named):
        value, stats = loss(*arguments, **named)
        return value * float("nan"), stats
    monkeypatch.setattr(train_ppo, lost, broken)
    rl = ["--model", str(place / "sft"), "--data", str(place / "sft.jsonl"),
          "--out", str(tmp_path / "run"), "--reward", f"{place / 'reward.py'}:vowels",
          "--max-new-tokens", "6", "--prompts-per-step", "8", "--steps", "9",
          "--critic-warmup", "0"]
    status, error = stopped(lambda: train_ppo.main(rl), capsys)
    assert status == 1 and NO_UPDATE in error.splitlines()[-1]
    assert len(read_metrics(tmp_path / "run")) == 5


def test_a_full_disk_is_one_line_and_the_last_checkpoint_survives(
        place, whole, tmp_path, monkeypatch, capsys):
    run, (soft, hard) = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow over 20 kB.
    at_step(monkeypatch, 4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, hard)))
    try:
        status, error = stopped(
            lambda: train_grpo.main(flags(place, run, "--save-every", "2")), capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    written = f"{run}/.checkpoint.pt.unfinished: can't be written: "
    assert status == 1 and written in error.splitlines()[-1]
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoint.pt", "config.json", "curves.png", "metrics.csv", "samples.txt"]
    train_grpo.main(["--out", str(run), "--resume"])
    assert result(run) == whole


@pytest.mark.parametrize("size", [100, 7000, 20000])
def test_a_disk_that_is_full_from_the_start_says_so_and_promises_nothing(
        place, tmp_path, capsys, size):
    """torch.save says "unexpected pos 4352 vs 4246" of it."""
    run, (soft, hard) = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        status, error = stopped(lambda: train_grpo.main(flags(place, run)), capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 1 and error.endswith("can't be written: [Errno 27] File too large\n")


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(
        place, whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    kill_in(monkeypatch, "_checkpoint", train_grpo.main, flags(place, run))
    assert [p.name for p in run.iterdir()] == ["config.json"]
    train_grpo.main(["--out", str(run), "--resume"])
    assert result(run) == whole


def test_steps_may_change_on_resume_and_sft_goes_on_too(place, tmp_path):
    run = tmp_path / "run"
    train_sft.main(["--model", str(place / "random"), "--data", str(place / "sft.jsonl"),
                    "--out", str(run), "--steps", "3"])
    train_sft.main(["--out", str(run), "--resume", "--steps", "5"])
    with open(run / "metrics.csv", newline="") as f:
        assert [row["step"] for row in csv.DictReader(f)] == ["1", "2", "3", "4", "5"]


# ----------------------------------------------------------------------- what --resume goes on from

def sft(place, out, *more):
    return ["--model", str(place / "random"), "--data", str(place / "sft.jsonl"),
            "--out", str(out), "--batch-size", "8", *more]


def killed(*arguments, **named):
    raise KeyboardInterrupt


def kill_in(monkeypatch, function, main, flags):
    """Run main(flags) until Run's `function` is called, as a kill would end it."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, function, killed)
        main(flags)


def everything(*roots):
    return {p: p.read_bytes() for root in roots for p in root.rglob("*") if p.is_file()}


def test_an_older_model_does_not_make_a_longer_run_finished(place, tmp_path, monkeypatch, capsys):
    """A finished run that is extended, and killed after its last checkpoint, has its old model/."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run in (whole, cut):
        train_sft.main(sft(place, run, "--steps", "3"))
    train_sft.main(["--out", str(whole), "--resume", "--steps", "5"])
    kill_in(monkeypatch, "finish", train_sft.main, ["--out", str(cut), "--resume", "--steps", "5"])
    assert torch.load(cut / "checkpoint.pt", weights_only=True)["step"] == 5
    train_sft.main(["--out", str(cut), "--resume"])
    assert result(cut) == result(whole)
    status, _ = stopped(lambda: train_sft.main(["--out", str(cut), "--resume"]), capsys)
    assert not status and result(cut) == result(whole)


def test_a_model_that_does_not_say_of_which_step_it_is_is_written_anew(place, tmp_path):
    run = tmp_path / "run"
    train_sft.main(sft(place, run, "--steps", "3"))
    good, note = result(run), {"algorithm": "sft", "step": 3}
    assert json.loads((run / "model" / "run.json").read_text()) == note
    (run / "model" / "run.json").unlink()
    (run / "model" / "model.safetensors").write_bytes(b"of an unknown step")
    train_sft.main(["--out", str(run), "--resume"])
    assert result(run) == good
    assert json.loads((run / "model" / "run.json").read_text()) == note


@pytest.fixture
def inputs(place, tmp_path):
    """Copies of what a run starts from, to be changed."""
    for name in ("sft.jsonl", "reward.py"):
        shutil.copy(place / name, tmp_path / name)
    shutil.copytree(place / "sft" / "model", tmp_path / "start")
    policy, tokenizer = load_pretrained(tmp_path / "start")
    for name in ("scores", "values"):
        save_pretrained(ScalarModel(policy), tokenizer, tmp_path / name)
    return tmp_path


def ppo(inputs, *more):
    return ["--model", str(inputs / "start"), "--data", str(inputs / "sft.jsonl"),
            "--out", str(inputs / "run"), "--max-new-tokens", "6", "--prompts-per-step", "4",
            "--steps", "1", *more]


def damage(file):
    """Change the last byte, as little as another file can differ."""
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


SCORES = "--reward-model {0}/scores --critic {0}/values"
SCORED = {"model": "start", "data": "sft.jsonl", "reward_model": "scores", "critic": "values"}


def test_a_run_notes_what_it_was_made_from(inputs):
    train_ppo.main(ppo(inputs, *SCORES.format(inputs).split()))
    noted = json.loads((inputs / "run" / "config.json").read_text())["inputs"]
    paths = {name: note["path"] for name, note in noted.items()}
    assert paths == {name: str(inputs / file) for name, file in SCORED.items()}
    assert all(len(note["sha256"]) == 64 for note in noted.values())


def test_of_a_run_the_directory_that_was_loaded_is_noted(place, tmp_path):
    train_grpo.main(flags(place, tmp_path / "run", "--steps", "1"))
    noted = json.loads((tmp_path / "run" / "config.json").read_text())["inputs"]
    assert {name: note["path"] for name, note in noted.items()} == {
        "model": str(place / "sft" / "model"), "data": str(place / "sft.jsonl")}


@pytest.mark.parametrize("name", SCORED)
def test_resume_refuses_other_inputs_by_name(inputs, capsys, name):
    run, file = inputs / "run", inputs / SCORED[name]
    again = lambda: train_ppo.main(["--out", str(run), "--resume", "--steps", "2"])
    train_ppo.main(ppo(inputs, *SCORES.format(inputs).split()))
    damage(file / "model.safetensors" if file.is_dir() else file)
    before = everything(inputs)
    capsys.readouterr()
    status, error = stopped(again, capsys)
    assert status == 2 and error.count("\n") == 1
    flag = f"--{name.replace('_', '-')}"
    assert f"{flag} {file}: is not what the run in {run} was started with" in error
    assert everything(inputs) == before


def test_resume_accepts_what_changes_no_input(inputs):
    """A mended reward function; what else lies by a model; and if a run notes no inputs, all."""
    reward = inputs / "reward.py"
    train_ppo.main(ppo(inputs, "--reward", f"{reward}:vowels"))
    reward.write_text(reward.read_text() + "# mended\n")
    (inputs / "start" / "README.md").write_text("# A model")
    train_ppo.main(["--out", str(inputs / "run"), "--resume", "--steps", "2"])
    settings = json.loads((inputs / "run" / "config.json").read_text())
    del settings["inputs"]
    (inputs / "run" / "config.json").write_text(json.dumps(settings))
    damage(inputs / "start" / "model.safetensors")
    train_ppo.main(["--out", str(inputs / "run"), "--resume", "--steps", "3"])
    assert torch.load(inputs / "run" / "checkpoint.pt", weights_only=True)["step"] == 3


def test_resume_does_not_train_what_the_run_started_from(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "sft", "runs/sft")
    quick = ["--steps", "1", "--batch-size", "4", "--data", str(place / "pairs.jsonl")]
    train_rm.main(quick)
    shutil.rmtree("runs/sft")
    status, error = stopped(lambda: train_rm.main(["--resume", "--steps", "2"]), capsys)
    assert status == 2
    assert "runs/sft is not there any more, but the run in runs/rm started from it" in error
    assert not Path("runs/sft").exists()


def test_memory_may_be_turned_down_on_resume(place, whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    kill_in(monkeypatch, "steps", train_grpo.main, flags(place, run))
    memory = ["--micro-batch-tokens", "4096", "--grad-checkpoint"]
    train_grpo.main(["--out", str(run), "--resume", *memory])
    assert result(run) == whole
    assert json.loads((run / "config.json").read_text())["grad_checkpoint"] is True


# ------------------------------------------------------------------------------------ sampled pairs

def other_pairs_each_time(monkeypatch):
    """Let the sampler find other pairs at every call, as on a machine that rounds differently.

    -> the calls so far, a list"""
    calls = []

    def sample(policy, tokenizer, n, seed, max_new_tokens, held_out, micro_batch_tokens):
        generator, pairs = torch.Generator().manual_seed(len(calls)), []
        for a, b, c in torch.randint(1, 99, (n, 3), generator=generator).tolist():
            texts = [f"<think>{a}</think>{x}<|endoftext|>" for x in (b, c + 100)]
            chosen, rejected = (tokenizer.encode(text, special=True) for text in texts)
            prompt = tokenizer.encode(f"{a}+{b}+{c}=")
            pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        calls.append(held_out)
        return pairs
    monkeypatch.setattr(train_rm, "sample_pairs", sample)
    return calls


def pairs(place, out, *more):
    return ["--model", str(place / "sft"), "--out", str(out), "--pairs", "24",
            "--eval-problems", "6", "--batch-size", "8", "--steps", "4", "--save-every", "1",
            "--max-new-tokens", "6", *more]


@pytest.mark.parametrize("module, loss", [(train_rm, "reward_model_loss"), (train_dpo, "dpo_loss")],
                         ids=["rm", "dpo"])
def test_resume_reads_the_sampled_pairs_again(place, tmp_path, monkeypatch, module, loss):
    whole, cut, calls = tmp_path / "whole", tmp_path / "cut", other_pairs_each_time(monkeypatch)
    module.main(pairs(place, whole))
    calls.clear()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, 3, killed, module, loss)
        module.main(pairs(place, cut))
    assert calls == [False, True]
    module.main(["--out", str(cut), "--resume"])
    assert calls == [False, True] and result(cut) == result(whole)


def test_sampled_pairs_can_be_read_by_people(place, tmp_path, monkeypatch, tokenizer):
    run = tmp_path / "run"
    other_pairs_each_time(monkeypatch)
    train_rm.main(pairs(place, run))
    rows = [json.loads(line) for line in (run / "pairs.jsonl").read_text().splitlines()]
    assert [row["held_out"] for row in rows] == [False] * 24 + [True] * 6
    assert all(row["prompt"] == tokenizer.decode(row["ids"]["prompt"]) for row in rows)
    stop = tokenizer.decode([tokenizer.eos_id])
    for side in ("chosen", "rejected"):
        assert all(row[side] + stop == tokenizer.decode(row["ids"][side]) for row in rows)
        assert all(row[side].startswith("<think>") for row in rows)


@pytest.mark.parametrize("moment", ["_write", "_checkpoint"])
def test_a_kill_before_the_first_checkpoint_samples_anew(place, tmp_path, monkeypatch, moment):
    """At whatever moment before: with config.json alone, or with pairs.jsonl beside it."""
    run, whole, calls = tmp_path / "run", tmp_path / "whole", other_pairs_each_time(monkeypatch)
    module, write = train_rm, Run._write

    def until_the_pairs(self, name, content):
        if name == "pairs.jsonl":
            raise KeyboardInterrupt
        write(self, name, content)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, moment, until_the_pairs if moment == "_write" else killed)
        module.main(pairs(place, run))
    assert (run / "pairs.jsonl").exists() == (moment == "_checkpoint")
    module.main(["--out", str(run), "--resume"])
    del calls[:]
    calls += [None, None]
    module.main(pairs(place, whole))
    assert result(run) == result(whole)


def test_other_pairs_are_refused_and_overwrite_removes_them(place, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    again = lambda: train_rm.main(["--out", str(run), "--resume", "--steps", "5"])
    other_pairs_each_time(monkeypatch)
    train_rm.main(pairs(place, run))
    kept = (run / "pairs.jsonl").read_text()
    (run / "pairs.jsonl").write_text(kept[kept.index("\n") + 1:])
    capsys.readouterr()
    status, error = stopped(again, capsys)
    assert status == 2
    assert f"{run}/pairs.jsonl: is not what the run in {run} was started with" in error
    (run / "pairs.jsonl").unlink()
    capsys.readouterr()
    status, error = stopped(again, capsys)
    assert status == 2 and "pairs.jsonl" in error and error.count("\n") == 1
    (run / "pairs.jsonl").write_text(kept)
    train_rm.main(["--model", str(place / "sft"), "--out", str(run), "--steps", "1", "--overwrite",
                   "--data", str(place / "pairs.jsonl")])
    assert not (run / "pairs.jsonl").exists()


# ---------------------------------------------------------------------------- what is not the run's

def test_what_a_user_keeps_beside_a_run_stays(place, tmp_path):
    run = tmp_path / "run"
    train_sft.main(sft(place, run, "--steps", "1"))
    names = ("model.old", "model.part", "checkpoint.pt.part")
    for name in names[:2]:
        (run / name).mkdir()
        (run / name / "weights").write_text("mine")
    (run / names[2]).write_text("mine")
    # This run samples no pairs.
    (run / "pairs.jsonl").write_text("mine")
    mine = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.read_bytes() == b"mine"}
    train_sft.main(["--out", str(run), "--resume", "--steps", "2"])
    train_sft.main(sft(place, run, "--steps", "1", "--overwrite"))
    assert len(mine) == 4 and all(p.read_bytes() == content for p, content in mine.items())


@pytest.mark.parametrize("kill_at", [".model.unfinished", ".model.replaced"])
def test_a_kill_while_the_model_is_replaced_leaves_nothing(place, tmp_path, monkeypatch, kill_at):
    whole, run, replace = tmp_path / "whole", tmp_path / "run", os.replace

    def until(source, target):
        if Path(source).name == kill_at:
            raise KeyboardInterrupt
        replace(source, target)
        if Path(target).name == kill_at:
            raise KeyboardInterrupt
    for out in (whole, run):
        train_sft.main(sft(place, out, "--steps", "2"))
    train_sft.main(["--out", str(whole), "--resume", "--steps", "3"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module.os, "replace", until)
        train_sft.main(["--out", str(run), "--resume", "--steps", "3"])
    assert (run / ".model.unfinished").exists()
    train_sft.main(["--out", str(run), "--resume"])
    assert result(run) == result(whole)


def test_a_kill_while_the_old_model_is_removed_leaves_nothing(
        place, tmp_path, monkeypatch, capsys):
    """The run is finished then, and a part of a checkpoint may lie there from an earlier kill."""
    whole, run, remove = tmp_path / "whole", tmp_path / "run", run_module.remove

    def until(path):
        if path.name == ".model.replaced" and path.exists():
            raise KeyboardInterrupt
        remove(path)
    for out in (whole, run):
        train_sft.main(sft(place, out, "--steps", "2"))
    train_sft.main(["--out", str(whole), "--resume", "--steps", "3"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module, "remove", until)
        train_sft.main(["--out", str(run), "--resume", "--steps", "3"])
    (run / ".checkpoint.pt.unfinished").write_bytes(b"half")
    assert (run / ".model.replaced").exists()
    status, _ = stopped(lambda: train_sft.main(["--out", str(run), "--resume"]), capsys)
    assert not status and result(run) == result(whole)


@pytest.mark.parametrize("name", ["model", "metrics.csv"])
@pytest.mark.parametrize("dangling", [False, True], ids=["", "dangling"])
def test_overwrite_removes_a_link_and_not_what_it_leads_to(place, tmp_path, name, dangling):
    run, away = tmp_path / "run", tmp_path / "away"
    train_sft.main(sft(place, run, "--steps", "1"))
    (run / name).rename(away)
    (run / name).symlink_to(tmp_path / "nothing" if dangling else away)
    before = everything(tmp_path / "away") if away.is_dir() else away.read_bytes()
    train_sft.main(sft(place, run, "--steps", "2", "--overwrite"))
    assert before == (everything(tmp_path / "away") if away.is_dir() else away.read_bytes())
    assert not (run / name).is_symlink() and not (tmp_path / "nothing").exists()
    train_sft.main(sft(place, tmp_path / "same", "--steps", "2"))
    assert result(run) == result(tmp_path / "same")


def test_a_model_that_is_a_link_is_replaced_when_the_run_goes_on(place, tmp_path):
    run, away = tmp_path / "run", tmp_path / "away"
    train_sft.main(sft(place, run, "--steps", "1"))
    (run / "model").rename(away)
    (run / "model").symlink_to(away)
    before = everything(away)
    train_sft.main(["--out", str(run), "--resume", "--steps", "2"])
    assert everything(away) == before and not (run / "model").is_symlink()
    assert not [p.name for p in run.iterdir() if p.name.startswith(".")]


def test_after_a_kill_while_overwriting_a_run_can_be_overwritten(place, tmp_path, monkeypatch):
    run, same = tmp_path / "run", tmp_path / "same"
    train_sft.main(sft(place, run, "--steps", "2"))
    again = sft(place, run, "--steps", "1", "--overwrite")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module.shutil, "rmtree", killed)
        train_sft.main(again)
    assert (run / "model").exists()
    for function in ("_write", "_checkpoint"):
        kill_in(monkeypatch, function, train_sft.main, again)
    train_sft.main(again)
    train_sft.main(sft(place, same, "--steps", "1"))
    assert result(run) == result(same)


# ---------------------------------------------------------------------------- two processes at once

TRAIN = """
import sys, time
from pathlib import Path
from support.cli import RunConfig
from support.run import ensure_trained
def train(argv):
    with open("log", "a") as log:
        print(*argv, file=log)
    time.sleep(float(sys.argv[1]))
    model = Path("runs/sft/model")
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
open("ready", "a").write("x")
while len(Path("ready").read_text()) < 2:
    time.sleep(0.01)
print(ensure_trained("runs/sft", train, RunConfig()))
"""
HOLD = """
import fcntl, os, sys, time
path = sys.argv[1]
os.makedirs(path, exist_ok=True)
fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""
FORK = """
import os, sys, time
from pathlib import Path
from support.run import lock
lock(Path(sys.argv[1]))
if os.fork():
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def python(code, *arguments, **named):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment,
                            stdout=subprocess.PIPE, text=True, **named)


def test_of_two_scripts_that_miss_the_same_run_one_trains_it(tmp_path):
    both = [python(TRAIN, 1, cwd=tmp_path) for _ in range(2)]
    printed = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "--out runs/sft\n"
    assert sorted("waiting for it" in text for text in printed) == [False, True]
    assert all(text.endswith("runs/sft\n") for text in printed)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["sft"]
    assert [p.name for p in (tmp_path / "runs" / "sft").iterdir()] == ["model"]


def test_a_run_that_another_process_trains_is_left_alone(place, tmp_path, capsys):
    run = tmp_path / "run"
    train_sft.main(sft(place, run, "--steps", "1"))
    holder = python(HOLD, run, 60, cwd=tmp_path)
    try:
        assert holder.stdout.readline() == "locked\n"
        before = everything(run)
        for flags in (["--out", str(run), "--resume", "--steps", "2"],
                      sft(place, run, "--steps", "2", "--overwrite")):
            status, error = stopped(lambda: train_sft.main(flags), capsys)
            assert status == 2 and error.endswith(f"{run}: another process is training into it\n")
            assert everything(run) == before
    finally:
        holder.kill()
        holder.communicate()
    # A killed process holds nothing.
    train_sft.main(["--out", str(run), "--resume", "--steps", "2"])


def test_a_lock_is_free_when_its_process_is_killed_whatever_it_has_forked(tmp_path):
    """A reward function's pool of processes may outlive a killed run for a while."""
    holder = python(FORK, tmp_path, start_new_session=True)
    try:
        assert int(holder.stdout.readline()) == holder.pid
        assert not run_module.lock(tmp_path)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        assert run_module.lock(tmp_path)
        run_module.unlock(tmp_path)
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def test_another_run_that_came_meanwhile_is_left_alone(place, tmp_path, monkeypatch):
    """Minutes may lie between the first look at the directory and the start."""
    run, start = tmp_path / "run", Run.start

    def late(self, *arguments, **named):
        monkeypatch.setattr(Run, "start", start)
        train_sft.main(sft(place, run, "--steps", "1"))
        before.update(everything(run))
        return start(self, *arguments, **named)
    before = {}
    monkeypatch.setattr(Run, "start", late)
    with pytest.raises(UserError, match="holds a run already"):
        train_sft.main(sft(place, run, "--steps", "2"))
    assert before and everything(run) == before


# ------------------------------------------------------------------------------------- what is said

def test_peak_memory_is_of_the_device_that_is_used(monkeypatch):
    used = {torch.device("cuda:1"): 3 * 2 ** 20}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: used.get(device, 0))
    assert peak_memory_mb(torch.device("cuda:1")) == 3
    assert 100 < peak_memory_mb(torch.device("cpu")) < 20000


def test_trouble_is_named():
    healthy = {"entropy": 0.04, "no_signal": 0.7, "kl": 0.05}
    assert (find_trouble(healthy) == [] and find_trouble({"loss": 1.0}) == []
            and find_trouble({**healthy, "entropy": ""}) == [])
    assert find_trouble({**healthy, "entropy": 1e-5}) == ["collapsed: entropy near 0"]
    assert find_trouble({**healthy, "no_signal": 1.0}) == ["no group has a signal"]
    assert find_trouble({**healthy, "kl": 3.0}) == ["far from the reference"]
