"""The policy gradient theorem, checked exactly: no sampling, every possible answer is written down
and weighted by its probability.

The language has three tokens: 0, 1 and the stop token 2. An answer ends at its first stop token or
after three tokens, which makes 15 answers. The policy is a table: one row of logits for each of the
7 prefixes that can still go on. Every action of every prefix earns a random reward. Then

    J(θ) = Σ_answers p_θ(answer) Σ_t r(prefix_t, action_t)

is a short differentiable sum, and autograd's ∇J is the truth that every estimator must equal in
expectation:

    Σ_answers p(answer) ∇loss(answer) = -∇J(θ)

A loss is weighted by p(answer) through its advantages, in which all the losses here are linear.
"""
import itertools
import math

import pytest
import torch

from advantages import (
    discounted_returns, gae, grpo_advantages, remax_advantages, rloo_advantages, whiten)
from losses import (
    aggregate, cispo_loss, entropy, grpo_loss, gspo_loss, policy_gradient_loss, ppo_policy_loss,
    value_loss)
from methods import importance_weights

STOP, LONGEST = 2, 3
# The 1 + 2 + 4 = 7 prefixes, and the 15 answers.
PREFIXES = [p for n in range(LONGEST) for p in itertools.product((0, 1), repeat=n)]
ANSWERS = [
    p + (a,) for p in PREFIXES for a in range(3) if a == STOP or len(p) == LONGEST - 1]
# Of each answer (15) and each of its places (3): the prefix, the action, and whether it is there.
STATE = torch.tensor(
    [[PREFIXES.index(y[:t]) if t < len(y) else 0 for t in range(LONGEST)] for y in ANSWERS])
ACTION = torch.tensor([[y[t] if t < len(y) else 0 for t in range(LONGEST)] for y in ANSWERS])
MASK = torch.tensor([[t < len(y) for t in range(LONGEST)] for y in ANSWERS])
LENGTH = MASK.sum(1)


class World:
    """A policy, its rewards, and what follows from them exactly."""

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)
        # theta[prefix, action] and reward[prefix, action]
        self.theta = torch.randn(7, 3, dtype=torch.float64, generator=generator).requires_grad_()
        reward = torch.randn(7, 3, dtype=torch.float64, generator=generator)
        self.rewards = reward[STATE, ACTION] * MASK                         # (15, 3)
        self.logp = torch.log_softmax(self.theta, 1)[STATE, ACTION] * MASK  # (15, 3)
        self.p = self.logp.sum(1).exp().detach()                            # (15,)
        self.score = self.rewards.sum(1)                                    # (15,)
        # Bellman, backwards over the tree: V(s) = Σ_a π(a|s) (r(s, a) + V(s a)), and V = 0 where
        # an answer has ended.
        pi, values = torch.softmax(self.theta, 1).detach(), {}
        for prefix in reversed(PREFIXES):
            s = PREFIXES.index(prefix)
            values[prefix] = sum(
                pi[s, a] * (reward[s, a] + values.get(prefix + (a,), 0.0)) for a in range(3))
        self.value = torch.stack([values[prefix] for prefix in PREFIXES])   # (7,)
        self.gradient = self.grad_of(self.score)                            # ∇J, (7, 3)

    def grad_of(self, score):
        """∇ Σ_answers p_θ(answer) score(answer)"""
        return self.grad((self.logp.sum(1).exp() * score).sum())

    def grad(self, y):
        return torch.autograd.grad(y, self.theta, retain_graph=True)[0]

    def expected(self, advantages, mode="seq-sum", denominator=1):
        """-Σ_answers p ∇loss for advantages (15,) or (15, 3)."""
        weighted = advantages * (self.p if advantages.dim() == 1 else self.p[:, None])
        return -self.grad(policy_gradient_loss(self.logp, weighted, MASK, mode, denominator)[0])

    def over_groups(self, size, estimator, mode="seq-sum"):
        """-Σ_groups p(group) ∇loss: every group of `size` answers, drawn independently, repeats
        included. A mean over the group."""
        # all members of all groups, one after the other: (15^size * size,)
        members = torch.tensor(list(itertools.product(range(15), repeat=size))).flatten()
        advantages = estimator(self.score[members], size)
        p_group = self.p[members].view(-1, size).prod(1).repeat_interleave(size)
        return -self.grad(policy_gradient_loss(
            self.logp[members], advantages * p_group, MASK[members], mode, denominator=size)[0])

    def variance(self, p, advantages, answers=torch.arange(15)[:, None]):
        """E|g - E g|² of the gradient of one group of answers (N, G), drawn with p (N,), their
        advantages (N, G) or (N, G, 3): its mean."""
        each = torch.autograd.functional.jacobian(
            lambda theta: torch.log_softmax(theta, 1)[STATE, ACTION] * MASK, self.theta.detach())
        advantages = (
            advantages if advantages.dim() == 3
            else advantages[:, :, None].expand(-1, -1, LONGEST))
        # each group's gradient: (N, 7, 3)
        g = torch.einsum("ngt,ngtsa->nsa", advantages, each[answers]) / answers.shape[1]
        return (
            (p[:, None, None] * g.square()).sum()
            - (p[:, None, None] * g).sum(0).square().sum()).item()


@pytest.fixture(params=[0, 1, 2])
def world(request):
    return World(request.param)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def relative_error(found, truth):
    """How far `found` is from any positive multiple of the truth, as a share of it: 0 if
    the direction is right."""
    scale = (found * truth).sum() / truth.square().sum()
    return ((found - scale * truth).norm() / (scale.abs() * truth.norm())).item()


def test_the_answers_are_all_there_are(world):
    assert len(ANSWERS) == 15 and world.p.sum().item() == pytest.approx(1)
    # V(start) = J
    assert world.value[0].item() == pytest.approx((world.p * world.score).sum().item())


# ----------------------------------------------------------------------------------------- unbiased

def test_reinforce(world):
    """The whole answer's reward may weigh every action, or only what came after it: the past has
    expectation 0."""
    close(world.expected(world.score), world.gradient)
    close(world.expected(discounted_returns(world.rewards, MASK)), world.gradient)


def test_gae_with_lambda_1_forgives_any_critic(world):
    """λ=1: return minus V(s). A baseline that depends on the state alone changes nothing in
    expectation, however wrong."""
    wrong = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    advantages, _ = gae(world.rewards, wrong[STATE], MASK, lam=1.0)
    close(world.expected(advantages), world.gradient)


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95])
def test_gae_with_lambda_below_1_needs_the_right_critic(world, lam):
    """λ<1 trusts the critic instead of what happened: unbiased with the true values, biased with
    others."""
    advantages, _ = gae(world.rewards, world.value[STATE], MASK, lam=lam)
    close(world.expected(advantages), world.gradient)
    wrong = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    advantages, _ = gae(world.rewards, wrong[STATE], MASK, lam=lam)
    assert relative_error(world.expected(advantages), world.gradient) > 0.02


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_the_critic_converges_to_the_bellman_values(world, lam):
    """With targets from the true values, the true values have no gradient: they are the fixed
    point, whatever λ."""
    values = world.value.clone().requires_grad_()
    _, returns = gae(world.rewards, values.detach()[STATE], MASK, lam=lam)
    loss = sum(
        p * value_loss(
            values[s][None], values.detach()[s][None], r[None], m[None], denominator=1)[0]
        for p, s, r, m in zip(world.p, STATE, returns, MASK))
    close(torch.autograd.grad(loss, values)[0], torch.zeros(7, dtype=torch.float64))


def test_the_critic_is_repaired_by_monte_carlo_targets(world):
    """λ=1: from any values, the expected target of a state is its true value, so one exact
    regression is enough."""
    wrong = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    _, returns = gae(world.rewards, wrong[STATE], MASK, lam=1.0)
    for s in range(7):
        here = (STATE == s) & MASK  # (15, 3)
        weight = world.p[:, None] * here
        close((weight * returns).sum() / weight.sum(), world.value[s])


def test_rloo(world):
    """The mean of the others is a baseline that does not depend on the sample itself."""
    close(world.over_groups(2, rloo_advantages), world.gradient)


def test_remax(world):
    """The greedy answer depends on the policy alone."""
    greedy = ()
    while greedy in PREFIXES:
        greedy += (world.theta[PREFIXES.index(greedy)].argmax().item(),)
    close(
        world.expected(remax_advantages(
            world.score, world.score[ANSWERS.index(greedy)].expand(15))),
        world.gradient)


@pytest.mark.parametrize("size", [2, 3])
def test_dr_grpo_is_the_gradient_times_a_constant(world, size):
    """The group's mean holds the sample itself, with weight 1/G: (G - 1)/G of the gradient. A
    learning rate can't tell."""
    found = world.over_groups(size, lambda rewards, G: grpo_advantages(rewards, G, scale=False))
    close(found, (size - 1) / size * world.gradient)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean", "seq-sum"])
def test_ratio_losses_are_a2c_where_the_policy_has_not_moved(world, mode):
    """At ratio 1 nothing is clipped, and ∇ρ = ∇log π: PPO, GRPO and CISPO have A2C's gradient, GSPO
    that of its sequence mean."""
    advantages, _ = gae(world.rewards, world.value[STATE], MASK, lam=0.5)
    old = world.logp.detach()
    a2c = world.grad(policy_gradient_loss(world.logp, advantages, MASK, mode)[0])
    close(world.grad(ppo_policy_loss(world.logp, old, advantages, MASK, mode=mode)[0]), a2c)
    close(world.grad(grpo_loss(world.logp, old, None, advantages, MASK, mode=mode)[0]), a2c)
    close(world.grad(cispo_loss(world.logp, old, advantages, MASK, mode=mode)[0]), a2c)
    close(
        world.grad(gspo_loss(world.logp, old, world.score, MASK)[0]),
        world.grad(policy_gradient_loss(world.logp, world.score, MASK, "seq-mean")[0]))


def test_importance_sampling_corrects_for_another_sampler(world):
    """Answers drawn from π_old, weighted by the ratio of whole answers, give ∇J of the new policy.
    PPO's ratio of single tokens does not quite: it leaves the old policy's distribution over
    prefixes in place, which is the error that the clip bounds."""
    old = World(7)
    whole = (world.logp.sum(1) - old.logp.sum(1).detach()).exp()  # (15,)
    close(world.grad((old.p * whole * world.score).sum()), world.gradient)
    returns = discounted_returns(world.rewards, MASK) * old.p[:, None]
    loss, _ = ppo_policy_loss(
        world.logp, old.logp.detach(), returns, MASK, clip_low=1.0, clip_high=1e9, mode="seq-sum",
        denominator=1)
    assert relative_error(-world.grad(loss), world.gradient) > 0.1


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean", "seq-sum"])
def test_an_entropy_bonus_widens_each_visited_state(world, mode):
    """Along sampled answers it is Σ_s d(s) ∇H(π(·|s)), d(s): how often the state is visited, which
    has no gradient. So it is not ∇ Σ_s d(s) H(s): an action is not made likelier because more is
    undecided after it. Off by 0.09, 4.6 and 13 of that here."""
    logits = torch.log_softmax(world.theta, 1)
    entropies = entropy(world.theta)                                        # (7,)
    close(entropies, -(logits.exp() * logits).sum(1))
    weight = world.p[:, None] * MASK
    if mode == "seq-mean":
        weight = weight / LENGTH[:, None]
    # H = log 3 - KL(π‖uniform), whose gradient in the logits is π (log π - Σ π log π).
    p = logits.exp().detach()
    slope = -p * (logits + entropies[:, None]).detach()                     # (7, 3)
    visited = torch.zeros(7, dtype=torch.float64).index_add(0, STATE.flatten(), weight.flatten())
    found = torch.zeros_like(world.theta)
    for answer in range(15):
        rows = [answer]
        of_one = aggregate(entropies[STATE[rows]], MASK[rows], mode, denominator=1)
        found += world.p[answer] * world.grad(of_one)
    close(found, visited[:, None] * slope)
    whole = world.grad_of((entropies[STATE] * MASK).sum(1))
    assert mode != "seq-sum" or relative_error(found, whole) > 0.05


def gradient_under(sampler, world, weights):
    """-Σ_answers μ(answer) ∇loss, the loss of each token times its weight (15, 3)."""
    advantages = (sampler.p * world.score)[:, None] * weights
    loss, _ = policy_gradient_loss(world.logp, advantages, MASK, "seq-sum", denominator=1)
    return -world.grad(loss)


def test_whole_answers_weights_are_exact_and_tokens_weights_are_nearer(world):
    """--importance-cap. Off by 0.9 to 12 of the gradient without weights, by 0.2 to 4.7 with those
    of tokens and a cap of 2, by 0.1 to 2.5 without the cap. Their product over an answer gives the
    gradient itself."""
    sampler = World(7)
    logp, sampler_logp = world.logp.detach(), sampler.logp.detach()
    weights = importance_weights(logp, sampler_logp, MASK, math.inf)
    whole = weights.masked_fill(~MASK, 1).prod(1, keepdim=True).expand(15, 3)
    close(gradient_under(sampler, world, whole), world.gradient)
    without = relative_error(gradient_under(sampler, world, torch.ones(15, 3)), world.gradient)
    by_token = relative_error(gradient_under(sampler, world, weights), world.gradient)
    capped = relative_error(gradient_under(sampler, world, weights.clamp(max=2)), world.gradient)
    assert 0.1 < by_token < capped < 0.5 * without


def test_what_weights_mend_they_pay_for_in_variance(world):
    """Of one answer's gradient. With whole answers' weights, which are exact, it is 2.2 to 20 times
    that with tokens' weights, and that is 1.4 to 3.4 times that with a cap of 2."""
    sampler = World(7)
    logp, sampler_logp = world.logp.detach(), sampler.logp.detach()
    by_token = importance_weights(logp, sampler_logp, MASK, math.inf)
    whole = by_token.masked_fill(~MASK, 1).prod(1, keepdim=True).expand(15, 3)
    found = [world.variance(sampler.p, (world.score[:, None] * weights)[:, None])
             for weights in (by_token.clamp(max=2), by_token, whole)]
    assert 1.3 * found[0] < found[1] < found[2] / 2


def test_a_single_token_has_the_exact_weight(world):
    """Where answers are one token, weights without a cap give ∇J, and a cap bends it."""
    root = torch.log_softmax(world.theta[0], 0)                             # (3,)
    sampler_logp = torch.log_softmax(World(7).theta[0].detach(), 0)
    mask = torch.ones(3, 1, dtype=torch.bool)
    scores = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    truth = world.grad((root.exp() * scores).sum())
    found = {}
    for cap in (math.inf, 0.7):
        weights = importance_weights(root.detach()[:, None], sampler_logp[:, None], mask, cap)
        advantages = (sampler_logp.exp() * scores)[:, None] * weights
        loss, _ = policy_gradient_loss(root[:, None], advantages, mask, "seq-sum", denominator=1)
        found[cap] = -world.grad(loss)
    close(found[math.inf], truth)
    assert relative_error(found[0.7], truth) > 0.02


# --------------------------------------------------------------- a world that answers in the middle

# An answer that begins with 1 and goes on is a call: the world then writes a 0, before the policy
# goes on. In columns: action, hole, action, action. Where nothing is asked, the hole's column is
# the second action's. The policy would read the world's 0 in the state in which it goes on.
CALLS = [y[0] == 1 and len(y) > 1 for y in ANSWERS]
TOLD = torch.tensor([[False, calls, False, False] for calls in CALLS])


def with_holes(x, told=0):
    """(15, 3) -> (15, 4), with `told` (a number, or one of each answer) in the holes."""
    told = torch.as_tensor(told).to(x.dtype).expand(15)
    rows = []
    for row, calls, value in zip(x, CALLS, told):
        hole, rest = (value[None], row[:0]) if calls else (row[:0], torch.zeros_like(row[:1]))
        rows.append(torch.cat((row[:1], hole, row[1:], rest)))
    return torch.stack(rows)


class ToolWorld:
    """What `World` has, of answers with holes. What stands in the holes is noise: the log-prob of
    the world's token, a reward that nobody earned, a value that no state has."""

    def __init__(self, world):
        self.world = world
        told_logp = torch.log_softmax(world.theta, 1)[PREFIXES.index((1,)), 0]
        self.logp = with_holes(world.logp, told_logp)
        self.rewards = with_holes(world.rewards, 7)
        self.mask = with_holes(MASK)
        self.state = with_holes(STATE)
        assert not (self.mask & TOLD).any() and self.mask.sum() == MASK.sum()

    def values(self, of_states):
        return of_states[self.state].masked_fill(TOLD, -11)

    def expected(self, advantages, mask, members=torch.arange(15), p=None, denominator=1):
        """-Σ p ∇loss, of answers or of groups of them."""
        p = self.world.p if p is None else p
        weighted = advantages * (p if advantages.dim() == 1 else p[:, None])
        return -self.world.grad(policy_gradient_loss(
            self.logp[members], weighted, mask[members], "seq-sum", denominator)[0])


@pytest.fixture
def tool(world):
    return ToolWorld(world)


def test_with_a_tool_every_estimator_has_the_exact_gradient(tool, world):
    """The world's tokens are nobody's choice: they have no gradient, no discount, no TD error."""
    close(tool.expected(world.score, tool.mask), world.gradient)
    close(tool.expected(discounted_returns(tool.rewards, tool.mask), tool.mask), world.gradient)
    members = torch.cartesian_prod(torch.arange(15), torch.arange(15)).flatten()
    advantages = rloo_advantages(world.score[members], 2)
    p_pair = world.p[members].view(-1, 2).prod(1).repeat_interleave(2)
    close(tool.expected(advantages, tool.mask, members, p_pair, denominator=2), world.gradient)
    wrong = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    advantages, returns = gae(tool.rewards, tool.values(wrong), tool.mask, lam=1.0)
    close(tool.expected(advantages, tool.mask), world.gradient)
    assert (returns[TOLD] == 0).all() and (advantages[TOLD] == 0).all()
    # And with the true values any λ: the next state's value is that after the hole.
    advantages, _ = gae(tool.rewards, tool.values(world.value), tool.mask, lam=0.0)
    close(tool.expected(advantages, tool.mask), world.gradient)


def test_a_tools_tokens_are_not_discounted(tool, world):
    """γ and λ count actions: returns and advantages are those of the same answers without holes."""
    close(discounted_returns(tool.rewards, tool.mask, 0.7),
          with_holes(discounted_returns(world.rewards, MASK, 0.7)))
    wrong = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    found = gae(tool.rewards, tool.values(wrong), tool.mask, 0.7, 0.6)
    expected = gae(world.rewards, wrong[STATE], MASK, 0.7, 0.6)
    for x, y in zip(found, expected):
        close(x, with_holes(y))


def test_training_on_the_worlds_tokens_bends_the_gradient(tool, world):
    """They were not drawn from π: the gradient of a call's reward is added to the chance to say
    what the world says. Off by 0.07, 0.38 and 1.14 of the gradient here, in the one state."""
    found = tool.expected(world.score, tool.mask | TOLD)
    asking = PREFIXES.index((1,))
    reward_of_calls = (world.p * world.score)[CALLS].sum()
    told_gradient = world.grad(torch.log_softmax(world.theta, 1)[asking, 0])
    close(found - world.gradient, reward_of_calls * told_gradient)
    assert relative_error(found, world.gradient) > 0.05


# ----------------------------------------------------------------------- the variance of one sample

def test_a_smaller_lambda_has_less_variance(world):
    """What λ < 1 buys with its bias. With the true values there is no bias, and λ = 0 has 0.44 to
    0.67 of the variance of λ = 1."""
    found = [
        world.variance(
            world.p, gae(world.rewards, world.value[STATE], MASK, lam=lam)[0][:, None])
        for lam in (0, 0.5, 0.95, 1)]
    assert found == sorted(found) and found[0] < 0.7 * found[3]


def test_a_baseline_takes_variance_away(world):
    """A state's value takes 0.45 to 0.66 of REINFORCE's variance away. What all answers earn alike
    is noise to REINFORCE, and nothing to a baseline. But the mean of one other answer is noise too:
    RLOO's variance, of 2, is 0.70 to 1.26 of REINFORCE's here, where rewards are around 0, and 0.01
    to 0.04 of it where they are around 10."""
    reinforce = world.variance(world.p, world.score[:, None])
    assert world.variance(
        world.p, gae(world.rewards, world.value[STATE], MASK, lam=1.0)[0][:, None]
    ) < 0.6 * reinforce
    pairs = torch.cartesian_prod(torch.arange(15), torch.arange(15))  # (225, 2)
    p, score = world.p[pairs].prod(1), world.score[pairs]
    rloo = world.variance(p, rloo_advantages(score.flatten(), 2).view(-1, 2), pairs)
    assert rloo < 1.3 * world.variance(p, score, pairs)
    assert world.variance(
        p, rloo_advantages((score + 10).flatten(), 2).view(-1, 2), pairs) == pytest.approx(rloo)
    assert rloo < 0.05 * world.variance(p, score + 10, pairs)


# ------------------------------------------------------------------------- biased, and towards what

def test_dividing_by_length_maximises_reward_per_token(world):
    """GRPO's mean over an answer: the exact gradient of E[score / length]. A right answer earns
    more by being short, a wrong one loses less by being long: the length bias that Dr. GRPO
    removes. Off by 0.33 to 2.8 of the gradient here."""
    found = world.expected(world.score, mode="seq-mean")
    close(found, world.grad_of(world.score / LENGTH))
    assert relative_error(found, world.gradient) > 0.3


def test_dividing_by_the_group_std_plays_to_win(world):
    """G = 2: the better of two answers gets +1/√2 and the worse -1/√2, however far apart. That is
    the gradient not of the score but of the chance to beat another answer of the same policy, minus
    that to lose. Off by 0.19 to 0.68 of the gradient here."""
    found = world.over_groups(2, lambda rewards, G: grpo_advantages(rewards, G, eps=0.0))
    beats = (  # (15, 15)
        (world.score[:, None] > world.score).double()
        - (world.score[:, None] < world.score).double())
    close(found, world.grad_of((beats * world.p).sum(1)) / 2 ** 0.5)
    assert relative_error(found, world.gradient) > 0.15


def test_whitening_over_a_batch_bends_the_gradient(world):
    """The batch's own mean and deviation depend on its samples, so the direction is off: by 0.24 to
    0.71 of the gradient here, with two answers a batch. With three it is 0.19 to 0.57: the
    statistics of a large batch hardly depend on any one sample."""
    found = torch.zeros_like(world.gradient)
    returns = discounted_returns(world.rewards, MASK)
    for i, j in itertools.product(range(15), repeat=2):
        pair = [i, j]
        advantages = whiten(returns[pair], MASK[pair])
        found -= world.p[i] * world.p[j] * world.grad(policy_gradient_loss(
            world.logp[pair], advantages, MASK[pair], "seq-sum", denominator=2)[0])
    assert relative_error(found, world.gradient) > 0.2
