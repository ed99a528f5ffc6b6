"""The Transformer against itself written another way, and the KV cache against the full forward."""
import math

import pytest
import torch

from model import KVCache, ModelConfig, RMSNorm, ScalarModel, Transformer, rotate


def attention_written_out(layer, x, cos, sin):
    """softmax(q k / sqrt(hs)) v over the past, head by head and position by position; no SDPA, no
    grouping trick."""
    B, T, _ = x.shape
    hs = layer.head_dim
    q, k, v = (proj(x).view(B, T, -1, hs) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    heads_per_group = q.shape[2] // k.shape[2]
    out = torch.zeros_like(q)
    for b in range(B):
        for t in range(T):
            for h in range(q.shape[2]):
                g = h // heads_per_group
                weights = torch.softmax(k[b, :t + 1, g] @ q[b, t, h] / math.sqrt(hs), 0)
                out[b, t, h] = weights @ v[b, :t + 1, g]
    return layer.o_proj(out.reshape(B, T, -1))


def test_attention_is_the_one_written_out(model):
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    cos, sin = (c[None, :7, None].double() for c in (model.cos, model.sin))
    layer = model.layers[0].self_attn
    torch.testing.assert_close(layer(x, cos, sin), attention_written_out(layer, x, cos, sin))


def test_rotary_scores_depend_on_distance_only(model):
    q, k = torch.randn(2, 1, 1, 1, 4, dtype=torch.float64)
    at = lambda x, p: rotate(
        x, model.cos[None, p:p + 1, None].double(), model.sin[None, p:p + 1, None].double())
    scores = [(at(q, p + 3) * at(k, p)).sum() for p in (0, 5, 20)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores[0], scores[2], rtol=1e-5, atol=1e-6)
    assert not torch.isclose(scores[0], (at(q, 4) * at(k, 0)).sum())


def test_rms_norm():
    norm = RMSNorm(3, eps=0.0).double()
    norm.weight.data = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    x = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(norm(x), x / math.sqrt(25 / 3) * norm.weight.data)


@torch.no_grad()
def test_cache_equals_full_forward_at_every_position(model):
    """Rows of different lengths: a padded prefill, then tokens one at a time, each row at its own
    position."""
    tokens = torch.randint(0, 11, (3, 12))
    lengths = torch.tensor([2, 5, 3])
    full = model.hidden(tokens)
    cache = KVCache(model.config, lengths, 12, torch.float64)
    prefill = model.hidden(tokens[:, :5], cache)
    for b in range(3):
        torch.testing.assert_close(prefill[b, :lengths[b]], full[b, :lengths[b]])
    for i in range(7):
        at = lengths + i
        step = model.hidden(tokens[torch.arange(3), at][:, None], cache, at[:, None])
        torch.testing.assert_close(step[:, 0], full[torch.arange(3), at])


@torch.no_grad()
def test_cache_keeps_rows_in_any_order_and_number(model):
    tokens = torch.randint(0, 11, (3, 6))
    cache = KVCache(model.config, torch.tensor([5, 4, 5]), 6, torch.float64)
    model.hidden(tokens[:, :5], cache)
    cache.keep(torch.tensor([2, 1, 2]))
    step = model.hidden(
        torch.stack((tokens[2, 5:], tokens[1, 4:5], tokens[0, 5:])), cache,
        torch.tensor([[5], [4], [5]]))
    torch.testing.assert_close(step[0, 0], model.hidden(tokens)[2, 5])
    torch.testing.assert_close(step[1, 0], model.hidden(tokens)[1, 4])
    torch.testing.assert_close(
        step[2, 0], model.hidden(torch.cat((tokens[2:, :5], tokens[:1, 5:]), 1))[0, 5])


def test_what_comes_after_changes_nothing(model):
    tokens = torch.randint(0, 11, (2, 9))
    other = tokens.clone()
    other[:, 6:] = (other[:, 6:] + 1) % 11
    torch.testing.assert_close(model(tokens)[:, :6], model(other)[:, :6])
    assert not torch.allclose(model(tokens)[:, 6], model(other)[:, 6])


def test_too_many_tokens_are_refused(model):
    with pytest.raises(ValueError, match="33 tokens exceed the model's context of 32"):
        model(torch.zeros(1, 33, dtype=torch.long))


@pytest.mark.parametrize("n_new, positions", [(2, [[3, 4]]), (1, None)])
def test_a_filled_cache_takes_one_token_at_its_position(n_new, positions):
    """Two at once would see each other, one without a position would be turned as the first."""
    model = Transformer(ModelConfig(11, 16, 1, n_heads=4, n_kv_heads=1, ffn_dim=16))
    cache = KVCache(model.config, torch.tensor([3]), 5, torch.float32)
    positions = positions and torch.tensor(positions)
    message = f"{n_new} tokens per row after the prompts: expected one, and its position"
    with torch.no_grad():
        model.hidden(torch.tensor([[1, 2, 3]]), cache)
        with pytest.raises(ValueError, match=message):
            model.hidden(torch.tensor([[4, 5]])[:, :n_new], cache, positions)


def test_tied_and_untied_embeddings():
    sizes = dict(vocab_size=11, dim=8, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=8)
    tied, untied = (
        Transformer(ModelConfig(**sizes)),
        Transformer(ModelConfig(**sizes, tie_embeddings=False)))
    assert tied.lm_head.weight is tied.embed_tokens.weight
    assert untied.lm_head.weight is not untied.embed_tokens.weight
    assert sum(p.numel() for p in untied.parameters()) == (
        sum(p.numel() for p in tied.parameters()) + 11 * 8)


def test_scalar_model_has_its_own_trunk_and_starts_at_zero(model):
    tokens = torch.randint(0, 11, (2, 5))
    scalar, logits = ScalarModel(model), model(tokens)
    assert scalar(tokens).shape == (2, 5) and (scalar(tokens) == 0).all()
    assert not (
        {p.data_ptr() for p in scalar.parameters()} & {p.data_ptr() for p in model.parameters()})
    for p in scalar.parameters():
        p.data.add_(1.0)
    torch.testing.assert_close(model(tokens), logits)


def test_the_scalar_head_is_not_rounded_by_autocast_backward_either(model):
    """Under autocast the trunk's products are bfloat16; the head's and its gradients are not."""
    scalar = ScalarModel(model).float()
    torch.nn.init.normal_(scalar.score.weight)
    tokens, hidden = torch.randint(0, 11, (3, 9)), []
    scalar.trunk.norm.register_forward_hook(lambda module, inputs, x: hidden.append(x))
    with torch.autocast("cpu", torch.bfloat16):
        scores = scalar(tokens)
        hidden[0].retain_grad()
        scores.square().sum().backward()
    x, weight = hidden[0].detach().double(), scalar.score.weight.detach().double()
    expected = x @ weight[0]
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden[0].grad.double(), 2 * expected[..., None] * weight[0],
                               rtol=1e-5, atol=1e-5)
    gradient = (2 * expected[..., None] * x).sum((0, 1))
    found = scalar.score.weight.grad[0].double()
    torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-5)
