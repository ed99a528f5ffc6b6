"""The rows of docs/CONCEPTS.md, in English and Chinese, for docs/concepts.py."""
from typing import NamedTuple


class Concept(NamedTuple):
    """A row of the page.

    term: what comes before its first comma is its name.
    code: places, FILE:NAME (a function, a class, or an assignment of the module), or FILE:NAME:TEXT
    (the one line inside it that has TEXT); none if the row says "Not in the code".
    tests: FILE::NAME in tests/, or test_peers.py::test_peer[PREFIX] for the recorded calls whose
    ids begin so.
    experiment: of compare.py, or "table" for its table, or "curves" for docs/READING_CURVES.md, or
    "" if none shows it.
    why: equations of docs/DERIVATIONS.md. equation_zh: where the equation holds English words.
    """
    term: str
    chinese: str
    equation: str
    code: list[str]
    tests: list[str]
    experiment: str
    english: str
    in_chinese: str
    why: str = ""
    equation_zh: str = ""


MDP = [
    Concept(
        "decision process, the tuple (S, A, P, R, γ)", "马尔可夫决策过程，(S, A, P, R, γ)",
        equation=("S: prefixes, A: vocabulary, P(s' ∣ s, a) = 1 for s' = s + a, R: score at the "
                  "end, γ = 1"),
        why="a.1",
        equation_zh="S：前缀；A：词表；s' = s + a 时 P(s' ∣ s, a) = 1；R：末尾的得分；γ = 1",
        code=["rollout.py:generate:tokens[rows, positions] = next_tokens",
              "advantages.py:token_rewards:return penalty"],
        tests=["test_policy_gradient.py::test_the_answers_are_all_there_are",
               "test_derivations.py::test_a1_probability_of_a_trajectory"],
        experiment="",
        english=("The five parts of a decision process, for text. The transition appends the "
                 "token and is certain: nobody has to learn a model of it."),
        in_chinese=("决策过程的五个部分在文本里各是什么。转移就是接上 token，完全确定，不需要学习"
                    "环境模型。")),
    Concept(
        "state", "状态",
        equation="s_t = tokens[b, :t]",
        why="a.1",
        code=["rollout.py:score_actions:states = [model.hidden"],
        tests=["test_model.py::test_what_comes_after_changes_nothing",
               "test_rollout.py::test_log_probs_are_those_of_the_full_logits"],
        experiment="",
        english=("The prompt and all tokens before token t. "
                 "The next state is this one plus the action: only the policy is random."),
        in_chinese="提示词加第 t 个 token 之前的全部 token；转移是确定的：把动作接在末尾。"),
    Concept(
        "action", "动作",
        equation="a_t = tokens[b, t] ~ π(· ∣ s_t)",
        why="a.1",
        code=["rollout.py:sample:torch.searchsorted"],
        tests=["test_rollout.py::test_sampler_follows_the_distribution"],
        experiment="",
        english="One token of the vocabulary, drawn by inverting the cumulative distribution.",
        in_chinese="词表中的一个 token，由逆变换采样得到。"),
    Concept(
        "policy", "策略",
        equation="π(a ∣ s) = softmax(logits(s) / temperature)[a]",
        why="a.8",
        code=["rollout.py:score_actions:model.lm_head(h).float()"],
        tests=["test_rollout.py::test_log_probs_are_those_of_the_full_logits"],
        experiment="",
        english="The language model itself; log-probs in float32, of actions only.",
        in_chinese="语言模型本身；只对动作计算 float32 的对数概率。"),
    Concept(
        "trajectory", "轨迹",
        equation="y = a_1 … a_T,   log π(y ∣ x) = Σ_t log π(a_t ∣ s_t)",
        why="a.1, a.2",
        code=["rollout.py:Rollout"],
        tests=["test_rollout.py::test_layout",
               "test_policy_gradient.py::test_the_answers_are_all_there_are"],
        experiment="",
        english="A prompt and its answer are one episode; a batch of them is a rollout.",
        in_chinese="一个提示词及其回答是一个回合；一批轨迹即一次 rollout。"),
    Concept(
        "outcome rewards", "结果奖励",
        equation="r_t = 0 for t < T,   r_T = score(x, y)",
        why="e.6",
        equation_zh="t < T 时 r_t = 0，r_T = score(x, y)",
        code=["advantages.py:token_rewards:return penalty"],
        tests=["test_losses.py::test_score_sits_on_the_last_action"],
        experiment="",
        english="The whole answer is judged once, at its last action (before any KL penalty).",
        in_chinese="整个回答只在最后一个动作处打一次分。"),
    Concept(
        "discount", "折扣因子",
        equation="G_t = Σ_k γ^k r_{t+k},   γ = 1",
        why="b.1",
        equation_zh="G_t = Σ_k γ^k r_{t+k}，γ = 1",
        code=["train_ppo.py:Config:gamma: float"],
        tests=["test_losses.py::test_gae_ends", "test_derivations.py::test_b1_return"],
        experiment="",
        english=("An answer is short and always ends, so no discount is needed. With γ < 1 the "
                 "score hardly reaches the first tokens, and short answers are preferred."),
        in_chinese=("回答不长而且总会结束，不需要折扣。γ < 1 时得分几乎传不到开头，而且会偏向短回"
                    "答。")),
    Concept(
        "stop token, an action", "结束符（EOS），也是动作",
        equation="mask = 1 at the stop token: log π(stop ∣ s_T) is trained",
        why="a.7",
        equation_zh="结束符处 mask = 1：训练 log π(stop ∣ s_T)",
        code=["rollout.py:generate:lengths[rows] += ~finished"],
        tests=["test_rollout.py::test_stop_token_is_an_action",
               "test_data.py::test_answers_end_with_the_stop_token"],
        experiment="",
        english="Ending is a decision: without its gradient, answers grow without bound.",
        in_chinese="何时结束也是决策；没有它的梯度，回答会越来越长。"),
    Concept(
        "mask, what is an action and what is not", "动作掩码",
        equation="mask[b, t] = 1  ⇔  token t was chosen by the policy",
        why="a.7",
        equation_zh="mask[b, t] = 1  ⇔  第 t 个 token 由策略选出",
        code=["rollout.py:generate:mask = written"],
        tests=["test_rollout.py::test_layout",
               "test_losses.py::test_gae_by_hand"],
        experiment="",
        english=("0 on prompts, on padding, and on what a tool wrote between two actions. "
                 "Made from lengths, never from token ids."),
        in_chinese="提示词、填充和工具输出为 0；由长度得出，从不由 token id 推断。"),
    Concept(
        "temperature", "温度",
        equation="softmax(logits / temperature);  0: argmax (greedy)",
        why="c.1",
        equation_zh="softmax(logits / temperature)；0：argmax（贪心）",
        code=["rollout.py:sample:probs = torch.softmax"],
        tests=["test_rollout.py::test_sampled_log_probs_are_the_scored_ones",
               "test_rollout.py::test_greedy_takes_the_most_likely_token"],
        experiment="",
        english=("The policy that is trained is the one that sampled: "
                 "log-probs are taken at the sampling temperature."),
        in_chinese="训练的就是采样时的策略：对数概率用同一温度计算。"),
    Concept(
        "truncation", "截断",
        equation="finished[b] = False: max_new_tokens came before a stop token",
        equation_zh="finished[b] = False：先到 max_new_tokens，没有遇到结束符",
        code=["support/rewards.py:reward_answers:score * end",
              "support/rl.py:Reward:torch.where(rollout.finished"],
        tests=["test_data.py::test_a_cut_off_answer_is_never_right",
               "test_scripts.py::test_ppo_hands_the_right_tensors_on"],
        experiment="curves",
        english=("0 from the built-in verifier, −5 in place of a reward model's score. "
                 "Nothing is bootstrapped, though `gae` could."),
        in_chinese="校验器给 0 分，奖励模型的分数换成 −5；不做自举（gae 支持）。"),
    Concept(
        "verifiable rewards", "可验证奖励（RLVR）",
        equation="r(x, y) = 1 if the answer is right, else 0",
        why="g.20",
        equation_zh="答对 r(x, y) = 1，否则 0",
        code=["task.py:verify_answer", "support/rewards.py:exact_reward"],
        tests=["test_data.py::test_verifier", "test_data.py::test_exact"],
        experiment="table",
        english="A program checks the answer: no learned score that could be fooled.",
        in_chinese="由程序判断对错，没有学出来的分数可以被欺骗。"),
    Concept(
        "process rewards", "过程奖励",
        equation="r_t ≠ 0 at every step of the reasoning",
        why="a.12",
        equation_zh="推理的每一步都有 r_t ≠ 0",
        code=["advantages.py:discounted_returns", "advantages.py:gae"],
        tests=["test_policy_gradient.py::test_reinforce"],
        experiment="",
        english=("Not here: no process reward model. But returns and GAE take any (B, T) rewards, "
                 "and this test has one at every action."),
        in_chinese="本代码没有过程奖励模型；但回报和 GAE 接受逐 token 的奖励。"),
    Concept(
        "environment, which answers between two actions", "环境（工具、用户、搜索）",
        equation="s_{t+1} = s_t, a_t, o:  ∇ log p(o ∣ s_t, a_t) = 0",
        why="a.6, a.7",
        equation_zh="s_{t+1} = s_t, a_t, o：∇ log p(o ∣ s_t, a_t) = 0",
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
        in_chinese=("环境写的内容（o）属于下一个状态，不是动作：没有梯度，不折扣，不计 KL。有环境时，文本是一般的"
                    "决策过程；没有环境时，只有策略是随机的。")),
    Concept(
        "Markov property, and what is hidden (POMDP)", "马尔可夫性，以及部分可观测（POMDP）",
        equation="P(s_{t+1} ∣ s_t, a_t) = P(s_{t+1} ∣ s_1, a_1, …, s_t, a_t)",
        why="a.1",
        code=["model.py:KVCache", "rollout.py:_ask:replies.append(environment"],
        tests=["test_model.py::test_what_comes_after_changes_nothing",
               "test_model.py::test_cache_equals_full_forward_at_every_position"],
        experiment="",
        english=("The last token alone is no Markov state, the prefix is: it is the whole "
                 "history, and attention is its memory. What a user means, or a tool holds "
                 "inside, is not in it: then the process is partially observed."),
        in_chinese=("只看最后一个 token 不满足，整个前缀满足：它就是全部历史，注意力就是记忆。用"
                    "户的意图、工具的内部状态不在其中，那时过程是部分可观测的。")),
    Concept(
        "token or answer, two readings of an action", "动作是 token 还是整个回答",
        equation="log π(y ∣ x) = Σ_t log π(a_t ∣ s_t), the same π* for both",
        why="b.15, b.16",
        equation_zh="log π(y ∣ x) = Σ_t log π(a_t ∣ s_t)，两种看法的 π* 相同",
        code=["losses.py:_clipped_surrogate:ratio = log_ratio",
              "losses.py:gspo_loss:ratio = (log_ratio"],
        tests=["test_derivations.py::test_b16_tokens_and_whole_answers",
               "test_policy_gradient.py::test_ratio_losses_are_a2c_where_the_policy_has_not_moved"],
        experiment="",
        english=("Tokens as actions lead to values, critics and PPO's ratio per token. Answers "
                 "as actions are a choice without states, a bandit: RLOO, DPO, GSPO."),
        in_chinese=("以 token 为动作，就有价值、价值模型和 PPO 的逐 token 比率。以回答为动作，就"
                    "是没有状态的一次选择（老虎机）：RLOO、DPO、GSPO。")),
    Concept(
        "teacher forcing, and own samples", "教师强制与自己采样",
        equation="log π(a_t ∣ demonstration's prefix)   or   log π(a_t ∣ own prefix)",
        why="f.6",
        equation_zh="log π(a_t ∣ 示范的前缀)，或 log π(a_t ∣ 自己的前缀)",
        code=["rollout.py:score_actions:states = [model.hidden", "train_sft.py:main"],
        tests=["test_rollout.py::test_log_probs_are_those_of_the_full_logits",
               "test_scripts.py::test_sft_learns"],
        experiment="",
        english=("SFT predicts after prefixes that others wrote, all tokens in one pass. At use "
                 "the model goes on after its own tokens, mistakes included; RL trains on those."),
        in_chinese=("SFT 在别人写的前缀之后预测，所有 token 一次前向算完。使用时模型接着自己写的"
                    "（包括错的）往下写；强化学习训练的正是这些。")),
    Concept(
        "KV cache", "KV 缓存（键值缓存）",
        equation="keys, values of s_{t+1} = those of s_t and one more",
        equation_zh="s_{t+1} 的键和值 = s_t 的键和值，再加一个",
        code=["model.py:KVCache"],
        tests=["test_model.py::test_cache_equals_full_forward_at_every_position"],
        experiment="",
        english="Sampling a token costs one token's forward pass, not the whole answer's.",
        in_chinese="每采样一个 token 只前向计算一个 token。"),
]

VALUES = [
    Concept(
        "return", "回报",
        equation="G_t = r_t + γ G_{t+1} = Σ_k γ^k r_{t+k}",
        why="b.1",
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
        why="b.2, b.4",
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
        why="b.2, b.3",
        code=["advantages.py:gae:delta = rewards"],
        tests=["test_policy_gradient.py::test_gae_with_lambda_below_1_needs_the_right_critic"],
        experiment="",
        english=('After "The capital of France is", Q of "Paris" is high, Q of "London" low, and V '
                 "is their mean by the policy's probabilities. There is no model of Q: as text "
                 "moves deterministically, r + γV(next state) is Q, and a return is a sample of "
                 "it."),
        in_chinese=("在“法国的首都是”之后，“巴黎”的 Q 高，“伦敦”的 Q 低，V 是按策略概率的平均。没有 Q 网络："
                    "转移是确定的，r + γV(s') 就是 Q，回报是它的样本。")),
    Concept(
        "advantage", "优势函数",
        equation="A(s, a) = Q(s, a) − V(s),   Σ_a π(a ∣ s) A(s, a) = 0",
        why="b.5, b.6",
        code=["advantages.py:gae:running = torch.where"],
        tests=["test_policy_gradient.py::test_gae_with_lambda_below_1_needs_the_right_critic"],
        experiment="",
        english="How much better an action was than what the policy does on average.",
        in_chinese="一个动作比该状态下的平均水平好多少。"),
    Concept(
        "Bellman equation", "贝尔曼方程",
        equation="V(s) = Σ_a π(a ∣ s) [r(s, a) + γ V(s + a)]",
        why="b.3, b.4",
        code=["tests/test_policy_gradient.py:World:# Bellman",
              "losses.py:value_loss"],
        tests=["test_policy_gradient.py::test_the_critic_converges_to_the_bellman_values"],
        experiment="",
        english=("Solved exactly only in the tests' world of 15 answers; "
                 "the critic regresses on sampled targets, whose fixed point is its solution."),
        in_chinese="只在测试的小世界里精确求解；价值模型用采样目标回归，其不动点就是方程的解。"),
    Concept(
        "Bellman optimality equation", "贝尔曼最优方程",
        equation="V*(s) = max_a [r(s, a) + γ V*(s + a)]",
        why="b.10",
        code=[],
        tests=["test_derivations.py::test_b10_bellman_optimality"],
        experiment="",
        english=("Of the best policy: the mean over actions has become a maximum. Not in the "
                 "code: the algorithms here improve a policy in small steps and never take this "
                 "maximum."),
        in_chinese=("最优策略满足的方程：对动作求平均变成了取最大。代码里没有：这里的算法小步改进"
                    "策略，从不取这个最大值。")),
    Concept(
        "soft Bellman equation", "软贝尔曼方程",
        equation="V*(s) = β log Σ_a π_ref(a ∣ s) exp(Q*(s, a) / β)",
        why="b.13, b.14, b.15",
        code=[],
        tests=["test_derivations.py::test_b14_soft_bellman",
               "test_derivations.py::test_b15_soft_policy",
               "test_closed_form.py::test_ends_at_the_optimum"],
        experiment="",
        english=("With a KL penalty the maximum becomes soft, and its policy is RLHF's optimum "
                 "π*. Not in the code: it would need all tokens of all states."),
        in_chinese=("加上 KL 惩罚，取最大变成软最大，对应的策略就是 RLHF 的最优解 π*。代码里没"
                    "有：它需要遍历所有状态的所有 token。")),
    Concept(
        "matrix form of Bellman's equation", "贝尔曼方程的矩阵形式",
        equation="v = (I − γ P_π)⁻¹ r_π",
        why="b.7",
        code=[],
        tests=["test_derivations.py::test_b7_matrix_form"],
        experiment="",
        english=("One linear system for all values. Not in the code: n tokens and T places make "
                 "about n^T states."),
        in_chinese=("一个线性方程组解出全部价值。代码里没有：词表大小 n、长度 T，状态约有 n^T "
                    "个。")),
    Concept(
        "dynamic programming, value and policy iteration", "动态规划，价值迭代与策略迭代",
        equation="V ← max_a [r + γ V(s + a)];   evaluate π, then π ← argmax_a Q",
        why="b.8, b.9",
        equation_zh="V ← max_a [r + γ V(s + a)]；评估 π，再令 π ← argmax_a Q",
        code=[],
        tests=["test_derivations.py::test_b8_contraction",
               "test_derivations.py::test_b9_policy_improvement"],
        experiment="",
        english=("Sums over all states and next states; each sweep shrinks the error by γ. Not "
                 "in the code: sampling goes only where the policy goes, and averages."),
        in_chinese=("对所有状态和下一状态求和，每扫一遍误差缩小到 γ 倍。代码里没有：采样只去策略"
                    "会去的地方，然后求平均。")),
    Concept(
        "Q-learning and SARSA", "Q-learning 与 SARSA",
        equation="target r + γ max_a' Q(s', a')   or   r + γ Q(s', a'), a' ~ π",
        why="b.11, b.12",
        equation_zh="目标为 r + γ max_a' Q(s', a')，或 r + γ Q(s', a')，a' ~ π",
        code=[],
        tests=["test_derivations.py::test_b11_q_learning", "test_derivations.py::test_b12_sarsa"],
        experiment="",
        english=("Not in the code: Q has an output for each of 100,000 tokens, of which a state "
                 "tries one at a time, and the maximum of so many noisy estimates picks the "
                 "largest error. V is one number, and the next state is known anyway."),
        in_chinese=("代码里没有：Q 有十万个输出，每个 token 一个，而一个状态每次只试其中一个；对这么多带噪声的估计取最"
                    "大，会挑中误差最大的。V 只是一个数，而下一个状态本来就知道。")),
    Concept(
        "exploration", "探索",
        equation="a_t ~ softmax(logits / temperature), G answers to each prompt",
        why="b.11",
        equation_zh="a_t ~ softmax(logits / temperature)，每个提示词 G 个回答",
        code=["rollout.py:sample:probs = torch.softmax", 'methods.py:METHODS:"dapo"'],
        tests=["test_rollout.py::test_sampler_follows_the_distribution",
               "test_rollout.py::test_samples_of_one_prompt_differ_from_the_first_token_on"],
        experiment="hard",
        english=("By the softmax itself, kept open by temperature, groups, entropy, and a wider "
                 "upper clip. The ε-greedy choice of games would break a text with one random "
                 "token."),
        in_chinese=("靠 softmax 本身；温度、分组、熵和放宽的裁剪上界使它保持开放。游戏里的 ε-贪心"
                    "会用一个随机 token 毁掉整段文本。")),
    Concept(
        "TD error", "时序差分误差（TD 误差）",
        equation="δ_t = r_t + γ V(s_{t+1}) − V(s_t)",
        why="b.19, d.1",
        code=["advantages.py:gae:delta = rewards"],
        tests=["test_losses.py::test_gae_by_hand",
               "test_losses.py::test_gae_ends"],
        experiment="",
        english="How far V was from what one step later is known.",
        in_chinese="走一步之后，V 的估计错了多少。"),
    Concept(
        "Monte Carlo", "蒙特卡洛方法",
        equation="A_t = G_t − V(s_t)   (λ = 1)",
        why="b.18, d.4",
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
        why="b.19, d.10",
        code=["advantages.py:gae:delta = rewards"],
        tests=["test_losses.py::test_gae_ends",
               "test_policy_gradient.py::test_gae_with_lambda_below_1_needs_the_right_critic"],
        experiment="lambda",
        english=("Trust V for all but the next step (bootstrapping): "
                 "little noise, but V's error becomes bias."),
        in_chinese="一步之后就相信 V：方差小，但 V 的误差变成偏差。"),
    Concept(
        "k-step sums", "k 步估计",
        equation="A^(k) = r_t + … + γ^k V(s_{t+k}) − V(s_t) = Σ_{i<k} γ^i δ_{t+i}",
        why="d.2, d.3",
        code=["advantages.py:gae:delta = rewards"],
        tests=["test_derivations.py::test_d2_k_steps",
               "test_derivations.py::test_d3_k_steps_are_sums_of_td_errors"],
        experiment="lambda",
        english=("Follow the answer for k actions, and ask the critic only then. GAE is the mean "
                 "of all of them, with weights that fall by λ."),
        in_chinese="沿回答走 k 步，然后才问价值模型。GAE 就是它们的加权平均，权重每步乘以 λ。"),
    Concept(
        "GAE, generalised advantage estimation", "广义优势估计",
        equation="A_t = δ_t + γλ A_{t+1} = Σ_k (γλ)^k δ_{t+k}",
        why="d.6, d.8, d.9",
        code=["advantages.py:gae:running = torch.where"],
        tests=["test_losses.py::test_gae_by_hand",
               "test_peers.py::test_peer[verl.gae]"],
        experiment="lambda",
        english="Between the two, as a reverse loop over an answer; what a tool wrote is skipped.",
        in_chinese="用 λ 在两者之间插值；从后往前一次循环，跳过不是动作的 token。"),
    Concept(
        "bias and variance, of λ", "偏差与方差的权衡",
        equation="λ = 1: unbiased for any V;   λ < 1: unbiased if V is right",
        why="d.12, d.13",
        equation_zh="λ = 1：对任何 V 无偏；λ < 1：V 正确才无偏",
        code=["train_ppo.py:Config:lam: float"],
        tests=["test_policy_gradient.py::test_gae_with_lambda_below_1_needs_the_right_critic",
               "test_policy_gradient.py::test_a_smaller_lambda_has_less_variance"],
        experiment="lambda",
        english=("A smaller λ trusts V more: less variance "
                 "(λ = 0 has about half of it in the tests' worlds), and V's error becomes bias."),
        in_chinese="λ 越小越依赖 V：方差更小（测试的小世界里约为一半），但 V 的误差变成偏差。"),
    Concept(
        "value loss", "价值损失",
        equation="½ E[(V(s_t) − R_t)²],   R_t = A_t + V_old(s_t)",
        why="d.14, e.2",
        code=["losses.py:value_loss:loss = error",
              "advantages.py:gae:return advantages"],
        tests=["test_scripts.py::test_ppo_hands_the_right_tensors_on",
               "test_policy_gradient.py::test_the_critic_converges_to_the_bellman_values"],
        experiment="curves",
        english="The critic's targets come from raw advantages, never from whitened ones.",
        in_chinese="价值模型的目标用未白化的优势计算。"),
    Concept(
        "why a critic learns the mean", "价值模型为什么学到均值",
        equation="E[(v − G)²] = (v − E[G])² + Var(G)",
        why="e.1, e.2, e.3",
        code=["losses.py:value_loss:loss = error"],
        tests=["test_derivations.py::test_e2_regression_finds_the_mean",
               "test_policy_gradient.py::test_the_critic_converges_to_the_bellman_values"],
        experiment="",
        english=("The noise of the returns doesn't depend on the prediction, so the best "
                 "prediction is their mean. A loss far above 0 may be perfect."),
        in_chinese="回报的噪声与预测无关，所以最好的预测就是均值。损失远大于 0 也可能已经完美。"),
    Concept(
        "semi-gradient", "半梯度",
        equation="∂/∂V ½ (V(s_t) − target)², with target = A + V_old held fixed",
        why="e.4, e.5",
        equation_zh="∂/∂V ½ (V(s_t) − target)²，target = A + V_old 视为常数",
        code=["advantages.py:gae:returns = (advantages",
              "train_ppo.py:main:loss, stats = value_loss"],
        tests=["test_derivations.py::test_e4_semi_gradient",
               "test_derivations.py::test_e5_the_whole_gradient_learns_something_else"],
        experiment="",
        english=("The target contains the critic's own values, computed once before the updates. "
                 "To differentiate them as well would reward a critic that says the same of all "
                 "next states."),
        in_chinese=("目标里含有价值模型自己的估值，在更新之前算好。若也对它求导，就会鼓励价值模型"
                    "对各个下一状态给出同样的值。")),
    Concept(
        "credit assignment, how a critic spreads the last reward", "信用分配，价值模型怎样分摊最后的奖励",
        equation="A_t = V(s_{t+1}) − V(s_t),   Σ_t A_t = R − V(s_1)",
        why="e.6, e.7, e.8, e.9",
        equation_zh="A_t = V(s_{t+1}) − V(s_t)，Σ_t A_t = R − V(s_1)",
        code=["advantages.py:gae:delta = rewards"],
        tests=["test_derivations.py::test_e7_advantage_is_a_step_of_the_value",
               "test_derivations.py::test_e8_advantages_sum_to_the_surprise"],
        experiment="credit",
        english=("A token is credited with the change of the expected score that it made. A "
                 "group's baseline gives every token the whole difference instead: the same "
                 "mean, more noise."),
        in_chinese=("一个 token 的功劳，就是它使期望得分变了多少。组内基线则给每个 token 整个差"
                    "值：均值相同，噪声更大。")),
    Concept(
        "explained variance", "解释方差",
        equation="1 − Var(G − V) / Var(G)",
        why="e.10",
        code=["advantages.py:explained_variance"],
        tests=["test_derivations.py::test_e10_explained_variance",
               "test_scripts.py::test_ppo_hands_the_right_tensors_on"],
        experiment="lambda",
        english=("How much of the returns the critic knew beforehand. The right critic has "
                 "Var(V) / Var(G), less than 1: late in training only luck is left to vary."),
        in_chinese=("价值模型事先知道了回报的多少。正确的价值模型也只有 Var(V) / Var(G)，小于 1："
                    "训练后期变化的只剩运气。")),
]

GRADIENTS = [
    Concept(
        "log-derivative trick", "对数导数技巧",
        equation="∇P(τ) = P(τ) ∇log P(τ)",
        why="a.3, a.4, a.5",
        code=["losses.py:policy_gradient_loss:loss = aggregate"],
        tests=["test_derivations.py::test_a4_log_derivative",
               "test_derivations.py::test_a5_gradient_as_an_expectation"],
        experiment="",
        english=("Turns the gradient of a sum over all answers into a mean over samples. The "
                 "reward is a constant in it, so it needs no derivative."),
        in_chinese="把“对所有回答求和”的梯度变成对样本的平均。奖励在其中是常数，不需要可导。"),
    Concept(
        "environment's terms vanish", "环境项消失",
        equation="∇log P(τ) = Σ_t ∇log π(a_t ∣ s_t)",
        why="a.6, a.7",
        code=["losses.py:gather_log_probs"],
        tests=["test_derivations.py::test_a7_environment_vanishes",
               "test_policy_gradient.py::test_with_a_tool_every_estimator_has_the_exact_gradient"],
        experiment="",
        english=("The probability of a trajectory is a product. The factors of prompts and of "
                 "the environment contain no parameters, so only the policy's log-probs are "
                 "differentiated."),
        in_chinese="轨迹的概率是乘积。提示词和环境的因子不含参数，所以只对策略的对数概率求导。"),
    Concept(
        "policy gradient theorem, REINFORCE", "策略梯度定理，REINFORCE",
        equation="∇J = E_π[Σ_t ∇log π(a_t ∣ s_t) A_t]",
        why="a.9, a.12, b.6",
        code=["losses.py:policy_gradient_loss:loss = aggregate"],
        tests=["test_policy_gradient.py::test_reinforce"],
        experiment="",
        english=("Make more likely what turned out better than expected. "
                 "A may be the answer's whole reward or the return: the past has expectation 0."),
        in_chinese="提高好动作的概率；用整个回答的奖励或之后的回报，期望相同。"),
    Concept(
        "reward-to-go", "未来回报（reward-to-go）",
        equation="E[∇log π(a_t ∣ s_t) r_k] = 0  for k < t",
        why="a.10, a.11, a.12",
        equation_zh="k < t 时 E[∇log π(a_t ∣ s_t) r_k] = 0",
        code=["advantages.py:discounted_returns:return_t ="],
        tests=["test_derivations.py::test_a12_reward_to_go",
               "test_policy_gradient.py::test_reinforce"],
        experiment="",
        english=("What was earned before an action doesn't depend on it, and adds only noise. So "
                 "an action is weighed with the rewards from there on."),
        in_chinese="动作之前得到的奖励与它无关，只带来噪声。所以动作只用此后的奖励加权。"),
    Concept(
        "samples in place of the expectation", "用样本代替期望",
        equation="∇J ≈ (1/N) Σ_i Σ_t ∇log π(a_{i,t} ∣ s_{i,t}) A_{i,t}",
        why="a.16, a.17",
        code=["train_grpo.py:main:denominator = count_for"],
        tests=["test_derivations.py::test_a16_the_mean_of_samples",
               "test_derivations.py::test_a17_variance_falls_with_samples"],
        experiment="",
        english="The mean of N answers has the right mean, and a variance that falls as 1/N.",
        in_chinese="N 个回答的平均，均值正确，方差按 1/N 下降。"),
    Concept(
        "surrogate loss", "代理损失",
        equation="L = −(1/N) Σ A log π, with A held fixed",
        why="a.18, c.5",
        equation_zh="L = −(1/N) Σ A log π，A 视为常数",
        code=["losses.py:policy_gradient_loss:advantages = _per_token", "losses.py:grpo_loss"],
        tests=["test_derivations.py::test_a18_surrogate",
               "test_curves.py::test_the_value_of_grpos_loss_is_its_kl"],
        experiment="",
        english=("A loss whose gradient is the policy gradient with a minus. Its value says "
                 "nothing: GRPO's is 0 at the first update, whatever the rewards."),
        in_chinese=("梯度等于负的策略梯度的损失。它的值没有意义：不论奖励如何，GRPO 第一次更新时"
                    "都是 0。")),
    Concept(
        "baseline", "基线",
        equation="E_π[b(s) ∇log π(a ∣ s)] = 0",
        why="a.13, a.14, a.15",
        code=["advantages.py:rloo_advantages:others =",
              "advantages.py:gae:delta = rewards"],
        tests=["test_policy_gradient.py::test_gae_with_lambda_1_forgives_any_critic",
               "test_policy_gradient.py::test_rloo",
               "test_policy_gradient.py::test_a_baseline_takes_variance_away"],
        experiment="gradient",
        english=("What does not depend on the action adds no bias, and takes away the variance of "
                 "what all answers earn alike. The baseline's own noise comes on top. The best "
                 "constant weighs returns by ‖∇log π‖²; the mean may be noisier than none."),
        in_chinese=("与动作无关的基线不引入偏差，并消除所有回答共有的那部分奖励带来的方差；"
                    "但基线自身也有噪声。最好的常数以 ‖∇log π‖² 为权重；用均值可能比不用噪声更大。")),
    Concept(
        "actor-critic", "actor-critic（策略模型加价值模型）",
        equation="actor: ∇ log π · A(V);   critic: V → R",
        why="b.6, e.3",
        equation_zh="策略模型：∇ log π · A(V)；价值模型：V → R",
        code=["train_ppo.py:main:= value_loss("],
        tests=["test_scripts.py::test_ppo_hands_the_right_tensors_on"],
        experiment="table",
        english="One model acts, another learns to say what to expect. They share no weights here.",
        in_chinese="一个模型行动，另一个估计价值；这里不共享参数。"),
    Concept(
        "A2C, advantage actor-critic", "优势 actor-critic",
        equation="loss = −E[A_t log π(a_t ∣ s_t)],   A from GAE",
        why="c.16, d.14",
        equation_zh="loss = −E[A_t log π(a_t ∣ s_t)]，A 来自 GAE",
        code=["losses.py:policy_gradient_loss"],
        tests=["test_policy_gradient.py::test_ratio_losses_are_a2c_where_the_policy_has_not_moved"],
        experiment="table",
        english=("`train_ppo.py --epochs 1 --minibatches 1`: "
                 "at ratio 1 nothing is clipped, and PPO's gradient is A2C's."),
        in_chinese=("`train_ppo.py --epochs 1 --minibatches 1`：只更新一次时比率为 1，不裁剪，PPO 的梯度就是 "
                    "A2C 的梯度。")),
    Concept(
        "on-policy", "同策略（在策略）",
        equation="a_t ~ π,   ρ_t = 1",
        why="c.6",
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
        why="c.1",
        equation_zh="a_t ~ π_old ≠ π：用 ρ 加权",
        code=["train_grpo.py:main:old = logp.detach()"],
        tests=["test_policy_gradient.py::test_importance_sampling_corrects_for_another_sampler"],
        experiment="clip",
        english=("Here only slightly: later mini-batches and epochs on one rollout, "
                 "and no replay. DPO is offline: its pairs are fixed."),
        in_chinese="这里只是轻微的：同一批样本上的后几次更新，没有经验回放；DPO 则是离线的。"),
    Concept(
        "importance ratio", "重要性采样比率",
        equation="ρ_t = π(a_t ∣ s_t) / π_old(a_t ∣ s_t)",
        why="c.1, c.2, c.5",
        code=["losses.py:_log_ratio",
              "losses.py:_clipped_surrogate:ratio = log_ratio"],
        tests=["test_policy_gradient.py::test_importance_sampling_corrects_for_another_sampler"],
        experiment="clip",
        english=("The product over an answer is exact; "
                 "a token's own ratio, as PPO takes it, is not: prefixes stay π_old's."),
        in_chinese="整个回答的比率连乘才是精确的；PPO 只用单个 token 的比率，前缀仍来自 π_old。"),
    Concept(
        "entropy", "熵",
        equation="H(π) = −Σ_a π(a ∣ s) log π(a ∣ s)",
        code=["losses.py:entropy",
              "rollout.py:token_log_probs_and_entropies:entropy(logits)",
              "train_ppo.py:main:config.entropy_coef *"],
        tests=["test_peers.py::test_peer[verl.entropy]",
               "test_rollout.py::test_log_probs_are_those_of_the_full_logits",
               "test_policy_gradient.py::test_an_entropy_bonus_widens_each_visited_state"],
        experiment="curves",
        english=("How undecided the policy is. Measured at every action. A bonus for it in the "
                 "loss, of PPO and GRPO, is off unless `--entropy-coef` is given."),
        in_chinese="策略的不确定程度，每个动作都记录。损失里的熵奖励（PPO 和 GRPO）默认关闭，用 `--entropy-coef` 打开。"),
    Concept(
        "whitening", "白化（优势归一化）",
        equation="(A − mean) / √(var + ε) over the batch",
        why="a.13, g.21",
        equation_zh="整批上 (A − mean) / √(var + ε)",
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
        "plain gradient, TRPO, PPO", "普通策略梯度、TRPO、PPO 的对比",
        equation="one small step;   one step with KL ≤ δ;   several steps with a clip",
        why="c.6, c.7, c.15, c.16",
        equation_zh="走一小步；在 KL ≤ δ 内走一步；带裁剪走几步",
        code=["losses.py:policy_gradient_loss", "losses.py:ppo_policy_loss"],
        tests=["test_derivations.py::test_c7_what_the_surrogate_leaves_out",
               "test_policy_gradient.py::test_ratio_losses_are_a2c_where_the_policy_has_not_moved"],
        experiment="clip",
        english=("A sample is good for the policy that made it. The plain gradient uses it once; "
                 "a step too far, and the next samples are worse. TRPO bounds the step, PPO "
                 "removes the reason to go far."),
        in_chinese=("样本只对产生它的策略有效。普通策略梯度只用一次，走得太远，下一批样本就变差。"
                    "TRPO 限制步长，PPO 去掉走远的理由。")),
    Concept(
        "natural gradient, steps in parameters and in policies", "自然梯度，参数的步长与策略的步长",
        equation="KL(π_θ‖π_{θ+Δ}) ≈ ½ Δᵀ F Δ,   Δ* ∝ F⁻¹ g",
        why="c.12, c.13",
        equation_zh="KL(π_θ‖π_{θ+Δ}) ≈ ½ Δᵀ F Δ，Δ* ∝ F⁻¹ g",
        code=[],
        tests=["test_derivations.py::test_c12_fisher",
               "test_derivations.py::test_c13_natural_gradient"],
        experiment="",
        english=("Equal steps in parameters are unequal steps in policies; F measures the "
                 "second. Not in the code: F has as many rows as the model has parameters, which "
                 "makes TRPO hard."),
        in_chinese=("参数走同样的步长，策略的变化并不一样大；F 衡量后者。代码里没有：F 的行数等于"
                    "参数个数，这正是 TRPO 难做的原因。")),
    Concept(
        "trust region", "信赖域（信任域，TRPO）",
        equation="max E[ρ A]  such that  E[KL(π_old‖π)] ≤ δ",
        why="c.8, c.10, c.11",
        equation_zh="在 E[KL(π_old‖π)] ≤ δ 下 max E[ρ A]",
        code=['losses.py:_ratio_stats:"approx_kl"'],
        tests=["test_policy_gradient.py::test_importance_sampling_corrects_for_another_sampler"],
        experiment="clip",
        english=("TRPO is not here: `approx_kl` only reports that KL, and the clip takes the "
                 "constraint's place. The test shows the error it guards against."),
        in_chinese="没有实现 TRPO：`approx_kl` 只记录该 KL，用裁剪代替约束。测试显示约束所防的误差。"),
    Concept(
        "clip", "裁剪",
        equation="−min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)",
        why="c.14, c.15",
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
        why="c.14",
        equation_zh="A < 0 时 loss ≤ −c A",
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
        why="g.1, g.5",
        equation_zh="策略模型 π，价值模型 V，参考模型 π_ref，奖励模型 r",
        code=["train_ppo.py:main:# 1. Four models"],
        tests=["test_scripts.py::test_a_frozen_reward_model_is_bfloat16_and_the_critic_is_not",
               "test_scripts.py::test_the_reference_stays_frozen_unless_told_to_move",
               "test_scripts.py::test_reward_model_and_ppo_on_it"],
        experiment="table",
        english=("Actor and critic learn. The reference is the actor's frozen start. The reward "
                 "model is frozen, as it says what is good. The first three read every token of an "
                 "answer, the reward model its end. A verifier can take the reward model's place, "
                 "a group's mean the critic's."),
        in_chinese=("策略模型（actor）和价值模型（critic）学习。参考模型是策略模型冻结的起点；奖励模型"
                    "定义什么是好，所以冻结。前三个读回答的每个 token，奖励模型只在结尾打分。校验器可以"
                    "代替奖励模型，组均值可以代替价值模型。")),
    Concept(
        "order of work in a step", "一步之内的工作顺序",
        equation="sample;   score, log-probs, values;   advantages;   updates",
        why="g.5",
        equation_zh="采样；打分、对数概率、价值；优势；更新",
        code=["train_ppo.py:main:# 2. Rollout",
              "train_ppo.py:main:# 3. Log-probs",
              "train_ppo.py:main:# 4. Advantages",
              "train_ppo.py:main:# 5. Updates"],
        tests=["test_steps.py::test_ppo"],
        experiment="",
        english=("Sampling goes token by token. All that follows goes over whole answers at "
                 "once, one pass for each model."),
        in_chinese="采样是逐个 token 进行的；此后都对整个回答一次算完，每个模型一次前向。"),
    Concept(
        "memory, what a model costs", "显存，一个模型占多少",
        equation="learns: 16 bytes per parameter (float32, Adam);   frozen: 4, or 2 in bfloat16",
        equation_zh="要学习：每个参数 16 字节（float32，Adam）；冻结：4 字节，bfloat16 为 2 字节",
        code=["support/models.py:copy_for_inference"],
        tests=["test_plan.py::test_what_learns_is_exact",
               "test_plan.py::test_what_is_frozen_is_exact"],
        experiment="",
        english=("Weights, gradients and Adam's two moments for what learns; besides "
                 "activations, logits and the KV cache. [MEMORY.md](MEMORY.md) has all terms."),
        in_chinese=("要学习的模型有权重、梯度和 Adam 的两个矩；另有激活、logits 和 KV 缓存。全部"
                    "条目见 [MEMORY.md](MEMORY.md)（英文）。")),
    Concept(
        "clip and KL penalty, why both", "裁剪与 KL 惩罚，为什么都要",
        equation="π against π_old, in one step;   π against π_ref, over the whole run",
        why="c.15, f.15",
        equation_zh="一步之内 π 对 π_old；整个训练中 π 对 π_ref",
        code=["losses.py:_clipped_surrogate:loss = torch.maximum",
              "advantages.py:token_rewards:penalty = -kl_coef"],
        tests=["test_losses.py::test_where_the_clip_stops_the_gradient",
               "test_closed_form.py::test_ends_at_the_optimum"],
        experiment="clip_kl",
        english=("The clip keeps old samples usable for a few updates. The penalty keeps the "
                 "text near the reference. A hundred clipped steps can still lead anywhere."),
        in_chinese=("裁剪使旧样本在几次更新内仍可用；惩罚使文本留在参考模型附近。一百个裁剪过的小"
                    "步，仍可能走到任何地方。")),
    Concept(
        "value clipping", "价值裁剪",
        equation="max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²)",
        why="e.11",
        code=["losses.py:value_loss:clipped_values = old_values"],
        tests=["test_peers.py::test_peer[verl.value_loss]"],
        experiment="",
        english=("No gradient for a V that has moved towards its target by more than ε, in units "
                 "of reward. `--value-clip 0` leaves it out."),
        in_chinese=("V 朝目标移动超过 ε 之后就没有梯度；ε 以奖励为单位。"
                    "`--value-clip 0` 关闭。")),
    Concept(
        "critic warm-up", "价值模型预热",
        equation="the first steps train V only",
        why="d.12",
        equation_zh="前几步只训练 V",
        code=["train_ppo.py:Config:critic_warmup: int"],
        tests=["test_scripts.py::test_ppo_learns"],
        experiment="",
        english=("A critic that knows nothing yet gives noise for advantages, "
                 "and the policy would follow it."),
        in_chinese="先只训练价值模型，否则优势只是噪声。"),
]

KL = [
    Concept(
        "KL-regularised objective", "KL 正则化目标",
        equation="max E_π[score] − β KL(π‖π_ref):   π* ∝ π_ref exp(score / β)",
        why="g.1, g.2, g.3",
        equation_zh="max E_π[score] − β KL(π‖π_ref)：π* ∝ π_ref exp(score / β)",
        code=["advantages.py:token_rewards:penalty = -kl_coef"],
        tests=["test_closed_form.py::test_ends_at_the_optimum"],
        experiment="kl",
        english=("What RLHF maximises, and its solution: the score of the policy's own answers, "
                 "minus a price β for each nat of distance from the reference. PPO, RLOO and DPO "
                 "arrive there."),
        in_chinese=("RLHF 的目标及其闭式解：策略自己的回答的得分，减去离参考模型每一 nat 的代价 β。"
                    "PPO、RLOO、DPO 都收敛到它。")),
    Concept(
        "forward and reverse KL", "前向 KL 与反向 KL",
        equation=("reverse: KL(π‖π_ref) = E_π[log π/π_ref];   "
                  "forward: KL(π_ref‖π) = E_ref[log π_ref/π]"),
        why="f.2, f.3, f.4, f.5",
        equation_zh=("反向：KL(π‖π_ref) = E_π[log π/π_ref]；"
                     "前向：KL(π_ref‖π) = E_ref[log π_ref/π]"),
        code=["losses.py:kl_exact"],
        tests=["test_losses.py::test_kl_estimators_by_enumeration",
               "test_closed_form.py::test_k3_in_the_loss_ends_elsewhere"],
        experiment="",
        english=("Reverse (mode-seeking) forbids what the reference doesn't say; "
                 "forward (mass-covering) asks for all it says. k3's gradient is forward's."),
        in_chinese="反向 KL 偏向众数，前向 KL 覆盖全部；k3 作损失时，梯度是前向 KL 的。"),
    Concept(
        "KL estimators", "KL 估计量",
        equation="from samples of π, with log π − log π_ref only",
        why="f.7, f.8, f.10",
        equation_zh="只用 π 的样本，以及 log π − log π_ref",
        code=["losses.py:kl_k1", "losses.py:kl_k2", "losses.py:kl_k3"],
        tests=["test_losses.py::test_why_there_are_three_kl_estimators"],
        experiment="kl",
        english=("An unbiased value and a right gradient are two questions: "
                 "k1 and k3 have the first, k2 alone the second."),
        in_chinese="值无偏与梯度正确是两回事：k1、k3 值无偏，只有 k2 梯度正确。"),
    Concept(
        "k1", "k1 估计量",
        equation="k1 = log π(a) − log π_ref(a)",
        why="f.7, f.12, f.15",
        code=["losses.py:kl_k1"],
        tests=["test_losses.py::test_kl_estimators_by_enumeration"],
        experiment="kl",
        english=("Unbiased, noisy, often negative. In the reward it is right; "
                 "as a loss its expected gradient is 0."),
        in_chinese="无偏，但方差大，常为负；放进奖励正确，作损失时期望梯度为 0。"),
    Concept(
        "k2", "k2 估计量",
        equation="k2 = ½ (log π(a) − log π_ref(a))²",
        why="f.9, f.13",
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
        why="f.8, f.14",
        code=["losses.py:kl_k3"],
        tests=["test_losses.py::test_kl_estimators_by_enumeration",
               "test_closed_form.py::test_k3_in_the_loss_ends_elsewhere"],
        experiment="kl",
        english=("Unbiased, never negative, quiet near the reference. "
                 "GRPO's penalty, and as a loss one on the forward KL."),
        in_chinese="无偏、非负、参考附近方差小；GRPO 的惩罚项，作损失时是前向 KL。"),
    Concept(
        "gradients of the KL estimators", "k1、k2、k3 的梯度",
        equation="E[∇k1] = 0,   E[∇k2] = ∇KL(π‖π_ref),   E[∇k3] = ∇KL(π_ref‖π)",
        why="f.10, f.11, f.12, f.13, f.14",
        equation_zh="E[∇k1] = 0，E[∇k2] = ∇KL(π‖π_ref)，E[∇k3] = ∇KL(π_ref‖π)",
        code=["losses.py:kl_penalty"],
        tests=["test_derivations.py::test_f11_gradients_of_the_estimates",
               "test_closed_form.py::test_k2_in_the_loss_ends_at_the_optimum"],
        experiment="kl",
        english=("The samples depend on θ too, which a loss over given samples leaves out. So a "
                 "value without bias may have another gradient."),
        in_chinese=("样本本身也依赖 θ，而对给定样本的损失忽略了这一点。所以值无偏，梯度却可以是另"
                    "一个。")),
    Concept(
        "exact KL", "精确 KL",
        equation="Σ_a π(a ∣ s) [log π(a ∣ s) − log π_ref(a ∣ s)]",
        why="f.2, f.16",
        code=["losses.py:kl_exact", "support/metrics.py:token_kl"],
        tests=["test_rollout.py::test_exact_kl"],
        experiment="table",
        english="The sum over the vocabulary: no sampling noise, both models' logits.",
        in_chinese="对整个词表求和：没有采样噪声，但需要两个模型的 logits。"),
    Concept(
        "KL in the reward or in the loss", "KL 放进奖励还是放进损失",
        equation="r_t = −β k1_t + …   or   loss + β k3",
        why="f.15, f.17, f.18",
        equation_zh="r_t = −β k1_t + score，或 loss + β k3",
        code=["advantages.py:token_rewards:penalty = -kl_coef",
              "losses.py:grpo_loss:loss = loss + kl_coef"],
        tests=["test_closed_form.py::test_ends_at_the_optimum",
               "test_closed_form.py::test_ends_elsewhere"],
        experiment="kl",
        english=("PPO, REINFORCE, RLOO, ReMax and REINFORCE++ pay it as reward, so that advantages "
                 "carry it; GRPO and GSPO add it to the loss, and k3 there ends elsewhere."),
        in_chinese=("PPO、REINFORCE、RLOO、ReMax、REINFORCE++ 放进奖励，由优势带着它；GRPO、GSPO 放进损失，"
                    "k3 在那里收敛到别处。")),
    Concept(
        "adaptive KL coefficient", "自适应 KL 系数",
        equation="β ← β (1 + e n / horizon),   e = clip(KL / target − 1, ±0.2)",
        code=["losses.py:adaptive_kl_coef"],
        tests=["test_losses.py::test_adaptive_kl_coef",
               "test_peers.py::test_peer[verl.adaptive_kl]"],
        experiment="",
        english=("A controller that steers to a given KL per answer instead of fixing its price. "
                 "`--kl-target`; off by default."),
        in_chinese="用控制器使每个回答的 KL 靠近目标值，而不是固定 β。用 `--kl-target` 打开，默认关闭。"),
    Concept(
        "reference model", "参考模型（冻结、EMA、定期同步）",
        equation="frozen;  ref ← m ref + (1 − m) π;  ref ← π every N steps",
        why="g.3",
        equation_zh="冻结；ref ← m ref + (1 − m) π；每 N 步 ref ← π",
        code=["support/models.py:Reference:p_ref.lerp_"],
        tests=["test_scripts.py::test_the_reference_stays_frozen_unless_told_to_move"],
        experiment="reference",
        english=("What KL is measured to. Frozen by default; "
                 "`--ref-ema` and `--ref-sync` let it follow."),
        in_chinese="KL 的参照；默认冻结，`--ref-ema` 使它滑动平均，`--ref-sync` 使它定期同步。"),
]

GROUPS = [
    Concept(
        "group baseline", "组内基线（组相对优势）",
        equation="A_i = (r_i − mean(r)) / (std(r) + ε)",
        why="g.17, g.20",
        code=["advantages.py:grpo_advantages:advantages = groups"],
        tests=["test_peers.py::test_peer[trl.grpo_adv]",
               "test_policy_gradient.py::test_dividing_by_the_group_std_plays_to_win"],
        experiment="group_size",
        english=("G answers to one prompt: their mean takes the critic's place. "
                 "Dividing by the std changes the aim: with G = 2, to win often, not by much."),
        in_chinese=("同一提示词采样 G 个回答，组均值代替价值模型；"
                    "除以标准差会改变目标：G = 2 时只看输赢。")),
    Concept(
        "GRPO against DPO", "GRPO 与 DPO 的对比",
        equation="own samples and a score for each;   fixed pairs and which is better",
        why="g.13, g.16",
        equation_zh="自己的样本，每个有得分；固定的偏好对，只知道哪个更好",
        code=["train_grpo.py:main:rollout, rewards = answer(examples",
              "train_dpo.py:preference_loss:return dpo_loss"],
        tests=["test_scripts.py::test_grpo_learns", "test_scripts.py::test_dpo_learns"],
        experiment="table",
        english=("GRPO can find answers that are in no data set, and needs a scorer. DPO needs "
                 "neither sampling nor scorer, and says nothing of answers that are in no pair."),
        in_chinese=("GRPO 能找到数据里没有的回答，但需要打分；DPO 不用采样也不用打分，但对不在偏"
                    "好对里的回答无话可说。")),
    Concept(
        "GRPO, group relative policy optimisation", "组相对策略优化",
        equation="−min(ρ A, clip(ρ) A) + β k3,   mean over an answer, then over answers",
        why="g.16, g.18",
        equation_zh="−min(ρ A, clip(ρ) A) + β k3，先在回答内平均，再对回答平均",
        code=["losses.py:grpo_loss"],
        tests=["test_peers.py::test_peer[trl.grpo_loss.grpo]",
               "test_scripts.py::test_grpo_learns"],
        experiment="table",
        english=("PPO's clip with the group baseline and KL in the loss. "
                 "Without a critic, three of PPO's four models are left; with a verifier, two."),
        in_chinese=("PPO 的裁剪加组内基线，KL 放进损失。不要价值模型，四个模型剩三个；"
                    "用校验器打分，剩两个。")),
    Concept(
        "groups without signal", "无信号组（动态采样）",
        equation="A_1 = … = A_G = 0;   here: r_1 = … = r_G",
        why="g.20",
        equation_zh="A_1 = … = A_G = 0；这里即 r_1 = … = r_G",
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
        why="g.18, g.19, g.21",
        code=["advantages.py:grpo_advantages:if scale",
              "train_grpo.py:main:denominator = count_for"],
        tests=["test_policy_gradient.py::test_dr_grpo_is_the_gradient_times_a_constant",
               "test_scripts.py::test_dr_grpo_divides_by_a_constant"],
        experiment="aggregation",
        english="No std and no division by an answer's length: (G − 1)/G of the true gradient.",
        in_chinese="不除标准差，也不除回答长度：梯度只差一个常数倍。"),
    Concept(
        "aggregation, by token or sequence or a constant", "损失聚合（按 token、按序列、按常数）",
        equation="Σ_bt / Σ mask   or   mean_b mean_t   or   Σ_bt / constant",
        why="a.19, g.19",
        equation_zh="Σ_bt / Σ mask，或 mean_b mean_t，或 Σ_bt / 常数",
        code=["losses.py:aggregate:return x.sum()"],
        tests=["test_losses.py::test_aggregate_modes",
               "test_length.py::test_the_closed_form",
               "test_policy_gradient.py::test_dividing_by_length_maximises_reward_per_token"],
        experiment="length",
        english=("A mean over each answer favours short right answers and long wrong ones "
                 "(length bias); a constant does not."),
        in_chinese="按序列平均会偏向短的正确回答和长的错误回答（长度偏差）；除以常数则不会。"),
    Concept(
        "DAPO, decoupled clip and dynamic sampling", "解耦裁剪与动态采样（Clip-Higher）",
        equation="clip(ρ, 1 − 0.2, 1 + 0.28),   token mean",
        why="c.14, c.15",
        equation_zh="clip(ρ, 1 − 0.2, 1 + 0.28)，按 token 平均",
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
        why="a.13, g.17",
        code=["advantages.py:rloo_advantages:others ="],
        tests=["test_policy_gradient.py::test_rloo",
               "test_peers.py::test_peer[trl.rloo_adv]"],
        experiment="table",
        english="The mean of the others does not depend on the sample itself, so it is unbiased.",
        in_chinese="用其他样本的均值作基线，无偏。"),
    Concept(
        "ReMax, the greedy answer as baseline", "贪心回答作基线",
        equation="A = r(y) − r(greedy y)",
        why="a.13",
        equation_zh="A = r(y) − r(贪心 y)",
        code=["advantages.py:remax_advantages:return",
              "methods.py:unweighted_advantages:_, greedy_rewards"],
        tests=["test_policy_gradient.py::test_remax",
               "test_peers.py::test_peer[verl.remax.sparse]"],
        experiment="table",
        english="One greedy answer is the baseline: it depends on the prompt alone.",
        in_chinese="以贪心解码的奖励为基线，只依赖提示词。"),
    Concept(
        "REINFORCE++", "全局（批次）优势归一化",
        equation="A_t = whiten(G_t) over the batch,   KL in the reward",
        why="a.12, f.17",
        equation_zh="A_t = 整批白化后的 G_t，KL 放进奖励",
        code=["advantages.py:reinforce_pp_advantages:return whiten"],
        tests=["test_losses.py::test_whiten",
               "test_peers.py::test_peer[verl.rf++.]"],
        experiment="table",
        english="No critic and no groups: the batch's mean is the baseline.",
        in_chinese="不要价值模型，也不要组：整个批次的均值就是基线。"),
    Concept(
        "GSPO, group sequence policy optimisation", "组序列策略优化（序列级比率）",
        equation="s = exp(mean_t log ρ_t),   −min(s A, clip(s) A)",
        why="c.2, c.3",
        code=["losses.py:gspo_loss:ratio = (log_ratio"],
        tests=["test_peers.py::test_peer[trl.gspo]",
               "test_policy_gradient.py::test_ratio_losses_are_a2c_where_the_policy_has_not_moved"],
        experiment="table",
        english=("One ratio per answer, since the reward belongs to the whole answer, and one clip "
                 "for it. The mean of the log ratios keeps it near 1; the exact product of all "
                 "ratios would be far from 1 for long answers."),
        in_chinese=("奖励属于整个回答，所以每个回答一个比率，整体裁剪。取对数比率的均值使它接近 1；"
                    "精确的连乘在长回答上会远离 1。")),
    Concept(
        "CISPO, clipped importance sampling weights", "裁剪重要性采样权重（不截断梯度）",
        equation="−stopgrad(clip(ρ)) A log π",
        why="c.1, c.15",
        code=["losses.py:cispo_loss:weight ="],
        tests=["test_peers.py::test_peer[verl.cispo]",
               "test_policy_gradient.py::test_ratio_losses_are_a2c_where_the_policy_has_not_moved"],
        experiment="table",
        english=("Clips the weight, not the gradient: every token goes on learning. "
                 "The paper tunes the upper clip and names no number; 0.28 is DAPO's."),
        in_chinese=("只裁剪权重，每个 token 都保留梯度。"
                    "论文没有给出裁剪上界的数值，这里取 DAPO 的 0.28。")),
    Concept(
        "sampler that is not the policy", "采样器与策略不一致",
        equation="log π_sampler(a) ≠ log π_old(a):  the ratio isn't 1 at the first update",
        why="c.1",
        equation_zh="log π_sampler(a) ≠ log π_old(a)：第一次更新时比率就不是 1",
        code=["methods.py:MethodConfig:self.on_policy =", "methods.py:importance_weights"],
        tests=["test_rollout.py::test_sampled_log_probs_are_the_scored_ones",
               "test_memory.py::test_sampled_log_probs_are_near_the_scored_ones_in_bfloat16",
               "test_policy_gradient.py::test_whole_answers_weights_are_exact_and_tokens_weights_"
               "are_nearer"],
        experiment="stale",
        english=("Another engine, precision, temperature or age of weights samples from another "
                 "policy. Old log-probs come from the code that takes the new ones; "
                 "`--importance-cap 2` weighs each token by min(π / sampler, 2) (TIS)."),
        in_chinese=("推理引擎、精度、温度不同，或权重旧了，采样的就是另一个策略。旧的对数概率与新"
                    "的出自同一段代码；`--importance-cap 2` 给每个 token 乘以 min(π / 采样器, 2)"
                    "（TIS）。")),
]

PREFERENCES = [
    Concept(
        "SFT, supervised fine-tuning", "监督微调（负对数似然）",
        equation="−mean log π(a_t ∣ s_t)",
        why="f.6",
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
        why="g.7, g.9, g.10",
        equation_zh="P(y_w 胜 y_l) = σ(r(y_w) − r(y_l))，loss = −log P",
        code=["losses.py:reward_model_loss:-F.logsigmoid"],
        tests=["test_closed_form.py::test_the_reward_model_recovers_the_score_up_to_a_constant",
               "test_peers.py::test_peer[trl.rm]"],
        experiment="table",
        english="Preferences fix scores up to a constant.",
        in_chinese="由偏好得到分数，只确定到一个常数。"),
    Concept(
        "reward model", "奖励模型",
        equation="r(x, y): a scalar head at the last token",
        why="g.7, g.10",
        equation_zh="r(x, y)：最后一个 token 处的标量输出",
        code=["rollout.py:sequence_scores", "model.py:ScalarModel"],
        tests=["test_rollout.py::test_score_is_read_at_the_last_action_whatever_the_padding",
               "test_scripts.py::test_reward_model_and_ppo_on_it"],
        experiment="table",
        english=("Learned from pairs, it stands in for the people who made them, "
                 "and is wrong where they never looked."),
        in_chinese="从偏好对学习，代替人的判断；在没见过的地方会错。"),
    Concept(
        "optimal policy π*", "最优策略 π*",
        equation="π*(y ∣ x) = π_ref(y ∣ x) exp(r(x, y) / β) / Z(x)",
        why="g.2, g.3, g.4",
        code=[],
        tests=["test_derivations.py::test_g2_objective_as_one_kl",
               "test_derivations.py::test_g3_optimal_policy"],
        experiment="",
        english=("The objective is a constant minus β KL(π‖π*), so π* is the best policy. Not in "
                 "the code: Z sums over all answers that there are. The tests' small world "
                 "computes it."),
        in_chinese=("目标等于一个常数减 β KL(π‖π*)，所以 π* 最优。代码里没有：Z 要对所有回答求"
                    "和；测试的小世界里可以算出。")),
    Concept(
        "Z cancels", "Z(x) 抵消",
        equation="r(y_w) − r(y_l) = β log π*/π_ref (y_w) − β log π*/π_ref (y_l)",
        why="g.6, g.8",
        code=["losses.py:dpo_loss:h = chosen_reward"],
        tests=["test_derivations.py::test_g6_reward_from_the_optimal_policy",
               "test_derivations.py::test_g8_z_cancels"],
        experiment="",
        english=("Both answers have the same prompt, so β log Z(x) is the same in both rewards "
                 "and drops out of their difference. This is why DPO needs no Z."),
        in_chinese="两个回答的提示词相同，β log Z(x) 在差值里抵消。这就是 DPO 不需要 Z 的原因。"),
    Concept(
        "implicit reward, DPO", "隐式奖励（直接偏好优化，DPO）",
        equation="r(y) = β log π(y)/π_ref(y),   −log σ(r(y_w) − r(y_l))",
        why="g.6, g.11",
        code=["losses.py:dpo_loss:chosen_reward = beta"],
        tests=["test_closed_form.py::test_the_implicit_reward_of_dpo_is_the_score_up_to_a_constant",
               "test_closed_form.py::test_ends_at_the_optimum"],
        experiment="table",
        english=("π is the optimal policy of this reward, "
                 "so fitting preferences with it fits the policy: no reward model, no sampling."),
        in_chinese="策略本身就是其隐式奖励的最优解；不要奖励模型，也不用采样。"),
    Concept(
        "gradient of DPO", "DPO 的梯度",
        equation="−β σ(−h) (∇log π(y_w) − ∇log π(y_l))",
        why="g.9, g.12, g.13",
        code=["losses.py:dpo_loss:h = chosen_reward"],
        tests=["test_derivations.py::test_g12_dpo_gradient",
               "test_derivations.py::test_g13_dpo_rests_at_the_optimum"],
        experiment="",
        english=("Raise the chosen answer, lower the rejected one. The weight σ(−h) is near 1 "
                 "for pairs that the implicit reward orders wrong, near 0 for those it is sure "
                 "of."),
        in_chinese="提高被选中的回答，降低被拒绝的回答。权重 σ(−h)：排错的偏好对接近 1，有把握排对的接近 0。"),
    Concept(
        "DPO and contrastive learning", "DPO 与对比学习",
        equation="−log (exp s_w / (exp s_w + exp s_l)),   s = β log π/π_ref",
        why="g.14",
        equation_zh="−log (exp s_w / (exp s_w + exp s_l))，s = β log π/π_ref",
        code=["losses.py:dpo_loss:h = chosen_reward"],
        tests=["test_derivations.py::test_g14_contrastive", "test_peers.py::test_peer[trl.dpo]"],
        experiment="",
        english=("In form InfoNCE with one positive and one negative. But s is measured against "
                 "a reference, and what comes out is a policy and not an embedding."),
        in_chinese="形式上是一正一负的 InfoNCE。但 s 与参考模型比较，得到的是策略而不是嵌入。"),
    Concept(
        "NLL beside DPO", "DPO 加 NLL 项（RPO）",
        equation="DPO loss − α mean log π(y_w)",
        why="g.15",
        code=["train_dpo.py:main:loss = loss - config.nll_coef"],
        tests=["test_scripts.py::test_the_nll_beside_dpo_is_a_mean_over_the_chosen_answers_tokens"],
        experiment="table",
        english=("DPO asks for a difference, so the chosen answer's probability may fall as well; "
                 "this term works against that. The mean is over all chosen tokens of the batch; "
                 "RPO's is over each answer, then over pairs. The table shows both."),
        in_chinese=("DPO 只要求差值，被选中的回答的概率也可能下降；这一项减缓下降。"
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
        in_chinese="不要成对数据：每个回答只标好或坏，与参考点 z 比较；z 由错配的提示词和回答估计。"),
    Concept(
        "SimPO, simple preference optimisation", "简单偏好优化",
        equation="−log σ(β mean log π(y_w) − β mean log π(y_l) − γ)",
        code=["losses.py:simpo_loss:loss ="],
        tests=["test_losses.py::test_preference_losses_by_hand",
               "test_peers.py::test_peer[trl.simpo]"],
        experiment="",
        english="No reference: the mean log-prob per token is the reward, with a margin γ.",
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
        "reward hacking, over-optimisation", "奖励作弊（reward hacking，奖励过优化）",
        equation="learned score ↑ while true score ↓",
        why="g.1",
        equation_zh="奖励模型打分 ↑，真实水平 ↓",
        code=["support/rl.py:Reward:self.function = None"],
        tests=[],
        experiment="overoptimization",
        english=("`train_ppo.py --kl-coef 0`: "
                 "the policy learns to please the model of right answers. "
                 "Shown by a run, not proved by a test."),
        in_chinese="策略学会讨好奖励模型而不是答对；由实验展示，没有测试。"),
    Concept(
        "remedies for reward hacking", "奖励作弊的对策",
        equation="score − β KL;   min over several reward models;   new pairs from π",
        why="g.1",
        equation_zh="score − β KL；多个奖励模型取最小；用 π 的新样本标偏好对",
        code=["advantages.py:token_rewards:penalty = -kl_coef", "lab/reward_models.py:combine"],
        tests=["test_closed_form.py::test_ends_at_the_optimum",
               "test_reward_models.py::test_ensemble"],
        experiment="reward_models",
        english=("Here: a KL penalty, an early stop, a verifier in place of the model. Tried in "
                 "the lab: more pairs, and the mean or the least of three reward models; none "
                 "helped beyond the seeds' spread. Not here: a reward model trained again on the "
                 "policy's answers, people who read samples."),
        in_chinese=("这里有：KL 惩罚、提前停止、用校验器代替模型；实验室里有：更多偏好对、三个奖励模型的均值或最小"
                    "值，都没有超出种子间波动的作用。没有：用策略的新回答重新训练奖励模型、由人读样本。")),
    Concept(
        "alignment tax", "对齐税",
        equation="other abilities: after RL − before RL",
        why="f.16",
        equation_zh="其他能力：RL 之后 − RL 之前",
        code=["lab/forgetting.py:train:loss = loss + other_coef"],
        tests=["test_forgetting.py::test_demonstrations_of_the_other_task_are_imitated"],
        experiment="forgetting",
        english=("A small model that knows two tasks is trained by reward on one. Accuracy at the "
                 "other falls from 0.80 to 0.53; with β = 0.5 to 0.62, a difference within the "
                 "spread of three seeds. With demonstrations of it in every update (InstructGPT's "
                 "PPO-ptx, in the lab only) it rises to 0.92."),
        in_chinese=("会两个任务的小模型，只用奖励训练其中一个：另一个的正确率从 0.80 降到 0.53；β = 0.5 时降到 0.62，"
                    "差别没有超出三个种子的波动。每次更新混入它的示范（InstructGPT 的 PPO-ptx，只在实验室里有），则升到 0.92。")),
    Concept(
        "entropy collapse", "熵坍缩",
        equation="H(π) → 0: all answers alike, no group has a signal",
        why="g.20",
        equation_zh="H(π) → 0：回答都一样，没有一组有信号",
        code=["support/run.py:find_trouble:collapsed"],
        tests=["test_runs.py::test_trouble_is_named"],
        experiment="curves",
        english=("The progress bar says so. Against it help a higher upper clip (DAPO), KL to the "
                 "reference, a higher temperature, a lower learning rate and an entropy bonus "
                 "(`--entropy-coef`). The first is of DAPO's paper: in [the lab](lab/clip_kl.md) "
                 "it did not raise entropy."),
        in_chinese=("熵趋于 0 时回答都一样；进度条会提示。对策：提高裁剪上界（DAPO）、对参考模型的 KL、"
                    "提高温度、减小学习率、熵奖励（`--entropy-coef`）。第一条是 DAPO 论文的说法，"
                    "[实验室](lab/clip_kl.zh.md)里它没有提高熵。")),
    Concept(
        "pass@k", "pass@k 通过率",
        equation="1 − C(n − c, k) / C(n, k)",
        code=["evaluate.py:pass_at_k"],
        tests=["test_data.py::test_pass_at_k_is_the_chance_that_k_of_n_hold_a_right_one"],
        experiment="table",
        english=("The chance that at least one of k samples is right, estimated from n samples of "
                 "which c are right. If pass@1 rises and pass@8 doesn't, the policy is more "
                 "certain, not more capable."),
        in_chinese=("k 次采样至少一次正确的概率的无偏估计；"
                    "只有 pass@1 上升，说明策略更确定而不是更强。")),
    Concept(
        "evaluation", "评估",
        equation=("mean reward on prompts that nothing was trained on, greedy and sampled, over "
                  "seeds"),
        equation_zh="从未训练过的提示词上的平均奖励，贪心和采样，多个种子",
        code=["evaluate.py:main"],
        tests=["test_data.py::test_held_out_problems_are_never_trained_on",
               "test_scripts.py::test_no_script_trains_on_what_another_holds_out"],
        experiment="table",
        english=("The score that was optimised is no measure. Beside accuracy look at KL, length "
                 "and pass@k. Not here: blind comparisons by people, judges, red teams."),
        in_chinese=("被优化的得分不能当度量。除正确率外还要看 KL、长度和 pass@k。没有做：人工盲"
                    "测、模型评委、红队测试。")),
    Concept(
        "chat template", "对话模板",
        equation="messages → text with special tokens → ids",
        equation_zh="消息 → 带特殊 token 的文本 → id",
        code=["support/tokenizer.py:apply_chat_template"],
        tests=["test_data.py::test_conversations_are_trained_on_the_assistants_turns"],
        experiment="",
        english=("The model knows a conversation only in the form that it was trained on. Text "
                 "in a message never becomes a special token."),
        in_chinese="模型只认识训练时的对话格式。消息里的文字永远不会变成特殊 token。"),
]

SECTIONS = [
    ("Text as a Markov decision process", "文本生成作为马尔可夫决策过程", MDP),
    ("Values", "价值", VALUES),
    ("Policy gradients", "策略梯度", GRADIENTS),
    ("PPO", "近端策略优化", PPO),
    ("KL divergence", "KL 散度", KL),
    ("Groups instead of a critic", "以组代替价值模型", GROUPS),
    ("Demonstrations and preferences", "示范与偏好", PREFERENCES),
    ("What goes wrong, and how to see it", "会出什么问题，如何发现", WRONG),
]
