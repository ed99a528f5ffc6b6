"""What the design promises of advantages.py and losses.py beyond the peers' numbers: closed forms,
edges, refusals."""
import math

import pytest
import torch

from advantages import (
    discounted_returns, gae, grpo_advantages, reinforce_pp_advantages, remax_advantages,
    rloo_advantages, token_rewards, whiten)
from losses import (
    adaptive_kl_coef, aggregate, cispo_loss, count_for, dpo_loss, entropy, gather_log_probs,
    grpo_loss, gspo_loss, ipo_loss, kl_exact, kl_k1, kl_k2, kl_k3, kto_loss, masked_mean, orpo_loss,
    policy_gradient_loss, ppo_policy_loss, reward_model_loss, sft_loss, simpo_loss, value_loss)

f64 = torch.float64


def t(*values):
    return torch.tensor(values, dtype=f64)


# --------------------------------------------------------------------------------------- advantages

def test_gae_by_hand():
    """Three actions, γ = 0.5, λ = 0.5: δ from right to left, then A = δ + 0.25 A."""
    rewards, values, mask = t([0, 9, 1, 0, 2]), t([9, 1, 2, 3, 4]), torch.tensor([[0, 1, 1, 0, 1]])
    d4 = 2 - 4
    d2 = 1 + 0.5 * 4 - 2
    d1 = 9 + 0.5 * 2 - 1
    a2 = d2 + 0.25 * d4
    expected = t([0, d1 + 0.25 * a2, a2, 0, d4])
    advantages, returns = gae(rewards, values, mask, 0.5, 0.5)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, (expected + values) * mask)


def test_gae_ends():
    """λ = 1 is the return minus V; λ = 0 the TD error; a bootstrap is the value after the last
    action."""
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 3, 6, dtype=f64, generator=generator)
    mask = torch.tensor([[0, 1, 1, 1, 1, 0], [1, 1, 0, 1, 0, 0], [0, 0, 1, 1, 1, 1]]).bool()
    advantages, returns = gae(rewards, values, mask, 0.9, 1.0)
    torch.testing.assert_close(returns, discounted_returns(rewards, mask, 0.9))
    boot, _ = gae(rewards, values, mask, 0.9, 0.0, bootstrap=t(5, 6, 7))
    torch.testing.assert_close(boot[0, 4], rewards[0, 4] + 0.9 * 5 - values[0, 4])
    # across the hole
    torch.testing.assert_close(boot[1, 1], rewards[1, 1] + 0.9 * values[1, 3] - values[1, 1])
    torch.testing.assert_close(boot[1, 3], rewards[1, 3] + 0.9 * 6 - values[1, 3])


def test_score_sits_on_the_last_action():
    mask = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]])
    zeros = torch.zeros(4, 4, dtype=f64)
    expected = t([0, 0, 1, 0], [0, 0, 0, 2], [0, 0, 0, 3], [0, 0, 0, 0])
    assert torch.equal(token_rewards(t(1, 2, 3, 4), zeros, zeros, mask, 0.1), expected)
    penalty = token_rewards(t(0, 0, 0, 0), zeros + 1, zeros - 1, mask, 0.1)
    torch.testing.assert_close(penalty, -0.2 * mask.to(f64))


def test_groups_without_signal_are_exactly_zero():
    equal = torch.full((8,), 0.7)
    for advantages in (
            grpo_advantages(equal, 8, eps=1e-8),
            grpo_advantages(equal, 8, scale=False),
            rloo_advantages(equal, 4)):
        assert (advantages == 0).all()
    two_groups = grpo_advantages(t(1, 1, 0, 1), 2)
    assert two_groups[:2].tolist() == [0, 0] and two_groups[2] < 0 < two_groups[3]


@pytest.mark.parametrize("function", [grpo_advantages, rloo_advantages])
def test_bad_groups_are_refused(function):
    for size in (1, 0, 3):
        with pytest.raises(ValueError, match=f"groups of {size}"):
            function(torch.zeros(8), size)


def test_whiten():
    x, mask = t([1, 2, 100], [3, 4, 100]), torch.tensor([[1, 1, 0], [1, 1, 0]])
    w = whiten(x, mask)
    torch.testing.assert_close(w[:, :2].mean(), t(0.0)[0])
    torch.testing.assert_close(w[:, :2].var(), t(1.0)[0])
    torch.testing.assert_close(whiten(x, mask, shift_mean=False) - w, 2.5 * mask.to(f64))
    assert (whiten(x, torch.tensor([[1, 0, 0], [0, 0, 0]])) == 0).all()
    torch.testing.assert_close(
        reinforce_pp_advantages(x, mask), whiten(t([3, 2, 0], [7, 4, 0]), mask))


# ----------------------------------------------------------------------------------------- averages

def test_returns_of_whole_numbers_are_not_rounded():
    """A verifier's rewards may be whole numbers; their discounted returns aren't."""
    returns = discounted_returns(torch.tensor([[0, 0, 1, 7]]), torch.tensor([[1, 1, 1, 0]]), 0.5)
    assert returns.tolist() == [[0.25, 0.5, 1, 0]]


def test_aggregate_modes():
    x, mask = (
        t([1, 2, 3, 50], [4, 50, 50, 50], [50, 50, 50, 50]),
        torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]))
    assert aggregate(x, mask, "token-mean").item() == 10 / 4
    # rows without actions don't count
    assert aggregate(x, mask, "seq-mean").item() == (2 + 4) / 2
    assert aggregate(x, mask, "seq-sum").item() == 10 / 12
    assert aggregate(x, mask, "seq-sum", denominator=100).item() == 0.1
    for mode in ("token-mean", "seq-mean", "seq-sum"):
        assert aggregate(x, mask * 0, mode).item() == 0
        assert count_for(mask, mode) == {"token-mean": 4, "seq-mean": 2, "seq-sum": 12}[mode]
    with pytest.raises(ValueError, match="unknown mode 'mean'"):
        aggregate(x, mask, "mean")


# ----------------------------------------------------------------------------------------------- KL

def test_kl_estimators_by_enumeration():
    """E[k1] = E[k3] = KL;  E[∇k1] = 0, E[∇k2] = ∇KL(π‖ref), E[∇k3] = ∇KL(ref‖π)."""
    generator = torch.Generator().manual_seed(0)
    logits, ref_logits = torch.randn(2, 5, dtype=f64, generator=generator)
    logits.requires_grad_()
    logp, ref_logp = torch.log_softmax(logits, 0), torch.log_softmax(ref_logits, 0)
    p = logp.exp().detach()
    kl, reverse = kl_exact(logits, ref_logits), kl_exact(ref_logits, logits)
    for k in (kl_k1, kl_k3):
        torch.testing.assert_close((p * k(logp, ref_logp)).sum(), kl)
    grad = lambda y: torch.autograd.grad(y, logits, retain_graph=True)[0]
    torch.testing.assert_close(grad((p * kl_k1(logp, ref_logp)).sum()), torch.zeros(5, dtype=f64))
    torch.testing.assert_close(grad((p * kl_k2(logp, ref_logp)).sum()), grad(kl))
    torch.testing.assert_close(grad((p * kl_k3(logp, ref_logp)).sum()), grad(reverse))


def test_why_there_are_three_kl_estimators():
    """Near the reference (where training lives) k1's spread is 32 times the KL itself and k3's 1.7
    times; k2 is biased, by 3 %. Far from it k2 is off by 90 % and k3, with its exponential, spreads
    more than k1."""
    generator = torch.Generator().manual_seed(0)
    logits, noise = torch.randn(2, 5, dtype=f64, generator=generator)
    logp, found = torch.log_softmax(logits, 0), {}
    for distance in (0.1, 3.0):
        ref_logits = logits + distance * noise
        kl = kl_exact(logits, ref_logits)
        for k in (kl_k1, kl_k2, kl_k3):
            x = k(logp, torch.log_softmax(ref_logits, 0))
            mean = (logp.exp() * x).sum()
            # bias, spread
            found[k.__name__, distance] = (
                (mean / kl - 1).item(),
                ((logp.exp() * (x - mean).square()).sum().sqrt() / kl).item())
    assert (
        found["kl_k1", 0.1][1] == pytest.approx(31.8, abs=0.1)
        and found["kl_k3", 0.1][1] == pytest.approx(1.72, abs=0.01))
    assert (
        found["kl_k2", 0.1][0] == pytest.approx(-0.027, abs=1e-3)
        and found["kl_k2", 3.0][0] == pytest.approx(0.897, abs=1e-3))
    assert found["kl_k3", 3.0][1] > found["kl_k1", 3.0][1]


def test_adaptive_kl_coef():
    assert adaptive_kl_coef(0.1, 6.6, 6.0, 100, 1000) == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    assert adaptive_kl_coef(0.1, 60.0, 6.0, 100, 1000) == pytest.approx(0.1 * (1 + 0.2 * 0.1))
    assert adaptive_kl_coef(0.1, 0.0, 6.0, 100, 1000) == pytest.approx(0.1 * (1 - 0.2 * 0.1))
    # a short horizon: never a reward for KL
    assert adaptive_kl_coef(0.05, 0.0, 6.0, 256, 10) == 0


# ------------------------------------------------------------------------------------ policy losses

@pytest.mark.parametrize("advantage, ratio, clipped", [
    (1, 1.5, True), (1, 1.1, False), (1, 0.5, False),
    (-1, 0.5, True), (-1, 0.9, False), (-1, 1.5, False)])
def test_where_the_clip_stops_the_gradient(advantage, ratio, clipped):
    """Only a step that went too far in the direction of the advantage has no gradient; a step back
    always has."""
    logp = t([math.log(ratio)]).requires_grad_()
    loss, stats = ppo_policy_loss(logp, t([0.0]), t([float(advantage)]), torch.ones(1, 1))
    loss.backward()
    assert stats["clip_fraction"].item() == clipped
    assert logp.grad.item() == pytest.approx(0 if clipped else -advantage * ratio)


def test_dual_clip_bounds_the_loss():
    logp = t([math.log(10)]).requires_grad_()
    loss, stats = ppo_policy_loss(logp, t([0.0]), t([-1.0]), torch.ones(1, 1), dual_clip=3.0)
    assert loss.item() == 3 and stats["clip_fraction"] == 1
    assert torch.autograd.grad(loss, logp)[0].item() == 0


@pytest.mark.parametrize("function", [
    ppo_policy_loss, grpo_loss, gspo_loss, cispo_loss, policy_gradient_loss, value_loss])
def test_what_was_measured_before_the_update_gets_no_gradient(function):
    """Advantages, old log-probs, old values and returns are numbers: who computes them without
    no_grad, even as the same tensor as the new ones, gets the same gradient."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, dtype=f64, generator=generator).requires_grad_()
    weights = torch.randn(2, dtype=f64, generator=generator).requires_grad_()
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    arguments = {
        ppo_policy_loss: lambda x, old, A: (x, old, A, mask),
        grpo_loss: lambda x, old, A: (x, old, old - 1, A, mask, 0.2, 0.2, 0.1),
        gspo_loss: lambda x, old, A: (x, old, A, mask),
        cispo_loss: lambda x, old, A: (x, old, A, mask),
        policy_gradient_loss: lambda x, old, A: (x, A, mask),
        value_loss: lambda x, old, A: (x, old, old + A[:, None], mask)}[function]
    expected = torch.autograd.grad(function(*arguments(x, x.detach(), weights.detach()))[0], x)[0]
    loss, _ = function(*arguments(x, x, weights))
    found, of_weights = torch.autograd.grad(loss, (x, weights), allow_unused=True)
    assert expected.abs().sum() > 0.1 and of_weights is None
    torch.testing.assert_close(found, expected)


def test_on_policy_losses_have_the_policy_gradient():
    """At ratio 1 PPO, GRPO, CISPO and A2C have one gradient."""
    generator = torch.Generator().manual_seed(0)
    logp, advantages = torch.randn(2, 3, 5, dtype=f64, generator=generator)
    mask = torch.rand(3, 5, generator=generator) > 0.3
    logp.requires_grad_()
    grads = [torch.autograd.grad(loss(logp), logp)[0] for loss in (
        lambda x: policy_gradient_loss(x, advantages, mask)[0],
        lambda x: ppo_policy_loss(x, x.detach(), advantages, mask)[0],
        lambda x: grpo_loss(x, x.detach(), None, advantages, mask, mode="token-mean")[0],
        lambda x: cispo_loss(x, x.detach(), advantages, mask)[0])]
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0])


ALL = {
    "policy_gradient": lambda logp, old, ref, A, m, d=None: (
        policy_gradient_loss(logp, A, m, denominator=d)),
    "ppo": lambda logp, old, ref, A, m, d=None: (
        ppo_policy_loss(logp, old, A, m, denominator=d)),
    "grpo": lambda logp, old, ref, A, m, d=None: (
        grpo_loss(logp, old, ref, A, m, kl_coef=0.1, mode="token-mean", denominator=d)),
    "cispo": lambda logp, old, ref, A, m, d=None: (
        cispo_loss(logp, old, A, m, denominator=d)),
    "value": lambda logp, old, ref, A, m, d=None: (
        value_loss(logp, old, ref, m, denominator=d)),
    "sft": lambda logp, old, ref, A, m, d=None: (
        sft_loss(logp, m, denominator=d)),
}


@pytest.mark.parametrize("name", [*ALL, "gspo"])
def test_invariances(name):
    """Off the mask anything finite, more padding, the mask's dtype and a split of the batch change
    neither loss nor gradient."""
    generator = torch.Generator().manual_seed(0)
    logp, old, ref, A = torch.randn(4, 4, 6, dtype=f64, generator=generator)
    mask = torch.tensor([
        [0, 1, 1, 1, 0, 0], [0, 0, 1, 0, 1, 0], [0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0]]).bool()
    if name == "gspo":
        A = A[:, 0]
    loss_of = ALL.get(name) or (
        lambda logp, old, ref, A, m, d=None: gspo_loss(logp, old, A, m, denominator=d))

    def run(logp, old, ref, A, mask, parts=None, total=None):
        logp = logp.clone().requires_grad_()
        loss = sum(
            loss_of(logp[i], old[i], ref[i], A[i], mask[i], total)[0]
            for i in parts or [slice(None)])
        return loss.detach(), torch.autograd.grad(loss, logp)[0]

    loss, grad = run(logp, old, ref, A, mask)
    assert (grad[~mask] == 0).all() and grad[mask].abs().sum() > 0
    huge = torch.full((4, 6), 1e300, dtype=f64).masked_fill(mask, 0)
    for variant in (
            run(logp + huge, old - huge, ref + huge, A if A.dim() == 1 else A - huge, mask),
            run(logp, old, ref, A, mask.long()),
            run(logp, old, ref, A, mask.float()),
            run(
                logp, old, ref, A, mask, [slice(0, 1), slice(1, 4)],
                count_for(mask, "seq-mean" if name == "gspo" else "token-mean"))):
        torch.testing.assert_close(variant, (loss, grad))
    pad = lambda x: torch.cat((x, torch.full((4, 3), 7).to(x.dtype)), 1) if x.dim() == 2 else x
    wider = torch.cat((mask, torch.zeros(4, 3, dtype=torch.bool)), 1)
    padded = run(pad(logp), pad(old), pad(ref), pad(A), wider)
    torch.testing.assert_close((padded[0], padded[1][:, :6]), (loss, grad))


def test_shapes_that_differ_are_refused():
    x, y, mask = torch.zeros(2, 3), torch.zeros(2, 1), torch.ones(2, 3)
    for call in (
            lambda: ppo_policy_loss(x, y, x, mask),
            lambda: ppo_policy_loss(x, x, torch.zeros(3), mask),
            lambda: kl_k3(x, y),
            lambda: gae(x, y, mask),
            lambda: whiten(y, mask),
            lambda: value_loss(x, x, y, mask),
            lambda: masked_mean(y, mask),
            lambda: dpo_loss(x[:, 0], x[0], x[:, 0], x[:, 0]),
            lambda: remax_advantages(x[0], x[:, 0]),
            lambda: gather_log_probs(x, mask.long()),
            lambda: token_rewards(x[0], x, x, mask, 0.1),
            lambda: reward_model_loss(x[0], x[0], margin=x[:, 0])):
        with pytest.raises(ValueError, match="shapes differ"):
            call()
    with pytest.raises(ValueError, match="kl_coef is 0.1, but ref_logp is None"):
        grpo_loss(x, x, None, x, mask, kl_coef=0.1)


def test_losses_of_whole_answers_refuse_numbers_per_token():
    """Log-probs that nobody summed, and numbers that would broadcast to a table of all with all."""
    x = torch.zeros(4, 3)
    for call in (lambda: dpo_loss(x, x, x, x), lambda: ipo_loss(x, x, x, x),
                 lambda: simpo_loss(x, x), lambda: orpo_loss(x - 1, x - 1),
                 lambda: reward_model_loss(x, x),
                 lambda: kto_loss(x, x, x, torch.tensor(0.0))):
        with pytest.raises(ValueError, match=r"found shape \(4, 3\), expected \(B,\)"):
            call()
    row = torch.zeros(4)
    with pytest.raises(ValueError, match=r"found shape \(4, 4\), expected \(B,\)"):
        kto_loss(row, row, row, torch.zeros(4, 1))


# --------------------------------------------------------------------------------------- the others

def test_logits_are_raised_to_float32():
    logits = torch.randn(4, 50, dtype=torch.bfloat16)
    tokens = torch.tensor([0, 1, 2, 3])
    assert (
        gather_log_probs(logits, tokens).dtype
        == entropy(logits).dtype
        == kl_exact(logits, logits).dtype
        == torch.float32)
    torch.testing.assert_close(
        gather_log_probs(logits, tokens),
        torch.log_softmax(logits.float(), -1)[tokens, tokens])
    torch.testing.assert_close(entropy(torch.zeros(7)), torch.tensor(math.log(7)))


def test_preference_losses_by_hand():
    sigmoid = lambda x: 1 / (1 + math.exp(-x))
    c, r, rc, rr = t(-3.0), t(-5.0), t(-4.0), t(-4.5)
    h = 0.1 * ((-3 + 4) - (-5 + 4.5))
    assert dpo_loss(c, r, rc, rr)[0].item() == pytest.approx(-math.log(sigmoid(h)))
    assert dpo_loss(c, r, rc, rr, label_smoothing=0.2)[0].item() == pytest.approx(
        -0.8 * math.log(sigmoid(h)) - 0.2 * math.log(sigmoid(-h)))
    assert ipo_loss(c, r, rc, rr)[0].item() == pytest.approx((1.5 - 5) ** 2)
    both = kto_loss(
        torch.cat((c, r)), torch.cat((rc, rr)), torch.tensor([True, False]), t(0.3)[0],
        undesirable_weight=2.0)[0].item()
    assert both == pytest.approx(
        ((1 - sigmoid(0.1 * (1 - 0.3))) + 2 * (1 - sigmoid(-0.1 * (-0.5 - 0.3)))) / 2)
    assert simpo_loss(c, r)[0].item() == pytest.approx(-math.log(sigmoid(2 * 2 - 1)))
    odds = lambda x: x - math.log(1 - math.exp(x))
    assert orpo_loss(c, r)[0].item() == pytest.approx(-0.1 * math.log(sigmoid(odds(-3) - odds(-5))))
    assert reward_model_loss(t(2.0), t(0.5), margin=1.0)[0].item() == pytest.approx(
        -math.log(sigmoid(0.5)))


def test_orpo_is_finite_for_a_certain_answer():
    logp = t(0.0).requires_grad_()
    loss, _ = orpo_loss(logp, t(-1.0))
    loss.backward()
    assert loss.isfinite() and logp.grad.isfinite()
