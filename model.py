"""A decoder-only Transformer: RMSNorm, rotary embeddings, grouped-query attention, SwiGLU.

This is Llama, and Mistral without a sliding window; with biases on q, k and v it is Qwen2, with
norms on q and k Qwen3. Parameters carry Hugging Face's names, but for a prefix. Without dropout,
train and eval mode compute the same function, so that the ratio of a fresh rollout is 1. Padding is
on the right, where a causal model never looks: no attention masks and no position ids.

Shapes: B rows, T tokens, C = dim, nh heads of size hs, nkv key-value heads, V vocabulary.
"""
import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


@dataclass
class ModelConfig:
    """Sizes of a `Transformer`. ValueError if they don't fit together."""
    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int                     # divides n_heads
    ffn_dim: int
    max_seq_len: int = 2048             # in tokens
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    qkv_bias: bool = False              # Qwen2
    qk_norm: bool = False               # Qwen3
    head_dim: int | None = None         # dim / n_heads, if not given
    rope_scaling: dict | None = None    # Llama 3.1 and later: see rope_frequencies

    def __post_init__(self):
        if self.head_dim is None and self.dim % self.n_heads == 0:
            self.head_dim = self.dim // self.n_heads
        if self.head_dim is None or self.head_dim % 2 or self.n_heads % self.n_kv_heads:
            raise ValueError(f"dim {self.dim} must be a multiple of n_heads {self.n_heads} unless "
                             f"head_dim is given, head_dim {self.head_dim} must be even, and "
                             f"n_heads a multiple of n_kv_heads {self.n_kv_heads}")


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) * weight, the mean over the last dimension, in float32 at least.
    Zhang & Sennrich 2019 (arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        x = x.to(self.weight.dtype)         # under autocast q and k come in bfloat16
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rope_frequencies(config: ModelConfig):
    """theta^(-2i/hs) for i < hs/2: the angle by which a position turns each pair of a head. (hs/2,)
    rope_scaling stretches the context that a model was first trained for (Llama 3.1). Pairs that
    turn less than `low_freq_factor` times within the original context turn `factor` times slower;
    pairs that turn more than `high_freq_factor` times stay as they are; in between is a mixture."""
    # On the CPU even where a model is built without memory ("meta"): they are in no checkpoint.
    pair = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")
    frequencies = 1.0 / config.rope_theta ** (pair / config.head_dim)
    if config.rope_scaling is None:
        return frequencies
    low = config.rope_scaling["low_freq_factor"]
    high = config.rope_scaling["high_freq_factor"]
    original_context = config.rope_scaling["original_max_position_embeddings"]
    turns = original_context * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / config.rope_scaling["factor"]


def rotate(x, cos, sin):
    """Rotary embedding: turns each pair (x_i, x_{i + hs/2}) by the angle position * frequency_i.
    x (B, T, n, hs); cos and sin of the angles (B or 1, T, 1, hs/2). RoFormer (arXiv:2104.09864)."""
    x1, x2 = x.chunk(2, -1)                                                     # (B, T, n, hs/2)
    y1 = x1 * cos - x2 * sin
    y2 = x2 * cos + x1 * sin
    return torch.cat((y1, y2), -1)


class KVCache:
    """Keys and values of all layers, allocated once: (B, nkv, S, hs) each.

    A column is a step, not a position. Prompts fill the first P columns, right-padded; the i-th
    new token of every row goes to column P + i. `bias` is -inf on the padding between a prompt
    and its answer, and 0 elsewhere. Here P is 4:

        column        0  1  2  3 | 4  5  6
        row 0         a  b  .  . | c  d  e          positions 0 1     2 3 4
        row 1         f  g  h  i | j  k  l          positions 0 1 2 3 4 5 6"""

    def __init__(self, config: ModelConfig, prompt_lengths, max_len: int, dtype):
        B, device = len(prompt_lengths), prompt_lengths.device
        max_len += -max_len % 16        # CUDA's attention copies a bias of any other width
        self.length = 0                                                         # columns filled
        self.data = torch.empty(config.n_layers, 2, B, config.n_kv_heads, max_len, config.head_dim,
                                device=device, dtype=dtype)
        column = torch.arange(max_len, device=device)
        padding = (column >= prompt_lengths[:, None]) & (column < prompt_lengths.max())   # (B, S)
        self.bias = torch.where(padding, -math.inf, 0.0).to(dtype)[:, None, None]   # (B, 1, 1, S)

    def attend(self, q, k, v, layer: int):
        """As `attend` below, over all so far: k and v are stored in the next T columns."""
        start, end = self.length, self.length + k.shape[2]
        keys, values = self.data[layer, ..., :end, :]                           # (B, nkv, S', hs)
        keys[:, :, start:] = k
        values[:, :, start:] = v
        if start == 0:
            return attend(q, k, v)
        # T = 1. Query heads that share a key-value head are rows of one matrix: none is copied.
        rows = q.unflatten(1, (k.shape[1], -1)).squeeze(3)                 # (B, nkv, nh/nkv, hs)
        bias = self.bias[..., :end]
        y = F.scaled_dot_product_attention(rows, keys, values, attn_mask=bias)
        return y.reshape(q.shape)

    def copy_prompts(self, rows, other: "KVCache", source):
        """Take the prompts that `other` holds: row rows[i] of this cache is its row source[i]."""
        self.length = other.length
        for mine, theirs in zip(self.data, other.data):                         # (2, B, nkv, S, hs)
            mine[:, rows, :, :self.length] = theirs[:, source, :, :self.length]

    def keep(self, rows):
        """Go on with these rows only. A layer at a time, so that memory need not be doubled."""
        n, filled = len(rows), self.length
        for layer in self.data:                                                 # (2, B, nkv, S, hs)
            layer[:, :n, :, :filled] = layer[:, rows, :, :filled]
        self.data = self.data[:, :, :n]
        self.bias = self.bias[rows]


def attend(q, k, v):
    """softmax(q kᵀ / sqrt(hs)) v, each token over itself and those before it. q (B, nh, T, hs),
    k and v (B, nkv, T, hs) -> (B, nh, T, hs)"""
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)


class Attention(nn.Module):
    """Causal attention; nh / nkv query heads share a key-value head. GQA (arXiv:2305.13245)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_dim
        q_dim = config.n_heads * config.head_dim
        kv_dim = config.n_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, q_dim, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.dim, kv_dim, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.dim, kv_dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_dim, config.dim, bias=False)
        self.q_norm = nn.Identity()
        self.k_norm = nn.Identity()
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x, cos, sin, cache: KVCache | None = None, layer: int = 0):
        B, T, _ = x.shape
        heads = (B, T, -1, self.head_dim)
        q = self.q_norm(self.q_proj(x).view(heads))                             # (B, T, nh, hs)
        k = self.k_norm(self.k_proj(x).view(heads))                             # (B, T, nkv, hs)
        v = self.v_proj(x).view(heads)                                          # (B, T, nkv, hs)
        q = rotate(q, cos, sin).transpose(1, 2)                                 # (B, nh, T, hs)
        k = rotate(k, cos, sin).transpose(1, 2)                                 # (B, nkv, T, hs)
        v = v.transpose(1, 2)                                                   # (B, nkv, T, hs)
        y = cache.attend(q, k, v, layer) if cache else attend(q, k, v)          # (B, nh, T, hs)
        y = y.transpose(1, 2).reshape(B, T, -1)                                 # (B, T, nh * hs)
        return self.o_proj(y)                                                   # (B, T, C)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). Shazeer 2020 (arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x):
        gate = F.silu(self.gate_proj(x))
        return self.down_proj(gate * self.up_proj(x))


class Block(nn.Module):
    """Attention and an MLP, each on the normalised stream and added to it ("pre-norm")."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, *attention_inputs):
        x = x + self.self_attn(self.input_layernorm(x), *attention_inputs)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """tokens (B, T) -> logits (B, T, V), of which logits[:, t] score token t + 1."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.grad_checkpoint = False        # True: keep inputs of blocks only, compute them twice
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        position = torch.arange(config.max_seq_len, dtype=torch.float32, device="cpu")
        angles = torch.outer(position, rope_frequencies(config))                # (S, hs/2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self._init_weights()

    def _init_weights(self):
        """"Small init" (Nguyen & Salazar 2019, arXiv:1910.05895); and as in GPT-2, the 2 * n_layers
        matrices that write into the residual stream start smaller, by 1 / sqrt(their number)."""
        std = (2 / (5 * self.config.dim)) ** 0.5
        residual_std = std / (2 * self.config.n_layers) ** 0.5
        for name, p in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(p)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(p, std=residual_std)
            elif p.dim() == 2:
                nn.init.normal_(p, std=std)

    def hidden(self, tokens, cache: KVCache | None = None, positions=None):
        """tokens (B, T) -> final hidden states (B, T, C). ValueError: T exceeds max_seq_len.
        With a cache: first the prompts, right-padded; then one token per row and call, at its own
        position, positions (B, 1), which attends to all tokens before it."""
        x = self.embed_tokens(tokens)
        if cache and cache.length and (positions is None or tokens.shape[1] > 1):
            raise ValueError(f"{tokens.shape[1]} tokens per row after the prompts: expected one, "
                             "and its position")
        if positions is None:
            T = tokens.shape[1]
            if T > self.config.max_seq_len:
                raise ValueError(f"{T} tokens exceed the model's context of "
                                 f"{self.config.max_seq_len}")
            positions = torch.arange(T, device=tokens.device)[None]             # (1, T)
        cos = self.cos[positions][:, :, None].to(x.dtype)                  # (B or 1, T, 1, hs/2)
        sin = self.sin[positions][:, :, None].to(x.dtype)
        for i, layer in enumerate(self.layers):
            inputs = (x, cos, sin, cache, i)
            if self.grad_checkpoint and torch.is_grad_enabled():
                x = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(*inputs)
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.norm(x)

    def forward(self, tokens):
        return self.lm_head(self.hidden(tokens))


class ScalarModel(nn.Module):
    """A Transformer's trunk, its own copy, and a linear head: tokens (B, T) -> (B, T).
    One number per token, float32 or wider; the number at t has seen tokens[:, :t + 1]. A reward
    model is read at the last token. A critic is read at every token: the number at t - 1 is
    V(s_t), the value of the state before token t. The head starts at 0, and so does every value."""

    def __init__(self, transformer: Transformer):
        super().__init__()
        self.config = transformer.config
        self.trunk = copy.deepcopy(transformer)
        del self.trunk.lm_head
        weight = transformer.embed_tokens.weight
        self.score = nn.Linear(self.config.dim, 1, bias=False).to(weight)
        nn.init.zeros_(self.score.weight)

    def forward(self, tokens):
        x = self.trunk.hidden(tokens)
        # Not self.score(x): autocast would round it, and its gradients, to bfloat16's 8 bits.
        weight = self.score.weight[0]                                           # (C,)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return (x.to(dtype) * weight.to(dtype)).sum(-1)                         # (B, T)
