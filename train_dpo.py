"""DPO: direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290), and its relatives.

    loss = -log σ(β [log π/π_ref (chosen) - log π/π_ref (rejected)])

with log-probs summed over the answer; no reward model, no sampling. β log π/π_ref is the reward for
which π is the optimal policy under a KL penalty, so fitting preferences fits the policy itself.

    --loss  dpo | ipo (pulls the margin to 1 / (2β)) | kto (no pairs: each answer is good or bad)
            | simpo, orpo (no reference)

Losses on pairs ask for differences, which grow as well when chosen answers lose less than rejected
ones and the rest goes to tokens that neither has: sampled answers then break. So the chosen
answers' NLL is added, averaged over all their tokens (RPO, Pang et al. 2024, arXiv:2404.19733,
averages over each answer first). --nll-coef 0 leaves it out: then DPO's and SimPO's losses are
their papers', and ORPO's is not, whose paper has the NLL. IPO's is on log-probs averaged over each
answer, where its paper sums them. KTO, which has no pairs, does without the NLL.

On the built-in task the pairs are the SFT model's own samples, as for the reward model. The
reference never moves and is the model at the start, so its log-probs are taken once, before
training. KTO's reference point comes from mismatched prompts and answers.
"""
import math
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.utils import clip_grad_norm_

import train_sft
from evaluate import evaluate
from losses import dpo_loss, ipo_loss, kto_loss, orpo_loss, simpo_loss
from rollout import micro_batches, token_log_probs
from support import parallel
from support.cli import RunConfig, parse, refuse, script, setting, user_errors
from support.data import take
from support.metrics import Averages, step_metrics
from support.models import numpy_rng, pick_device
from support.rl import load_start
from support.run import Run
from task import held_out_problems, task_reward
from train_rm import load_pairs, pad_pairs

BETA = {"dpo": 0.1, "ipo": 0.1, "kto": 0.1, "simpo": 2.0, "orpo": 0.1}
NLL_COEF = {"dpo": 1.0, "ipo": 1.0, "kto": 0.0, "simpo": 1.0, "orpo": 1.0}
# The flags that one loss alone has.
FLAGS_OF = {"dpo": ("label_smoothing",), "simpo": ("gamma",),
            "kto": ("desirable_weight", "undesirable_weight")}


@dataclass(kw_only=True)
class Config(RunConfig):
    algorithm: ClassVar[str] = "dpo"
    temperature: ClassVar[float] = 1.0              # of answers, in evaluations
    loss: str = setting("dpo", "preference loss", choices=tuple(BETA))
    steps: int = setting(80, "steps, of one update each", low=1)
    batch_size: int = setting(64, "pairs per step", low=2)
    pairs: int = setting(4096, "pairs sampled for the built-in task", low=2)
    max_new_tokens: int = setting(32, "tokens of a sampled answer, at most", low=1)
    lr: float = setting(3e-4, "learning rate, falling linearly to 0", low=0.0)
    beta: float | None = setting(None, "β; 0.1, and 2 for simpo, if not given", low=1e-6)
    label_smoothing: float = setting(
        0.0, "dpo: the share of pairs taken to be labelled the wrong way round", low=0.0, high=0.5)
    nll_coef: float | None = setting(
        None, "weight of the chosen answers' NLL per token; 1, and 0 for kto, if not given",
        low=0.0)
    gamma: float = setting(1.0, "simpo: target margin", low=0.0)
    desirable_weight: float = setting(1.0, "kto: weight of the good answers", low=0.0)
    undesirable_weight: float = setting(1.0, "kto: weight of the bad answers", low=0.0)
    eval_every: int = setting(40, "steps between evaluations; 0: only at the end", low=0)
    save_every: int = setting(40, "steps between checkpoints; 0: only at the end", low=0)

    def __post_init__(self):
        if self.beta is None:
            self.beta = BETA[self.loss]
        if self.nll_coef is None:
            self.nll_coef = NLL_COEF[self.loss]
        self.sides = ("chosen", "rejected")
        if self.loss == "kto":
            self.sides += ("mismatched",)

    def check(self, given: dict) -> None:
        """Refuse flags that have no effect."""
        if self.data:
            refuse(given, "pairs", "max_new_tokens", why="with --data, where no pairs are sampled")
        for loss, names in FLAGS_OF.items():
            if self.loss != loss:
                refuse(given, *names, why=f"with --loss {self.loss}: it is for --loss {loss}")


def main(argv=None) -> None:
    config = parse(Config, __doc__, argv)
    run, device = Run(config), pick_device(config)

    # 1. The policy, pairs, and the reference's log-probs of their answers.
    policy, tokenizer = load_start(config, train_sft.main, run, device)
    train, held_out = load_pairs(config, policy, tokenizer, run)
    problems = load_problems(config, tokenizer, policy.config.max_seq_len)
    if config.loss == "kto":
        add_mismatched_answers(config, train, policy.config.max_seq_len)
    add_ref_log_probs(policy, held_out, ("chosen", "rejected"), config, device)
    add_ref_log_probs(policy, train, config.sides, config, device)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.lr, betas=(0.9, 0.95),
                                  weight_decay=0.0, fused=True)
    run.start(policy=policy, optimizer=optimizer)
    if run.first_step == 0 and config.eval_every and problems:
        run.log_samples(0, *evaluate(policy, tokenizer, task_reward, problems, config))

    for step in run.steps():
        started = time.perf_counter()
        pairs = take(train, config.batch_size, config.seed, step)
        tokens, mask = pad_pairs(pairs, device, config.sides)                   # (2 or 3, P, T)
        ref_logp = ref_log_probs(pairs, device)                                 # (2 or 3, P)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 - step / config.steps)

        # 2. One update; the answers of a pair go through the model together, chosen ones first.
        kto_point = None
        if config.loss == "kto":
            logp = parallel.map_micro_batches(answer_log_probs, policy, tokens[2], mask[2],
                                              config.micro_batch_tokens)
            kto_point = (logp - ref_logp[2]).mean().clamp(min=0)
        averages = Averages()
        rows = parallel.my_rows(torch.arange(len(pairs), device=device))
        for micro, T in micro_batches(mask[:2].any(0), config.micro_batch_tokens // 2, rows):
            t, m = tokens[:2, micro, :T], mask[:2, micro, :T]                   # (2, p, T)
            logp = answer_log_probs(policy, t.flatten(0, 1), m.flatten(0, 1)).view(2, -1)
            loss, stats = preference_loss(config, logp, ref_logp[:2, micro], m.sum(2), kto_point,
                                          len(pairs))
            loss = loss - config.nll_coef * logp[0].sum() / mask[0].sum()
            loss.backward()
            averages.add({"loss": loss.detach()}, weight=1)                     # a share of the sum
            stats |= {"chosen_logp": logp[0].detach().mean(),
                      "rejected_logp": logp[1].detach().mean()}
            averages.add(stats, weight=len(micro) / len(pairs))
        parallel.sum_gradients(policy)
        grad_norm = clip_grad_norm_(policy.parameters(), 1.0).item()
        if 0 < grad_norm < math.inf:
            optimizer.step()
        optimizer.zero_grad()

        # 3. What people see. Chosen log-probs may well fall: the loss asks for a difference, not
        #    for likely answers.
        row = {"step": step + 1, **averages.result(), **step_metrics([grad_norm], mask, started),
               "eval_pairs": "", "eval_greedy": "", "eval_sampled": ""}
        if run.due(step, config.eval_every):
            row["eval_pairs"] = evaluate_pairs(policy, held_out, config, device)
            if problems:
                row |= run.log_samples(step + 1, *evaluate(policy, tokenizer, task_reward, problems,
                                                           config))
        run.log(row, [grad_norm])
        run.save(step)

    run.finish(policy, tokenizer)


def answer_log_probs(policy, tokens, mask):
    """log π(answer | prompt), summed over the answer. (rows, T) -> (rows,)"""
    return token_log_probs(policy, tokens, mask).sum(1)


def preference_loss(config, logp, ref_logp, n_actions, kto_point, n_pairs):
    """The loss of --loss on a micro-batch. logp, ref_logp, n_actions (2, p): chosen, rejected."""
    chosen, rejected = logp
    ref_chosen, ref_rejected = ref_logp
    n_chosen, n_rejected = n_actions
    if config.loss == "dpo":
        return dpo_loss(chosen, rejected, ref_chosen, ref_rejected, config.beta,
                        config.label_smoothing, n_pairs)
    if config.loss == "ipo":
        # On averaged log-probs, as TRL does: long answers have no larger margin.
        return ipo_loss(chosen / n_chosen, rejected / n_rejected, ref_chosen / n_chosen,
                        ref_rejected / n_rejected, config.beta, n_pairs)
    if config.loss == "kto":
        is_good = torch.arange(2 * len(chosen), device=chosen.device) < len(chosen)
        return kto_loss(logp.flatten(), ref_logp.flatten(), is_good, kto_point, config.beta,
                        config.desirable_weight, config.undesirable_weight, 2 * n_pairs)
    if config.loss == "simpo":
        return simpo_loss(chosen / n_chosen, rejected / n_rejected, config.beta, config.gamma,
                          n_pairs)
    return orpo_loss(chosen / n_chosen, rejected / n_rejected, config.beta, n_pairs)


@user_errors()
def load_problems(config, tokenizer, context: int) -> list[dict]:
    """The built-in task's problems for evaluations; none with --data."""
    if config.data:
        return []
    longest = context - config.max_new_tokens
    return held_out_problems("sums", config.eval_problems, tokenizer, longest)


@user_errors()
def add_mismatched_answers(config, pairs: list[dict], context: int) -> None:
    """Give each pair an answer to another prompt, cut to the context: for KTO's reference point."""
    rng = numpy_rng(config.seed, 0, "mismatched")
    answers = mismatched_answers(pairs, config.data or "the sampled pairs", rng)
    for pair, answer in zip(pairs, answers):
        pair["mismatched"] = answer[:context - len(pair["prompt"])]


def mismatched_answers(pairs: list[dict], source: str, rng) -> list[list[int]]:
    """For each pair a random answer, chosen or rejected, to another prompt. KTO's reference point,
    max(0, E[log π/π_ref]), is estimated on these. ValueError if there is one prompt only."""
    answers = {}
    for pair in pairs:
        answers.setdefault(tuple(pair["prompt"]), []).extend((pair["chosen"], pair["rejected"]))
    prompts, mismatched = list(answers), []
    if len(prompts) == 1:
        raise ValueError(f"{source}: all pairs have one prompt, and --loss kto needs answers to "
                         "others")
    for pair in pairs:
        # Any prompt but the last, which takes the place of the pair's own.
        other = prompts[rng.integers(len(prompts) - 1)]
        if other == tuple(pair["prompt"]):
            other = prompts[-1]
        mismatched.append(answers[other][rng.integers(len(answers[other]))])
    return mismatched


def in_blocks(pairs: list[dict], size: int = 512):
    """The pairs, so many at a time: padded, all of them might not fit the memory."""
    for start in range(0, len(pairs), size):
        yield pairs[start:start + size]


def pair_log_probs(policy, pairs: list[dict], sides, config, device):
    """log π of the answers of these sides, summed over each. (sides, P)"""
    tokens, mask = pad_pairs(pairs, device, sides)
    logp = parallel.map_micro_batches(answer_log_probs, policy, tokens.flatten(0, 1),
                                      mask.flatten(0, 1), config.micro_batch_tokens)
    return logp.view(len(sides), -1)


def add_ref_log_probs(policy, pairs: list[dict], sides, config, device) -> None:
    """Note the reference's log-probs with each pair, while the policy still is the reference."""
    for block in in_blocks(pairs):
        logp = pair_log_probs(policy, block, sides, config, device)
        for pair, ref_logp in zip(block, logp.T.tolist()):
            pair["ref_logp"] = ref_logp


def ref_log_probs(pairs: list[dict], device):
    """What add_ref_log_probs noted. (sides, P)"""
    return torch.tensor([pair["ref_logp"] for pair in pairs], device=device).T


def evaluate_pairs(policy, held_out: list[dict], config, device) -> float:
    """The share of pairs whose chosen answer gained more on the reference than the rejected one."""
    n_right = 0
    for block in in_blocks(held_out):
        logp = pair_log_probs(policy, block, ("chosen", "rejected"), config, device)
        chosen, rejected = logp - ref_log_probs(block, device)[:2]
        n_right += (chosen > rejected).sum()
    return int(n_right) / len(held_out)


if __name__ == "__main__":
    script(main)
