"""Device, precision and randomness; copies of a model that don't learn."""
import copy
import resource
import sys
import zlib

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from support import graphs
from support.cli import UserError, first_line
from support.parallel import world


def pick_device(config) -> torch.device:
    """The device of --device; switches autocast on for all that follows if --dtype is bfloat16.

    Parameters stay float32: bfloat16 keeps 8 bits, so an Adam update of less than 1/512 of its
    weight would vanish in rounding."""
    name = config.device
    if not name and torch.cuda.is_available():
        name = "cuda"
    elif not name and torch.backends.mps.is_available() and world() == 1:
        name = "mps"
    try:
        if name == "cuda" and world() > 1:
            name = f"cuda:{dist.get_node_local_rank()}"
        device = torch.device(name or "cpu")
        torch.empty(0, device=device)
        if device.type == "cuda" and device.index is not None:
            # What makes no tensor, such as a stream, asks for the current device.
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        # It is not the name of a device, torch was built without it, or the driver is too old.
        raise UserError(f"--device {name}: not available here, expected cuda, mps or cpu "
                        f"(torch: {first_line(error)})") from None
    dtype = config.dtype or ("bfloat16" if has_bfloat16(device) else "float32")
    # NVIDIA's containers switch TF32 on by an environment variable.
    torch.set_float32_matmul_precision("highest")
    torch.set_autocast_enabled(device.type, dtype == "bfloat16")
    torch.set_autocast_dtype(device.type, torch.bfloat16)
    wants_graphs = getattr(config, "decode_graph", False)
    if wants_graphs and device.type != "cuda":
        raise UserError(f"--decode-graph: found --device {device.type}, expected cuda")
    graphs.use_graphs = wants_graphs
    # cuDNN's attention makes a plan for each new shape, tens of milliseconds on an H100 as others
    # report. In sampling every token has a new shape: one column more.
    torch.backends.cuda.enable_cudnn_sdp(False)
    # A cached copy of a weight would outlive its update.
    torch.set_autocast_cache_enabled(False)
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether it computes in bfloat16. GPUs before Ampere, such as T4 and V100, only emulate it,
    slower than float32, and torch has no fused attention for them in it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu"


def peak_memory_mb(device: torch.device) -> float:
    """The most memory that this process ever held: on a CUDA device its tensors, else all that is
    resident (on a Mac, MPS included)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    unit = 2 ** 20 if sys.platform == "darwin" else 2 ** 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def numpy_rng(seed: int, step: int, purpose: str) -> np.random.Generator:
    """All randomness comes from (seed, step), so that a run can be continued from any step."""
    return np.random.default_rng((seed, step, zlib.crc32(purpose.encode())))


def torch_rng(seed: int, step: int, purpose: str) -> torch.Generator:
    """The same for torch, on the CPU."""
    return torch.Generator().manual_seed(int(numpy_rng(seed, step, purpose).integers(2 ** 63)))


def copy_for_inference(model: nn.Module) -> nn.Module:
    """Under bfloat16 autocast, the model with its matrices in bfloat16; else the model itself.

    Autocast rounds float32 matrices anew in every product, so that each decoded token would read
    them all in float32. The copy computes the same, bit for bit: what autocast leaves in float32
    (embeddings, norms, the scalar head) is shared with the model."""
    device = next(model.parameters()).device.type
    if not torch.is_autocast_enabled(device):
        return model
    dtype = torch.get_autocast_dtype(device)

    def rounded(module: nn.Module, name: str = "") -> nn.Module:
        twin = copy.copy(module)
        twin._modules = {child_name: rounded(child, child_name)
                         for child_name, child in module._modules.items()}
        if isinstance(module, nn.Linear) and name != "score":
            twin._parameters = {}
            for parameter_name, p in module._parameters.items():
                if p is not None:
                    p = nn.Parameter(p.detach().to(dtype), requires_grad=False)
                twin._parameters[parameter_name] = p
        return twin
    return rounded(model)


class Reference:
    """The model that KL is measured to: a copy of the policy, frozen as it was at the start.

    With ref_ema it follows the policy, ref = ema * ref + (1 - ema) * policy after every step; with
    ref_sync it becomes a copy of the policy every so many steps."""

    def __init__(self, policy: nn.Module, config):
        self.ema = config.ref_ema
        self.sync_every = config.ref_sync
        self.is_moving = bool(self.ema or self.sync_every)
        # A reference that moves is in float32: bfloat16 would swallow its small steps.
        model = policy if self.is_moving else copy_for_inference(policy)
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, policy: nn.Module, step: int) -> None:
        """Move, if it is time to after this step, which counts from 0."""
        if self.ema or self.sync_every and (step + 1) % self.sync_every == 0:
            for p_ref, p in zip(self.model.parameters(), policy.parameters()):
                p_ref.lerp_(p, 1 - self.ema)                            # a copy, where ema is 0

    def state_dict(self) -> dict:
        """What a checkpoint needs: nothing, where the start model says it all."""
        return self.model.state_dict() if self.is_moving else {}

    def load_state_dict(self, state: dict) -> None:
        if self.is_moving:
            self.model.load_state_dict(state)
