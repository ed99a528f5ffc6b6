"""exercises/: the project's own functions are right, blanks are not, and common mistakes are told
apart in words."""
import re
import runpy
from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid

import advantages
import losses
import rollout

ROOT = Path(__file__).parent.parent
FILE = ROOT / "exercises" / "check.py"
CHECK = runpy.run_path(str(FILE))
CHECKS = CHECK["CHECKS"]

RIGHT = {
    "token_log_probs": rollout.token_log_probs,
    "gae": advantages.gae,
    "grpo_advantages": advantages.grpo_advantages,
    "clipped_loss": lambda logp, old_logp, A, mask, epsilon:
        losses.ppo_policy_loss(logp, old_logp, A, mask, epsilon, epsilon)[0],
    "kl_k3": losses.kl_k3,
    "dpo_loss": lambda *logp_and_beta: losses.dpo_loss(*logp_and_beta)[0]}


@pytest.mark.parametrize("name", CHECKS)
def test_the_project_s_functions_are_right(name):
    assert CHECK["check"](name, RIGHT[name]) == ""


def test_blanks_fail_and_solutions_pass(tmp_path, capsys, monkeypatch):
    assert CHECK["main"]([]) == 1
    assert capsys.readouterr().out.count("not written yet") == len(CHECKS)
    (tmp_path / "mine.py").write_text(
        "import advantages, losses\n"
        "from advantages import gae, grpo_advantages\n"
        "from losses import kl_k3\n"
        "from rollout import token_log_probs\n"
        "def clipped_loss(logp, old_logp, A, mask, epsilon):\n"
        "    return losses.ppo_policy_loss(logp, old_logp, A, mask, epsilon, epsilon)[0]\n"
        "def dpo_loss(*given):\n"
        "    return losses.dpo_loss(*given)[0]\n")
    assert CHECK["main"]([str(tmp_path / "mine.py")]) == 0
    assert capsys.readouterr().out.count("right\n") == len(CHECKS)


def test_a_file_that_lacks_something_is_one_line(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("")
    assert CHECK["main"]([str(tmp_path / "mine.py")]) == 1
    assert capsys.readouterr().out.count("not in this file") == len(CHECKS)
    assert CHECK["main"]([str(tmp_path / "none.py")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "none.py" in err and err.count("\n") == 1


@pytest.mark.parametrize("text, error", [
    ("import torch\ndef gae(:\n", "SyntaxError: invalid syntax ({name}, line 2)"),
    ("import torch\nimport nothing_of_this_name\n",
     "ModuleNotFoundError, line 2: No module named 'nothing_of_this_name'"),
    ("raise SystemExit(7)\n", "SystemExit, line 1: 7")])
def test_a_file_that_does_not_run_is_one_line(tmp_path, capsys, text, error):
    file = tmp_path / "mine.py"
    file.write_text(text)
    assert CHECK["main"]([str(file)]) == 2
    assert capsys.readouterr() == ("", f"{file}: {error.format(name=file.name)}\n")


def test_a_file_may_have_any_name(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("from advantages import gae\n")
    assert CHECK["main"]([str(tmp_path / "mine.txt")]) == 1
    assert capsys.readouterr().out.count("right\n") == 1


@pytest.mark.parametrize("name", CHECKS)
def test_another_dtype_is_no_mistake(name):
    """Someone who computes in float64, or with NumPy, is right as well."""
    def in_float64(*given):
        found = RIGHT[name](*given)
        return tuple(x.double() for x in found) if isinstance(found, tuple) else found.double()
    assert CHECK["check"](name, in_float64) == ""


def test_the_blanks_are_the_checks():
    """And they take what the project's functions take."""
    blanks = runpy.run_path(str(ROOT / "exercises" / "exercises.py"))
    assert [name for name in blanks if name in CHECKS] == list(CHECKS)
    assert all(blanks[name].__doc__ for name in CHECKS)


# ---------------------------------------------------------------------------- what is often wrong

def scored(model, tokens, mask):
    """Log-probs of the vocabulary, at t of token t + 1."""
    return model(tokens).log_softmax(-1)


def no_shift(model, tokens, mask):
    return scored(model, tokens, mask).gather(-1, tokens[..., None]).squeeze(-1) * mask


def one_too_early(model, tokens, mask):
    next_tokens = tokens.roll(-1, 1)[..., None]
    return scored(model, tokens, mask).gather(-1, next_tokens).squeeze(-1) * mask


def unmasked(model, tokens, mask):
    found = scored(model, tokens, mask)[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return torch.cat((torch.zeros(len(tokens), 1), found), 1)


def raw_logits(model, tokens, mask):
    found = model(tokens)[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return torch.cat((torch.zeros(len(tokens), 1), found), 1) * mask


def gae_with_steps_in_holes(rewards, values, mask, gamma, lam):
    A, running, next_value = torch.zeros_like(values), 0, 0
    for t in reversed(range(values.shape[1])):
        running = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * running
        next_value = values[:, t]
        A[:, t] = running * mask[:, t]
    return A, (A + values) * mask


def gae_whitened(rewards, values, mask, gamma, lam):
    A, _ = advantages.gae(rewards, values, mask, gamma, lam)
    A = advantages.whiten(A, mask)
    return A, (A + values) * mask


def gae_forwards(rewards, values, mask, gamma, lam):
    delta, _ = advantages.gae(rewards, values, mask, gamma, 0.0)
    A, running = torch.zeros_like(values), torch.zeros(len(values))
    for t in range(values.shape[1]):
        running = torch.where(mask[:, t], delta[:, t] + gamma * lam * running, running)
        A[:, t] = running * mask[:, t]
    return A, (A + values) * mask


def gae_off_the_mask(rewards, values, mask, gamma, lam):
    A, returns = advantages.gae(rewards, values, mask, gamma, lam)
    return A + 0.5 * ~mask, returns


def gae_without_the_last_column(rewards, values, mask, gamma, lam):
    A, returns = advantages.gae(rewards, values, mask, gamma, lam)
    return A[:, :-1], returns[:, :-1]


def gae_in_float64_off_the_mask(rewards, values, mask, gamma, lam):
    return tuple(x.double() for x in gae_off_the_mask(rewards, values, mask, gamma, lam))


def gae_of_rewards(rewards, values, mask, gamma, lam):
    A, _ = advantages.gae(rewards, values, mask, gamma, lam)
    return A, advantages.discounted_returns(rewards, mask, gamma)


def groups(rewards, size):
    x = rewards.view(-1, size)
    return x, x.mean(1, keepdim=True), x.std(1, keepdim=True)


def not_centred(rewards, size):
    x, mean, std = groups(rewards, size)
    return (x / (std + 1e-4)).flatten()


def of_the_batch(rewards, size):
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)


def without_eps(rewards, size):
    x, mean, std = groups(rewards, size)
    return ((x - mean) / std).flatten()


def biased(rewards, size):
    x, mean, _ = groups(rewards, size)
    return ((x - mean) / (x.std(1, keepdim=True, correction=0) + 1e-4)).flatten()


def clip_parts(logp, old_logp, A, epsilon):
    ratio = (logp - old_logp).exp()
    return ratio * A, ratio.clamp(1 - epsilon, 1 + epsilon) * A


def mean_of(x, mask):
    return (x * mask).sum() / mask.sum()


def clip_wrong_sign(logp, old_logp, A, mask, epsilon):
    return mean_of(torch.minimum(*clip_parts(logp, old_logp, A, epsilon)), mask)


def clip_max(logp, old_logp, A, mask, epsilon):
    return mean_of(-torch.maximum(*clip_parts(logp, old_logp, A, epsilon)), mask)


def clip_always(logp, old_logp, A, mask, epsilon):
    return mean_of(-clip_parts(logp, old_logp, A, epsilon)[1], mask)


def clip_never(logp, old_logp, A, mask, epsilon):
    return mean_of(-clip_parts(logp, old_logp, A, epsilon)[0], mask)


def clip_all_columns(logp, old_logp, A, mask, epsilon):
    return (-torch.minimum(*clip_parts(logp, old_logp, A, epsilon)) * mask).mean()


def clip_detached(logp, old_logp, A, mask, epsilon):
    value = RIGHT["clipped_loss"](logp, old_logp, A, mask, epsilon).detach()
    return value + 0 * logp.sum()


def margin(chosen, rejected, ref_chosen, ref_rejected):
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def interleaved(rewards, size):
    x = rewards.view(size, -1).T.flatten()
    return advantages.grpo_advantages(x, size).view(-1, size).T.flatten()


def clip_by_answer(logp, old_logp, A, mask, epsilon):
    loss = -torch.minimum(*clip_parts(logp, old_logp, A, epsilon)) * mask
    return (loss.sum(1) / mask.sum(1)).mean()


def gae_minus_values(rewards, values, mask, gamma, lam):
    A, _ = advantages.gae(rewards, values, mask, gamma, lam)
    return A, A - values


def added(chosen, rejected, ref_chosen, ref_rejected, beta):
    return -logsigmoid(beta * (chosen + ref_chosen - rejected - ref_rejected)).mean()


def fails(logp, ref_logp):
    return logp @ ref_logp


MISTAKES = [
    ("token_log_probs", no_shift, "have seen token t already"),
    ("token_log_probs", one_too_early, "one column too early"),
    ("token_log_probs", unmasked, "not 0 off the mask"),
    ("token_log_probs", raw_logits, "log_softmax over the vocabulary is missing"),
    ("token_log_probs", lambda *x: RIGHT["token_log_probs"](*x).exp() * x[2], "log is missing"),
    ("token_log_probs", lambda *x: RIGHT["token_log_probs"](*x).detach(), "no gradient"),
    ("gae", lambda r, v, m, gamma, lam: RIGHT["gae"](r, v, m, gamma, 1.0), "λ has no effect"),
    ("gae", lambda r, v, m, gamma, lam: RIGHT["gae"](r, v, m, 1.0, lam), "γ has no effect"),
    ("gae", lambda r, v, m, gamma, lam: RIGHT["gae"](r, v, m, gamma, 0.0), "δ alone"),
    ("gae", gae_with_steps_in_holes, "a hole stops the sum, or counts as a step"),
    ("gae", gae_whitened, "whitened"),
    ("gae", gae_forwards, "forwards in time"),
    ("gae", gae_off_the_mask, "not 0 off the mask"),
    ("gae", gae_in_float64_off_the_mask, "A is not 0 off the mask"),
    ("gae", gae_without_the_last_column, "A has shape (4, 8), expected (4, 9)"),
    ("gae", gae_of_rewards, "the critic's target is A + V"),
    ("gae", lambda *x: RIGHT["gae"](*x)[0], "expected two tensors"),
    ("grpo_advantages", lambda r, n: RIGHT["grpo_advantages"](r, n, scale=False), "Dr. GRPO"),
    ("grpo_advantages", not_centred, "your A sums to 3.5 in group 0; it must be 0"),
    ("grpo_advantages", of_the_batch, "it must be 0"),
    ("grpo_advantages", without_eps, "nan where all rewards of a group are equal"),
    ("grpo_advantages", biased, "divides by the group's size"),
    ("grpo_advantages", lambda r, n: r.view(-1, n), "has shape (4, 4), expected (16,)"),
    ("clipped_loss", clip_wrong_sign, "the sign is wrong"),
    ("clipped_loss", clip_max, "must be pessimistic"),
    ("clipped_loss", clip_always, "no gradient to come back"),
    ("clipped_loss", clip_never, "nothing is clipped"),
    ("clipped_loss", clip_all_columns, "divide by the number of actions"),
    ("clipped_loss", clip_detached, "wrong gradient"),
    ("clipped_loss", lambda logp, old, A, mask, e: mean_of(-A * logp, mask), "ratio is missing"),
    ("kl_k3", lambda logp, ref: losses.kl_k3(ref, logp), "the wrong way round"),
    ("grpo_advantages", interleaved, "every fourth answer"),
    ("gae", gae_minus_values, "add V"),
    ("clipped_loss", clip_by_answer, "average over each answer first"),
    ("kl_k3", lambda logp, ref: (ref - logp).exp() - (ref - logp), "the 1 is missing"),
    ("dpo_loss", lambda *x: -torch.sigmoid(x[4] * margin(*x[:4])).mean(), "the log is missing"),
    ("dpo_loss", added, "it is subtracted"),
    ("kl_k3", losses.kl_k1, "this is k1"),
    ("kl_k3", losses.kl_k2, "this is k2"),
    ("kl_k3", lambda logp, ref: -losses.kl_k3(logp, ref), "never negative"),
    ("kl_k3", lambda logp, ref: losses.kl_k3(logp, ref).detach(), "no gradient"),
    ("kl_k3", lambda logp, ref: losses.kl_k3(logp, ref) + 0.5, "expected"),
    ("kl_k3", fails, "RuntimeError, line"),
    ("kl_k3", lambda logp, ref: None, "a NoneType, expected a tensor"),
    ("dpo_loss", lambda c, r, rc, rr, beta: -logsigmoid(beta * (c - r)).mean(),
     "the reference has no effect"),
    ("dpo_loss", lambda *x: -logsigmoid(-x[4] * margin(*x[:4])).mean(), "exchanged"),
    ("dpo_loss", lambda *x: -logsigmoid(margin(*x[:4])).mean(), "β has no effect"),
    ("dpo_loss", lambda *x: -x[4] * logsigmoid(margin(*x[:4])).mean(), "inside of σ"),
    ("dpo_loss", lambda *x: -logsigmoid(x[4] * margin(*x[:4])).sum(), "sum over pairs"),
    ("dpo_loss", lambda *x: logsigmoid(x[4] * margin(*x[:4])).mean(), "the sign is wrong"),
    ("dpo_loss", lambda *x: -torch.sigmoid(x[4] * margin(*x[:4])).log().mean(),
     "at a margin of -900 your loss is inf")]


@pytest.mark.parametrize("name, function, message", MISTAKES,
                         ids=[re.sub(r"\W+", "_", f"{m[0]} {m[2]}") for m in MISTAKES])
def test_a_common_mistake_is_told_in_words(name, function, message):
    assert message in CHECK["check"](name, function)
