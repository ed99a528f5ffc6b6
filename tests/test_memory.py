"""Memory and precision: what is computed again, rounded or cut into chunks changes no result, and
saves what it is meant to save."""
import copy
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rollout as rollout_module
import train_grpo
import train_ppo
from losses import entropy, gather_log_probs
from model import KVCache, ModelConfig, ScalarModel, Transformer
from rollout import (
    generate, sequence_scores, token_log_probs,
    token_log_probs_and_entropies)
from support import parallel
from support.cli import RunConfig
from support.metrics import token_kl
from support.models import copy_for_inference, pick_device


@pytest.fixture
def bfloat16():
    """--dtype bfloat16 on the CPU, for one test."""
    pick_device(RunConfig(device="cpu", dtype="bfloat16"))
    yield
    pick_device(RunConfig(device="cpu"))


class Sizes(TorchDispatchMode):
    """Notes the size of every tensor that an operation returns, views of one tensor excepted."""

    def __init__(self, excepted=None):
        super().__init__()
        self.largest, self.excepted = 0, excepted

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and not self.is_excepted(x):
                self.largest = max(self.largest, x.numel())
        return result

    def is_excepted(self, x) -> bool:
        return (
            self.excepted is not None
            and x.untyped_storage().data_ptr() == self.excepted.untyped_storage().data_ptr())


def largest(function, excepted=None) -> int:
    """Elements of the largest tensor that function() makes."""
    with Sizes(excepted) as sizes:
        function()
    return sizes.largest


def test_no_more_logits_than_a_chunk_exist_at_a_time(monkeypatch):
    V, B, T = 1000, 8, 33
    model = Transformer(ModelConfig(V, 16, 1, 2, 1, 16, 64))
    tokens, mask = torch.randint(0, V, (B, T)), torch.ones(B, T, dtype=torch.bool)
    mask[:, 0] = False
    full = largest(lambda: gather_log_probs(model(tokens), tokens).sum().backward())
    assert full == B * T * V
    monkeypatch.setattr(rollout_module, "LOGITS_AT_ONCE", 20 * V)
    scores = {
        "training": lambda: (
            token_log_probs_and_entropies(model, tokens, mask, 0.9)[0].sum().backward()),
        "without entropies": lambda: token_log_probs(model, tokens, mask).sum().backward(),
        "no gradient": lambda: parallel.map_micro_batches(
            token_log_probs, model, tokens, mask, 10 ** 6),
        "KL": lambda: token_kl(model, copy.deepcopy(model), tokens, mask)}
    for name, function in scores.items():
        # And the weight of the head, 16 V, is smaller.
        assert largest(function) == 20 * V, name


@pytest.mark.parametrize("scalar", [False, True], ids=["policy", "critic"])
def test_grad_checkpoint_changes_neither_values_nor_gradients(model, batch, scalar):
    tokens, mask = batch
    transformer = model
    if scalar:
        model = ScalarModel(model)
        torch.nn.init.normal_(model.score.weight)
        transformer = model.trunk
    saved = []

    def run(grad_checkpoint):
        transformer.grad_checkpoint = grad_checkpoint
        model.zero_grad()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
                lambda x: sizes.append(x.numel()) or x, lambda x: x):
            y = (
                sequence_scores(model, tokens, mask) if scalar
                else token_log_probs(model, tokens, mask))
        (y * torch.arange(y.shape[-1])).sum().backward()
        saved.append(sum(sizes))
        return [y.detach(), *(p.grad.clone() for p in model.parameters())]
    for a, b in zip(run(False), run(True)):
        assert torch.equal(a, b)
    assert saved[1] < saved[0] / 3


def test_the_prompts_go_through_the_model_in_micro_batches(model, monkeypatch):
    """And the answers are the same, however many prompts a micro-batch holds."""
    prompts, passes, hidden = [[n % 11] * (1 + n % 7) for n in range(40)], [], model.hidden
    monkeypatch.setattr(
        model, "hidden",
        lambda tokens, *rest: passes.append(tokens.numel()) or hidden(tokens, *rest))

    def sampled(size):
        passes.clear()
        rollout = generate(
            model, prompts, 4, [], generator=torch.Generator().manual_seed(0),
            micro_batch_tokens=size)
        # All but the last three are of prompts.
        return rollout.tokens, sum(passes[:-3]), max(passes[:-3])
    whole, total, largest_pass = sampled(10 ** 6)
    assert total == largest_pass > 3 * 50
    # 3: less than one prompt
    for size in (50, 3):
        tokens, same_total, largest_pass = sampled(size)
        assert (
            torch.equal(tokens, whole)
            and same_total == total
            and largest_pass <= max(size, 7))


def test_rows_leave_the_cache_without_a_second_one():
    config = ModelConfig(11, 16, 6, 4, 2, 24, 64)
    cache = KVCache(config, torch.full((8,), 5), 20, torch.float32)
    cache.length = 5
    for layer in cache.data:
        layer[..., :5, :] = torch.randn(2, 8, 2, 5, 4)
    before, whole, rows = cache.data[..., :5, :].clone(), cache.data, torch.tensor([1, 4, 7])
    # one layer of six
    assert largest(lambda: cache.keep(rows), excepted=whole) <= whole.numel() / 6
    assert (
        torch.equal(cache.data[..., :5, :], before[:, :, rows])
        and cache.data.data_ptr() == whole.data_ptr())
    assert len(cache.bias) == 3


# ----------------------------------------------------------------------------------------- bfloat16

def models(dim=64):
    torch.manual_seed(0)
    for tie, bias, norm in ((True, False, True), (False, True, False)):
        model = Transformer(ModelConfig(
            50, dim, 2, 4, 2, 96, 64, tie_embeddings=tie, qkv_bias=bias, qk_norm=norm))
        for p in model.parameters():
            p.data.add_(torch.randn_like(p) * 0.1)
        yield model


def test_a_copy_under_autocast_computes_the_same_bit_for_bit(bfloat16, batch):
    tokens, mask = batch
    for model in models():
        twin, before = copy_for_inference(model), copy.deepcopy(model.state_dict())
        for name, p in twin.named_parameters():
            assert p.dtype == (
                torch.bfloat16 if name.endswith(("proj.weight", "proj.bias", "lm_head.weight"))
                else torch.float32), name
        assert (
            torch.equal(twin(tokens), model(tokens))
            and torch.equal(
                token_log_probs(twin, tokens, mask), token_log_probs(model, tokens, mask)))
        assert token_kl(model, copy.deepcopy(twin), tokens, mask).abs().max() == 0
        scalar = ScalarModel(model)
        torch.nn.init.normal_(scalar.score.weight)
        assert torch.equal(copy_for_inference(scalar)(tokens), scalar(tokens))
        assert all(
            torch.equal(x, before[name]) and x.dtype == torch.float32
            for name, x in model.state_dict().items())


def test_bfloat16_weights_sample_the_same(bfloat16):
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8]] * 4
    for model in models():
        plain, sampled = (
            generate(sampler, prompts, 12, [0], generator=torch.Generator().manual_seed(0))
            for sampler in (model, copy_for_inference(model)))
        assert torch.equal(sampled.tokens, plain.tokens) and torch.equal(sampled.logp, plain.logp)


def test_sampling_reads_bfloat16_weights(bfloat16, place, tmp_path, monkeypatch):
    """In both scripts that sample to learn, before and after an update, and in evaluations."""
    dtypes, sample = [], rollout_module.generate

    def watched(model, *arguments, **named):
        dtypes.append(model.lm_head.weight.dtype)
        return sample(model, *arguments, **named)
    monkeypatch.setattr(rollout_module, "generate", watched)
    flags = ["--model", str(place / "sft"), "--data", str(place / "sft.jsonl"),
             "--reward", f"{place / 'reward.py'}:vowels", "--dtype", "bfloat16",
             "--max-new-tokens", "6", "--prompts-per-step", "4", "--steps", "2",
             "--eval-every", "1", "--eval-problems", "2"]
    for script, more in ((train_grpo, ["--group-size", "2"]), (train_ppo, [])):
        script.main([*flags, *more, "--out", str(tmp_path / script.Config.algorithm)])
        # Two of the steps, and two each of the evaluations before the first step and after each.
        assert dtypes == [torch.bfloat16] * 8
        dtypes.clear()


def test_without_autocast_there_is_no_copy(model):
    assert copy_for_inference(model) is model


def test_sampled_log_probs_are_near_the_scored_ones_in_bfloat16(bfloat16):
    for model in models():
        r = generate(
            model, [[1, 2, 3], [4]] * 20, 12, [0], generator=torch.Generator().manual_seed(0))
        difference = (token_log_probs(model, r.tokens, r.mask) - r.logp)[r.mask]
        assert difference.abs().mean() < 0.02 and difference.abs().max() < 0.2


def test_log_probs_are_float32_in_bfloat16(bfloat16, batch):
    tokens, mask = batch
    model = next(models())
    logp, entropies = token_log_probs_and_entropies(model, tokens, mask)
    logits = model(tokens[:, :-1])
    assert logits.dtype == torch.bfloat16 and logp.dtype == entropies.dtype == torch.float32
    torch.testing.assert_close(
        logp[:, 1:][mask[:, 1:]],
        torch.log_softmax(logits.double(), -1)[mask[:, 1:]].gather(
            1, tokens[mask][:, None])[:, 0].float())
    torch.testing.assert_close(entropies[mask], entropy(logits.double())[mask[:, 1:]].float())


def test_scores_are_not_rounded_to_bfloat16(bfloat16, batch):
    critic = ScalarModel(next(models()))
    torch.nn.init.normal_(critic.score.weight)
    values = critic(batch[0])
    assert values.dtype == torch.float32 and (values != values.bfloat16()).any()


def test_small_updates_survive_under_bfloat16_autocast(bfloat16):
    """They would vanish if the parameters were bfloat16: Adam moves a weight of 1 by lr, and
    1 + 1e-4 is 1 there."""
    model = next(models())
    weight = model.layers[0].mlp.up_proj.weight
    weight.data.fill_(1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    token_log_probs(model, torch.tensor([[1, 2, 3]]), torch.tensor([[0, 1, 1]])).sum().backward()
    optimizer.step()
    moved = (weight.detach() - 1).abs()
    assert math.isclose(moved.max(), 1e-4, rel_tol=0.1) and (weight.bfloat16() == 1).all()
