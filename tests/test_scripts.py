"""Every script, end to end, on tasks small enough for seconds: it learns, writes what the README
says, resumes, and refuses."""
import csv
import json
import math

import pytest
import torch

import methods
import rollout as rollout_module
import train_dpo
import train_grpo
import train_ppo
import train_rm
import train_sft
from conftest import DRAW
from model import Block, ScalarModel, Transformer
from rollout import token_log_probs
from support import metrics as metrics_module
from support import parallel, plot
from support import rl as rl_module
from support.cli import RunConfig, UserError
from support.data import choose_side
from support.models import pick_device
from support.pretrained import load_pretrained, load_scalar_model, save_pretrained


def rows(run):
    with open(run / "metrics.csv", newline="") as f:
        return list(csv.DictReader(f))


def column(run, name):
    return [float(row[name]) for row in rows(run)]


def rl(place, out, *flags):
    reward = ([] if "--reward-model" in flags
              else ["--reward", f"{place / 'reward.py'}:vowels", "--eval-every", "5"])
    return ["--model", str(place / "sft"), "--data", str(place / "sft.jsonl"), *reward,
            "--out", str(place / out), "--max-new-tokens", "6", "--lr", "3e-3", *flags]


def test_sft_learns(place):
    loss = column(place / "sft", "loss")
    assert loss[0] > 4 and loss[-1] < 1.2


GRPO = ["--prompts-per-step", "8", "--group-size", "4", "--steps", "12"]


@pytest.mark.parametrize("flags", [
    [],
    ["--method", "dr_grpo", "--minibatches", "2"],
    ["--method", "rloo"],
    ["--method", "cispo"],
    ["--method", "reinforce_pp"],
    ["--method", "remax"],
    ["--method", "reinforce"],
    ["--method", "dapo", "--no-signal", "drop", "--epochs", "2"],
    ["--method", "gspo", "--minibatches", "2", "--ref-ema", "0.9"],
    ["--kl-target", "0.5", "--ref-sync", "4"],
    ["--method", "dapo"],
], ids=lambda f: "-".join(f).replace("--", "") or "default")
def test_grpo_learns(place, flags):
    out = "grpo" + "".join(flags)
    train_grpo.main(rl(place, out, *GRPO, *flags))
    reward = column(place / out, "reward")
    assert sum(reward[-3:]) / 3 > sum(reward[:3]) / 3 + 0.15
    # The reference is the policy at the start.
    assert abs(column(place / out, "kl")[0]) < 1e-9


@pytest.mark.parametrize("flags", [[], ["--epochs", "1", "--minibatches", "1", "--lam", "1"]],
                         ids=["ppo", "a2c"])
def test_ppo_learns(place, flags):
    out = "ppo" + "".join(flags)
    train_ppo.main(rl(place, out, "--prompts-per-step", "32", "--steps", "16",
                      "--critic-lr", "1e-2", *flags))
    reward = column(place / out, "reward")
    assert sum(reward[-3:]) / 3 > sum(reward[:3]) / 3 + 0.15
    # The critic warms up first: no update of the policy.
    assert rows(place / out)[0]["entropy"] == ""
    assert column(place / out, "kl")[2] == pytest.approx(0, abs=1e-9)
    assert column(place / out, "explained_variance")[-1] > 0


def test_reward_model_and_ppo_on_it(place):
    train_rm.main(["--model", str(place / "sft"), "--data", str(place / "pairs.jsonl"),
                   "--out", str(place / "rm"), "--steps", "30", "--batch-size", "16",
                   "--lr", "3e-3"])
    assert float(rows(place / "rm")[-1]["eval_accuracy"]) == 1
    reward_model, _ = load_scalar_model(place / "rm" / "model")
    tokens = torch.tensor([list(b"7:aa") + [256], list(b"7:cc") + [256]])
    good, bad = reward_model(tokens)[:, -1]
    assert good > bad
    for script, few in ((train_ppo, ["--prompts-per-step", "32", "--steps", "16"]),
                        (train_grpo, GRPO)):
        out = f"{script.__name__}_rm"
        script.main(rl(place, out, "--reward-model", str(place / "rm"), *few))
        reward = column(place / out, "reward")
        assert reward[-1] > reward[0] + 0.5


@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto", "simpo", "orpo"])
def test_dpo_learns(place, loss):
    out = place / loss
    train_dpo.main(["--model", str(place / "sft"), "--data", str(place / "pairs.jsonl"),
                    "--out", str(out), "--steps", "30", "--batch-size", "16", "--lr", "3e-3",
                    "--loss", loss])
    assert float(rows(out)[-1]["eval_pairs"]) == 1
    margin = [c - r for c, r in zip(column(out, "chosen_logp"), column(out, "rejected_logp"))]
    assert margin[-1] > margin[0] + 1


def test_no_script_trains_on_what_another_holds_out(place, tmp_path, monkeypatch):
    """One file for all, four lines a prompt; each script drops other lines, by its own filters."""
    rows = []
    for i in range(400):
        # Some are too long to be answered.
        prompt = f"{i}:" + "x" * (i % 62)
        for j in range(4):
            rows.append({"prompt": prompt, "completion": "a" * ((i + j) % 7), "good": "a",
                         "chosen": "b" * (i % 5), "rejected": "b" * (j + 1)})
    file = tmp_path / "all.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    # Where each script looks hold_out up; DPO has the reward model's, GRPO and PPO share another.
    calls = [watch(monkeypatch, module, "hold_out") for module in (train_sft, train_rm, rl_module)]
    for script in (train_sft, train_rm, train_dpo, train_grpo, train_ppo):
        flags = ["--model", str(place / "sft"), "--data", str(file), "--steps", "1",
                 "--eval-problems", "5", "--out", str(tmp_path / script.__name__)]
        if script in (train_grpo, train_ppo):
            flags += ["--reward", f"{place / 'reward.py'}:vowels", "--max-new-tokens", "6",
                      "--prompts-per-step", "8"]
        script.main(flags)
    trained_on, held_out, sizes = set(), set(), []
    for _, (train, out) in sum(calls, []):
        trained_on |= {rows[e["line"] - 1]["prompt"] for e in train}
        held_out |= {rows[e["line"] - 1]["prompt"] for e in out}
        sizes.append(len(train))
        assert len(out) == 5
    assert not trained_on & held_out
    # The filters do differ, and a tenth of the prompts is trained on nowhere.
    assert len(sizes) == 5 and len(set(sizes)) >= 3 and min(sizes) > 700
    assert len(trained_on) < 380


# ----------------------------------------------------------------------------- memory and precision

SMALL = {
    train_sft: ["--model", "{place}/random", "--data", "{place}/sft.jsonl",
                "--steps", "40", "--batch-size", "16", "--lr", "1e-2"],
    train_rm: ["--model", "{place}/sft", "--data", "{place}/pairs.jsonl",
               "--steps", "30", "--batch-size", "16", "--lr", "3e-3"],
    train_dpo: ["--model", "{place}/sft", "--data", "{place}/pairs.jsonl",
                "--steps", "30", "--batch-size", "16", "--lr", "3e-3"],
    train_grpo: GRPO,
    train_ppo: ["--prompts-per-step", "32", "--steps", "16",
                "--critic-lr", "1e-2", "--critic-warmup", "0"],
}


def small(script, place, out, *flags):
    """Run a script on the tiny task. -> the rows of its metrics, timings left out"""
    start = rl(place, out) if script in (train_grpo, train_ppo) else ["--out", str(place / out)]
    script.main([*start, *(flag.format(place=place) for flag in SMALL[script]), *flags])
    return [{k: v for k, v in row.items()
             if k not in ("seconds", "tokens_per_second", "peak_memory_mb")}
            for row in rows(place / out)]


@pytest.fixture
def float32_again():
    yield
    pick_device(RunConfig(device="cpu"))


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_a_gpu_that_only_emulates_bfloat16_has_float32(has_bfloat16, monkeypatch):
    """And no TF32, whatever the environment says."""
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported",
                        lambda including_emulation=True: has_bfloat16 or including_emulation)
    torch.set_float32_matmul_precision("high")
    try:
        pick_device(RunConfig(device="cuda"))
        assert torch.is_autocast_enabled("cuda") == has_bfloat16
        assert not torch.backends.cuda.matmul.allow_tf32
        pick_device(RunConfig(device="cuda", dtype="bfloat16"))
        assert torch.is_autocast_enabled("cuda")
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("script", SMALL, ids=lambda script: script.__name__)
def test_bfloat16_autocast(place, script, monkeypatch, float32_again):
    """As on a GPU, on the CPU: parameters stay float32, frozen models have bfloat16 matrices; it
    learns, and the first ratio is 1."""
    losses = {train_grpo: "grpo_loss", train_ppo: "ppo_policy_loss"}
    calls = watch(monkeypatch, script, losses.get(script, "main"))
    compared = watch(monkeypatch, metrics_module, "token_kl")
    out = f"bfloat16_{script.__name__}"
    metrics = small(script, place, out, "--dtype", "bfloat16")
    state = torch.load(place / out / "checkpoint.pt", weights_only=True)["parts"]
    trained = state.get("policy", state.get("reward_model"))
    assert all(x.dtype == torch.float32 for x in trained.values())
    if script is train_sft:
        assert float(metrics[-1]["loss"]) < 1.5
    elif script in losses:
        reference = compared[0][0][1]
        assert reference.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
        logp, old_logp = calls[0][0][:2]
        assert (logp.detach() - old_logp).abs().max() < 1e-4
        assert (float(metrics[0]["kl_exact"]) == 0 and abs(float(metrics[0]["kl"])) < 1e-3
                and float(metrics[-1]["kl_exact"]) > 0)
        reward = column(place / out, "reward")
        assert sum(reward[-3:]) / 3 > sum(reward[:3]) / 3 + 0.15
    else:
        assert float(metrics[-1]["eval_accuracy" if script is train_rm else "eval_pairs"]) == 1


@pytest.mark.parametrize("flags", [["--ref-ema", "0.9"], ["--ref-sync", "1"]], ids=["ema", "sync"])
def test_a_reference_that_moves_is_float32(place, flags, float32_again):
    out = "moves" + flags[0]
    small(train_grpo, place, out, "--dtype", "bfloat16", "--steps", "2", *flags)
    state = torch.load(place / out / "checkpoint.pt", weights_only=True)["parts"]
    assert all(x.dtype == torch.float32 for x in state["reference"].values())


def test_a_frozen_reward_model_is_bfloat16_and_the_critic_is_not(
        place, tmp_path, monkeypatch, float32_again):
    policy, tokenizer = load_pretrained(place / "sft" / "model")
    save_pretrained(ScalarModel(policy), tokenizer, tmp_path / "scores")
    calls = watch(monkeypatch, rl_module, "sequence_scores")
    train_ppo.main(rl(place, "unused", "--out", str(tmp_path / "run"),
                      "--reward-model", str(tmp_path / "scores"), "--steps", "1",
                      "--prompts-per-step", "4", "--dtype", "bfloat16"))
    reward_model = calls[0][0][0]
    assert reward_model.trunk.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in reward_model.parameters())
    critic = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["parts"]["critic"]
    assert all(x.dtype == torch.float32 for x in critic.values())


@pytest.mark.parametrize("script", SMALL, ids=lambda script: script.__name__)
def test_grad_checkpoint_changes_no_result(place, script, monkeypatch):
    count, block = [0], Block.forward

    def counted(*arguments):
        count[0] += torch.is_grad_enabled()
        return block(*arguments)
    monkeypatch.setattr(Block, "forward", counted)
    out = f"checkpoint_{script.__name__}"
    plain, plain_count = small(script, place, out, "--steps", "3"), count[0]
    again = small(script, place, out + "_again", "--steps", "3", "--grad-checkpoint")
    assert again == plain and count[0] - plain_count == 2 * plain_count


# ---------------------------------------------------------------------------------- what goes where

def watch(monkeypatch, script, name):
    """Let the script's function `name` work as before; -> the list of (arguments, result) of its
    calls."""
    calls, function = [], getattr(script, name)

    def watched(*arguments, **named):
        result = function(*arguments, **named)
        calls.append((arguments, result))
        return result
    monkeypatch.setattr(script, name, watched)
    return calls


def test_ppo_hands_the_right_tensors_on(place, tmp_path, monkeypatch):
    """The critic's targets are GAE's returns, from raw advantages; the actor's advantages are
    whitened; cut-off answers get their score."""
    calls = {name: watch(monkeypatch, train_ppo, name)
             for name in ("gae", "whiten", "value_loss", "ppo_policy_loss", "token_rewards")}
    calls["generate"] = watch(monkeypatch, parallel, "generate")
    flags = rl(place, "unused", "--prompts-per-step", "32", "--steps", "1",
               "--epochs", "1", "--minibatches", "1", "--critic-warmup", "0",
               "--reward-model", str(place / "scores"), "--out", str(tmp_path / "run"),
               "--max-new-tokens", "4")
    policy, tokenizer = load_pretrained(place / "sft" / "model")
    save_pretrained(ScalarModel(policy), tokenizer, place / "scores")
    train_ppo.main(flags)
    rollout, scores = calls["generate"][0][1], calls["token_rewards"][0][0][0]
    assert rollout.finished.any() and not rollout.finished.all()
    assert (scores[~rollout.finished] == -5).all() and (scores[rollout.finished] == 0).all()
    raw, returns = calls["gae"][0][1]
    assert raw.std() > 0.1

    # Of all micro-batches, whatever their order.
    def row_sums(batches):
        return torch.cat([batch.sum(1) for batch in batches]).sort().values
    torch.testing.assert_close(
        row_sums(arguments[2] for arguments, _ in calls["value_loss"]),
        row_sums([returns]))
    torch.testing.assert_close(
        row_sums(arguments[2] for arguments, _ in calls["ppo_policy_loss"]),
        row_sums([calls["whiten"][0][1]]))


def test_dr_grpo_divides_by_a_constant(place, tmp_path, monkeypatch):
    calls = watch(monkeypatch, methods, "grpo_loss")
    train_grpo.main(rl(place, "unused", *GRPO, "--steps", "1", "--method", "dr_grpo",
                       "--minibatches", "1", "--out", str(tmp_path / "run")))
    assert calls
    for arguments, _ in calls:
        # Answers * max_new_tokens, whatever their lengths.
        assert arguments[-2:] == ("seq-sum", 32 * 6)


# The derivative of each KL estimator, of x = log π - log π_ref.
DERIVATIVE = {"k1": torch.ones_like, "k2": lambda x: x, "k3": lambda x: 1 - torch.exp(-x)}


@pytest.mark.parametrize("flags", [
    "",
    "--kl-estimator k1",
    "--kl-estimator k2 --aggregate token-mean",
    "--kl-estimator k3 --aggregate seq-sum",
    "--method dapo",
    "--method dapo --no-signal drop --aggregate seq-mean",
    "--method dr_grpo",
    "--method dr_grpo --aggregate seq-mean",
    "--method dr_grpo --kl-in reward",
    "--method rloo",
    "--method rloo --kl-in loss --aggregate token-mean",
    "--method remax",
    "--method reinforce",
    "--method reinforce --kl-in loss --aggregate seq-mean",
    "--method gspo",
    "--method reinforce_pp",
    "--method reinforce_pp --kl-in loss",
    "--method cispo --kl-estimator k2",
])
def test_the_gradient_of_every_token_is_what_the_settings_say(place, tmp_path, monkeypatch, flags):
    """On policy it is -A, and β times the KL estimator's derivative if the KL is in the loss,
    weighed as --aggregate says."""
    named = dict(zip(flags.split()[::2], flags.split()[1::2]))
    method, beta = named.get("--method", "grpo"), 0.5
    # The advantages, the loss and its average, what holds the KL.
    advantage, loss, papers_mode, papers_kl_in = {
        "grpo": ("grpo_advantages", "grpo_loss", "seq-mean", "loss"),
        "dr_grpo": ("grpo_advantages", "grpo_loss", "seq-sum", "loss"),
        "dapo": ("grpo_advantages", "grpo_loss", "token-mean", "loss"),
        "gspo": ("grpo_advantages", "gspo_loss", "seq-mean", "loss"),
        "cispo": ("grpo_advantages", "cispo_loss", "token-mean", "loss"),
        "reinforce_pp": ("reinforce_pp_advantages", "grpo_loss", "token-mean", "reward"),
        "rloo": ("rloo_advantages", "policy_gradient_loss", "seq-sum", "reward"),
        "remax": ("remax_advantages", "policy_gradient_loss", "seq-sum", "reward"),
        # What an answer earned is its advantage: nothing is compared.
        "reinforce": (None, "policy_gradient_loss", "seq-sum", "reward"),
    }[method]
    mode = named.get("--aggregate", papers_mode)
    in_reward = named.get("--kl-in", papers_kl_in) == "reward"
    # Where its KL is k3, GRPO is written down in its script, and its relatives are elsewhere.
    owner = methods if method != "grpo" or named.get("--kl-estimator", "k3") != "k3" else train_grpo
    compared = watch(monkeypatch, owner, advantage) if advantage else []
    losses = watch(monkeypatch, owner, loss)
    in_rewards = watch(monkeypatch, methods, "token_rewards")
    split = watch(monkeypatch, train_grpo, "micro_batches")
    score, scored = train_grpo.token_log_probs_and_entropies, []

    def kept(*arguments):
        result = score(*arguments)
        result[0].retain_grad()
        scored.append((arguments, result[0]))
        return result
    monkeypatch.setattr(train_grpo, "token_log_probs_and_entropies", kept)
    train_grpo.main(rl(place, "unused", *GRPO, "--steps", "3", "--kl-coef", str(beta),
                       "--minibatches", "1", "--out", str(tmp_path / "run"), *flags.split()))

    # By then the policy has moved.
    assert column(tmp_path / "run", "kl")[-1] > 1e-3
    assert len(in_rewards) == (3 if owner is methods else 0)
    if owner is methods:
        (rewards, logp, ref_logp, mask, coef), earned = in_rewards[-1]
        assert coef == beta * in_reward and ((logp - ref_logp) * mask).abs().max() > 0.05
        if advantage not in (None, "reinforce_pp_advantages"):
            torch.testing.assert_close(
                compared[-1][0][0], rewards - coef * (logp - ref_logp).sum(1))

    # How many micro-batches the last step had.
    n = len(split[-1][1])
    reference = load_pretrained(place / "sft" / "model")[0]
    masks = [m for (_, _, m, *_), _ in scored[-n:]]
    total = {
        "token-mean": sum(m.sum() for m in masks),
        "seq-mean": sum(map(len, masks)),
        "seq-sum": sum(map(len, masks)) * 6,
    }[mode]
    used = []
    for ((_, tokens, m, *_), logp), (arguments, _) in zip(scored[-n:], losses[-n:], strict=True):
        A = arguments[{"grpo_loss": 3, "policy_gradient_loss": 1}.get(loss, 2)]
        used.append(A if A.dim() == 1 else (A * m).sum(1) / m.sum(1))
        x = logp.detach() - token_log_probs(reference, tokens, m).detach()
        slope = (-(A if A.dim() == 2 else A[:, None])
                 + (0 if in_reward else beta * DERIVATIVE[named.get("--kl-estimator", "k3")](x)))
        torch.testing.assert_close(
            logp.grad,
            slope * m / total / (m.sum(1, keepdim=True) if mode == "seq-mean" else 1),
            rtol=1e-3, atol=1e-6)
    # Those advantages are the ones that were computed: of all answers, or, where groups without a
    # signal are left out, of the first eight that have one.
    if advantage != "reinforce_pp_advantages":
        found = (compared[-1][1] if advantage else earned.sum(1)).view(-1, 4)
        found = found if method != "dapo" else found[(found != 0).any(1)][:8]
        torch.testing.assert_close(torch.cat(used).sort().values, found.flatten().sort().values)


def test_dynamic_sampling_replaces_groups_without_signal(place, tmp_path, monkeypatch):
    """Further prompts, three batches at most; as many groups as were asked for, each with a
    signal; metrics are of all that was sampled."""
    (tmp_path / "reward.py").write_text(
        "def some(prompts, completions, **columns):\n    "
        "return [c.count('a') * (int(p[:-1]) % 2) for p, c in zip(prompts, completions)]\n")
    batches, updates = (watch(monkeypatch, owner, name) for owner, name in (
        (rl_module, "reward_answers"), (train_grpo, "count_for")))
    generated = watch(monkeypatch, parallel, "generate")
    # An evaluation would sample as well.
    monkeypatch.setattr(train_grpo, "evaluate", lambda *_: ({}, []))
    train_grpo.main(["--model", str(place / "sft"), "--data", str(place / "sft.jsonl"),
                     "--reward", f"{tmp_path / 'reward.py'}:some", "--out", str(tmp_path / "run"),
                     "--prompts-per-step", "4", "--group-size", "4", "--steps", "8",
                     "--minibatches", "1", "--eval-every", "0", "--max-new-tokens", "6",
                     "--lr", "1e-4", "--no-signal", "replace"])
    first, prompts = 0, []
    for i, (samples, no_signal, reward) in enumerate(zip(
            *(column(tmp_path / "run", name) for name in ("samples", "no_signal", "reward")))):
        some = batches[first:first + int(samples) // 16]
        first += len(some)
        groups = torch.tensor([r for _, rewards in some for r in rewards]).view(-1, 4)
        signal = (groups != groups[:, :1]).any(1)
        assert (no_signal == pytest.approx(1 - signal.float().mean().item(), abs=1e-5)
                and reward == pytest.approx(groups.mean().item(), abs=1e-5))
        # The rows of the update: of four groups at most.
        assert len(updates[i][0][0]) == 4 * min(4, signal.sum())
        assert len(some) == 3 or signal.sum() >= 4
        # Four steps are less than an epoch.
        prompts += ([e["prompt"] for (_, examples, *_), _ in some for e in examples[::4]]
                    if i < 4 else [])
    assert (first == len(batches) == len(generated)
            and len(set(column(tmp_path / "run", "samples"))) > 1)
    # Always other prompts, and other noise.
    assert len(set(prompts)) == len(prompts) > 32
    assert len({arguments[5].initial_seed() for arguments, _ in generated}) == len(generated)


def test_the_critic_starts_as_told(place, tmp_path):
    policy, tokenizer = load_pretrained(place / "sft" / "model")
    reward_model = ScalarModel(policy)
    reward_model.score.weight.data.fill_(0.5)
    save_pretrained(reward_model, tokenizer, tmp_path / "scores")
    zeros = torch.zeros_like(reward_model.score.weight)
    verifier, scores = (
        ["--reward", f"{place / 'reward.py'}:vowels", "--eval-every", "0"],
        ["--reward-model", str(tmp_path / "scores")])
    for i, (flags, start) in enumerate([
            (verifier, zeros),
            (scores, reward_model.score.weight),
            (scores + ["--critic", "policy"], zeros),
            (verifier + ["--critic", str(tmp_path / "scores")], reward_model.score.weight)]):
        run = tmp_path / f"run{i}"
        train_ppo.main(["--model", str(place / "sft"), "--data", str(place / "sft.jsonl"),
                        "--out", str(run), "--steps", "1", "--critic-lr", "0",
                        "--prompts-per-step", "4", "--max-new-tokens", "4", *flags])
        critic = torch.load(run / "checkpoint.pt", weights_only=True)["parts"]["critic"]
        assert torch.equal(critic["score.weight"], start), flags
        assert column(run, "samples") == [4]


def test_ktos_mismatched_answers_are_other_prompts(place, tmp_path, monkeypatch):
    """Lines that follow one another share a prompt, as in most data. Good answers and bad ones."""
    lines = [{"prompt": f"{i // 4}:", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(80)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    flags = ["--model", str(place / "sft"), "--steps", "1", "--batch-size", "16", "--loss", "kto"]
    prompt_of = {json.dumps([*line[side].encode(), 256]): line["prompt"]
                 for line in lines for side in ("chosen", "rejected")}

    def mismatched(out, seed):
        calls = watch(monkeypatch, train_dpo, "pad_pairs")
        train_dpo.main([*flags, "--data", str(file), "--out", str(tmp_path / out), "--seed", seed])
        # The reference's log-probs of all that is trained on are asked for before the update.
        pairs = next(pairs for (pairs, *_), _ in calls if "mismatched" in pairs[0])
        assert len(pairs) > 60
        for pair in pairs:
            assert prompt_of[json.dumps(pair["mismatched"])].encode() != bytes(pair["prompt"])
        return [bytes(pair["mismatched"][:-1]).decode() for pair in pairs]
    answers = mismatched("a", "0")
    assert 0.3 < sum(answer[0] == "a" for answer in answers) / len(answers) < 0.7
    assert len(set(answers)) > len(answers) / 2
    assert mismatched("b", "0") == answers != mismatched("c", "1")
    file.write_text("\n".join(json.dumps({**line, "prompt": "1:"}) for line in lines))
    with pytest.raises(UserError, match=f"{file}: all pairs have one prompt, and --loss kto needs"):
        train_dpo.main([*flags, "--data", str(file), "--out", str(tmp_path / "one")])


@pytest.mark.parametrize("most", ["1", "512"])
def test_kto_where_nothing_is_held_out(place, tmp_path, most):
    """Evaluations then use pairs that are trained on, some or all of them."""
    pairs = [{"prompt": f"{i}:", "chosen": "a", "rejected": "b"} for i in range(40)]
    lines = [json.dumps(pair) for pair in pairs if choose_side(pair["prompt"]) == "train"]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    train_dpo.main(["--model", str(place / "sft"), "--data", str(tmp_path / "pairs.jsonl"),
                    "--loss", "kto", "--steps", "2", "--batch-size", "4", "--eval-problems", most,
                    "--out", str(tmp_path / "run")])
    assert len(column(tmp_path / "run", "loss")) == 2


def test_ipo_averages_over_the_answer(place, tmp_path, monkeypatch):
    calls, scored = (watch(monkeypatch, train_dpo, "ipo_loss"),
                     watch(monkeypatch, train_dpo, "token_log_probs"))
    train_dpo.main(["--model", str(place / "sft"), "--data", str(place / "pairs.jsonl"),
                    "--out", str(tmp_path / "run"), "--steps", "1", "--batch-size", "4",
                    "--loss", "ipo"])
    (_, _, mask), logp = next((arguments, result) for arguments, result in scored
                              if result.requires_grad)
    torch.testing.assert_close(torch.cat(calls[0][0][:2]), logp.sum(1) / mask.sum(1))


def test_pairs_that_just_fit_the_context_are_kept_and_mismatched_answers_are_cut_to_it(
        place, tmp_path, monkeypatch, capsys):
    """The context is 64 tokens: a prompt of 2, an answer of 61, and the stop token."""
    lines = [{"prompt": f"{i}:", "chosen": "a" * 61, "rejected": "b"} for i in range(8)]
    lines += [{"prompt": f"{i}" * 50 + ":", "chosen": "a", "rejected": "b"} for i in range(8)]
    lines += [{"prompt": "9:", "chosen": "a", "rejected": "b" * 62}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    calls = watch(monkeypatch, train_dpo, "pad_pairs")
    train_dpo.main(["--model", str(place / "sft"), "--data", str(tmp_path / "pairs.jsonl"),
                    "--steps", "1", "--loss", "kto", "--batch-size", "16",
                    "--out", str(tmp_path / "run")])
    assert ("dropped 1 of 17 examples, longer than the context of 64 tokens (first: line 17)"
            in capsys.readouterr().out)
    pairs = next(pairs for (pairs, *_), _ in calls if "mismatched" in pairs[0])
    rows = [len(p["prompt"]) + len(p["mismatched"]) for p in pairs]
    assert any(len(p["prompt"]) + len(p["chosen"]) == 64 for p in pairs)
    # Those rows are of a long prompt with an answer of 62 tokens, cut; such a pair is among them.
    assert (max(rows) == 64
            and any(len(p["prompt"]) > 50 and row == 64 for p, row in zip(pairs, rows)))


@pytest.mark.parametrize("size", ["24", "100000"])
def test_the_nll_beside_dpo_is_a_mean_over_the_chosen_answers_tokens(
        place, tmp_path, monkeypatch, size):
    """Before the first update DPO's loss is log 2, whatever the pairs."""
    # The calls: of all pairs, of those held out, of the first step.
    batches = watch(monkeypatch, train_dpo, "pad_pairs")
    train_dpo.main(["--model", str(place / "sft"), "--data", str(place / "pairs.jsonl"),
                    "--out", str(tmp_path / "run"), "--steps", "1", "--batch-size", "8",
                    "--nll-coef", "0.5", "--micro-batch-tokens", size])
    # The rows of the chosen answers.
    tokens, mask = (x[0] for x in batches[2][1])
    nll = -token_log_probs(
        load_pretrained(place / "sft" / "model")[0], tokens, mask).sum() / mask.sum()
    assert len(tokens) == 8 and column(tmp_path / "run", "loss") == pytest.approx(
        [math.log(2) + 0.5 * nll.item()], rel=1e-5)


# -------------------------------------------------------------------------------- signals and steps

def rewards_by_call(tmp_path, expression):
    """--reward whose value is `expression`, of n, the number of its call from 0, and of
    `completions`."""
    (tmp_path / "by_call.py").write_text(
        "import itertools\ncalls = itertools.count()\n"
        "def f(prompts, completions, **columns):\n    n = next(calls)\n"
        f"    return {expression}\n")
    return ["--reward", f"{tmp_path / 'by_call.py'}:f", "--eval-every", "0"]


def rl_by_call(place, tmp_path, expression, *flags):
    train_grpo.main(["--model", str(place / "sft"), "--data", str(place / "sft.jsonl"),
                     "--out", str(tmp_path / "run"), "--lr", "3e-3", "--max-new-tokens", "6",
                     *GRPO, *rewards_by_call(tmp_path, expression), *flags])
    return rows(tmp_path / "run")


VOWELS = "[c.count('a') for c in completions]"


def test_equal_rewards_are_a_signal_where_the_advantages_say_so(place, tmp_path):
    """ReMax holds a sample against the greedy answer, here the second call: all samples are right
    and the greedy one is wrong."""
    row = rl_by_call(place, tmp_path, "[float(n == 0)] * len(prompts)",
                     "--method", "remax", "--kl-in", "loss", "--no-signal", "drop",
                     "--steps", "1")[0]
    assert (float(row["no_signal"]) == 0 and float(row["grad_norm"]) > 0.1
            and float(row["updates"]) == 1)


def test_kl_in_the_reward_is_a_signal_where_all_scores_are_equal(place, tmp_path):
    first, second = rl_by_call(
        place, tmp_path, f"{VOWELS} if n == 0 else [1.0] * len(prompts)",
        "--method", "rloo", "--kl-coef", "0.5", "--steps", "2")
    assert (float(second["kl"]) > 1e-3 and float(second["no_signal"]) == 0
            and float(second["grad_norm"]) > 1e-3)


def test_whitened_over_the_batch_a_group_of_equal_rewards_is_a_signal(place, tmp_path):
    """Two groups are all right and the others all wrong: within the groups nothing differs, over
    the batch it does."""
    expression = "[float(i < 8) for i in range(len(prompts))]"
    row = rl_by_call(place, tmp_path, expression,
                     "--method", "reinforce_pp", "--kl-in", "loss", "--no-signal", "drop",
                     "--steps", "1")[0]
    assert float(row["no_signal"]) == 0 and float(row["grad_norm"]) > 0.1


@pytest.mark.parametrize("flags", [
    ["--kl-coef", "0"], ["--method", "dr_grpo"], ["--method", "dapo", "--no-signal", "drop"],
    ["--method", "dapo"], ["--kl-coef", "0.5", "--no-signal", "drop"]], ids="-".join)
def test_without_signal_the_policy_stays_where_it_is(place, tmp_path, monkeypatch, flags):
    """Adam's momentum would go on moving it. From the second step on all rewards are equal."""
    weights, sum_gradients = [], parallel.sum_gradients

    def before_an_update(model):
        weights.append([p.detach().clone() for p in model.parameters()])
        sum_gradients(model)
    monkeypatch.setattr(parallel, "sum_gradients", before_an_update)
    metrics = rl_by_call(place, tmp_path, f"{VOWELS} if n == 0 else [1.0] * len(prompts)",
                         "--steps", "4", *flags)
    assert [row["updates"] for row in metrics] == ["2", "0", "0", "0"]
    assert [float(row["no_signal"]) for row in metrics] == [
        pytest.approx(float(metrics[0]["no_signal"])), 1, 1, 1]
    # A step from which nothing is learned has its numbers in the same columns.
    assert float(metrics[0]["reward"]) != 1 and float(metrics[0]["kl"]) == 0
    assert all(float(row["reward"]) == 1 and float(row["kl"]) > 0.01 for row in metrics[1:])
    end = load_pretrained(tmp_path / "run" / "model")[0]
    # Two updates, and six without a gradient.
    assert len(weights) == 8
    assert all(torch.equal(a, b) for a, b in zip(weights[2], end.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(weights[0], weights[2]) if a.dim() == 2)


def test_kl_in_the_reward_is_not_the_samplers(place, tmp_path, monkeypatch, float32_again):
    """In bfloat16 the sampler rounds otherwise than the model that is trained. At the start policy
    and reference are the same: no KL."""
    calls = watch(monkeypatch, methods, "token_rewards")
    rl_by_call(place, tmp_path, "[1.0] * len(prompts)",
               "--method", "rloo", "--steps", "1", "--dtype", "bfloat16")
    (rewards, logp, ref_logp, mask, kl_coef), earned = calls[0]
    assert (kl_coef == 0.01 and torch.equal(logp, ref_logp)
            and torch.equal(earned.sum(1), rewards))


@pytest.mark.parametrize("script", [train_grpo, train_ppo], ids=["grpo", "ppo"])
def test_the_row_names_the_coefficient_of_its_own_step(place, tmp_path, monkeypatch, script):
    """And the adaptive one falls while KL is under its target. PPO's rewards, and GRPO's losses,
    were made with what the row says."""
    used = watch(monkeypatch, script, "token_rewards" if script is train_ppo else "grpo_loss")
    few = ["--prompts-per-step", "8", *(["--group-size", "4"] if script is train_grpo else [])]
    script.main(rl(place, "unused", *few, "--steps", "3", "--kl-coef", "0.2", "--kl-target", "50",
                   "--kl-horizon", "100", "--out", str(tmp_path / "run")))
    n = int(column(tmp_path / "run", "samples")[0])
    expected = [0.2 * (1 - 0.2 * n / 100) ** step for step in range(3)]
    assert column(tmp_path / "run", "kl_coef") == pytest.approx(expected, rel=1e-4)
    place_of_kl_coef = 4 if script is train_ppo else 7
    coefs = dict.fromkeys(arguments[place_of_kl_coef] for arguments, _ in used)
    assert list(coefs) == pytest.approx(expected)


def test_a_run_that_trains_what_it_needs_keeps_its_own_precision(
        place, tmp_path, monkeypatch, float32_again):
    monkeypatch.chdir(tmp_path)
    sft, precision = train_sft.main, []
    small = ["--model", str(place / "random"), "--data", str(place / "sft.jsonl"),
             "--steps", "1", "--batch-size", "4"]

    def nested(argv):
        sft([*small, *argv])
        precision.append(torch.is_autocast_enabled("cpu"))
    monkeypatch.setattr(train_sft, "main", nested)
    generate = parallel.generate

    def generated(*arguments):
        precision.append(torch.is_autocast_enabled("cpu"))
        return generate(*arguments)
    monkeypatch.setattr(parallel, "generate", generated)
    train_grpo.main(["--data", str(place / "sft.jsonl"),
                     "--reward", f"{place / 'reward.py'}:vowels", "--dtype", "bfloat16",
                     "--steps", "1", "--prompts-per-step", "2", "--group-size", "2",
                     "--max-new-tokens", "4", "--eval-every", "0"])
    # Of the nested run, of the step, of the evaluation's greedy and of its sampled answers.
    assert precision[0] is False and len(precision) >= 4 and all(precision[1:])
    assert json.loads((tmp_path / "runs/grpo/config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("script, flags", [
    (train_grpo, GRPO), (train_ppo, ["--prompts-per-step", "32"])], ids=["grpo", "ppo"])
def test_no_pass_holds_more_tokens_than_it_may(place, tmp_path, monkeypatch, script, flags):
    """Rollouts, log-probs, the exact KL, updates and evaluations: 40 tokens, the sampler's one a
    row excepted."""
    passes, hidden = [], Transformer.hidden

    def counted(model, tokens, *rest):
        passes.append(tuple(tokens.shape))
        return hidden(model, tokens, *rest)
    monkeypatch.setattr(Transformer, "hidden", counted)
    caches = []
    monkeypatch.setattr(rollout_module, "KVCache",
                        lambda *a, f=rollout_module.KVCache: caches.append(a) or f(*a))
    script.main(rl(place, "unused", *flags, "--steps", "1", "--micro-batch-tokens", "40",
                   "--eval-every", "1", "--out", str(tmp_path / "run")))
    assert max(B * T for B, T in passes if T > 1) <= 40
    # Evaluations have a cache of 6 rows.
    assert max(len(lengths) for _, lengths, _, _ in caches) == 32


# ------------------------------------------------------------------------- what a run leaves behind

def test_a_run_writes_what_the_readme_says(place, monkeypatch):
    monkeypatch.setattr(plot, "draw_curves", DRAW)
    run = place / "files"
    train_grpo.main(rl(place, "files", *GRPO, "--steps", "2"))
    assert {p.name for p in run.iterdir()} == {
        "config.json", "metrics.csv", "curves.png", "samples.txt", "checkpoint.pt", "model"}
    assert {"step", "reward", "kl", "entropy", "response_length", "clip_fraction", "grad_norm",
            "tokens_per_second", "seconds", "eval_greedy", "eval_sampled"} <= set(rows(run)[0])
    # In MB, of a process that holds torch.
    assert (100 < column(run, "peak_memory_mb")[0]
            <= column(run, "peak_memory_mb")[1] < 20000)
    assert [row["step"] for row in rows(run)] == ["1", "2"] and rows(run)[0]["eval_greedy"] == ""
    samples = (run / "samples.txt").read_text()
    assert "=== step 0: eval_greedy" in samples and "=== step 2: eval_greedy" in samples
    assert json.loads((run / "config.json").read_text())["group_size"] == 4
    assert (run / "curves.png").stat().st_size > 20000


def test_micro_batches_never_change_the_result(place):
    for out, size in (("one", "100000"), ("many", "24")):
        train_grpo.main(rl(place, out, *GRPO, "--steps", "3", "--micro-batch-tokens", size,
                           "--minibatches", "2"))
    for name in ("reward", "kl", "grad_norm", "entropy", "clip_fraction"):
        assert column(place / "one", name) == pytest.approx(
            column(place / "many", name), rel=1e-3, abs=1e-5)
    for out, size in (("sft_one", "100000"), ("sft_many", "24")):
        train_sft.main(["--model", str(place / "random"), "--data", str(place / "sft.jsonl"),
                        "--out", str(place / out), "--steps", "3", "--batch-size", "16",
                        "--micro-batch-tokens", size])
    for name in ("loss", "grad_norm"):
        assert column(place / "sft_one", name) == pytest.approx(
            column(place / "sft_many", name), rel=1e-4)


@pytest.mark.parametrize("script, flags", [
    (train_grpo, GRPO), (train_ppo, ["--prompts-per-step", "16"]),
    (train_grpo, [*GRPO, "--no-signal", "replace"])], ids=["grpo", "ppo", "dynamic"])
def test_resume_gives_the_run_that_never_stopped(place, script, flags):
    name = script.__name__ + "_".join(flags)
    whole, cut = name + "_whole", name + "_cut"
    script.main(rl(place, whole, *flags, "--steps", "6", "--kl-target", "0.5"))
    script.main(rl(place, cut, *flags, "--steps", "3", "--kl-target", "0.5"))
    with open(place / cut / "metrics.csv", "a") as f:
        f.write("4,a row after the checkpoint, as a killed run leaves it\n")
    script.main(["--out", str(place / cut), "--resume", "--steps", "6"])
    for row, other in zip(rows(place / whole), rows(place / cut), strict=True):
        for key in row.keys() - {"seconds", "tokens_per_second", "peak_memory_mb", "eval_greedy",
                                 "eval_sampled"}:
            assert row[key] == other[key], key
    a, b = (load_pretrained(place / run / "model")[0].state_dict() for run in (whole, cut))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("script, few", [
    (train_grpo, GRPO), (train_ppo, ["--prompts-per-step", "8", "--critic-warmup", "0"])],
    ids=["grpo", "ppo"])
def test_the_reference_stays_frozen_unless_told_to_move(place, tmp_path, monkeypatch, script, few):
    start = load_pretrained(place / "sft" / "model")[0].state_dict()
    # The arguments of a call begin with policy, reference.
    calls = watch(monkeypatch, metrics_module, "token_kl")

    def end(out, *flags):
        script.main(rl(place, "unused", *few, "--steps", "3", "--out", str(tmp_path / out), *flags))
        policy, reference, *_ = calls[-1][0]
        saved = torch.load(tmp_path / out / "checkpoint.pt", weights_only=True)["parts"]
        assert bool(saved["reference"]) == bool(flags)
        return reference.state_dict(), policy.state_dict()
    frozen, policy = end("frozen")
    assert (all(torch.equal(frozen[k], start[k]) for k in start)
            and not all(torch.equal(policy[k], start[k]) for k in start))
    synced, policy = end("synced", "--ref-sync", "1")
    assert all(torch.equal(synced[k], policy[k]) for k in start)
    ema, policy = end("ema", "--ref-ema", "0.5")
    assert not any(torch.equal(ema[k], start[k]) or torch.equal(ema[k], policy[k])
                   for k in ("layers.0.mlp.up_proj.weight", "norm.weight"))


def test_a_run_directory_that_holds_a_run_is_left_alone(place, tmp_path):
    run = tmp_path / "run"
    flags = rl(place, "unused", *GRPO, "--steps", "1", "--out", str(run))
    train_grpo.main(flags)
    (run / "mine.txt").write_text("kept")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="holds a run already"):
        train_grpo.main(flags)
    with pytest.raises(UserError, match="--lr is 0.5, but the run in .* was started with 0.003"):
        train_grpo.main(["--out", str(run), "--resume", "--lr", "0.5"])
    with pytest.raises(SystemExit) as finished:
        train_grpo.main(["--out", str(run), "--resume"])
    assert not finished.value.code
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    train_grpo.main([*flags, "--overwrite", "--seed", "1"])
    assert ((run / "mine.txt").read_text() == "kept"
            and json.loads((run / "config.json").read_text())["seed"] == 1)


def test_evaluate(place, capsys):
    import evaluate
    flags = [str(place / "sft"), "--data", str(place / "sft.jsonl"),
             "--reward", f"{place / 'reward.py'}:vowels", "--problems", "10", "--samples", "2",
             "--max-new-tokens", "6", "--reference", str(place / "sft"), "--json"]
    evaluate.main(flags)
    result = json.loads(capsys.readouterr().out)
    assert (result["problems"] == 10 and 0 < result["sampled"] < 1 and result["kl"] == 0
            and 0 <= result["pass@1"] <= result["pass@2"] <= 1)
