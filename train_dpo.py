"""DPO: direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290), and its relatives. No reward model, no sampling.

    loss = -log σ(β [log π/π_ref (chosen) - log π/π_ref (rejected)])          log-probs summed over the answer

β log π/π_ref is the reward for which π is the optimal policy under a KL penalty, so fitting preferences fits the policy itself.

    --loss  dpo | ipo (pulls the margin to 1 / (2β)) | kto (no pairs: each answer is good or bad) | simpo, orpo (no reference)

Losses on pairs ask for differences, which grow as well when chosen answers lose less than rejected
ones and the rest goes to tokens that neither has: sampled answers then break. So the chosen
answers' NLL is added, averaged over all their tokens (RPO, Pang et al. 2024, arXiv:2404.19733,
averages over each answer first). With --nll-coef 0, DPO's and SimPO's losses are their papers'
alone. IPO's is on log-probs averaged over each answer, where its paper sums them. ORPO's is no
longer its paper's, which has that NLL. KTO, which has no pairs, does without.

On the built-in task the pairs are the SFT model's own samples, as for the reward model. The reference never moves and is the
model at the start, so its log-probs are taken once, before training. KTO's reference point comes from mismatched prompts and answers.
"""
import time
from dataclasses import dataclass
from typing import ClassVar

import torch

import train_sft
from support.cli import RunConfig, parse, refuse, script, setting, user_errors
from support.models import numpy_rng, pick_device
from support.run import Run, model_directory, trained
from support.data import take
from task import held_out_problems, sum_reward
from evaluate import evaluate
from losses import dpo_loss, ipo_loss, kto_loss, orpo_loss, simpo_loss
from support.pretrained import load_pretrained
from rollout import in_micro_batches, micro_batches, token_log_probs
from support.parallel import summed
from train_rm import load_pairs, pad_pairs

BETA = {"dpo": 0.1, "ipo": 0.1, "kto": 0.1, "simpo": 2.0, "orpo": 0.1}
NLL_COEF = {"dpo": 1.0, "ipo": 1.0, "kto": 0.0, "simpo": 1.0, "orpo": 1.0}


@dataclass(kw_only=True)
class Config(RunConfig):
    algorithm: ClassVar[str] = "dpo"
    loss: str = setting("dpo", "preference loss", choices=tuple(BETA))
    steps: int = setting(80, "steps, of one update each", low=1)
    batch_size: int = setting(64, "pairs a step", low=2)
    pairs: int = setting(4096, "pairs sampled for the built-in task", low=2)
    max_new_tokens: int = setting(32, "tokens of a sampled answer, at most", low=1)
    lr: float = setting(3e-4, "learning rate, falling linearly to 0", low=0.0)
    beta: float | None = setting(None, "β; 0.1, and 2 for simpo, if not given", low=1e-6)
    label_smoothing: float = setting(0.0, "dpo: the share of pairs taken to be labelled the wrong way round", low=0.0, high=0.5)
    nll_coef: float | None = setting(None, "weight of the chosen answers' NLL a token; 1, and 0 for kto, if not given", low=0.0)
    gamma: float = setting(1.0, "simpo: target margin", low=0.0)
    desirable_weight: float = setting(1.0, "kto: weight of the good answers", low=0.0)
    undesirable_weight: float = setting(1.0, "kto: weight of the bad answers", low=0.0)
    eval_every: int = setting(40, "steps between evaluations; 0: only at the end", low=0)
    save_every: int = setting(40, "steps between checkpoints; 0: only at the end", low=0)

    def check(self, given: dict) -> None:
        """Refuse flags that have no effect."""
        if self.data:
            refuse(given, "pairs", "max_new_tokens", why="with --data, where no pairs are sampled")
        for loss, names in {"dpo": ("label_smoothing",), "simpo": ("gamma",), "kto": ("desirable_weight", "undesirable_weight")}.items():
            if self.loss != loss:
                refuse(given, *names, why=f"with --loss {self.loss}: it is for --loss {loss}")


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
        # any prompt but the last, which takes the place of the pair's own
        other = prompts[rng.integers(len(prompts) - 1)]
        if other == tuple(pair["prompt"]):
            other = prompts[-1]
        mismatched.append(answers[other][rng.integers(len(answers[other]))])
    return mismatched


def main(argv=None) -> None:
    config = parse(Config, __doc__, argv)
    run, device = Run(config), pick_device(config)
    beta = BETA[config.loss] if config.beta is None else config.beta
    nll_coef = NLL_COEF[config.loss] if config.nll_coef is None else config.nll_coef

    # 1. The policy, pairs, and the reference's log-probs of their answers: (2, P), summed
    with user_errors():
        start = model_directory(config.model or trained("runs/sft", train_sft.main, config))
        policy, tokenizer = load_pretrained(start, torch.float32, device)
        run.note(model=start, data=config.data)
        train, held_out = load_pairs(config, policy, tokenizer, run)
        longest = policy.config.max_seq_len - config.max_new_tokens
        problems = None if config.data else held_out_problems(config.eval_problems, tokenizer, longest)
        sides = ("chosen", "rejected")
        if config.loss == "kto":
            sides += ("mismatched",)
            rng = numpy_rng(config.seed, 0, "mismatched")
            others = mismatched_answers(train, config.data or "the sampled pairs", rng)
            for pair, other in zip(train, others):
                pair["mismatched"] = other[:policy.config.max_seq_len - len(pair["prompt"])]

    def answer_log_probs(tokens, mask):
        """log π(answer | prompt), summed over the answer. (rows, T) -> (rows,)"""
        return token_log_probs(policy, tokens, mask).sum(1)

    for part, part_sides in ((train, sides), (held_out, sides[:2])):
        for i in range(0, len(part), 512):
            tokens, mask = pad_pairs(part[i:i + 512], device, part_sides)
            logp = in_micro_batches(answer_log_probs, tokens.flatten(0, 1), mask.flatten(0, 1), config.micro_batch_tokens)
            for pair, ref_logp in zip(part[i:i + 512], logp.view(len(part_sides), -1).T.tolist()):
                pair["ref_logp"] = ref_logp
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    parts = {"policy": policy, "optimizer": optimizer}
    first_step, _ = run.start(parts)
    if first_step == 0 and config.eval_every and not config.data:
        run.sample(0, *evaluate(policy, tokenizer, sum_reward, problems, config.max_new_tokens,
                                micro_batch_tokens=config.micro_batch_tokens))

    for step in run.steps(first_step):
        started = time.perf_counter()
        # 2. One update; the answers of a pair go through the model together, chosen ones first
        pairs = take(train, config.batch_size, config.seed, step)
        tokens, mask = pad_pairs(pairs, device, sides)                                                   # (2 or 3, P, T)
        ref_logp = torch.tensor([p["ref_logp"] for p in pairs], device=device).T                        # (2 or 3, P)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 - step / config.steps)
        if config.loss == "kto":
            logp = in_micro_batches(answer_log_probs, tokens[2], mask[2], config.micro_batch_tokens)
            kto_point = (logp - ref_logp[2]).mean().clamp(min=0)
        totals, P = {}, len(pairs)
        for rows, T in micro_batches(mask[:2].any(0), config.micro_batch_tokens // 2):
            m = mask[:2, rows, :T]
            chosen, rejected = answer_log_probs(tokens[:2, rows, :T].flatten(0, 1), m.flatten(0, 1)).view(2, -1)
            ref_chosen, ref_rejected = ref_logp[:2, rows]
            n_chosen, n_rejected = m.sum(2)                                                              # actions of each answer
            if config.loss == "dpo":
                loss, stats = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, config.label_smoothing, P)
            elif config.loss == "ipo":                   # on averaged log-probs, as TRL does: long answers have no larger margin
                loss, stats = ipo_loss(chosen / n_chosen, rejected / n_rejected, ref_chosen / n_chosen, ref_rejected / n_rejected, beta, P)
            elif config.loss == "kto":
                good = torch.arange(2 * len(rows), device=device) < len(rows)
                loss, stats = kto_loss(torch.cat((chosen, rejected)), torch.cat((ref_chosen, ref_rejected)), good, kto_point, beta,
                                       config.desirable_weight, config.undesirable_weight, 2 * P)
            elif config.loss == "simpo":
                loss, stats = simpo_loss(chosen / n_chosen, rejected / n_rejected, beta, config.gamma, P)
            else:
                loss, stats = orpo_loss(chosen / n_chosen, rejected / n_rejected, beta, P)
            loss = loss - nll_coef * chosen.sum() / mask[0].sum()
            loss.backward()
            stats |= {"chosen_logp": chosen.detach().mean(), "rejected_logp": rejected.detach().mean()}
            totals["loss"] = totals.get("loss", 0.0) + loss.item()
            for name, value in stats.items():
                totals[name] = totals.get(name, 0.0) + value.item() * len(rows) / P
        grad_norm, totals = run.update(optimizer, policy), summed(totals)
        seconds = time.perf_counter() - started

        # 3. What people see. Chosen log-probs may well fall: the loss asks for a difference, not for likely answers
        row = {"step": step + 1, **totals, "grad_norm": grad_norm, "tokens_per_second": mask.sum().item() / seconds, "seconds": seconds,
               "eval_pairs": "", "eval_greedy": "", "eval_sampled": ""}
        if run.due(step, config.eval_every):
            right = 0
            for i in range(0, len(held_out), 512):
                tokens, mask = pad_pairs(held_out[i:i + 512], device)
                logp = in_micro_batches(answer_log_probs, tokens.flatten(0, 1), mask.flatten(0, 1), config.micro_batch_tokens).view(2, -1)
                h = logp - torch.tensor([p["ref_logp"] for p in held_out[i:i + 512]], device=device).T
                right += (h[0] > h[1]).sum().item()
            row["eval_pairs"] = right / len(held_out)
            if not config.data:
                row |= run.sample(step + 1, *evaluate(policy, tokenizer, sum_reward, problems, config.max_new_tokens,
                                                      micro_batch_tokens=config.micro_batch_tokens))
        run.log(row, {"loss": f"{totals['loss']:.3f}", "chosen_logp": f"{totals['chosen_logp']:.2f}"})
        run.save(step, parts)

    run.finish(policy, tokenizer, {
        "loss": ["loss"], "log-prob of an answer (nats)": ["chosen_logp", "rejected_logp"],
        "implicit reward": ["chosen_reward", "rejected_reward"], "held-out pairs ranked right (share)": ["eval_pairs"],
        "accuracy": ["eval_greedy", "eval_sampled"], "gradient norm": ["grad_norm"]})


if __name__ == "__main__":
    script(main)
