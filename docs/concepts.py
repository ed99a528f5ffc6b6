"""From idea to line: `python docs/concepts.py` writes docs/CONCEPTS.md, with every line number as it is now.

A row of a section is: term (what comes before its first comma is its name), Chinese term, equation,
places in the code, tests, experiment of compare.py (or its table, or docs/READING_CURVES.md; "" if none shows it), one sentence in
English, the same in Chinese.

A place is FILE:NAME (a function, a class, or an assignment of the module), or FILE:NAME:TEXT (the one line inside it that has TEXT).
A test is FILE::NAME in tests/, or test_peers.py::test_peer[PREFIX] for the recorded calls whose ids begin so. Several are joined by " & ".
"""
import ast
import functools
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "CONCEPTS.md"

INTRO = """# From idea to line

Every concept of reinforcement learning for language models that this code embodies: its name in English and Chinese, its equation, the
line that computes it, the test that proves it, the experiment that shows it. Read the sections in order: text as a decision process,
values, policy gradients, PPO, KL, groups, preferences, and what goes wrong. Where the code has no such thing, the row says so. For an
interview: cover all but the first column, say the equation and why it is so, then open the line.

从概念到代码：每一行给出中英文术语、公式、计算它的代码行、证明它的测试和展示它的实验；代码里没有的，如实说明。准备面试时，只看第一列，
先说出公式和理由，再打开代码核对。

Notation: prompt x, answer y of T tokens, state s_t, action a_t, policy π, the policy that sampled π_old, reference π_ref, ρ_t = π / π_old,
σ the logistic function. `python docs/concepts.py` writes this page; lines are looked up, not typed.
"""

MDP = [
    ("state", "状态", "s_t = tokens[b, :t]", "rollout.py:states_before_actions:return model.hidden",
     "test_model.py::test_what_comes_after_changes_nothing & test_rollout.py::test_log_probs_are_those_of_the_full_logits", "",
     "The prompt and all tokens before token t. The next state is this one plus the action: only the policy is random.",
     "提示词加第 t 个 token 之前的全部 token；转移是确定的：把动作接在末尾。"),
    ("action", "动作", "a_t = tokens[b, t] ~ π(· ∣ s_t)", "rollout.py:sample:torch.searchsorted",
     "test_rollout.py::test_sampler_follows_the_distribution", "",
     "One token of the vocabulary, drawn by inverting the cumulative distribution.", "词表中的一个 token，由累积分布的逆采样得到。"),
    ("mask, and its holes", "动作掩码", "mask[b, t] = 1  ⇔  token t was chosen by the policy", "rollout.py:generate:mask = (column",
     "test_rollout.py::test_layout & test_losses.py::test_gae_by_hand", "",
     "0 on prompts, padding and what a tool wrote between two actions (a hole). Made from lengths, never from token ids.",
     "提示词、填充和工具输出为 0；由长度得出，从不由 token id 推断。"),
    ("stop token, an action", "结束符（EOS），也是动作", "mask = 1 at the stop token: log π(stop ∣ s_T) is trained",
     "rollout.py:generate:response_lengths[rows] += ~finished",
     "test_rollout.py::test_stop_token_is_an_action & test_data.py::test_answers_end_with_the_stop_token", "",
     "Ending is a decision: without its gradient, answers grow without bound.", "何时结束也是决策；没有它的梯度，回答会越来越长。"),
    ("policy", "策略", "π(a ∣ s) = softmax(logits(s) / temperature)[a]", "rollout.py:token_log_probs:model.lm_head(states).float()",
     "test_rollout.py::test_log_probs_are_those_of_the_full_logits", "",
     "The language model itself; log-probs in float32, of actions only.", "语言模型本身；只对动作计算 float32 的对数概率。"),
    ("temperature", "温度", "softmax(logits / temperature);  0: argmax (greedy)", "rollout.py:sample:probs = torch.softmax",
     "test_rollout.py::test_sampled_log_probs_are_the_scored_ones & test_rollout.py::test_greedy_takes_the_most_likely_token", "",
     "The policy that is trained is the one that sampled: log-probs are taken at the sampling temperature.", "训练的就是采样时的策略：对数概率用同一温度计算。"),
    ("trajectory", "轨迹", "y = a_1 … a_T,   log π(y ∣ x) = Σ_t log π(a_t ∣ s_t)", "rollout.py:Rollout",
     "test_rollout.py::test_layout & test_policy_gradient.py::test_the_answers_are_all_there_are", "",
     "A prompt and its answer are one episode; a batch of them is a rollout.", "一个提示词及其回答是一个回合；一批轨迹即一次 rollout。"),
    ("truncation", "截断", "finished[b] = False: max_new_tokens came before a stop token",
     "support/rewards.py:reward_answers:score * end & train_ppo.py:main:config.unfinished_score)",
     "test_data.py::test_a_cut_off_answer_is_never_right & test_scripts.py::test_ppo_hands_the_right_tensors_on", "curves",
     "0 from the built-in verifier, −5 in place of a reward model's score. Nothing is bootstrapped, though `gae` could.",
     "校验器给 0 分，奖励模型的分数换成 −5；不做自举（gae 支持）。"),
    ("KV cache", "KV 缓存（键值缓存）", "keys, values of s_{t+1} = those of s_t and one more", "model.py:KVCache",
     "test_model.py::test_cache_equals_full_forward_at_every_position", "",
     "Sampling a token costs one token's forward pass, not the whole answer's.", "每采样一个 token 只前向计算一个 token。"),
    ("outcome rewards", "结果奖励", "r_t = 0 for t < T,   r_T = score(x, y)", "advantages.py:token_rewards:return penalty",
     "test_losses.py::test_score_sits_on_the_last_action", "",
     "The whole answer is judged once, at its last action (before any KL penalty).", "整个回答只在最后一个动作处打一次分。"),
    ("process rewards", "过程奖励", "r_t ≠ 0 at every step of the reasoning", "advantages.py:discounted_returns & advantages.py:gae",
     "test_policy_gradient.py::test_reinforce", "",
     "Not here: no process reward model. But returns and GAE take any (B, T) rewards, and this test has one at every action.",
     "本代码没有过程奖励模型；但回报和 GAE 接受逐 token 的奖励。"),
    ("verifiable rewards", "可验证奖励（RLVR）", "r(x, y) = 1 if the answer is right, else 0", "task.py:verify_sum & support/rewards.py:exact_reward",
     "test_data.py::test_verifier & test_data.py::test_exact", "table",
     "A program checks the answer: no learned score that could be fooled.", "由程序判断对错，没有学出来的分数可以被欺骗。"),
]

VALUES = [
    ("return", "回报", "G_t = r_t + γ G_{t+1} = Σ_k γ^k r_{t+k}", "advantages.py:discounted_returns:running = torch.where",
     "test_losses.py::test_gae_ends & test_policy_gradient.py::test_reinforce", "",
     "What is earned from action t on. The discount γ is 1 by default: an answer is short, and a late reward is worth as much.",
     "从动作 t 起的累计奖励；折扣因子 γ 默认为 1。"),
    ("V, the value of a state", "状态价值函数", "V(s) = E_π[G_t ∣ s_t = s]", "rollout.py:token_values",
     "test_policy_gradient.py::test_the_critic_is_repaired_by_monte_carlo_targets & test_rollout.py::test_value_of_a_state_is_read_before_its_action",
     "lambda",
     "What the policy may expect from here on, before it acts: V(s_t) has not seen token t.", "在动作之前的期望回报：V(s_t) 看不到第 t 个 token。"),
    ("Q, the value of an action", "动作价值函数", "Q(s, a) = r(s, a) + γ V(s + a)", "advantages.py:gae:delta = rewards",
     "test_policy_gradient.py::test_gae_with_lambda_below_1_needs_the_right_critic", "",
     "No model of Q: as text moves deterministically, r + γV(next state) is Q, and a return is a sample of it.",
     "没有 Q 网络：转移是确定的，r + γV(s') 就是 Q，回报是它的样本。"),
    ("advantage", "优势函数", "A(s, a) = Q(s, a) − V(s),   Σ_a π(a ∣ s) A(s, a) = 0", "advantages.py:gae:running = torch.where",
     "test_policy_gradient.py::test_gae_with_lambda_below_1_needs_the_right_critic", "",
     "How much better an action was than what the policy does on average.", "一个动作比该状态下的平均水平好多少。"),
    ("Bellman equation", "贝尔曼方程", "V(s) = Σ_a π(a ∣ s) [r(s, a) + γ V(s + a)]",
     "tests/test_policy_gradient.py:World:# Bellman & losses.py:value_loss",
     "test_policy_gradient.py::test_the_critic_converges_to_the_bellman_values", "",
     "Solved exactly only in the tests' world of 15 answers; the critic regresses on sampled targets, whose fixed point is its solution.",
     "只在测试的小世界里精确求解；评论家用采样目标回归，其不动点就是方程的解。"),
    ("TD error", "时序差分误差（TD 误差）", "δ_t = r_t + γ V(s_{t+1}) − V(s_t)", "advantages.py:gae:delta = rewards",
     "test_losses.py::test_gae_by_hand & test_losses.py::test_gae_ends", "",
     "How far V was from what one step later is known.", "走一步之后，V 的估计错了多少。"),
    ("Monte Carlo", "蒙特卡洛方法", "A_t = G_t − V(s_t)   (λ = 1)", "advantages.py:discounted_returns",
     "test_losses.py::test_gae_ends & test_policy_gradient.py::test_the_critic_is_repaired_by_monte_carlo_targets", "lambda",
     "Wait for the end and count: no bias whatever V is, but the noise of all later actions.", "等回合结束再计算：无偏，但方差大。"),
    ("TD, temporal difference", "时序差分（自举）", "A_t = δ_t   (λ = 0)", "advantages.py:gae:delta = rewards",
     "test_losses.py::test_gae_ends & test_policy_gradient.py::test_gae_with_lambda_below_1_needs_the_right_critic", "lambda",
     "Trust V for all but the next step (bootstrapping): little noise, but V's error becomes bias.", "一步之后就相信 V：方差小，但 V 的误差变成偏差。"),
    ("GAE, generalised advantage estimation", "广义优势估计", "A_t = δ_t + γλ A_{t+1} = Σ_k (γλ)^k δ_{t+k}", "advantages.py:gae:running = torch.where",
     "test_losses.py::test_gae_by_hand & test_peers.py::test_peer[verl.gae]", "lambda",
     "Between the two, as a reverse loop over an answer; holes are skipped.", "用 λ 在两者之间插值；从后往前一次循环，跳过空洞。"),
    ("bias and variance, of λ", "偏差与方差的权衡", "λ = 1: unbiased for any V;   λ < 1: unbiased if V is right", "train_ppo.py:Config:lam: float",
     "test_policy_gradient.py::test_gae_with_lambda_below_1_needs_the_right_critic & test_policy_gradient.py::test_a_smaller_lambda_has_less_variance",
     "lambda",
     "A smaller λ trusts V more: less variance (λ = 0 has half of it in the tests' world), and V's error becomes bias.",
     "λ 越小越依赖 V：方差更小（测试的小世界里约为一半），但 V 的误差变成偏差。"),
    ("value loss", "价值损失", "½ E[(V(s_t) − R_t)²],   R_t = A_t + V_old(s_t)",
     "losses.py:value_loss:loss = error & advantages.py:gae:return advantages",
     "test_scripts.py::test_ppo_hands_the_right_tensors_on & test_policy_gradient.py::test_the_critic_converges_to_the_bellman_values", "curves",
     "The critic's targets come from raw advantages, never from whitened ones.", "评论家的目标用未白化的优势计算。"),
]

GRADIENTS = [
    ("policy gradient theorem, REINFORCE", "策略梯度定理，REINFORCE", "∇J = E_π[Σ_t ∇log π(a_t ∣ s_t) A_t]",
     "losses.py:policy_gradient_loss:loss = aggregate", "test_policy_gradient.py::test_reinforce", "",
     "Make likelier what turned out better. A may be the answer's whole reward or the return: the past has expectation 0.",
     "提高好动作的概率；用整个回答的奖励或之后的回报，期望相同。"),
    ("baseline", "基线", "E_π[b(s) ∇log π(a ∣ s)] = 0", "advantages.py:rloo_advantages:others = & advantages.py:gae:delta = rewards",
     "test_policy_gradient.py::test_gae_with_lambda_1_forgives_any_critic & test_policy_gradient.py::test_rloo & test_policy_gradient.py::test_a_baseline_takes_variance_away",
     "table",
     "What does not depend on the action adds no bias, and takes away the variance of what all answers earn alike. The baseline's own noise comes on top.",
     "与动作无关的基线不引入偏差，并消除所有回答共有的那部分奖励带来的方差；但基线自身也有噪声。"),
    ("actor-critic", "演员-评论家（Actor-Critic）", "actor: ∇ log π · A(V);   critic: V → R", "train_ppo.py:main:critic_loss.backward()",
     "test_scripts.py::test_ppo_hands_the_right_tensors_on", "table",
     "One model acts, another learns to say what to expect. They share no weights here.", "一个模型行动，另一个估计价值；这里不共享参数。"),
    ("A2C, advantage actor-critic", "优势演员-评论家", "loss = −E[A_t log π(a_t ∣ s_t)],   A from GAE", "losses.py:policy_gradient_loss",
     "test_policy_gradient.py::test_ratio_losses_are_a2c_where_the_policy_has_not_moved", "table",
     "`train_ppo.py --epochs 1 --minibatches 1`: at ratio 1 nothing is clipped, and PPO's gradient is A2C's.", "只更新一次时比率为 1，PPO 的梯度就是 A2C 的梯度。"),
    ("on-policy", "同策略（在策略）", "a_t ~ π,   ρ_t = 1", "train_grpo.py:main:on_policy =",
     "test_policy_gradient.py::test_ratio_losses_are_a2c_where_the_policy_has_not_moved & test_scripts.py::test_bfloat16_autocast", "",
     "The policy learns from its own fresh samples: every step samples anew, and the first update has ratio 1.",
     "用当前策略的新样本学习；每一步重新采样，第一次更新时比率为 1。"),
    ("off-policy", "异策略（离策略）", "a_t ~ π_old ≠ π:   weigh by ρ", "train_grpo.py:main:old, ref = logp.detach()",
     "test_policy_gradient.py::test_importance_sampling_corrects_for_another_sampler", "clip",
     "Here only slightly: later mini-batches and epochs on one rollout, and no replay. DPO is offline: its pairs are fixed.",
     "这里只是轻微的：同一批样本上的后几次更新，没有经验回放；DPO 则是离线的。"),
    ("importance ratio", "重要性采样比率", "ρ_t = π(a_t ∣ s_t) / π_old(a_t ∣ s_t)",
     "losses.py:_log_ratio & losses.py:_clipped_surrogate:ratio = log_ratio",
     "test_policy_gradient.py::test_importance_sampling_corrects_for_another_sampler", "clip",
     "The product over an answer is exact; a token's own ratio, as PPO takes it, is not: prefixes stay π_old's.",
     "整个回答的比率连乘才是精确的；PPO 只用单个 token 的比率。"),
    ("entropy", "熵", "H(π) = −Σ_a π(a ∣ s) log π(a ∣ s)", "losses.py:entropy & rollout.py:token_log_probs:entropy(logits.detach())",
     "test_peers.py::test_peer[verl.entropy] & test_rollout.py::test_log_probs_are_those_of_the_full_logits", "curves",
     "How undecided the policy is. Measured at every action, but no script has an entropy bonus.", "策略的不确定程度；只记录，没有熵奖励。"),
    ("whitening", "白化（优势归一化）", "(A − mean) / √(var + ε) over the batch", "advantages.py:whiten:whitened =",
     "test_losses.py::test_whiten & test_policy_gradient.py::test_whitening_over_a_batch_bends_the_gradient", "",
     "Makes the step's size independent of the reward's unit. A little biased: the statistics depend on the samples.",
     "使步长与奖励的量纲无关；统计量依赖样本，所以略有偏差。"),
]

PPO = [
    ("trust region", "信赖域（信任域，TRPO）", "max E[ρ A]  such that  E[KL(π_old‖π)] ≤ δ", 'losses.py:_ratio_stats:"approx_kl"',
     "test_policy_gradient.py::test_importance_sampling_corrects_for_another_sampler", "clip",
     "TRPO is not here: `approx_kl` only reports that KL, and the clip takes the constraint's place. The test shows the error it guards against.",
     "没有实现 TRPO：只记录该 KL，用裁剪代替约束。"),
    ("clip", "裁剪", "−min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)", "losses.py:_clipped_surrogate:loss = torch.maximum",
     "test_losses.py::test_where_the_clip_stops_the_gradient & test_peers.py::test_peer[verl.ppo.nodual]", "clip",
     "No gradient for an action that went too far in its advantage's direction; a step back always has one.", "沿优势方向走得太远就没有梯度；往回走总有梯度。"),
    ("dual clip", "双重裁剪", "A < 0:  loss ≤ −c A", "losses.py:_clipped_surrogate:bound =",
     "test_losses.py::test_dual_clip_bounds_the_loss & test_peers.py::test_peer[verl.ppo.dualclip3]", "",
     "A bad action that became far likelier has an unbounded loss: this bounds it. Off in the scripts.", "坏动作的比率很大时，给损失设上界；脚本中默认不用。"),
    ("four models of PPO", "PPO 的四个模型", "actor π, critic V, reference π_ref, reward model r", "train_ppo.py:main:# 1. Four models",
     "test_scripts.py::test_a_frozen_reward_model_is_bfloat16_and_the_critic_is_not & "
     "test_scripts.py::test_the_reference_stays_frozen_unless_told_to_move & test_scripts.py::test_reward_model_and_ppo_on_it", "table",
     "Two learn, two are frozen. A verifier takes the reward model's place, a group's mean the critic's.", "演员和评论家学习，参考模型和奖励模型冻结。"),
    ("value clipping", "价值裁剪", "max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²)", "losses.py:value_loss:clipped_error =",
     "test_peers.py::test_peer[verl.value_loss]", "",
     "Keeps V near the V that made the targets; ε is in units of reward. `--value-clip 0` leaves it out.", "限制价值函数每次更新的幅度，单位是奖励。"),
    ("critic warm-up", "评论家预热", "the first steps train V only", "train_ppo.py:Config:critic_warmup: int", "test_scripts.py::test_ppo_learns", "",
     "A critic that knows nothing yet gives noise for advantages, and the policy would follow it.", "先只训练评论家，否则优势只是噪声。"),
]

KL = [
    ("KL-regularised objective", "KL 正则化目标", "max E_π[score] − β KL(π‖π_ref):   π* ∝ π_ref exp(score / β)",
     "advantages.py:token_rewards:penalty = -kl_coef", "test_closed_form.py::test_ends_at_the_optimum", "kl",
     "What RLHF maximises, and its solution. PPO, RLOO and DPO arrive there.", "RLHF 的目标及其闭式解；PPO、RLOO、DPO 都收敛到它。"),
    ("forward and reverse KL", "前向 KL 与反向 KL", "reverse: KL(π‖π_ref) = E_π[log π/π_ref];   forward: KL(π_ref‖π) = E_ref[log π_ref/π]",
     "losses.py:kl_exact", "test_losses.py::test_kl_estimators_by_enumeration & test_closed_form.py::test_k3_in_the_loss_ends_elsewhere", "",
     "Reverse (mode-seeking) forbids what the reference doesn't say; forward (mass-covering) asks for all it says. k3's gradient is forward's.",
     "反向 KL 寻找众数，前向 KL 覆盖全部；k3 作损失时，梯度是前向 KL 的。"),
    ("KL estimators", "KL 估计量", "from samples of π, with log π − log π_ref only", "losses.py:kl_k1 & losses.py:kl_k2 & losses.py:kl_k3",
     "test_losses.py::test_why_there_are_three_kl_estimators", "kl",
     "An unbiased value and a right gradient are two questions: k1 and k3 have the first, k2 alone the second.",
     "值无偏与梯度正确是两回事：k1、k3 值无偏，只有 k2 梯度正确。"),
    ("k1", "k1 估计量", "k1 = log π(a) − log π_ref(a)", "losses.py:kl_k1", "test_losses.py::test_kl_estimators_by_enumeration", "kl",
     "Unbiased, noisy, often negative. In the reward it is right; as a loss its expected gradient is 0.", "无偏但方差大；放进奖励正确，作损失时期望梯度为 0。"),
    ("k2", "k2 估计量", "k2 = ½ (log π(a) − log π_ref(a))²", "losses.py:kl_k2",
     "test_losses.py::test_kl_estimators_by_enumeration & test_closed_form.py::test_k2_in_the_loss_ends_at_the_optimum", "kl",
     "Biased as a value; as a loss it has the gradient of KL(π‖π_ref) at a state (what an action does to later states is not in it).",
     "值有偏；作损失时，给出单个状态上反向 KL 的正确梯度。"),
    ("k3", "k3 估计量", "k3 = π_ref/π − 1 − log(π_ref/π)", "losses.py:kl_k3",
     "test_losses.py::test_kl_estimators_by_enumeration & test_closed_form.py::test_k3_in_the_loss_ends_elsewhere", "kl",
     "Unbiased, never negative, quiet near the reference. GRPO's penalty, and as a loss one on the forward KL.",
     "无偏、非负、参考附近方差小；GRPO 的惩罚项，作损失时是前向 KL。"),
    ("exact KL", "精确 KL", "Σ_a π(a ∣ s) [log π(a ∣ s) − log π_ref(a ∣ s)]", "losses.py:kl_exact & rollout.py:token_kl",
     "test_rollout.py::test_exact_kl", "table",
     "The sum over the vocabulary: no sampling noise, both models' logits.", "对整个词表求和：没有采样噪声，但需要两个模型的 logits。"),
    ("KL in the reward or in the loss", "KL 放进奖励还是放进损失", "r_t = −β k1_t + …   or   loss + β k3",
     "advantages.py:token_rewards:penalty = -kl_coef & train_grpo.py:main:loss = loss + kl_coef",
     "test_closed_form.py::test_ends_at_the_optimum & test_closed_form.py::test_ends_elsewhere", "kl",
     "PPO and REINFORCE++ pay it as reward, so that advantages carry it; GRPO adds it to the loss and ends elsewhere.",
     "PPO 放进奖励，收敛到最优解；GRPO 放进损失，收敛到别处。"),
    ("adaptive KL coefficient", "自适应 KL 系数", "β ← β (1 + e n / horizon),   e = clip(KL / target − 1, ±0.2)", "losses.py:adaptive_kl_coef",
     "test_losses.py::test_adaptive_kl_coef & test_peers.py::test_peer[verl.adaptive_kl]", "",
     "A controller that steers to a KL an answer instead of fixing its price. `--kl-target`; off by default.", "用控制器使 KL 靠近目标值，而不是固定 β。"),
    ("reference model", "参考模型（冻结、EMA、定期同步）", "frozen;  ref ← m ref + (1 − m) π;  ref ← π every N steps",
     "train_grpo.py:main:p_ref.data.lerp_ & train_ppo.py:main:p_ref.data.lerp_",
     "test_scripts.py::test_the_reference_stays_frozen_unless_told_to_move", "reference",
     "What KL is measured to. Frozen by default; `--ref-ema` and `--ref-sync` let it follow.", "KL 的参照；默认冻结，也可滑动平均或定期同步。"),
]

GROUPS = [
    ("group baseline", "组内基线（组相对优势）", "A_i = (r_i − mean(r)) / (std(r) + ε)", "advantages.py:grpo_advantages:advantages = groups",
     "test_peers.py::test_peer[trl.grpo_adv] & test_policy_gradient.py::test_dividing_by_the_group_std_plays_to_win", "group_size",
     "G answers to one prompt: their mean takes the critic's place. Dividing by the std changes the aim: with G = 2, to win often, not by much.",
     "同一提示词采样 G 个回答，组均值代替评论家；除以标准差会改变目标：G = 2 时只看输赢。"),
    ("GRPO, group relative policy optimisation", "组相对策略优化", "−min(ρ A, clip(ρ) A) + β k3,   mean over an answer, then over answers",
     "losses.py:grpo_loss", "test_peers.py::test_peer[trl.grpo_loss.grpo] & test_scripts.py::test_grpo_learns", "table",
     "PPO's clip with the group baseline and KL in the loss. Without a critic, three of PPO's four "
     "models are left; with a verifier, two.",
     "PPO 的裁剪加组内基线，KL 放进损失。不要评论家，四个模型剩三个；用校验器打分，剩两个。"),
    ("groups without signal", "无信号组（动态采样）", "A_1 = … = A_G = 0;   here: r_1 = … = r_G",
     "advantages.py:_groups:groups[:, :1] & train_grpo.py:main:used = used.view(-1, G)[~no_signal",
     "test_losses.py::test_groups_without_signal_are_exactly_zero & test_scripts.py::test_dynamic_sampling_replaces_groups_without_signal", "no_signal",
     "All right or all wrong: nothing to learn. `--loss dapo` leaves them out, `--dynamic-sampling` tries other prompts in their place.",
     "全对或全错的组没有梯度；`--loss dapo` 跳过它们，`--dynamic-sampling` 另采提示词补上。"),
    ("Dr. GRPO, GRPO done right", "去偏的 GRPO", "A_i = r_i − mean(r),   loss = Σ / (B · max_new_tokens)",
     "advantages.py:grpo_advantages:if scale & train_grpo.py:main:denominator = len(rows)",
     "test_policy_gradient.py::test_dr_grpo_is_the_gradient_times_a_constant & test_scripts.py::test_dr_grpo_divides_by_a_constant", "table",
     "No std and no division by an answer's length: (G − 1)/G of the true gradient.", "不除标准差，也不除回答长度：梯度只差一个常数倍。"),
    ("aggregation, by token or sequence or a constant", "损失聚合（按 token、按序列、按常数）", "Σ_bt / Σ mask   or   mean_b mean_t   or   Σ_bt / constant",
     "losses.py:aggregate:total =",
     "test_losses.py::test_aggregate_modes & test_policy_gradient.py::test_dividing_by_length_maximises_reward_per_token", "aggregation",
     "A mean over each answer favours short right answers and long wrong ones (length bias); a constant does not.", "按序列平均会偏向短的正确回答和长的错误回答（长度偏差）。"),
    ("DAPO, decoupled clip and dynamic sampling", "解耦裁剪与动态采样（Clip-Higher）", "clip(ρ, 1 − 0.2, 1 + 0.28),   token mean",
     'train_grpo.py:LOSSES:"dapo" & train_grpo.py:main:skips, rounds', "test_peers.py::test_peer[trl.grpo_loss.dapo]", "no_signal",
     "A higher upper clip leaves unlikely tokens room to grow; no KL. `--dynamic-sampling` is a flag "
     "of its own; its length penalty is not here.",
     "提高裁剪上界，让小概率 token 有上升空间；动态采样另有开关 `--dynamic-sampling`；没有实现长度惩罚；不用 KL。"),
    ("RLOO, REINFORCE leave-one-out", "留一法基线", "A_i = r_i − mean(r_j, j ≠ i)", "advantages.py:rloo_advantages:others =",
     "test_policy_gradient.py::test_rloo & test_peers.py::test_peer[trl.rloo_adv]", "table",
     "The mean of the others does not depend on the sample itself, so it is unbiased.", "用其他样本的均值作基线，无偏。"),
    ("ReMax, the greedy answer as baseline", "贪心回答作基线", "A = r(y) − r(greedy y)",
     "advantages.py:remax_advantages:return & train_grpo.py:main:greedy_scores += answers", "test_policy_gradient.py::test_remax & test_peers.py::test_peer[verl.remax.sparse]", "table",
     "One greedy answer is the baseline: it depends on the prompt alone.", "以贪心解码的奖励为基线，只依赖提示词。"),
    ("REINFORCE++", "全局（批次）优势归一化", "A_t = whiten(G_t) over the batch,   KL in the reward", "advantages.py:reinforce_pp_advantages:return",
     "test_losses.py::test_whiten & test_peers.py::test_peer[verl.rf++.]", "table",
     "No critic and no groups: the batch's mean is the baseline.", "不要评论家，也不要组：整个批次的均值就是基线。"),
    ("GSPO, group sequence policy optimisation", "组序列策略优化（序列级比率）", "s = exp(mean_t log ρ_t),   −min(s A, clip(s) A)",
     "losses.py:gspo_loss:mean_log_ratio =",
     "test_peers.py::test_peer[trl.gspo] & test_policy_gradient.py::test_ratio_losses_are_a2c_where_the_policy_has_not_moved", "table",
     "One length-normalised ratio a sequence: an answer is clipped as a whole.", "每个序列一个按长度归一的比率，整体裁剪。"),
    ("CISPO, clipped importance sampling weights", "裁剪重要性采样权重（不截断梯度）", "−stopgrad(clip(ρ)) A log π", "losses.py:cispo_loss:weight =",
     "test_peers.py::test_peer[verl.cispo] & test_policy_gradient.py::test_ratio_losses_are_a2c_where_the_policy_has_not_moved", "table",
     "Clips the weight, not the gradient: every token goes on learning. The paper tunes the upper "
     "clip and names no number; 0.28 is DAPO's.",
     "只裁剪权重，每个 token 都保留梯度。论文没有给出裁剪上界的数值，这里取 DAPO 的 0.28。"),
]

PREFERENCES = [
    ("SFT, supervised fine-tuning", "监督微调（负对数似然）", "−mean log π(a_t ∣ s_t)", "losses.py:sft_loss",
     "test_peers.py::test_peer[trl.sft] & test_scripts.py::test_sft_learns", "table",
     "Imitate demonstrations: a smaller negative log-likelihood (NLL) of their answers is a smaller forward KL from the data.",
     "模仿示范：最小化回答的 NLL，等价于最小化对数据的前向 KL。"),
    ("Bradley-Terry", "Bradley-Terry 模型", "P(y_w beats y_l) = σ(r(y_w) − r(y_l)),   loss = −log P", "losses.py:reward_model_loss:-F.logsigmoid",
     "test_closed_form.py::test_the_reward_model_recovers_the_score_up_to_a_constant & test_peers.py::test_peer[trl.rm]", "table",
     "Preferences fix scores up to a constant.", "由偏好得到分数，只确定到一个常数。"),
    ("reward model", "奖励模型", "r(x, y): a scalar head at the last token", "rollout.py:sequence_scores & model.py:ScalarModel",
     "test_rollout.py::test_score_is_read_at_the_last_action_whatever_the_padding & test_scripts.py::test_reward_model_and_ppo_on_it", "table",
     "Learned from pairs, it stands in for the people who made them, and is wrong where they never looked.", "从偏好对学习，代替人的判断；在没见过的地方会错。"),
    ("implicit reward, DPO", "隐式奖励（直接偏好优化，DPO）", "r(y) = β log π(y)/π_ref(y),   −log σ(r(y_w) − r(y_l))",
     "losses.py:dpo_loss:chosen_reward, rejected_reward =",
     "test_closed_form.py::test_the_implicit_reward_of_dpo_is_the_score_up_to_a_constant & test_closed_form.py::test_ends_at_the_optimum", "table",
     "π is the optimal policy of this reward, so fitting preferences with it fits the policy: no reward model, no sampling.",
     "策略本身就是其隐式奖励的最优解；不要奖励模型，也不用采样。"),
    ("NLL beside DPO", "DPO 加 NLL 项（RPO）", "DPO loss − α mean log π(y_w)", "train_dpo.py:main:loss = loss - nll_coef",
     "test_scripts.py::test_the_nll_beside_dpo_is_a_mean_over_the_chosen_answers_tokens", "table",
     "DPO asks for a difference, so the chosen answer's probability may fall as well; this term "
     "works against that. The mean is over all chosen tokens of the batch; RPO's is over each "
     "answer, then over pairs. The table shows both.",
     "DPO 只要求差值，好回答的概率也可能下降；这一项减缓下降。这里对批次中全部 token 平均，RPO 先按每个回答平均。表中两种都有。"),
    ("IPO, identity preference optimisation", "恒等偏好优化", "(h − 1/(2β))²,   h = log π/π_ref (y_w) − log π/π_ref (y_l)", "losses.py:ipo_loss:loss =",
     "test_losses.py::test_preference_losses_by_hand & test_scripts.py::test_ipo_averages_over_the_answer", "table",
     "Regression: the margin h is pulled to 1/(2β) from below and from above. The paper sums "
     "log-probs, the script averages them over the answer, so at β = 0.1 that is 5 nats a token; "
     "on the built-in task the mean of h ends near 4.2 (seed 0).",
     "回归：差值 h 从上下两侧被拉向 1/(2β)。论文对回答求和，脚本按回答平均，"
     "β = 0.1 时目标为每 token 5 nats；内置任务上 h 的均值止于 4.2 左右（种子 0）。"),
    ("KTO, Kahneman-Tversky optimisation", "卡尼曼-特沃斯基优化", "1 − σ(±β (log π/π_ref − z)),   z ≈ KL(π‖π_ref)",
     "losses.py:kto_loss:loss = weight & train_dpo.py:main:kto_point =",
     "test_losses.py::test_preference_losses_by_hand & test_peers.py::test_peer[trl.kto]", "table",
     "No pairs: each answer is good or bad, measured against a reference point from mismatched prompts and answers.",
     "不要成对数据：每个回答只标好或坏，与参考点 z 比较。"),
    ("SimPO, simple preference optimisation", "简单偏好优化", "−log σ(β mean log π(y_w) − β mean log π(y_l) − γ)", "losses.py:simpo_loss:loss =",
     "test_losses.py::test_preference_losses_by_hand & test_peers.py::test_peer[trl.simpo]", "",
     "No reference: the mean log-prob a token is the reward, with a margin γ.", "不要参考模型：以平均对数概率为奖励，加间隔 γ。"),
    ("ORPO, odds ratio preference optimisation", "比值比偏好优化", "NLL(y_w) − β log σ(log odds(y_w) − log odds(y_l))", "losses.py:orpo_loss:loss =",
     "test_losses.py::test_preference_losses_by_hand & test_peers.py::test_peer[trl.orpo.full]", "",
     "SFT and preference in one loss, no reference; odds(p) = p / (1 − p). Without the NLL "
     "(`--nll-coef 0`) it is not the paper's loss.",
     "监督微调与偏好合成一个损失，不要参考模型；去掉 NLL（`--nll-coef 0`）就不是论文的损失了。"),
]

WRONG = [
    ("reward hacking, over-optimisation", "奖励黑客（奖励作弊、奖励过优化）", "learned score ↑ while true score ↓", "train_ppo.py:main:on a reward model", "",
     "overoptimization",
     "`train_ppo.py --kl-coef 0`: the policy learns to please the model of right answers. Shown by a run, not proved by a test.",
     "策略学会讨好奖励模型而不是答对；由实验展示，没有测试。"),
    ("alignment tax", "对齐税", "other abilities: after RL − before RL", 'evaluate.py:main:"kl"', "", "table",
     "Not measured: the built-in model knows one task only. Nearest: the exact KL to the start. InstructGPT's remedy, PPO-ptx, is left out.",
     "没有测量：模型只会一个任务；最接近的是与初始模型的 KL。"),
    ("entropy collapse", "熵坍缩", "H(π) → 0: all answers alike, no group has a signal", "support/run.py:trouble:collapsed",
     "test_runs.py::test_trouble_is_named", "curves",
     "The progress bar says so; clip-higher and KL work against it.", "熵趋于 0 时回答都一样；进度条会提示。"),
    ("pass@k", "pass@k 通过率", "1 − C(n − c, k) / C(n, k)", "evaluate.py:pass_at_k",
     "test_data.py::test_pass_at_k_is_the_chance_that_k_of_n_hold_a_right_one", "table",
     "The chance that one of k samples is right, from n of which c are. If pass@1 rises and pass@8 doesn't, the policy is surer, not abler.",
     "k 次采样至少一次正确的概率的无偏估计；只有 pass@1 上升，说明策略更确定而不是更强。"),
]

SECTIONS = [("Text as a Markov decision process", "文本生成作为马尔可夫决策过程", MDP), ("Values", "价值", VALUES),
            ("Policy gradients", "策略梯度", GRADIENTS), ("PPO", "近端策略优化", PPO), ("KL divergence", "KL 散度", KL),
            ("Groups instead of a critic", "以组代替评论家", GROUPS), ("Demonstrations and preferences", "示范与偏好", PREFERENCES),
            ("What goes wrong, and how to see it", "会出什么问题，如何发现", WRONG)]


HEADER = "| concept | equation, and what it says | code | proved by | shown by |\n|---|---|---|---|---|\n"


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
    return only([i for i in range(node.lineno, node.end_lineno + 1) if text in lines[i - 1]], f"{file}: {text!r} in {name}")


@functools.cache
def recorded() -> list[str]:
    return [case["id"] for case in json.loads((ROOT / "tests/peers.json").read_text(encoding="utf-8"))["cases"]]


def code_link(place: str) -> str:
    file, name, *text = place.split(":", 2)
    line = line_of(file, name, *text)
    label = f"{file}:{line}" if name == "main" else f"{Path(file).stem}.{name}"
    return f"[`{label}`](../{file}#L{line})"


def test_link(test: str) -> str:
    """A test's name reads as a sentence; a recorded call has the peer's name."""
    file, _, name = test.partition("::")
    name, _, prefix = name.removesuffix("]").partition("[")
    if prefix and not any(case.startswith(prefix) for case in recorded()):
        raise ValueError(f"tests/peers.json: no case begins with {prefix}")
    label = f"recorded: {prefix.rstrip('.')}" if prefix else name.removeprefix("test_").replace("_", " ")
    return f"[{label}](../tests/{file}#L{line_of(f'tests/{file}', name)})"


def experiment_link(name: str) -> str:
    page = {"table": "lab/results.md", "curves": "READING_CURVES.md"}.get(name, f"lab/{name}.md")
    return f"[`{name}`]({page})"


def cells(row: tuple) -> list[str]:
    term, chinese, equation, code, tests, experiment, english, in_chinese = row
    name, _, rest = term.partition(",")
    return [f"**{name}**{',' + rest if rest else ''}<br>{chinese}", f"`{equation}`<br>{english}<br>{in_chinese}",
            "<br>".join(map(code_link, code.split(" & "))), "<br>".join(map(test_link, tests.split(" & "))) if tests else "—",
            experiment_link(experiment) if experiment else "—"]


def page() -> str:
    parts = [INTRO]
    for english, chinese, rows in SECTIONS:
        parts.append(f"\n## {english} · {chinese}\n\n{HEADER}")
        for row in rows:
            if any("|" in field for field in row):
                raise ValueError(f"{row[0]}: a | would end the cell, write ∣ or ‖")
            parts.append("| " + " | ".join(cells(row)) + " |\n")
    return "".join(parts)


if __name__ == "__main__":
    try:
        PAGE.write_text(page(), encoding="utf-8")
    except ValueError as error:
        sys.exit(f"concepts.py: error: {error}")
