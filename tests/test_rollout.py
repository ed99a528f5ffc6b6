"""Sampling and scoring: what is sampled is what is scored, and nothing depends on the batch around
a row."""
import re

import pytest
import torch

import rollout as rollout_module
from losses import aggregate, entropy, kl_exact
from model import ScalarModel, Transformer
from rollout import (
    generate, micro_batches, mini_batches, row_lengths, sample, sequence_scores,
    token_log_probs, token_log_probs_and_entropies, token_values)
from support import parallel
from support.metrics import token_kl

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [2, 2], [1, 2, 3]]
# The stop ids.
EOS = [0]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def sampled(model):
    return generate(model, PROMPTS * 6, 12, EOS, generator=rng())


def test_layout(sampled):
    """Prompt, answer, padding; the mask is the answer; an answer ends with its first stop token or
    was cut off."""
    lengths = set()
    for b, (prompt, response) in enumerate(zip(PROMPTS * 6, sampled.responses())):
        n, end = len(prompt), len(prompt) + len(response)
        assert sampled.tokens[b, :n].tolist() == prompt and sampled.prompt_lengths[b] == n
        assert sampled.mask[b].nonzero().squeeze(1).tolist() == list(range(n, end))
        assert (
            (sampled.tokens[b, end:] == 0).all()
            and (sampled.logp[b][~sampled.mask[b]] == 0).all())
        assert EOS[0] not in response[:-1]
        assert sampled.finished[b] == (response[-1] in EOS)
        assert sampled.finished[b] or len(response) == 12
        lengths.add(len(response))
    # So that the cases above occur.
    assert sampled.finished.any() and not sampled.finished.all() and len(lengths) > 3


def test_stop_token_is_an_action(sampled):
    last = sampled.mask.long().sum(1) + sampled.prompt_lengths - 1
    row = sampled.finished.nonzero()[0, 0]
    assert (
        sampled.tokens[row, last[row]] in EOS
        and sampled.mask[row, last[row]]
        and sampled.logp[row, last[row]] < 0)


def test_sampled_log_probs_are_the_scored_ones(model):
    for temperature in (0.7, 1.0, 1.3):
        r = generate(model, PROMPTS * 4, 12, EOS, temperature, rng())
        torch.testing.assert_close(
            token_log_probs(model, r.tokens, r.mask, temperature).float(), r.logp)
        assert not torch.allclose(
            token_log_probs(model, r.tokens, r.mask, temperature + 0.3).float(), r.logp)


def test_a_batch_samples_what_its_rows_do_one_by_one(model, sampled):
    generator = rng()
    for b, prompt in enumerate(PROMPTS * 6):
        one = generate(model, [prompt], 12, EOS, generator=generator)
        assert one.responses()[0] == sampled.responses()[b]
        assert one.finished[0] == sampled.finished[b]


def test_a_prompt_that_repeats_goes_through_the_model_once(model, monkeypatch):
    """And every row still samples what it would alone. The id 0 that pads is no part of a prompt:
    [5] isn't [5, 0]."""
    prompts, shapes, hidden = (
        [[5, 0], [1, 2, 3], [5], [5, 0], [1, 2, 3], [5, 0]], [], model.hidden)
    monkeypatch.setattr(
        model, "hidden",
        lambda tokens, *rest: shapes.append(tuple(tokens.shape)) or hidden(tokens, *rest))
    together = generate(
        model, prompts, 6, [], generator=torch.Generator().manual_seed(1)).responses()
    assert shapes[0] == (3, 3) and shapes[1:] == [(6, 1)] * 5
    monkeypatch.undo()
    noise = torch.Generator().manual_seed(1)
    assert [
        generate(model, [prompt], 6, [], generator=noise).responses()[0]
        for prompt in prompts] == together


def test_noise_may_be_given(model, sampled):
    noise = torch.rand(30, 12, generator=rng())
    given = generate(model, PROMPTS * 6, 12, EOS, noise=noise)
    assert torch.equal(given.tokens, sampled.tokens) and torch.equal(given.logp, sampled.logp)
    some = generate(model, (PROMPTS * 6)[7:20], 12, EOS, noise=noise[7:20])
    assert some.responses() == sampled.responses()[7:20]


def test_samples_of_one_prompt_differ_from_the_first_token_on(model):
    r = generate(model, [[1, 2]] * 64, 3, [], generator=rng())
    assert len({response[0] for response in r.responses()}) > 3


def test_sampler_follows_the_distribution():
    """Chi-square of 20,000 draws against softmax(logits / 0.7): 9 degrees of freedom, 27.9 at
    p = 0.001."""
    logits, n = torch.randn(10, generator=rng()), 20000
    tokens, logp = sample(logits.expand(n, 10), 0.7, torch.rand(n, generator=rng(1)))
    p = torch.softmax(logits / 0.7, 0)
    observed = torch.bincount(tokens, minlength=10)
    assert ((observed - n * p) ** 2 / (n * p)).sum() < 27.9
    torch.testing.assert_close(logp, p.log()[tokens])


def test_greedy_takes_the_most_likely_token(model):
    r = generate(model, PROMPTS, 6, EOS, temperature=0)
    logits = model(r.tokens)
    for b, response in enumerate(r.responses()):
        n = len(PROMPTS[b])
        assert response == logits[b, n - 1:n - 1 + len(response)].argmax(-1).tolist()


def test_several_stop_ids_and_none(model):
    several = generate(model, PROMPTS * 4, 12, [0, 3, 5], generator=rng())
    assert {r[-1] for r, f in zip(several.responses(), several.finished) if f} == {0, 3, 5}
    never = generate(model, PROMPTS, 12, [], generator=rng())
    assert not never.finished.any() and all(len(r) == 12 for r in never.responses())


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(ValueError, match="prompt 1 has 30 tokens, expected 1 to 28"):
        generate(model, [[1], [1] * 30], 4, EOS)
    with pytest.raises(ValueError, match="prompt 0 has 0 tokens"):
        generate(model, [[]], 4, EOS)
    assert generate(model, [[1] * 28], 4, []).tokens.shape == (1, 32)


# ------------------------------------------------------------------------------------------ scoring

def test_log_probs_are_those_of_the_full_logits(model, batch):
    tokens, mask = batch
    logp, entropies = token_log_probs_and_entropies(model, tokens, mask, 0.8)
    logits = model(tokens).float() / 0.8
    expected = torch.zeros(tokens.shape)
    for b, t in mask.nonzero().tolist():
        expected[b, t] = torch.log_softmax(logits[b, t - 1], 0)[tokens[b, t]]
        torch.testing.assert_close(entropies[b, t], entropy(logits[b, t - 1]))
    torch.testing.assert_close(logp, expected)
    assert (entropies[~mask] == 0).all() and not entropies.requires_grad


@pytest.mark.parametrize("at_once", [2 ** 24, 60])
def test_the_gradient_of_entropies_is_theirs_where_it_is_asked_for(model, batch, monkeypatch,
                                                                   at_once):
    """In one chunk of logits, and in several, which the backward pass computes again."""
    monkeypatch.setattr(rollout_module, "LOGITS_AT_ONCE", at_once)
    tokens, mask = batch
    weight = torch.rand(mask.shape)
    logp, entropies = token_log_probs_and_entropies(model, tokens, mask, 0.8, with_gradient=True)
    logits = model(tokens).float() / 0.8
    expected = entropy(logits[:, :-1])[mask[:, 1:]]
    torch.testing.assert_close(entropies[mask], expected)
    parameters = list(model.parameters())
    found = torch.autograd.grad((entropies * weight).sum(), parameters, retain_graph=True)
    for x, y in zip(found, torch.autograd.grad((expected * weight[mask]).sum(), parameters)):
        torch.testing.assert_close(x, y)
    assert torch.equal(token_log_probs(model, tokens, mask, 0.8), logp)


def test_chunks_change_neither_values_nor_gradients(model, batch, monkeypatch):
    tokens, mask = batch

    def run():
        model.zero_grad()
        logp = token_log_probs(model, tokens, mask)
        (logp * torch.arange(10)).sum().backward()
        return [logp.detach()] + [p.grad.clone() for p in model.parameters()]
    whole = run()
    # three tokens at a time
    monkeypatch.setattr(rollout_module, "LOGITS_AT_ONCE", 3 * 11)
    for a, b in zip(whole, run()):
        torch.testing.assert_close(a, b)


def test_padding_and_row_order_change_nothing(model, batch):
    tokens, mask = batch
    logp = token_log_probs(model, tokens, mask)
    padded = (
        torch.cat((tokens, torch.full((4, 5), 7)), 1),
        torch.cat((mask, torch.zeros(4, 5, dtype=torch.bool)), 1))
    torch.testing.assert_close(token_log_probs(model, *padded)[:, :10], logp)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(token_log_probs(model, tokens[order], mask[order]), logp[order])


def test_first_token_cannot_be_an_action(model, batch):
    tokens, mask = batch
    mask[1, 0] = True
    with pytest.raises(ValueError, match="first token"):
        token_log_probs(model, tokens, mask)


def test_a_mask_of_another_shape_is_refused(model, batch):
    tokens, mask = batch
    for wrong in (mask[:1], mask[:, :-1]):
        with pytest.raises(ValueError, match=re.escape(
                f"mask has shape {tuple(wrong.shape)}, tokens {tuple(tokens.shape)}")):
            token_log_probs(model, tokens, wrong)


def test_exact_kl(model, batch):
    tokens, mask = batch
    torch.manual_seed(5)
    other = Transformer(model.config).double()
    expected = torch.zeros(4, 10)
    expected[:, 1:] = kl_exact(model(tokens).float() / 0.9, other(tokens).float() / 0.9)[:, :-1]
    torch.testing.assert_close(token_kl(model, other, tokens, mask, 0.9), expected * mask)
    assert (token_kl(model, model, tokens, mask) == 0).all()


def test_value_of_a_state_is_read_before_its_action(model, batch):
    tokens, mask = batch
    critic = ScalarModel(model)
    torch.nn.init.normal_(critic.score.weight)
    values = token_values(critic, tokens, mask)
    changed = tokens.clone()
    # V(s_5) has not seen token 5; V(s_6) has.
    changed[0, 5] = (changed[0, 5] + 1) % 11
    moved = token_values(critic, changed, mask) != values
    assert moved[0].nonzero().min() == 6 and not moved[1:].any()
    torch.testing.assert_close(values[0, 5], critic(tokens)[0, 4])
    assert (values[~mask] == 0).all()


def test_score_is_read_at_the_last_action_whatever_the_padding(model, batch):
    tokens, mask = batch
    reward_model = ScalarModel(model)
    torch.nn.init.normal_(reward_model.score.weight)
    scores = sequence_scores(reward_model, tokens, mask)
    torch.testing.assert_close(
        scores, reward_model(tokens)[torch.arange(4), torch.tensor([9, 4, 8, 7])])
    padded = (
        torch.cat((tokens, torch.full((4, 3), 9)), 1),
        torch.cat((mask, torch.zeros(4, 3, dtype=torch.bool)), 1))
    torch.testing.assert_close(sequence_scores(reward_model, *padded), scores)


# ------------------------------------------------------------------------------------ micro-batches

def test_micro_batches_cover_every_row_once(batch):
    _, mask = batch
    for size in (1, 12, 20, 1000):
        parts = micro_batches(mask, size)
        assert sorted(torch.cat([rows for rows, _ in parts]).tolist()) == [0, 1, 2, 3]
        for rows, T in parts:
            assert T == row_lengths(mask)[rows].max() and (len(rows) == 1 or len(rows) * T <= size)


def test_micro_batches_of_some_rows(batch):
    """Their indices are the whole batch's, and so is the mask."""
    _, mask = batch
    lengths = row_lengths(mask)
    for rows in ([2, 0], [3], []):
        parts = micro_batches(mask, 12, torch.tensor(rows, dtype=torch.long))
        assert sorted(row for part, _ in parts for row in part.tolist()) == sorted(rows)
        assert all(T == lengths[part].max() for part, T in parts)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean", "seq-sum"])
def test_gradient_of_a_split_batch_is_that_of_the_whole(model, batch, mode):
    from losses import count_for
    tokens, mask = batch

    def gradient(size, denominator):
        model.zero_grad()
        for rows, T in micro_batches(mask, size):
            aggregate(
                token_log_probs(model, tokens[rows, :T], mask[rows, :T]),
                mask[rows, :T], mode, denominator).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    aggregate(token_log_probs(model, tokens, mask), mask, mode).backward()
    whole = torch.cat([p.grad.flatten() for p in model.parameters()])
    for size in (1, 12, 20):
        torch.testing.assert_close(gradient(size, count_for(mask, mode)), whole)


def test_map_micro_batches(model, batch):
    tokens, mask = batch
    logp = token_log_probs(model, tokens, mask, 0.8).detach()
    mapped = parallel.map_micro_batches(token_log_probs, model, tokens, mask, 12, 0.8)
    torch.testing.assert_close(mapped, logp)
    assert not mapped.requires_grad

    def summed(model, tokens, mask, temperature):
        return token_log_probs(model, tokens, mask, temperature).sum(1)
    sums = parallel.map_micro_batches(summed, model, tokens, mask, 12, 0.8)
    torch.testing.assert_close(sums, logp.sum(1))


# ------------------------------------------------------------------------------------- mini-batches

@pytest.mark.parametrize("n_rows, n, sizes", [
    (8, 4, [2, 2, 2, 2]), (9, 4, [3, 2, 2, 2]), (10, 4, [3, 3, 2, 2]), (2, 3, [1, 1, 0]),
    (0, 2, [0, 0])])
def test_mini_batches_are_of_like_size(n_rows, n, sizes):
    """Where groups without signal are left out any number of rows is left."""
    parts = mini_batches(torch.arange(n_rows), n, rng())
    assert [len(part) for part in parts] == sizes


def test_mini_batches_hold_every_row_once_in_a_random_order():
    rows = torch.tensor([2, 3, 5, 7, 11, 13, 17])
    parts = mini_batches(rows, 2, rng())
    assert [len(part) for part in parts] == [4, 3]
    order = torch.cat(parts).tolist()
    assert sorted(order) == rows.tolist() != order
    assert torch.cat(mini_batches(rows, 3, rng())).tolist() == order
    assert torch.cat(mini_batches(rows, 2, rng(1))).tolist() != order
