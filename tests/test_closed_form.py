"""Where the algorithms end up, against the known answer.

The policy that maximises  E_π[score] - β KL(π‖ref)  is  π* ∝ ref · exp(score / β)  (Ziegler et al.
2019; Rafailov et al. 2023, eq. 4). On the 15 answers of test_policy_gradient.py it can be written
down, and each method is trained on exact expectations, with the project's own losses, until it
stops moving. The distance is the total variation, ½ Σ |π - π*|: 0 equal, 1 disjoint.

    python tests/test_closed_form.py  draws docs/closed_form.png, the distances over the updates
"""
import itertools
import sys
from pathlib import Path

import pytest
import torch

# To be run as a script, too.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from advantages import gae, grpo_advantages, rloo_advantages, token_rewards
from losses import (
    aggregate, dpo_loss, kl_k2, kl_k3, policy_gradient_loss, ppo_policy_loss, reward_model_loss)
from support.plot import save_figure
from test_policy_gradient import ACTION, MASK, STATE, World

BETA, f64 = 0.5, torch.float64
PAIRS = torch.tensor(list(itertools.product(range(15), repeat=2)))  # (225, 2)


def total_variation(p, q):
    return 0.5 * (p - q).abs().sum().item()


def normalised(x):
    return x / x.sum()


def train(theta, loss, steps=600, watch=lambda: None):
    """Adam with a rate that falls to 0. `loss` is a function of nothing whose gradient is the
    expected one. -> what `watch` saw."""
    optimizer = torch.optim.Adam([theta], lr=0.1, betas=(0.9, 0.99), eps=1e-12)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / steps) ** 2)
    seen = []
    for _ in range(steps):
        seen.append(watch())
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
    return seen


class Answers:
    """The 15 answers, with a policy to be trained that starts as the reference."""

    def __init__(self):
        world = World(0)
        self.score, self.ref_logp = world.score, world.logp.detach()              # (15,), (15, 3)
        self.best = normalised((self.ref_logp.sum(1) + self.score / BETA).exp())  # π*, (15,)
        self.theta = world.theta.detach().clone().requires_grad_()

    def logp(self):
        return torch.log_softmax(self.theta, 1)[STATE, ACTION] * MASK  # (15, 3)

    def distance(self):
        return total_variation(self.logp().sum(1).exp(), self.best)


def ppo(world, epochs=1):
    """KL in the token rewards, several clipped epochs on one set of answers: where PPO rests,
    ratios are 1."""
    old = {"age": 0}

    def loss():
        # a new rollout
        if old["age"] % epochs == 0:
            logp = world.logp().detach()
            rewards = token_rewards(world.score, logp, world.ref_logp, MASK, BETA)
            advantages, _ = gae(rewards, torch.zeros_like(rewards), MASK, lam=1.0)
            old.update(logp=logp, advantages=advantages * logp.sum(1, keepdim=True).exp())
        old["age"] += 1
        return ppo_policy_loss(
            world.logp(), old["logp"], old["advantages"], MASK, mode="seq-sum", denominator=1)[0]
    return loss


def over_pairs(world, estimator, score):
    """The expected loss over every group of two answers. (15,) scores"""
    rows = PAIRS.flatten()
    logp = world.logp()
    p_group = logp.detach().sum(1).exp()[PAIRS].prod(1).repeat_interleave(2)
    return policy_gradient_loss(
        logp[rows], estimator(score[rows], 2) * p_group, MASK[rows], "seq-sum", denominator=2)[0]


def rloo(world):
    """KL in the reward of the whole answer."""
    return lambda: over_pairs(
        world, rloo_advantages,
        world.score - BETA * (world.logp().detach() - world.ref_logp).sum(1))


def rloo_k3(world, estimator=rloo_advantages):
    """KL in the loss: β E[Σ_t k3]."""
    def loss():
        logp = world.logp()
        k3 = kl_k3(logp, world.ref_logp) * logp.detach().sum(1, keepdim=True).exp()
        return (
            over_pairs(world, estimator, world.score)
            + BETA * aggregate(k3, MASK, "seq-sum", denominator=1))
    return loss


def grpo(world):
    """The same with advantages divided by the group's standard deviation."""
    return rloo_k3(world, grpo_advantages)


def dpo(world):
    """Every pair, preferred as Bradley-Terry would have it: P(i beats j) = σ(score_i - score_j). A
    pair that is preferred with probability P is a label that is wrong with probability 1 - P, which
    is what label smoothing says. No reward is seen."""
    i, j = PAIRS.T
    flipped, ref = torch.sigmoid(world.score[j] - world.score[i]), world.ref_logp.sum(1)

    def loss():
        logp = world.logp().sum(1)
        return dpo_loss(logp[i], logp[j], ref[i], ref[j], BETA, flipped)[0]
    return loss


def test_the_reference_is_far_from_the_optimum():
    assert Answers().distance() > 0.5


@pytest.mark.parametrize(
    "method", [ppo, lambda world: ppo(world, epochs=3), rloo, dpo],
    ids=["ppo", "ppo_3_epochs", "rloo", "dpo"])
def test_ends_at_the_optimum(method):
    world = Answers()
    train(world.theta, method(world))
    assert world.distance() < 1e-3


@pytest.mark.parametrize("method", [rloo_k3, grpo])
def test_ends_elsewhere(method):
    world = Answers()
    train(world.theta, method(world))
    assert world.distance() > 0.02


def test_the_implicit_reward_of_dpo_is_the_score_up_to_a_constant():
    world = Answers()
    train(world.theta, dpo(world))
    implicit = BETA * (world.logp() - world.ref_logp).sum(1).detach()
    torch.testing.assert_close(
        implicit - implicit.mean(), world.score - world.score.mean(), rtol=0, atol=1e-3)


def test_the_reward_model_recovers_the_score_up_to_a_constant():
    score = World(0).score[:6]
    found = torch.zeros(6, dtype=f64, requires_grad=True)
    pairs = list(itertools.permutations(range(6), 2))

    def loss():
        # Every pair, weighed by how often its first answer is preferred.
        return sum(
            torch.sigmoid(score[i] - score[j])
            * reward_model_loss(found[i:i + 1], found[j:j + 1])[0]
            for i, j in pairs)

    train(found, loss, steps=300)
    torch.testing.assert_close(
        (found - found.mean()).detach(), score - score.mean(), rtol=0, atol=1e-3)


# ------------------------------------------------------------------------------------- other places

class Bandit:
    """Answers of one token, six of them, so that each penalty's fixed point has a formula."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.score = torch.rand(6, dtype=f64, generator=generator)
        self.ref_logp = torch.log_softmax(
            torch.randn(6, dtype=f64, generator=generator), 0)[:, None]  # (6, 1)
        self.best = normalised(self.ref_logp[:, 0].exp() * (self.score / BETA).exp())
        self.theta = self.ref_logp[:, 0].clone().requires_grad_()
        self.mask = torch.ones(6, 1)

    def logp(self):
        return torch.log_softmax(self.theta, 0)[:, None]  # (6, 1)

    def policy(self):
        return self.logp().exp().detach()[:, 0]

    def loss(self, advantages, penalty):
        """Expected policy gradient loss plus β E_π[penalty], the way GRPO has it in its loss."""
        p = self.policy()[:, None]
        return (
            policy_gradient_loss(
                self.logp(), advantages[:, None] * p, self.mask, "seq-sum", denominator=1)[0]
            + BETA * aggregate(
                p * penalty(self.logp(), self.ref_logp), self.mask, "seq-sum", denominator=1))


def test_k2_in_the_loss_ends_at_the_optimum():
    bandit = Bandit()
    train(bandit.theta, lambda: bandit.loss(bandit.score, kl_k2))
    assert total_variation(bandit.policy(), bandit.best) < 1e-3


def test_k3_in_the_loss_ends_elsewhere():
    """E[∇k3] = ∇KL(ref‖π), the other direction. Its optimum is π = β ref / (λ - score), with λ such
    that it sums to 1: not exponential in the score, and never near 0 where the reference is not."""
    bandit = Bandit()
    train(bandit.theta, lambda: bandit.loss(bandit.score, kl_k3))
    ref = bandit.ref_logp[:, 0].exp()
    low, high = bandit.score.max().item(), bandit.score.max().item() + 100
    # bisection for λ
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if (BETA * ref / (middle - bandit.score)).sum() > 1
            else (low, middle))
    assert total_variation(bandit.policy(), BETA * ref / (high - bandit.score)) < 1e-3
    assert total_variation(bandit.policy(), bandit.best) > 0.01


def test_dividing_by_the_group_std_ends_elsewhere():
    """In groups of two it leaves only who is better: A_i = ±1/√2. Even with the right penalty, k2,
    the policy goes to ref · exp(w / (√2 β)), w_i = P(i beats another answer) - P(it loses): how
    often an answer wins counts, not by how much."""
    bandit, pairs = Bandit(), torch.tensor(list(itertools.product(range(6), repeat=2)))  # (36, 2)

    def loss():
        advantages = grpo_advantages(bandit.score[pairs].flatten(), 2, eps=0.0).view(-1, 2)
        # of each answer
        expected = torch.zeros(6, dtype=f64).index_add(
            0, pairs[:, 0], advantages[:, 0] * bandit.policy()[pairs[:, 1]])
        return bandit.loss(expected, kl_k2)

    train(bandit.theta, loss)
    p = bandit.policy()
    w = (torch.sign(bandit.score[:, None] - bandit.score) * p).sum(1)
    assert total_variation(
        p, normalised(bandit.ref_logp[:, 0].exp() * (w / (2 ** 0.5 * BETA)).exp())) < 1e-3
    assert total_variation(p, bandit.best) > 0.05


# --------------------------------------------------------------------------------------- the figure

# A method's line and its marks; those of PPO are wide and pale, and lie under RLOO's, with which
# they coincide: at ratio 1 the two have the same expected gradient.
LINES = {
    "PPO, KL in the reward": (ppo, {"linewidth": 6, "alpha": 0.35}),
    "RLOO, KL in the reward": (rloo, {"linestyle": "--"}),
    "DPO, from preferences alone": (dpo, {"marker": "s"}),
    "RLOO, KL (k3) in the loss": (rloo_k3, {"marker": "^"}),
    "the same, divided by the group's std: GRPO": (grpo, {"marker": "o"})}
DRAWN_BY = [World, Answers, train, ppo, over_pairs, rloo, rloo_k3, grpo, dpo]


def draw(file: Path, steps: int = 600) -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for i, (label, (method, style)) in enumerate(LINES.items()):
        world = Answers()
        distances = train(world.theta, method(world), steps, world.distance)
        axis.plot(distances, label=label, markevery=(8 * i, 60), markersize=5, **style)
    axis.set(xlabel="update, on exact expectations", ylabel="total variation distance to π*")
    axis.set(yscale="log", ylim=(1e-4, 1))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    styles = [(label, method.__name__, style) for label, (method, style) in LINES.items()]
    save_figure(figure, file, [styles, draw, *DRAWN_BY], dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(__file__).parent.parent / "docs" / "closed_form.png")
