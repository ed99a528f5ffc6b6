"""Check the functions of exercises.py, and say in words what is wrong with them.

    python exercises/check.py [FILE]

A wrong result is compared with what common mistakes would give.
"""
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch

import advantages
import losses
import rollout
from model import ModelConfig, Transformer
from support.cli import quiet_pipe
from support.rewards import import_file

EXERCISES = Path(__file__).parent / "exercises.py"


def same(found, expected) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def compare(name: str, found, expected, mistakes: dict) -> str:
    """"" if `found` is right, else what is wrong. mistakes: what it means to have found this."""
    if not isinstance(found, torch.Tensor):
        return f"{name} is a {type(found).__name__}, expected a tensor"
    found = found.detach().to(expected.dtype)
    if found.shape != expected.shape:
        return f"{name} has shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    if same(found, expected):
        return ""
    for message, wrong in mistakes.items():
        if same(found, wrong):
            return message
    if not found.isfinite().all():
        return f"{name} holds {found[~found.isfinite()][0]}, expected finite numbers"
    if found.dim() == 0:
        return f"{name} is {found:.4f}, expected {expected:.4f}"
    place = (found - expected).abs().argmax()
    index = [int(i) for i in torch.unravel_index(place, found.shape)]
    return (f"{name}{index} is {found.flatten()[place]:.4f}, "
            f"expected {expected.flatten()[place]:.4f}")


def first(*messages: str) -> str:
    return next((message for message in messages if message), "")


def make_batch():
    """Prompts and answers of different lengths, a hole in row 1; inputs are 0 off the mask."""
    generator = torch.Generator().manual_seed(0)
    start, end = torch.tensor([2, 1, 3, 4]), torch.tensor([9, 8, 6, 7])
    column = torch.arange(9)
    mask = (column >= start[:, None]) & (column < end[:, None])
    mask[1, 3:5] = False
    return mask, lambda scale=1.0: scale * torch.randn(mask.shape, generator=generator) * mask


# -------------------------------------------------------------------------------------- the checks

def check_token_log_probs(token_log_probs) -> str:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(13, 16, 1, 2, 1, 16))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    mask, _ = make_batch()
    tokens = torch.randint(13, mask.shape)
    found = token_log_probs(model, tokens, mask)
    expected = rollout.token_log_probs(model, tokens, mask).detach()

    logits = model(tokens).detach()
    logp = logits.log_softmax(-1)

    def pick(x, ids):
        return x.gather(-1, ids[..., None]).squeeze(-1)

    def shift(x):
        return torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)
    next_tokens = tokens.roll(-1, 1)
    all_logp = shift(pick(logp, next_tokens))
    message = compare("your result", found, expected, {
        "your log-probs are of logits[:, t] for token t: those logits have seen token t already. "
        "Logits at t - 1 score token t": pick(logp, tokens) * mask,
        "your log-probs stand one column too early: that of token t belongs into column t":
            pick(logp, next_tokens) * mask,
        "your result is not 0 off the mask: multiply by it": all_logp,
        "these are logits: log_softmax over the vocabulary is missing":
            shift(pick(logits, next_tokens)) * mask,
        "these are probabilities: their log is missing": all_logp.exp() * mask})
    if not message and not found.requires_grad:
        return "right numbers, but no gradient reaches the model: leave out detach and no_grad"
    return message


def check_gae(gae) -> str:
    mask, noise = make_batch()
    rewards, values = noise(), noise()

    def right(gamma=0.9, lam=0.8, mask=mask):
        return advantages.gae(rewards, values, mask, gamma, lam)
    expected, expected_returns = right()
    found = gae(rewards, values, mask, 0.9, 0.8)
    if not isinstance(found, tuple) or len(found) != 2:
        return "expected two tensors: advantages, returns"
    A, returns = found
    everywhere = right(mask=torch.ones_like(mask))[0] * mask
    forwards = torch.zeros_like(values)
    delta = right(lam=0.0)[0]
    running = torch.zeros(len(values))
    for t in range(values.shape[1]):
        running = torch.where(mask[:, t], delta[:, t] + 0.9 * 0.8 * running, running)
        forwards[:, t] = running * mask[:, t]
    message = compare("A", A, expected, {
        "λ has no effect: A is that of λ = 1, the return minus V(s_t)": right(lam=1.0)[0],
        "your A is δ alone, as with λ = 0: A_{t+1} is missing": delta,
        "γ has no effect: A is that of γ = 1": right(gamma=1.0)[0],
        "a hole stops the sum, or counts as a step: where the mask is False, keep A_{t+1} and "
        "V(s_{t+1}) as they are": everywhere,
        "you sum forwards in time: A_t needs A_{t+1}, so begin with the last token": forwards,
        "your A is whitened: that comes later, and the returns need the raw one":
            advantages.whiten(expected, mask)})
    has_shape = isinstance(A, torch.Tensor) and A.shape == mask.shape
    if message and has_shape and same(A.detach().to(expected.dtype) * mask, expected):
        return "your A is not 0 off the mask: the prompt, padding and holes are no actions"
    return first(
        message,
        compare("returns", returns, expected_returns, {
            "your returns are sums of rewards: the critic's target is A + V":
                advantages.discounted_returns(rewards, mask, 0.9),
            "your returns are A - V: since A estimates the return minus V, add V":
                expected - values}))


def check_grpo_advantages(grpo_advantages) -> str:
    rewards = torch.tensor([1., 0, 0, 1, 0, 0, 0, 1, 2, 4, 3, 3, 1, 1, 1, 1])
    expected = advantages.grpo_advantages(rewards, 4)
    found = grpo_advantages(rewards.clone(), 4)
    groups = rewards.view(4, 4)
    centred = groups - groups.mean(1, keepdim=True)
    biased = groups.std(1, keepdim=True, correction=0)
    message = compare("A", found, expected, {
        "you don't divide by the standard deviation (that is Dr. GRPO)": centred.flatten(),
        "your standard deviation divides by the group's size: the unbiased one divides by one less":
            (centred / (biased + 1e-4)).flatten(),
        "your groups are every fourth answer, but those of a group are consecutive":
            advantages.grpo_advantages(rewards.view(4, 4).T.flatten(), 4).view(4, 4).T.flatten()})
    is_known = not message.startswith("A")
    if is_known or not isinstance(found, torch.Tensor) or found.shape != rewards.shape:
        return message
    if found.isnan().any():
        return "A is nan where all rewards of a group are equal: add 1e-4 to the standard deviation"
    for group, total in enumerate(found.view(4, 4).sum(1).tolist()):
        if abs(total) > 1e-3:
            return (f"your A sums to {total:.1f} in group {group}; it must be 0: "
                    "subtract the mean of the group")
    return message


def check_clipped_loss(clipped_loss) -> str:
    mask, noise = make_batch()
    old_logp, A = -noise().abs(), noise()
    logp = (old_logp + noise(0.4)).requires_grad_()
    expected, _ = losses.ppo_policy_loss(logp, old_logp, A, mask, 0.2, 0.2)
    found = clipped_loss(logp, old_logp, A, mask, 0.2)
    ratio = (logp - old_logp).exp().detach()
    clipped = ratio.clamp(0.8, 1.2)

    def mean(x):
        return (x * mask).sum() / mask.sum()
    objective = torch.minimum(ratio * A, clipped * A)
    message = compare("your loss", found, expected.detach(), {
        "the sign is wrong: a loss is minimised, so it is minus the objective": mean(objective),
        "nothing is clipped: this is -ρ A": mean(-ratio * A),
        "you always take the clipped ratio: without the min, a token that moved the wrong way has "
        "no gradient to come back": mean(-clipped * A),
        "you take the larger objective (or the smaller loss): the clip must be pessimistic":
            mean(torch.minimum(-ratio * A, -clipped * A)),
        "you average over all columns: divide by the number of actions, mask.sum()":
            (-objective * mask).mean(),
        "you average over each answer first: expected one mean over all actions of the batch":
            ((-objective * mask).sum(1) / mask.sum(1)).mean(),
        "this is -A log π: the ratio is missing": mean(-A * logp.detach())})
    if not message:
        [gradient] = torch.autograd.grad(found, logp, allow_unused=True)
        if gradient is None or not same(gradient, torch.autograd.grad(expected, logp)[0]):
            return "right value, wrong gradient: don't detach the ratio"
    return message


def check_kl_k3(kl_k3) -> str:
    _, noise = make_batch()
    logp, ref_logp = -noise().abs(), -noise().abs()
    x = logp - ref_logp
    message = compare("k3", kl_k3(logp, ref_logp), losses.kl_k3(logp, ref_logp), {
        "x is the wrong way round: it is π_ref / π, because the samples are of π": x.exp() - 1 - x,
        "this is k1, log π - log π_ref": x,
        "this is k2, half the square of the log-ratio": 0.5 * x.square(),
        "the sign is wrong: k3 is never negative": -losses.kl_k3(logp, ref_logp),
        "the 1 is missing: where π = π_ref, k3 is 0": (-x).exp() + x})
    if not message:
        logp.requires_grad_()
        if not kl_k3(logp, ref_logp).requires_grad:
            return "right numbers, but no gradient reaches logp: leave out detach and no_grad"
    return message


def check_dpo_loss(dpo_loss) -> str:
    generator = torch.Generator().manual_seed(0)
    logp = -10 * torch.rand(4, 6, generator=generator)
    chosen, rejected, ref_chosen, ref_rejected = logp
    expected, _ = losses.dpo_loss(*logp, beta=0.3)
    h = (chosen - ref_chosen) - (rejected - ref_rejected)

    def loss_of(h):
        return -torch.nn.functional.logsigmoid(h).mean()
    message = compare("your loss", dpo_loss(*logp, 0.3), expected, {
        "the reference has no effect: compare with its log-probs":
            loss_of(0.3 * (chosen - rejected)),
        "chosen and rejected are exchanged": loss_of(-0.3 * h),
        "β has no effect": loss_of(h),
        "β belongs inside of σ": 0.3 * loss_of(h),
        "the sign is wrong: a loss is minimised": -loss_of(0.3 * h),
        "you sum over pairs: expected the mean": 6 * loss_of(0.3 * h),
        "the log is missing: this is -σ": -torch.sigmoid(0.3 * h).mean(),
        "the reference's part is added: it is subtracted from the policy's":
            loss_of(0.3 * ((chosen + ref_chosen) - (rejected + ref_rejected)))})
    if not message:
        far = dpo_loss(*torch.tensor([[-900.], [0.], [0.], [0.]]), 1.0)
        if not torch.isfinite(far):
            return f"at a margin of -900 your loss is {far.item()}, expected 900: use logsigmoid"
    return message


CHECKS = {"token_log_probs": check_token_log_probs, "gae": check_gae,
          "grpo_advantages": check_grpo_advantages, "clipped_loss": check_clipped_loss,
          "kl_k3": check_kl_k3, "dpo_loss": check_dpo_loss}


def check(name: str, function) -> str:
    """"" if the function is right, else what is wrong with it."""
    try:
        return CHECKS[name](function)
    except NotImplementedError:
        return "not written yet"
    except Exception as error:
        return tell(error, lambda frame: frame.name == function.__name__)


def tell(error: BaseException, is_own) -> str:
    """An error in one line, with the number of the reader's line where it came up."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if is_own(frame)]
    where = f", line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}{where}: {error}"


def main(argv) -> int:
    file = Path(argv[0]) if argv else EXERCISES
    if not file.is_file():
        print(f"{file}: no such file, expected one with the functions of {EXERCISES.name}",
              file=sys.stderr)
        return 2
    try:
        answers = import_file(str(file))
    except (Exception, SystemExit) as error:
        print(f"{file}: {tell(error, lambda frame: frame.filename == str(file))}", file=sys.stderr)
        return 2
    n_right = 0
    for name in CHECKS:
        function = getattr(answers, name, None)
        message = check(name, function) if function else "not in this file"
        n_right += not message
        print(f"{name:<18}{message or 'right'}")
    return 0 if n_right == len(CHECKS) else 1


if __name__ == "__main__":
    with quiet_pipe():
        sys.exit(main(sys.argv[1:]))
