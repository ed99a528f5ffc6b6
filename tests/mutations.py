"""Do the tests notice?

Make each well-known mistake on purpose, in a copy, and see which test fails.

    python tests/mutations.py                every mistake; status 1 if one is not noticed
    python tests/mutations.py 13 24          only these numbers
    python tests/mutations.py --table        also write docs/MISTAKES.md from what was found

A mutation is a replacement of one piece of source, which must occur exactly once. Those up to 32
were found in public code; from 33 on they were found here, or made up to see whether a script's
own lines are tested.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

ROOT = Path(__file__).parent.parent


@dataclass
class Mutation:
    name: str            # number and letter
    mistake: str
    symptom: str
    seen: str            # where it was reported; empty if no thread is known
    file: str
    old: str
    new: str
    tests: str           # which test files should notice


MUTATIONS = [
    # ----------------------------------------------------------------------------- tokens and masks
    Mutation("1a", "The stop token is not an action",
             "no gradient for ending: answers grow without bound",
             "karpathy/nanochat#810, huggingface/trl#6357, rasbt/reasoning-from-scratch#185",
             "rollout.py",
             ("lengths[rows] += ~finished[rows]\n"
              "        stops ="),
             ("lengths[rows] += ~finished[rows] & ~torch.isin(next_tokens, stop_ids)\n"
              "        stops ="),
             "test_rollout.py"),
    Mutation("1b", "Demonstrations without their stop token",
             "the SFT model never ends its answers",
             "karpathy/nanochat#810", "support/data.py",
             "return tokenizer.encode(completion) + [tokenizer.eos_id]",
             "return tokenizer.encode(completion)",
             "test_data.py"),
    Mutation("2", "The mask is inferred from ids: everything that is not the padding id",
             "where pad and a real token share an id, real actions vanish",
             "huggingface/trl#4974", "rollout.py",
             "mask = written & ~told[:, :T]",
             "mask = (tokens[:, :T] != 0) & ~told[:, :T]",
             "test_rollout.py"),
    Mutation("3", "Padding after an answer without a stop token counts as actions",
             "answers seem longer than they are, and padding is trained on",
             "volcengine/verl#3805",
             "rollout.py",
             "mask = written & ~told[:, :T]",
             "mask = ~told[:, :T]",
             "test_rollout.py"),
    Mutation("4", "All rows of a batch get the positions of the longest",
             "rows of other lengths see wrong distances",
             "huggingface/trl#6800", "rollout.py",
             "positions = prompt_lengths[rows] + i",
             "positions = torch.full_like(rows, P + i)",
             "test_rollout.py"),
    Mutation("5a", "Logits score the token they saw last, not the next",
             "log-probs of the wrong tokens; nothing is learned",
             "",
             "rollout.py",
             "model.hidden(tokens[:, :-1])[row, t - 1]",
             "model.hidden(tokens)[row, t]",
             "test_rollout.py"),
    Mutation("5b", "The critic's value of the state after the action",
             "the advantage already contains what the action did",
             "",
             "rollout.py",
             "F.pad(critic(tokens[:, :-1]), (1, 0))",
             "F.pad(critic(tokens[:, :-1]), (0, 1))",
             "test_rollout.py"),
    Mutation("7", "Masked inputs are overwritten in place",
             "what is counted or logged later is not what was given",
             "",
             "losses.py",
             "return [x.masked_fill(off, 0) for x in tensors.values()]",
             ("return [x.detach().masked_fill_(off, 0) if not x.requires_grad else "
              "x.masked_fill(off, 0)\n"
              "            for x in tensors.values()]"),
             "test_peers.py"),
    Mutation("8", "One noise for all samples of a prompt",
             "all samples of a group begin alike, and no group has a signal",
             "", "rollout.py",
             "noise = torch.rand(B, max_new_tokens, generator=generator)",
             "noise = torch.rand(1, max_new_tokens, generator=generator).expand(B, -1)",
             "test_rollout.py"),
    Mutation("9", "Special-token text in a user's string becomes the special token",
             "a prompt can end the conversation it is in",
             "axolotl-ai-cloud/axolotl#1616", "support/tokenizer.py",
             'for special in {True, token["special"]}:',
             "for special in (True, False):",
             "test_data.py"),
    # ------------------------------------------------------------------------------------ log-probs
    Mutation("10", "Temperature in sampling only",
             "what is scored is not what was sampled: a hidden off-policy bias",
             "huggingface/trl#3029, #4159",
             "rollout.py",
             "logits = [x / temperature for x in logits]",
             "pass",
             "test_rollout.py"),
    Mutation("11", "Log-probs computed in the model's low precision",
             "the ratio is not 1 on the first update",
             "jingyaogong/minimind#814", "losses.py",
             "return x if x.dtype == torch.float64 else x.float()",
             "return x",
             "test_losses.py"),
    # ------------------------------------------------------------------------------------------- KL
    Mutation("13", "The difference the wrong way round",
             '"KL" goes negative, and the policy is pushed away from the reference',
             "huggingface/trl#925", "losses.py",
             "return logp - ref_logp\n",
             "return ref_logp - logp\n",
             "test_losses.py"),
    Mutation("14", "k1 as the penalty in the loss",
             "its expected gradient is 0: the penalty does nothing",
             "allenai/open-instruct#534",
             "losses.py",
             "kl = kl_penalty(logp, ref_logp, mask)",
             'kl = kl_penalty(logp, ref_logp, mask, "k1")',
             "test_peers.py"),
    Mutation("15", "The KL penalty counted on the padding",
             "rewards depend on how much padding there is",
             "",
             "advantages.py",
             ("    logp = logp.masked_fill(~mask, 0)\n"
              "    ref_logp = ref_logp.masked_fill(~mask, 0)\n"),
             "",
             "test_losses.py test_peers.py"),
    # ----------------------------------------------------------------- rewards, advantages, returns
    Mutation("16", "The score on the last column instead of the last action",
             "short answers get no reward at all",
             "huggingface/trl#3750", "advantages.py",
             "is_last = mask & (actions_left == 1)",
             "is_last = torch.arange(mask.shape[1], device=mask.device) == mask.shape[1] - 1",
             "test_losses.py"),
    Mutation("17", "A cut-off answer is verified like a finished one",
             "the model learns that it need not end",
             "huggingface/trl#1536", "support/rewards.py",
             "scores = [score * end for score, end in zip(scores, finished)]",
             "pass",
             "test_data.py"),
    Mutation("18", "GAE does not skip holes",
             "a tool's output between two actions adds discounting and zero values",
             "",
             "advantages.py",
             "next_value = torch.where(is_action, value, next_value)",
             "next_value = value",
             "test_losses.py"),
    Mutation("18b", "What the environment wrote is trained on as if the policy had chosen it",
             "the policy leaves its reference to learn what a tool says, which it need not know",
             "huggingface/trl#4975",
             "rollout.py",
             "mask = written & ~told[:, :T]",
             "mask = written & (torch.arange(T, device=device) >= prompt_lengths[:, None])",
             "test_environment.py"),
    Mutation("18c", "The discount and the TD error are taken across what the environment wrote",
             "the longer a tool's output, the less the call before it has to do with the reward",
             "radixark/miles#1827, verl-project/verl#2337",
             "advantages.py",
             ("running = torch.where(is_action, advantage, running)        "
              "# a hole changes nothing\n"
              "        next_value = torch.where(is_action, value, next_value)"),
             ("running = advantage\n"
              "        next_value = value"),
             "test_policy_gradient.py::test_a_tools_tokens_are_not_discounted"),
    Mutation("19", "The critic's targets from whitened advantages",
             "the critic learns a moving, unitless target",
             "",
             "train_ppo.py",
             "advantages = whiten(advantages, mask)",
             ("advantages = whiten(advantages, mask)\n"
              "        returns = (advantages + old_values) * mask"),
             "test_scripts.py"),
    Mutation("20", "Whitening shifts the mean although told not to",
             "the sign of a reward depends on its batch",
             "vwxyzjn/lm-human-preference-details",
             "advantages.py",
             ("    if not shift_mean:\n"
              "        whitened = whitened + mean\n"),
             "",
             "test_losses.py"),
    Mutation("21", "Equal rewards are left to rounding and a tiny epsilon",
             "eight rewards of 0.7 give an advantage of 0.81",
             "",
             "advantages.py",
             ("        advantages = advantages / (groups.std(1, keepdim=True) + eps)\n"
              "    return advantages.masked_fill(all_equal, 0).flatten()"),
             ("        advantages = advantages / (groups.std(1, keepdim=True) + eps)\n"
              "    return (advantages * (eps and 1e4)).flatten() if all_equal.all() "
              "else advantages.flatten()"),
             "test_losses.py"),
    Mutation("22", "Groups interleaved instead of consecutive",
             "an answer is compared with answers to other prompts",
             "NVIDIA-NeMo/RL#3882", "advantages.py",
             "groups = rewards.view(-1, group_size)\n",
             "groups = rewards.view(group_size, -1).T\n",
             "test_peers.py"),
    Mutation("23", "A group of one",
             "an unbiased standard deviation of one number is NaN",
             "", "advantages.py",
             "if group_size < 2 or rewards",
             "if group_size < 1 or rewards",
             "test_losses.py"),
    # --------------------------------------------------------------------------------------- losses
    Mutation("24", "The clip turned round: min where the loss needs max",
             "negative advantages are pushed without bound; invisible while the ratio is 1",
             "rasbt/reasoning-from-scratch#240", "losses.py",
             "loss = torch.maximum(unclipped, clipped)\n    is_clipped",
             "loss = torch.minimum(unclipped, clipped)\n    is_clipped",
             "test_losses.py"),
    Mutation("25a", "The mean of micro-batch means",
             "long and short answers weigh differently with the micro-batch size",
             "huggingface/trl#3021, volcengine/verl#3741, allenai/open-instruct#1161",
             "train_grpo.py",
             "kl_coef.in_loss, config.aggregate, denominator)",
             "kl_coef.in_loss, config.aggregate)",
             "test_scripts.py"),
    Mutation("25b", "The same in SFT",
             "as above",
             "huggingface/trl#2995", "train_sft.py",
             "denominator=mask.sum())",
             "denominator=m.sum())",
             "test_scripts.py"),
    Mutation("26", "Dr. GRPO that still divides by each answer's length",
             "only one of its two changes: the length bias stays",
             "",
             "methods.py",
             '"dr_grpo":      ("group",     "grpo",      "seq-sum", ',
             '"dr_grpo":      ("group",     "grpo",      "seq-mean",',
             "test_steps.py::test_grpo"),
    Mutation("27", "IPO on summed log-probs where averaged ones are meant",
             "the margin's target depends on the answers' lengths",
             "huggingface/trl#1677",
             "train_dpo.py",
             ("return ipo_loss(chosen / n_chosen, rejected / n_rejected, ref_chosen / "
              "n_chosen,\n"
              "                        ref_rejected / n_rejected, config.beta, n_pairs)"),
             ("return ipo_loss(chosen, rejected, ref_chosen, ref_rejected, "
              "config.beta, n_pairs)"),
             "test_scripts.py"),
    Mutation("28", "No warm-up: the critic's noise moves the policy",
             "garbage advantages wreck the policy before the critic has learned",
             "CarperAI/trlx#345",
             "train_ppo.py",
             "if step < config.critic_warmup:",
             "if False:",
             "test_scripts.py"),
    Mutation("29", "An unfinished answer scored by the reward model",
             "it never saw one: answers that never end may score best",
             "vwxyzjn/lm-human-preference-details",
             "support/rl.py",
             "return torch.where(rollout.finished, scores, self.unfinished_score)",
             "return scores",
             "test_scripts.py"),
    Mutation("30", "Gradients clipped after each micro-batch",
             "the step depends on the micro-batch size",
             "", "train_grpo.py",
             "                    loss.backward()\n",
             ("                    loss.backward()\n"
              "                    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)\n"),
             "test_scripts.py"),
    Mutation("31", "The reward model read at the last column",
             "a score depends on how much padding follows",
             "",
             "rollout.py",
             "return reward_model(tokens).gather(1, last).squeeze(1)",
             "return reward_model(tokens)[:, -1]",
             "test_rollout.py"),
    Mutation("32", "The reference is the policy itself",
             "KL is 0 for ever",
             "",
             "support/models.py",
             "self.model = copy.deepcopy(model).requires_grad_(False)",
             "self.model = policy",
             "test_scripts.py"),
    # -------------------------------------------------------------------- in the scripts' own lines
    Mutation("33", "A run that another one trains first leaves its own precision behind",
             "what runs is not what config.json says",
             "",
             "support/run.py",
             ("        # The nested run switched autocast as its own settings say.\n"
              "        pick_device(config)"),
             "        # The nested run switched autocast as its own settings say.",
             "test_scripts.py::test_a_run_that_trains_what_it_needs_keeps_its_own_precision"),
    Mutation("34", "No signal taken from equal rewards, whatever the advantage",
             "ReMax and REINFORCE++ throw groups away that they would learn from",
             "",
             "methods.py",
             "no_signal = (advantages == 0).all(1).view(rows.shape).all(1)",
             ("groups = advantages.reshape(*rows.shape, -1)\n"
              "    no_signal = (groups == groups[:, :1]).all(2).all(1)"),
             "test_steps.py::test_grpo"),
    Mutation("39", "One noise for every pass over a step's answers",
             "each pass makes the same mini-batches",
             "",
             "train_grpo.py",
             'f"{config.algorithm} epoch {epoch}"',
             'f"{config.algorithm} epoch"',
             "test_steps.py::test_grpo"),
    Mutation("41", "Momentum without a gradient",
             "weights move on where nothing was learned",
             "",
             "train_grpo.py",
             "if 0 < grad_norms[-1] < math.inf:",
             "if grad_norms[-1] < math.inf:",
             "test_scripts.py::test_without_signal_the_policy_stays_where_it_is"),
    Mutation("42a", "The training pass without the sampling temperature",
             "the ratio is not 1 at first; another policy is trained than sampled",
             "",
             "train_grpo.py",
             "policy, t, m, config.temperature, config.entropy_coef > 0)",
             "policy, t, m, 1.0, config.entropy_coef > 0)",
             "test_steps.py::test_grpo"),
    Mutation("42b", "The reference without the sampling temperature",
             "a KL between policies that nothing sampled from",
             "",
             "train_grpo.py",
             ("token_log_probs, reference.model, tokens, mask, max_tokens, "
              "config.temperature)"),
             "token_log_probs, reference.model, tokens, mask, max_tokens, 1.0)",
             "test_steps.py::test_grpo"),
    Mutation("42c", "ReMax's baseline is the greedy answer to another prompt",
             "more variance than without a baseline",
             "",
             "methods.py",
             "_, greedy_rewards = answer(batch(step), i=0, temperature=0)",
             ("_, greedy_rewards = answer("
              "batch(step)[1:] + batch(step)[:1], i=0, temperature=0)"),
             "test_steps.py::test_grpo"),
    Mutation("42d", "Dynamic sampling keeps the first groups instead of those with a signal",
             "it samples more, and learns from as little as before",
             "",
             "methods.py",
             "rows = rows[~no_signal][:config.prompts_per_step]",
             "rows = rows[:config.prompts_per_step]",
             "test_steps.py::test_grpo"),
    Mutation("42e", "The adaptive β turned round",
             "β grows where KL is small: nothing is learned, or all is lost",
             "",
             "support/rl.py",
             "adaptive_kl_coef(self.value, answer_kl, self.target,",
             "adaptive_kl_coef(self.value, self.target, answer_kl or 1e-9,",
             "test_steps.py::test_grpo"),
    Mutation("42f", "clip_low and clip_high swapped",
             "invisible while they are equal: DAPO's higher clip is a lower one",
             "",
             "methods.py",
             "self.clip_range = self.clip_low, self.clip_high",
             "self.clip_range = self.clip_high, self.clip_low",
             "test_steps.py::test_grpo"),
    Mutation("42g", "--ref-sync N copies the policy at every step",
             "KL is near 0 for ever",
             "",
             "support/models.py",
             "self.sync_every and (step + 1) % self.sync_every == 0:",
             "self.sync_every:",
             "test_steps.py::test_grpo"),
    Mutation("42h", "PPO without any KL penalty",
             "the score rises, and the answers leave the language",
             "",
             "train_ppo.py",
             "token_rewards(rewards, old_logp, ref_logp, mask, kl_coef.value)",
             "token_rewards(rewards, old_logp, old_logp, mask, kl_coef.value)",
             "test_steps.py::test_ppo"),
    Mutation("42i", "γ and λ swapped",
             "with γ = 1, as usual, λ does nothing and rewards are discounted",
             "",
             "train_ppo.py",
             "gae(rewards_t, old_values, mask, config.gamma, config.lam)",
             "gae(rewards_t, old_values, mask, config.lam, config.gamma)",
             "test_steps.py::test_ppo"),
    Mutation("42j", "KTO's reference point with its sign turned",
             "clamped to 0 wherever the policy has moved: KTO without its point",
             "", "train_dpo.py",
             "kto_point = (logp - ref_logp[2]).mean()",
             "kto_point = (ref_logp[2] - logp).mean()",
             "test_steps.py::test_preferences"),
    Mutation("42k", "SimPO on summed log-probs",
             "long answers have the larger margins",
             "", "train_dpo.py",
             "simpo_loss(chosen / n_chosen, rejected / n_rejected,",
             "simpo_loss(chosen, rejected,",
             "test_steps.py::test_preferences"),
    Mutation("42l", "KL in the reward, and in the loss as well",
             "β is paid twice",
             "",
             "support/rl.py",
             'return self.value if self.kl_in == "loss" else 0.0',
             "return self.value",
             "test_steps.py::test_grpo"),
    Mutation("42m", "The reference's moving average with its weights swapped",
             "the reference is nearly the policy: KL is near 0 for ever",
             "",
             "support/models.py",
             "p_ref.lerp_(p, 1 - self.ema)",
             "p_ref.lerp_(p, self.ema)",
             "test_steps.py::test_ppo"),
    Mutation("42n", "Values are clipped around themselves",
             "the clip of the values does nothing",
             "",
             "train_ppo.py",
             "value_loss(V, old_values[micro, :T],",
             "value_loss(V, V.detach(),",
             "test_steps.py::test_ppo"),
    Mutation("42o", "The critic at the actor's learning rate",
             "it is always behind; λ below 1 is biased",
             "", "train_ppo.py",
             "lr=config.critic_lr",
             "lr=config.lr",
             "test_steps.py::test_ppo"),
    Mutation("42p", "The mean of each pair's NLL in place of all tokens'",
             "tokens of short answers weigh more",
             "",
             "train_dpo.py",
             "loss = loss - config.nll_coef * logp[0].sum() / mask[0].sum()",
             ("loss = loss - config.nll_coef * (logp[0] / m[0].sum(1)).sum() / "
              "len(pairs)"),
             "test_steps.py::test_preferences"),
    Mutation("42q", "A learning rate that never falls",
             "the last steps are noise",
             "", "train_dpo.py",
             'group["lr"] = config.lr * (1 - step / config.steps)',
             'group["lr"] = config.lr',
             "test_steps.py::test_preferences"),
    Mutation("42t", "KTO's reference point may fall below 0",
             "it estimates a KL, which never does; answers then count as good for free",
             "", "train_dpo.py",
             ".mean().clamp(min=0)",
             ".mean()",
             "test_steps.py::test_preferences"),
    Mutation("42r", "Gradients are not cleared between updates",
             "every update repeats all before it",
             "",
             "train_sft.py",
             "        optimizer.zero_grad()\n",
             "",
             "test_steps.py::test_sft"),
    Mutation("42s", "Old log-probs taken anew before each pass",
             "the ratio is 1 at the start of each pass: nothing holds the policy back",
             "",
             "train_ppo.py",
             ('            rng = torch_rng(config.seed, step, f"{config.algorithm} '
              "epoch {epoch}\")\n"),
             ('            rng = torch_rng(config.seed, step, f"{config.algorithm} '
              "epoch {epoch}\")\n"
              "            old_logp = parallel.map_micro_batches(\n"
              "                token_log_probs, policy, tokens, mask, max_tokens, "
              "config.temperature)\n"),
             "test_steps.py::test_ppo"),
    Mutation("43", "The row that is asked about is numbered within its process",
             "under torchrun, an environment answers with what it knows of another conversation",
             "",
             "support/parallel.py",
             "return environment(first + row, ids)",
             "return environment(row, ids)",
             "test_environment.py"),
]


def failing_test(tests: str, mutation: Mutation | None = None) -> str:
    """The test that fails in a copy of the project with the mutation made, or "" if none does."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(
            ROOT, copy, ignore=shutil.ignore_patterns("runs", ".*", "__pycache__", "docs"))
        if mutation:
            source = (copy / mutation.file).read_text(encoding="utf-8")
            (copy / mutation.file).write_text(
                source.replace(mutation.old, mutation.new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header",
                   *(f"tests/{name}" for name in tests.split())]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
        failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+::[^\s\[]+)", done.stdout, re.M)
        if done.returncode and not failed:
            raise SystemExit(f"pytest did not run:\n{done.stdout}{done.stderr}")
        return failed.group(1) if failed else ""


def main(arguments: list[str]) -> int:
    wanted = [m for m in MUTATIONS
              if not (names := [a for a in arguments if a != "--table"])
              or m.name in names or m.name.rstrip(ascii_lowercase) in names]
    for m in wanted:
        if (count := (ROOT / m.file).read_text(encoding="utf-8").count(m.old)) != 1:
            raise SystemExit(f"mutation {m.name}: its text occurs {count} times in {m.file}, "
                             "expected once")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        if failed := failing_test(
                " ".join(sorted({name for m in wanted for name in m.tests.split()}))):
            raise SystemExit(f"{failed} fails without any mutation")
        killed = {}
        for mutation, test in zip(wanted, pool.map(lambda m: failing_test(m.tests, m), wanted)):
            killed[mutation.name] = test
            print(f"{mutation.name:4} {mutation.mistake}: "
                  f"{'killed by ' + test if test else 'SURVIVED'}", flush=True)
    survivors = [name for name, test in killed.items() if not test]
    print(f"{len(wanted) - len(survivors)} of {len(wanted)} mistakes noticed"
          + (f"; not: {', '.join(survivors)}" if survivors else ""))
    if "--table" in arguments:
        rows = [f"| {m.name} | {m.mistake} | {m.symptom} | {links(m.seen)} "
                f"| `{m.file}` | `{killed[m.name]}` |" for m in wanted]
        (ROOT / "docs" / "MISTAKES.md").write_text(
            TEXT.format(table="\n".join(rows)), encoding="utf-8")
    return bool(survivors)


def links(seen: str) -> str:
    """owner/name#1 and #2 of the same repository as links; a repository without a number as one
    to itself."""
    found, repository = [], ""
    for word in filter(None, seen.split(", ")):
        owner, _, number = word.partition("#")
        repository = owner or repository
        found.append(f"[{repository}{'#' + number if number else ''}]"
                     f"(https://github.com/{repository}{'/issues/' + number if number else ''})")
    return ", ".join(found)


# A \ joins two lines: the page's lines are longer than those of a source file.
TEXT = """# What goes wrong in implementations of these algorithms

Each of these mistakes up to 32 was found in public code that people learn from and train with; \
where a thread is known, it is
linked. Those from 33 on were found in this project's own first versions, or made up to see \
whether its tests would notice. None
of them crashes: training runs, curves move, and the result is a little or very wrong. \
Here each is made on purpose in a copy of this
project, and the test in the last column is the first to fail. \
`python tests/mutations.py --table` does that, and writes this page.

| | mistake | what one sees | seen in | made here in | noticed by |
|---|---|---|---|---|---|
{table}

Three mistakes of the same kind can't be made by changing a line here:

* **Sampled text is decoded and tokenised again** (6), so that what is trained on is not what was \
sampled: huggingface/trl#5224. Rollouts
  are ids from beginning to end; text is made only to be shown and rewarded.
* **The sampler's log-probs serve as old log-probs** although cached decoding rounds otherwise \
than a full forward (12). With both in
  float32 the difference is near 1e-6 and changes nothing; in bfloat16 it is a ratio that isn't 1. \
`train_grpo.py` and
  `train_ppo.py` take old log-probs with the function that takes the new ones.
* **Dropout, or a reference in train mode** (11, 32): the model has no dropout.

What 18b does to a run, [`docs/tool.py`](tool.py) shows on the task with a calculator, for three \
seeds: the policy learns to ask, but later, and
moves five times as far from its reference ([figure](tool/tool.png); 0.95 nats a token instead of \
0.20, over what was trained on).
"""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
