"""What training a model holds in memory, term by term.

What is held differs between the phases of a step, so the peak is that of the largest phase, not the
sum of what is never there together. It is the peak of a step of full rows of --data, after Adam's
first update, in several micro-batches. Where rows begin alike, it is less: see
support/prefixes.py. It counts tensors alone: Python and torch, and a GPU's context, come on top.

With --dtype bfloat16 weights, gradients and Adam's averages are float32 all the same: see
support/models.py. Attention is taken to be one kernel, which never holds the T x T weights. On a
GPU that is so in bfloat16; in float32, where heads are grouped, they may come on top.
"""
from dataclasses import dataclass

import torch
from torch import nn

import rollout
from model import ModelConfig, Transformer
from support.cli import setting

ALGORITHMS = ("sft", "rm", "dpo", "grpo", "ppo")
SAMPLING = ("grpo", "ppo")
PREFILL, DECODE, SCORE, HEAD, LAYERS, EMBEDDING = PHASES = (
    "sample: prompts", "sample: answers", "score",
    "update: head", "update: layers", "update: embedding")
UPDATE = HEAD, LAYERS, EMBEDDING


@dataclass(kw_only=True)
class Config:
    prompt_tokens: int = setting(256, "tokens of a prompt", low=1)
    max_new_tokens: int = setting(256, "tokens of an answer", low=1)
    rows: int = setting(256, "GRPO and PPO: answers that a step samples", low=1)
    micro_batch_tokens: int = setting(8192, "tokens that go through the model at once", low=1)
    grad_checkpoint: bool = setting(False, "compute each layer again in the backward pass")
    dtype: str = setting("bfloat16", "of the matrix products", choices=("float32", "bfloat16"))
    device: str = setting(
        "cuda", "where it runs: a GPU computes more logits at a time", choices=("cuda", "cpu"))


class Sizes:
    """How many numbers a model has. It takes no memory."""

    def __init__(self, model: ModelConfig):
        with torch.device("meta"):
            transformer = Transformer(model)
        self.model = model
        self.parameters = sum(p.numel() for p in transformer.parameters())
        linear = [p for module in transformer.layers.modules() if isinstance(module, nn.Linear)
                  for p in module.parameters()]
        self.linear = sum(p.numel() for p in linear)                # biases included
        self.matrices = sum(p.numel() for p in linear if p.dim() == 2)
        self.head = model.vocab_size * model.dim
        # A reward model and a critic have one number a token in place of the head.
        self.trunk = self.parameters - (0 if model.tie_embeddings else self.head)
        self.rotary = transformer.cos.numel() + transformer.sin.numel()
        self.q = model.n_heads * model.head_dim
        self.kv = model.n_kv_heads * model.head_dim


def logits_of_a_chunk(device: str) -> int:
    """How many logits rollout.py computes at a time on a device of this type."""
    return rollout.LOGITS_AT_ONCE_GPU if device == "cuda" else rollout.LOGITS_AT_ONCE


def cache_columns(length: int) -> int:
    """How many columns a KVCache has for so many tokens."""
    return length + -length % 16


class Plan:
    """terms: name -> (bytes, the phases in which they are held)."""

    def __init__(self, sizes: Sizes, config: Config, algorithm: str):
        self.sizes, self.model, self.config = sizes, sizes.model, config
        self.samples, self.is_rm = algorithm in SAMPLING, algorithm == "rm"
        self.autocast = config.dtype == "bfloat16"
        # Bytes of a number that goes into a matrix product. Others have 4.
        self.width = 2 if self.autocast else 4
        length = config.prompt_tokens + config.max_new_tokens
        # Both answers of a pair go through the model together.
        side = 2 if algorithm in ("dpo", "rm") else 1
        rows = side * max(1, config.micro_batch_tokens // side // length)
        if self.samples:
            rows = min(rows, config.rows)
        # Of a micro-batch. The last token of a row is not read, save by a reward model.
        self.tokens = rows * (length if self.is_rm else length - 1)
        self.actions = rows * config.max_new_tokens
        chunk = min(self.actions, max(1, logits_of_a_chunk(config.device) // self.model.vocab_size))
        self.has_chunks = chunk < self.actions
        self.logits = 4 * chunk * self.model.vocab_size         # float32, of one chunk
        self.rounded_head = 2 * sizes.head if self.autocast else 0
        self.terms = {}
        self.add_models(algorithm)
        if self.samples:
            self.add_sampling(length)
        self.add_scoring()
        self.add_update(algorithm)

    def add(self, name: str, nbytes: int, *phases: str) -> None:
        """Without phases: it is always there."""
        self.terms[name] = nbytes, phases or PHASES

    def phase(self, phase: str) -> int:
        """Bytes that are held in it; 0 where the algorithm has no such phase."""
        held = [(nbytes, phases) for nbytes, phases in self.terms.values() if phase in phases]
        if all(phases == PHASES for _, phases in held):
            return 0
        return sum(nbytes for nbytes, _ in held)

    def peak(self) -> int:
        return max(map(self.phase, PHASES))

    def add_models(self, algorithm: str) -> None:
        sizes = self.sizes
        rotary = 4 * sizes.rotary
        learned = sizes.trunk if self.is_rm else sizes.parameters
        self.add("weights", 4 * learned + rotary)
        # Two averages of each gradient.
        self.add("Adam", 8 * learned)
        # DPO's reference is the policy before training, when it is asked once.
        if self.samples:
            matrices = sizes.linear + sizes.head
            self.add("reference", rotary + self.frozen(sizes.parameters, matrices))
        if algorithm == "ppo":
            self.add("critic", 4 * sizes.trunk + rotary)
            self.add("critic's Adam", 8 * sizes.trunk)
            self.add("reward model", rotary + self.frozen(sizes.trunk, sizes.linear))

    def frozen(self, parameters: int, matrices: int) -> int:
        """A copy from copy_for_inference: embedding and norms stay float32."""
        if self.autocast:
            return 4 * (self.sizes.trunk - self.sizes.linear) + 2 * matrices
        return 4 * parameters

    def add_sampling(self, length: int) -> None:
        model, config, sizes = self.model, self.config, self.sizes
        # Of the matrices (support/decoding.py): embedding and norms are the policy's own.
        self.add("copy to sample", self.width * (sizes.linear + sizes.head), PREFILL, DECODE)
        # Keys and values of a token, in all layers.
        token = 2 * model.n_layers * sizes.kv * self.width
        self.add("KV cache", config.rows * cache_columns(length) * token, PREFILL, DECODE)
        # A micro-batch of prompts has a cache of its own, which is copied into the other. The
        # states of the one before are still there.
        prompts = min(config.rows, max(1, config.micro_batch_tokens // config.prompt_tokens))
        tokens = prompts * config.prompt_tokens
        own = prompts * cache_columns(config.prompt_tokens) * token + tokens * 4 * model.dim
        self.add("prompts' cache and a layer", own + self.layer_forward(tokens), PREFILL)
        # `sample`: logits, over the temperature, their softmax; the cdf takes the second's place.
        self.add("logits of all rows", config.rows * model.vocab_size * (self.width + 8), DECODE)

    def add_scoring(self) -> None:
        # By the time of the logits the layers are done. The exact KL has two models' logits and
        # log-probs and three steps to their sum; others have logits and log-probs.
        logits = (7 if self.samples else 2) * self.logits + self.rounded_head
        layer = self.layer_forward(self.tokens)
        self.add("a layer, then logits", layer if self.is_rm else max(layer, logits), SCORE)

    def add_update(self, algorithm: str) -> None:
        model, sizes = self.model, self.sizes
        # Of the micro-batches before. zero_grad frees them until the next update.
        self.add("gradients", 4 * (sizes.trunk if self.is_rm else sizes.parameters), *UPDATE)
        if algorithm == "ppo":
            # The critic's activations are gone when the policy's come.
            self.add("critic's gradients", 4 * sizes.trunk, *UPDATE)
        # With --grad-checkpoint a layer keeps its input, and all else while it is computed again.
        layer = self.layer_activations()
        stream = 4 * self.tokens * model.dim
        each = stream if self.config.grad_checkpoint else layer
        # The last norm keeps its input, normalised too, and 1 / root mean square.
        self.add("activations", model.n_layers * each + 2 * stream + 4 * self.tokens, HEAD, LAYERS)
        if self.config.grad_checkpoint:
            self.add("a layer computed again", layer, LAYERS)
        # Gradients of gate and up. What comes later takes the place of what this frees.
        self.add("a layer's backward pass", self.tokens * 2 * model.ffn_dim * self.width, LAYERS)
        gradient = 4 * sizes.head
        if not self.is_rm:
            self.add("logits and head", self.head_update(), HEAD)
        # The embedding's gradient comes last. The head's waits for it if they are one matrix, and
        # their sum is a third tensor, unless autocast computed the head's.
        waits = model.tie_embeddings and not self.is_rm
        if waits:
            self.add("gradient of the head", gradient, LAYERS, EMBEDDING)
        tensors = 2 if waits and not self.autocast else 1
        self.add("gradient of the embedding", tensors * gradient, EMBEDDING)

    def layer_forward(self, tokens: int) -> int:
        """Without gradients: x, its norm; gate, silu(gate) and up."""
        return tokens * (2 * 4 * self.model.dim + 3 * self.width * self.model.ffn_dim)

    def layer_activations(self) -> int:
        """What a layer keeps for its backward pass."""
        model, sizes = self.model, self.sizes
        # Two norms: the input, normalised too, and 1 / root mean square. Attention: a log-sum.
        numbers = 4 * (2 * (2 * model.dim + 1) + model.n_heads)
        # q, k, v and attention's result; gate, silu(gate), up and their product.
        numbers += self.width * (2 * sizes.q + 2 * sizes.kv + 4 * model.ffn_dim)
        # What q, k, v read, and gate and up. Autocast rounds it for each of the five.
        numbers += 2 * 5 * model.dim if self.autocast else 4 * 2 * model.dim
        if model.qk_norm:
            # As of the other norms.
            numbers += 2 * 4 * (sizes.q + sizes.kv)
            numbers += 4 * (model.n_heads + model.n_kv_heads)
        # Autocast rounds matrices as well, once a micro-batch.
        matrices = 2 * sizes.matrices // model.n_layers if self.autocast else 0
        return self.tokens * numbers + matrices

    def head_update(self) -> int:
        """The most that a chunk of logits adds, the states it is computed from included."""
        gradient = 4 * self.sizes.head
        # What the chunks before have added up.
        earlier = gradient if self.has_chunks else 0
        # Logits and log-probs; for the entropies, two more.
        forward = (4 if self.samples else 2) * self.logits
        if not self.has_chunks:
            # One chunk is not computed again: its log-probs are kept, and the rounded matrix.
            forward += self.rounded_head + (self.logits if self.samples else 0)
        # Log-probs, and the gradients on both sides of them.
        softmax = earlier + self.rounded_head + 3 * self.logits
        # The head's gradient, beside that of the logits or as autocast computes it.
        product = earlier + gradient + max(self.width * self.logits // 4, self.rounded_head)
        # torch adds gradients in place, but not those of a matrix that it didn't have to round.
        total = earlier + gradient + (0 if self.autocast else earlier)
        return 4 * self.model.dim * self.actions + max(forward, softmax, product, total)
