"""A model prepared for sampling: the same function, in fewer and larger operations.

`rollout.generate` takes it as a model. It is a copy, of the weights as they are now: make it anew
for every rollout. Per token of SmolLM2 a GPU starts half as many kernels; a CPU with bfloat16
matrix units is a fifth faster (benchmarks/rollout_speed.py).
"""
import torch
import torch.nn.functional as F
from torch import nn

from model import KVCache, Transformer

# From so many numbers on it pays to lay a matrix out as the CPU's library of matrix products
# (oneDNN) reads it, once per rollout instead of in every product.
PACKED_FROM = 2 ** 18


class Linear:
    """One matrix product in the place of several with the same input, without gradients."""

    def __init__(self, dtype: torch.dtype, *parts: nn.Linear):
        self.weight = torch.cat([part.weight.detach().to(dtype) for part in parts])
        self.bias = None
        if parts[0].bias is not None:
            self.bias = torch.cat([part.bias.detach().to(dtype) for part in parts])
        self.is_packed = can_pack(self.weight)
        if self.is_packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def __call__(self, x):
        x = x.to(self.weight.dtype)
        if self.is_packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


def can_pack(weight: torch.Tensor) -> bool:
    """The operations are what torch.compile uses, no public interface: hence so careful."""
    return (weight.device.type == "cpu" and weight.numel() >= PACKED_FROM
            and weight.dtype in (torch.float32, torch.bfloat16)
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
            and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


class Layer:
    """A Block's weights: q, k and v are one product, gate and up are one."""

    def __init__(self, block: nn.Module, config, dtype: torch.dtype):
        attention, mlp = block.self_attn, block.mlp
        self.attention_norm = block.input_layernorm
        self.qkv = Linear(dtype, attention.q_proj, attention.k_proj, attention.v_proj)
        self.o = Linear(dtype, attention.o_proj)
        self.mlp_norm = block.post_attention_layernorm
        self.gate_up = Linear(dtype, mlp.gate_proj, mlp.up_proj)
        self.down = Linear(dtype, mlp.down_proj)
        self.qk_scale = None
        if config.qk_norm:
            q_scale = attention.q_norm.weight.detach().expand(config.n_heads, -1)
            k_scale = attention.k_norm.weight.detach().expand(config.n_kv_heads, -1)
            self.qk_scale = torch.cat((q_scale, k_scale))                       # (nh + nkv, hs)

    def mlp(self, x):
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return self.down(F.silu(gate).mul_(up))


class Decoder:
    """The model as it is now, for `generate` and nothing else. What is computed: see model.py."""

    def __init__(self, model: Transformer):
        device = model.embed_tokens.weight.device.type
        self.dtype = model.embed_tokens.weight.dtype
        if torch.is_autocast_enabled(device):
            self.dtype = torch.get_autocast_dtype(device)
        self.config = model.config
        self.embed_tokens = model.embed_tokens
        self.layers = [Layer(block, model.config, self.dtype) for block in model.layers]
        self.norm = model.norm
        self.lm_head = Linear(self.dtype, model.lm_head)
        # Rotary embedding of a whole head at once: x * cos + (x, halves exchanged) * sin.
        self.cos = torch.cat((model.cos, model.cos), -1)                        # (S, hs)
        self.sin = torch.cat((-model.sin, model.sin), -1)

    def hidden(self, tokens, cache: KVCache, positions=None):
        """As Transformer.hidden, with a cache."""
        # Every dtype is chosen here, so autocast would only look at each operation once more.
        with torch.autocast(tokens.device.type, enabled=False):
            x = self.embed_tokens(tokens)                                       # (B, T, C)
            if positions is None:
                positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
            cos = self.cos[positions][:, :, None].to(x.dtype)                   # (B or 1, T, 1, hs)
            sin = self.sin[positions][:, :, None].to(x.dtype)
            for i, layer in enumerate(self.layers):
                x = x + self._attention(x, cos, sin, cache, i)
                x = x + layer.mlp(x)
            cache.length += tokens.shape[1]
            return self.norm(x)

    def _attention(self, x, cos, sin, cache, i):
        config, layer = self.config, self.layers[i]
        B, T, _ = x.shape
        n_heads, n_kv_heads, head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        qkv = layer.qkv(layer.attention_norm(x)).view(B, T, -1, head_dim)
        qk, v = qkv.split((n_heads + n_kv_heads, n_kv_heads), 2)
        if layer.qk_scale is not None:
            qk = F.rms_norm(qk.to(x.dtype), (head_dim,), None, config.norm_eps)
            qk = qk * layer.qk_scale
        exchanged = qk.roll(head_dim // 2, -1)
        qk = torch.addcmul(qk * cos, exchanged, sin).to(self.dtype)
        q, k = qk.transpose(1, 2).split((n_heads, n_kv_heads), 1)               # (B, n, T, hs)
        y = cache.attend(q, k, v.transpose(1, 2), i)                            # (B, nh, T, hs)
        return layer.o(y.transpose(1, 2).reshape(B, T, -1))
