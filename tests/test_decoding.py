"""The prepared model that `generate` takes computes what the model does."""
import copy

import pytest
import torch
import torch.nn.functional as F

from model import KVCache, ModelConfig, Transformer
from rollout import generate, token_log_probs
from support import decoding, graphs
from support.decoding import Decoder
from support.graphs import GraphDecoder

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [8], [5, 6, 7], [14, 15]] * 3
FAMILIES = {
    "llama": dict(n_kv_heads=4),
    "grouped": dict(n_kv_heads=2, tie_embeddings=False),
    "qwen2": dict(n_kv_heads=1, qkv_bias=True),
    "qwen3": dict(n_kv_heads=2, qk_norm=True, head_dim=8, rope_theta=100.0, norm_eps=1e-3),
}


def random_model(family: str, max_seq_len: int, build=Transformer):
    """A model whose every weight, norms and biases too, is a random number."""
    torch.manual_seed(0)
    model = build(ModelConfig(vocab_size=40, dim=32, n_layers=3, n_heads=4, ffn_dim=48,
                              max_seq_len=max_seq_len, **FAMILIES[family]))
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return model


@pytest.fixture(params=FAMILIES)
def model(request):
    return random_model(request.param, 64)


def answers(model, micro_batch_tokens=8192):
    rng = torch.Generator().manual_seed(1)
    return generate(model, PROMPTS, 20, {0, 1, 2, 3}, generator=rng,
                    micro_batch_tokens=micro_batch_tokens)


def test_samples_and_log_probs_are_the_models(model):
    """Rows end at different lengths, so that some leave the batch on the way."""
    plain, fast = answers(model), answers(Decoder(model), micro_batch_tokens=6)
    lengths = plain.mask.sum(1)
    assert lengths.min() < 5 and lengths.max() > 15
    assert torch.equal(fast.tokens, plain.tokens)
    assert torch.equal(fast.mask, plain.mask) and torch.equal(fast.finished, plain.finished)
    scored = token_log_probs(model, plain.tokens, plain.mask).detach()
    assert (fast.logp - scored).abs().max() < 1e-5


def test_in_float64_it_is_the_model_to_the_last_digits(model):
    model = model.double()
    plain = answers(model)
    logp = decode_given(Decoder(model), plain.tokens, plain.mask)
    exact = torch.log_softmax(model(plain.tokens), -1).detach()
    exact = exact[:, :-1].gather(-1, plain.tokens[:, 1:, None]).squeeze(-1) * plain.mask[:, 1:]
    assert (logp[:, 1:] - exact).abs().max() < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_matrices_compute_the_same(model, dtype, monkeypatch):
    model = model.to(dtype)
    plain = answers(Decoder(model))
    monkeypatch.setattr(decoding, "PACKED_FROM", 1)
    decoder = Decoder(model)
    if not decoder.lm_head.is_packed:
        pytest.skip("this build of PyTorch has no oneDNN")
    packed = answers(decoder)
    exact = 1e-5 if dtype == torch.float32 else 0.05
    # A row stays the same until a rounding chooses another token: in bfloat16 that happens.
    T = min(plain.tokens.shape[1], packed.tokens.shape[1])
    same = (packed.tokens[:, :T] == plain.tokens[:, :T]).cummin(1).values
    assert same.float().mean() > (0.99 if dtype == torch.float32 else 0.5)
    difference = packed.logp[:, :T] - plain.logp[:, :T]
    assert difference[same].abs().max() < exact


def test_under_autocast_products_are_in_bfloat16_and_all_else_in_float32(model):
    rollout = answers(model)
    tokens, mask = rollout.tokens, rollout.mask
    exact = token_log_probs(model, tokens, mask).detach()
    with torch.autocast("cpu", torch.bfloat16):
        decoder = Decoder(model)
        assert decoder.lm_head.weight.dtype == torch.bfloat16
        assert decoder.norm.weight.dtype == torch.float32
        error = {}
        for name, sampler in (("model", model), ("decoder", decoder)):
            logp = decode_given(sampler, tokens, mask)
            error[name] = (logp - exact)[mask].abs().mean()
    # As far from the truth as the model itself is under autocast, and no further.
    assert 0.3 * error["model"] < error["decoder"] < 1.5 * error["model"] < 0.1


def attend_as_on_a_gpu(monkeypatch):
    """CUDA's memory-efficient kernel writes (B, T, n, hs), and returns it transposed."""
    attention = F.scaled_dot_product_attention

    def transposed(*arguments, **named):
        return attention(*arguments, **named).transpose(1, 2).contiguous().transpose(1, 2)
    monkeypatch.setattr(F, "scaled_dot_product_attention", transposed)


@pytest.mark.parametrize("build", [lambda model: model, Decoder], ids=["model", "decoder"])
def test_heads_may_lie_in_memory_as_a_gpu_leaves_them(model, build, monkeypatch):
    plain = answers(build(model))
    attend_as_on_a_gpu(monkeypatch)
    assert torch.equal(answers(build(model)).tokens, plain.tokens)


@torch.no_grad()
def decode_given(sampler, tokens, mask):
    """Log-probs of these answers, computed token by token over the cache."""
    lengths = mask.int().argmax(1)                                          # of the prompts
    P, B = int(lengths.max()), len(mask)
    dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float64
    cache = KVCache(sampler.config, lengths, P + 20, dtype)
    prompts = tokens[:, :P] * (torch.arange(P) < lengths[:, None])
    states = sampler.hidden(prompts, cache)
    h = states[torch.arange(B), lengths - 1]
    logp = torch.zeros(mask.shape, dtype=torch.float64)
    for i in range(int(mask.sum(1).max())):
        at = (lengths + i).clamp(max=mask.shape[1] - 1)
        chosen = tokens.gather(1, at[:, None])
        scores = torch.log_softmax(sampler.lm_head(h).double(), -1)
        logp.scatter_(1, at[:, None], scores.gather(1, chosen))
        if cache.length < P + 20:
            h = sampler.hidden(chosen, cache, at[:, None])[:, 0]
    return logp * mask


def test_it_is_a_copy_of_the_model_as_it_was(model):
    decoder, before = Decoder(model), answers(copy.deepcopy(model))
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.v_proj.weight.neg_()
    assert torch.equal(answers(decoder).tokens, before.tokens)
    assert not torch.equal(answers(Decoder(model)).logp, before.logp)


@pytest.mark.parametrize("make", [lambda model: model, Decoder, GraphDecoder])
def test_a_gpu_takes_the_bias_as_it_lies(make, monkeypatch):
    """CUDA's memory-efficient attention pads a copy of it, in every layer, unless all strides but
    the last are multiples of 16 (in later versions of torch, of 8)."""
    attention, found = F.scaled_dot_product_attention, []

    def keep(q, k, v, attn_mask=None, **named):
        if attn_mask is not None:
            found.append((len(attn_mask), attn_mask.stride()))
        return attention(q, k, v, attn_mask, **named)
    monkeypatch.setattr(F, "scaled_dot_product_attention", keep)
    monkeypatch.setattr(graphs, "record", lambda step: (step, step()))
    answers(make(random_model("grouped", 64)))
    # Rows have left the batch.
    assert len({n_rows for n_rows, _ in found}) > 1
    assert all(last == 1 and not any(stride % 16 for stride in others)
               for _, (*others, last) in found)
