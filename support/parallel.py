"""Several processes of one run, as torchrun starts them. Each has the whole batch, and computes a share of its rows."""
import functools

import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The processes of this run. Each has the whole batch, and computes a share of its rows."""
    return dist.get_world_size() if dist.is_initialized() else 1


def summed(x):
    """The sum over all processes of a tensor (in place), a number, or each number in a dict, whose entries a process may lack."""
    if world() > 1 and isinstance(x, Tensor):
        dist.all_reduce(x)
    elif world() > 1:
        dist.all_gather_object(parts := [None] * world(), x)
        x = {name: sum(part.get(name, 0.0) for part in parts) for name in parts[0]} if isinstance(x, dict) else sum(parts)
    return x


def on_rank_0(function):
    """Decorator for what writes files, costs, or is random: only the first process calls the function, all get its result."""
    @functools.wraps(function)
    def call(*arguments, **named):
        result = [function(*arguments, **named) if rank() == 0 else None]
        if world() > 1:
            dist.broadcast_object_list(result)
        return result[0]
    return call
