"""Sampling answers with the KV cache, and scoring them: log-probs, exact KL, values, reward-model scores.

One layout everywhere: right padding, prompt then response then padding. `generate` writes into it directly: each row goes on at
its own length. What is sampled is what is scored: softmax(logits / temperature) in float32, no top-k, no top-p.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from losses import entropy, gather_log_probs, kl_exact
from model import KVCache
from support.models import autocast_copy
from support.parallel import rank, summed, world

# floats; no more logits than this (64 MiB) exist at a time, whatever the vocabulary; with their softmax and its gradient five times as
# many numbers. Smaller chunks save little and cost time: the gradient of the head's weight is summed once a chunk, in copies of its own
LOGITS_AT_ONCE = 2 ** 24


@dataclass
class Rollout:
    """Sampled answers, right-padded with 0. T is the longest row's length; masks come from lengths, never from token ids."""
    tokens: Tensor                # (B, T) int64
    mask: Tensor                  # (B, T) bool: sampled by the policy, the stop token included
    logp: Tensor                  # (B, T) float32: the sampler's log-probs, 0 off the mask
    finished: Tensor              # (B,) bool: ended by itself; False if cut off at max_new_tokens
    prompt_lengths: Tensor        # (B,) int64

    def responses(self) -> list[list[int]]:
        """The sampled ids of each row, its stop token included."""
        return [row[mask].tolist() for row, mask in zip(self.tokens, self.mask)]


def stack_rows(parts: list[Tensor]) -> Tensor:
    """The rows of several batches as one: (b,) each -> (B,); (b, T) each, of several T -> (B, T), padded with 0."""
    if parts[0].dim() == 1:
        return torch.cat(parts)
    T = max(x.shape[1] for x in parts)
    return torch.cat([F.pad(x, (0, T - x.shape[1])) for x in parts])


def concatenate(rollouts: list[Rollout]) -> Rollout:
    """The rows of several rollouts, as one, padded to the longest."""
    columns = zip(*(vars(rollout).values() for rollout in rollouts))
    return Rollout(*(stack_rows(column) for column in columns))


def sample(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the CDF at uniform (N,) in [0, 1). logits (N, V) -> tokens (N,), log-probs (N,).

    The noise of a token is one number, so a row's sample does not depend on which other rows are in the batch.
    temperature 0 is the argmax, with its log-prob at temperature 1."""
    probs = torch.softmax(logits.float() / (temperature or 1.0), -1)
    if temperature == 0:
        tokens = probs.argmax(-1)
    else:
        cdf = probs.cumsum(-1)                            # its last entry is 1 up to rounding, hence the product below
        tokens = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)
    return tokens, probs.gather(-1, tokens[:, None]).squeeze(1).log()


@torch.no_grad()
def generate(model, prompts: list[list[int]], max_new_tokens: int, stop_ids, temperature: float = 1.0,
             generator: torch.Generator | None = None, *, micro_batch_tokens: int = 8192) -> Rollout:
    """Sample an answer to each prompt; temperature=0 is greedy.

    prompts: lists of ids, of any lengths. stop_ids: a collection of ids; an empty one never stops. generator: a CPU
    generator that gives the noise, row by row. micro_batch_tokens: as many tokens of the prompts, or one prompt, go
    through the model at once. Errors: ValueError if a prompt is empty, or too long for the context together with
    max_new_tokens.
    """
    context = model.config.max_seq_len
    if not prompts or max_new_tokens < 1 or temperature < 0:
        raise ValueError(f"{len(prompts)} prompts, max_new_tokens {max_new_tokens}, temperature {temperature}: "
                         "expected at least 1, at least 1, at least 0")
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= context - max_new_tokens:
            raise ValueError(f"prompt {i} has {len(prompt)} tokens, expected 1 to {context - max_new_tokens}: "
                             f"the context of {context} less max_new_tokens {max_new_tokens}")
    model, weight = autocast_copy(model), model.embed_tokens.weight
    device, B, P = weight.device, len(prompts), max(map(len, prompts))
    stop_ids = torch.tensor(sorted(stop_ids), device=device)
    noise = torch.rand(B, max_new_tokens, generator=generator).to(device)
    n, share = B, slice(rank(), None, world()) if B >= world() else slice(None)       # fewer prompts than processes: each answers all
    prompts, noise, B = prompts[share], noise[share], len(prompts[share])

    tokens = torch.zeros(B, P + max_new_tokens, dtype=torch.long)
    for b, prompt in enumerate(prompts):
        tokens[b, :len(prompt)] = torch.tensor(prompt)
    tokens = tokens.to(device)
    prompt_lengths = torch.tensor([len(p) for p in prompts], device=device)
    response_lengths = torch.zeros_like(prompt_lengths)
    logp = torch.zeros(tokens.shape, device=device)
    finished = torch.zeros(B, dtype=torch.bool, device=device)

    cache_dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else weight.dtype
    rows = torch.arange(B, device=device)                                     # the rows that are still in the batch
    # The prompts' pass. A group's prompt is computed once: rows of [length, tokens], each row once,
    # and for each row of the batch which of them it is.
    unique, copy_of = torch.cat((prompt_lengths[:, None], tokens[:, :P]), 1).unique(dim=0, return_inverse=True)
    cache = KVCache(model.config, prompt_lengths, P + max_new_tokens, cache_dtype)
    h = weight.new_empty(B, model.config.dim)
    for part in torch.arange(len(unique), device=device).split(max(1, micro_batch_tokens // P)):
        part_cache = KVCache(model.config, unique[part, 0], P, cache_dtype)
        states = model.hidden(unique[part, 1:], part_cache)                   # (rows of the part, P, C)
        mine = torch.isin(copy_of, part).nonzero().squeeze(1)
        source = copy_of[mine] - part[0]
        h[mine] = states[source, prompt_lengths[mine] - 1]                     # (B, C)
        cache.copy_prompts(mine, part_cache, source)
    for i in range(max_new_tokens):
        next_tokens, next_logp = sample(model.lm_head(h), temperature, noise[rows, i])
        positions = prompt_lengths[rows] + i
        tokens[rows, positions], logp[rows, positions] = next_tokens, next_logp
        response_lengths[rows] += ~finished[rows]
        finished[rows] |= torch.isin(next_tokens, stop_ids)
        running = ~finished[rows]
        n_running = int(running.sum())
        if n_running == 0 or i + 1 == max_new_tokens:
            break
        if n_running <= 0.75 * len(rows):         # copying the cache costs about a decode step, so not at every ending
            kept = running.nonzero().squeeze(1)
            rows, next_tokens, positions = rows[kept], next_tokens[kept], positions[kept]
            cache.keep(kept)
        h = model.hidden(next_tokens[:, None], cache, positions[:, None])[:, 0]

    if B < n:                                                                 # add the other processes' rows
        whole = lambda x: summed(x.new_zeros(n, *x.shape[1:]).index_copy(0, torch.arange(n, device=device)[share], x))
        tokens, logp, finished, prompt_lengths, response_lengths = map(whole, (tokens, logp, finished, prompt_lengths, response_lengths))
    T = int((prompt_lengths + response_lengths).max())
    column = torch.arange(T, device=device)
    ends = (prompt_lengths + response_lengths)[:, None]
    mask = (column >= prompt_lengths[:, None]) & (column < ends)
    # what a finished row went on writing before it left the batch is cleared here
    return Rollout(tokens[:, :T] * (column < ends), mask, logp[:, :T] * mask, finished, prompt_lengths)


def states_before_actions(model, tokens: Tensor, mask: Tensor) -> Tensor:
    """Hidden states from which the actions were chosen, (N, C), in the order of mask.nonzero(). **The one shift**: the
    state at t - 1, which has seen tokens[:, :t], scores token t. A token 0 has no such state: ValueError."""
    if mask[:, 0].any():
        raise ValueError("mask[:, 0] is not 0: the first token of a row has no state before it, so it can't be an action")
    return model.hidden(tokens[:, :-1])[mask[:, 1:]]


def token_log_probs(model, tokens: Tensor, mask: Tensor, temperature: float = 1.0, with_entropy: bool = False):
    """log π(tokens[b, t] | tokens[b, :t]) at each action, 0 elsewhere: (B, T), float32, differentiable.

    Logits are computed for actions only, in chunks that are computed again in the backward pass, so that memory doesn't
    grow with vocabulary * batch * length. with_entropy: also the entropy of each action's distribution, (B, T), detached.
    """
    if temperature <= 0:
        raise ValueError(f"temperature {temperature}: a greedy choice has no log-prob, expected a number above 0")
    mask = mask.bool()
    states, actions = states_before_actions(model, tokens, mask), tokens[mask]

    def score(states, actions):
        logits = model.lm_head(states).float()                                  # (chunk, V)
        if temperature != 1:                    # one more pass over all logits, 8 % of a bfloat16 step of SmolLM2-135M on a CPU
            logits = logits / temperature
        return gather_log_probs(logits, actions), entropy(logits.detach()) if with_entropy else None

    size = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    if len(actions) <= size:
        logp, entropies = score(states, actions)
    else:
        chunks = [checkpoint(score, s, a, use_reentrant=False) for s, a in zip(states.split(size), actions.split(size))]
        logp = torch.cat([c[0] for c in chunks])
        entropies = torch.cat([c[1] for c in chunks]) if with_entropy else None
    logp = logp.new_zeros(mask.shape).masked_scatter(mask, logp)
    return (logp, logp.new_zeros(mask.shape).masked_scatter(mask, entropies)) if with_entropy else logp


@torch.no_grad()
def token_kl(model, ref_model, tokens: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(π‖ref) at each action's state, summed over the whole vocabulary; 0 off the mask. (B, T)"""
    mask = mask.bool()
    states, ref_states = (states_before_actions(m, tokens, mask) for m in (model, ref_model))
    size = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    kl = [kl_exact(model.lm_head(s).float() / temperature, ref_model.lm_head(r).float() / temperature)
          for s, r in zip(states.split(size), ref_states.split(size))]
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, torch.cat(kl))


def token_values(critic, tokens: Tensor, mask: Tensor) -> Tensor:
    """V(tokens[b, :t]), the value of the state before each action; 0 off the mask. (B, T), differentiable."""
    values = critic(tokens[:, :-1])                                             # value t - 1 belongs to action t
    return torch.cat((torch.zeros_like(values[:, :1]), values), 1).masked_fill(~mask.bool(), 0)


def sequence_scores(reward_model, tokens: Tensor, mask: Tensor) -> Tensor:
    """The reward model's score of each row, read at its last action, not at the padding. (B,), differentiable."""
    return reward_model(tokens).gather(1, row_lengths(mask)[:, None] - 1).squeeze(1)


def row_lengths(mask: Tensor) -> Tensor:
    """One more than the column of the row's last action; at least 1. (B, T) -> (B,)"""
    return (mask.bool() * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1).clamp(min=1)


def micro_batches(mask: Tensor, max_tokens: int, split: bool = True) -> list[tuple[Tensor, int]]:
    """Split a batch into (rows, T): at most max_tokens tokens with padding (or one row), rows of like length together.

    Of several processes each gets its share, short and long rows alike, unless split is False.
    A row over 1.5 times as long as the shortest starts a new one: less padding, 1.6 times as fast on short and long answers mixed."""
    lengths = row_lengths(mask).tolist()
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    order = order[rank()::world()] if split else order
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end - start + 1) * lengths[order[end]] > max_tokens or lengths[order[end]] > 1.5 * lengths[order[start]]:
            batches.append((torch.tensor(order[start:end], device=mask.device), lengths[order[end - 1]]))
            start = end
    return batches


@torch.no_grad()
def in_micro_batches(function, tokens: Tensor, mask: Tensor, max_tokens: int) -> Tensor:
    """function(tokens, mask) without gradient, a micro-batch at a time. Its outputs are (rows,) or (rows, T); -> (B,) or (B, T)."""
    out, split = None, len(mask) >= world()                     # fewer rows than processes: each computes all of them
    for rows, T in micro_batches(mask, max_tokens, split):
        y = function(tokens[rows, :T], mask[rows, :T])
        if out is None:
            out = y.new_zeros(mask.shape[:y.dim()])
        if y.dim() == 1:
            out[rows] = y
        else:
            out[rows, :T] = y
    return summed(out) if split else out
