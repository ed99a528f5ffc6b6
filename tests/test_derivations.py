"""Every numbered equation of docs/DERIVATIONS.md, computed: test_a7_... is the test of (a.7).

`left` and `right` are the two sides, found in different ways: sums over all outcomes against a
recursion, autograd against a formula, the project's own functions against the definition. Where
the equation is an inequality, a second case shows that it can't be tighter.

    python tests/test_derivations.py  turns every sign of every `right`, drops every term and every
                                      factor, one at a time, and prints what no test noticed
"""
import ast
import copy
import functools
import inspect
import itertools
import math
import re
import sys
import zlib
from pathlib import Path

import pytest
import torch

# To be run as a script, too.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import test_policy_gradient as text
from advantages import (
    discounted_returns, explained_variance, gae, grpo_advantages, rloo_advantages, token_rewards)
from losses import (
    dpo_loss, entropy, gather_log_probs, grpo_loss, kl_exact, kl_k1, kl_k2, kl_k3,
    policy_gradient_loss, ppo_policy_loss, reward_model_loss, sft_loss, value_loss)

ROOT = Path(__file__).parent.parent
f64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=f64, generator=torch.Generator().manual_seed(seed))


def t(*values):
    return torch.tensor(values, dtype=f64)


def close(found, expected, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(torch.as_tensor(found, dtype=f64),
                               torch.as_tensor(expected, dtype=f64), rtol=rtol, atol=atol)


def at_most(small, large):
    assert bool((torch.as_tensor(small - large) <= 1e-12).all())


def grad(y, x):
    return torch.autograd.grad(y, x, retain_graph=True)[0]


def grads(y, x):
    """∇ of each of (N,), along a new first dimension."""
    eye = torch.eye(len(y), dtype=f64)
    return torch.autograd.grad(y, x, eye, retain_graph=True, is_grads_batched=True)[0]


def expect(p, x):
    """E[x] over the outcomes of the first dimension, whose probabilities are p."""
    return torch.tensordot(p, x, 1)


# --------------------------------------------------------------------------------------- the worlds

LEVELS = [slice(0, 2), slice(2, 14), slice(14, 86)]
# A state is its whole history: prompt, action, what the environment wrote, action, ...
HISTORIES = [(x, *h) for n in range(3) for x in range(2)
             for h in itertools.product(range(3), range(2), repeat=n)]
TRAJECTORIES = list(itertools.product(*map(range, (2, 3, 2, 3, 2, 3))))
STATE = torch.tensor([[HISTORIES.index(y[:n]) for n in (1, 3, 5)] for y in TRAJECTORIES])
ACTION = torch.tensor([[y[n] for n in (1, 3, 5)] for y in TRAJECTORIES])
WRITTEN = torch.tensor([[y[n] for n in (2, 4)] for y in TRAJECTORIES])
ALL = torch.ones(216, 3)
STEP = torch.tensor([n for n, level in enumerate(LEVELS, 1)
                     for _ in range(level.start, level.stop)])          # 1, 2 or 3 of each state


class Tree:
    """A prompt out of two, three actions out of three each, and an environment that writes 0 or 1
    at random after each action but the last: 86 states, 216 trajectories, a reward for every action
    in every state. All is written down; nothing is sampled."""

    def __init__(self):
        self.start = torch.softmax(draw(2), 0)
        self.theta = draw(86, 3, seed=1).requires_grad_()
        self.environment = torch.softmax(draw(86, 3, 2, seed=2), 2)     # P(what is written | s, a)
        self.reward = draw(86, 3, seed=3)
        self.rewards = self.reward[STATE, ACTION]                       # (216, 3)
        self.score = self.rewards.sum(1)                                # (216,)
        self.policy = torch.softmax(self.theta, 1)                      # (86, 3)
        self.logp = torch.log_softmax(self.theta, 1)[STATE, ACTION]     # (216, 3)
        self.old = torch.softmax(self.theta + 0.5 * draw(86, 3, seed=4), 1).detach()
        self.p = self.probability(self.policy).detach()                 # (216,)
        self.pi = self.policy.detach()
        self.value, self.q = self.evaluate(self.pi)
        self.J = (self.start * self.evaluate(self.policy)[0][:2]).sum()
        self.gradient = grad(self.J, self.theta)                        # (86, 3)
        self.critic = self.value + draw(86, seed=5)                     # a wrong one

    def probability(self, policy):
        """Of each trajectory, (216,)."""
        written = self.environment[STATE[:, :2], ACTION[:, :2], WRITTEN]
        return self.start[STATE[:, 0]] * policy[STATE, ACTION].prod(1) * written.prod(1)

    def evaluate(self, policy, gamma=1.0):
        """V (86,) and Q (86, 3), backwards from the last action."""
        values, qs, after = [], [], torch.zeros(72 * 6, dtype=f64)
        for level in reversed(LEVELS):
            q = self.reward[level] + gamma * (
                self.environment[level] * after.view(-1, 3, 2)).sum(2)
            after = (policy[level] * q).sum(1)
            values.insert(0, after)
            qs.insert(0, q)
        return torch.cat(values), torch.cat(qs)

    def given_state(self, x):
        """E[x_t | s_t] of each state: (216, 3) -> (86,)"""
        return self.sums(STATE, x, 86) / self.sums(STATE, torch.ones(216, 3, dtype=f64), 86)

    def given_action(self, x):
        """E[x_t | s_t, a_t]: (216, 3) -> (86, 3)"""
        i = STATE * 3 + ACTION
        mean = self.sums(i, x, 258) / self.sums(i, torch.ones(216, 3, dtype=f64), 258)
        return mean.view(86, 3)

    def sums(self, index, x, n):
        return torch.zeros(n, dtype=f64).index_add(
            0, index.flatten(), (self.p[:, None] * x).flatten())

    def visits(self, policy):
        """d_t(s): how likely the state is the t-th one, (86,)."""
        p = self.probability(policy)
        return torch.zeros(86, dtype=f64).index_add(
            0, STATE.flatten(), p.repeat_interleave(3))


@functools.cache
def tree():
    return Tree()


@functools.cache
def scores():
    """∇log π(a_t | s_t) of each trajectory's actions, by the formula: (216, 3, 86, 3)."""
    out = torch.zeros(216, 3, 86, 3, dtype=f64)
    row, step = torch.arange(216)[:, None], torch.arange(3)
    out[row, step, STATE] = -tree().pi[STATE]
    out[row, step, STATE, ACTION] += 1
    return out


def weighted(advantages):
    """E[Σ_t ∇log π(a_t | s_t) A_t]: (216, 3) -> (86, 3)"""
    return torch.einsum("i,it,itsa->sa", tree().p, advantages, scores())


def to_go(x, gamma=1.0):
    """Σ_{k ≥ t} γ^(k - t) x_k, from the definition: (N, T) -> (N, T)"""
    T = x.shape[1]
    power = torch.tensor([[gamma ** (k - n) if k >= n else 0.0 for n in range(T)]
                          for k in range(T)], dtype=f64)
    return x @ power


class Chain:
    """Four states that follow each other for ever, three actions, γ = 0.9."""
    gamma = 0.9

    def __init__(self):
        self.P = torch.softmax(2 * draw(4, 3, 4, seed=6), 2)            # P(s' | s, a)
        self.r = draw(4, 3, seed=7)
        self.pi = torch.softmax(draw(4, 3, seed=8), 1)

    def q(self, v):
        return self.r + self.gamma * self.P @ v

    def backup(self, v, pi):
        return (pi * self.q(v)).sum(1)

    def value(self, pi):
        """Σ_k γ^k P_π^k r_π, what all later steps bring, 300 of them."""
        P, now = torch.einsum("sa,sad->sd", pi, self.P), (pi * self.r).sum(1)
        total = torch.zeros(4, dtype=f64)
        for _ in range(300):
            total, now = total + now, self.gamma * P @ now
        return total

    @functools.cached_property
    def best(self):
        """The largest value of each state over all 81 deterministic policies."""
        choices = itertools.product(range(3), repeat=4)
        return torch.stack([self.value(torch.eye(3, dtype=f64)[list(c)]) for c in choices]).amax(0)


@functools.cache
def chain():
    return Chain()


@functools.cache
def answers():
    """The 15 answers of test_policy_gradient.py; their reference is another random policy."""
    world = text.World(0)
    world.reference = torch.softmax(text.World(1).theta.detach(), 1)    # (7, 3)
    world.ref_logp = world.reference.log()[text.STATE, text.ACTION] * text.MASK
    world.table = torch.zeros(7, 3, dtype=f64)                          # reward[prefix, action]
    world.table[text.STATE[text.MASK], text.ACTION[text.MASK]] = world.rewards[text.MASK]
    world.ended = torch.tensor([[prefix + (a,) not in text.PREFIXES for a in range(3)]
                                for prefix in text.PREFIXES])
    world.after = torch.tensor([[text.PREFIXES.index(prefix + (a,)) if prefix + (a,)
                                 in text.PREFIXES else 0 for a in range(3)]
                                for prefix in text.PREFIXES])
    return world


def answer_scores():
    """∇log π(y) of each answer by autograd, (15, 7, 3)."""
    return grads(answers().logp.sum(1), answers().theta)


# One state and five outcomes: a policy, and a reference or an older policy.
LOGITS = draw(5, seed=10)
REF = torch.softmax(draw(5, seed=11), 0)
EYE = torch.eye(5, dtype=f64)


def policy_of(logits):
    return torch.softmax(logits, 0)


def at_logits(function):
    """∇ of a function of the logits, by autograd, at LOGITS."""
    logits = LOGITS.clone().requires_grad_()
    return torch.autograd.grad(function(logits), logits)[0]


def score_matrix():
    """∇log π(a) in row a, by the formula: (5, 5)"""
    return EYE - policy_of(LOGITS)


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


# ---------------------------------------------------------------------------- a. from J to the loss

def test_a1_probability_of_a_trajectory():
    """Against the share of each trajectory among many that are sampled, draw by draw."""
    w, n = tree(), 100_000
    rng = torch.Generator().manual_seed(0)

    def pick(p):
        """One outcome of each row, by inverting its cumulative distribution."""
        u = torch.rand(len(p), 1, dtype=f64, generator=rng)
        return (u > p.cumsum(1)[:, :-1]).sum(1)

    state = code = pick(w.start.expand(n, 2))
    for step in range(3):
        action = pick(w.pi[state])
        code = code * 3 + action
        if step < 2:
            wrote = pick(w.environment[state, action])
            code = code * 2 + wrote
            level = LEVELS[step]
            state = level.stop + (state - level.start) * 6 + action * 2 + wrote
    left = torch.bincount(code, minlength=216).double() / n
    policy = w.pi[STATE, ACTION]
    environment = w.environment[STATE[:, :2], ACTION[:, :2], WRITTEN]
    right = w.start[STATE[:, 0]] * policy.prod(1) * environment.prod(1)
    close(left, right, rtol=0, atol=2e-3)


def test_a2_expected_reward():
    """Against the recursion, which has no trajectories in it."""
    w = tree()
    left = w.J.detach()
    right = (w.p * w.rewards.sum(1)).sum()
    close(left, right)


def test_a3_gradient_of_the_sum():
    w = tree()
    left = w.gradient
    slopes = grads(w.probability(w.policy), w.theta)
    right = torch.einsum("isa,i->sa", slopes, w.score)
    close(left, right)


def test_a4_log_derivative():
    w = tree()
    for i in (0, 100, 215):
        p = w.probability(w.policy)[i]
        left = grad(p, w.theta)
        right = p * grad(p.log(), w.theta)
        close(left, right)


def test_a5_gradient_as_an_expectation():
    w = tree()
    left = w.gradient
    slopes = grads(w.probability(w.policy).log(), w.theta)
    right = expect(w.p * w.score, slopes)
    close(left, right)


def test_a6_log_of_the_product():
    w = tree()
    left = w.p.log()
    written = w.environment[STATE[:, :2], ACTION[:, :2], WRITTEN]
    right = w.start.log()[STATE[:, 0]] + w.logp.sum(1) + written.log().sum(1)
    close(left, right)


def test_a7_environment_vanishes():
    w = tree()
    for i in (0, 100, 215):
        left = grad(w.probability(w.policy)[i].log(), w.theta)
        right = sum(scores()[i])
        close(left, right)


def test_a8_softmax():
    """The whole matrix: of each outcome's log-prob, by each logit."""
    logits = LOGITS.clone().requires_grad_()
    left = grads(gather_log_probs(logits.expand(5, 5), torch.arange(5)), logits)
    right = EYE - policy_of(LOGITS)
    close(left, right)


def test_a9_the_gradient_with_the_whole_reward():
    w = tree()
    left = w.gradient
    right = torch.einsum("i,itsa,i->sa", w.p, scores(), w.score)
    close(left, right)


def test_a10_scores_have_mean_zero():
    left = expect(policy_of(LOGITS), score_matrix())
    right = torch.zeros(5)
    close(left, right)
    # It is the gradient of Σ_a π(a), which is 1.
    close(left, at_logits(lambda z: policy_of(z).sum()))


def test_a11_past_rewards_count_nothing():
    w = tree()
    for k, n in [(0, 1), (0, 2), (1, 2)]:
        left = torch.einsum("i,i,isa->sa", w.p, w.rewards[:, k], scores()[:, n])
        close(left, torch.zeros(86, 3))
        # The same for a later reward is not 0.
        assert torch.einsum("i,i,isa->sa", w.p, w.rewards[:, n], scores()[:, k]).norm() > 0.01


def test_a12_reward_to_go():
    w = tree()
    left = w.gradient
    right = sum(torch.einsum("i,isa,i->sa", w.p, scores()[:, n], w.rewards[:, n:].sum(1))
                for n in range(3))
    close(left, right)


def test_a13_a_baseline_has_mean_zero():
    left = weighted(draw(86, seed=20)[STATE])
    close(left, torch.zeros(86, 3))
    # One that depends on the action does not.
    assert weighted(draw(86, 3, seed=20)[STATE, ACTION]).norm() > 0.1


def test_a14_gradient_with_a_baseline():
    """Right in the mean for any b; with less noise for a good one, the states' values."""
    w = tree()

    def noise(advantages):
        g = torch.einsum("it,itsa->isa", advantages, scores()).flatten(1)
        return (w.p * (g - w.gradient.flatten()).square().sum(1)).sum()

    for b in (draw(86, seed=20), w.value):
        left = w.gradient
        right = to_go(w.rewards) - b[STATE]
        close(left, weighted(right))
    assert noise(right) < 0.9 * noise(to_go(w.rewards))


def test_a15_the_best_baseline():
    """Against one Newton step on the parabola, from any start."""
    p, G, g2 = policy_of(LOGITS), draw(5, seed=21), score_matrix().square().sum(1)
    b = t(0.7)[0].requires_grad_()
    [slope] = torch.autograd.grad((p * g2 * (G - b).square()).sum(), b, create_graph=True)
    left = (b - slope / grad(slope, b)).detach()
    right = (p * g2 * G).sum() / (p * g2).sum()
    close(left, right)


def one_sample():
    """The gradient from each trajectory alone, and its mean: of the first 14 states' logits."""
    w = tree()
    g = torch.einsum("it,itsa->isa", to_go(w.rewards) - w.value[STATE], scores()[:, :, :14])
    return g.flatten(1), w.gradient[:14].flatten()


PAIRS = torch.cartesian_prod(torch.arange(216), torch.arange(216)).T


def test_a16_the_mean_of_samples():
    """All pairs of trajectories, N = 2."""
    w, (i, j) = tree(), PAIRS
    g, truth = one_sample()
    left = truth
    right = expect(w.p[i] * w.p[j], 1 / 2 * (g[i] + g[j]))
    close(left, right)


def test_a17_variance_falls_with_samples():
    w, (i, j) = tree(), PAIRS
    g, truth = one_sample()
    left = (w.p[i] * w.p[j] * ((g[i] + g[j]) / 2 - truth).square().sum(1)).sum()
    N = 2
    right = 1 / N * (w.p * (g - truth).square().sum(1)).sum()
    close(left, right)


def test_a18_surrogate():
    w, rows = tree(), torch.tensor([3, 50, 50, 199])
    A = draw(216, 3, seed=22)
    loss, _ = policy_gradient_loss(w.logp[rows], A[rows], ALL[rows], "seq-sum", denominator=4)
    left = grad(loss, w.theta)
    right = -1 / 4 * torch.einsum("nt,ntsa->sa", A[rows], scores()[rows])
    close(left, right)


def test_a19_divided_by_tokens():
    w = answers()
    rows = [0, 5, 14]
    logp, A, mask = w.logp[rows], draw(3, 3, seed=23), text.MASK[rows]
    left = w.grad(policy_gradient_loss(logp, A, mask, "token-mean")[0])
    N, n_tokens = len(rows), sum(len(text.ANSWERS[i]) for i in rows)
    right = N / n_tokens * w.grad(
        policy_gradient_loss(logp, A, mask, "seq-sum", denominator=3)[0])
    close(left, right)


# ---------------------------------------------------------------------------------------- b. values

def test_b1_return():
    rewards, gamma = tree().rewards, 0.9
    left = to_go(rewards, gamma)
    ends = torch.zeros(216, 1, dtype=f64)
    later = torch.cat((left[:, 1:], ends), 1)
    right = rewards + gamma * later
    close(left, right)
    close(left, discounted_returns(rewards, ALL, gamma))


def test_b2_value_is_the_mean_of_q():
    w = tree()
    G = to_go(w.rewards, 0.9)
    left = w.given_state(G)
    right = (w.pi * w.given_action(G)).sum(1)
    close(left, right)


def next_values(values):
    """Σ_s' P(s' | s, a) V(s') of the tree's states, 0 after the last action: (86,) -> (86, 3)"""
    after = torch.zeros(86, 3, dtype=f64)
    for now, then in zip(LEVELS, LEVELS[1:]):
        after[now] = (tree().environment[now] * values[then].view(-1, 3, 2)).sum(2)
    return after


def test_b3_q_from_the_next_value():
    w, gamma = tree(), 0.9
    G = to_go(w.rewards, gamma)
    left = w.given_action(G)
    right = w.reward + gamma * next_values(w.given_state(G))
    close(left, right)


def test_b4_bellman():
    w, gamma = tree(), 0.9
    left = w.given_state(to_go(w.rewards, gamma))
    right = (w.pi * (w.reward + gamma * next_values(left))).sum(1)
    close(left, right)


def test_b5_advantages_have_mean_zero():
    w = tree()
    G = to_go(w.rewards, 0.9)
    left = (w.pi * w.given_action(G)).sum(1)
    right = w.given_state(G)
    close(left - right, torch.zeros(86))


def test_b6_gradient_with_advantages():
    w = tree()
    left = w.gradient
    right = w.q - w.value[:, None]
    close(left, weighted(right[STATE, ACTION]))
    close((w.pi * right).sum(1), torch.zeros(86))


def test_b7_matrix_form():
    c = chain()
    left = c.value(c.pi)
    P, r = torch.einsum("sa,sad->sd", c.pi, c.P), (c.pi * c.r).sum(1)
    right = torch.linalg.solve(torch.eye(4, dtype=f64) - c.gamma * P, r)
    close(left, right)


def test_b8_contraction():
    c = chain()
    for v, u in [(draw(4, seed=30), draw(4, seed=31)), (draw(4), draw(4) + 1.7)]:
        left = (c.backup(v, c.pi) - c.backup(u, c.pi)).abs().max()
        right = c.gamma * (v - u).abs().max()
        at_most(left, right)
    # A difference that is the same in all states shrinks by γ exactly.
    close(left, right)


def test_b9_policy_improvement():
    c = chain()
    greedy = torch.eye(3, dtype=f64)[c.q(c.value(c.pi)).argmax(1)]
    left = c.value(c.pi)
    right = c.value(greedy)
    at_most(left, right)
    # Improved until nothing changes, the greedy policy is the best there is.
    for _ in range(10):
        greedy = torch.eye(3, dtype=f64)[c.q(c.value(greedy)).argmax(1)]
    close(c.value(greedy), c.best)
    assert (left < c.best).all()


def test_b10_bellman_optimality():
    c = chain()
    best = c.best
    left = best
    right = (c.r + c.gamma * c.P @ best).max(1).values
    close(left, right)


def test_b11_q_learning():
    c = chain()
    left = c.q(c.best)
    right = c.r + c.gamma * c.P @ left.max(1).values
    close(left, right)


def test_b12_sarsa():
    c = chain()
    left = c.q(c.value(c.pi))
    right = c.r + c.gamma * c.P @ (c.pi * left).sum(1)
    close(left, right)


BETA = 0.6


def tilted(q, ref, beta=BETA):
    """ref exp(q / β) / Z, and Z."""
    weight = ref * (q / beta).exp()
    return weight / weight.sum(-1, keepdim=True), weight.sum(-1)


def test_b13_soft_maximum():
    p, q = policy_of(LOGITS), draw(5, seed=32)
    best, Z = tilted(q, REF)
    left = (p * (q - BETA * (p / REF).log())).sum()
    right = BETA * Z.log() - BETA * kl(p, best)
    close(left, right)


def soft_values():
    """Backwards over the prefixes of the 15 answers: V* (7,), Q* (7, 3)."""
    w = answers()
    V, Q = torch.zeros(7, dtype=f64), torch.zeros(7, 3, dtype=f64)
    for s in reversed(range(7)):
        Q[s] = w.table[s] + torch.where(w.ended[s], 0, V[w.after[s]])
        V[s] = BETA * tilted(Q[s], w.reference[s])[1].log()
    return V, Q


def test_b14_soft_bellman():
    """The best policy's regularised return, over all answers from each prefix on."""
    w = answers()
    V, Q = soft_values()
    policy = tilted(Q, w.reference)[0]
    logp = policy.log()[text.STATE, text.ACTION] * text.MASK
    earned = to_go((w.rewards - BETA * (logp - w.ref_logp)) * text.MASK)
    p = logp.sum(1).exp()
    left = torch.stack([
        (p[:, None] * earned)[here].sum() / p[here.any(1)].sum()
        for here in [(text.STATE == s) & text.MASK for s in range(7)]])
    right = BETA * (w.reference * (Q / BETA).exp()).sum(1).log()
    close(left, right)


def answer_optimum():
    """π*(y) over the 15 answers, and Z."""
    w = answers()
    return tilted(w.score, w.ref_logp.sum(1).exp())


def test_b15_soft_policy():
    """The next token's probability given the prefix, from the probabilities of whole answers."""
    w = answers()
    best, _ = answer_optimum()
    joint = torch.zeros(7, 3, dtype=f64).index_put(
        (text.STATE[text.MASK], text.ACTION[text.MASK]),
        best[:, None].expand(15, 3)[text.MASK], accumulate=True)
    left = joint / joint.sum(1, keepdim=True)
    V, Q = soft_values()
    right = w.reference * ((Q - V[:, None]) / BETA).exp()
    close(left, right)


def test_b16_tokens_and_whole_answers():
    w = answers()
    left = soft_values()[0][0]
    right = BETA * (w.ref_logp.sum(1).exp() * (w.score / BETA).exp()).sum().log()
    close(left, right)


def test_b17_between_mean_and_maximum():
    q = draw(5, seed=33)
    low, high = (REF * q).sum(), q.max()
    for beta in (1e-2, 0.3, 1.0, 10.0, 1e5):
        soft = beta * torch.logsumexp(REF.log() + q / beta, 0)
        at_most(low, soft)
        at_most(soft, high)
    close(soft, low, rtol=0, atol=1e-4)
    close(1e-4 * torch.logsumexp(REF.log() + q / 1e-4, 0), high, rtol=0, atol=1e-3)


def test_b18_running_mean():
    G, V = draw(9, seed=34), t(0.0)[0]
    for n in range(1, 10):
        left = G[:n].mean()
        right = V + (G[n - 1] - V) / n
        close(left, right)
        V = right


def test_b19_expected_td_update():
    w, gamma, V = tree(), 0.9, tree().critic
    delta = gae(w.rewards, V[STATE], ALL, gamma, 0.0)[0]
    left = w.given_state(delta)
    right = (w.pi * (w.reward + gamma * next_values(V))).sum(1) - V
    close(left, right)
    # It is 0 in every state for the true values, and only for them.
    true = w.evaluate(w.pi, gamma)[0]
    close(w.given_state(gae(w.rewards, true[STATE], ALL, gamma, 0.0)[0]), torch.zeros(86))


# ------------------------------------------------- c. importance sampling, TRPO's bound, PPO's clip

def test_c1_importance_sampling():
    p, f = policy_of(LOGITS), draw(5, seed=40)
    left = (p * f).sum()
    right = (REF * (p / REF) * f).sum()
    close(left, right)


def test_c2_ratio_of_whole_answers():
    """J by the recursion, from trajectories of the old policy."""
    w = tree()
    left = w.J.detach()
    rho = (w.pi / w.old)[STATE, ACTION]
    right = (w.probability(w.old) * rho.prod(1) * w.score).sum()
    close(left, right)


def test_c3_products_of_ratios_explode():
    """Four tokens, each drawn alike: 625 answers."""
    T, rho = 4, policy_of(LOGITS) / REF
    tokens = torch.cartesian_prod(*[torch.arange(5)] * T)
    left = (REF[tokens].prod(1) * rho[tokens].prod(1).square()).sum()
    right = (REF * rho.square()).sum() ** T
    close(left, right)
    assert right > (REF * rho.square()).sum() > 1


def old_advantages():
    V, Q = tree().evaluate(tree().old)
    return Q - V[:, None]                                               # (86, 3)


def old_J():
    return (tree().start * tree().evaluate(tree().old)[0][:2]).sum()


def test_c4_performance_difference():
    w = tree()
    left = w.J.detach() - old_J()
    right = (w.p * old_advantages()[STATE, ACTION].sum(1)).sum()
    close(left, right)


def surrogate(policy):
    """E_old[Σ_t ρ_t A_old]."""
    rho = (policy / tree().old)[STATE, ACTION]
    return expect(tree().probability(tree().old), (rho * old_advantages()[STATE, ACTION]).sum(1))


def test_c5_surrogate():
    """As a sum over states, each as likely as under the old policy."""
    w = tree()
    left = surrogate(w.pi)
    right = (w.visits(w.old)[:, None] * w.pi * old_advantages()).sum()
    close(left, right)


def test_c6_the_surrogate_touches_J():
    """Where the policy is the old one: the same gradient. Elsewhere another."""
    w, theta = tree(), tree().old.log().requires_grad_()
    policy = torch.softmax(theta, 1)
    left = grad(surrogate(policy), theta)
    right = grad((w.start * w.evaluate(policy)[0][:2]).sum(), theta)
    close(left, right)
    assert (grad(surrogate(w.policy), w.theta) - w.gradient).norm() > 0.01


def test_c7_what_the_surrogate_leaves_out():
    w = tree()
    left = w.J.detach() - old_J() - surrogate(w.pi)
    mean = (w.pi * old_advantages()).sum(1)
    right = ((w.visits(w.pi) - w.visits(w.old)) * mean).sum()
    close(left, right)


def alpha(policy, old):
    """The largest total variation of any state."""
    return 0.5 * (policy - old).abs().sum(1).max()


def test_c8_states_drift_slowly():
    w = tree()
    a = 1e-6
    # The second pair: whoever leaves the first action never comes back to the old states.
    sure = t(1, 0, 0).expand(86, 3)
    left_it = t(1 - a, a, 0).expand(86, 3)
    for policy, old, rtol in [(w.pi, w.old, None), (left_it, sure, 1e-5)]:
        drift = (w.visits(policy) - w.visits(old)).abs()
        for n in (1, 2, 3):
            left = drift[STEP == n].sum()
            right = 2 * (n - 1) * alpha(policy, old)
            at_most(left, right)
            if rtol:
                close(left, right, rtol=rtol)


def test_c9_small_gain_in_a_state():
    w = tree()
    A = old_advantages()
    at_most((w.pi * A).sum(1).abs(), 2 * alpha(w.pi, w.old) * A.abs().max())
    # Two actions, as likely before: here it is an equality.
    old, policy, A = t([0.5, 0.5]), t([0.6, 0.4]), t([3.0, -3.0])
    left = (policy * A).sum(1).abs()[0]
    right = 2 * alpha(policy, old) * A.abs().max()
    close(left, right)


def test_c10_trpo_bound():
    w, T = tree(), 3
    a, eps = alpha(w.pi, w.old), old_advantages().abs().max()
    left = (w.J.detach() - old_J() - surrogate(w.pi)).abs()
    right = 2 * T * (T - 1) * a ** 2 * eps
    at_most(left, right)
    # The sum over the answer of (c.8) times (c.9).
    close(sum(2 * (n - 1) * a * 2 * a * eps for n in range(1, T + 1)), right)


def test_c11_pinsker():
    for seed in range(20):
        p, q = torch.softmax(3 * draw(2, 5, seed=seed), 1)
        at_most(0.5 * (p - q).abs().sum(), (kl(p, q) / 2).sqrt())
    p, q = t(0.5 + 1e-4, 0.5 - 1e-4), t(0.5, 0.5)
    left = 0.5 * (p - q).abs().sum()
    right = (kl(p, q) / 2).sqrt()
    close(left, right, rtol=1e-6)


def test_c12_fisher():
    p, d = policy_of(LOGITS), 1e-4 * draw(5, seed=41)
    left = kl(p, policy_of(LOGITS + d))
    F = torch.einsum("a,ai,aj->ij", p, score_matrix(), score_matrix())
    right = 1 / 2 * d @ F @ d
    close(left, right, rtol=1e-3, atol=0)


def test_c13_natural_gradient():
    """Three outcomes, the last logit fixed at 0; against the best of all directions."""
    p, g, delta = torch.softmax(t(0.3, -0.8, 0.0), 0), t(1.0, 2.0), 0.01
    F = torch.diag(p[:2]) - p[:2, None] * p[:2]
    angle = torch.linspace(0, 2 * math.pi, 100_001, dtype=f64)
    d = torch.stack((angle.cos(), angle.sin()), 1)
    d = d * (2 * delta / (d @ F * d).sum(1)).sqrt()[:, None]            # ½ d F d = δ
    left = d[(d @ g).argmax()]
    natural = torch.linalg.solve(F, g)
    right = (2 * delta / (g @ natural)).sqrt() * natural
    close(left, right, rtol=1e-3)


RHO = t(0.5, 0.7, 0.9, 1.0, 1.1, 1.3, 2.0).repeat(2)
ADVANTAGE = t(2.0, -3.0).repeat_interleave(7)


def clipped_loss(rho, A):
    """-ppo_policy_loss of each ratio alone."""
    one = torch.ones(len(rho), 1)
    zeros = torch.zeros(len(rho), 1, dtype=f64)
    return -ppo_policy_loss(rho.log()[:, None], zeros, A, one, mode="seq-sum", denominator=1)[0]


def test_c14_four_cases_of_the_clip():
    eps = 0.2
    for rho, A in zip(RHO, ADVANTAGE):
        left = clipped_loss(rho[None], A[None])
        right = A * min(rho, 1 + eps) if A > 0 else A * max(rho, 1 - eps)
        close(left, right)
        # Never more than without a clip.
        at_most(left, rho * A)


def test_c15_gradient_of_the_clip():
    """By log π: the ratio's own derivative is the ratio."""
    eps, log_rho = 0.2, RHO.log().requires_grad_()
    left = grad(clipped_loss(log_rho.exp(), ADVANTAGE), log_rho)
    for i, (rho, A) in enumerate(zip(RHO, ADVANTAGE)):
        counts = rho < 1 + eps if A > 0 else rho > 1 - eps
        right = A * rho * counts
        close(left[i], right)


def test_c16_at_ratio_one():
    w, rows = tree(), torch.tensor([3, 50, 199])
    A = draw(3, 3, seed=42)
    loss, _ = ppo_policy_loss(w.logp[rows], w.logp[rows].detach(), A, ALL[rows], mode="seq-sum",
                              denominator=1)
    left = grad(-loss, w.theta)
    right = torch.einsum("nt,ntsa->sa", A, scores()[rows])
    close(left, right)


# ------------------------------------------------------------------------- d. k-step sums to GAE

GAMMA, LAMBDA = 0.9, 0.7


def td_errors(V, gamma=GAMMA):
    """δ_t, with V = 0 after the last action. (216, 3)"""
    values = torch.cat((V[STATE], torch.zeros(216, 1, dtype=f64)), 1)
    return tree().rewards + gamma * values[:, 1:] - values[:, :-1]


def k_step(V, n, k, gamma=GAMMA):
    """A^(k) of the n-th action, from its definition. (216,)"""
    rewards = sum(gamma ** i * tree().rewards[:, n + i] for i in range(k))
    then = V[STATE[:, n + k]] if n + k < 3 else 0.0
    return rewards + gamma ** k * then - V[STATE[:, n]]


def lambda_mean(V, n, lam=LAMBDA):
    """Of all A^(k) of the n-th action, from the definition. (216,)"""
    left = 3 - n
    return (sum((1 - lam) * lam ** (k - 1) * k_step(V, n, k) for k in range(1, left))
            + lam ** (left - 1) * k_step(V, n, left))


def true_values():
    return tree().evaluate(tree().pi, GAMMA)


def test_d1_td_error():
    w = tree()
    V, Q = true_values()
    left = (Q - V[:, None])
    later = torch.cat((V[STATE], torch.zeros(216, 1, dtype=f64)), 1)[:, 1:]
    right = w.given_action(w.rewards + GAMMA * later - V[STATE])
    close(left, right)


def test_d2_k_steps():
    w = tree()
    V, Q = true_values()
    for n, k in [(0, 1), (0, 2), (1, 1)]:
        left = (Q - V[:, None])[STEP == n + 1]
        rewards = sum(GAMMA ** i * w.rewards[:, n + i] for i in range(k))
        right = rewards + GAMMA ** k * V[STATE[:, n + k]] - V[STATE[:, n]]
        close(left, w.given_action(right[:, None].expand(216, 3))[STEP == n + 1])


def test_d3_k_steps_are_sums_of_td_errors():
    V = tree().critic
    delta = td_errors(V)
    for n, k in [(0, 1), (0, 2), (0, 3), (1, 2), (2, 1)]:
        left = k_step(V, n, k)
        right = sum(GAMMA ** i * delta[:, n + i] for i in range(k))
        close(left, right)


def test_d4_all_steps():
    w = tree()
    for n in range(3):
        left = sum(GAMMA ** i * td_errors(w.critic)[:, n + i] for i in range(3 - n))
        right = to_go(w.rewards, GAMMA)[:, n] - w.critic[STATE[:, n]]
        close(left, right)


def test_d5_weights_sum_to_one():
    for lam in (0.0, 0.3, 0.95, 1.0):
        for n in (1, 2, 7):
            left = 1.0
            right = sum((1 - lam) * lam ** (k - 1) for k in range(1, n)) + lam ** (n - 1)
            close(left, right)


def test_d6_gae():
    w = tree()
    advantages, _ = gae(w.rewards, w.critic[STATE], ALL, GAMMA, LAMBDA)
    lam = LAMBDA
    for n in range(3):
        left = advantages[:, n]
        steps = 3 - n
        right = sum((1 - lam) * lam ** (k - 1) * k_step(w.critic, n, k) for k in range(1, steps)
                    ) + lam ** (steps - 1) * k_step(w.critic, n, steps)
        close(left, right)


def test_d7_weight_of_one_td_error():
    """δ_(t + i) is in every sum of more than i steps."""
    lam, n = 0.7, 6
    for i in range(n):
        left = lam ** i
        right = sum((1 - lam) * lam ** (k - 1) for k in range(i + 1, n)) + lam ** (n - 1)
        close(left, right)


def test_d8_gae_as_a_sum_of_td_errors():
    V = tree().critic
    delta = td_errors(V)
    for n in range(3):
        left = lambda_mean(V, n)
        right = sum((GAMMA * LAMBDA) ** i * delta[:, n + i] for i in range(3 - n))
        close(left, right)


def test_d9_reverse_loop():
    V = tree().critic
    later = torch.zeros(216, dtype=f64)
    for n in (2, 1, 0):
        left = lambda_mean(V, n)
        right = td_errors(V)[:, n] + GAMMA * LAMBDA * later
        close(left, right)
        later = right


def test_d10_two_ends():
    w = tree()
    V = w.critic
    later = torch.cat((V[STATE], torch.zeros(216, 1, dtype=f64)), 1)[:, 1:]
    left = gae(w.rewards, V[STATE], ALL, GAMMA, 0.0)[0]
    right = w.rewards + GAMMA * later - V[STATE]
    close(left, right)
    left = gae(w.rewards, V[STATE], ALL, GAMMA, 1.0)[0]
    right = to_go(w.rewards, GAMMA) - V[STATE]
    close(left, right)


def test_d11_any_critic_will_do_at_lambda_one():
    w = tree()
    left = w.gradient
    right = weighted(gae(w.rewards, w.critic[STATE], ALL, 1.0, 1.0)[0])
    close(left, right)
    wrong = weighted(gae(w.rewards, w.critic[STATE], ALL, 1.0, 0.5)[0])
    assert (wrong - w.gradient).norm() > 0.1 * w.gradient.norm()


def test_d12_bias():
    """E[Â | s, a] less the true advantage, for a critic that is off by e(s)."""
    w = tree()
    V, Q = true_values()
    e = (w.critic - V)[STATE]
    advantages, _ = gae(w.rewards, w.critic[STATE], ALL, GAMMA, LAMBDA)
    left = w.given_action(advantages) - (Q - V[:, None])
    for n in range(3):
        here = STEP == n + 1
        right = -e[:, n] + (1 - LAMBDA) * sum(
            GAMMA ** k * LAMBDA ** (k - 1) * e[:, n + k] for k in range(1, 3 - n))
        close(left[here], w.given_action(right[:, None].expand(216, 3))[here])


def test_d13_variance():
    """With the true values, TD errors are uncorrelated."""
    w = tree()
    V, _ = true_values()
    for lam in (0.0, 0.7, 1.0):
        advantages, _ = gae(w.rewards, V[STATE], ALL, GAMMA, lam)
        left = w.given_state(advantages.square())
        close(w.given_state(advantages), torch.zeros(86))
        square = td_errors(V).square()
        for n in range(3):
            right = sum((GAMMA * lam) ** (2 * i) * square[:, n + i] for i in range(3 - n))
            here = STEP == n + 1
            close(left[here], w.given_state(right[:, None].expand(216, 3))[here])


def test_d14_target():
    w, lam = tree(), LAMBDA
    V = w.critic
    _, returns = gae(w.rewards, V[STATE], ALL, GAMMA, lam)

    def target(n, k):
        """k rewards and then the critic."""
        rewards = sum(GAMMA ** i * w.rewards[:, n + i] for i in range(k))
        return rewards + (GAMMA ** k * V[STATE[:, n + k]] if n + k < 3 else 0)

    for n in range(3):
        left = returns[:, n]
        steps = 3 - n
        right = sum((1 - lam) * lam ** (k - 1) * target(n, k) for k in range(1, steps)
                    ) + lam ** (steps - 1) * target(n, steps)
        close(left, right)


# ------------------------------------------------------------------------ e. what a critic learns

def test_e1_error_is_bias_and_noise():
    p, G, v = policy_of(LOGITS), draw(5, seed=50), 0.3
    left = (p * (v - G).square()).sum()
    mean = (p * G).sum()
    right = (v - mean) ** 2 + (p * (G - mean).square()).sum()
    close(left, right)


def test_e2_regression_finds_the_mean():
    """A thousand returns, one prediction for all, and the script's own loss."""
    G = draw(1000, seed=50)
    v = t(0.3).requires_grad_()
    loss, _ = value_loss(v.expand(1000)[:, None], G[:, None], G[:, None], torch.ones(1000, 1), None)
    left = grad(loss, v)
    right = v.detach() - G.mean()
    close(left, right)


def weigh(values, returns):
    """value_loss of the trajectories, each as often as its probability: E[Σ_t ½ (V - R)²]."""
    root = tree().p.sqrt()[:, None]
    old = torch.zeros(216, 3, dtype=f64)
    return value_loss(values * root, old, returns * root, ALL, None, 1)[0]


def test_e3_regression_with_features():
    """Four features of a state, and a weight for each."""
    w, features = tree(), draw(86, 4, seed=51)
    weights = draw(4, seed=52).requires_grad_()
    left = grad(weigh((features @ weights)[STATE], to_go(w.rewards, GAMMA)), weights)
    V, _ = true_values()
    error = (features @ weights).detach() - V
    right = (w.visits(w.pi) * error) @ features
    close(left, right)


def test_e4_semi_gradient():
    """λ = 0: with the target held fixed, the critic moves towards Bellman's right side."""
    w = tree()
    V = w.critic.clone().requires_grad_()
    _, target = gae(w.rewards, V.detach()[STATE], ALL, GAMMA, 0.0)
    left = grad(weigh(V[STATE], target), V)
    backup = (w.pi * (w.reward + GAMMA * next_values(w.critic))).sum(1)
    right = w.visits(w.pi) * (w.critic - backup)
    close(left, right)


def test_e5_the_whole_gradient_learns_something_else():
    """The squared TD error has the noise of the next state in it, which V can change."""
    w = tree()
    V = w.critic
    delta = td_errors(V)
    left = w.given_state(delta.square())
    backup = (w.pi * (w.reward + GAMMA * next_values(V))).sum(1)
    noise = w.given_state((delta + V[STATE] - backup[STATE]).square())
    right = (backup - V).square() + noise
    close(left, right)
    # The true values are not where it is smallest.
    true = true_values()[0].clone().requires_grad_()
    values = torch.cat((true[STATE], torch.zeros(216, 1, dtype=f64)), 1)
    square = (w.rewards + GAMMA * values[:, 1:] - values[:, :-1]).square()
    assert grad((w.p[:, None] * square).sum(), true).norm() > 0.1


@functools.cache
def outcome():
    """The 15 answers, rewarded at the end alone: V of each prefix (7,), and per action (15, 3) of
    V before it, V after it (the reward itself after the last), and whether it is the last."""
    w = answers()
    mask = text.MASK
    p = w.p[:, None].expand(15, 3)[mask]
    visits = torch.zeros(7, dtype=f64).index_add(0, text.STATE[mask], p)
    V = torch.zeros(7, dtype=f64).index_add(
        0, text.STATE[mask], p * w.score[:, None].expand(15, 3)[mask]) / visits
    last = text.LENGTH[:, None] == torch.arange(1, 4)
    before = V[text.STATE] * mask
    after = torch.where(last, w.score[:, None], torch.cat((before[:, 1:], before[:, :1]), 1)) * mask
    return V, before, after, last


def given_prefix(x):
    """E[x_t | prefix], (15, 3) -> (7,)"""
    w, mask = answers(), text.MASK
    p = w.p[:, None].expand(15, 3)[mask]
    total = torch.zeros(2, 7, dtype=f64).index_add(
        1, text.STATE[mask], torch.stack((p * x[mask], p)))
    return total[0] / total[1]


def test_e6_values_drift_nowhere():
    V, _, after, _ = outcome()
    left = V
    right = given_prefix(after)
    close(left, right)


def test_e7_advantage_is_a_step_of_the_value():
    """Against GAE at λ = 0 on the rewards of the scripts: nothing but at the end."""
    w, mask = answers(), text.MASK
    _, before, after, _ = outcome()
    zeros = torch.zeros(15, 3, dtype=f64)
    rewards = token_rewards(w.score, zeros, zeros, mask, 0.0)
    left = gae(rewards, before, mask, 1.0, 0.0)[0]
    right = after - before
    close(left, right * mask)


def test_e8_advantages_sum_to_the_surprise():
    V, before, after, _ = outcome()
    left = (after - before).sum(1)
    right = answers().score - V[0]
    close(left, right)


def test_e9_variance_is_shared_out():
    w = answers()
    V, before, after, _ = outcome()
    left = (w.p * (w.score - V[0]).square()).sum()
    right = expect(w.p, (after - before).square()).sum()
    close(left, right)


def test_e10_explained_variance():
    """A critic that is right can't explain more than what states differ in. Each trajectory as
    often as its probability says, to one part in 400,000."""
    w = tree()
    V, _ = true_values()
    count = (w.p * 400_000).round().long()
    G = to_go(w.rewards, GAMMA)
    rows = torch.arange(216).repeat_interleave(count)
    left = explained_variance(V[STATE][rows].flatten(), G[rows].flatten())

    def variance(x):
        mean = expect(w.p, x).mean()
        return expect(w.p, (x - mean).square()).mean()

    right = variance(V[STATE]) / variance(G)
    close(left, right, rtol=1e-3)
    assert right < 0.7


def test_e11_value_clip():
    """Ranges of the new value, on both sides of the old one and of the target."""
    old, c = 1.0, 0.2
    for R in (0.0, 0.9, 1.1, 2.0):
        for v in (-0.5, 0.7, 0.85, 0.95, 1.05, 1.15, 1.3, 2.5):
            V = t([v]).requires_grad_()
            left = grad(value_loss(V, t([old]), t([R]), torch.ones(1, 1), c)[0], V)[0, 0]
            held = abs(v - old) > c and abs(old + math.copysign(c, v - old) - R) > abs(v - R)
            right = 0.0 if held else v - R
            close(left, right)


# -------------------------------------------------------------------------- f. KL, three estimators

def test_f1_log_is_below_its_tangent():
    x = torch.cat((torch.logspace(-3, 3, 99, dtype=f64), t(1.0)))
    left = x.log()
    right = x - 1
    at_most(left, right)
    close(left[-1], right[-1])


def test_f2_kl_as_a_sum_of_what_is_never_negative():
    p = policy_of(LOGITS)
    left = kl_exact(LOGITS, REF.log())
    right = p * (REF / p - 1 - (REF / p).log())
    close(left, right.sum())
    assert (right >= 0).all()


def test_f3_two_directions_in_numbers():
    p, ref = t(0.5, 0.5), t(0.9, 0.1)
    left = t(kl_exact(p.log(), ref.log()), kl_exact(ref.log(), p.log()))
    close(left, t(0.511, 0.368), rtol=0, atol=5e-4)
    right = t(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1),
              0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5))
    close(left, right)


def test_f4_gradient_of_the_reverse_kl():
    p = policy_of(LOGITS)
    left = at_logits(lambda z: kl_exact(z, REF.log()))
    right = expect(p, (p / REF).log()[:, None] * score_matrix())
    close(left, right)


def test_f5_gradient_of_the_forward_kl():
    p = policy_of(LOGITS)
    left = at_logits(lambda z: kl_exact(REF.log(), z))
    right = -expect(p, (REF / p)[:, None] * score_matrix())
    close(left, right)
    close(left, -expect(REF, score_matrix()))


def test_f6_sft_is_a_forward_kl():
    """Of demonstrations that come with the reference's probabilities."""
    logp = policy_of(LOGITS).log()
    left = 5 * sft_loss((REF * logp)[None], torch.ones(1, 5))[0]
    right = -(REF * REF.log()).sum() + kl_exact(REF.log(), LOGITS)
    close(left, right)


def test_f7_k1_is_unbiased():
    """Against cross-entropy less entropy, and the exact KL of the scripts."""
    logp = policy_of(LOGITS).log()
    left = torch.nn.functional.cross_entropy(REF.log(), logp.exp()) - entropy(LOGITS)
    right = (logp.exp() * (logp - REF.log())).sum()
    close(left, right)
    close(kl_exact(LOGITS, REF.log()), (logp.exp() * kl_k1(logp, REF.log())).sum())


def test_f8_k3_is_unbiased():
    p = policy_of(LOGITS)
    x = p.log() - REF.log()
    left = kl_exact(LOGITS, REF.log())
    right = (-x).exp() - 1 + x
    close(left, (p * right).sum())
    close(right, kl_k3(p.log(), REF.log()))


def test_f9_bias_of_k2():
    """Half the distance: what the next order leaves shrinks to a sixteenth."""
    rest = []
    for scale in (0.02, 0.01):
        z = REF.log() + scale * draw(5, seed=60)
        p = policy_of(z)
        x = (p / REF).log()
        left = (p * kl_k2(p.log(), REF.log())).sum()
        right = kl_exact(z, REF.log()) + 1 / 6 * (p * x ** 3).sum()
        close(left, right, rtol=0, atol=scale ** 4)
        rest.append(left - right)
    close(rest[0] / rest[1], 16.0, rtol=0.1)


ESTIMATORS = [kl_k1, kl_k2, kl_k3]


def estimates(estimator, z):
    return estimator(torch.log_softmax(z, 0), REF.log())


def expected_gradient(estimator):
    """E_π[∇k]: the samples stay, the estimate moves."""
    p = policy_of(LOGITS)
    return at_logits(lambda z: (p * estimates(estimator, z)).sum())


def test_f10_two_ways_to_move_an_expectation():
    for estimator in ESTIMATORS:
        left = at_logits(lambda z: (policy_of(z) * estimates(estimator, z)).sum())
        k = estimates(estimator, LOGITS)
        right = expect(policy_of(LOGITS) * k, score_matrix()) + expected_gradient(estimator)
        close(left, right)


def test_f11_gradients_of_the_estimates():
    """Of each sample, by autograd against the formula."""
    x = (policy_of(LOGITS) / REF).log()[:, None]
    g = score_matrix()
    for estimator in ESTIMATORS:
        left = torch.autograd.functional.jacobian(lambda z: estimates(estimator, z), LOGITS)
        if estimator is kl_k1:
            right = g
        elif estimator is kl_k2:
            right = x * g
        else:
            right = (1 - (-x).exp()) * g
        close(left, right)


def test_f12_k1_as_a_loss():
    left = expected_gradient(kl_k1)
    right = torch.zeros(5)
    close(left, right)


def test_f13_k2_as_a_loss():
    left = expected_gradient(kl_k2)
    right = at_logits(lambda z: kl_exact(z, REF.log()))
    close(left, right)


def test_f14_k3_as_a_loss():
    left = expected_gradient(kl_k3)
    right = at_logits(lambda z: kl_exact(REF.log(), z))
    close(left, right)
    assert (left - at_logits(lambda z: kl_exact(z, REF.log()))).norm() > 0.1


def test_f15_k1_in_the_reward():
    """A reward of -k1 pushes against the reverse KL."""
    p = policy_of(LOGITS)
    logits = LOGITS.clone().requires_grad_()
    reward = -kl_k1(p.log(), REF.log())
    loss, _ = policy_gradient_loss(torch.log_softmax(logits, 0)[:, None], p * reward,
                                   torch.ones(5, 1), "seq-sum", 1)
    left = -grad(loss, logits)
    right = -at_logits(lambda z: kl_exact(z, REF.log()))
    close(left, right)


def text_x():
    """log π - log ref of each action of the 15 answers, (15, 3), with gradient."""
    return answers().logp - answers().ref_logp


def test_f16_kl_of_answers():
    w = answers()
    left = kl(w.p, w.ref_logp.sum(1).exp())
    right = (w.p * text_x().sum(1)).sum().detach()
    close(left, right)
    each = kl(torch.softmax(w.theta, 1).detach(), w.reference)          # (7,), exact
    right = expect(w.p, (each[text.STATE] * text.MASK).sum(1))
    close(left, right)


def test_f17_gradient_of_the_kl_of_answers():
    w = answers()
    left = w.grad((w.logp.sum(1).exp() * text_x().sum(1)).sum())
    right = w.grad((w.p[:, None] * to_go(text_x().detach()) * w.logp).sum())
    close(left, right)


def test_f18_what_k2_per_token_leaves_out():
    w, x = answers(), text_x().detach()
    left = w.grad((w.p[:, None] * kl_k2(w.logp, w.ref_logp)).sum())
    whole = w.grad((w.logp.sum(1).exp() * text_x().sum(1)).sum())
    right = whole - w.grad((w.p[:, None] * (to_go(x) - x) * w.logp).sum())
    close(left, right)


def test_f19_samples_of_an_older_policy():
    """Value and gradient, from samples of another policy that does not move."""
    old = torch.softmax(draw(5, seed=61), 0)
    p = policy_of(LOGITS)
    x = (p / REF).log()
    left = kl_exact(LOGITS, REF.log())
    right = (old * (p / old) * x).sum()
    close(left, right)
    close(at_logits(lambda z: kl_exact(z, REF.log())),
          at_logits(lambda z: (old * (policy_of(z) / old) * estimates(kl_k1, z)).sum()))
    assert (old * kl_k3(p.log(), REF.log())).sum() - left > 0.1


def test_f20_approx_kl():
    """How far PPO has moved, by k3 the other way round."""
    p, old = policy_of(LOGITS), REF
    left = kl_exact(old.log(), LOGITS)
    rho = p / old
    right = rho - 1 - rho.log()
    close(left, (old * right).sum())
    assert (right >= 0).all()
    # The script's own, where each outcome comes 100 times as often as its probability in percent.
    share = t(0.1, 0.2, 0.3, 0.4)
    rows = torch.arange(4).repeat_interleave((10 * share).round().long())
    new = torch.softmax(draw(4, seed=62), 0)
    _, stats = ppo_policy_loss(new.log()[rows][None], share.log()[rows][None],
                               torch.zeros(1, 10, dtype=f64), torch.ones(1, 10))
    close(stats["approx_kl"], kl(share, new))


# ------------------------------------------------- g. from the RLHF objective to DPO; GRPO's biases

SCORE = draw(5, seed=70)


def objective(p):
    return (p * SCORE).sum() - BETA * kl(p, REF)


def test_g1_objective():
    """All 15 answers; the penalty by the exact KL of whole answers."""
    w = answers()
    left = (w.p * w.score).sum() - BETA * kl(w.p, w.ref_logp.sum(1).exp())
    log_ratio = (w.logp - w.ref_logp).sum(1).detach()
    right = (w.p * (w.score - BETA * log_ratio)).sum()
    close(left, right)


def test_g2_objective_as_one_kl():
    w = answers()
    best, Z = answer_optimum()
    left = (w.p * (w.score - BETA * (w.p / w.ref_logp.sum(1).exp()).log())).sum()
    right = BETA * Z.log() - BETA * (w.p * (w.p / best).log()).sum()
    close(left, right)


def test_g3_optimal_policy():
    """Against steps uphill, by autograd, from somewhere else until nothing moves."""
    z = LOGITS.clone()
    for _ in range(60):
        z.requires_grad_()
        z = (z + grad(objective(policy_of(z)), z) / policy_of(z)).detach()
    left = policy_of(z)
    weight = REF * (SCORE / BETA).exp()
    right = weight / (REF * (SCORE / BETA).exp()).sum()
    close(left, right)


def test_g4_largest_objective():
    best, _ = tilted(SCORE, REF)
    left = objective(best)
    right = BETA * (REF * (SCORE / BETA).exp()).sum().log()
    close(left, right)
    assert all(objective(torch.softmax(draw(5, seed=s), 0)) < left for s in range(50))


def test_g5_kl_in_the_reward():
    """The token rewards of PPO and their returns, against the objective's own gradient."""
    w = answers()
    log_ratio = text_x().sum(1)
    left = w.grad((w.logp.sum(1).exp() * (w.score - BETA * log_ratio)).sum())
    x = text_x().detach()
    right = w.grad((w.p[:, None] * (w.score[:, None] - BETA * to_go(x)) * w.logp).sum())
    close(left, right)
    rewards = token_rewards(w.score, w.logp.detach(), w.ref_logp, text.MASK, BETA)
    close(left, w.expected(discounted_returns(rewards, text.MASK)))


def test_g6_reward_from_the_optimal_policy():
    w = answers()
    best, Z = answer_optimum()
    left = w.score
    right = BETA * (best / w.ref_logp.sum(1).exp()).log() + BETA * Z.log()
    close(left, right)


def test_g7_bradley_terry():
    r_w, r_l = 1.3, -0.4
    left = torch.sigmoid(t(r_w - r_l))[0]
    right = math.exp(r_w) / (math.exp(r_w) + math.exp(r_l))
    close(left, right)


def test_g8_z_cancels():
    w = answers()
    best, _ = answer_optimum()
    log_ratio = (best / w.ref_logp.sum(1).exp()).log()
    for i, j in [(0, 3), (14, 7)]:
        left = w.score[i] - w.score[j]
        right = BETA * log_ratio[i] - BETA * log_ratio[j]
        close(left, right)


def test_g9_derivative_of_log_sigmoid():
    h = torch.linspace(-5, 5, 11, dtype=f64).requires_grad_()
    left = grad(-torch.nn.functional.logsigmoid(h).sum(), h)
    right = -1 / (1 + h.exp())
    close(left, right)


def test_g10_reward_model():
    """A pair that people order one way with probability P, the other way with 1 - P."""
    P, margin = 0.8, t(0.3).requires_grad_()
    zero = t(0.0)
    loss = (P * reward_model_loss(margin, zero)[0]
            + (1 - P) * reward_model_loss(zero, margin)[0])
    left = grad(loss, margin)
    right = 1 / (1 + (-margin).exp()) - P
    close(left, right)


def pair():
    """Log-probs of a chosen and a rejected answer, with gradient, and the reference's."""
    w, i, j = answers(), slice(3, 4), slice(9, 10)
    ref = w.ref_logp.sum(1)
    logp = w.logp.sum(1)
    return logp[i], logp[j], ref[i], ref[j]


def test_g11_dpo_loss():
    """Bradley-Terry on the rewards of (g.6), with any Z."""
    w, l, ref_w, ref_l = pair()
    left = dpo_loss(w, l, ref_w, ref_l, BETA)[0]
    for log_Z in (0.0, 2.5):
        r_w = BETA * (w - ref_w) + BETA * log_Z
        r_l = BETA * (l - ref_l) + BETA * log_Z
        close(left, -(r_w.exp() / (r_w.exp() + r_l.exp())).log().squeeze())
    h = BETA * (w - ref_w) - BETA * (l - ref_l)
    right = -(1 / (1 + (-h).exp())).log().squeeze()
    close(left, right)


def test_g12_dpo_gradient():
    w, l, ref_w, ref_l = pair()
    theta = answers().theta
    left = grad(dpo_loss(w, l, ref_w, ref_l, BETA)[0], theta)
    h = BETA * (w - ref_w) - BETA * (l - ref_l)
    right = -BETA * torch.sigmoid(-h).squeeze() * (grad(w, theta) - grad(l, theta))
    close(left, right)


def test_g13_dpo_rests_at_the_optimum():
    """Labels as Bradley-Terry would give them; the gradient anywhere, and at π*."""
    w = answers()
    i, j = torch.tensor([0, 3, 8]), torch.tensor([5, 14, 2])
    P = torch.sigmoid(w.score[i] - w.score[j])
    ref, logp, g = w.ref_logp.sum(1), w.logp.sum(1), answer_scores()
    left = w.grad(dpo_loss(logp[i], logp[j], ref[i], ref[j], BETA, 1 - P)[0])
    h = BETA * ((logp - ref)[i] - (logp - ref)[j]).detach()
    right = -BETA / 3 * sum((P[n] - torch.sigmoid(h[n])) * (g[i[n]] - g[j[n]]) for n in range(3))
    close(left, right)
    best = answer_optimum()[0].log().requires_grad_()
    loss, _ = dpo_loss(best[i], best[j], ref[i], ref[j], BETA, 1 - P)
    close(grad(loss, best), torch.zeros(15))


def test_g14_contrastive():
    """The cross-entropy of picking the chosen one out of two, which torch has."""
    w, l, ref_w, ref_l = pair()
    left = dpo_loss(w, l, ref_w, ref_l, BETA)[0]
    s_w, s_l = BETA * (w - ref_w), BETA * (l - ref_l)
    right = -(s_w.exp() / (s_w.exp() + s_l.exp())).log().squeeze()
    close(left, right)
    logits = torch.stack((s_w, s_l), 1)
    close(left, torch.nn.functional.cross_entropy(logits, torch.tensor([0])))


def test_g15_chosen_may_fall():
    """The chosen answer's log-prob on a small step downhill, all pairs. In a table of logits it
    never falls; with four weights for all logits, it does for some pairs."""
    w = answers()
    ref, features = w.ref_logp.sum(1), draw(7, 3, 4, seed=74)
    lowest = []
    for start, logits_of in [(w.theta.detach(), lambda theta: theta),
                             (draw(4, seed=75), lambda theta: features @ theta)]:
        theta, changes = start.clone().requires_grad_(), []
        logp = torch.log_softmax(logits_of(theta), 1)[text.STATE, text.ACTION] * text.MASK
        logp = logp.sum(1)
        g = grads(logp, theta)
        for i, j in itertools.permutations(range(15), 2):
            loss, _ = dpo_loss(logp[i:i + 1], logp[j:j + 1], ref[i:i + 1], ref[j:j + 1], BETA)
            left = (g[i] * -grad(loss, theta)).sum()
            h = BETA * ((logp - ref)[i] - (logp - ref)[j]).detach()
            right = BETA * torch.sigmoid(-h) * (g[i].square().sum() - (g[i] * g[j]).sum())
            close(left, right)
            changes.append(left)
        lowest.append(min(changes))
    assert lowest[0] > 0 > lowest[1]


def test_g16_grpo_objective():
    """Two groups of two answers, by loops that know no tensor operation but exp."""
    w = answers()
    rows = [2, 8, 11, 14]
    logp = w.logp[rows].detach()
    old, ref = logp + 0.4 * draw(4, 3, seed=71), logp + draw(4, 3, seed=72)
    A, eps, beta, G = grpo_advantages(w.score[rows], 2), 0.2, 0.04, len(rows)
    left = -grpo_loss(logp, old, ref, A, text.MASK[rows], eps, eps, beta)[0]
    right = 0
    for i in range(4):
        n_tokens = len(text.ANSWERS[rows[i]])
        for step in range(n_tokens):
            rho = (logp[i, step] - old[i, step]).exp()
            clipped = min(max(rho, 1 - eps), 1 + eps)
            x = logp[i, step] - ref[i, step]
            right += 1 / G / n_tokens * (
                min(rho * A[i], clipped * A[i]) - beta * ((-x).exp() - 1 + x))
    close(left, right)


def test_g17_own_share_of_the_mean():
    r, G = draw(4, seed=73), 4
    left = grpo_advantages(r, 4, scale=False)
    for i in range(4):
        others = (r.sum() - r[i]) / 3
        right = (G - 1) / G * (r[i] - others)
        close(left[i], right)
    close(left.sum(), 0.0)
    close(left, 3 / 4 * rloo_advantages(r, 4))


def test_g18_group_mean_scales_the_gradient():
    w, G = answers(), 3
    left = w.over_groups(G, lambda rewards, size: grpo_advantages(rewards, size, scale=False))
    right = (G - 1) / G * w.gradient
    close(left, right)


def test_g19_length_bias():
    """All groups of two, averaged over each answer."""
    w, G = answers(), 2
    left = w.over_groups(
        G, lambda rewards, size: grpo_advantages(rewards, size, scale=False), mode="seq-mean")
    J = (w.p * w.score).sum()
    p = w.logp.sum(1).exp()
    right = (G - 1) / G * (
        w.grad((p * w.score / text.LENGTH).sum()) - J * w.grad((p / text.LENGTH).sum()))
    close(left, right)
    assert text.relative_error(left, w.gradient) > 0.1


def test_g20_advantages_of_right_and_wrong():
    G = 5
    for k in range(1, G):
        left = grpo_advantages(torch.tensor([1.0] * k + [0.0] * (G - k), dtype=f64), G, eps=0.0)
        right = t(math.sqrt((G - 1) * (G - k) / (G * k)))
        close(left[0], right[0])
        right = t(-math.sqrt((G - 1) * k / (G * (G - k))))
        close(left[-1], right[0])


def binary_weight(p, G):
    """How GRPO weighs ∇p: the other answers' number of right ones is binomial."""
    total = 0.0
    for k in range(G):
        log_chance = (math.lgamma(G) - math.lgamma(k + 1) - math.lgamma(G - k)
                      + k * math.log(p) + (G - 1 - k) * math.log(1 - p))
        up = math.sqrt((G - 1) * (G - k - 1) / (G * (k + 1)))
        down = math.sqrt((G - 1) * k / (G * (G - k)))
        total += math.exp(log_chance) * (up + down)
    return total


def test_g21_std_bias():
    """Exactly for groups of three, and for a group of 20,000 as large as one likes."""
    w = answers()
    right_answers = (w.score > 0).double()
    p = (w.logp.sum(1).exp() * right_answers).sum()
    world = copy.copy(w)
    world.score = right_answers
    found = world.over_groups(3, lambda rewards, G: grpo_advantages(rewards, G, eps=0.0))
    close(found, binary_weight(p.item(), 3) * w.grad(p))
    for p in (0.1, 0.5, 0.8):
        left = binary_weight(p, 20_000)
        right = math.sqrt((1 - p) / p) + math.sqrt(p / (1 - p))
        close(left, right, rtol=1e-3)
        right = 1 / math.sqrt(p * (1 - p))
        close(left, right, rtol=1e-3)


def test_g22_what_the_std_maximises():
    p = t(0.1, 0.5, 0.8).requires_grad_()
    left = grad((2 * p.sqrt().asin()).sum(), p)
    right = 1 / (p * (1 - p)).sqrt()
    close(left, right)


# --------------------------------------------------------------------------------- equations turned

class Turn(ast.NodeTransformer):
    """Makes one change, the `target`-th of all that can be made in the expressions it visits."""

    def __init__(self, target):
        self.target, self.seen = target, 0

    def choose(self, node, others):
        for other in others:
            if self.seen == self.target:
                self.was, self.now = ast.unparse(node), ast.unparse(other)
                node = other
            self.seen += 1
        return node

    def visit_BinOp(self, node):
        self.generic_visit(node)
        a, op, b = node.left, node.op, node.right
        if isinstance(op, ast.Add):
            return self.choose(node, [ast.BinOp(a, ast.Sub(), b), a, b])
        if isinstance(op, ast.Sub):
            return self.choose(node, [ast.BinOp(a, ast.Add(), b), a, ast.UnaryOp(ast.USub(), b)])
        if isinstance(op, (ast.Mult, ast.MatMult)):
            return self.choose(node, [a, b])
        return self.choose(node, [a])

    def visit_UnaryOp(self, node):
        self.generic_visit(node)
        return self.choose(node, [node.operand] if isinstance(node.op, ast.USub) else [])


def changed_tests(test):
    """Copies of a test with one change each to what is assigned to `right`: a sign turned, a term,
    factor, divisor or power dropped, or all of it negated. -> [(what was changed, function)]"""
    source = inspect.getsource(test)
    found = []
    for target in itertools.count():
        syntax, turn = ast.parse(source), Turn(target)
        for node in ast.walk(syntax):
            is_right = (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "right"
                        or isinstance(node, ast.AugAssign) and ast.unparse(node.target) == "right")
            if is_right:
                node.value = turn.visit(node.value)
                negated = ast.UnaryOp(ast.USub(), node.value)
                zero = ast.unparse(node.value) in ("torch.zeros(5)", "0", "0.0")
                node.value = turn.choose(node.value, [] if zero else [negated])
        if turn.seen <= target:
            return found
        scope = dict(globals())
        exec(compile(ast.fix_missing_locations(syntax), "changed", "exec"), scope)
        found.append((f"{turn.was}  ->  {turn.now}", scope[test.__name__]))


def is_noticed(test) -> bool:
    try:
        test()
    except Exception:
        return True
    return False


# ---------------------------------------------------------------------------------------- the pages

sys.path.insert(0, str(ROOT / "docs"))
import derivations  # noqa: E402

ENGLISH, CHINESE = (file.read_text(encoding="utf-8") for file in derivations.PAGES.values())


# Of each formula as its test was written for it: who changes one looks at the test.
DIGESTS = """
a.1 f5f9   a.2 5f3b   a.3 4a66   a.4 3171   a.5 9df7   a.6 0f52   a.7 6235   a.8 1814   a.9 618e
a.10 f045   a.11 66d9   a.12 ad43   a.13 db20   a.14 ecc7   a.15 da3e   a.16 a356   a.17 6cfe
a.18 9347   a.19 8902
b.1 07d0   b.2 419c   b.3 cee2   b.4 586e   b.5 8b5c   b.6 b892   b.7 e6d3   b.8 48cc   b.9 e641
b.10 0f8a   b.11 cc7e   b.12 152f   b.13 4df5   b.14 d8cf   b.15 796c   b.16 81d2   b.17 9bc1
b.18 367f   b.19 f838
c.1 b0ad   c.2 40aa   c.3 bcd9   c.4 da5f   c.5 bd68   c.6 679d   c.7 7669   c.8 b8f8   c.9 8330
c.10 82ae   c.11 56c9   c.12 01d4   c.13 03a1   c.14 ebb5   c.15 4fb7   c.16 b7fc
d.1 174c   d.2 8ff8   d.3 4736   d.4 7e09   d.5 195f   d.6 0b95   d.7 39db   d.8 2498   d.9 df33
d.10 f10f   d.11 5122   d.12 0bca   d.13 798a   d.14 d4b5
e.1 b93b   e.2 d51b   e.3 2d7e   e.4 9ebc   e.5 d215   e.6 f00c   e.7 fd63   e.8 f440   e.9 74a8
e.10 2eed   e.11 1aea
f.1 7c51   f.2 35e8   f.3 629f   f.4 c1d2   f.5 b83e   f.6 c78b   f.7 b9bb   f.8 e24b   f.9 8586
f.10 8dcd   f.11 1489   f.12 3ae9   f.13 e813   f.14 55c1   f.15 fea2   f.16 1955   f.17 4028
f.18 25a2   f.19 18cd   f.20 627c
g.1 dcc2   g.2 fd82   g.3 5164   g.4 dd3a   g.5 afd9   g.6 95b6   g.7 a094   g.8 f05b   g.9 699a
g.10 fe97   g.11 7d20   g.12 ddd0   g.13 8d5e   g.14 e950   g.15 a0df   g.16 d389   g.17 130a
g.18 3b47   g.19 cb13   g.20 6527   g.21 a858   g.22 12f4
""".split()


def digest(formula):
    """Four digits that change with the formula, spaces aside."""
    return f"{zlib.crc32(''.join(formula.split()).encode()) & 0xffff:04x}"


def test_formulas_are_those_that_were_tested():
    tested = dict(zip(DIGESTS[::2], DIGESTS[1::2]))
    found = {number: digest(formula)
             for number, formula in derivations.equations(ENGLISH).items()}
    changed = found.items() ^ tested.items()
    assert not changed, f"compare these with their tests, then note their digests: {changed}"


def test_every_equation_has_a_test_and_every_test_an_equation():
    derivations.check(ENGLISH, CHINESE, derivations.tests())
    assert len(derivations.equations(ENGLISH)) >= 100


@pytest.mark.parametrize("change, message", [
    (lambda en, zh, tests: (en, zh, {k: name for k, name in tests.items() if k != "a.7"}),
     r"\(a.7\) has no test"),
    (lambda en, zh, tests: (en, zh, tests | {"c.99": "test_c99_x"}),
     "test_c99_x is the test of no equation"),
    (lambda en, zh, tests: (en.replace("{(b.4)}", "{(b.5)}"), zh, tests),
     r"expected the number \(b.4\)"),
    (lambda en, zh, tests: (en.replace(r" \qquad \text{(b.4)}", ""), zh, tests),
     r"expected the number \(b.4\)"),
    (lambda en, zh, tests: (en, zh.replace(r"= -\beta \, \sigma(-h)", r"= \beta \, \sigma(-h)"),
                            tests),
     r"\(g.12\) is not the same"),
    (lambda en, zh, tests: (en, zh.replace(r"$`u = \sqrt{p}`$", "$`u = p`$"), tests),
     "page g: in one language only")])
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        derivations.check(*change(ENGLISH, CHINESE, derivations.tests()))


@pytest.mark.parametrize("language", derivations.PAGES)
def test_links_are_up_to_date(language):
    text = derivations.PAGES[language].read_text(encoding="utf-8")
    assert text == derivations.with_links(language), (
        "lines have moved: run `python docs/concepts.py`")
    # The table of contents and the pages.
    anchors = {"".join(c for c in heading.lower() if c.isalnum() or c in " -").replace(" ", "-")
               for heading in re.findall("^## (.*)$", text, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) == anchors and len(anchors) == 7


@pytest.mark.parametrize("language", derivations.PAGES)
def test_formulas_are_in_a_form_that_github_renders(language):
    """Inline ones stand between dollars and backticks, with a space, a line's start or an opening
    parenthesis before them and no letter behind; displayed ones in blocks, without macros that
    GitHub refuses."""
    text = derivations.PAGES[language].read_text(encoding="utf-8")
    prose = re.sub(r"^```math\n.*?^```$", "", text, flags=re.M | re.S)
    starts = [m.start() for m in re.finditer(r"\$`", prose)]
    ends = [m.end() for m in re.finditer(r"`\$", prose)]
    assert prose.count("$") == len(starts) + len(ends) and len(starts) == len(ends)
    for start, end in zip(starts, ends):
        assert start < end and prose[start - 1] in " \n(", prose[start - 20:end]
        assert not prose[end].isalnum(), prose[start:end + 20]
    for macro in (r"\tag", r"\operatorname", r"\label", r"\require", r"\def"):
        assert macro not in text


def equations_of(page):
    """The tests of one page's equations."""
    return [globals()[name] for number, name in derivations.tests().items() if number[0] == page]


@pytest.mark.parametrize("page", "abcdefg")
def test_a_turned_sign_and_a_dropped_term_are_noticed(page):
    changes = [(test.__name__, *change)
               for test in equations_of(page) for change in changed_tests(test)]
    assert len(changes) > 50
    unnoticed = [(name, what) for name, what, changed in changes if not is_noticed(changed)]
    assert unnoticed == []


def main() -> None:
    for page in "abcdefg":
        changes, unnoticed = 0, 0
        for test in equations_of(page):
            for what, changed in changed_tests(test):
                changes += 1
                if not is_noticed(changed):
                    unnoticed += 1
                    print(f"{test.__name__}: not noticed: {what}")
        print(f"page {page}: {changes} changes, {unnoticed} not noticed")


if __name__ == "__main__":
    main()
