"""advantages.py and losses.py against numbers that verl's and TRL's own functions gave, values and
gradients.

peers.json holds 126 recorded calls: inputs, outputs, and the expression that gets the same number
from our functions. Off the mask the inputs are arbitrary on purpose: ours must be 0 there.
Differences in convention are part of the expressions, for example verl's `seq-mean-token-sum-norm`
divides by T only, our `seq-sum` by B * T.
"""
import itertools
import json
from pathlib import Path

import pytest
import torch

import advantages
import losses

DATA = json.loads((Path(__file__).parent / "peers.json").read_text())
DTYPE = {
    "float32": torch.float32, "float64": torch.float64, "int64": torch.int64, "bool": torch.bool}


def tensor(entry):
    if not isinstance(entry, dict):
        return torch.tensor(entry, dtype=torch.float64)
    x = torch.tensor(entry["data"], dtype=DTYPE[entry["dtype"]]).reshape(entry["shape"])
    return x.double() if x.is_floating_point() else x


@pytest.mark.parametrize("case", DATA["cases"], ids=lambda case: case["id"])
def test_peer(case):
    inputs = {name: tensor(DATA["pool"][key]) for name, key in case["inputs"].items()}
    before = {name: x.clone() for name, x in inputs.items()}
    recorded = {name: tensor(value) for name, value in case["outputs"].items()}
    gradients = {
        name: name.partition("_")[2]
        for name in recorded if name.startswith(("grad_", "vjp_"))}
    for name in gradients.values():
        inputs[name].requires_grad_()
    space = {
        **vars(advantages), **vars(losses), "torch": torch, "accumulate": itertools.accumulate,
        "recorded": recorded, **inputs}
    ours = {
        name: eval(expression, dict(space))
        for name, expression in case["ours"]["outputs"].items()}
    pairs = [(value, recorded[name]) for name, value in ours.items()]
    pairs += [
        (eval(mine, dict(space)), eval(theirs, dict(space)))
        for mine, theirs in case["ours"]["also"].values()]
    for name, argument in gradients.items():
        scalar = ours["loss"] if name.startswith("grad_") else (inputs["cot"] * ours["out"]).sum()
        pairs.append((
            torch.autograd.grad(scalar, inputs[argument], retain_graph=True)[0], recorded[name]))
    assert pairs
    mask = inputs[case["mask"]].bool() if case["mask"] else None
    for mine, theirs in pairs:
        mine = (
            torch.tensor(mine, dtype=torch.float64) if isinstance(mine, list)
            else torch.as_tensor(mine))
        tolerance = 5e-6 if case["single_precision"] or mine.dtype == torch.float32 else 1e-6
        if mask is not None and mine.shape == mask.shape:
            assert (mine[~mask] == 0).all()
            mine, theirs = mine[mask], theirs[mask]
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=tolerance, atol=tolerance)
    for name, x in inputs.items():
        assert torch.equal(x.detach(), before[name]), f"{name} was modified"


def test_trl_live():
    """The same functions of the TRL that is installed, if one is; the numbers above are those of
    TRL 1.16."""
    utils = pytest.importorskip("trl.trainer.utils")
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(4, 7, 50, dtype=torch.float64, generator=generator)).requires_grad_()
    tokens = torch.randint(0, 50, (4, 7), generator=generator)
    for ours, theirs in (
            (losses.gather_log_probs(logits, tokens), utils.selective_log_softmax(logits, tokens)),
            (losses.entropy(logits), utils.entropy_from_logits(logits))):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        *(torch.autograd.grad(function(logits, tokens).square().sum(), logits)[0]
          for function in (losses.gather_log_probs, utils.selective_log_softmax)),
        rtol=1e-9, atol=1e-9)
