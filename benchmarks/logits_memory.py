"""What log-probs add to peak memory: `token_log_probs_and_entropies` and its backward, against full
float32 logits, on one model.

    python benchmarks/logits_memory.py MODEL_DIR     16 x 256 tokens, on the CPU of a Linux machine

Each number is the peak of the resident memory above the loaded model, of a process of its own.
`layers`: forward and backward of the layers, without a head, with full logits, and in chunks
(`checkpoint`: with --grad-checkpoint too). `states`: without layers, which is what the head takes,
its weight's gradient included.
"""
import subprocess
import sys
import time
from pathlib import Path

from bench import load_model

import torch

import rollout
from losses import entropy
from support.cli import UserError, script

ROWS, LENGTH = 16, 256


class Head(torch.nn.Module):
    """A model without layers: its hidden states are given."""

    def __init__(self, model, states):
        super().__init__()
        self.lm_head, self.config, self.states = model.lm_head, model.config, states

    def hidden(self, tokens):
        return self.states[:, :tokens.shape[1]]


def full_logits(model, tokens):
    logits = model.lm_head(model.hidden(tokens[:, :-1])).float()
    logp = torch.log_softmax(logits, -1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    with torch.no_grad():
        entropy(logits)
    return logp


def memory(name: str) -> int:
    """VmRSS, now, or VmHWM, the most since it was reset; in kB."""
    return next(int(line.split()[1])
                for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith(name))


def peak(path: str, what: str, head: str) -> None:
    """Print MB and seconds."""
    torch.manual_seed(0)
    model, _ = load_model(path)
    if model.config.max_seq_len < LENGTH:
        raise UserError(f"{path}: has a context of {model.config.max_seq_len} tokens, expected at "
                        f"least {LENGTH}")
    tokens = torch.randint(0, model.config.vocab_size, (ROWS, LENGTH))
    mask = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    mask[:, 0] = False
    if what == "states":
        model = Head(model, torch.randn(ROWS, LENGTH, model.config.dim, requires_grad=True))
    elif head == "checkpoint":
        model.grad_checkpoint = True
    # VmHWM begins anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    started = time.perf_counter()
    if head == "none":
        model.hidden(tokens[:, :-1]).sum().backward()
    elif head == "full":
        full_logits(model, tokens).sum().backward()
    else:
        rollout.token_log_probs_and_entropies(model, tokens, mask)[0].sum().backward()
    seconds = time.perf_counter() - started
    print((memory("VmHWM") - before) / 1024, seconds)


def main() -> None:
    if len(sys.argv) == 4:
        # A process that another one started.
        return peak(*sys.argv[1:])
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    path = sys.argv[1]
    for what in ("layers", "states"):
        found = {}
        for head in ("none", "full", "chunks", "checkpoint")[:4 if what == "layers" else 3]:
            done = subprocess.run([sys.executable, __file__, path, what, head],
                                  stdout=subprocess.PIPE, text=True)
            if done.returncode:
                # It has said why.
                sys.exit(done.returncode)
            found[head], seconds = map(float, done.stdout.split())
            print(f"{what:7} {head:10} {found[head]:7.0f} MB {seconds:6.1f} s", flush=True)
        full, chunks = found["full"] - found["none"], found["chunks"] - found["none"]
        print(f"{what:7} chunks add {chunks:.0f} MB, full logits {full:.0f} MB: "
              f"{chunks / full:.2f}\n")


if __name__ == "__main__":
    script(main)
