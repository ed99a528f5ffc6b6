"""The world of length (lab/length.py): what it measures, and what theory says of it, exactly."""

import numpy as np
import pytest
import torch

from lab import length, loops, report, stale
from losses import count_for, grpo_loss
from model import ModelConfig, Transformer
from rollout import Rollout
from support.tokenizer import builtin_tokenizer

TOKENIZER = builtin_tokenizer()


def test_a_coin_falls_once():
    coin = length.Coin(TOKENIZER, np.random.default_rng(0))
    h, t = coin.sides.tolist().index("h."), coin.sides.tolist().index("t.")
    guess = TOKENIZER.encode("h.")
    assert TOKENIZER.decode(coin(h, guess)) == " yes" and coin.rewards[h] == 1
    assert TOKENIZER.decode(coin(t, guess)) == " no" and coin.rewards[t] == 0
    # What comes later can't change the reward.
    assert coin(t, TOKENIZER.encode(" t.")) is None and coin.rewards[t] == 0


def test_demonstrations_say_nothing_of_the_verdict():
    rng = np.random.default_rng(0)
    drawn = [length.demonstration(rng) for _ in range(2000)]
    after = {verdict: [text.count("hm") for *_, v, text in drawn if v == verdict]
             for verdict in length.VERDICTS}
    for times in after.values():
        assert set(times) == set(range(7)) and np.mean(times) == pytest.approx(3, abs=0.2)


def test_lengths_are_of_sampled_tokens():
    """Three answers by hand. Four tokens are told, and don't count."""
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 0],
                         [0, 1, 1, 0, 0, 1, 1],
                         [0, 1, 0, 0, 0, 0, 0]]).bool()
    rollout = Rollout(torch.zeros(3, 7), mask, torch.zeros(3, 7), torch.ones(3).bool(),
                      torch.ones(3), torch.full((3,), 7))
    found = length.measure(rollout, torch.tensor([0.0, 0.0, 1.0]))
    assert {name: float(x) for name, x in found.items()} == {
        "accuracy": 0.3333, "wrong_length": 3.5, "right_length": 1.0}


def gradients(advantage, mode, n_answers):
    """∂/∂z of the expected loss with the sign of an objective, for each place where an answer may
    go on or stop. It has 2 tokens before the first, and must stop at the fourth place.

    The batch has n_answers; the others have 4 tokens each and an advantage of 0."""
    z = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64, requires_grad=True)
    on, off = torch.nn.functional.logsigmoid(z), torch.nn.functional.logsigmoid(-z)
    objective = 0.0
    for n_more in range(4):
        choices = [*on[:n_more], *off[n_more:n_more + 1]]
        logp = torch.stack([z.new_tensor(-0.5)] * 2 + choices)[None]                # (1, L)
        mask = torch.ones(1, logp.shape[1], dtype=torch.bool)
        denominator = {"seq-mean": n_answers, "seq-sum": 4 * n_answers,
                       "token-mean": mask.sum() + 4 * (n_answers - 1)}[mode]
        loss, _ = grpo_loss(logp, logp.detach(), None, z.new_tensor([advantage]), mask,
                            mode=mode, denominator=denominator)
        p_answer = sum(choices).exp().detach()
        objective = objective - p_answer * loss
    return torch.autograd.grad(objective, z)[0], z.detach().sigmoid()


@pytest.mark.parametrize("advantage", [1.5, -0.7])
def test_the_closed_form(advantage):
    """p (1 - p) A (E[1/L | one more] - 1/L_now), times the chance to come to that place. With L of
    3, 4, 5 and 5 tokens: going on at the last place ends the answer too."""
    found, p = gradients(advantage, "seq-mean", 1)
    at_3 = 1 / 5
    at_2 = p[2] * at_3 + (1 - p[2]) / 5
    at_1 = p[1] * at_2 + (1 - p[1]) / 4
    reached = [1, p[0], p[0] * p[1]]
    stops_now = [1 / 3, 1 / 4, 1 / 5]
    goes_on = [at_1, at_2, at_3]
    for k in range(3):
        bracket = goes_on[k] - stops_now[k]
        assert found[k].item() == pytest.approx(
            float(reached[k] * p[k] * (1 - p[k]) * advantage * bracket), abs=1e-12)
    # Wrong answers grow, right ones shrink, wherever one more makes a difference.
    assert (found[:2] * advantage < -1e-3).all()


@pytest.mark.parametrize("advantage", [1.5, -0.7])
def test_a_constant_has_no_bias_and_a_batchs_tokens_a_small_one(advantage):
    by_constant, _ = gradients(advantage, "seq-sum", 1)
    assert by_constant.abs().max() < 1e-15
    for n in (8, 64):
        by_answer, _ = gradients(advantage, "seq-mean", n)
        by_token, _ = gradients(advantage, "token-mean", n)
        assert (by_token[:2] / by_answer[:2] * n > 0.7).all()
        assert (by_token[:2] / by_answer[:2] * n < 1.4).all()


def test_denominators_are_those_of_the_loop():
    """What `gradients` divides by is what count_for gives."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert [count_for(mask, mode, 48).item() for mode in length.MODES] == [2, 6, 96]


def test_a_file_that_was_cut_off_is_not_there(tmp_path, monkeypatch):
    """What is written to a name is all there, or nothing is."""
    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(report.os, "replace", fail)
        for file, keep in (("a.csv", loops.run_once), ("a.json", loops.make_once)):
            with pytest.raises(OSError):
                keep(tmp_path / file, lambda: [{"x": 1}])
            assert not (tmp_path / file).exists()
    assert loops.run_once(tmp_path / "a.csv", lambda: [{"x": 1}]) == [{"x": "1"}]
    assert loops.make_once(tmp_path / "a.json", lambda: [{"x": 1}]) == [{"x": 1}]
    assert loops.make_once(tmp_path / "a.json", fail) == [{"x": 1}]


@pytest.mark.parametrize("world", [length, stale])
def test_no_update_that_nothing_measures(world, monkeypatch):
    updates = []
    monkeypatch.setattr(world, "update", lambda policy, optimizer, loss: updates.append(loss))
    monkeypatch.setattr(world, "train_sft", lambda seed: (small_policy(), TOKENIZER))
    given = ("seq-sum",) if world is length else ("fresh", "")
    rows = world.train(*given, seed=0, steps=1)
    assert [row["step"] for row in rows] == [0, 1]
    assert len(updates) == (1 if world is length else stale.MINIBATCHES)


def small_policy():
    torch.manual_seed(0)
    return Transformer(ModelConfig(TOKENIZER.vocab_size, **length.MODEL))


def test_a_run_that_is_there_is_not_run_again(tmp_path, monkeypatch):
    ran = []

    def train(mode, seed, steps):
        ran.append((mode, seed))
        return [{"line": "", "setting": mode, "seed": seed, "step": step, "accuracy": 0.5,
                 "wrong_length": 12.5 + step, "right_length": 10} for step in range(steps + 1)]
    monkeypatch.setattr(length, "train", train)
    rows = length.run(tmp_path, 2, quick=False)
    assert sorted(ran) == sorted((mode, seed) for mode in length.MODES for seed in (0, 1))
    assert len(rows) == 6 * 41 and [row["gap"] for row in rows[:2]] == ["2.500", "3.500"]
    assert length.run(tmp_path, 2, quick=False) == rows and len(ran) == 6
    # A quick run is another one.
    assert len(length.run(tmp_path, 1, quick=True)) == 3 * 21
