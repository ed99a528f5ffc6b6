"""The world of stale answers (lab/stale.py), and the truncated weights that it tries."""
import itertools

import numpy as np
import pytest
import torch

from lab import stale
from losses import grpo_loss
from methods import importance_weights
from model import ModelConfig, Transformer
from rollout import Rollout
from support.tokenizer import builtin_tokenizer

TOKENIZER = builtin_tokenizer()


def rollout_of(prompt: str, answers: list[str], logp) -> Rollout:
    """Answers to one prompt, with their stop tokens; as many letters each."""
    start = TOKENIZER.encode(prompt)
    tokens = torch.tensor([start + TOKENIZER.encode(answer) + [TOKENIZER.eos_id]
                           for answer in answers])
    mask = torch.arange(tokens.shape[1]).expand(tokens.shape) >= len(start)
    n = len(answers)
    return Rollout(tokens, mask, logp * mask, torch.ones(n).bool(),
                   torch.full((n,), len(start)), torch.full((n,), tokens.shape[1]))


def test_only_the_alphabetical_order_is_right(monkeypatch):
    monkeypatch.setattr(stale, "make_problems", lambda n, rng: ["dacb="])
    monkeypatch.setattr(stale, "GROUP_SIZE", 3)
    given = rollout_of("dacb=", ["abcd", "dacb", "abcc"], torch.zeros(3, 10))
    monkeypatch.setattr(stale, "generate", lambda *arguments: given)
    _, rewards = stale.sample_answers(None, TOKENIZER, 0, 0)
    assert rewards.tolist() == [1, 0, 0]


def test_problems_have_different_letters():
    for prompt in stale.make_problems(50, np.random.default_rng(0)):
        assert len(set(prompt[:-1])) == 4 and prompt[-1] == "="


def test_distances_by_hand():
    """Two answers of five tokens. The policy gives the sampler's tokens e^x of their probability;
    the prompt's columns hold noise."""
    x = torch.tensor([[0.1, -0.3, 0.8, 0.0, -0.2], [-1.0, 0.2, 0.0, 0.9, 0.1]])
    sampler_logp = torch.full((2, 10), -1.5)
    rollout = rollout_of("dacb=", ["abcd", "dacb"], sampler_logp)
    old_logp = sampler_logp + torch.cat((torch.full((2, 5), 7.0), x), 1)
    found = stale.measure(None, None, 0, 1, rollout, old_logp)
    assert float(found["kl"]) == pytest.approx(-0.6 / 2, abs=1e-4)
    assert float(found["spread"]) == pytest.approx(x.double().std().item(), rel=1e-3)
    # e^0.8 and e^0.9 are above 2.
    assert float(found["above_cap"]) == pytest.approx(0.2)
    assert found["accuracy"] == ""


@pytest.mark.parametrize("age", [0, 2])
def test_the_sampler_is_so_many_steps_old(age, monkeypatch):
    weights, sampled_from = [], []

    def measure(policy, *others):
        weights.append(policy.lm_head.weight.clone())
        return {}

    def sample_answers(sampler, *others):
        sampled_from.append(sampler.lm_head.weight.clone())
        return rollout_of("dacb=", ["abcd", "dacb"] * 4, torch.full((8, 10), -1.0)), (
            torch.tensor([1.0, 0.0] * 4))
    torch.manual_seed(0)
    start = Transformer(ModelConfig(TOKENIZER.vocab_size, **stale.MODEL))
    monkeypatch.setattr(stale, "train_sft", lambda seed: (start, TOKENIZER))
    monkeypatch.setattr(stale, "measure", measure)
    monkeypatch.setattr(stale, "sample_answers", sample_answers)
    stale.train("", "", 0, 4, age=age)
    for step in range(5):
        assert torch.equal(sampled_from[step], weights[max(0, step - age)])
        assert step == 0 or not torch.equal(weights[step], weights[step - 1])


def test_every_sampler_has_its_runs(tmp_path, monkeypatch):
    ran = []

    def train(setting, correction, seed, steps, **differs):
        name, *corrections = setting.split(" + ")
        assert corrections == ([correction] if correction else [])
        ran.append((name, correction))
        assert differs == stale.SAMPLERS[name]
        return [{"step": 0, "accuracy": 0.5}, {"step": 1, "accuracy": ""}]
    monkeypatch.setattr(stale, "train", train)
    assert len(stale.run(tmp_path, 1, quick=True)) == 16
    others = [name for name in stale.SAMPLERS if name != "fresh"]
    assert sorted(ran) == sorted([("fresh", ""), *itertools.product(others, stale.CORRECTIONS)])


def random_inputs():
    generator = torch.Generator().manual_seed(0)
    old_logp, sampler_logp, logp = -torch.rand(3, 4, 5, dtype=torch.float64, generator=generator)
    advantages = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    mask = torch.rand(4, 5, generator=generator) < 0.7
    return old_logp, sampler_logp, logp, advantages, mask


def test_weights_by_hand():
    old_logp = torch.tensor([[0.0, -0.5, -1.0, -2.0, 80.0]])
    sampler_logp = torch.tensor([[0.0, -1.0, -3.0, -1.5, -80.0]])
    mask = torch.tensor([[True, True, True, True, False]])
    found = importance_weights(old_logp, sampler_logp, mask, 2.0)
    by_hand = [1.0, 2.718281828 ** 0.5, 2.0, 2.718281828 ** -0.5, 0.0]
    assert found[0].tolist() == pytest.approx(by_hand, rel=1e-6)


def test_to_weigh_the_advantage_is_to_weigh_the_gradient():
    """Of each token, clipped ones too."""
    old_logp, sampler_logp, logp, advantages, mask = random_inputs()
    weights = importance_weights(old_logp, sampler_logp, mask, 1.3)
    gradients, clipped = [], []
    for given in (advantages, advantages * weights):
        x = logp.clone().requires_grad_()
        loss, stats = grpo_loss(x, old_logp, None, given, mask, mode="seq-sum", denominator=1)
        gradients.append(torch.autograd.grad(loss, x)[0])
        clipped.append(stats["clip_fraction"])
    assert torch.allclose(gradients[1], weights * gradients[0], rtol=1e-12, atol=0)
    assert clipped[0] == clipped[1] > 0 and (weights == 1.3).any() and (weights < 1).any()
