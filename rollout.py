"""Sampling answers with the KV cache, and scoring them: log-probs, exact KL, values, rewards.

One layout everywhere: right padding, prompt then response then padding. `generate` writes into it
directly: each row goes on at its own length. What is sampled is what is scored: log-probs of
softmax(logits / temperature) in float32, no top-k, no top-p.

Shapes: B rows, T tokens of the longest row, P of the longest prompt, N actions, V vocabulary.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from losses import entropy, gather_log_probs
from model import KVCache

# So many logits at a time: 64 MiB, on a GPU 512. Each chunk adds a gradient of the head's weight.
LOGITS_AT_ONCE = 2 ** 24
LOGITS_AT_ONCE_GPU = 2 ** 27
ASK_EVERY_GPU = 8   # tokens: asking which rows have ended makes the host wait for its GPU


@dataclass
class Rollout:
    """Sampled answers, right-padded with 0. Masks come from lengths, never from token ids."""
    tokens: Tensor                # (B, T) int64
    mask: Tensor                  # (B, T) bool: sampled by the policy, the stop token included
    logp: Tensor                  # (B, T) float32: the sampler's log-probs, 0 off the mask
    finished: Tensor              # (B,) bool: ended by itself; False: cut off at max_new_tokens
    prompt_lengths: Tensor        # (B,) int64
    lengths: Tensor               # (B,) int64: of prompt and answer, what it was told included

    def responses(self) -> list[list[int]]:
        """The sampled ids of each row, its stop token included."""
        return [row[mask].tolist() for row, mask in zip(self.tokens.cpu(), self.mask.cpu())]


def sample(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One token per row: where the cumulative distribution passes `uniform`, (N,) in [0, 1).
    logits (N, V) -> tokens (N,), log-probs (N,). The noise of a token is one number, so a row's
    sample doesn't depend on which other rows are in the batch. temperature 0 takes the most likely
    token, with its log-prob at temperature 1."""
    probs = torch.softmax(logits.float() / (temperature or 1.0), -1)
    if temperature == 0:
        tokens = probs.argmax(-1)
    else:
        cdf = probs.cumsum(-1)
        # The last entry of the cdf is 1 up to rounding only.
        threshold = uniform[:, None] * cdf[:, -1:]
        tokens = torch.searchsorted(cdf, threshold, right=True).squeeze(1)
        tokens = tokens.clamp(max=logits.shape[-1] - 1)
    token_probs = probs.gather(-1, tokens[:, None]).squeeze(1)
    return tokens, token_probs.log()


@torch.no_grad()
def generate(model, prompts: list[list[int]], max_new_tokens: int, stop_ids,
             temperature: float = 1.0, generator: torch.Generator | None = None, environment=None,
             *, noise: Tensor | None = None, micro_batch_tokens: int = 8192) -> Rollout:
    """Sample an answer to each prompt; temperature=0 is greedy.

    prompts: lists of ids, of any lengths. stop_ids: a collection of ids; an empty one never stops.
    generator: a CPU generator of the noise; or give the noise itself, (B, max_new_tokens) uniform
    in [0, 1). micro_batch_tokens: so many tokens of the prompts, or one prompt, go through the
    model at once. ValueError: a prompt is empty or, with max_new_tokens, over the context.
    environment(row, ids) is asked when a row samples a stop token, with the ids since its last
    turn. It returns the ids that the world writes next, one per step like sampled ones, or None:
    the answer is over; or a function that does so, called when all rows of the step were asked.
    Here `=` and `.` are stop tokens, and `12]` is what the world writes:

        tokens    3  *  4  =  [  3  *  4  =  1  2  ]  1  2  .
        mask      0  0  0  0  1  1  1  1  1  0  0  0  1  1  1"""
    _check(model.config.max_seq_len, prompts, max_new_tokens, temperature)
    device = model.embed_tokens.weight.device
    B, P = len(prompts), max(map(len, prompts))
    stop_ids = torch.tensor(sorted(stop_ids), device=device)
    if noise is None:
        noise = torch.rand(B, max_new_tokens, generator=generator)
    noise = noise.to(device)

    tokens = torch.zeros(B, P + max_new_tokens, dtype=torch.long)
    for b, prompt in enumerate(prompts):
        tokens[b, :len(prompt)] = torch.tensor(prompt)
    tokens = tokens.to(device)
    prompt_lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)   # (B,)
    lengths = prompt_lengths.clone()                        # (B,) of prompt and answer
    logp = torch.zeros(tokens.shape, device=device)
    finished = torch.zeros(B, dtype=torch.bool, device=device)
    turn_starts = prompt_lengths.clone()                    # (B,) of what is sampled now
    # Not sampled: the prompts, and what the environment writes.
    told = torch.arange(tokens.shape[1], device=device) < prompt_lengths[:, None]

    cache, h = _prefill(model, tokens[:, :P], prompt_lengths, max_new_tokens, micro_batch_tokens)
    ask_every = ASK_EVERY_GPU if device.type == "cuda" else 1
    rows = torch.arange(B, device=device)               # the rows that are still in the batch
    for i in range(max_new_tokens):
        next_tokens, next_logp = sample(model.lm_head(h), temperature, noise[rows, i])
        positions = prompt_lengths[rows] + i
        # What the environment writes stands there already.
        is_told = told[rows, positions]
        next_tokens = torch.where(is_told, tokens[rows, positions], next_tokens)
        tokens[rows, positions] = next_tokens
        logp[rows, positions] = next_logp
        # The stop token counts as part of the answer, and what a row writes after it doesn't.
        lengths[rows] += ~finished[rows]
        stops = torch.isin(next_tokens, stop_ids) & ~is_told & ~finished[rows]
        finished[rows] |= stops
        if environment is not None and stops.any():
            _ask(environment, rows[stops], tokens, told, turn_starts, lengths, finished)
        if i + 1 == max_new_tokens:
            break
        running = ~finished[rows]
        n_running = int(running.sum()) if i % ask_every == 0 else len(rows)
        if n_running == 0:
            break
        # Finished rows leave the batch, a quarter at a time: the cache is copied.
        if n_running <= 0.75 * len(rows):
            kept = running.nonzero().squeeze(1)
            rows = rows[kept]
            next_tokens = next_tokens[kept]
            positions = positions[kept]
            cache.keep(kept)
        h = model.hidden(next_tokens[:, None], cache, positions[:, None])[:, 0]     # (rows, C)

    T = int(lengths.max())
    written = torch.arange(T, device=device) < lengths[:, None]
    mask = written & ~told[:, :T]
    # What a finished row went on writing before it left the batch is cleared.
    return Rollout(tokens=tokens[:, :T] * written,
                   mask=mask,
                   logp=logp[:, :T] * mask,
                   finished=finished,
                   prompt_lengths=prompt_lengths,
                   lengths=lengths)


def _ask(environment, rows, tokens, told, turn_starts, lengths, finished):
    """Ask what follows the stop tokens of these rows, and write it ahead, where it will stand."""
    replies = []
    for row in rows.tolist():
        sampled = tokens[row, turn_starts[row]:lengths[row]]
        replies.append(environment(row, sampled.tolist()))
    for row, reply in zip(rows, replies):
        ids = reply() if callable(reply) else reply
        finished[row] = ids is None
        start = lengths[row]
        ids = (ids or [])[:tokens.shape[1] - start]
        end = start + len(ids)
        tokens[row, start:end] = torch.tensor(ids, device=tokens.device)
        told[row, start:end] = True
        turn_starts[row] = end


def _check(context, prompts, max_new_tokens, temperature):
    if not prompts or max_new_tokens < 1 or temperature < 0:
        raise ValueError(f"{len(prompts)} prompts, max_new_tokens {max_new_tokens}, temperature "
                         f"{temperature}: expected at least 1, at least 1, at least 0")
    longest = context - max_new_tokens
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= longest:
            raise ValueError(f"prompt {i} has {len(prompt)} tokens, expected 1 to {longest}: the "
                             f"context of {context} less max_new_tokens {max_new_tokens}")


def _prefill(model, prompts, prompt_lengths, max_new_tokens, micro_batch_tokens):
    """The prompts' pass. -> a cache that holds them, the state at the end of each prompt (B, C).
    A prompt that occurs several times, as the prompt of a group does, is computed once."""
    B, P = prompts.shape
    weight = model.embed_tokens.weight
    dtype = weight.dtype
    if torch.is_autocast_enabled(weight.device.type):
        dtype = torch.get_autocast_dtype(weight.device.type)
    cache = KVCache(model.config, prompt_lengths, P + max_new_tokens, dtype)
    h = weight.new_empty(B, model.config.dim)
    # Rows of [length, tokens], each once; and for each row of the batch, which of them it is.
    keyed = torch.cat((prompt_lengths[:, None], prompts), 1)
    unique, copy_of = keyed.unique(dim=0, return_inverse=True)
    size = max(1, micro_batch_tokens // P)
    for part in torch.arange(len(unique), device=prompts.device).split(size):
        part_cache = KVCache(model.config, unique[part, 0], P, dtype)
        states = model.hidden(unique[part, 1:], part_cache)                # (rows of part, P, C)
        rows = torch.isin(copy_of, part).nonzero().squeeze(1)
        source = copy_of[rows] - part[0]
        h[rows] = states[source, prompt_lengths[rows] - 1]
        cache.copy_prompts(rows, part_cache, source)
    return cache, h


def token_log_probs(model, tokens: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """log π(tokens[b, t] | tokens[b, :t]) at each action, 0 elsewhere. (B, T) float32.
    Differentiable. temperature must be above 0: a greedy choice has no log-prob (ValueError)."""
    def score(logits, actions):
        return [gather_log_probs(logits, actions)]
    [logp] = score_actions(score, [model], tokens, mask, temperature)
    return logp


def token_log_probs_and_entropies(model, tokens: Tensor, mask: Tensor, temperature: float = 1.0,
                                  with_gradient: bool = False) -> list[Tensor]:
    """The same, and each action's entropy, detached unless with_gradient. (B, T), (B, T)"""
    def score(logits, actions):
        logp = gather_log_probs(logits, actions)
        with torch.set_grad_enabled(with_gradient):
            return [logp, entropy(logits)]
    return score_actions(score, [model], tokens, mask, temperature)


def score_actions(score, models, tokens, mask, temperature):
    """score(each model's logits (N, V), actions (N,)) -> a list of (N,). -> (B, T) of each.
    Logits are computed for actions only, in chunks that are computed again in the backward pass, so
    that memory doesn't grow with vocabulary * batch * length."""
    if temperature <= 0:
        raise ValueError(f"temperature {temperature}: expected a number above 0")
    if mask.shape != tokens.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, tokens {tuple(tokens.shape)}")
    mask = mask.bool()
    row, t = mask.nonzero(as_tuple=True)                                                # (N,)
    if (t == 0).any():
        raise ValueError("mask[:, 0] is not 0: no state comes before the first token of a row")
    # **The one shift**: the state at t - 1, which has seen tokens[:, :t], scores token t.
    actions = tokens[row, t]                                                            # (N,)
    states = [model.hidden(tokens[:, :-1])[row, t - 1] for model in models]             # (N, C)

    def score_chunk(actions, *states):
        logits = [model.lm_head(h).float()
                  for model, h in zip(models, states)]                              # (n, V)
        if temperature != 1:                    # dividing by 1 would be a pass over all logits
            logits = [x / temperature for x in logits]
        return score(*logits, actions)

    at_once = LOGITS_AT_ONCE_GPU if tokens.device.type == "cuda" else LOGITS_AT_ONCE
    size = max(1, at_once // models[0].config.vocab_size)
    if len(actions) <= size:
        results = score_chunk(actions, *states)
    else:
        parts = [checkpoint(score_chunk, *chunk, use_reentrant=False, preserve_rng_state=False)
                 for chunk in zip(*(x.split(size) for x in (actions, *states)))]
        results = [torch.cat(part) for part in zip(*parts)]
    return [x.new_zeros(mask.shape).masked_scatter(mask, x) for x in results]


def token_values(critic, tokens: Tensor, mask: Tensor) -> Tensor:
    """V(tokens[b, :t]), the value of the state before each action; 0 off the mask. (B, T)"""
    values = F.pad(critic(tokens[:, :-1]), (1, 0))          # value t - 1 belongs to action t
    return values.masked_fill(~mask.bool(), 0)


def sequence_scores(reward_model, tokens: Tensor, mask: Tensor) -> Tensor:
    """The reward model's score of each row, read at its last action, not at the padding. (B,)"""
    last = row_lengths(mask)[:, None] - 1
    return reward_model(tokens).gather(1, last).squeeze(1)


def row_lengths(mask: Tensor) -> Tensor:
    """One more than the column of each row's last action; at least 1. (B, T) -> (B,)"""
    column = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask.bool() * column).amax(1).clamp(min=1)


def mini_batches(rows: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """The rows in a random order, in n parts of like size: one update each."""
    order = torch.randperm(len(rows), generator=generator)
    return rows[order.to(rows.device)].tensor_split(n)


def micro_batches(mask: Tensor, max_tokens: int,
                  rows: Tensor | None = None) -> list[tuple[Tensor, int]]:
    """Split these rows of a batch, or all, into micro-batches. -> a list of (row indices, T)
    Each has at most max_tokens tokens with its padding, or one row. Rows of like length go
    together; a row over 1.5 times as long as the shortest starts a new one."""
    lengths = row_lengths(mask).tolist()
    rows = range(len(mask)) if rows is None else rows.tolist()
    order = sorted(rows, key=lambda row: lengths[row])
    batches = []
    for row in order:
        batch = batches[-1] if batches else []
        is_full = (len(batch) + 1) * lengths[row] > max_tokens
        if not batch or is_full or lengths[row] > 1.5 * lengths[batch[0]]:
            batches.append([row])
        else:
            batch.append(row)
    # One tensor for all: each that is brought to a GPU makes the host wait.
    sizes = [len(batch) for batch in batches]
    parts = torch.tensor(order, device=mask.device).split(sizes)
    return [(part, lengths[batch[-1]]) for part, batch in zip(parts, batches)]
