"""A decoder-only Transformer, written out: RMSNorm, rotary embeddings, grouped-query attention, SwiGLU.

This is Llama and Mistral; with biases on q, k and v Qwen2, with norms on q and k Qwen3. Parameters carry Hugging Face's names, so that
a checkpoint needs no translation. There is no dropout: train and eval mode compute the same function, and the importance ratio of a
fresh rollout is 1. Left out: attention masks and position ids. Padding is on the right, where a causal model never looks.

Shapes: B rows, T tokens, C = dim, nh heads of size hs, nkv key-value heads, V vocabulary.
"""
import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass
class ModelConfig:
    """Sizes of a `Transformer`. n_kv_heads divides n_heads; head_dim is dim / n_heads if not given; max_seq_len in tokens."""
    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    max_seq_len: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    qkv_bias: bool = False              # Qwen2
    qk_norm: bool = False               # Qwen3
    head_dim: int | None = None
    rope_scaling: dict | None = None    # Llama 3.1 and later: see rope_frequencies

    def __post_init__(self):
        if self.head_dim is None and self.dim % self.n_heads == 0:
            self.head_dim = self.dim // self.n_heads
        if self.head_dim is None or self.head_dim % 2 or self.n_heads % self.n_kv_heads:
            raise ValueError(f"dim {self.dim} must divide into n_heads {self.n_heads} unless head_dim is given, "
                             f"head_dim {self.head_dim} must be even, and n_heads divide into n_kv_heads {self.n_kv_heads}")


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) * weight, the mean in float32. Zhang & Sennrich 2019 (arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


def rope_frequencies(config: ModelConfig) -> Tensor:
    """How far each pair of a head turns a token: theta^(-2i/hs) for i < hs/2, float32 (hs/2,).

    rope_scaling stretches a context for which a model was not first trained (Llama 3.1): pairs that turned less than
    `low_freq_factor` times in the original context turn `factor` times slower, those over `high_freq_factor` as before."""
    # on the CPU even where a model is built without memory (torch.device("meta")): these numbers are in no checkpoint
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim)
    if config.rope_scaling is None:
        return frequencies
    factor, low, high, original = (config.rope_scaling[name] for name in (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
    turns = original * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: turns the pair (x_i, x_{i + hs/2}) by position * frequency_i. RoFormer (arXiv:2104.09864).

    x (B, T, n, hs); cos, sin (B or 1, T, 1, hs), where sin is -sin for the first half."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class KVCache:
    """Keys and values of all layers, allocated once: (B, nkv, S, hs) each. A column is a step, not a position: prompts fill the first P,
    right-padded, and the i-th new token of every row goes to column P + i. `bias` hides the padding between a prompt and its answer."""

    def __init__(self, config: ModelConfig, prompt_lengths: Tensor, max_len: int, dtype):
        B, device = len(prompt_lengths), prompt_lengths.device
        self.data = torch.empty(config.n_layers, 2, B, config.n_kv_heads, max_len, config.head_dim, device=device, dtype=dtype)
        column, self.length = torch.arange(max_len, device=device), 0
        padding = (column >= prompt_lengths[:, None]) & (column < prompt_lengths.max())
        self.bias = torch.zeros(B, 1, 1, max_len, device=device).masked_fill(padding[:, None, None], -math.inf)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, nkv, T, hs) in the next T columns; return all columns so far (B, nkv, length + T, hs)."""
        end = self.length + k.shape[2]
        keys, values = self.data[layer]
        keys[:, :, self.length:end], values[:, :, self.length:end] = k, v
        return keys[:, :, :end], values[:, :, :end]

    def copy_prompts(self, rows: Tensor, other: "KVCache", source: Tensor) -> None:
        """Take the prompts that `other` holds: row rows[i] of this cache is its row source[i]."""
        self.length = other.length
        for mine, theirs in zip(self.data, other.data):                            # (2, B, nkv, S, hs)
            mine[:, rows, :, :self.length] = theirs[:, source]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, an increasing index. They move to the front, a layer at a time:
        a copy of the whole cache beside it would double what it takes."""
        for layer in self.data:                                                    # (2, B, nkv, S, hs)
            layer[:, :len(rows), :, :self.length] = layer[:, rows, :, :self.length]
        self.data, self.bias = self.data[:, :, :len(rows)], self.bias[rows]


class Attention(nn.Module):
    """Causal attention in which nh / nkv query heads share one key-value head. GQA (arXiv:2305.13245)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (proj(x).view(B, T, -1, self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)                      # (B, T, n, hs)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))                                           # (B, n, T, hs)
        keys, values = cache.append(layer, k, v) if cache is not None else (k, v)
        if cache is None or cache.length == 0:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        else:       # one new token: the query heads that share a key-value head are the rows of one product, so nothing is copied
            q = q.reshape(B, k.shape[1], -1, self.head_dim)                                        # (B, nkv, nh / nkv, hs)
            scores = q @ keys.mT / math.sqrt(self.head_dim) + cache.bias[..., :keys.shape[2]]      # (B, nkv, nh / nkv, S)
            y = (scores.softmax(-1).to(values.dtype) @ values).view(B, -1, 1, self.head_dim)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). Shazeer 2020 (arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm, self.self_attn = RMSNorm(config.dim, config.norm_eps), Attention(config)
        self.post_attention_layernorm, self.mlp = RMSNorm(config.dim, config.norm_eps), MLP(config)

    def forward(self, x: Tensor, *attention_inputs) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), *attention_inputs)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """tokens (B, T) -> logits (B, T, V); logits[:, t] score token t + 1. More tokens than max_seq_len are a ValueError."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.grad_checkpoint = False        # keep only each block's input for the backward pass, and compute the block again there
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        positions = torch.arange(config.max_seq_len, dtype=torch.float32, device="cpu")
        angles = torch.outer(positions, rope_frequencies(config))                                     # (S, hs/2)
        self.register_buffer("cos", torch.cat((angles.cos(), angles.cos()), -1), persistent=False)    # (S, hs), see rotate
        self.register_buffer("sin", torch.cat((-angles.sin(), angles.sin()), -1), persistent=False)
        std = (2 / (5 * config.dim)) ** 0.5                         # "small init", Nguyen & Salazar 2019 (arXiv:1910.05895)
        for name, p in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(p)
            elif p.dim() == 2:      # GPT-2: the layers that write into the residual stream start smaller, by 1/sqrt(their number)
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=std / (2 * config.n_layers) ** 0.5 if residual else std)

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, positions: Tensor | None = None) -> Tensor:
        """tokens (B, T) -> final hidden states (B, T, C).

        With a cache: first the prompts, right-padded; then one token a row and call, at `positions` (B, 1), attending to all before.
        """
        x = self.embed_tokens(tokens)
        if positions is None:
            if tokens.shape[1] > self.config.max_seq_len:
                raise ValueError(f"{tokens.shape[1]} tokens exceed the model's context of {self.config.max_seq_len}")
            cos, sin = self.cos[None, :tokens.shape[1], None], self.sin[None, :tokens.shape[1], None]
        else:
            cos, sin = self.cos[positions][:, :, None], self.sin[positions][:, :, None]                # (B, 1, 1, hs)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        for i, layer in enumerate(self.layers):
            if self.grad_checkpoint and torch.is_grad_enabled():
                x = checkpoint(layer, x, cos, sin, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, cos, sin, cache, i)
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.hidden(tokens))


class ScalarModel(nn.Module):
    """A Transformer's trunk (its own copy) and a linear head: tokens (B, T) -> one number a token (B, T), float32 or wider.

    The number at t has seen tokens[:, :t + 1]. A reward model is read at the last token; a critic at every one, where the
    number at t - 1 is V(s_t), the value of the state before token t. The head starts at 0, and so does every value.
    """

    def __init__(self, transformer: Transformer):
        super().__init__()
        self.config = transformer.config
        self.trunk = copy.deepcopy(transformer)
        del self.trunk.lm_head
        weight = transformer.embed_tokens.weight
        self.score = nn.Linear(self.config.dim, 1, bias=False, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(self.score.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.trunk.hidden(tokens)
        with torch.autocast(x.device.type, enabled=False):          # it would round scores to 8 bits, and the product costs nothing
            values = self.score(x.type_as(self.score.weight)).squeeze(-1)
        return values if values.dtype == torch.float64 else values.float()
