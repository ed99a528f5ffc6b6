"""Tokens a second of `generate`, against `transformers`: the same weights, prompts and lengths, in
turns.

    python benchmarks/rollout_speed.py       the built-in size, 0.8 M parameters, float32
    python benchmarks/rollout_speed.py --model SmolLM2-135M --dtype bfloat16
                                       --rows 32 --new-tokens 64

equal: prompts of one length, and every answer as long as it may be. mixed: prompts of a quarter of
that length to all of it. ends: answers that end by themselves, as in training; one token id in 16
stops.
"""
import tempfile
from dataclasses import dataclass
from statistics import median

from bench import (BenchConfig, decode_limit, interleaved, limits, load_model, product_dtype,
                   report)

import numpy as np
import torch

from model import ModelConfig, Transformer
from rollout import generate
from support.cli import parse, script, setting
from support.decoding import Decoder
from support.models import pick_device
from support.pretrained import save_pretrained
from support.tokenizer import builtin_tokenizer
from train_sft import SMALL


@dataclass(kw_only=True)
class Config(BenchConfig):
    model: str = setting(
        "", "a Hugging Face directory; the built-in size with random weights if not given")
    rows: int = setting(256, "prompts at once", low=1)
    prompt_tokens: int = setting(10, "of the longest prompt", low=4)
    new_tokens: int = setting(32, "tokens of an answer, at most", low=2)
    repeats: int = setting(5, "timed turns; the median counts", low=1)


def builtin_size():
    """A model of the built-in task's size with random weights, and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = builtin_tokenizer()
    return Transformer(ModelConfig(tokenizer.vocab_size, **SMALL)), tokenizer


def as_transformers(model, tokenizer, dtype, device):
    """The same weights as a model of transformers, which runs in the dtype of its weights."""
    from transformers import AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, tokenizer, folder)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()


def main() -> None:
    config = parse(Config, __doc__)
    # Switches autocast on for bfloat16.
    device = pick_device(config)
    dtype = product_dtype(device)
    model, tokenizer = load_model(config.model) if config.model else builtin_size()
    peer = as_transformers(model, tokenizer, dtype, device)
    model = model.to(device)
    rate, bandwidth = limits(device, dtype)
    print(f"matrix products {rate / 1e9:,.0f} G operations/s, copies {bandwidth / 1e9:.0f} GB/s\n")
    rng = np.random.default_rng(0)
    rows = []
    for case in ("equal", "mixed", "ends"):
        longest = config.prompt_tokens
        prompt_lengths = ([longest] * config.rows if case == "equal"
                          else rng.integers(longest // 4, longest + 1, config.rows).tolist())
        prompts = [rng.integers(0, 256, length).tolist() for length in prompt_lengths]
        width = max(prompt_lengths)
        # Padded on the left, as transformers wants it.
        padded = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
        seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        stop = list(range(0, model.config.vocab_size, 16)) if case == "ends" else []
        lengths = {}

        def ours():
            rollout = generate(Decoder(model), prompts, config.new_tokens, stop, 1.0,
                               torch.Generator().manual_seed(0))
            lengths["this"] = rollout.mask.sum(1).tolist()

        def theirs():
            torch.manual_seed(0)
            with torch.autocast(device.type, enabled=False):
                out = peer.generate(
                    input_ids=padded, attention_mask=seen,
                    do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                    max_new_tokens=config.new_tokens, eos_token_id=stop or None,
                    pad_token_id=0)[:, width:]
            ended = torch.isin(out, torch.tensor(stop or [-1], device=device)).int()
            # The first stop counts.
            lengths["transformers"] = ((ended.cumsum(1) - ended) == 0).sum(1).tolist()

        seconds = interleaved({"this": ours, "transformers": theirs}, device, config.repeats)
        speed = {name: sum(lengths[name]) / median(seconds[name]) for name in seconds}
        limit = sum(lengths["this"]) / decode_limit(
            model, prompt_lengths, lengths["this"], dtype.itemsize, rate, bandwidth)
        rows.append({"prompts, answers": case,
                     "this (tokens/s)": speed["this"],
                     "transformers (tokens/s)": speed["transformers"],
                     "ratio": speed["this"] / speed["transformers"],
                     "limit (tokens/s)": limit,
                     "of the limit": speed["this"] / limit})
    report("rollout", rows, device, config.out)


if __name__ == "__main__":
    script(main)
