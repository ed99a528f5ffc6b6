"""Wrong statements that circulate, each with its formula run: test_7_... is number 7 of
docs/ERRATA.md. `about` holds the numbers that the page gives.
"""
import functools
import inspect
import itertools
import math
import re
import sys
from pathlib import Path

import pytest
import torch

import test_policy_gradient as text
import train_grpo
from advantages import (
    discounted_returns, explained_variance, gae, grpo_advantages, token_rewards)
from evaluate import pass_at_k
from losses import (
    aggregate, dpo_loss, grpo_loss, gspo_loss, kl_exact, kl_k1, kl_k2, kl_k3, policy_gradient_loss,
    ppo_policy_loss, reward_model_loss, value_loss)
from model import ModelConfig, ScalarModel, Transformer
from support.pretrained import save_pretrained
from support.tokenizer import builtin_tokenizer
from test_closed_form import Answers, Bandit, dpo, normalised, total_variation, train
from test_derivations import STATE, close, draw, expect, grad, policy_of, t, tree

ROOT = Path(__file__).parent.parent
f64 = torch.float64
ONE = torch.ones(1, 1)


def about(found, expected: str):
    """The number, rounded as the page has it."""
    digits = len(expected.partition(".")[2])
    found = torch.as_tensor(found).item()
    # Adding 0 makes 0 of -0.
    rounded = round(found, digits) + 0.0
    assert f"{rounded:.{digits}f}" == expected, f"found {found}, expected {expected}"


@functools.cache
def world():
    return text.World(0)


def noise(advantages):
    """The variance of one answer's gradient."""
    return world().variance(world().p, advantages[:, None])


def off(found, truth=None):
    """The angle, in degrees, between a mean gradient and ∇J."""
    truth = world().gradient if truth is None else truth
    cosine = torch.cosine_similarity(found.flatten(), truth.flatten(), 0)
    return math.degrees(math.acos(cosine.clamp(-1, 1)))


def value_advantages(shift=0.0):
    """Returns minus the true values, and a shift."""
    w = world()
    return gae(w.rewards, (w.value + shift)[text.STATE], text.MASK, lam=1.0)[0]


# --------------------------------------------------------------------------------- policy gradients

def test_1_a_loss_of_zero_learns():
    logp = draw(4, 3).requires_grad_()
    A = grpo_advantages(t(1, 0, 0, 1), 4)
    loss, _ = grpo_loss(logp, logp.detach(), None, A, torch.ones(4, 3))
    about(loss, "0.00")
    about(grad(loss, logp).norm(), "0.25")


def test_2_the_loss_is_no_score():
    """The same gradient on average, and another sign."""
    w = world()
    losses = []
    for baseline in (-1.0, 1.0):
        A = (w.score - baseline) * w.p
        loss, _ = policy_gradient_loss(w.logp, A, text.MASK, "seq-sum", 1)
        close(-w.grad(loss), w.gradient)
        losses.append(loss.item())
    about(losses[0], "3.6")
    about(losses[1], "-0.3")


def test_3_baseline_of_the_action():
    """Q(s, a) in place of V(s)."""
    w = world()
    q = w.rewards + torch.where(text.LENGTH[:, None] == torch.arange(1, 4), 0, torch.cat(
        (w.value[text.STATE][:, 1:], torch.zeros(15, 1)), 1))
    wrong = (discounted_returns(w.rewards, text.MASK) - q) * text.MASK
    about(noise(wrong) / noise(value_advantages()), "0.41")
    close(w.expected(wrong), torch.zeros(7, 3))


def test_4_a_bad_baseline():
    about(noise(value_advantages(shift=5.0)) / noise(value_advantages()), "25")
    close(world().expected(value_advantages(shift=5.0)), world().gradient)


def test_5_whole_reward_and_reward_to_go():
    w = world()
    to_go = discounted_returns(w.rewards, text.MASK)
    close(w.expected(w.score), w.expected(to_go))
    about(noise(to_go) / noise(w.score), "0.56")


def test_6_group_mean_is_no_bias():
    w = world()
    found = w.over_groups(2, lambda rewards, G: grpo_advantages(rewards, G, scale=False))
    about(off(found), "0")
    close(found, 0.5 * w.gradient)
    close(grpo_advantages(draw(8), 8).sum(), 0.0)


def test_7_std_is_no_learning_rate():
    found = world().over_groups(2, lambda rewards, G: grpo_advantages(rewards, G, eps=0.0))
    about(off(found), "34")


def test_8_groups_are_not_compared():
    r = draw(8)
    moved = r + t(0, 0, 0, 0, 100, 100, 100, 100)
    close(grpo_advantages(r, 4), grpo_advantages(moved, 4), rtol=1e-6)


def test_9_mean_over_each_answer():
    about(off(world().expected(world().score, mode="seq-mean")), "70")


def test_10_mean_of_means():
    """An answer of four tokens with a loss of 1 each, and one of one token with a loss of 0."""
    x, mask = t([1.0] * 4, [0.0] * 4), torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    about(aggregate(x, mask), "0.80")
    about((aggregate(x[:1], mask[:1]) + aggregate(x[1:], mask[1:])) / 2, "0.50")
    total = mask.sum()
    close(aggregate(x[:1], mask[:1], denominator=total)
          + aggregate(x[1:], mask[1:], denominator=total), 0.8)


def test_11_a_mean_has_its_n():
    """Each answer twice, and the gradient's length to what it was."""
    w = world()
    for denominator, expected in [(1, "2.0"), (None, "1.0")]:
        lengths = []
        for rows in ([*range(15)], [*range(15)] * 2):
            loss, _ = policy_gradient_loss(w.logp[rows], w.score[rows], text.MASK[rows], "seq-sum",
                                           denominator)
            lengths.append(w.grad(loss).norm())
        about(lengths[1] / lengths[0], expected)


def test_12_scored_at_another_temperature():
    """Sampled at 0.5, scored at 1: the mean gradient, with the ratio that is taken for 1."""
    w = world()
    hot = torch.log_softmax(w.theta.detach() / 0.5, 1)[text.STATE, text.ACTION] * text.MASK
    p = hot.sum(1).exp()
    wrong = -w.grad(policy_gradient_loss(w.logp, p * w.score, text.MASK, "seq-sum", 1)[0])
    about(off(wrong), "35")


# ---------------------------------------------------------------------------------------------- PPO

def test_13_the_clip_is_no_bound():
    """One of four actions, with the advantage 1 and a clip of 0.2; many updates on that sample."""
    logits = torch.zeros(4, dtype=f64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(100):
        logp = torch.log_softmax(logits, 0)[None, :1]
        loss, _ = ppo_policy_loss(logp, t([0.25]).log(), t([1.0]), ONE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    about(4 * torch.softmax(logits, 0)[0], "2.6")


def test_14_losses_have_no_bound():
    loss, stats = ppo_policy_loss(t([10.0]).log(), t([0.0]), t([-1.0]), ONE)
    about(loss, "10.0")
    about(stats["clip_fraction"], "0")


def test_15_clip_without_the_min():
    """The ratio has fallen to 0.5, and the advantage says that it should rise."""
    logp = t([0.5]).log().requires_grad_()
    right = grad(ppo_policy_loss(logp, t([0.0]), t([1.0]), ONE)[0], logp)
    wrong = grad(-logp.exp().clamp(0.8, 1.2).sum(), logp)
    about(right, "-0.5")
    about(wrong, "0.0")


def test_16_the_min_for_a_negative_advantage():
    """A bad action has become twice as likely; with max for min, nothing pushes it back."""
    logp, A = t([2.0]).log().requires_grad_(), -1.0
    right = grad(ppo_policy_loss(logp, t([0.0]), t([A]), ONE)[0], logp)
    rho = logp.exp()
    wrong = grad(-torch.maximum(rho * A, rho.clamp(0.8, 1.2) * A).sum(), logp)
    about(right, "2.0")
    about(wrong, "0.0")


def test_17_ratios_of_tokens_are_not_exact():
    w, old = world(), text.World(7)
    returns = discounted_returns(w.rewards, text.MASK) * old.p[:, None]
    loss, _ = ppo_policy_loss(w.logp, old.logp.detach(), returns, text.MASK, 1.0, 1e9,
                              mode="seq-sum", denominator=1)
    about(off(-w.grad(loss)), "68")


def test_18_grpo_has_a_ratio_for_each_token():
    logp, old = t([0.3, -0.3, 0.0]), t([0.0, 0.0, 0.0])
    mask = torch.ones(1, 3)
    stats = grpo_loss(logp, old, None, t(1.0), mask)[1]
    about(stats["clip_fraction"], "0.33")
    about(gspo_loss(logp, old, t(1.0), mask)[1]["clip_fraction"], "0.00")


def test_19_ppo_needs_no_pairs():
    """Answers that start with 0 are right. Twenty rollouts, four updates on each."""
    w = world()
    theta = w.theta.detach().clone().requires_grad_()
    right = t(*[float(answer[0] == 0) for answer in text.ANSWERS])
    optimizer = torch.optim.Adam([theta], lr=0.3)

    def logp():
        return torch.log_softmax(theta, 1)[text.STATE, text.ACTION] * text.MASK

    about((logp().sum(1).exp() * right).sum(), "0.09")
    for _ in range(20):
        old = logp().detach()
        p = old.sum(1).exp()
        for _ in range(4):
            A = (right - (p * right).sum()) * p
            optimizer.zero_grad()
            ppo_policy_loss(logp(), old, A, text.MASK, mode="seq-sum", denominator=1)[0].backward()
            optimizer.step()
    about((logp().sum(1).exp() * right).sum(), "1.00")


def test_20_without_a_critic(tmp_path):
    """Each model looks tokens up in an embedding of its own."""
    tokenizer = builtin_tokenizer()
    policy = Transformer(ModelConfig(tokenizer.vocab_size, 32, 2, 2, 1, 64, 64))
    save_pretrained(policy, tokenizer, tmp_path / "policy")
    save_pretrained(ScalarModel(policy), tokenizer, tmp_path / "scores")
    flags = ("--steps 1 --prompts-per-step 2 --group-size 2 --max-new-tokens 4 --eval-every 0 "
             "--overwrite")
    for rewarded, expected in [(["--reward-model", str(tmp_path / "scores")], "3"), ([], "2")]:
        used = set()
        hook = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, _: used.add(module) if isinstance(module, torch.nn.Embedding) else None)
        try:
            train_grpo.main(["--model", str(tmp_path / "policy"), *rewarded, *flags.split(),
                             "--out", str(tmp_path / "run")])
        finally:
            hook.remove()
        about(len(used), expected)


# ------------------------------------------------------------------------------------------- values

def test_21_td_and_monte_carlo():
    w = world()
    wrong = w.value + draw(7, seed=9)
    found = {}
    for lam in (0.0, 1.0):
        right, _ = gae(w.rewards, w.value[text.STATE], text.MASK, lam=lam)
        biased, _ = gae(w.rewards, wrong[text.STATE], text.MASK, lam=lam)
        found[lam] = noise(right), off(w.expected(biased))
    about(found[0.0][0] / found[1.0][0], "0.59")
    about(found[0.0][1], "50")
    about(found[1.0][1], "0")


def test_22_lambda_one_is_no_licence():
    """A critic that is 5 too high. The plain gradient is right on average; PPO's, after the policy
    has moved, isn't."""
    w, old = world(), text.World(0)
    moved = torch.log_softmax(w.theta + 0.3 * draw(7, 3, seed=3), 1)[text.STATE, text.ACTION]
    moved = moved * text.MASK
    found = []
    for shift in (0.0, 5.0):
        A = value_advantages(shift)
        close(w.expected(A), w.gradient)
        loss, _ = ppo_policy_loss(moved, old.logp.detach(), A * w.p[:, None], text.MASK,
                                  mode="seq-sum", denominator=1)
        found.append(-w.grad(loss))
    about(off(found[1], found[0]), "11")


def test_23_a_bootstrapped_critic():
    """A critic that says 0 everywhere, and answers scored at their end: the mean target of the
    first state, against its value."""
    w = world()
    zeros = torch.zeros(15, 3, dtype=f64)
    rewards = token_rewards(w.score, zeros, zeros, text.MASK, 0.0)
    for lam, expected in [(0.0, "0.28"), (0.5, "0.53"), (1.0, "0.98")]:
        _, targets = gae(rewards, zeros, text.MASK, lam=lam)
        about(expect(w.p, targets[:, 0]), expected)
    about(w.value[0], "0.98")


def test_24_a_perfect_critic_has_a_loss():
    w = tree()
    G = w.rewards.flip(1).cumsum(1).flip(1)
    root, V = w.p.sqrt()[:, None], w.value[STATE]
    loss, _ = value_loss(V * root, V * root, G * root, torch.ones(216, 3), None, 3)
    about(loss, "0.52")
    rows = torch.arange(216).repeat_interleave((w.p * 100_000).round().long())
    about(explained_variance(V[rows].flatten(), G[rows].flatten()), "0.24")


def test_25_the_squared_td_error():
    """Its minimum, if the target is differentiated as well. It is a square, so that one Newton step
    leads there."""
    w = tree()

    def loss(V):
        values = torch.cat((V[STATE], torch.zeros(216, 1, dtype=f64)), 1)
        delta = w.rewards + values[:, 1:] - values[:, :-1]
        return 0.5 * (w.p[:, None] * delta.square()).sum()

    start = torch.zeros(86, dtype=f64, requires_grad=True)
    H = torch.autograd.functional.hessian(loss, start.detach())
    found = -torch.linalg.solve(H, grad(loss(start), start))
    about((found - w.value).abs().max(), "1.15")


# ----------------------------------------------------------------------------------------------- KL

def test_26_k1_in_the_loss():
    found = {}
    for name, penalty in [("none", lambda x, y: 0 * x), ("k1", kl_k1), ("k2", kl_k2)]:
        bandit = Bandit()
        train(bandit.theta, lambda: bandit.loss(bandit.score, penalty), steps=200)
        found[name] = kl_exact(bandit.theta.detach(), bandit.ref_logp[:, 0])
    about(found["none"], "2.2")
    about(found["k1"], "2.2")
    about(found["k2"], "0.04")


def test_27_k3_in_the_loss():
    """Far from the reference: the cosine of the two gradients, and their lengths."""
    logits, ref = draw(5, seed=1).mul(2).requires_grad_(), torch.log_softmax(draw(5, seed=2), 0)
    logp = torch.log_softmax(logits, 0)
    k3 = grad((logp.exp().detach() * kl_k3(logp, ref)).sum(), logits)
    reverse = grad(kl_exact(logits, ref), logits)
    forward = grad(kl_exact(ref, logits), logits)
    close(k3, forward)
    about(torch.cosine_similarity(k3, reverse, 0), "0.64")


def test_28_estimates_may_be_negative():
    p, ref = policy_of(draw(50, seed=1)), policy_of(draw(50, seed=2))
    x = (p / ref).log()
    about((p * (x < 0)).sum(), "0.21")
    about((p * x).sum(), "0.84")
    assert kl_k3(p.log(), ref.log()).min() >= 0


def test_29_samples_of_the_reference():
    p, ref = policy_of(draw(50, seed=1)), policy_of(draw(50, seed=2))
    wrong = (ref * kl_k1(p.log(), ref.log())).sum()
    about(wrong, "-1.06")
    close(wrong, -(ref * (ref / p).log()).sum())


def test_30_k2_is_biased():
    p, ref = policy_of(draw(50, seed=1)), policy_of(draw(50, seed=2))
    about((p * kl_k2(p.log(), ref.log())).sum(), "1.03")
    about((p * (p / ref).log()).sum(), "0.84")


# -------------------------------------------------------------------------------------- preferences

def test_31_dpo_without_its_reference():
    right, wrong = Answers(), Answers()
    train(right.theta, dpo(right), steps=400)
    best = right.best
    wrong.ref_logp = torch.zeros(15, 3, dtype=f64)
    train(wrong.theta, dpo(wrong), steps=400)
    p = wrong.logp().sum(1).exp().detach()
    about(total_variation(right.logp().sum(1).exp(), best), "0.00")
    about(total_variation(p, best), "0.35")
    about(total_variation(p, normalised((wrong.score / 0.5).exp())), "0.00")


def test_32_dpo_may_lower_the_chosen():
    """A table of two logits for five answers: what shares parameters moves together."""
    features = draw(5, 2, seed=3)
    theta = draw(2, seed=4).requires_grad_()
    logp = torch.log_softmax(features @ theta, 0)
    n_falls = 0
    for i, j in itertools.permutations(range(5), 2):
        loss, _ = dpo_loss(logp[i:i + 1], logp[j:j + 1], logp[i:i + 1].detach(),
                           logp[j:j + 1].detach())
        n_falls += (grad(logp[i], theta) * -grad(loss, theta)).sum().item() < 0
    about(n_falls, "2")


def test_33_dpo_turned_around():
    logp = torch.zeros(2, dtype=f64, requires_grad=True)
    for sign, share in [(1, "1.00"), (-1, "0.00")]:
        theta = torch.zeros(2, dtype=f64, requires_grad=True)
        for _ in range(100):
            logp = torch.log_softmax(theta, 0)
            loss = dpo_loss(*logp.split(1), *torch.full((2, 1), math.log(0.5), dtype=f64))[0]
            theta = (theta - sign * grad(loss, theta) * 5).detach().requires_grad_()
        about(torch.softmax(theta, 0)[0], share)


def test_34_scores_are_not_absolute():
    chosen, rejected, of_prompt = draw(3, 6)
    close(reward_model_loss(chosen, rejected)[0],
          reward_model_loss(chosen + of_prompt, rejected + of_prompt)[0])


def test_35_a_larger_beta():
    """The first gradient is longer, and the end is nearer to the reference."""
    score, ref = draw(5, seed=5), torch.log_softmax(draw(5, seed=6), 0)
    i, j = torch.combinations(torch.arange(5)).T
    flipped = torch.sigmoid(score[j] - score[i])
    found = {}
    for beta in (0.1, 1.0):
        logits = ref.clone().requires_grad_()
        logp = torch.log_softmax(logits, 0)
        first = grad(dpo_loss(logp[i], logp[j], ref[i], ref[j], beta, flipped)[0], logits)
        best = normalised(ref.exp() * (score / beta).exp())
        found[beta] = first.norm().item(), total_variation(best, ref.exp())
    about(found[1.0][0] / found[0.1][0], "10.0")
    about(found[0.1][1], "0.85")
    about(found[1.0][1], "0.22")


# --------------------------------------------------------------------------------------- evaluation

def test_36_pass_at_k():
    """Two of eight answers are right. The mean of both formulas over all that may be sampled, where
    an answer is right with probability 0.25."""
    about(pass_at_k(8, 2, 4), "0.79")
    about(1 - (1 - 2 / 8) ** 4, "0.68")
    chance = [math.comb(8, c) * 0.25 ** c * 0.75 ** (8 - c) for c in range(9)]
    about(sum(q * pass_at_k(8, c, 4) for c, q in enumerate(chance)), "0.68")
    about(sum(q * (1 - (1 - c / 8) ** 4) for c, q in enumerate(chance)), "0.61")


# ---------------------------------------------------------------------------------------- the page

sys.path.insert(0, str(ROOT / "docs"))
import derivations  # noqa: E402
import errata  # noqa: E402


def numbers(text):
    return sorted(re.findall(r"-?\d+(?:\.\d+)?", text.replace("−", "-")))


@pytest.mark.parametrize("language", errata.PAGES)
def test_the_page_is_up_to_date(language):
    assert errata.PAGES[language].read_text(encoding="utf-8") == errata.page(language), (
        "lines have moved: run `python docs/concepts.py`")


@pytest.mark.parametrize("number", range(1, len(errata.ERRATA) + 1))
def test_the_page_has_the_numbers_of_the_test(number):
    """What `about` holds is on the page, in both languages, and they have no number that is not in
    the test."""
    erratum = errata.ERRATA[number - 1]
    source = inspect.getsource(globals()[errata.tests()[number]])
    shown = numbers(erratum.run)
    assert shown == numbers(erratum.run_zh)
    held = re.findall(r'"(-?\d+(?:\.\d+)?)"', source)
    assert set(held) <= set(shown), f"{set(held) - set(shown)} not on the page"
    for found in shown:
        assert re.search(rf"(?<![\d.]){re.escape(found)}(\.0)?(?!\.?\d)", source), found


def test_the_equations_exist():
    known = derivations.equations(derivations.PAGES["English"].read_text(encoding="utf-8"))
    for erratum in errata.ERRATA:
        for number in filter(None, erratum.why.split(", ")):
            assert number in known, number
