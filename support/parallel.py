"""Several processes of one run, as torchrun starts them; with one, nothing here does anything.

Each process holds the models and the whole batch, and computes a share of its rows. An algorithm
has four calls for it: `generate` and `map_micro_batches`, which share rows out and gather what
comes of them; `my_rows` of a mini-batch; and `sum_gradients` after it.
"""
import functools
import signal
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import rollout as rollout_module
from rollout import Rollout, micro_batches
from support.decoding import Decoder
from support.graphs import prepare_for_decoding


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


# ------------------------------------------------------------------------- sampling and scoring

def generate(model, prompts: list, max_new_tokens: int, stop_ids, temperature: float,
             generator: torch.Generator | None, micro_batch_tokens: int,
             environment=None) -> Rollout:
    """As in rollout.py, by a copy of the model as it is now, prepared for decoding. Each process
    samples its block of the prompts; all have all answers.

    The noise of a row is what it is in one process, and so is its number, by which the environment
    knows it. Each process asks for its own rows."""
    n = len(prompts)
    first = my_block(range(n))[0]
    # A caller that samples several batches gives a Decoder that it made once.
    sampler = model if isinstance(model, Decoder) else prepare_for_decoding(model)

    def ask(row, ids):
        return environment(first + row, ids)
    noise = torch.rand(n, max_new_tokens, generator=generator)
    rollout = rollout_module.generate(sampler, my_block(prompts), max_new_tokens, stop_ids,
                                      temperature, None, environment and ask,
                                      noise=my_block(noise),
                                      micro_batch_tokens=micro_batch_tokens)
    if world() == 1:
        return rollout
    T = torch.tensor(rollout.tokens.shape[1], device=rollout.tokens.device)
    dist.all_reduce(T, dist.ReduceOp.MAX)
    gathered = {}
    for name, x in vars(rollout).items():
        if x.dim() == 2:
            x = F.pad(x, (0, int(T) - x.shape[1]))
        gathered[name] = gather(x, n)
    return Rollout(**gathered)


@torch.no_grad()
def map_micro_batches(function, model, tokens: Tensor, mask: Tensor, max_tokens: int,
                      *more) -> Tensor:
    """function(model, tokens, mask, *more) of a whole batch, a micro-batch at a time, without
    gradient. Its results are (rows,) or (rows, T); -> (B,) or (B, T).

    Each process computes its block of the rows; all have the results of all."""
    n = len(mask)
    tokens, mask = my_block(tokens), my_block(mask)
    whole = None
    for rows, T in micro_batches(mask, max_tokens):
        part = function(model, tokens[rows, :T], mask[rows, :T], *more)
        if whole is None:
            whole = part.new_zeros(mask.shape[:part.dim()])
        places = rows if part.dim() == 1 else (rows, slice(0, T))
        whole[places] = part
    return gather(whole, n)


def my_block(rows):
    """This process's block of consecutive rows, of a list or a tensor.

    Where there are fewer rows than processes, each process has all of them."""
    n = len(rows)
    if n < world():
        return rows
    return rows[n * rank() // world():n * (rank() + 1) // world()]


def gather(x: Tensor, n: int) -> Tensor:
    """The blocks (b, ...) of all processes as one tensor (n, ...), on all of them."""
    if world() == 1 or n < world():
        return x
    whole = x.new_zeros(n, *x.shape[1:])
    my_block(whole).copy_(x)
    dist.all_reduce(whole)
    return whole


def gather_objects(x) -> list:
    """x of every process, by rank, on all of them."""
    parts = [None] * world()
    dist.all_gather_object(parts, x)
    return parts


def gather_dict(x: dict) -> dict:
    """The entries that the processes have, on all of them."""
    if world() == 1:
        return x
    return {key: value for part in gather_objects(x) for key, value in part.items()}


# ------------------------------------------------------------------------------- gradients: sum

def my_rows(rows: Tensor) -> Tensor:
    """This process's share of the rows of a mini-batch. It may be empty."""
    return rows[rank()::world()]


def sum_gradients(model: nn.Module) -> None:
    """Add up the processes' gradients, as one tensor. Each has the part of its rows, or none."""
    if world() == 1:
        return
    parameters = list(model.parameters())
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    bucket = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(bucket)
    for p, gradient in zip(parameters, bucket.split([p.numel() for p in parameters])):
        p.grad = gradient.view_as(p)


def all_reduce_sum(x):
    """The sum over all processes of a number, or of each number in a dict.

    An entry of a dict may be missing in some processes: it counts as 0."""
    if world() == 1:
        return x
    parts = gather_objects(x)
    if not isinstance(x, dict):
        return sum(parts)
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


# ------------------------------------------------------------------------------- the processes

def on_rank_0(function):
    """Decorator for what writes files, costs, or is random: only the first process calls the
    function, and all get its result."""
    @functools.wraps(function)
    def call(*arguments, **named):
        result = [function(*arguments, **named) if rank() == 0 else None]
        if world() > 1:
            dist.broadcast_object_list(result)
        return result[0]
    return call


def join_processes():
    """Under torchrun, find the other processes. -> what `is_first_to_end` takes; else None."""
    if not dist.is_torchelastic_launched():
        return None
    store, this, n = next(dist.rendezvous("env://"))
    # NCCL for tensors on a GPU, gloo for all else. Both are named: torch would have the GPU's
    # alone, and send objects through the GPU, before a process has chosen its own.
    on_gpu = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    # While the first process writes a checkpoint or asks for rewards, the others wait.
    dist.init_process_group(backend, store=store, rank=this, world_size=n,
                            timeout=timedelta(hours=12))
    # torchrun sends it to the others when one has ended, before they could say so.
    signal.signal(signal.SIGTERM, lambda *_: None)
    return store


def is_first_to_end(store) -> bool:
    """Whether no other process has failed before. The first one says why, and it alone."""
    return store is None or store.add("ended", 1) == 1


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether torch.distributed raised it, as it does when another process has ended."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return raised_in.is_relative_to(Path(dist.__file__).parent)


def leave_processes(store) -> None:
    if store is not None:
        dist.destroy_process_group()
