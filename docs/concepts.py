"""From idea to line: `python docs/concepts.py` writes docs/CONCEPTS.md with every line number as it
is now, and so the links in docs/DERIVATIONS.md, and docs/ERRATA.md.
"""
import ast
import functools
import json
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "CONCEPTS.md"


class Concept(NamedTuple):
    """A row of the page.

    term: what comes before its first comma is its name.
    code: places, FILE:NAME (a function, a class, or an assignment of the module), or FILE:NAME:TEXT
    (the one line inside it that has TEXT).
    tests: FILE::NAME in tests/, or test_peers.py::test_peer[PREFIX] for the recorded calls whose
    ids begin so.
    experiment: of compare.py, or "table" for its table, or "curves" for docs/READING_CURVES.md, or
    "" if none shows it.
    """
    term: str
    chinese: str
    equation: str
    code: list[str]
    tests: list[str]
    experiment: str
    english: str
    in_chinese: str


# A \ joins two lines: the page's lines are longer than those of a source file.
INTRO = """# From idea to line

Every concept of reinforcement learning for language models that this code embodies: \
its name in English and Chinese, its equation, the
line that computes it, the test that proves it, the experiment that shows it. \
Read the sections in order: text as a decision process,
values, policy gradients, PPO, KL, groups, preferences, and what goes wrong. \
Where the code has no such thing, the row says so. For an
interview: cover all but the first column, say the equation and why it is so, then open the line.

从概念到代码：每一行给出中英文术语、公式、计算它的代码行、证明它的测试和展示它的实验；\
代码里没有的，如实说明。准备面试时，只看第一列，
先说出公式和理由，再打开代码核对。

Why an equation is so: [DERIVATIONS.md](DERIVATIONS.md), step by step; \
below each heading are the pages that belong to it.
公式为什么成立，见[公式推导](DERIVATIONS.zh.md)；每节标题下列出相关的篇目。

Notation: prompt x, answer y of T tokens, state s_t, action a_t, policy π, \
the policy that sampled π_old, reference π_ref, ρ_t = π / π_old,
σ the logistic function. `python docs/concepts.py` writes this page; lines are looked up, not typed.
"""

MDP = [
    Concept(
        "state", "状态",
        equation="s_t = tokens[b, :t]",
        code=["rollout.py:_score_actions:states = [model.hidden"],
        tests=["test_model.py::test_what_comes_after_changes_nothing",
               "test_rollout.py::test_log_probs_are_those_of_the_full_logits"],
        experiment="",
        english=("The prompt and all tokens before token t. "
                 "The next state is this one plus the action: only the policy is random."),
        in_chinese="提示词加第 t 个 token 之前的全部 token；转移是确定的：把动作接在末尾。"),
    Concept(
        "action", "动作",
        equation="a_t = tokens[b, t] ~ π(· ∣ s_t)",
        code=["rollout.py:sample:torch.searchsorted"],
        tests=["test_rollout.py::test_sampler_follows_the_distribution"],
        experiment="",
        english="One token of the vocabulary, drawn by inverting the cumulative distribution.",
        in_chinese="词表中的一个 token，由累积分布的逆采样得到。"),
    Concept(
        "mask, and its holes", "动作掩码",
        equation="mask[b, t] = 1  ⇔  token t was chosen by the policy",
        code=["rollout.py:generate:mask = written"],
        tests=["test_rollout.py::test_layout",
               "test_losses.py::test_gae_by_hand"],
        experiment="",
        english=("0 on prompts, padding and what a tool wrote between two actions (a hole). "
                 "Made from lengths, never from token ids."),
        in_chinese="提示词、填充和工具输出为 0；由长度得出，从不由 token id 推断。"),
    Concept(
        "stop token, an action", "结束符（EOS），也是动作",
        equation="mask = 1 at the stop token: log π(stop ∣ s_T) is trained",
        code=["rollout.py:generate:lengths[rows] += ~finished"],
        tests=["test_rollout.py::test_stop_token_is_an_action",
               "test_data.py::test_answers_end_with_the_stop_token"],
        experiment="",
        english="Ending is a decision: without its gradient, answers grow without bound.",
        in_chinese="何时结束也是决策；没有它的梯度，回答会越来越长。"),
    Concept(
        "policy", "策略",
        equation="π(a ∣ s) = softmax(logits(s) / temperature)[a]",
        code=["rollout.py:_score_actions:model.lm_head(h).float()"],
        tests=["test_rollout.py::test_log_probs_are_those_of_the_full_logits"],
        experiment="",
        english="The language model itself; log-probs in float32, of actions only.",
        in_chinese="语言模型本身；只对动作计算 float32 的对数概率。"),
    Concept(
        "temperature", "温度",
        equation="softmax(logits / temperature);  0: argmax (greedy)",
        code=["rollout.py:sample:probs = torch.softmax"],
        tests=["test_rollout.py::test_sampled_log_probs_are_the_scored_ones",
               "test_rollout.py::test_greedy_takes_the_most_likely_token"],
        experiment="",
        english=("The policy that is trained is the one that sampled: "
                 "log-probs are taken at the sampling temperature."),
        in_chinese="训练的就是采样时的策略：对数概率用同一温度计算。"),
    Concept(
        "trajectory", "轨迹",
        equation="y = a_1 … a_T,   log π(y ∣ x) = Σ_t log π(a_t ∣ s_t)",
        code=["rollout.py:Rollout"],
        tests=["test_rollout.py::test_layout",
               "test_policy_gradient.py::test_the_answers_are_all_there_are"],
        experiment="",
        english="A prompt and its answer are one episode; a batch of them is a rollout.",
        in_chinese="一个提示词及其回答是一个回合；一批轨迹即一次 rollout。"),
    Concept(
        "environment, which answers between two actions", "环境（工具、用户、搜索）",
        equation="s_{t+1} = s_t, a_t, o:  ∇ log p(o ∣ s_t, a_t) = 0",
        code=["rollout.py:_ask:replies.append(environment",
              "rollout.py:generate:next_tokens = torch.where(is_told",
              "support/environments.py:Conversations"],
        tests=["test_environment.py::test_sampled_log_probs_are_the_scored_ones_after_a_hole",
               "test_policy_gradient.py::test_with_a_tool_every_estimator_has_the_exact_gradient",
               "test_policy_gradient.py::test_training_on_the_worlds_tokens_bends_the_gradient"],
        experiment="",
        english=("What it writes (o) is part of the next state, and nobody's choice: no gradient, "
                 "no discount, no KL. With one, text is a decision process like any other; "
                 "without, only the policy is random."),
        in_chinese="环境写的内容（o）属于下一个状态，不是动作：没有梯度，不折扣，不计 KL。"),
    Concept(
        "truncation", "截断",
        equation="finished[b] = False: max_new_tokens came before a stop token",
        code=["support/rewards.py:reward_answers:score * end",
              "support/rl.py:Reward:torch.where(rollout.finished"],
        tests=["test_data.py::test_a_cut_off_answer_is_never_right",
               "test_scripts.py::test_ppo_hands_the_right_tensors_on"],
        experiment="curves",
        english=("0 from the built-in verifier, −5 in place of a reward model's score. "
                 "Nothing is bootstrapped, though `gae` could."),
        in_chinese="校验器给 0 分，奖励模型的分数换成 −5；不做自举（gae 支持）。"),
    Concept(
        "KV cache", "KV 缓存（键值缓存）",
        equation="keys, values of s_{t+1} = those of s_t and one more",
        code=["model.py:KVCache"],
        tests=["test_model.py::test_cache_equals_full_forward_at_every_position"],
        experiment="",
        english="Sampling a token costs one token's forward pass, not the whole answer's.",
        in_chinese="每采样一个 token 只前向计算一个 token。"),
    Concept(
        "outcome rewards", "结果奖励",
        equation="r_t = 0 for t < T,   r_T = score(x, y)",
        code=["advantages.py:token_rewards:return penalty"],
        tests=["test_losses.py::test_score_sits_on_the_last_action"],
        experiment="",
        english="The whole answer is judged once, at its last action (before any KL penalty).",
        in_chinese="整个回答只在最后一个动作处打一次分。"),
    Concept(
        "process rewards", "过程奖励",
        equation="r_t ≠ 0 at every step of the reasoning",
        code=["advantages.py:discounted_returns", "advantages.py:gae"],
        tests=["test_policy_gradient.py::test_reinforce"],
        experiment="",
        english=("Not here: no process reward model. But returns and GAE take any (B, T) rewards, "
                 "and this test has one at every action."),
        in_chinese="本代码没有过程奖励模型；但回报和 GAE 接受逐 token 的奖励。"),
    Concept(
        "verifiable rewards", "可验证奖励（RLVR）",
        equation="r(x, y) = 1 if the answer is right, else 0",
        code=["task.py:verify_answer", "support/rewards.py:exact_reward"],
        tests=["test_data.py::test_verifier", "test_data.py::test_exact"],
        experiment="table",
        english="A program checks the answer: no learned score that could be fooled.",
        in_chinese="由程序判断对错，没有学出来的分数可以被欺骗。"),
]

VALUES = [
    Concept(
        "return", "回报",
        equation="G_t = r_t + γ G_{t+1} = Σ_k γ^k r_{t+k}",
        code=["advantages.py:discounted_returns:running = torch.where"],
        tests=["test_losses.py::test_gae_ends",
               "test_policy_gradient.py::test_reinforce"],
        experiment="",
        english=("What is earned from action t on. The discount γ is 1 by default: "
                 "an answer is short, and a late reward is worth as much."),
        in_chinese="从动作 t 起的累计奖励；折扣因子 γ 默认为 1。"),
    Concept(
        "V, the value of a state", "状态价值函数",
        equation="V(s) = E_π[G_t ∣ s_t = s]",
        code=["rollout.py:token_values"],
        tests=["test_policy_gradient.py::test_the_critic_is_repaired_by_monte_carlo_targets",
               "test_rollout.py::test_value_of_a_state_is_read_before_its_action"],
        experiment="lambda",
        english=("What the policy may expect from here on, before it acts: "
                 "V(s_t) has not seen token t."),
        in_chinese="在动作之前的期望回报：V(s_t) 看不到第 t 个 token。"),
    Concept(
        "Q, the value of an action", "动作价值函数",
        equation="Q(s, a) = r(s, a) + γ V(s + a)",
        code=["advantages.py:gae:delta = rewards"],
        tests=["test_policy_gradient.py::test_gae_with_lambda_below_1_needs_the_right_critic"],
        experiment="",
        english=("No model of Q: as text moves deterministically, r + γV(next state) is Q, "
                 "and a return is a sample of it."),
        in_chinese="没有 Q 网络：转移是确定的，r + γV(s') 就是 Q，回报是它的样本。"),
    Concept(
        "advantage", "优势函数",
        equation="A(s, a) = Q(s, a) − V(s),   Σ_a π(a ∣ s) A(s, a) = 0",
        code=["advantages.py:gae:running = torch.where"],
        tests=["test_policy_gradient.py::test_gae_with_lambda_below_1_needs_the_right_critic"],
        experiment="",
        english="How much better an action was than what the policy does on average.",
        in_chinese="一个动作比该状态下的平均水平好多少。"),
    Concept(
        "Bellman equation", "贝尔曼方程",
        equation="V(s) = Σ_a π(a ∣ s) [r(s, a) + γ V(s + a)]",
        code=["tests/test_policy_gradient.py:World:# Bellman",
              "losses.py:value_loss"],
        tests=["test_policy_gradient.py::test_the_critic_converges_to_the_bellman_values"],
        experiment="",
        english=("Solved exactly only in the tests' world of 15 answers; "
                 "the critic regresses on sampled targets, whose fixed point is its solution."),
        in_chinese="只在测试的小世界里精确求解；评论家用采样目标回归，其不动点就是方程的解。"),
    Concept(
        "TD error", "时序差分误差（TD 误差）",
        equation="δ_t = r_t + γ V(s_{t+1}) − V(s_t)",
        code=["advantages.py:gae:delta = rewards"],
        tests=["test_losses.py::test_gae_by_hand",
               "test_losses.py::test_gae_ends"],
        experiment="",
        english="How far V was from what one step later is known.",
        in_chinese="走一步之后，V 的估计错了多少。"),
    Concept(
        "Monte Carlo", "蒙特卡洛方法",
        equation="A_t = G_t − V(s_t)   (λ = 1)",
        code=["advantages.py:discounted_returns"],
        tests=["test_losses.py::test_gae_ends",
               "test_policy_gradient.py::test_the_critic_is_repaired_by_monte_carlo_targets"],
        experiment="lambda",
        english=("Wait for the end and count: "
                 "no bias whatever V is, but the noise of all later actions."),
        in_chinese="等回合结束再计算：无偏，但方差大。"),
    Concept(
        "TD, temporal difference", "时序差分（自举）",
        equation="A_t = δ_t   (λ = 0)",
        code=["advantages.py:gae:delta = rewards"],
        tests=["test_losses.py::test_gae_ends",
               "test_policy_gradient.py::test_gae_with_lambda_below_1_needs_the_right_critic"],
        experiment="lambda",
        english=("Trust V for all but the next step (bootstrapping): "
                 "little noise, but V's error becomes bias."),
        in_chinese="一步之后就相信 V：方差小，但 V 的误差变成偏差。"),
    Concept(
        "GAE, generalised advantage estimation", "广义优势估计",
        equation="A_t = δ_t + γλ A_{t+1} = Σ_k (γλ)^k δ_{t+k}",
        code=["advantages.py:gae:running = torch.where"],
        tests=["test_losses.py::test_gae_by_hand",
               "test_peers.py::test_peer[verl.gae]"],
        experiment="lambda",
        english="Between the two, as a reverse loop over an answer; holes are skipped.",
        in_chinese="用 λ 在两者之间插值；从后往前一次循环，跳过空洞。"),
    Concept(
        "bias and variance, of λ", "偏差与方差的权衡",
        equation="λ = 1: unbiased for any V;   λ < 1: unbiased if V is right",
        code=["train_ppo.py:Config:lam: float"],
        tests=["test_policy_gradient.py::test_gae_with_lambda_below_1_needs_the_right_critic",
               "test_policy_gradient.py::test_a_smaller_lambda_has_less_variance"],
        experiment="lambda",
        english=("A smaller λ trusts V more: less variance "
                 "(λ = 0 has half of it in the tests' world), and V's error becomes bias."),
        in_chinese="λ 越小越依赖 V：方差更小（测试的小世界里约为一半），但 V 的误差变成偏差。"),
    Concept(
        "value loss", "价值损失",
        equation="½ E[(V(s_t) − R_t)²],   R_t = A_t + V_old(s_t)",
        code=["losses.py:value_loss:loss = error",
              "advantages.py:gae:return advantages"],
        tests=["test_scripts.py::test_ppo_hands_the_right_tensors_on",
               "test_policy_gradient.py::test_the_critic_converges_to_the_bellman_values"],
        experiment="curves",
        english="The critic's targets come from raw advantages, never from whitened ones.",
        in_chinese="评论家的目标用未白化的优势计算。"),
]

GRADIENTS = [
    Concept(
        "policy gradient theorem, REINFORCE", "策略梯度定理，REINFORCE",
        equation="∇J = E_π[Σ_t ∇log π(a_t ∣ s_t) A_t]",
        code=["losses.py:policy_gradient_loss:loss = aggregate"],
        tests=["test_policy_gradient.py::test_reinforce"],
        experiment="",
        english=("Make likelier what turned out better. "
                 "A may be the answer's whole reward or the return: the past has expectation 0."),
        in_chinese="提高好动作的概率；用整个回答的奖励或之后的回报，期望相同。"),
    Concept(
        "baseline", "基线",
        equation="E_π[b(s) ∇log π(a ∣ s)] = 0",
        code=["advantages.py:rloo_advantages:others =",
              "advantages.py:gae:delta = rewards"],
        tests=["test_policy_gradient.py::test_gae_with_lambda_1_forgives_any_critic",
               "test_policy_gradient.py::test_rloo",
               "test_policy_gradient.py::test_a_baseline_takes_variance_away"],
        experiment="table",
        english=("What does not depend on the action adds no bias, and takes away the variance of "
                 "what all answers earn alike. The baseline's own noise comes on top."),
        in_chinese=("与动作无关的基线不引入偏差，并消除所有回答共有的那部分奖励带来的方差；"
                    "但基线自身也有噪声。")),
    Concept(
        "actor-critic", "演员-评论家（Actor-Critic）",
        equation="actor: ∇ log π · A(V);   critic: V → R",
        code=["train_ppo.py:main:= value_loss("],
        tests=["test_scripts.py::test_ppo_hands_the_right_tensors_on"],
        experiment="table",
        english="One model acts, another learns to say what to expect. They share no weights here.",
        in_chinese="一个模型行动，另一个估计价值；这里不共享参数。"),
    Concept(
        "A2C, advantage actor-critic", "优势演员-评论家",
        equation="loss = −E[A_t log π(a_t ∣ s_t)],   A from GAE",
        code=["losses.py:policy_gradient_loss"],
        tests=["test_policy_gradient.py::test_ratio_losses_are_a2c_where_the_policy_has_not_moved"],
        experiment="table",
        english=("`train_ppo.py --epochs 1 --minibatches 1`: "
                 "at ratio 1 nothing is clipped, and PPO's gradient is A2C's."),
        in_chinese="只更新一次时比率为 1，PPO 的梯度就是 A2C 的梯度。"),
    Concept(
        "on-policy", "同策略（在策略）",
        equation="a_t ~ π,   ρ_t = 1",
        code=["methods.py:MethodConfig:self.on_policy ="],
        tests=["test_policy_gradient.py::test_ratio_losses_are_a2c_where_the_policy_has_not_moved",
               "test_scripts.py::test_bfloat16_autocast"],
        experiment="",
        english=("The policy learns from its own fresh samples: "
                 "every step samples anew, and the first update has ratio 1."),
        in_chinese="用当前策略的新样本学习；每一步重新采样，第一次更新时比率为 1。"),
    Concept(
        "off-policy", "异策略（离策略）",
        equation="a_t ~ π_old ≠ π:   weigh by ρ",
        code=["train_grpo.py:main:old = logp.detach()"],
        tests=["test_policy_gradient.py::test_importance_sampling_corrects_for_another_sampler"],
        experiment="clip",
        english=("Here only slightly: later mini-batches and epochs on one rollout, "
                 "and no replay. DPO is offline: its pairs are fixed."),
        in_chinese="这里只是轻微的：同一批样本上的后几次更新，没有经验回放；DPO 则是离线的。"),
    Concept(
        "importance ratio", "重要性采样比率",
        equation="ρ_t = π(a_t ∣ s_t) / π_old(a_t ∣ s_t)",
        code=["losses.py:_log_ratio",
              "losses.py:_clipped_surrogate:ratio = log_ratio"],
        tests=["test_policy_gradient.py::test_importance_sampling_corrects_for_another_sampler"],
        experiment="clip",
        english=("The product over an answer is exact; "
                 "a token's own ratio, as PPO takes it, is not: prefixes stay π_old's."),
        in_chinese="整个回答的比率连乘才是精确的；PPO 只用单个 token 的比率。"),
    Concept(
        "entropy", "熵",
        equation="H(π) = −Σ_a π(a ∣ s) log π(a ∣ s)",
        code=["losses.py:entropy",
              "rollout.py:token_log_probs_and_entropies:entropy(logits.detach())"],
        tests=["test_peers.py::test_peer[verl.entropy]",
               "test_rollout.py::test_log_probs_are_those_of_the_full_logits"],
        experiment="curves",
        english=("How undecided the policy is. "
                 "Measured at every action, but no script has an entropy bonus."),
        in_chinese="策略的不确定程度；只记录，没有熵奖励。"),
    Concept(
        "whitening", "白化（优势归一化）",
        equation="(A − mean) / √(var + ε) over the batch",
        code=["advantages.py:whiten:torch.rsqrt"],
        tests=["test_losses.py::test_whiten",
               "test_policy_gradient.py::test_whitening_over_a_batch_bends_the_gradient"],
        experiment="",
        english=("Makes the step's size independent of the reward's unit. "
                 "A little biased: the statistics depend on the samples."),
        in_chinese="使步长与奖励的量纲无关；统计量依赖样本，所以略有偏差。"),
]

PPO = [
    Concept(
        "trust region", "信赖域（信任域，TRPO）",
        equation="max E[ρ A]  such that  E[KL(π_old‖π)] ≤ δ",
        code=['losses.py:_ratio_stats:"approx_kl"'],
        tests=["test_policy_gradient.py::test_importance_sampling_corrects_for_another_sampler"],
        experiment="clip",
        english=("TRPO is not here: `approx_kl` only reports that KL, and the clip takes the "
                 "constraint's place. The test shows the error it guards against."),
        in_chinese="没有实现 TRPO：只记录该 KL，用裁剪代替约束。"),
    Concept(
        "clip", "裁剪",
        equation="−min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)",
        code=["losses.py:_clipped_surrogate:loss = torch.maximum"],
        tests=["test_losses.py::test_where_the_clip_stops_the_gradient",
               "test_peers.py::test_peer[verl.ppo.nodual]"],
        experiment="clip",
        english=("No gradient for an action that went too far in its advantage's direction; "
                 "a step back always has one."),
        in_chinese="沿优势方向走得太远就没有梯度；往回走总有梯度。"),
    Concept(
        "dual clip", "双重裁剪",
        equation="A < 0:  loss ≤ −c A",
        code=["losses.py:_clipped_surrogate:bound ="],
        tests=["test_losses.py::test_dual_clip_bounds_the_loss",
               "test_peers.py::test_peer[verl.ppo.dualclip3]"],
        experiment="",
        english=("A bad action that became far likelier has an unbounded loss: this bounds it. "
                 "Off in the scripts."),
        in_chinese="坏动作的比率很大时，给损失设上界；脚本中默认不用。"),
    Concept(
        "four models of PPO", "PPO 的四个模型",
        equation="actor π, critic V, reference π_ref, reward model r",
        code=["train_ppo.py:main:# 1. Four models"],
        tests=["test_scripts.py::test_a_frozen_reward_model_is_bfloat16_and_the_critic_is_not",
               "test_scripts.py::test_the_reference_stays_frozen_unless_told_to_move",
               "test_scripts.py::test_reward_model_and_ppo_on_it"],
        experiment="table",
        english=("Two learn, two are frozen. "
                 "A verifier takes the reward model's place, a group's mean the critic's."),
        in_chinese="演员和评论家学习，参考模型和奖励模型冻结。"),
    Concept(
        "value clipping", "价值裁剪",
        equation="max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²)",
        code=["losses.py:value_loss:clipped_values = old_values"],
        tests=["test_peers.py::test_peer[verl.value_loss]"],
        experiment="",
        english=("Keeps V near the V that made the targets; ε is in units of reward. "
                 "`--value-clip 0` leaves it out."),
        in_chinese="限制价值函数每次更新的幅度，单位是奖励。"),
    Concept(
        "critic warm-up", "评论家预热",
        equation="the first steps train V only",
        code=["train_ppo.py:Config:critic_warmup: int"],
        tests=["test_scripts.py::test_ppo_learns"],
        experiment="",
        english=("A critic that knows nothing yet gives noise for advantages, "
                 "and the policy would follow it."),
        in_chinese="先只训练评论家，否则优势只是噪声。"),
]

KL = [
    Concept(
        "KL-regularised objective", "KL 正则化目标",
        equation="max E_π[score] − β KL(π‖π_ref):   π* ∝ π_ref exp(score / β)",
        code=["advantages.py:token_rewards:penalty = -kl_coef"],
        tests=["test_closed_form.py::test_ends_at_the_optimum"],
        experiment="kl",
        english="What RLHF maximises, and its solution. PPO, RLOO and DPO arrive there.",
        in_chinese="RLHF 的目标及其闭式解；PPO、RLOO、DPO 都收敛到它。"),
    Concept(
        "forward and reverse KL", "前向 KL 与反向 KL",
        equation=("reverse: KL(π‖π_ref) = E_π[log π/π_ref];   "
                  "forward: KL(π_ref‖π) = E_ref[log π_ref/π]"),
        code=["losses.py:kl_exact"],
        tests=["test_losses.py::test_kl_estimators_by_enumeration",
               "test_closed_form.py::test_k3_in_the_loss_ends_elsewhere"],
        experiment="",
        english=("Reverse (mode-seeking) forbids what the reference doesn't say; "
                 "forward (mass-covering) asks for all it says. k3's gradient is forward's."),
        in_chinese="反向 KL 寻找众数，前向 KL 覆盖全部；k3 作损失时，梯度是前向 KL 的。"),
    Concept(
        "KL estimators", "KL 估计量",
        equation="from samples of π, with log π − log π_ref only",
        code=["losses.py:kl_k1", "losses.py:kl_k2", "losses.py:kl_k3"],
        tests=["test_losses.py::test_why_there_are_three_kl_estimators"],
        experiment="kl",
        english=("An unbiased value and a right gradient are two questions: "
                 "k1 and k3 have the first, k2 alone the second."),
        in_chinese="值无偏与梯度正确是两回事：k1、k3 值无偏，只有 k2 梯度正确。"),
    Concept(
        "k1", "k1 估计量",
        equation="k1 = log π(a) − log π_ref(a)",
        code=["losses.py:kl_k1"],
        tests=["test_losses.py::test_kl_estimators_by_enumeration"],
        experiment="kl",
        english=("Unbiased, noisy, often negative. In the reward it is right; "
                 "as a loss its expected gradient is 0."),
        in_chinese="无偏但方差大；放进奖励正确，作损失时期望梯度为 0。"),
    Concept(
        "k2", "k2 估计量",
        equation="k2 = ½ (log π(a) − log π_ref(a))²",
        code=["losses.py:kl_k2"],
        tests=["test_losses.py::test_kl_estimators_by_enumeration",
               "test_closed_form.py::test_k2_in_the_loss_ends_at_the_optimum"],
        experiment="kl",
        english=("Biased as a value; as a loss it has the gradient of KL(π‖π_ref) at a state "
                 "(what an action does to later states is not in it)."),
        in_chinese="值有偏；作损失时，给出单个状态上反向 KL 的正确梯度。"),
    Concept(
        "k3", "k3 估计量",
        equation="k3 = π_ref/π − 1 − log(π_ref/π)",
        code=["losses.py:kl_k3"],
        tests=["test_losses.py::test_kl_estimators_by_enumeration",
               "test_closed_form.py::test_k3_in_the_loss_ends_elsewhere"],
        experiment="kl",
        english=("Unbiased, never negative, quiet near the reference. "
                 "GRPO's penalty, and as a loss one on the forward KL."),
        in_chinese="无偏、非负、参考附近方差小；GRPO 的惩罚项，作损失时是前向 KL。"),
    Concept(
        "exact KL", "精确 KL",
        equation="Σ_a π(a ∣ s) [log π(a ∣ s) − log π_ref(a ∣ s)]",
        code=["losses.py:kl_exact", "rollout.py:token_kl"],
        tests=["test_rollout.py::test_exact_kl"],
        experiment="table",
        english="The sum over the vocabulary: no sampling noise, both models' logits.",
        in_chinese="对整个词表求和：没有采样噪声，但需要两个模型的 logits。"),
    Concept(
        "KL in the reward or in the loss", "KL 放进奖励还是放进损失",
        equation="r_t = −β k1_t + …   or   loss + β k3",
        code=["advantages.py:token_rewards:penalty = -kl_coef",
              "losses.py:grpo_loss:loss = loss + kl_coef"],
        tests=["test_closed_form.py::test_ends_at_the_optimum",
               "test_closed_form.py::test_ends_elsewhere"],
        experiment="kl",
        english=("PPO and REINFORCE++ pay it as reward, so that advantages carry it; "
                 "GRPO adds it to the loss and ends elsewhere."),
        in_chinese="PPO 放进奖励，收敛到最优解；GRPO 放进损失，收敛到别处。"),
    Concept(
        "adaptive KL coefficient", "自适应 KL 系数",
        equation="β ← β (1 + e n / horizon),   e = clip(KL / target − 1, ±0.2)",
        code=["losses.py:adaptive_kl_coef"],
        tests=["test_losses.py::test_adaptive_kl_coef",
               "test_peers.py::test_peer[verl.adaptive_kl]"],
        experiment="",
        english=("A controller that steers to a KL an answer instead of fixing its price. "
                 "`--kl-target`; off by default."),
        in_chinese="用控制器使 KL 靠近目标值，而不是固定 β。"),
    Concept(
        "reference model", "参考模型（冻结、EMA、定期同步）",
        equation="frozen;  ref ← m ref + (1 − m) π;  ref ← π every N steps",
        code=["support/models.py:Reference:p_ref.lerp_"],
        tests=["test_scripts.py::test_the_reference_stays_frozen_unless_told_to_move"],
        experiment="reference",
        english=("What KL is measured to. Frozen by default; "
                 "`--ref-ema` and `--ref-sync` let it follow."),
        in_chinese="KL 的参照；默认冻结，也可滑动平均或定期同步。"),
]

GROUPS = [
    Concept(
        "group baseline", "组内基线（组相对优势）",
        equation="A_i = (r_i − mean(r)) / (std(r) + ε)",
        code=["advantages.py:grpo_advantages:advantages = groups"],
        tests=["test_peers.py::test_peer[trl.grpo_adv]",
               "test_policy_gradient.py::test_dividing_by_the_group_std_plays_to_win"],
        experiment="group_size",
        english=("G answers to one prompt: their mean takes the critic's place. "
                 "Dividing by the std changes the aim: with G = 2, to win often, not by much."),
        in_chinese=("同一提示词采样 G 个回答，组均值代替评论家；"
                    "除以标准差会改变目标：G = 2 时只看输赢。")),
    Concept(
        "GRPO, group relative policy optimisation", "组相对策略优化",
        equation="−min(ρ A, clip(ρ) A) + β k3,   mean over an answer, then over answers",
        code=["losses.py:grpo_loss"],
        tests=["test_peers.py::test_peer[trl.grpo_loss.grpo]",
               "test_scripts.py::test_grpo_learns"],
        experiment="table",
        english=("PPO's clip with the group baseline and KL in the loss. "
                 "Without a critic, three of PPO's four models are left; with a verifier, two."),
        in_chinese=("PPO 的裁剪加组内基线，KL 放进损失。不要评论家，四个模型剩三个；"
                    "用校验器打分，剩两个。")),
    Concept(
        "groups without signal", "无信号组（动态采样）",
        equation="A_1 = … = A_G = 0;   here: r_1 = … = r_G",
        code=["advantages.py:_groups:groups[:, :1]",
              "methods.py:rows_to_learn_from:rows = rows[~no_signal]"],
        tests=["test_losses.py::test_groups_without_signal_are_exactly_zero",
               "test_scripts.py::test_dynamic_sampling_replaces_groups_without_signal"],
        experiment="no_signal",
        english=("All right or all wrong: nothing to learn. `--no-signal drop` leaves them out, "
                 "`--no-signal replace`, DAPO's, tries other prompts in their place."),
        in_chinese=("全对或全错的组没有梯度；"
                    "`--no-signal drop` 跳过它们，`--no-signal replace`（DAPO）另采提示词补上。")),
    Concept(
        "Dr. GRPO, GRPO done right", "去偏的 GRPO",
        equation="A_i = r_i − mean(r),   loss = Σ / (B · max_new_tokens)",
        code=["advantages.py:grpo_advantages:if scale",
              "train_grpo.py:main:denominator = count_for"],
        tests=["test_policy_gradient.py::test_dr_grpo_is_the_gradient_times_a_constant",
               "test_scripts.py::test_dr_grpo_divides_by_a_constant"],
        experiment="table",
        english="No std and no division by an answer's length: (G − 1)/G of the true gradient.",
        in_chinese="不除标准差，也不除回答长度：梯度只差一个常数倍。"),
    Concept(
        "aggregation, by token or sequence or a constant", "损失聚合（按 token、按序列、按常数）",
        equation="Σ_bt / Σ mask   or   mean_b mean_t   or   Σ_bt / constant",
        code=["losses.py:aggregate:return x.sum()"],
        tests=["test_losses.py::test_aggregate_modes",
               "test_policy_gradient.py::test_dividing_by_length_maximises_reward_per_token"],
        experiment="aggregation",
        english=("A mean over each answer favours short right answers and long wrong ones "
                 "(length bias); a constant does not."),
        in_chinese="按序列平均会偏向短的正确回答和长的错误回答（长度偏差）。"),
    Concept(
        "DAPO, decoupled clip and dynamic sampling", "解耦裁剪与动态采样（Clip-Higher）",
        equation="clip(ρ, 1 − 0.2, 1 + 0.28),   token mean",
        code=['methods.py:METHODS:"dapo"',
              "methods.py:sample_until_signal"],
        tests=["test_peers.py::test_peer[trl.grpo_loss.dapo]"],
        experiment="no_signal",
        english=("A higher upper clip leaves unlikely tokens room to grow; no KL. "
                 "Its length penalty is not here."),
        in_chinese=("提高裁剪上界，让小概率 token 有上升空间；"
                    "动态采样；没有实现长度惩罚；不用 KL。")),
    Concept(
        "RLOO, REINFORCE leave-one-out", "留一法基线",
        equation="A_i = r_i − mean(r_j, j ≠ i)",
        code=["advantages.py:rloo_advantages:others ="],
        tests=["test_policy_gradient.py::test_rloo",
               "test_peers.py::test_peer[trl.rloo_adv]"],
        experiment="table",
        english="The mean of the others does not depend on the sample itself, so it is unbiased.",
        in_chinese="用其他样本的均值作基线，无偏。"),
    Concept(
        "ReMax, the greedy answer as baseline", "贪心回答作基线",
        equation="A = r(y) − r(greedy y)",
        code=["advantages.py:remax_advantages:return",
              "methods.py:advantages_of:_, greedy_rewards"],
        tests=["test_policy_gradient.py::test_remax",
               "test_peers.py::test_peer[verl.remax.sparse]"],
        experiment="table",
        english="One greedy answer is the baseline: it depends on the prompt alone.",
        in_chinese="以贪心解码的奖励为基线，只依赖提示词。"),
    Concept(
        "REINFORCE++", "全局（批次）优势归一化",
        equation="A_t = whiten(G_t) over the batch,   KL in the reward",
        code=["advantages.py:reinforce_pp_advantages:return whiten"],
        tests=["test_losses.py::test_whiten",
               "test_peers.py::test_peer[verl.rf++.]"],
        experiment="table",
        english="No critic and no groups: the batch's mean is the baseline.",
        in_chinese="不要评论家，也不要组：整个批次的均值就是基线。"),
    Concept(
        "GSPO, group sequence policy optimisation", "组序列策略优化（序列级比率）",
        equation="s = exp(mean_t log ρ_t),   −min(s A, clip(s) A)",
        code=["losses.py:gspo_loss:ratio = (log_ratio"],
        tests=["test_peers.py::test_peer[trl.gspo]",
               "test_policy_gradient.py::test_ratio_losses_are_a2c_where_the_policy_has_not_moved"],
        experiment="table",
        english="One length-normalised ratio per sequence: an answer is clipped as a whole.",
        in_chinese="每个序列一个按长度归一的比率，整体裁剪。"),
    Concept(
        "CISPO, clipped importance sampling weights", "裁剪重要性采样权重（不截断梯度）",
        equation="−stopgrad(clip(ρ)) A log π",
        code=["losses.py:cispo_loss:weight ="],
        tests=["test_peers.py::test_peer[verl.cispo]",
               "test_policy_gradient.py::test_ratio_losses_are_a2c_where_the_policy_has_not_moved"],
        experiment="table",
        english=("Clips the weight, not the gradient: every token goes on learning. "
                 "The paper tunes the upper clip and names no number; 0.28 is DAPO's."),
        in_chinese=("只裁剪权重，每个 token 都保留梯度。"
                    "论文没有给出裁剪上界的数值，这里取 DAPO 的 0.28。")),
]

PREFERENCES = [
    Concept(
        "SFT, supervised fine-tuning", "监督微调（负对数似然）",
        equation="−mean log π(a_t ∣ s_t)",
        code=["losses.py:sft_loss"],
        tests=["test_peers.py::test_peer[trl.sft]",
               "test_scripts.py::test_sft_learns"],
        experiment="table",
        english=("Imitate demonstrations: a smaller negative log-likelihood (NLL) of their answers "
                 "is a smaller forward KL from the data."),
        in_chinese="模仿示范：最小化回答的 NLL，等价于最小化对数据的前向 KL。"),
    Concept(
        "Bradley-Terry", "Bradley-Terry 模型",
        equation="P(y_w beats y_l) = σ(r(y_w) − r(y_l)),   loss = −log P",
        code=["losses.py:reward_model_loss:-F.logsigmoid"],
        tests=["test_closed_form.py::test_the_reward_model_recovers_the_score_up_to_a_constant",
               "test_peers.py::test_peer[trl.rm]"],
        experiment="table",
        english="Preferences fix scores up to a constant.",
        in_chinese="由偏好得到分数，只确定到一个常数。"),
    Concept(
        "reward model", "奖励模型",
        equation="r(x, y): a scalar head at the last token",
        code=["rollout.py:sequence_scores", "model.py:ScalarModel"],
        tests=["test_rollout.py::test_score_is_read_at_the_last_action_whatever_the_padding",
               "test_scripts.py::test_reward_model_and_ppo_on_it"],
        experiment="table",
        english=("Learned from pairs, it stands in for the people who made them, "
                 "and is wrong where they never looked."),
        in_chinese="从偏好对学习，代替人的判断；在没见过的地方会错。"),
    Concept(
        "implicit reward, DPO", "隐式奖励（直接偏好优化，DPO）",
        equation="r(y) = β log π(y)/π_ref(y),   −log σ(r(y_w) − r(y_l))",
        code=["losses.py:dpo_loss:chosen_reward = beta"],
        tests=["test_closed_form.py::test_the_implicit_reward_of_dpo_is_the_score_up_to_a_constant",
               "test_closed_form.py::test_ends_at_the_optimum"],
        experiment="table",
        english=("π is the optimal policy of this reward, "
                 "so fitting preferences with it fits the policy: no reward model, no sampling."),
        in_chinese="策略本身就是其隐式奖励的最优解；不要奖励模型，也不用采样。"),
    Concept(
        "NLL beside DPO", "DPO 加 NLL 项（RPO）",
        equation="DPO loss − α mean log π(y_w)",
        code=["train_dpo.py:main:loss = loss - config.nll_coef"],
        tests=["test_scripts.py::test_the_nll_beside_dpo_is_a_mean_over_the_chosen_answers_tokens"],
        experiment="table",
        english=("DPO asks for a difference, so the chosen answer's probability may fall as well; "
                 "this term works against that. The mean is over all chosen tokens of the batch; "
                 "RPO's is over each answer, then over pairs. The table shows both."),
        in_chinese=("DPO 只要求差值，好回答的概率也可能下降；这一项减缓下降。"
                    "这里对批次中全部 token 平均，RPO 先按每个回答平均。表中两种都有。")),
    Concept(
        "IPO, identity preference optimisation", "恒等偏好优化",
        equation="(h − 1/(2β))²,   h = log π/π_ref (y_w) − log π/π_ref (y_l)",
        code=["losses.py:ipo_loss:loss ="],
        tests=["test_losses.py::test_preference_losses_by_hand",
               "test_scripts.py::test_ipo_averages_over_the_answer"],
        experiment="table",
        english=("Regression: the margin h is pulled to 1/(2β) from below and from above. "
                 "The paper sums log-probs, the script averages them over the answer, "
                 "so at β = 0.1 that is 5 nats per token; "
                 "on the built-in task the mean of h ends near 4.2 (seed 0)."),
        in_chinese=("回归：差值 h 从上下两侧被拉向 1/(2β)。论文对回答求和，脚本按回答平均，"
                    "β = 0.1 时目标为每 token 5 nats；"
                    "内置任务上 h 的均值止于 4.2 左右（种子 0）。")),
    Concept(
        "KTO, Kahneman-Tversky optimisation", "卡尼曼-特沃斯基优化",
        equation="1 − σ(±β (log π/π_ref − z)),   z ≈ KL(π‖π_ref)",
        code=["losses.py:kto_loss:loss = weight",
              "train_dpo.py:main:kto_point = (logp"],
        tests=["test_losses.py::test_preference_losses_by_hand",
               "test_peers.py::test_peer[trl.kto]"],
        experiment="table",
        english=("No pairs: each answer is good or bad, "
                 "measured against a reference point from mismatched prompts and answers."),
        in_chinese="不要成对数据：每个回答只标好或坏，与参考点 z 比较。"),
    Concept(
        "SimPO, simple preference optimisation", "简单偏好优化",
        equation="−log σ(β mean log π(y_w) − β mean log π(y_l) − γ)",
        code=["losses.py:simpo_loss:loss ="],
        tests=["test_losses.py::test_preference_losses_by_hand",
               "test_peers.py::test_peer[trl.simpo]"],
        experiment="",
        english="No reference: the mean log-prob a token is the reward, with a margin γ.",
        in_chinese="不要参考模型：以平均对数概率为奖励，加间隔 γ。"),
    Concept(
        "ORPO, odds ratio preference optimisation", "比值比偏好优化",
        equation="NLL(y_w) − β log σ(log odds(y_w) − log odds(y_l))",
        code=["losses.py:orpo_loss:loss ="],
        tests=["test_losses.py::test_preference_losses_by_hand",
               "test_peers.py::test_peer[trl.orpo.full]"],
        experiment="",
        english=("SFT and preference in one loss, no reference; odds(p) = p / (1 − p). "
                 "Without the NLL (`--nll-coef 0`) it is not the paper's loss."),
        in_chinese=("监督微调与偏好合成一个损失，不要参考模型；"
                    "去掉 NLL（`--nll-coef 0`）就不是论文的损失了。")),
]

WRONG = [
    Concept(
        "reward hacking, over-optimisation", "奖励黑客（奖励作弊、奖励过优化）",
        equation="learned score ↑ while true score ↓",
        code=["support/rl.py:Reward:self.function = None"],
        tests=[],
        experiment="overoptimization",
        english=("`train_ppo.py --kl-coef 0`: "
                 "the policy learns to please the model of right answers. "
                 "Shown by a run, not proved by a test."),
        in_chinese="策略学会讨好奖励模型而不是答对；由实验展示，没有测试。"),
    Concept(
        "alignment tax", "对齐税",
        equation="other abilities: after RL − before RL",
        code=['evaluate.py:main:"kl"'],
        tests=[],
        experiment="table",
        english=("Not measured: the built-in model knows one task only. "
                 "Nearest: the exact KL to the start. InstructGPT's remedy, PPO-ptx, is left out."),
        in_chinese="没有测量：模型只会一个任务；最接近的是与初始模型的 KL。"),
    Concept(
        "entropy collapse", "熵坍缩",
        equation="H(π) → 0: all answers alike, no group has a signal",
        code=["support/run.py:find_trouble:collapsed"],
        tests=["test_runs.py::test_trouble_is_named"],
        experiment="curves",
        english="The progress bar says so; clip-higher and KL work against it.",
        in_chinese="熵趋于 0 时回答都一样；进度条会提示。"),
    Concept(
        "pass@k", "pass@k 通过率",
        equation="1 − C(n − c, k) / C(n, k)",
        code=["evaluate.py:pass_at_k"],
        tests=["test_data.py::test_pass_at_k_is_the_chance_that_k_of_n_hold_a_right_one"],
        experiment="table",
        english=("The chance that one of k samples is right, from n of which c are. "
                 "If pass@1 rises and pass@8 doesn't, the policy is surer, not abler."),
        in_chinese=("k 次采样至少一次正确的概率的无偏估计；"
                    "只有 pass@1 上升，说明策略更确定而不是更强。")),
]

SECTIONS = [
    ("Text as a Markov decision process", "文本生成作为马尔可夫决策过程", MDP),
    ("Values", "价值", VALUES),
    ("Policy gradients", "策略梯度", GRADIENTS),
    ("PPO", "近端策略优化", PPO),
    ("KL divergence", "KL 散度", KL),
    ("Groups instead of a critic", "以组代替评论家", GROUPS),
    ("Demonstrations and preferences", "示范与偏好", PREFERENCES),
    ("What goes wrong, and how to see it", "会出什么问题，如何发现", WRONG),
]


# The pages of DERIVATIONS.md that belong to a section.
WHY = {"Text as a Markov decision process": "a", "Values": "bde", "Policy gradients": "a",
       "PPO": "cde", "KL divergence": "f", "Groups instead of a critic": "g",
       "Demonstrations and preferences": "fg"}

HEADER = ("| concept | equation, and what it says | code | proved by | shown by |\n"
          "|---|---|---|---|---|\n")


@functools.cache
def read(file: str) -> tuple[list[str], dict[str, list]]:
    """A file's lines, and its functions, classes and assignments by name."""
    if not (ROOT / file).is_file():
        raise ValueError(f"{file}: no such file")
    source = (ROOT / file).read_text(encoding="utf-8")
    tree, named = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            named.setdefault(node.name, []).append(node)
    for node in tree.body:
        if isinstance(node, ast.Assign):
            named.setdefault(ast.unparse(node.targets[0]), []).append(node)
    return source.split("\n"), named


def only(found: list, what: str):
    if len(found) != 1:
        raise ValueError(f"{what}: found {len(found)} times, expected once")
    return found[0]


def line_of(file: str, name: str, text: str = "") -> int:
    """The line where `name` is defined, or the only line inside it that has `text`."""
    lines, named = read(file)
    node = only(named.get(name, []), f"{file}: {name}")
    if not text:
        return node.lineno
    inside = range(node.lineno, node.end_lineno + 1)
    return only([i for i in inside if text in lines[i - 1]], f"{file}: {text!r} in {name}")


@functools.cache
def recorded() -> list[str]:
    peers = json.loads((ROOT / "tests/peers.json").read_text(encoding="utf-8"))
    return [case["id"] for case in peers["cases"]]


def code_link(place: str) -> str:
    file, name, *text = place.split(":", 2)
    line = line_of(file, name, *text)
    label = f"{file}:{line}" if name == "main" else f"{Path(file).stem}.{name}"
    return f"[`{label}`](../{file}#L{line})"


def test_link(test: str) -> str:
    """A test's name reads as a sentence; a recorded call has the peer's name."""
    file, _, name = test.partition("::")
    name, _, prefix = name.removesuffix("]").partition("[")
    if prefix:
        if not any(case.startswith(prefix) for case in recorded()):
            raise ValueError(f"tests/peers.json: no case begins with {prefix}")
        label = f"recorded: {prefix.rstrip('.')}"
    else:
        label = name.removeprefix("test_").replace("_", " ")
    return f"[{label}](../tests/{file}#L{line_of(f'tests/{file}', name)})"


def experiment_link(name: str) -> str:
    page = {"table": "lab/results.md", "curves": "READING_CURVES.md"}.get(name, f"lab/{name}.md")
    return f"[`{name}`]({page})"


def cells(row: Concept) -> list[str]:
    name, comma, rest = row.term.partition(",")
    return [f"**{name}**{comma}{rest}<br>{row.chinese}",
            f"`{row.equation}`<br>{row.english}<br>{row.in_chinese}",
            "<br>".join(map(code_link, row.code)),
            "<br>".join(map(test_link, row.tests)) or "—",
            experiment_link(row.experiment) if row.experiment else "—"]


def heading_link(letter: str, file: str) -> str:
    """A link to the heading of this page of the derivations."""
    text = (ROOT / "docs" / file).read_text(encoding="utf-8")
    starts = [line for line in text.split("\n") if line.startswith(f"## {letter}. ")]
    heading = only(starts, f"docs/{file}: page {letter}").removeprefix("## ")
    # GitHub's anchors: no punctuation, a hyphen for a space.
    kept = "".join(c for c in heading.lower() if c.isalnum() or c in " -")
    return f"[{letter}]({file}#{kept.replace(' ', '-')})"


def why(section: str) -> str:
    """The derivations of a section, in both languages, or nothing."""
    letters = WHY.get(section, "")
    english = ", ".join(heading_link(letter, "DERIVATIONS.md") for letter in letters)
    chinese = "、".join(heading_link(letter, "DERIVATIONS.zh.md") for letter in letters)
    return f"Derivations: {english} · 推导：{chinese}\n\n" if letters else ""


def page() -> str:
    parts = [INTRO]
    for english, chinese, rows in SECTIONS:
        parts.append(f"\n## {english} · {chinese}\n\n{why(english)}{HEADER}")
        for row in rows:
            found = cells(row)
            if any("|" in cell for cell in found):
                raise ValueError(f"{row.term}: a | would end the cell, write ∣ or ‖")
            parts.append("| " + " | ".join(found) + " |\n")
    return "".join(parts)


if __name__ == "__main__":
    from derivations import write as write_derivations
    from errata import write as write_errata
    from interview import write as write_interview
    try:
        PAGE.write_text(page(), encoding="utf-8")
        write_derivations()
        write_errata()
        write_interview()
    except ValueError as error:
        sys.exit(f"concepts.py: error: {error}")
