"""Device, precision and randomness, and copies of models that are not trained."""
import copy
import resource
import sys
import zlib

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from support.cli import UserError
from support.parallel import world


def pick_device(config) -> torch.device:
    """The device of --device; switches autocast on for all that follows if --dtype is bfloat16.

    Parameters stay float32: bfloat16 keeps 8 bits, so an Adam update of less than 1/512 of its weight would vanish in rounding."""
    name = config.device or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() and world() == 1 else "cpu")
    try:
        if name == "cuda" and world() > 1:
            torch.cuda.set_device(name := f"cuda:{dist.get_node_local_rank()}")
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):                            # not the name of a device, or torch was built without it
        raise UserError(f"--device {name}: not available here, expected cuda, mps or cpu") from None
    torch.set_autocast_enabled(device.type, (config.dtype or ("float32" if device.type == "cpu" else "bfloat16")) == "bfloat16")
    torch.set_autocast_dtype(device.type, torch.bfloat16)
    torch.set_autocast_cache_enabled(False)                           # a cached copy of a weight would outlive its update
    return device


def peak_memory_mb(device: torch.device) -> float:
    """The most memory that this process ever held: on a CUDA device its tensors, else all that is resident (on a Mac, MPS included)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == "darwin" else 2 ** 10)


def numpy_rng(seed: int, step: int, purpose: str) -> np.random.Generator:
    """All randomness comes from (seed, step), so that a run can be continued from any step."""
    return np.random.default_rng((seed, step, zlib.crc32(purpose.encode())))


def torch_rng(seed: int, step: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(int(numpy_rng(seed, step, purpose).integers(2 ** 63)))


def autocast_copy(model: nn.Module) -> nn.Module:
    """Under bfloat16 autocast, the model with its matrices in bfloat16; without autocast, the model itself. Not for training.

    Autocast rounds float32 matrices anew in every product, so that each decoded token would read them all in float32. The copy
    computes the same, bit for bit: what autocast leaves in float32 (embeddings, norms, the scalar head) is shared with the model."""
    device = next(model.parameters()).device.type
    if not torch.is_autocast_enabled(device):
        return model

    def rounded(module, name=""):
        twin = copy.copy(module)
        twin._modules = {name: rounded(child, name) for name, child in module._modules.items()}
        if isinstance(module, nn.Linear) and name != "score":
            twin._parameters = {name: p if p is None else nn.Parameter(p.detach().to(torch.get_autocast_dtype(device)), requires_grad=False)
                                for name, p in module._parameters.items()}
        return twin
    return rounded(model)
