"""Do the tests notice?

Make each well-known mistake on purpose, in a copy, and see which test fails.

    python tests/mutations.py                every mistake; status 1 if one is not noticed
    python tests/mutations.py 13 24          only these numbers, those of docs/MISTAKES.md
    python tests/mutations.py --table        also write docs/mistakes/noticed_by.csv, and the pages

A mutation is a replacement of one piece of source, which must occur exactly once. What each does
to a run is measured by tests/mutation_runs.py.
"""
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOTICED_BY = ROOT / "docs" / "mistakes" / "noticed_by.csv"
# Seen in public code that people learn from and train with; no thread about it is known.
PUBLIC = "public code"


@dataclass
class Mutation:
    name: str
    mistake: str
    symptom: str
    # Where it was reported, or PUBLIC; empty if it was found here, or made up to see whether a
    # script's own lines are tested.
    seen: str
    file: str
    old: str
    new: str
    # The test files that should notice.
    tests: str
    # The run of tests/mutation_runs.py that should show it.
    run: str = ""
    # Why no run shows it.
    unseen: str = ""


LAYOUT = [
    Mutation("stop_token_masked",
             "The stop token is not an action",
             "no gradient for ending: answers grow without bound",
             "karpathy/nanochat#810, huggingface/trl#6357, rasbt/reasoning-from-scratch#185",
             "rollout.py",
             ("lengths[rows] += ~finished[rows]\n"
              "        stops ="),
             ("lengths[rows] += ~finished[rows] & ~torch.isin(next_tokens, stop_ids)\n"
              "        stops ="),
             "test_rollout.py",
             run="grpo"),
    Mutation("no_stop_token",
             "Demonstrations without their stop token",
             "the SFT model never ends its answers",
             "karpathy/nanochat#810", "support/data.py",
             "return tokenizer.encode(completion) + [tokenizer.eos_id]",
             "return tokenizer.encode(completion)",
             "test_data.py",
             run="sft_data"),
    Mutation("mask_from_ids",
             "The mask is inferred from ids: everything that is not the padding id",
             "where pad and a real token share an id, real actions vanish",
             "huggingface/trl#4974", "rollout.py",
             "mask = written & ~told[:, :T]",
             "mask = (tokens[:, :T] * written != 0) & ~told[:, :T]",
             "test_rollout.py",
             run="grpo",
             unseen="no token of an answer has the id of the padding"),
    Mutation("padding_is_action",
             "Padding after an answer without a stop token counts as actions",
             "answers seem longer than they are, and padding is trained on",
             "volcengine/verl#3805",
             "rollout.py",
             "mask = written & ~told[:, :T]",
             "mask = ~told[:, :T]",
             "test_rollout.py",
             run="grpo"),
    Mutation("positions_of_longest",
             "All rows of a batch get the positions of the longest",
             "rows of other lengths see wrong distances",
             "huggingface/trl#6800", "rollout.py",
             "positions = prompt_lengths[rows] + i",
             "positions = torch.full_like(rows, P + i)",
             "test_rollout.py",
             run="grpo"),
    Mutation("one_noise",
             "One noise for all samples of a prompt",
             "all samples of a group begin alike, and no group has a signal",
             PUBLIC, "support/parallel.py",
             "noise = torch.rand(n, max_new_tokens, generator=generator)",
             "noise = torch.rand(1, max_new_tokens, generator=generator).expand(n, -1)",
             "test_parallel.py",
             run="grpo"),
    Mutation("inputs_overwritten",
             "Masked inputs are overwritten in place",
             "what is counted or logged later is not what was given",
             PUBLIC,
             "losses.py",
             "return [x.masked_fill(off, 0) for x in tensors.values()]",
             ("return [x.detach().masked_fill_(off, 0) if not x.requires_grad else "
              "x.masked_fill(off, 0)\n"
              "            for x in tensors.values()]"),
             "test_peers.py",
             unseen="the scripts' inputs are 0 off the mask anyway"),
    Mutation("tool_trained_on",
             "What the environment wrote is trained on as if the policy had chosen it",
             "the policy leaves its reference to learn what a tool says, which it need not know",
             "huggingface/trl#4975",
             "rollout.py",
             "mask = written & ~told[:, :T]",
             "mask = written & (torch.arange(T, device=device) >= prompt_lengths[:, None])",
             "test_environment.py",
             run="grpo_products"),
]

RATIO = [
    Mutation("no_shift",
             "Logits score the token they saw last, not the next",
             "log-probs of the wrong tokens; nothing is learned",
             PUBLIC,
             "rollout.py",
             "model.hidden(tokens[:, :-1])[row, t - 1]",
             "model.hidden(tokens)[row, t]",
             "test_rollout.py",
             run="grpo"),
    Mutation("temperature_sampling_only",
             "Temperature in sampling only",
             "what is scored is not what was sampled: a hidden off-policy bias",
             "huggingface/trl#3029, #4159",
             "rollout.py",
             "logits = [x / temperature for x in logits]",
             "pass",
             "test_rollout.py",
             run="grpo_hot"),
    Mutation("temperature_not_trained",
             "The training pass without the sampling temperature",
             "the ratio is not 1 at first; another policy is trained than sampled",
             "",
             "train_grpo.py",
             "policy, t, m, config.temperature, config.entropy_coef > 0)",
             "policy, t, m, 1.0, config.entropy_coef > 0)",
             "test_steps.py::test_grpo",
             run="grpo_hot"),
    Mutation("low_precision",
             "Log-probs computed in the model's low precision",
             "the ratio is not 1 on the first update",
             "jingyaogong/minimind#814", "losses.py",
             "return x if x.dtype == torch.float64 else x.float()",
             "return x",
             "test_losses.py",
             unseen="on a CPU logits are in float32 anyway"),
    Mutation("clip_min",
             "The clip turned round: min where the loss needs max",
             "negative advantages are pushed without bound; invisible while the ratio is 1",
             "rasbt/reasoning-from-scratch#240", "losses.py",
             "loss = torch.maximum(unclipped, clipped)\n    is_clipped",
             "loss = torch.minimum(unclipped, clipped)\n    is_clipped",
             "test_losses.py",
             run="dapo"),
    Mutation("clips_swapped",
             "clip_low and clip_high swapped",
             "invisible while they are equal: DAPO's higher clip is a lower one",
             "",
             "methods.py",
             "self.clip_range = self.clip_low, self.clip_high",
             "self.clip_range = self.clip_high, self.clip_low",
             "test_steps.py::test_grpo",
             run="dapo"),
    Mutation("old_logp_each_pass",
             "Old log-probs taken anew before each pass",
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
             "test_steps.py::test_ppo",
             run="ppo"),
    Mutation("same_minibatches",
             "One noise for every pass over a step's answers",
             "each pass makes the same mini-batches",
             "",
             "train_grpo.py",
             'f"{config.algorithm} epoch {epoch}"',
             'f"{config.algorithm} epoch"',
             "test_steps.py::test_grpo",
             run="dapo"),
]

KL = [
    Mutation("k1_reversed",
             "The difference the wrong way round",
             '"KL" goes negative, and the policy is pushed away from the reference',
             "huggingface/trl#925", "losses.py",
             "return logp - ref_logp\n",
             "return ref_logp - logp\n",
             "test_losses.py",
             run="grpo_kl_target"),
    Mutation("k1_in_loss",
             "k1 as the penalty in the loss",
             "its expected gradient is 0: the penalty does nothing",
             "allenai/open-instruct#534",
             "losses.py",
             "kl = kl_penalty(logp, ref_logp, mask)",
             'kl = kl_penalty(logp, ref_logp, mask, "k1")',
             "test_peers.py",
             run="grpo_kl_target"),
    Mutation("kl_on_padding",
             "The KL penalty counted on the padding",
             "rewards depend on how much padding there is",
             PUBLIC,
             "advantages.py",
             ("    logp = logp.masked_fill(~mask, 0)\n"
              "    ref_logp = ref_logp.masked_fill(~mask, 0)\n"),
             "",
             "test_losses.py test_peers.py",
             unseen="the scripts' log-probs are 0 off the mask anyway"),
    Mutation("reference_temperature",
             "The reference without the sampling temperature",
             "a KL between policies that nothing sampled from",
             "",
             "train_grpo.py",
             ("token_log_probs, reference.model, tokens, mask, max_tokens, "
              "config.temperature)"),
             "token_log_probs, reference.model, tokens, mask, max_tokens, 1.0)",
             "test_steps.py::test_grpo",
             run="grpo_hot"),
    Mutation("reference_is_policy",
             "The reference is the policy itself",
             "KL is 0 for ever",
             PUBLIC,
             "support/models.py",
             "self.model = copy.deepcopy(model).requires_grad_(False)",
             "self.model = policy",
             "test_scripts.py",
             run="grpo"),
    Mutation("ref_sync_each_step",
             "--ref-sync N copies the policy at every step",
             "KL is near 0 for ever",
             "",
             "support/models.py",
             "self.sync_every and (step + 1) % self.sync_every == 0:",
             "self.sync_every:",
             "test_steps.py::test_grpo",
             run="grpo_ref_sync"),
    Mutation("ref_ema_swapped",
             "The reference's moving average with its weights swapped",
             "the reference is nearly the policy: KL is near 0 for ever",
             "",
             "support/models.py",
             "p_ref.lerp_(p, 1 - self.ema)",
             "p_ref.lerp_(p, self.ema)",
             "test_steps.py::test_ppo",
             run="grpo_ref_ema"),
    Mutation("adaptive_kl_reversed",
             "The adaptive β turned round",
             "β grows where KL is small: nothing is learned, or all is lost",
             "",
             "support/rl.py",
             "adaptive_kl_coef(self.value, answer_kl, self.target,",
             "adaptive_kl_coef(self.value, self.target, answer_kl or 1e-9,",
             "test_steps.py::test_grpo",
             run="grpo_kl_target"),
    Mutation("ppo_without_kl",
             "PPO without any KL penalty",
             "the score rises, and the answers leave the language",
             "",
             "train_ppo.py",
             "token_rewards(rewards, old_logp, ref_logp, mask, kl_coef.value)",
             "token_rewards(rewards, old_logp, old_logp, mask, kl_coef.value)",
             "test_steps.py::test_ppo",
             run="ppo"),
    Mutation("kl_paid_twice",
             "KL in the reward, and in the loss as well",
             "β is paid twice",
             "",
             "support/rl.py",
             'return self.value if self.kl_in == "loss" else 0.0',
             "return self.value",
             "test_steps.py::test_grpo",
             run="rloo"),
]

REWARDS = [
    Mutation("score_on_last_column",
             "The score on the last column instead of the last action",
             "short answers get no reward at all",
             "huggingface/trl#3750", "advantages.py",
             "is_last = mask & (actions_left == 1)",
             "is_last = torch.arange(mask.shape[1], device=mask.device) == mask.shape[1] - 1",
             "test_losses.py",
             run="ppo"),
    Mutation("cut_off_verified",
             "A cut-off answer is verified like a finished one",
             "the model learns that it need not end",
             "huggingface/trl#1536", "support/rewards.py",
             "scores = [score * end for score, end in zip(scores, finished)]",
             "pass",
             "test_data.py",
             run="grpo_short"),
    Mutation("cut_off_scored",
             "An unfinished answer scored by the reward model",
             "it never saw one: answers that never end may score best",
             "vwxyzjn/lm-human-preference-details",
             "support/rl.py",
             "return torch.where(rollout.finished, scores, self.unfinished_score)",
             "return scores",
             "test_scripts.py",
             run="ppo_rm"),
    Mutation("scored_at_padding",
             "The reward model read at the last column",
             "a score depends on how much padding follows",
             PUBLIC,
             "rollout.py",
             "return reward_model(tokens).gather(1, last).squeeze(1)",
             "return reward_model(tokens)[:, -1]",
             "test_rollout.py",
             run="ppo_rm"),
]

ADVANTAGES = [
    Mutation("value_after_action",
             "The critic's value of the state after the action",
             "the advantage already contains what the action did",
             PUBLIC,
             "rollout.py",
             "F.pad(critic(tokens[:, :-1]), (1, 0))",
             "F.pad(critic(tokens[:, :-1]), (0, 1))",
             "test_rollout.py",
             run="ppo"),
    Mutation("gae_in_holes",
             "GAE does not skip holes",
             "a tool's output between two actions adds discounting and zero values",
             PUBLIC,
             "advantages.py",
             "next_value = torch.where(is_action, value, next_value)",
             "next_value = value",
             "test_losses.py",
             run="ppo_products"),
    Mutation("discount_in_holes",
             "The discount and the TD error are taken across what the environment wrote",
             "the longer a tool's output, the less the call before it has to do with the reward",
             "radixark/miles#1827, verl-project/verl#2337",
             "advantages.py",
             ("running = torch.where(is_action, advantage, running)        "
              "# a hole changes nothing\n"
              "        next_value = torch.where(is_action, value, next_value)"),
             ("running = advantage\n"
              "        next_value = value"),
             "test_policy_gradient.py::test_a_tools_tokens_are_not_discounted",
             run="ppo_products"),
    Mutation("gamma_lambda_swapped",
             "γ and λ swapped",
             "with γ = 1, as usual, λ does nothing and rewards are discounted",
             "",
             "train_ppo.py",
             "gae(rewards_t, old_values, mask, config.gamma, config.lam)",
             "gae(rewards_t, old_values, mask, config.lam, config.gamma)",
             "test_steps.py::test_ppo",
             run="ppo"),
    Mutation("targets_whitened",
             "The critic's targets from whitened advantages",
             "the critic learns a moving, unitless target",
             PUBLIC,
             "train_ppo.py",
             "advantages = whiten(advantages, mask)",
             ("advantages = whiten(advantages, mask)\n"
              "        returns = (advantages + old_values) * mask"),
             "test_scripts.py",
             run="ppo"),
    Mutation("values_clipped_to_themselves",
             "Values are clipped around themselves",
             "the clip of the values does nothing",
             "",
             "train_ppo.py",
             "value_loss(V, old_values[micro, :T],",
             "value_loss(V, V.detach(),",
             "test_steps.py::test_ppo",
             run="ppo"),
    Mutation("critic_lr",
             "The critic at the actor's learning rate",
             "it is always behind; λ below 1 is biased",
             "", "train_ppo.py",
             "lr=config.critic_lr",
             "lr=config.lr",
             "test_steps.py::test_ppo",
             run="ppo"),
    Mutation("no_warmup",
             "No warm-up: the critic's noise moves the policy",
             "garbage advantages wreck the policy before the critic has learned",
             "CarperAI/trlx#345",
             "train_ppo.py",
             "if step < config.critic_warmup:",
             "if False:",
             "test_scripts.py",
             run="ppo"),
    Mutation("whiten_shifts",
             "Whitening shifts the mean although told not to",
             "the sign of a reward depends on its batch",
             "vwxyzjn/lm-human-preference-details",
             "advantages.py",
             ("    if not shift_mean:\n"
              "        whitened = whitened + mean\n"),
             "",
             "test_losses.py",
             unseen="no script whitens and keeps the mean"),
    Mutation("equal_rewards",
             "Equal rewards are left to rounding and a tiny epsilon",
             "eight rewards of 0.7 give an advantage of 0.81",
             PUBLIC,
             "advantages.py",
             ("        advantages = advantages / (groups.std(1, keepdim=True) + eps)\n"
              "    return advantages.masked_fill(all_equal, 0).flatten()"),
             ("        advantages = advantages / (groups.std(1, keepdim=True) + eps)\n"
              "    return (advantages * (eps and 1e4)).flatten() if all_equal.all() "
              "else advantages.flatten()"),
             "test_losses.py",
             unseen="the mean of rewards of 0 and 1 has no rounding"),
    Mutation("groups_interleaved",
             "Groups interleaved instead of consecutive",
             "an answer is compared with answers to other prompts",
             "NVIDIA-NeMo/RL#3882", "advantages.py",
             "groups = rewards.view(-1, group_size)\n",
             "groups = rewards.view(group_size, -1).T\n",
             "test_peers.py",
             run="grpo"),
    Mutation("group_of_one",
             "A group of one",
             "an unbiased standard deviation of one number is NaN",
             PUBLIC, "advantages.py",
             "if group_size < 2 or rewards",
             "if group_size < 1 or rewards",
             "test_losses.py",
             unseen="--group-size 1 is refused before it comes to this"),
    Mutation("remax_other_prompt",
             "ReMax's baseline is the greedy answer to another prompt",
             "more variance than without a baseline",
             "",
             "methods.py",
             "_, greedy_rewards = answer(batch(step), i=0, temperature=0)",
             ("_, greedy_rewards = answer("
              "batch(step)[1:] + batch(step)[:1], i=0, temperature=0)"),
             "test_steps.py::test_grpo",
             run="remax"),
]

AVERAGES = [
    Mutation("micro_means",
             "The mean of micro-batch means",
             "long and short answers weigh differently with the micro-batch size",
             "huggingface/trl#3021, volcengine/verl#3741, allenai/open-instruct#1161",
             "train_grpo.py",
             "kl_coef.in_loss, config.aggregate, denominator)",
             "kl_coef.in_loss, config.aggregate)",
             "test_scripts.py",
             run="grpo"),
    Mutation("micro_means_sft",
             "The mean of micro-batch means, in SFT",
             "long and short demonstrations weigh differently with the micro-batch size",
             "huggingface/trl#2995", "train_sft.py",
             "denominator=mask.sum())",
             "denominator=m.sum())",
             "test_scripts.py",
             run="sft"),
    Mutation("dr_grpo_length",
             "Dr. GRPO that still divides by each answer's length",
             "only one of its two changes: the length bias stays",
             PUBLIC,
             "methods.py",
             '"dr_grpo":      ("group",     "grpo",      "seq-sum", ',
             '"dr_grpo":      ("group",     "grpo",      "seq-mean",',
             "test_steps.py::test_grpo",
             run="dr_grpo"),
]

UPDATES = [
    Mutation("clipped_each_micro_batch",
             "Gradients clipped after each micro-batch",
             "the step depends on the micro-batch size",
             PUBLIC, "train_grpo.py",
             "                    loss.backward()\n",
             ("                    loss.backward()\n"
              "                    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)\n"),
             "test_scripts.py",
             run="grpo"),
    Mutation("gradients_kept",
             "Gradients are not cleared between updates",
             "every update repeats all before it",
             "",
             "train_sft.py",
             "        optimizer.zero_grad()\n",
             "",
             "test_steps.py::test_sft",
             run="sft"),
    Mutation("momentum_alone",
             "Momentum without a gradient",
             "weights move on where nothing was learned",
             "",
             "train_grpo.py",
             "if 0 < grad_norms[-1] < math.inf:",
             "if grad_norms[-1] < math.inf:",
             "test_scripts.py::test_without_signal_the_policy_stays_where_it_is",
             run="grpo_tiny"),
    Mutation("equal_rewards_dropped",
             "No signal taken from equal rewards, whatever the advantage",
             "ReMax and REINFORCE++ throw groups away that they would learn from",
             "",
             "methods.py",
             "no_signal = (advantages == 0).all(1).view(rows.shape).all(1)",
             ("groups = advantages.reshape(*rows.shape, -1)\n"
              "    no_signal = (groups == groups[:, :1]).all(2).all(1)"),
             "test_steps.py::test_grpo",
             run="remax"),
    Mutation("first_groups_kept",
             "Dynamic sampling keeps the first groups instead of those with a signal",
             "it samples more, and learns from as little as before",
             "",
             "methods.py",
             "rows = rows[~no_signal][:config.prompts_per_step]",
             "rows = rows[:config.prompts_per_step]",
             "test_steps.py::test_grpo",
             run="dapo"),
    Mutation("lr_constant",
             "A learning rate that never falls",
             "the last steps are noise",
             "", "train_dpo.py",
             'group["lr"] = config.lr * (1 - step / config.steps)',
             'group["lr"] = config.lr',
             "test_steps.py::test_preferences",
             run="dpo"),
]

PREFERENCES = [
    Mutation("ipo_summed",
             "IPO on summed log-probs where averaged ones are meant",
             "the margin's target depends on the answers' lengths",
             "huggingface/trl#1677",
             "train_dpo.py",
             ("return ipo_loss(chosen / n_chosen, rejected / n_rejected, ref_chosen / "
              "n_chosen,\n"
              "                        ref_rejected / n_rejected, config.beta, n_pairs)"),
             ("return ipo_loss(chosen, rejected, ref_chosen, ref_rejected, "
              "config.beta, n_pairs)"),
             "test_scripts.py",
             run="ipo"),
    Mutation("simpo_summed",
             "SimPO on summed log-probs",
             "long answers have the larger margins",
             "", "train_dpo.py",
             "simpo_loss(chosen / n_chosen, rejected / n_rejected,",
             "simpo_loss(chosen, rejected,",
             "test_steps.py::test_preferences",
             run="simpo"),
    Mutation("kto_sign",
             "KTO's reference point with its sign turned",
             "clamped to 0 wherever the policy has moved: KTO without its point",
             "", "train_dpo.py",
             "kto_point = (logp - ref_logp[2]).mean()",
             "kto_point = (ref_logp[2] - logp).mean()",
             "test_steps.py::test_preferences",
             run="kto"),
    Mutation("kto_below_zero",
             "KTO's reference point may fall below 0",
             "it estimates a KL, which never does; answers then count as good for free",
             "", "train_dpo.py",
             ".mean().clamp(min=0)",
             ".mean()",
             "test_steps.py::test_preferences",
             run="kto"),
    Mutation("nll_per_pair",
             "The mean of each pair's NLL in place of all tokens'",
             "tokens of short answers weigh more",
             "",
             "train_dpo.py",
             "loss = loss - config.nll_coef * logp[0].sum() / mask[0].sum()",
             ("loss = loss - config.nll_coef * (logp[0] / m[0].sum(1)).sum() / "
              "len(pairs)"),
             "test_steps.py::test_preferences",
             run="dpo"),
]

DATA = [
    Mutation("special_text",
             "Special-token text in a user's string becomes the special token",
             "a prompt can end the conversation it is in",
             "axolotl-ai-cloud/axolotl#1616", "support/tokenizer.py",
             'for special in {True, token["special"]}:',
             "for special in (True, False):",
             "test_data.py",
             unseen="the built-in prompts hold no special-token text"),
    Mutation("nested_precision",
             "A run that another one trains first leaves its own precision behind",
             "what runs is not what config.json says",
             "",
             "support/run.py",
             ("        # The nested run switched autocast as its own settings say.\n"
              "        pick_device(config)"),
             "        # The nested run switched autocast as its own settings say.",
             "test_scripts.py::test_a_run_that_trains_what_it_needs_keeps_its_own_precision",
             unseen="on a CPU both runs are in float32"),
    Mutation("row_in_process",
             "The row that is asked about is numbered within its process",
             "under torchrun, an environment answers with what it knows of another conversation",
             "",
             "support/parallel.py",
             "return environment(first + row, ids)",
             "return environment(row, ids)",
             "test_environment.py",
             unseen="a run has one process"),
    Mutation("weights_inverted",
             "Importance weights upside down",
             "what the sampler drew too often counts for more still",
             "",
             "methods.py",
             "log_ratio = (old_logp - sampler_logp)",
             "log_ratio = (sampler_logp - old_logp)",
             "test_stale.py",
             unseen="in float32 the sampler is the policy, and all weights are 1"),
    Mutation("weights_of_one",
             "Importance weights where the sampler's log-probs stand for the policy's",
             "every importance weight is 1",
             "",
             "methods.py",
             ' and self.kl_in == "loss" and not self.importance_cap',
             ' and self.kl_in == "loss"',
             "test_steps.py::test_grpo[rloo_weighted]",
             unseen="in float32 the sampler is the policy, and all weights are 1"),
    Mutation("graph_hides_its_token",
             "The mask of a cache of fixed size hides the token that is being computed",
             "no token attends to itself: another policy is sampled from than trained",
             "",
             "support/graphs.py",
             "self.columns > self.column",
             "self.columns >= self.column",
             "test_graphs.py",
             unseen="on a CPU nothing is decoded by graphs"),
]

# In the order of a lesson. A mistake's number is its place in all of them.
SECTIONS = {
    "Layout and mask": LAYOUT,
    "Log-probs and the ratio": RATIO,
    "KL and the reference": KL,
    "Rewards": REWARDS,
    "Advantages, returns and the critic": ADVANTAGES,
    "Losses and averages": AVERAGES,
    "The update loop": UPDATES,
    "Preferences": PREFERENCES,
    "Data, precision and processes": DATA,
}
MUTATIONS = [mutation for section in SECTIONS.values() for mutation in section]
NUMBERS = {mutation.name: number for number, mutation in enumerate(MUTATIONS, start=1)}


def copy_project(folder: Path, mutation: Mutation | None = None) -> Path:
    """A copy of the project's code in this folder, with the mutation made."""
    copy = folder / "copy"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns("runs", ".*", "docs"))
    if mutation:
        source = (copy / mutation.file).read_text(encoding="utf-8")
        if (count := source.count(mutation.old)) != 1:
            raise SystemExit(f"mutation {mutation.name}: its text occurs {count} times in "
                             f"{mutation.file}, expected once")
        (copy / mutation.file).write_text(
            source.replace(mutation.old, mutation.new), encoding="utf-8")
    return copy


def failing_test(tests: str, mutation: Mutation | None = None) -> str:
    """The test that fails in a copy of the project with the mutation made, or "" if none does."""
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_project(Path(folder), mutation)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header",
                   *(f"tests/{name}" for name in tests.split())]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
        failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+::[^\s\[]+)", done.stdout, re.M)
        if done.returncode and not failed:
            raise SystemExit(f"pytest did not run:\n{done.stdout}{done.stderr}")
        return failed.group(1) if failed else ""


def main(arguments: list[str]) -> int:
    numbers = [argument for argument in arguments if argument != "--table"]
    if unknown := set(numbers) - set(map(str, NUMBERS.values())):
        raise SystemExit(f"mutations.py: {', '.join(sorted(unknown))}: no such mistake, "
                         f"expected 1 to {len(MUTATIONS)}")
    wanted = [m for m in MUTATIONS if not numbers or str(NUMBERS[m.name]) in numbers]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        if failed := failing_test(
                " ".join(sorted({name for m in wanted for name in m.tests.split()}))):
            raise SystemExit(f"{failed} fails without any mutation")
        killed = {}
        for mutation, test in zip(wanted, pool.map(lambda m: failing_test(m.tests, m), wanted)):
            killed[mutation.name] = test
            print(f"{NUMBERS[mutation.name]:3} {mutation.mistake}: "
                  f"{'killed by ' + test if test else 'SURVIVED'}", flush=True)
    survivors = [str(NUMBERS[name]) for name, test in killed.items() if not test]
    print(f"{len(wanted) - len(survivors)} of {len(wanted)} mistakes noticed"
          + (f"; not: {', '.join(survivors)}" if survivors else ""))
    if "--table" in arguments:
        write_table(killed)
    return bool(survivors)


def write_table(killed: dict[str, str]) -> None:
    """noticed_by.csv, in which other mistakes keep their test; then docs/MISTAKES.md."""
    found = {}
    if NOTICED_BY.exists():
        with open(NOTICED_BY, newline="", encoding="utf-8") as f:
            found = {row["mistake"]: row["test"] for row in csv.DictReader(f)}
    found |= killed
    with open(NOTICED_BY, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("mistake", "test"))
        writer.writerows((m.name, found.get(m.name, "")) for m in MUTATIONS)
    sys.path.append(str(ROOT / "docs"))
    import mistakes
    mistakes.write()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
