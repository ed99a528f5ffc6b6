"""Where a decode step's time goes: torch's profiler over `generate` of 256 x 32 tokens with a model
of the built-in size.

    python benchmarks/decode_profile.py

The profiler slows every operation a little: shares and calls count here, not seconds. On two CPU
cores 25 % are matrix products, 24 % attention over the cache, 13 % copies, and 39 % norms,
rotations and activations, each of them small.
"""
from dataclasses import dataclass

from bench import BenchConfig, report

import torch
from torch.profiler import ProfilerActivity, profile

from rollout import generate
from rollout_speed import builtin_size
from support.cli import parse, script, setting
from support.decoding import Decoder
from support.models import pick_device

KINDS = {"matrix products": ("mm", "addmm", "mkldnn::_linear_pointwise"),
         "attention over the cache": (
             "_scaled_dot_product_flash_attention_for_cpu", "_efficient_attention_forward",
             "_flash_attention_forward", "bmm"),
         "copies (the cache's columns and rows)": (
             "copy_", "index", "index_select", "_index_put_impl_", "cat", "roll", "fill_")}


@dataclass(kw_only=True)
class Config(BenchConfig):
    rows: int = setting(256, "prompts at once", low=1)
    new_tokens: int = setting(32, "tokens of an answer", low=2)


def main() -> None:
    config = parse(Config, __doc__)
    device = pick_device(config)
    model = builtin_size()[0].to(device)
    prompts = torch.randint(0, 256, (config.rows, 10)).tolist()
    go = lambda: generate(Decoder(model), prompts, config.new_tokens, [], 1.0,
                          torch.Generator().manual_seed(0))
    go()
    with profile(activities=[
            ProfilerActivity.CPU,
            *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]) as profiler:
        go()
    totals = {}
    for event in profiler.key_averages():
        if event.device_type != torch.autograd.DeviceType.CPU:
            # A kernel: its time is that of the operation that launched it.
            continue
        operation = event.key.removeprefix("aten::")
        kind = next((kind for kind, names in KINDS.items() if operation in names),
                    "all else: norms, rotations, activations, views")
        time = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        seconds, calls = totals.get(kind, (0.0, 0))
        totals[kind] = (seconds + time / 1e6, calls + event.count)
    whole = sum(seconds for seconds, _ in totals.values())
    report("decode",
           [{"": kind,
             "share": seconds / whole,
             "calls a token": round(calls / config.new_tokens)}
            for kind, (seconds, calls) in sorted(totals.items(), key=lambda item: -item[1][0])],
           device, config.out)


if __name__ == "__main__":
    script(main)
