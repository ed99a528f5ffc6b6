"""The questions of docs/INTERVIEW.md, in English and Chinese, for docs/interview.py.

In `numbers`, {results/GRPO/sampled} is a number of docs/lab/results.csv, {kl/none/sampled} the last
one of docs/lab/kl.csv, {curve/grpo/5/reward} one of docs/curves/curves.csv: it is looked up, not
typed. So is <seeds of kl>, how many seeds docs/lab/kl.csv has. `code` and `tests` are places as in
concepts.py, `why` equations of DERIVATIONS.md, `errata` numbers of ERRATA.md.
"""
from typing import NamedTuple


class Question(NamedTuple):
    question: str
    answer: str
    follow_up: str
    wrong: str
    question_zh: str
    answer_zh: str
    follow_up_zh: str
    wrong_zh: str
    code: list[str]
    tests: list[str] = []
    why: str = ""
    errata: list[int] = []
    numbers: str = ""
    numbers_zh: str = ""


TASK = [
    Question(
        question="What is reinforcement learning, and how is it not supervised learning?",
        answer=("The model acts, gets a number for what it did, and makes more likely what "
                "earned more than expected. Supervised learning is told the right output for "
                "each input. Here nobody says what should have been written; the data are the "
                "model's own samples, and they change as it learns."),
        follow_up=("Is SFT on the right samples alone RL? Yes, it is REINFORCE with rewards of 1 "
                   "and 0 and no baseline: the gradient is Σ R ∇log π."),
        wrong=("“RL needs a reward that can be differentiated.” The reward is a constant for the "
               "gradient; the probability of the sample is what is differentiated."),
        question_zh="什么是强化学习？它与监督学习有什么不同？",
        answer_zh=("模型自己行动，得到一个分数，然后提高“比预期好”的行为的概率。监督学习给出每个"
                   "输入的正确输出；强化学习没有标准答案，数据是模型自己的样本，而且随着学习不断"
                   "变化。"),
        follow_up_zh=("只用答对的样本做 SFT 算强化学习吗？算：它就是奖励为 1 和 0、没有基线的 "
                      "REINFORCE，梯度为 Σ R ∇log π。"),
        wrong_zh="“奖励必须可导。”对梯度来说奖励是常数，求导的是样本的概率。",
        code=["losses.py:sft_loss", "losses.py:policy_gradient_loss:loss = aggregate"],
        tests=["test_policy_gradient.py::test_reinforce"],
        why="a.3, a.9",
        numbers=("From reward alone, greedy accuracy goes from {results/SFT/greedy} to "
                 "{results/GRPO/greedy}."),
        numbers_zh="仅凭奖励，贪心正确率从 {results/SFT/greedy} 升到 {results/GRPO/greedy}。"),
    Question(
        question="What is RLHF, and why does it need so much machinery?",
        answer=("Reinforcement learning from human feedback: people compare answers, a reward "
                "model learns to score as they do, and the policy is trained to score high while "
                "it stays near its start. A score is needed for every new sample, so people must "
                "be replaced by a model. That model is right only near what it has seen, so "
                "distance is penalised."),
        follow_up=("What falls away if a program can check the answer? The reward model, its "
                   "pairs, and most reward hacking."),
        wrong="“RLHF is PPO.” PPO is one way to maximise the objective; DPO and GRPO are others.",
        question_zh="什么是 RLHF？为什么需要这么多部件？",
        answer_zh=("基于人类反馈的强化学习：人比较回答，奖励模型学会像人一样打分，再训练策略得高"
                   "分，同时不离开起点太远。每个新样本都要打分，人做不过来，只能用模型代替；而这"
                   "个模型只在见过的范围附近可靠，所以要惩罚距离。"),
        follow_up_zh="如果能用程序判断对错，可以省掉什么？奖励模型、偏好对，以及大部分奖励作弊。",
        wrong_zh="“RLHF 就是 PPO。”PPO 只是最大化该目标的一种方法，DPO、GRPO 也是。",
        code=["train_rm.py:main", "train_ppo.py:main:# 1. Four models"],
        tests=["test_scripts.py::test_reward_model_and_ppo_on_it"],
        why="g.1, g.7",
        numbers="The reward model ranks {results/reward model/pairs} of held-out pairs right.",
        numbers_zh="奖励模型对留出的偏好对，排序正确的比例为 {results/reward model/pairs}。"),
    Question(
        question="What is the decision process of a language model?",
        answer=("State: the prompt and all tokens so far. Action: the next token. Policy: the "
                "softmax. Transition: append the token, with probability 1. Reward: 0 until the "
                "last token, then the score. Discount γ: 1. The episode ends with the stop "
                "token, or at the length limit."),
        follow_up=("What is random then? The policy alone, unless a tool or a user writes in "
                   "between."),
        wrong=("“The environment is the reward model.” The reward model gives the reward; the "
               "transition needs no model at all."),
        question_zh="语言模型的马尔可夫决策过程是什么？",
        answer_zh=("状态：提示词加到目前为止的全部 token。动作：下一个 token。策略：softmax。转"
                   "移：以概率 1 接上该 token。奖励：最后一个 token 之前为 0，最后给出得分。折扣 "
                   "γ 为 1。遇到结束符或长度上限，回合结束。"),
        follow_up_zh="那么随机性在哪里？只在策略，除非工具或用户在中间写入内容。",
        wrong_zh="“环境就是奖励模型。”奖励模型只给奖励；状态转移不需要任何模型。",
        code=["rollout.py:score_actions:actions = tokens",
              "advantages.py:token_rewards:return penalty"],
        tests=["test_losses.py::test_score_sits_on_the_last_action",
               "test_rollout.py::test_stop_token_is_an_action"],
        why="a.1"),
    Question(
        question="Is an action a token or a whole answer?",
        answer=("Both readings are right, and have the same best policy. With tokens there are "
                "values, a critic and credit for each token (PPO). With answers there is one "
                "choice and one reward, a bandit: the natural view of RLOO, DPO and GSPO."),
        follow_up=("Where do they differ? In the noise, and in what a ratio or a clip is applied "
                   "to: a token's ratio (PPO, GRPO) or the answer's (GSPO)."),
        wrong=("“A reward for the whole answer means that the tokens have no advantages of their "
               "own.” Values spread the reward over the tokens."),
        question_zh="动作是一个 token，还是整个回答？",
        answer_zh=("两种看法都对，最优策略也相同。以 token 为动作，就有价值、价值模型和逐 token "
                   "的优势（PPO）；以回答为动作，就是只选一次、只得一次奖励的老虎机问题，这是 "
                   "RLOO、DPO、GSPO 的自然视角。"),
        follow_up_zh=("差别在哪里？在噪声大小，以及比率和裁剪作用于谁：单个 token（PPO、GRPO）还"
                      "是整个回答（GSPO）。"),
        wrong_zh=("“整个回答只有一个奖励，所以 token 没有各自的优势。”价值函数会把奖励分摊到 "
                  "token。"),
        code=["losses.py:gspo_loss:ratio = (log_ratio",
              "losses.py:_clipped_surrogate:ratio = log_ratio"],
        tests=["test_policy_gradient.py::test_ratio_losses_are_a2c_where_the_policy_has_not_moved"],
        why="b.15, b.16",
        errata=[18]),
    Question(
        question="Is text Markov? Is anything hidden?",
        answer=("The last token alone is not a Markov state. The whole prefix is, because it "
                "holds all that the policy reads, with attention as its memory. Nothing else "
                "decides what comes next, so the process is fully observed. A user's intention "
                "or a tool's inner state is hidden: with those it is a partially observed "
                "process (POMDP)."),
        follow_up=("What if the context is cut? Then the state forgets, and the process is "
                   "partially observed again."),
        wrong=("“Text is not Markov because words depend on words far back.” That is a statement "
               "about the wrong state."),
        question_zh="文本生成满足马尔可夫性吗？有看不见的部分吗？",
        answer_zh=("单看最后一个 token 不满足马尔可夫性；整个前缀满足，因为它包含策略读到的一切，"
                   "注意力就是记忆。接下来发生什么不取决于别的东西，所以过程是完全可观测的。用户"
                   "的意图、工具的内部状态是看不见的，有了它们就成为部分可观测过程（POMDP）。"),
        follow_up_zh="如果上下文被截断呢？状态会遗忘，于是又变成部分可观测。",
        wrong_zh="“词依赖很远的词，所以不是马尔可夫过程。”这只说明状态选错了。",
        code=["model.py:KVCache", "rollout.py:_ask:replies.append(environment"],
        tests=["test_model.py::test_what_comes_after_changes_nothing"],
        why="a.1"),
    Question(
        question="Why is γ = 1 for text?",
        answer=("An answer is short and always ends, so the return is finite without a discount. "
                "A right answer is worth the same at any length. With γ < 1 the score at the end "
                "hardly reaches the first tokens, and short answers are preferred for no reason."),
        follow_up=("How much reaches the first of 1,000 tokens with γ = 0.99? 0.99 to the power "
                   "999, about 0.00004."),
        wrong="“γ < 1 is needed for convergence.” That is so for endless episodes.",
        question_zh="为什么文本里 γ = 1？",
        answer_zh=("回答不长，而且一定会结束，没有折扣回报也是有限的。正确答案不论长短价值相同。"
                   "γ < 1 时，末尾的得分几乎传不到开头，而且会无缘无故地偏向短回答。"),
        follow_up_zh=("γ = 0.99 时，一千个 token 的第一个能分到多少？0.99 的 999 次方，约 "
                      "0.00004。"),
        wrong_zh="“γ < 1 才能收敛。”只有无限长的回合才需要。",
        code=["train_ppo.py:Config:gamma: float", "advantages.py:discounted_returns:return_t ="],
        tests=["test_losses.py::test_gae_ends"],
        why="b.1"),
    Question(
        question="Why is SFT not enough?",
        answer=("SFT imitates: it aims at nothing better than its demonstrations, it never "
                "learns that an answer is wrong, and it trains on other people's prefixes while "
                "at use the model stands on its own. RL scores the model's own samples, the bad "
                "ones too."),
        follow_up=("What does SFT minimise? The forward KL from the data to the model: it must "
                   "cover all that the demonstrations say."),
        wrong=("“RL adds new knowledge.” Mostly it moves probability to what the model could "
               "already do."),
        question_zh="为什么只做 SFT 不够？",
        answer_zh=("SFT 只是模仿：目标就是示范本身，不会更好；从不知道哪些回答是错的；训练时的前"
                   "缀是别人写的，使用时却是自己写的。强化学习给模型自己的样本打分，坏样本也有"
                   "用。"),
        follow_up_zh="SFT 在最小化什么？从数据到模型的前向 KL：示范里的每种写法都要覆盖。",
        wrong_zh="“强化学习加入了新知识。”它主要是把概率移到模型本来就会的做法上。",
        code=["losses.py:sft_loss"],
        tests=["test_scripts.py::test_sft_learns", "test_scripts.py::test_grpo_learns"],
        why="f.6",
        numbers=("The SFT model is right in {results/SFT/sampled} of its samples, but one of "
                 "eight is right for {results/SFT/pass@8} of the problems: it could, and seldom "
                 "does."),
        numbers_zh=("SFT 模型的样本正确率为 {results/SFT/sampled}，但八个样本中至少一个正确的题目"
                    "占 {results/SFT/pass@8}：会做，只是很少这样做。")),
    Question(
        question="SFT and RL: one of them, or both?",
        answer=("Both, in this order. SFT brings the format and a start from which some samples "
                "are right; RL then has something to reward. Without a start that sometimes "
                "succeeds all rewards are 0 and nothing is learned. From a strong base model RL "
                "alone is possible (DeepSeek-R1-Zero)."),
        follow_up=("How much SFT? Enough to be right at times, not so much that all samples are "
                   "alike."),
        wrong="“With RL one may skip SFT always.”",
        question_zh="SFT 和强化学习，选一个还是都要？",
        answer_zh=("都要，先 SFT 后强化学习。SFT 给出格式，并让一部分样本能答对，强化学习才有可奖"
                   "励的东西；起点若从不成功，奖励全是 0，什么也学不到。基座模型足够强时，也可以"
                   "只做强化学习（DeepSeek-R1-Zero）。"),
        follow_up_zh="SFT 做多少合适？做到有时能答对即可，不要做到样本全都一样。",
        wrong_zh="“有了强化学习，总可以跳过 SFT。”",
        code=["train_grpo.py:main:# 1. Two models", "support/rl.py:load_start"],
        tests=["test_steps.py::test_what_is_trained_first"],
        why="a.8",
        numbers="GRPO starts from a model that is right in {results/SFT/sampled} of its samples.",
        numbers_zh="GRPO 的起点，样本正确率为 {results/SFT/sampled}。"),
    Question(
        question="What is the difference between teacher forcing and sampling?",
        answer=("With teacher forcing each token is predicted after the *demonstration's* "
                "prefix, all positions in one pass. Sampling predicts after the *model's own* "
                "prefix, one token at a time. A model that was trained on right prefixes only "
                "does not know how to go on after its own mistake."),
        follow_up=("Does PPO use teacher forcing? In scoring, yes: the sampled answers go "
                   "through the model in one pass. Only sampling is sequential."),
        wrong=("“Training and sampling log-probs must be the same, so the sampler's can be "
               "used.” They round differently."),
        question_zh="教师强制（teacher forcing）与自己采样有什么区别？",
        answer_zh=("教师强制时，每个 token 都在*示范*的前缀之后预测，所有位置一次算完；采样时，前"
                   "缀是*模型自己*写的，一次一个 token。只见过正确前缀的模型，不知道自己出错以后"
                   "该怎么接。"),
        follow_up_zh=("PPO 用教师强制吗？打分时用：采样好的回答一次前向算完；只有采样是逐个进行"
                      "的。"),
        wrong_zh="“采样时和训练时的对数概率一样，直接用采样器的就行。”两者的舍入不同。",
        code=["rollout.py:score_actions:states = [model.hidden",
              "rollout.py:generate:next_tokens, next_logp"],
        tests=["test_rollout.py::test_sampled_log_probs_are_the_scored_ones"],
        why="f.6"),
]

GRADIENTS = [
    Question(
        question="What are a policy and a value function?",
        answer=("The policy π(a|s) gives the probability of each next token. The value V(s) is "
                "the mean return from state s under that policy. The policy acts; the value only "
                "says what to expect."),
        follow_up=("And Q(s, a)? The mean return after a given first action. V is the mean of Q "
                   "over the policy's actions."),
        wrong="“V is the return.” The return is one noisy sample of what V is the mean of.",
        question_zh="策略和价值函数分别是什么？",
        answer_zh=("策略 π(a|s) 给出下一个 token 的概率；价值 V(s) 是在该策略下从状态 s 出发的平"
                   "均回报。策略负责行动，价值只说明可以期待什么。"),
        follow_up_zh="Q(s, a) 呢？指定第一个动作之后的平均回报。V 是 Q 对策略的动作求平均。",
        wrong_zh="“V 就是回报。”回报只是一个带噪声的样本，V 是它的均值。",
        code=["rollout.py:token_values", "rollout.py:token_log_probs"],
        tests=["test_rollout.py::test_value_of_a_state_is_read_before_its_action"],
        why="b.2, b.4",
        errata=[24]),
    Question(
        question="Derive the policy gradient in one minute.",
        answer=("J is a sum over answers of probability times reward. Differentiate the "
                "probability only: the reward is a constant. Write ∇P = P ∇log P, so that the "
                "sum is a mean over samples. log P is a sum over tokens, and the environment's "
                "terms don't contain θ. So ∇J = E[Σ_t ∇log π(a_t|s_t) R]."),
        follow_up=("Why may earlier rewards be left out? Given the state, the mean of ∇log π is "
                   "0, so a reward that was earned before adds noise only."),
        wrong="“We need the gradient of the reward model.”",
        question_zh="一分钟推导策略梯度。",
        answer_zh=("J 是对所有回答求“概率 × 奖励”之和。只对概率求导，奖励是常数。用 ∇P = P ∇log "
                   "P，求和就变成对样本的平均。log P 是各 token 之和，环境项不含 θ。于是 ∇J = "
                   "E[Σ_t ∇log π(a_t|s_t) R]。"),
        follow_up_zh=("为什么可以去掉之前的奖励？给定状态时 ∇log π 的均值为 0，已得到的奖励只会带"
                      "来噪声。"),
        wrong_zh="“需要对奖励模型求梯度。”",
        code=["losses.py:policy_gradient_loss:loss = aggregate"],
        tests=["test_policy_gradient.py::test_reinforce"],
        why="a.4, a.7, a.10, a.12",
        errata=[5]),
    Question(
        question="Why does a baseline not bias the gradient?",
        answer=("Probabilities sum to 1, so their gradients sum to 0, and E[∇log π] = 0 in every "
                "state. A number that doesn't depend on the action can be taken out of that "
                "mean: it adds 0. It only changes the noise."),
        follow_up=("Which one is best? The mean return weighted by ‖∇log π‖² (a.15). V(s) is near "
                   "it only where that length has nothing to do with the reward. Here wrong "
                   "answers are improbable and have long gradients: the best constant is a sixth "
                   "of the mean, and the mean is noisier than no baseline "
                   "([lab](lab/gradient.md))."),
        wrong="“Any baseline reduces variance.” A bad one adds to it.",
        question_zh="为什么基线不会给梯度带来偏差？",
        answer_zh=("概率之和为 1，所以梯度之和为 0，在每个状态都有 E[∇log π] = 0。与动作无关的数"
                   "可以提到均值外面，贡献为 0，只改变噪声。"),
        follow_up_zh=("哪个基线最好？以 ‖∇log π‖² 加权的平均回报（a.15）。只有这个长度与奖励无关时，它才接近 "
                      "V(s)。这里答错的回答概率低、梯度长：最好的常数只有均值的六分之一，用均值反而比不用基线噪声"
                      "更大（见[实验室](lab/gradient.zh.md)）。"),
        wrong_zh="“任何基线都能减小方差。”不好的基线会增大方差。",
        code=["advantages.py:rloo_advantages:others ="],
        tests=["test_policy_gradient.py::test_a_baseline_takes_variance_away",
               "test_policy_gradient.py::test_gae_with_lambda_1_forgives_any_critic"],
        why="a.10, a.13, a.15",
        errata=[3, 4]),
    Question(
        question="What is the advantage, and what is a critic for?",
        answer=("A(s, a) = Q(s, a) − V(s): how much better this action is than what the policy "
                "does on average. The critic estimates V. It takes away the part of the reward "
                "that any action would have earned, and it tells early tokens what their prefix "
                "is worth."),
        follow_up=("What replaces it in GRPO? The mean reward of other answers to the same "
                   "prompt: the value of the first state only."),
        wrong="“The critic judges the answer.” The reward does; the critic only predicts it.",
        question_zh="什么是优势？价值模型（critic）有什么用？",
        answer_zh=("A(s, a) = Q(s, a) − V(s)：这个动作比策略的平均水平好多少。价值模型估计 V：一"
                   "来减掉不论怎么做都能得到的那部分奖励，二来告诉前面的 token，它们的前缀值多"
                   "少。"),
        follow_up_zh=("GRPO 用什么代替它？同一提示词的一组回答的平均奖励，它只估计第一个状态的价"
                      "值。"),
        wrong_zh="“价值模型给回答打分。”打分的是奖励，价值模型只是预测它。",
        code=["advantages.py:gae:delta = rewards", "losses.py:value_loss:loss = error"],
        tests=["test_policy_gradient.py::test_gae_with_lambda_below_1_needs_the_right_critic"],
        why="b.5, b.6, e.7",
        numbers=("Without the critic a run takes {results/GRPO/seconds} s (GRPO), with it "
                 "{results/PPO/seconds} s (PPO, twice as many updates), and both end at "
                 "{results/GRPO/sampled} and {results/PPO/sampled}."),
        numbers_zh=("没有价值模型时一次训练 {results/GRPO/seconds} 秒（GRPO），有时 "
                    "{results/PPO/seconds} 秒（PPO，更新次数是两倍），最终分别为 "
                    "{results/GRPO/sampled} 和 {results/PPO/sampled}。")),
    Question(
        question="What is GAE?",
        answer=("Generalised advantage estimation: a mean of the advantages after 1, 2, 3, … "
                "real rewards, with weights that fall by λ per step. It comes out as a sum of TD "
                "errors, δ_t + γλ δ_{t+1} + …, and is computed in one loop from the end."),
        follow_up="What are its ends? λ = 0: one-step TD. λ = 1: the whole return minus V(s_t).",
        wrong=("“λ is a second discount.” γ changes what is maximised; λ changes only how it is "
               "estimated."),
        question_zh="什么是 GAE？",
        answer_zh=("广义优势估计：把走 1、2、3……步真实奖励之后的优势估计加权平均，权重每步乘以 "
                   "λ。化简后是 TD 误差之和 δ_t + γλ δ_{t+1} + …，从后往前一次循环算完。"),
        follow_up_zh="两端是什么？λ = 0 是一步 TD，λ = 1 是完整回报减 V(s_t)。",
        wrong_zh="“λ 是另一个折扣。”γ 改变目标，λ 只改变估计方法。",
        code=["advantages.py:gae:advantage = delta"],
        tests=["test_losses.py::test_gae_by_hand", "test_peers.py::test_peer[verl.gae]"],
        why="d.3, d.6, d.8, d.9"),
    Question(
        question="What does λ trade?",
        answer=("Bias against variance. A small λ soon trusts the critic: little noise, but its "
                "errors are biases. λ = 1 waits for the real end: no bias from the critic, but "
                "the noise of all later tokens."),
        follow_up=("Which λ for text? Near 1: the reward is one number at the end, and γλ of "
                   "0.95 would fade it over a thousand tokens."),
        wrong="“TD has high variance, Monte Carlo high bias.” It is the reverse.",
        question_zh="λ 在权衡什么？",
        answer_zh=("偏差与方差。λ 小，很快就相信价值模型：噪声小，但它的误差变成偏差。λ = 1 等到"
                   "真正结束：没有价值模型带来的偏差，但带着后面所有 token 的噪声。"),
        follow_up_zh=("文本用多大的 λ？接近 1：奖励只在末尾，λ = 0.95 经过一千个 token 就衰减没"
                      "了。"),
        wrong_zh="“TD 方差大，蒙特卡洛偏差大。”正好相反。",
        code=["train_ppo.py:Config:lam: float"],
        tests=["test_policy_gradient.py::test_a_smaller_lambda_has_less_variance",
               "test_policy_gradient.py::test_gae_with_lambda_below_1_needs_the_right_critic"],
        why="d.10, d.12, d.13",
        errata=[21],
        numbers=("With λ = 0 and a critic that starts from nothing PPO ends at "
                 "{lambda/critic from the policy, λ = 0/sampled}, with λ = 0.95 at "
                 "{lambda/critic from the policy, λ = 0.95/sampled} (<seeds of lambda>)."),
        numbers_zh=("λ = 0 且价值模型从零开始，PPO 止于 "
                    "{lambda/critic from the policy, λ = 0/sampled}；λ = 0.95 时为 "
                    "{lambda/critic from the policy, λ = 0.95/sampled}（<seeds of lambda>）。")),
    Question(
        question="Why is there no Q network, and no Q-learning?",
        answer=("A Q network has an output for each of 100,000 tokens, of which a state tries one "
                "at a time, and its maximum picks the largest error. A language model already is a "
                "policy with one logit for each token, so it is improved directly. As text moves "
                "deterministically, r + V(next state) is Q anyway."),
        follow_up=("And SARSA? It evaluates the policy that acts, as the critic here does, but "
                   "with Q in the place of V."),
        wrong=("“DPO is Q-learning, since its log ratios can be read as Q values.” They can: by "
               "b.15, β log(π*/π_ref) of a token is Q* − V*. But DPO fits the sum over whole "
               "answers; it has no bootstrapping and no maximum."),
        question_zh="为什么没有 Q 网络，也不用 Q-learning？",
        answer_zh=("Q 网络有十万个输出，每个 token 一个，而一个状态每次只试其中一个；取最大值时会挑中误差最大的那个。"
                   "语言模型本身就是策略，每个 token 已有 logit，直接改进即可。而且文本的转移是确"
                   "定的，r + V(下一个状态) 就是 Q。"),
        follow_up_zh=("SARSA 呢？它评估的是正在行动的策略，与这里的价值模型一样，只是用 Q 而不是 "
                      "V。"),
        wrong_zh=("“DPO 的对数比率可以看作 Q 值，所以 DPO 就是 Q-learning。”前半句对：由 b.15，单个 "
                  "token 的 β log(π*/π_ref) 就是 Q* − V*。但 DPO 拟合的是整个回答的总和，没有自举，也不取最大值。"),
        code=["advantages.py:gae:delta = rewards", "model.py:ScalarModel"],
        tests=["test_policy_gradient.py::test_gae_with_lambda_below_1_needs_the_right_critic"],
        why="b.3, b.10, b.11, b.12, b.15"),
    Question(
        question="One reward at the end: how do early tokens learn?",
        answer=("Three ways. Give every token the whole advantage (GRPO): right on average, "
                "noisy. Let a critic say how the expected score changed at each token, A = "
                "V(s_{t+1}) − V(s_t) (PPO). Or reward the steps themselves (process rewards). "
                "This is credit assignment."),
        follow_up=("What do the critic's advantages sum to? To the reward minus the value of the "
                   "prompt, R − V(s_1)."),
        wrong="“With a reward at the last token only the last token learns.”",
        question_zh="奖励只在末尾，前面的 token 怎么学？",
        answer_zh=("三种办法：每个 token 都用整个回答的优势（GRPO），均值正确但噪声大；让价值模型"
                   "说出每个 token 之后期望得分变了多少，A = V(s_{t+1}) − V(s_t)（PPO）；或者给步"
                   "骤本身打分（过程奖励）。这就是信用分配。"),
        follow_up_zh="价值模型给出的优势加起来是多少？奖励减去提示词的价值，R − V(s_1)。",
        wrong_zh="“奖励在最后一个 token，所以只有它能学到。”",
        code=["advantages.py:gae:delta = rewards",
              "train_grpo.py:main:advantages = grpo_advantages"],
        tests=["test_losses.py::test_score_sits_on_the_last_action",
               "test_policy_gradient.py::test_reinforce"],
        why="e.6, e.7, e.8, e.9",
        numbers=("In [the lab](lab/credit.md) PPO's critic did not see where an addition goes "
                 "wrong: its advantage's correlation with what a token changed is "
                 "{credit/after 30 steps/credit_ppo} after 30 steps (<seeds of credit>)."),
        numbers_zh=("在[实验室](lab/credit.zh.md)里，PPO 的价值模型看不出加法错在哪里：30 步之后，它的优势与 "
                    "token 实际造成的变化的相关系数是 {credit/after 30 steps/credit_ppo}（<seeds of credit>）。")),
    Question(
        question="The critic regresses on noisy returns. Why does it learn the mean?",
        answer=("The squared error splits into (V − mean)² and the variance of the return. The "
                "second part doesn't depend on V, so the minimum is at the mean. Therefore a "
                "value loss far above 0 may be perfect."),
        follow_up=("Why is the target held fixed? With it differentiated, the critic is also "
                   "rewarded for saying the same of all next states."),
        wrong=("“Explained variance near 0 means a broken critic.” Late in training only luck "
               "varies, and no critic can know luck."),
        question_zh="价值模型拟合的是带噪声的回报，为什么学到的是均值？",
        answer_zh=("平方误差可以拆成 (V − 均值)² 和回报的方差，后者与 V 无关，所以最小值点就是均"
                   "值。因此价值损失远大于 0 也可能已经完美。"),
        follow_up_zh=("为什么目标不参与求导？否则价值模型会为了让各个下一状态的估值一样而偏离真"
                      "值。"),
        wrong_zh="“解释方差接近 0 说明价值模型坏了。”训练后期只剩运气在变，谁也预测不了运气。",
        code=["losses.py:value_loss:loss = error", "advantages.py:explained_variance"],
        tests=["test_policy_gradient.py::test_the_critic_converges_to_the_bellman_values"],
        why="e.1, e.4, e.5, e.10",
        errata=[24, 25],
        numbers=("At the end explained variance is "
                 "{lambda/critic from the policy, λ = 0.95/explained_variance}, with accuracy "
                 "{lambda/critic from the policy, λ = 0.95/sampled} (<seeds of lambda>)."),
        numbers_zh=("训练结束时解释方差为 "
                    "{lambda/critic from the policy, λ = 0.95/explained_variance}，而正确率为 "
                    "{lambda/critic from the policy, λ = 0.95/sampled}（<seeds of lambda>）。")),
    Question(
        question="How does a language model explore?",
        answer=("By sampling from its own softmax. Temperature, several answers to each prompt, "
                "some entropy left, and a wider upper clip keep it open. ε-greedy, the habit of "
                "games, is useless: a random token of 100,000 breaks the text."),
        follow_up=("How do you see that exploration has ended? Entropy near 0, and all answers "
                   "of a group earn the same."),
        wrong=("“A higher temperature is always better exploration.” At 2, nearly all samples "
               "are noise."),
        question_zh="语言模型怎样探索？",
        answer_zh=("靠从自己的 softmax 采样。温度、每个提示词多个回答、保留一定的熵、放宽裁剪上"
                   "界，都是为了保持探索。游戏里常用的 ε-贪心没有用：从十万个 token 里随便挑一"
                   "个，文本就坏了。"),
        follow_up_zh="怎么看出探索停了？熵接近 0，而且同组回答的奖励全一样。",
        wrong_zh="“温度越高探索越好。”温度为 2 时样本几乎全是噪声。",
        code=["rollout.py:sample:probs = torch.softmax", 'methods.py:METHODS:"dapo"'],
        tests=["test_rollout.py::test_sampler_follows_the_distribution"],
        why="b.11",
        numbers=("With temperature 2 the first step's entropy is {curve/grpo_hot/1/entropy} "
                 "instead of {curve/grpo/1/entropy}, and its reward {curve/grpo_hot/1/reward} "
                 "instead of {curve/grpo/1/reward}."),
        numbers_zh=("温度为 2 时，第一步的熵是 {curve/grpo_hot/1/entropy}，默认为 "
                    "{curve/grpo/1/entropy}；奖励是 {curve/grpo_hot/1/reward}，默认为 "
                    "{curve/grpo/1/reward}。")),
    Question(
        question="The loss is 0 at the first step. Is that a bug?",
        answer=("No. At ratio 1 the loss is the negative mean of the advantages, and a group's "
                "advantages sum to 0. Only its gradient has a meaning. The loss is a surrogate: "
                "its value is not the expected reward and need not fall."),
        follow_up="What should you look at? Reward, held-out accuracy, KL, entropy.",
        wrong="“A falling policy loss shows progress.”",
        question_zh="第一步的损失是 0，是不是程序有错？",
        answer_zh=("不是。比率为 1 时损失是优势均值的相反数，而一组优势之和为 0。有意义的只是梯"
                   "度。这个损失是代理目标，它的值不是期望奖励，也不一定下降。"),
        follow_up_zh="那该看什么？奖励、留出题的正确率、KL、熵。",
        wrong_zh="“策略损失下降说明有进步。”",
        code=["losses.py:grpo_loss", "advantages.py:grpo_advantages:advantages = groups"],
        tests=["test_curves.py::test_the_value_of_grpos_loss_is_its_kl"],
        why="a.18, g.17",
        errata=[1, 2]),
]

PPO = [
    Question(
        question="Classical RLHF, step by step?",
        answer=("1. SFT on demonstrations. 2. Sample several answers to each prompt, have people "
                "compare them, and train a reward model on the pairs. 3. PPO: sample, score, "
                "subtract β KL at each token, compute values and advantages, update actor and "
                "critic a few times, repeat."),
        follow_up=("Which parts of a step run one after the other? Sampling is sequential, token "
                   "by token; then all log-probs, values and scores are one parallel pass for "
                   "each model; then updates."),
        wrong=("“The reward model is trained further during PPO.” In the classical recipe it is "
               "frozen."),
        question_zh="经典的 RLHF 分哪几步？",
        answer_zh=("1. 用示范做 SFT。2. 每个提示词采样几个回答，由人比较，用偏好对训练奖励模型。"
                   "3. PPO：采样、打分、每个 token 减去 β KL、算价值和优势、更新策略模型和价值模"
                   "型几次，然后重复。"),
        follow_up_zh=("一步之中哪些是串行的？采样逐 token 串行；之后每个模型的对数概率、价值、得"
                      "分都是一次并行前向；最后是更新。"),
        wrong_zh="“PPO 期间奖励模型继续训练。”经典做法里它是冻结的。",
        code=["train_ppo.py:main:# 2. Rollout",
              "train_ppo.py:main:# 4. Advantages",
              "train_ppo.py:main:# 5. Updates"],
        tests=["test_steps.py::test_ppo"],
        why="g.5, g.7",
        numbers="PPO on the reward model ends at greedy {results/PPO on RM/greedy}.",
        numbers_zh="用奖励模型打分的 PPO，最终贪心正确率为 {results/PPO on RM/greedy}。"),
    Question(
        question="Why four models in PPO?",
        answer=("The actor writes and learns. The critic predicts the return and learns. The "
                "reference, the actor's frozen start, tells how far the actor went. The reward "
                "model scores and is frozen. A verifier can replace the reward model, a group's "
                "mean the critic; the reference may go where β = 0."),
        follow_up=("Why is the reward model frozen and the critic not? The reward model says "
                   "what is good, which must not move; the critic says what *this* policy earns, "
                   "which moves with it."),
        wrong=("“Without the critic two models are left.” Three: actor, reference, reward model; "
               "two if a verifier replaces the third."),
        question_zh="PPO 为什么要四个模型？",
        answer_zh=("策略模型（actor）负责写，要学习；价值模型（critic）预测回报，要学习；参考模型"
                   "是策略模型冻结的起点，用来衡量走了多远；奖励模型打分，冻结。校验器可以代替奖"
                   "励模型，组内均值可以代替价值模型；β = 0 时参考模型也可以不要。"),
        follow_up_zh=("为什么奖励模型冻结而价值模型不冻结？奖励模型定义什么是好，不能变；价值模型"
                      "预测*当前*策略的得分，要跟着变。"),
        wrong_zh=("“去掉价值模型还剩两个。”还剩三个：策略、参考、奖励模型；用校验器代替奖励模型才"
                  "剩两个。"),
        code=["train_ppo.py:main:# 1. Four models"],
        tests=["test_scripts.py::test_a_frozen_reward_model_is_bfloat16_and_the_critic_is_not",
               "test_scripts.py::test_the_reference_stays_frozen_unless_told_to_move"],
        why="g.1",
        numbers=("Models in memory: {results/PPO on RM/models} (PPO on a reward model), "
                 "{results/PPO/models} (PPO on a verifier), {results/GRPO/models} (GRPO on a "
                 "verifier)."),
        numbers_zh=("内存中的模型数：{results/PPO on RM/models}（PPO 加奖励模型）、"
                    "{results/PPO/models}（PPO 加校验器）、{results/GRPO/models}（GRPO 加校验"
                    "器）。")),
    Question(
        question="Is PPO on-policy, and what does that mean here?",
        answer=("Nearly. Each step samples anew with the current policy, and keeps no old data. "
                "But it makes several updates on one batch: from the second on, the samples are "
                "those of a slightly older policy, and the ratio corrects for that, token by "
                "token."),
        follow_up=("When is it exactly on-policy? With one update per step: the ratio is 1 and "
                   "nothing is clipped."),
        wrong=("“It has a ratio, so it is off-policy.” Each step samples anew. DPO is offline: its "
               "pairs are fixed from the start."),
        question_zh="PPO 是同策略（on-policy）吗？在这里是什么意思？",
        answer_zh=("基本是。每一步都用当前策略重新采样，不保留旧数据；但一批样本要更新几次，从第"
                   "二次起样本就来自稍旧的策略，由比率逐 token 修正。"),
        follow_up_zh="什么时候严格同策略？每步只更新一次：比率为 1，什么都不裁剪。",
        wrong_zh="“有比率，所以是异策略。”它每一步都重新采样。DPO 则是离线的：数据一开始就固定了。",
        code=["train_grpo.py:main:old = logp.detach()", "methods.py:MethodConfig:self.on_policy ="],
        tests=["test_policy_gradient.py::test_ratio_losses_are_a2c_where_the_policy_has_not_moved"],
        why="c.1, c.6, c.16"),
    Question(
        question="What is the importance ratio, and why one per token?",
        answer=("ρ = π(a|s) / π_old(a|s) turns a mean over old samples into one over the new "
                "policy. For a whole answer the product over all tokens is exact, but its "
                "variance grows exponentially with length. One ratio per token has little "
                "variance; its error, that prefixes are still the old policy's, is small while "
                "the policies are close."),
        follow_up=("What bounds that error? TRPO's bound: it is quadratic in the change of the "
                   "policy."),
        wrong="“The ratio makes PPO exact for any old policy.”",
        question_zh="什么是重要性采样比率？为什么每个 token 一个？",
        answer_zh=("ρ = π(a|s) / π_old(a|s) 把对旧样本的平均变成对新策略的平均。整个回答要用所有 "
                   "token 的连乘才精确，但方差随长度指数增长。逐 token 的比率方差小；误差在于前缀"
                   "仍来自旧策略，两个策略接近时误差很小。"),
        follow_up_zh="误差有界吗？有 TRPO 的界：是策略变化量的二次项。",
        wrong_zh="“有了比率，PPO 对任何旧策略都精确。”",
        code=["losses.py:_log_ratio", "losses.py:_clipped_surrogate:ratio = log_ratio"],
        tests=["test_policy_gradient.py::test_importance_sampling_corrects_for_another_sampler"],
        why="c.2, c.3, c.7, c.10",
        errata=[17]),
    Question(
        question="What is TRPO, and why is PPO used instead?",
        answer=("TRPO maximises E[ρ A] under a limit on the mean KL to the old policy. Its step "
                "is the natural gradient, F⁻¹ g, because equal steps in parameters are unequal "
                "steps in policies. F has as many rows as the model has parameters, so each step "
                "needs many products and a line search. PPO replaces the limit by a clip and "
                "uses Adam."),
        follow_up="What is lost? The guarantee: the clip doesn't bound the change of the policy.",
        wrong="“PPO solves TRPO's problem exactly.”",
        question_zh="TRPO 是什么？为什么改用 PPO？",
        answer_zh=("TRPO 在“与旧策略的平均 KL 不超过上限”的约束下最大化 E[ρ A]。步子是自然梯度 "
                   "F⁻¹ g，因为参数走同样的步长，策略的变化并不一样大。F 的行数等于参数个数，每一"
                   "步要多次矩阵向量积和线搜索。PPO 用裁剪代替约束，用 Adam 更新。"),
        follow_up_zh="失去了什么？保证：裁剪并不限制策略的变化。",
        wrong_zh="“PPO 精确地解了 TRPO 的问题。”",
        code=["losses.py:_clipped_surrogate:loss = torch.maximum",
              'losses.py:_ratio_stats:"approx_kl"'],
        tests=["test_losses.py::test_where_the_clip_stops_the_gradient"],
        why="c.10, c.12, c.13",
        errata=[13]),
    Question(
        question="What is the clip, and how is it not the KL penalty?",
        answer=("min(ρ A, clip(ρ, 1 − ε, 1 + ε) A): a token that has moved far in the direction "
                "of its advantage gets no more gradient. It compares with the policy that "
                "*sampled*, a few updates ago, so that the ratios stay usable. The KL penalty "
                "compares with the *reference*, over the whole run, so that the text stays good."),
        follow_up=("Is it a hard limit? No, it takes a gradient away; momentum and shared "
                   "parameters carry the ratio on."),
        wrong="“The clip keeps the ratio within 1 ± ε.”",
        question_zh="裁剪是什么？它和 KL 惩罚有什么不同？",
        answer_zh=("min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)：一个 token 沿着优势方向走得够远，就不再有"
                   "梯度。裁剪比较的是几次更新之前*采样*的策略，为的是比率仍然可用；KL 惩罚比较的"
                   "是*参考模型*，管的是整个训练，为的是文本不走样。"),
        follow_up_zh="它是硬约束吗？不是，它只去掉梯度；动量和共享参数仍会带动比率。",
        wrong_zh="“裁剪使比率保持在 1 ± ε 之内。”",
        code=["losses.py:_clipped_surrogate:loss = torch.maximum",
              "advantages.py:token_rewards:penalty = -kl_coef"],
        tests=["test_losses.py::test_where_the_clip_stops_the_gradient",
               "test_peers.py::test_peer[verl.ppo.nodual]"],
        why="c.14, c.15, f.15",
        errata=[13]),
    Question(
        question="Why have both, the clip and the KL penalty?",
        answer=("They answer different questions. Without the clip, several updates on one batch "
                "may follow ratios that mean nothing any more. Without the penalty, each step is "
                "small, but a hundred small steps lead anywhere, such as to what fools the "
                "reward model."),
        follow_up=("When may one be left out? The clip with one update per step; the penalty "
                   "where a program checks the answer."),
        wrong="“The clip already holds the policy near its start.”",
        question_zh="为什么裁剪和 KL 惩罚都要？",
        answer_zh=("它们解决不同的问题。没有裁剪，在同一批样本上多更新几次，会跟着已经失效的比率"
                   "走。没有惩罚，每一步虽小，一百步却可以走到任何地方，例如走到能骗过奖励模型的"
                   "地方。"),
        follow_up_zh=("什么时候可以省一个？每步只更新一次时不需要裁剪；由程序判断对错时可以不要惩"
                      "罚。"),
        wrong_zh="“裁剪已经让策略留在起点附近。”",
        code=["losses.py:_clipped_surrogate:loss = torch.maximum",
              "advantages.py:token_rewards:penalty = -kl_coef"],
        tests=["test_closed_form.py::test_ends_at_the_optimum"],
        why="c.15, g.1",
        numbers=("Four passes: KL {clip/no clip, epochs = 4/kl_to_sft} without the clip, "
                 "{clip/clip 0.2, epochs = 4/kl_to_sft} with it (<seeds of clip>; lower with the "
                 "clip in each, but within their spread). PPO on the reward model without the "
                 "penalty: KL {results/PPO on RM, no KL/kl_to_sft}, the clip "
                 "notwithstanding."),
        numbers_zh=("每批过四遍：不裁剪 KL 为 {clip/no clip, epochs = 4/kl_to_sft}，裁剪为 "
                    "{clip/clip 0.2, epochs = 4/kl_to_sft}（<seeds of clip>；每个种子都是裁剪时更低，但没有超出波动）。"
                    "用奖励模型的 PPO 不加惩"
                    "罚，虽有裁剪，KL 仍到 {results/PPO on RM, no KL/kl_to_sft}。")),
    Question(
        question="Walk through the four cases of the clip.",
        answer=("A > 0, ρ above 1 + ε: no gradient, it was raised enough. A > 0, ρ below: "
                "gradient. A < 0, ρ below 1 − ε: no gradient, it was lowered enough. A < 0, ρ "
                "above: gradient, however large ρ is. So a move the wrong way is always "
                "corrected."),
        follow_up=("What is the dual clip? For A < 0 and a very large ρ the loss has no bound; a "
                   "second clip gives it one."),
        wrong=("“For A < 0 the min becomes a max.” The min stays; it is the ratio that is "
               "bounded from below."),
        question_zh="说说裁剪的四种情况。",
        answer_zh=("A > 0 且 ρ 大于 1 + ε：已经提高够了，没有梯度；A > 0 且 ρ 较小：有梯度。A < "
                   "0 且 ρ 小于 1 − ε：已经降低够了，没有梯度；A < 0 且 ρ 较大：不论多大都有梯"
                   "度。所以走错方向总会被纠正。"),
        follow_up_zh="双重裁剪是什么？A < 0 且 ρ 很大时损失无界，再加一道上界。",
        wrong_zh="“A < 0 时 min 变成 max。”min 不变，变的是比率改为有下界。",
        code=["losses.py:_clipped_surrogate:is_clipped = clipped",
              "losses.py:_clipped_surrogate:bound ="],
        tests=["test_losses.py::test_where_the_clip_stops_the_gradient",
               "test_losses.py::test_dual_clip_bounds_the_loss"],
        why="c.14, c.15",
        errata=[14, 15, 16]),
    Question(
        question="What keeps a critic from doing harm?",
        answer=("Start it from the model that gives the rewards: it already knows what is good. "
                "From another one its values begin in another unit. Let it learn alone for the "
                "first steps (warm-up). Give it a higher learning rate than the actor. Make its "
                "targets from raw advantages, not whitened ones. Use λ near 1. Value clipping is "
                "a habit from games; it may be left out."),
        follow_up=("Which curves tell? The value error in units of reward; late in a run "
                   "explained variance says little."),
        wrong=("“A dead critic shows in the reward.” Whitening subtracts a baseline as well, so "
               "that PPO may learn all the same."),
        question_zh="怎样不让价值模型帮倒忙？",
        answer_zh=("从给奖励的那个模型初始化，它已经知道什么是好；换成别的模型，价值一开始单位就不"
                   "对；先单独训练几步（预热）；学习率比策略模型高；目标用未白化的优势计算；λ 接近 1。价值裁剪是从游戏里沿用的习惯，可以不"
                   "要。"),
        follow_up_zh="看什么曲线？看以奖励为单位的价值误差；训练后期解释方差说明不了什么。",
        wrong_zh="“价值模型不学，奖励就上不去。”白化也减掉一个基线，PPO 可能照样学会。",
        code=["train_ppo.py:Config:critic_warmup: int",
              "support/rl.py:load_critic",
              "losses.py:value_loss:clipped_values = old_values"],
        tests=["test_scripts.py::test_ppo_hands_the_right_tensors_on",
               "test_scripts.py::test_the_critic_starts_as_told"],
        why="d.14, e.11",
        numbers=("On the verifier, with λ = 0, PPO ends at "
                 "{lambda/critic from the policy, λ = 0/sampled} with a critic that starts from "
                 "nothing, at {lambda/critic from the reward model, λ = 0/sampled} with the reward "
                 "model as its start, whose scores have another unit. With λ = 0.95 the two end at "
                 "{lambda/critic from the policy, λ = 0.95/sampled} and "
                 "{lambda/critic from the reward model, λ = 0.95/sampled} (<seeds of lambda>)."),
        numbers_zh=("奖励来自校验器，λ = 0 时，价值模型从零开始，PPO 止于 "
                    "{lambda/critic from the policy, λ = 0/sampled}；从奖励模型开始（分数的单位不"
                    "同），止于 {lambda/critic from the reward model, λ = 0/sampled}。λ = 0.95 时，"
                    "两者止于 {lambda/critic from the policy, λ = 0.95/sampled} 和 "
                    "{lambda/critic from the reward model, λ = 0.95/sampled}（<seeds of lambda>）。")),
    Question(
        question="How does A2C differ from PPO?",
        answer=("A2C makes one update per batch, with −A log π. PPO makes several, with the "
                "clipped ratio. At the first update their gradients are the same: ρ = 1 and ∇ρ = "
                "∇log π. At that moment the critic's squared error is A², since its target is A "
                "+ V."),
        follow_up=("Then why PPO? Sampling is the expensive part, so one wants to learn more "
                   "from each batch."),
        wrong="“PPO is always better.” With one update per step it is A2C.",
        question_zh="A2C 与 PPO 有什么区别？",
        answer_zh=("A2C 每批样本更新一次，损失是 −A log π；PPO 更新几次，用裁剪后的比率。第一次更"
                   "新时两者梯度相同：ρ = 1，∇ρ = ∇log π。此时价值模型的平方误差就是 A²，因为目标"
                   "是 A + V。"),
        follow_up_zh="那为什么用 PPO？采样最贵，希望从每批样本里多学一些。",
        wrong_zh="“PPO 总是更好。”每步一次更新时它就是 A2C。",
        code=["losses.py:policy_gradient_loss", "losses.py:ppo_policy_loss"],
        tests=["test_policy_gradient.py::test_ratio_losses_are_a2c_where_the_policy_has_not_moved"],
        why="c.16, d.14",
        numbers=("A2C ends at {results/A2C/sampled} in {results/A2C/seconds} s, PPO at "
                 "{results/PPO/sampled} in {results/PPO/seconds} s."),
        numbers_zh=("A2C 用 {results/A2C/seconds} 秒到 {results/A2C/sampled}，PPO 用 "
                    "{results/PPO/seconds} 秒到 {results/PPO/sampled}。")),
    Question(
        question="What hurts in classical RLHF?",
        answer=("Four models are in memory. Sampling takes most of the time on large models. Many "
                "settings interact (β, learning rates, λ, warm-up). The reward model is wrong far "
                "from its data, and gets exploited. And mistakes in the code don't crash, they "
                "only make the result a little worse."),
        follow_up=("What helps? A verifier instead of the reward model, a group instead of the "
                   "critic, DPO instead of sampling."),
        wrong="“PPO fails because RL is unstable.” Often the cause is a bug that no curve shows.",
        question_zh="经典 RLHF 有哪些难处？",
        answer_zh=("内存里要放四个模型；大模型上采样最花时间；许多设置互相影响（β、学习率、λ、预"
                   "热）；奖励模型在远离数据处会错，还会被利用；程序错误不会崩溃，只会让结果差一"
                   "点。"),
        follow_up_zh="有什么办法？校验器代替奖励模型，组内均值代替价值模型，DPO 省去采样。",
        wrong_zh="“PPO 失败是因为强化学习不稳定。”常常是曲线上看不出的程序错误。",
        code=["train_ppo.py:main:# 1. Four models"],
        tests=["test_steps.py::test_ppo"],
        why="g.5",
        numbers=("One run on one core: {results/PPO on RM/seconds} s with four models, "
                 "{results/GRPO/seconds} s with two, {results/DPO/seconds} s for DPO."),
        numbers_zh=("单核一次训练：四个模型 {results/PPO on RM/seconds} 秒，两个模型（GRPO）"
                    "{results/GRPO/seconds} 秒，DPO {results/DPO/seconds} 秒。")),
    Question(
        question="What fills the memory?",
        answer=("For each model that learns: weights, gradients and two moments of Adam, 16 "
                "bytes per parameter in float32. For each frozen model: its weights. Then "
                "activations of a micro-batch, the logits (batch × length × vocabulary), and in "
                "sampling the KV cache. Smaller micro-batches, recomputation and logits in "
                "chunks change no result."),
        follow_up="Why does a critic cost so much? It is a whole second model that learns.",
        wrong=("“Gradient accumulation changes the result.” Not if one denominator, the whole "
               "batch's, is used."),
        question_zh="显存被什么占满？",
        answer_zh=("每个要学习的模型：权重、梯度和 Adam 的两个矩，float32 下每个参数 16 字节；每"
                   "个冻结的模型：权重；再加一个 micro-batch 的激活、logits（批量 × 长度 × 词表），采样时"
                   "还有 KV 缓存。缩小 micro-batch、重计算、分块算 logits，都不改变结果。"),
        follow_up_zh="价值模型为什么贵？它是第二个要学习的完整模型。",
        wrong_zh="“梯度累积会改变结果。”只要统一除以整批的个数就不会。",
        code=["rollout.py:score_actions:size = max", "support/memory.py:Plan"],
        tests=["test_plan.py::test_what_learns_is_exact",
               "test_scripts.py::test_micro_batches_never_change_the_result"],
        why="a.19",
        errata=[10]),
]

KL = [
    Question(
        question="What does the KL penalty do, and what happens with β = 0?",
        answer=("It makes distance from the reference cost reward, so that the policy stays "
                "where the reward model can be trusted, and keeps its language. The best policy "
                "is then π_ref exp(r/β) / Z. With β = 0 it goes wherever the score is highest. "
                "With an exact verifier that is mostly harmless; with a reward model it is "
                "reward hacking."),
        follow_up=("Then why has DAPO no penalty? Its reward is a check that can hardly be "
                   "fooled, and long reasoning has to move far from the start."),
        wrong=("“β = 0 means that nothing holds a step back.” The clip and the learning rate still "
               "do."),
        question_zh="KL 惩罚有什么作用？β = 0 会怎样？",
        answer_zh=("离参考模型越远，扣的奖励越多，于是策略留在奖励模型可信的范围里，语言也不走"
                   "样。此时最优策略是 π_ref exp(r/β) / Z。β = 0 时，哪里分高就去哪里：用精确的校"
                   "验器大多无害，用奖励模型就是奖励作弊。"),
        follow_up_zh=("DAPO 为什么不要惩罚？它的奖励由程序校验，很难被骗，而长推理本来就要离起点"
                      "很远。"),
        wrong_zh="“β = 0 就没有任何限制。”每一步仍受裁剪和学习率限制。",
        code=["advantages.py:token_rewards:penalty = -kl_coef"],
        tests=["test_closed_form.py::test_ends_at_the_optimum"],
        why="g.1, g.3",
        numbers=("On the reward model, greedy accuracy ends at {results/PPO on RM, no KL/greedy} "
                 "with β = 0 and at {results/PPO on RM/greedy} with β = 0.05, while the scores "
                 "are {results/PPO on RM, no KL/score} and {results/PPO on RM/score}."),
        numbers_zh=("用奖励模型打分，β = 0 时贪心正确率最终为 {results/PPO on RM, no KL/greedy}，"
                    "β = 0.05 时为 {results/PPO on RM/greedy}；得分却是 "
                    "{results/PPO on RM, no KL/score} 和 {results/PPO on RM/score}。")),
    Question(
        question="Forward or reverse KL: which is which?",
        answer=("Reverse, KL(π‖π_ref), averages over the policy's own samples: it forbids what "
                "the reference hardly says, and lets the policy settle on one good answer "
                "(mode-seeking). Forward, KL(π_ref‖π), averages over the reference's: the policy "
                "must cover all that it says (mass-covering). SFT is forward, RLHF's penalty "
                "reverse."),
        follow_up=("An example? π = (0.5, 0.5), π_ref = (0.9, 0.1): reverse 0.511, forward 0.368 "
                   "nats."),
        wrong="“KL is a distance.” It isn't symmetric.",
        question_zh="前向 KL 和反向 KL 怎么区分？",
        answer_zh=("反向 KL，KL(π‖π_ref)，对策略自己的样本求平均：禁止参考模型几乎不说的话，允许"
                   "只保留一种好答案（偏向众数）。前向 KL，KL(π_ref‖π)，对参考模型的样本求平均："
                   "它说的都要覆盖（覆盖全部）。SFT 是前向，RLHF 的惩罚是反向。"),
        follow_up_zh=("举个例子？π = (0.5, 0.5)，π_ref = (0.9, 0.1)：反向 0.511，前向 0.368 "
                      "nats。"),
        wrong_zh="“KL 是距离。”它不对称。",
        code=["losses.py:kl_exact"],
        tests=["test_losses.py::test_kl_estimators_by_enumeration"],
        why="f.2, f.3, f.4, f.5",
        errata=[29]),
    Question(
        question="What are k1, k2 and k3?",
        answer=("Estimates of KL(π‖π_ref) from one sample's x = log π − log π_ref. k1 = x: "
                "unbiased, noisy, often negative. k2 = x²/2: biased, little noise. k3 = e^(−x) − "
                "1 + x: unbiased and never negative. As a loss: k1 has mean gradient 0, k2 the "
                "right one, k3 that of the forward KL."),
        follow_up=("How can an unbiased value have a wrong gradient? The samples depend on θ "
                   "too, and a loss over given samples ignores that."),
        wrong="“k1, k2 and k3 are all unbiased.”",
        question_zh="k1、k2、k3 是什么？",
        answer_zh=("用一个样本的 x = log π − log π_ref 估计 KL(π‖π_ref)。k1 = x：无偏，噪声大，常"
                   "为负；k2 = x²/2：有偏，噪声小；k3 = e^(−x) − 1 + x：无偏且非负。作损失时：k1 "
                   "的平均梯度为 0，k2 的梯度正确，k3 的是前向 KL 的梯度。"),
        follow_up_zh="值无偏，梯度怎么会错？样本本身也依赖 θ，而对给定样本的损失忽略了这一点。",
        wrong_zh="“k1、k2、k3 都无偏。”",
        code=["losses.py:kl_k1", "losses.py:kl_k2", "losses.py:kl_k3"],
        tests=["test_losses.py::test_why_there_are_three_kl_estimators",
               "test_losses.py::test_kl_estimators_by_enumeration"],
        why="f.7, f.8, f.9, f.11",
        errata=[27, 30]),
    Question(
        question="KL in the reward or in the loss?",
        answer=("In the reward, −β k1 per token: it goes through advantages, so early tokens "
                "also pay for the distance that they lead to, and the optimum is π_ref "
                "exp(r/β)/Z. In the loss, β k3 or k2 per token, with prefixes taken as given: "
                "simpler, but k3 ends elsewhere. k1 in the loss does nothing."),
        follow_up="And both? Then β is paid twice.",
        wrong="“k1 in the loss is the KL penalty.”",
        question_zh="KL 放进奖励还是放进损失？",
        answer_zh=("放进奖励，每个 token −β k1：它经过优势，前面的 token 也要为之后的偏离付出代"
                   "价，最优解是 π_ref exp(r/β)/Z。放进损失，每个 token β k3 或 k2，前缀视为给"
                   "定：更简单，但 k3 收敛到别处。k1 放进损失不起作用。"),
        follow_up_zh="两边都放呢？那就付了两次 β。",
        wrong_zh="“k1 放进损失就是 KL 惩罚。”",
        code=["advantages.py:token_rewards:penalty = -kl_coef",
              "losses.py:grpo_loss:loss = loss + kl_coef"],
        tests=["test_closed_form.py::test_ends_at_the_optimum",
               "test_closed_form.py::test_k3_in_the_loss_ends_elsewhere"],
        why="f.12, f.15, f.18",
        errata=[26],
        numbers=("With β = 0.5 the KL ends at {kl/none/kl_to_sft} without a penalty, "
                 "{kl/k1 in the loss/kl_to_sft} with k1 in the loss, "
                 "{kl/k3 in the loss/kl_to_sft} with k3, {kl/k1 in the reward/kl_to_sft} with k1 "
                 "in the reward (<seeds of kl>)."),
        numbers_zh=("β = 0.5 时，最终 KL：不加惩罚 {kl/none/kl_to_sft}，k1 放进损失 "
                    "{kl/k1 in the loss/kl_to_sft}，k3 放进损失 {kl/k3 in the loss/kl_to_sft}，"
                    "k1 放进奖励 {kl/k1 in the reward/kl_to_sft}（<seeds of kl>）。")),
    Question(
        question="May the reference move?",
        answer=('Yes. A frozen one says "stay near the SFT model". One that is replaced every '
                "N steps, or follows as a moving average, says \"don't go too fast\": it holds "
                "each stretch, not the whole way. Use it where the start is poor and the reward "
                "can be trusted."),
        follow_up="What may go wrong? With a reward model it allows hacking again, only later.",
        wrong="“The reference must be frozen, or the loss is wrong.”",
        question_zh="参考模型可以动吗？",
        answer_zh=("可以。冻结的参考模型表示“留在 SFT 模型附近”；每 N 步替换一次，或用滑动平均跟"
                   "随，则表示“不要走太快”：限制的是每一段，而不是全程。起点较差而奖励可信时适合"
                   "用。"),
        follow_up_zh="有什么风险？用奖励模型时，作弊又成为可能，只是来得晚一些。",
        wrong_zh="“参考模型必须冻结，否则损失就错了。”",
        code=["support/models.py:Reference:p_ref.lerp_"],
        tests=["test_scripts.py::test_the_reference_stays_frozen_unless_told_to_move"],
        why="g.3",
        numbers=("With β = 0.5, accuracy ends at {reference/frozen/sampled} with a frozen "
                 "reference, {reference/EMA 0.9/sampled} with one that follows, "
                 "{reference/synced every 10/sampled} with one that is replaced "
                 "(<seeds of reference>)."),
        numbers_zh=("β = 0.5 时，最终正确率：冻结 {reference/frozen/sampled}，跟随 "
                    "{reference/EMA 0.9/sampled}，定期替换 "
                    "{reference/synced every 10/sampled}（<seeds of reference>）。")),
]

PREFERENCES = [
    Question(
        question="How is a reward model trained, and what are its scores worth?",
        answer=("Bradley and Terry's model: the chosen answer wins with probability σ(r_w − "
                "r_l). Minimise −log of it over pairs. Only differences within a prompt count, "
                "so a score of 2 says nothing by itself. It is a language model with a scalar in "
                "place of the vocabulary, read at the last token."),
        follow_up=("What if people disagree? Then the fitted difference is the log-odds of their "
                   "preference, not infinite."),
        wrong="“A high score is a good answer.”",
        question_zh="奖励模型怎样训练？它的分数有什么含义？",
        answer_zh=("Bradley-Terry 模型：被选中的回答以概率 σ(r_w − r_l) 获胜，对偏好对最小化它的负对"
                   "数。只有同一提示词内的分差有意义，单独一个 2 分什么也不说明。它是把词表换成一"
                   "个标量的语言模型，在最后一个 token 处读取。"),
        follow_up_zh="如果人们意见不一致？拟合出的分差是偏好概率的对数几率，而不是无穷大。",
        wrong_zh="“分数高就是好回答。”",
        code=["losses.py:reward_model_loss:-F.logsigmoid", "rollout.py:sequence_scores"],
        tests=["test_closed_form.py::test_the_reward_model_recovers_the_score_up_to_a_constant",
               "test_rollout.py::test_score_is_read_at_the_last_action_whatever_the_padding"],
        why="g.7, g.9, g.10",
        errata=[34]),
    Question(
        question="Derive DPO in one minute.",
        answer=("The objective E[r] − β KL(π‖π_ref) has the solution π* = π_ref exp(r/β) / Z. "
                "Solve for r: r = β log(π*/π_ref) + β log Z. Bradley-Terry needs only a "
                "difference of rewards to one prompt, in which Z cancels. Put π in the place of "
                "π*: −log σ(β log(π/π_ref)(y_w) − β log(π/π_ref)(y_l))."),
        follow_up=("Why can't one sample from π* directly? Z sums over all answers that there "
                   "are."),
        wrong="“DPO has no reward.” The policy is its own implicit reward.",
        question_zh="一分钟推导 DPO。",
        answer_zh=("目标 E[r] − β KL(π‖π_ref) 的解是 π* = π_ref exp(r/β) / Z。解出 r = β "
                   "log(π*/π_ref) + β log Z。Bradley-Terry 只用同一提示词的奖励之差，Z 抵消。用 "
                   "π 代替 π*：−log σ(β log(π/π_ref)(y_w) − β log(π/π_ref)(y_l))。"),
        follow_up_zh="为什么不能直接从 π* 采样？Z 要对所有可能的回答求和。",
        wrong_zh="“DPO 没有奖励。”策略本身就是隐式奖励。",
        code=["losses.py:dpo_loss:h = chosen_reward"],
        tests=["test_closed_form.py::test_the_implicit_reward_of_dpo_is_the_score_up_to_a_constant"
               ],
        why="g.3, g.6, g.8, g.11"),
    Question(
        question="How does DPO avoid what hurts in RLHF, and what does it pay?",
        answer=("There is no reward model, no critic and no sampling while it trains: two models "
                "and a classification loss on fixed pairs. The price: it learns only about the "
                "answers in its pairs, cannot try anything new, and probability may leak to "
                "answers that are in no pair."),
        follow_up=("How can it be helped? Fresh pairs from the current policy (online DPO), or "
                   "the chosen answer's NLL beside the loss."),
        wrong=("“DPO needs no reference.” It needs no reward *model*; the reference's log-probs "
               "can be computed once beforehand."),
        question_zh="DPO 怎样避开 RLHF 的难处？代价是什么？",
        answer_zh=("没有奖励模型、没有价值模型，训练时不采样：两个模型，对固定的偏好对做分类损"
                   "失。代价是：只知道偏好对里的回答，不能尝试新的，概率还可能漏给任何一对里都没"
                   "有的回答。"),
        follow_up_zh="怎么补救？用当前策略采样新的偏好对（在线 DPO），或加上被选中的回答的 NLL。",
        wrong_zh="“DPO 不需要参考模型。”它不需要的是奖励*模型*；参考模型的对数概率可以事先算好。",
        code=["train_dpo.py:preference_loss:return dpo_loss"],
        tests=["test_closed_form.py::test_ends_at_the_optimum", "test_steps.py::test_preferences"],
        why="g.11, g.13",
        errata=[31],
        numbers=("{results/DPO/seconds} s of training; PPO on a reward model takes "
                 "{results/PPO on RM/seconds} s. Sampled accuracy {results/DPO/sampled}, and "
                 "{results/DPO without NLL/sampled} without the NLL of the chosen answers."),
        numbers_zh=("训练 {results/DPO/seconds} 秒，用奖励模型的 PPO 要 "
                    "{results/PPO on RM/seconds} 秒。采样正确率 {results/DPO/sampled}，不加被选中的回答"
                    "的 NLL 为 {results/DPO without NLL/sampled}。")),
    Question(
        question="What does DPO's gradient do?",
        answer=("−β σ(−h) (∇log π(chosen) − ∇log π(rejected)): raise the chosen answer, lower "
                "the rejected one. The weight σ(−h) is near 1 for a pair that the implicit "
                "reward orders wrong, and near 0 for one that it orders right with certainty."),
        follow_up="What is it at the start? π = π_ref, so h = 0 and all pairs weigh one half.",
        wrong=("“A larger β moves it further.” The first steps are larger, the end is nearer to "
               "the reference."),
        question_zh="DPO 的梯度在做什么？",
        answer_zh=("−β σ(−h) (∇log π(被选中) − ∇log π(被拒绝))：提高被选中的回答，降低被拒绝的回答。权重 "
                   "σ(−h)：隐式奖励排错的对接近 1，已经确信排对的对接近 0。"),
        follow_up_zh="开始时是多少？π = π_ref，h = 0，所有对的权重都是二分之一。",
        wrong_zh="“β 越大走得越远。”开头的步子更大，但终点离参考模型更近。",
        code=["losses.py:dpo_loss:h = chosen_reward"],
        tests=["test_losses.py::test_preference_losses_by_hand"],
        why="g.9, g.12",
        errata=[33, 35]),
    Question(
        question="Why do the log-probs of chosen answers fall in DPO?",
        answer=("The loss asks for a difference only. Chosen and rejected answers share tokens "
                "and parameters, so pushing the rejected one down can take the chosen one along. "
                "The probability of both goes to answers that are in no pair."),
        follow_up=("What helps? The NLL of the chosen answers, a larger β, a lower learning "
                   "rate, fewer steps."),
        wrong="“DPO makes the chosen answer more likely.”",
        question_zh="DPO 训练中，被选中的回答的对数概率为什么会下降？",
        answer_zh=("损失只要求差值。两个回答共享 token 和参数，压低被拒绝的回答时被选中的回答可能跟着降，两者"
                   "失去的概率流向任何一对里都没有的回答。"),
        follow_up_zh="怎么办？加上被选中的回答的 NLL，增大 β，降低学习率，减少步数。",
        wrong_zh="“DPO 会提高被选中的回答的概率。”",
        code=["train_dpo.py:main:loss = loss - config.nll_coef"],
        tests=["test_curves.py::test_dpo_does_not_see_both_sides_fall"],
        why="g.15",
        errata=[32],
        numbers=("At step 40 the chosen reward is {curve/dpo_no_nll/40/chosen_reward} without "
                 "the NLL, {curve/dpo/40/chosen_reward} with it, and greedy accuracy "
                 "{curve/dpo_no_nll/40/eval_greedy} and {curve/dpo/40/eval_greedy} (one seed)."),
        numbers_zh=("第 40 步，被选中的回答的隐式奖励：不加 NLL 为 "
                    "{curve/dpo_no_nll/40/chosen_reward}，加 NLL 为 "
                    "{curve/dpo/40/chosen_reward}；贪心正确率为 "
                    "{curve/dpo_no_nll/40/eval_greedy} 和 {curve/dpo/40/eval_greedy}（一个种"
                    "子）。")),
    Question(
        question="Is DPO contrastive learning?",
        answer=("In form, yes: it is the cross-entropy of picking one positive against one "
                "negative, with β log(π/π_ref) as the score (InfoNCE with one negative). In "
                "meaning, no: the score is a normalised probability measured against a "
                "reference, and its optimum is a policy, not an embedding."),
        follow_up=("What if there were many negatives? A ranking of several answers "
                   "(Plackett-Luce), with the same cancellation of Z."),
        wrong="“It is contrastive, so the chosen answer is pulled up.” Only the difference is.",
        question_zh="DPO 是对比学习吗？",
        answer_zh=("形式上是：在一正一负中选出正例的交叉熵，打分是 β log(π/π_ref)（只有一个负例的"
                   " InfoNCE）。含义上不是：打分来自归一化的概率，并与参考模型比较，最优解是策略"
                   "而不是嵌入。"),
        follow_up_zh="有多个负例呢？就是对多个回答排序（Plackett-Luce），Z 同样抵消。",
        wrong_zh="“既然是对比学习，被选中的回答就会被拉高。”拉大的只是差值。",
        code=["losses.py:dpo_loss:h = chosen_reward"],
        tests=["test_peers.py::test_peer[trl.dpo]"],
        why="g.7, g.14"),
    Question(
        question="What else is there: IPO, KTO, SimPO, ORPO, AI feedback?",
        answer=("IPO pulls the margin to a target, so that it can't grow without end. KTO needs "
                "no pairs, only good or bad. SimPO uses the mean log-prob per token, without a "
                "reference. ORPO adds preference to SFT in one loss. Constitutional AI and RLAIF "
                "let a model, guided by written principles, compare answers in the place of "
                "people."),
        follow_up=("Which data decide? Pairs: DPO, IPO, SimPO, ORPO. Thumbs up or down: KTO. A "
                   "checkable answer: GRPO."),
        wrong=("“KTO is DPO without a reference.” It has a reference, and a reference point as "
               "well."),
        question_zh="还有哪些方法：IPO、KTO、SimPO、ORPO、AI 反馈？",
        answer_zh=("IPO 把差值拉向一个目标，不会无限增大。KTO 不要成对数据，只标好坏。SimPO 用每"
                   "个 token 的平均对数概率，不要参考模型。ORPO 把偏好和 SFT 合成一个损失。宪法式"
                   " AI 和 RLAIF 让模型按写好的原则代替人来比较回答。"),
        follow_up_zh=("由什么数据决定？成对数据：DPO、IPO、SimPO、ORPO；点赞点踩：KTO；答案可校"
                      "验：GRPO。"),
        wrong_zh="“KTO 就是不要参考模型的 DPO。”它有参考模型，还有一个参考点。",
        code=["losses.py:ipo_loss:loss =",
              "losses.py:kto_loss:loss = weight",
              "losses.py:simpo_loss:loss =",
              "losses.py:orpo_loss:loss ="],
        tests=["test_losses.py::test_preference_losses_by_hand", "test_steps.py::test_preferences"],
        why="g.10",
        numbers=("Sampled accuracy: DPO {results/DPO/sampled}, IPO {results/IPO/sampled}, KTO "
                 "{results/KTO/sampled}."),
        numbers_zh=("采样正确率：DPO {results/DPO/sampled}，IPO {results/IPO/sampled}，KTO "
                    "{results/KTO/sampled}。")),
]

GROUPS = [
    Question(
        question="What is GRPO's idea, and what has it over DPO?",
        answer=("Sample G answers to each prompt; an answer's advantage is its reward minus the "
                "group's mean, divided by the group's standard deviation, for all its tokens; then "
                "PPO's clipped loss with a k3 penalty. Over DPO: it learns from its own fresh "
                "samples, can find answers that are in no data set, and uses how good an answer "
                "is, not only which of two is better."),
        follow_up=("What has DPO over GRPO? No sampling, no scorer, and pairs that people have "
                   "already made."),
        wrong="“GRPO compares groups with each other.” It compares answers to one prompt.",
        question_zh="GRPO 的思路是什么？比 DPO 好在哪里？",
        answer_zh=("每个提示词采样 G 个回答；回答的优势是奖励减组均值再除以组标准差，所有 token "
                   "相同；再用 PPO 的裁剪损失加 k3 惩罚。比 DPO 好在：从自己的新样本学习，能找到"
                   "数据里没有的回答；用的是好多少，而不只是两个里哪个好。"),
        follow_up_zh="DPO 比 GRPO 好在哪里？不用采样，不用打分器，可以直接用人已标好的偏好对。",
        wrong_zh="“GRPO 在组与组之间比较。”它比较的是同一提示词的回答。",
        code=["advantages.py:grpo_advantages:advantages = groups", "losses.py:grpo_loss"],
        tests=["test_steps.py::test_grpo", "test_peers.py::test_peer[trl.grpo_loss.grpo]"],
        why="g.16, g.17",
        errata=[8],
        numbers=("GRPO {results/GRPO/sampled}, DPO {results/DPO/sampled} sampled accuracy, in "
                 "{results/GRPO/seconds} s and {results/DPO/seconds} s."),
        numbers_zh=("采样正确率 GRPO {results/GRPO/sampled}，DPO {results/DPO/sampled}；用时 "
                    "{results/GRPO/seconds} 秒和 {results/DPO/seconds} 秒。")),
    Question(
        question="GRPO against PPO: what is different?",
        answer=("The baseline: the mean of a group in place of a critic, so one model less that "
                "learns. The advantage: one number for all tokens of an answer in place of one "
                "per token. The KL: k3 in the loss in place of k1 in the reward. The average: "
                "over each answer first. The clip and the ratio per token are the same."),
        follow_up=("What if group size is 1? The advantage is 0 (or not defined): there is "
                   "nothing to compare with."),
        wrong="“GRPO has one ratio for the answer.” That is GSPO.",
        question_zh="GRPO 与 PPO 有什么不同？",
        answer_zh=("基线：组均值代替价值模型，少一个要学习的模型。优势：整个回答一个数，而不是每"
                   "个 token 一个。KL：k3 放进损失，而不是 k1 放进奖励。平均：先在每个回答内平"
                   "均。裁剪和逐 token 的比率相同。"),
        follow_up_zh="组大小为 1 呢？优势为 0（或无定义）：没有可比较的对象。",
        wrong_zh="“GRPO 整个回答一个比率。”那是 GSPO。",
        code=["train_grpo.py:main:advantages = grpo_advantages",
              "train_ppo.py:main:advantages, returns = gae"],
        tests=["test_losses.py::test_bad_groups_are_refused"],
        why="g.16, d.9",
        errata=[18],
        numbers=("Sampled {results/GRPO/sampled} (GRPO) and {results/PPO/sampled} (PPO): apart "
                 "by less than the seeds' spread. Models in memory: {results/GRPO/models} and "
                 "{results/PPO/models}."),
        numbers_zh=("采样正确率 {results/GRPO/sampled}（GRPO）和 {results/PPO/sampled}（PPO），差"
                    "别小于种子间的波动。内存中的模型数：{results/GRPO/models} 和 "
                    "{results/PPO/models}。")),
    Question(
        question="What is each of PPO, DPO and GRPO better at?",
        answer=("PPO: where one sample per prompt must do and, in theory, long answers or many "
                "turns, where credit for each token matters (here the critic gave little: "
                "[credit](lab/credit.md)). DPO: fixed preference data, little hardware. GRPO: "
                "answers that can be scored well, and several samples per prompt that one can "
                "afford."),
        follow_up=("Which would you try first? DPO on pairs; with a verifier GRPO; PPO if its "
                   "noise is the problem."),
        wrong="“GRPO is better than PPO.” They end alike here; GRPO is simpler.",
        question_zh="PPO、DPO、GRPO 各自适合什么？",
        answer_zh=("PPO：每个提示词只能采一个样本；理论上还有回答长或轮次多，需要逐 token 做信用分配时（这里价值"
                   "模型没有做到多少：[credit](lab/credit.zh.md)）。DPO：有现成的偏好数据，硬件少。"
                   "GRPO：回答容易可靠打分，每个提示词采得起多个样本。"),
        follow_up_zh="先试哪个？有偏好对先试 DPO；有校验器先试 GRPO；噪声成问题时再用 PPO。",
        wrong_zh="“GRPO 优于 PPO。”在这里两者终点相同，GRPO 只是更简单。",
        code=["train_ppo.py:main", "train_grpo.py:main", "train_dpo.py:main"],
        tests=["test_scripts.py::test_ppo_learns",
               "test_scripts.py::test_grpo_learns",
               "test_scripts.py::test_dpo_learns"],
        why="e.9, g.18",
        numbers=("Sampled accuracy: PPO {results/PPO/sampled}, GRPO {results/GRPO/sampled}, DPO "
                 "{results/DPO/sampled}."),
        numbers_zh=("采样正确率：PPO {results/PPO/sampled}，GRPO {results/GRPO/sampled}，DPO "
                    "{results/DPO/sampled}。")),
    Question(
        question="Why is GRPO picked for code and mathematics?",
        answer=("Answers can be checked by a program, so there is no reward model to fool or to "
                "hold in memory. The reward is 0 or 1, and a group's share of right answers is a "
                "good baseline. A critic would have to predict from half a proof whether it will "
                "succeed, which is hard."),
        follow_up=("Can it be fooled all the same? Yes: tests that pass for the wrong reason, "
                   "answers without their reasoning."),
        wrong="“GRPO works for mathematics only.” It takes any score, also a reward model's.",
        question_zh="为什么代码和数学常用 GRPO？",
        answer_zh=("程序可以判断对错，没有可骗的奖励模型，也不占内存。奖励是 0 或 1，组内答对的比"
                   "例就是不错的基线。价值模型则要从半个证明预测能否成功，这很难。"),
        follow_up_zh="校验器就骗不了吗？也能：测试因错误的原因通过，或只给答案没有推理。",
        wrong_zh="“GRPO 只能用于数学。”任何得分都可以，包括奖励模型的。",
        code=["support/rewards.py:exact_reward", "task.py:verify_answer"],
        tests=["test_data.py::test_verifier", "test_data.py::test_exact"],
        why="g.20",
        numbers=("Of answers that think, a critic's V after 30 steps of PPO has a correlation of "
                 "{credit/after 30 steps/correlation} with the share of right continuations "
                 "([lab](lab/credit.md), <seeds of credit>)."),
        numbers_zh=("在写出过程的回答里，PPO 训练 30 步之后，V 与续写正确率的相关系数是 "
                    "{credit/after 30 steps/correlation}（[实验室](lab/credit.zh.md)，"
                    "<seeds of credit>）。")),
    Question(
        question="What does the group size do?",
        answer=("A larger group has a less noisy baseline and more often both right and wrong "
                "answers, so fewer groups without a signal. With a fixed number of samples per "
                "step it also means fewer prompts. Sizes from 8 to 16 are common."),
        follow_up=("For which prompts are large groups needed? For hard ones: with success 1 in "
                   "100, eight answers are nearly always all wrong."),
        wrong="“Larger is always better.”",
        question_zh="组大小有什么影响？",
        answer_zh=("组越大，基线噪声越小，越容易既有对又有错，无信号的组越少。但每步样本数固定"
                   "时，提示词就更少。常用 8 到 16。"),
        follow_up_zh="什么题需要大组？难题：成功率百分之一时，八个回答几乎总是全错。",
        wrong_zh="“越大越好。”",
        code=["train_grpo.py:Config:group_size: int"],
        tests=["test_policy_gradient.py::test_dr_grpo_is_the_gradient_times_a_constant"],
        why="g.17, g.18",
        numbers=("At 256 samples per step: {group_size/G = 2/sampled} with G = 2, "
                 "{group_size/G = 8/sampled} with 8, {group_size/G = 64/sampled} with 64; groups "
                 "without a signal at the end: {group_size/G = 2/no_signal}, "
                 "{group_size/G = 8/no_signal}, {group_size/G = 64/no_signal} "
                 "(<seeds of group_size>)."),
        numbers_zh=("每步 256 个样本：G = 2 为 {group_size/G = 2/sampled}，8 为 "
                    "{group_size/G = 8/sampled}，64 为 {group_size/G = 64/sampled}；结束时无信号"
                    "组的比例：{group_size/G = 2/no_signal}、{group_size/G = 8/no_signal}、"
                    "{group_size/G = 64/no_signal}（<seeds of group_size>）。")),
    Question(
        question="What if the samples are poor: all wrong, or all right?",
        answer=("A group whose rewards are all equal has advantages of 0: its KL term is left. "
                "Leave such groups out, or replace them by other prompts (DAPO's dynamic "
                "sampling); choose prompts of middling difficulty; take more samples, partial "
                "rewards, or more SFT first."),
        follow_up=("Why not just divide by a tiny standard deviation? Rounding would be blown up "
                   "to an advantage."),
        wrong=("“Negative samples alone teach nothing.” In a mixed group wrong answers push "
               "probability away from them."),
        question_zh="样本太差怎么办：全错，或者全对？",
        answer_zh=("奖励全相等的组，优势都是 0，学不到东西。可以跳过，或另采提示词补上（DAPO 的动"
                   "态采样）；选难度适中的题；多采样；给部分分；或先多做 SFT。"),
        follow_up_zh="直接除以极小的标准差行不行？舍入误差会被放大成优势。",
        wrong_zh="“错误样本没有用。”在有对有错的组里，错误回答的概率会被压低。",
        code=["methods.py:rows_to_learn_from:rows = rows[~no_signal]",
              "methods.py:sample_until_signal"],
        tests=["test_losses.py::test_groups_without_signal_are_exactly_zero",
               "test_scripts.py::test_dynamic_sampling_replaces_groups_without_signal"],
        why="g.20",
        numbers=("At the end {no_signal/left out/no_signal} of the groups have no signal. Left "
                 "out: {no_signal/left out/sampled}; replaced: {no_signal/replaced/sampled}, "
                 "from {no_signal/replaced/samples} samples per step instead of "
                 "{no_signal/left out/samples} (<seeds of no_signal>; the "
                 "accuracies differ within their spread)."),
        numbers_zh=("结束时 {no_signal/left out/no_signal} 的组没有信号。跳过："
                    "{no_signal/left out/sampled}；补上：{no_signal/replaced/sampled}，每步 "
                    "{no_signal/replaced/samples} 个样本，跳过时 {no_signal/left out/samples} 个"
                    "（<seeds of no_signal>；正确率之差没有超出波动）。")),
    Question(
        question="Which biases has GRPO, and what does Dr. GRPO change?",
        answer=("Two. Averaging over each answer first rewards short right answers and long "
                "wrong ones. Dividing by the standard deviation gives very easy and very hard "
                "prompts more weight, so that arcsin √p is maximised and not p. Dr. GRPO leaves "
                "both divisions out; what remains is (G − 1)/G of the true gradient."),
        follow_up=("Is the mean itself biased, since it contains the answer's own reward? No, it "
                   "only shortens the gradient by that constant."),
        wrong=("“The standard deviation is only a learning rate.” It is another one for each "
               "prompt."),
        question_zh="GRPO 有哪些偏差？Dr. GRPO 改了什么？",
        answer_zh=("两个。先在回答内平均，偏向短的正确回答和长的错误回答；除以标准差，使很容易和"
                   "很难的题权重变大，最大化的是 arcsin √p 而不是 p。Dr. GRPO 去掉这两个除法，剩"
                   "下的是真实梯度的 (G − 1)/G 倍。"),
        follow_up_zh="组均值含有自己的奖励，有偏吗？没有，只使梯度短一个常数倍。",
        wrong_zh="“标准差只相当于学习率。”每道题的都不一样。",
        code=["losses.py:aggregate:x = x.sum(1)", "advantages.py:grpo_advantages:groups.std"],
        tests=["test_policy_gradient.py::test_dr_grpo_is_the_gradient_times_a_constant",
               "test_policy_gradient.py::test_dividing_by_length_maximises_reward_per_token",
               "test_policy_gradient.py::test_dividing_by_the_group_std_plays_to_win"],
        why="g.18, g.19, g.21, g.22",
        errata=[6, 7, 9],
        numbers=("Dr. GRPO ends at {results/Dr. GRPO/sampled}, GRPO at {results/GRPO/sampled}: "
                 "the biases don't show on this task."),
        numbers_zh=("Dr. GRPO 止于 {results/Dr. GRPO/sampled}，GRPO 止于 {results/GRPO/sampled}："
                    "这个任务上看不出偏差的影响。")),
    Question(
        question="What does DAPO change?",
        answer=("A higher upper clip (0.28), so that unlikely tokens can become likely. Every "
                "token weighs the same (token mean). Groups without a signal are replaced. No KL "
                "penalty. A soft penalty on overlong answers, which is left out here."),
        follow_up=("Why is a symmetric clip unfair to rare tokens? 1.2 times 0.01 is 0.012, 1.2 "
                   "times 0.5 is 0.6: the rare token may hardly move."),
        wrong="“Clip-higher makes steps larger in both directions.”",
        question_zh="DAPO 改了什么？",
        answer_zh=("提高裁剪上界（0.28），让小概率 token 能变大；每个 token 权重相同（按 token 平"
                   "均）；替换无信号的组；不用 KL 惩罚；对过长回答软惩罚（这里没有实现）。"),
        follow_up_zh=("对称裁剪为什么对小概率 token 不利？0.01 的 1.2 倍是 0.012，0.5 的 1.2 倍是"
                      " 0.6：小概率 token 几乎动不了。"),
        wrong_zh="“clip-higher 让两个方向的步子都变大。”",
        code=['methods.py:METHODS:"dapo"', "methods.py:sample_until_signal"],
        tests=["test_peers.py::test_peer[trl.grpo_loss.dapo]"],
        why="c.14, c.15",
        numbers=("{results/DAPO/sampled} from {results/DAPO/samples} samples; GRPO "
                 "{results/GRPO/sampled} from {results/GRPO/samples}. Of the higher upper clip "
                 "alone [the lab](lab/clip_kl.md) saw no effect on entropy or accuracy."),
        numbers_zh=("{results/DAPO/sampled}，用 {results/DAPO/samples} 个样本；GRPO "
                    "{results/GRPO/sampled}，用 {results/GRPO/samples} 个。单独提高裁剪上界，"
                    "[实验室](lab/clip_kl.zh.md)没有看到对熵或正确率的影响。")),
    Question(
        question="Why does GSPO take one ratio per answer, and what does CISPO clip?",
        answer=("The reward is the answer's, so GSPO corrects and clips the answer as a whole: s "
                "= exp(mean of the tokens' log ratios), the root of the product by length, which "
                "keeps it near 1. A single odd token can't be clipped alone. CISPO clips the "
                "weight instead of the gradient: each token goes on learning, with a bounded "
                "weight."),
        follow_up=("Why is GSPO's ε so small, 0.0003? The mean of many log ratios is far closer "
                   "to 0 than a single one."),
        wrong=("“GSPO's ratio is the exact importance weight.” The exact one is the product, "
               "without the root."),
        question_zh="GSPO 为什么整个回答用一个比率？CISPO 裁剪的是什么？",
        answer_zh=("奖励属于整个回答，所以 GSPO 对整个回答修正和裁剪：s = exp(各 token 对数比率的"
                   "均值)，即连乘按长度开方，因此接近 1。单个异常的 token 不会被单独裁剪。CISPO "
                   "裁剪权重而不是梯度：每个 token 都继续学习，只是权重有界。"),
        follow_up_zh="GSPO 的 ε 为什么只有 0.0003？许多对数比率的均值远比单个接近 0。",
        wrong_zh="“GSPO 的比率是精确的重要性权重。”精确的是连乘，不开方。",
        code=["losses.py:gspo_loss:ratio = (log_ratio", "losses.py:cispo_loss:weight ="],
        tests=["test_peers.py::test_peer[trl.gspo]", "test_peers.py::test_peer[verl.cispo]"],
        why="c.2, c.3",
        errata=[18],
        numbers=("Sampled accuracy: GSPO {results/GSPO/sampled}, CISPO {results/CISPO/sampled}, "
                 "GRPO {results/GRPO/sampled}."),
        numbers_zh=("采样正确率：GSPO {results/GSPO/sampled}，CISPO {results/CISPO/sampled}，"
                    "GRPO {results/GRPO/sampled}。")),
    Question(
        question="RLOO, ReMax, REINFORCE++: where do they differ?",
        answer=("In the baseline. RLOO: the mean of the other answers to the prompt. ReMax: the "
                "reward of the greedy answer. REINFORCE++: the batch's mean and standard "
                "deviation, without groups. All three put the KL in the reward; the first two "
                "have no ratio and make one update per step."),
        follow_up=("Which are unbiased? RLOO and ReMax: their baselines don't depend on the "
                   "sample. Whitening over the batch is a little biased."),
        wrong=("“RLOO and GRPO without the standard deviation are different methods.” They "
               "differ by the constant G/(G − 1)."),
        question_zh="RLOO、ReMax、REINFORCE++ 差在哪里？",
        answer_zh=("差在基线。RLOO：同一提示词其他回答的均值；ReMax：贪心回答的奖励；"
                   "REINFORCE++：整批的均值和标准差，不分组。三者都把 KL 放进奖励；前两者没有比"
                   "率，每步更新一次。"),
        follow_up_zh="哪些无偏？RLOO 和 ReMax，基线与样本无关；整批白化略有偏差。",
        wrong_zh="“RLOO 与不除标准差的 GRPO 不同。”优势只差常数 G/(G − 1)。",
        code=["advantages.py:rloo_advantages:others =",
              "advantages.py:remax_advantages:return",
              "advantages.py:reinforce_pp_advantages:return whiten"],
        tests=["test_policy_gradient.py::test_rloo",
               "test_policy_gradient.py::test_remax",
               "test_policy_gradient.py::test_whitening_over_a_batch_bends_the_gradient"],
        why="a.13, g.17",
        numbers=("Sampled accuracy: RLOO {results/RLOO/sampled}, ReMax {results/ReMax/sampled}, "
                 "REINFORCE++ {results/REINFORCE++/sampled}."),
        numbers_zh=("采样正确率：RLOO {results/RLOO/sampled}，ReMax {results/ReMax/sampled}，"
                    "REINFORCE++ {results/REINFORCE++/sampled}。")),
]

PRACTICE = [
    Question(
        question="The reward falls suddenly. Why?",
        answer=("Look at what moved first. approx_kl and the gradient norm jump in the same "
                "step: the update was too large (learning rate, the exponential of k3). KL "
                "climbs slowly before: drift or hacking. Length and cut-off answers: a limit. "
                "Only few answers per step: it may be noise."),
        follow_up="What do you read first? The samples.",
        wrong="“The clip prevents this.” It didn't, see the numbers.",
        question_zh="奖励突然下降，是什么原因？",
        answer_zh=("看什么最先变。approx_kl 和梯度范数在同一步跳变：更新太大（学习率，或 k3 的指"
                   "数项）。之前 KL 缓慢上升：漂移或作弊。长度和截断比例变了：长度上限的问题。每"
                   "步回答很少：可能只是噪声。"),
        follow_up_zh="先看什么？先读样本。",
        wrong_zh="“有裁剪就不会。”看数字，没有防住。",
        code=["support/run.py:find_trouble:collapsed", "losses.py:kl_k3"],
        tests=["test_runs.py::test_trouble_is_named"],
        why="f.11",
        numbers=("With ten times the learning rate the reward goes from "
                 "{curve/grpo_lr_10x/1/reward} to {curve/grpo_lr_10x/2/reward} in one step; the "
                 "gradient norm of step 1 is {curve/grpo_lr_10x/1/grad_norm}, the clipped share "
                 "of step 2 {curve/grpo_lr_10x/2/clip_fraction} (one seed)."),
        numbers_zh=("学习率放大十倍，奖励一步之内从 {curve/grpo_lr_10x/1/reward} 降到 "
                    "{curve/grpo_lr_10x/2/reward}；第 1 步的梯度范数为 "
                    "{curve/grpo_lr_10x/1/grad_norm}，第 2 步被裁剪的比例为 "
                    "{curve/grpo_lr_10x/2/clip_fraction}（一个种子）。")),
    Question(
        question="What is reward hacking, and what helps against it?",
        answer=("The policy finds answers that score high and aren't good: the score rises while "
                "the truth falls. Remedies: a KL penalty; an early stop; the lowest score of "
                "several reward models; a reward model that is trained again on the policy's new "
                "answers; a check in its place, where possible; people who read samples."),
        follow_up=("How do you see it without the truth? KL climbs on after the score has "
                   "stopped, and entropy turns up."),
        wrong="“A better score shows a better model.”",
        question_zh="什么是奖励作弊（reward hacking）？怎样防？",
        answer_zh=("策略找到得分高但并不好的回答：分数上升，真实水平下降。办法：KL 惩罚；提前停"
                   "止；用多个奖励模型取最低分；用策略的新回答重新训练奖励模型；能校验的改用校"
                   "验；让人读样本。"),
        follow_up_zh="不知道真实水平时怎么看出来？得分不再涨而 KL 继续升，熵回升。",
        wrong_zh="“得分更高说明模型更好。”",
        code=["support/rl.py:Reward:self.function = None",
              "advantages.py:token_rewards:penalty = -kl_coef"],
        why="g.1, g.3",
        numbers=("Without a penalty greedy accuracy falls from "
                 "{results/PPO on RM, no KL/peak_greedy} to {results/PPO on RM, no KL/greedy}, "
                 "while the score rises from {results/PPO on RM, no KL/score_at_peak} to "
                 "{results/PPO on RM, no KL/score}. In [the lab](lab/reward_models.md) neither "
                 "more pairs nor the mean or the least of three models helped beyond the seeds' "
                 "spread: models with one start and pairs from one policy seem to share their "
                 "errors."),
        numbers_zh=("不加惩罚，贪心正确率从 {results/PPO on RM, no KL/peak_greedy} 降到 "
                    "{results/PPO on RM, no KL/greedy}，得分却从 "
                    "{results/PPO on RM, no KL/score_at_peak} 升到 "
                    "{results/PPO on RM, no KL/score}。在[实验室](lab/reward_models.zh.md)里，更多偏好对、"
                    "三个模型的均值或最小值，都没有超出种子间波动的作用：起点相同、偏好对出自同一个策略的模型，"
                    "错处看来是共有的。")),
    Question(
        question="What is the alignment tax?",
        answer=("What other abilities lose while one is trained: after InstructGPT's PPO, some "
                "public benchmarks fell. Remedies: a KL penalty, mixing in pretraining text "
                "(PPO-ptx), smaller steps, averaging weights with the start. Measure it on tasks "
                "that were *not* trained."),
        follow_up=("Does the KL to the start measure it? Not alone: in the lab, demonstrations of "
                   "the other task leave the KL on the trained one as it was, and nothing is "
                   "forgotten."),
        wrong=("“KL near 0 means no tax.” Small KL on average may hide large changes on rare "
               "prompts."),
        question_zh="什么是对齐税（alignment tax）？",
        answer_zh=("训练一种能力时，其他能力的损失：InstructGPT 做完 PPO，一些公开基准下降了。办"
                   "法：KL 惩罚；混入预训练文本（PPO-ptx）；步子小一些；与起点做权重平均。要在*没"
                   "有*训练的任务上测。"),
        follow_up_zh=("与起点的 KL 量的是它吗？不全是：在实验室里，混入另一个任务的示范，被训练任务上的 KL 并没有变小，而什么"
                      "都没有忘。"),
        wrong_zh="“KL 接近 0 就没有对齐税。”平均 KL 小，可能掩盖少数提示词上的大变化。",
        code=["lab/forgetting.py:train:loss = loss + other_coef"],
        tests=["test_forgetting.py::test_demonstrations_of_the_other_task_are_imitated"],
        why="f.16",
        numbers=("A model of two tasks, trained by reward on one: of the other, right at the end "
                 "{forgetting/β = 0/other}, with a KL penalty {forgetting/β = 0.5/other}, with "
                 "demonstrations of it in each update "
                 "{forgetting/demonstrations of the other task/other} (<seeds of forgetting>). "
                 "The KL penalty's gain is within the seeds' spread."),
        numbers_zh=("会两个任务的模型，只用奖励训练其中一个。另一个最后的正确率：{forgetting/β = 0/other}；加 KL 惩罚 "
                    "{forgetting/β = 0.5/other}；每次更新混入它的示范 "
                    "{forgetting/demonstrations of the other task/other}（<seeds of forgetting>）。"
                    "KL 惩罚的作用没有超出种子间的波动。")),
    Question(
        question="Does RLHF hurt knowledge or reasoning?",
        answer=("It can. The policy becomes more certain: pass@1 rises, pass@k for large k may "
                "not, and some right but rare answers get lost. Calibration suffers, and a reward "
                "that people give for tone is not one for truth. With a checkable reward "
                "reasoning improves on what is trained."),
        follow_up=("How would you check? pass@k for several k, and benchmarks that were not "
                   "trained."),
        wrong=("“A higher pass@1 shows new abilities.” Before RL one of eight samples was right "
               "for nearly every problem: here RL mostly made likely what the model could do "
               "already. Only pass@k at large k could show more."),
        question_zh="RLHF 会损害知识或推理吗？",
        answer_zh=("有可能。它让策略更确定：pass@1 上升，k 大时 pass@k 未必升，一些少见但正确的答"
                   "案会丢失；校准变差；人给语气的奖励并不是给真实性的。奖励可校验时，所训练的推"
                   "理会变好。"),
        follow_up_zh="怎么检查？看多个 k 的 pass@k，以及没有训练过的基准。",
        wrong_zh=("“pass@1 升高说明有了新能力。”训练之前，几乎每道题的八个样本里都有一个是对的：强化学习在这里主要是让本来"
                  "就会的更常出现。只有 k 很大的 pass@k 才能看出更多。"),
        code=["evaluate.py:pass_at_k"],
        tests=["test_data.py::test_pass_at_k_is_the_chance_that_k_of_n_hold_a_right_one"],
        why="f.4",
        numbers=("pass@1 goes from {results/SFT/sampled} to {results/GRPO/sampled}, pass@8 from "
                 "{results/SFT/pass@8} to {results/GRPO/pass@8}; hacking took pass@8 down to "
                 "{results/PPO on RM, no KL/pass@8}."),
        numbers_zh=("pass@1 从 {results/SFT/sampled} 升到 {results/GRPO/sampled}，pass@8 从 "
                    "{results/SFT/pass@8} 升到 {results/GRPO/pass@8}；奖励作弊则把 pass@8 降到 "
                    "{results/PPO on RM, no KL/pass@8}。")),
    Question(
        question="How is an aligned model evaluated?",
        answer=("On prompts that nothing was trained on. Where answers can be checked: accuracy, "
                "greedy and sampled, pass@k, with several seeds. Where they can't: people "
                "compare blindly, in random order; a strong model as judge, whose bias for "
                "length, position and its own style must be controlled. Red teams look for harm. "
                "Beside all: KL, length, and old benchmarks."),
        follow_up=("Why not the reward model's score? It is what was optimised, so it is no "
                   "longer a measure."),
        wrong=("“One seed is enough.” Here the seed explains most of the variance between good "
               "methods."),
        question_zh="怎样评估对齐后的模型？",
        answer_zh=("用没有训练过的提示词。能校验的：正确率（贪心和采样）、pass@k，多个种子。不能"
                   "校验的：人做盲测，顺序随机；用强模型当评委，但要控制它对长度、位置和自身风格"
                   "的偏好。红队专门找危害。此外看 KL、长度和旧基准。"),
        follow_up_zh="为什么不用奖励模型的分数？它就是被优化的目标，不再是度量。",
        wrong_zh="“一个种子就够了。”在这里，好方法之间的方差大部分来自种子。",
        code=["evaluate.py:main", "lab/report.py:apart"],
        tests=["test_data.py::test_held_out_problems_are_never_trained_on"],
        why="f.16",
        numbers=("GRPO over five seeds: {results/GRPO/sampled}; DAPO: {results/DAPO/sampled}. "
                 "The means differ by less than the spread; seed by seed DAPO is ahead."),
        numbers_zh=("GRPO 五个种子：{results/GRPO/sampled}；DAPO：{results/DAPO/sampled}。均值之"
                    "差小于波动，但逐个种子比较，DAPO 更好。")),
    Question(
        question="What is pass@k, and how is it estimated?",
        answer=("The chance that at least one of k samples is right. From n samples with c "
                "right: 1 − C(n − c, k) / C(n, k), the chance that k drawn without replacement "
                "are not all wrong."),
        follow_up=("What if pass@1 rises and pass@8 doesn't? The policy became more certain, not "
                   "more capable."),
        wrong="“1 − (1 − c/n)^k.” It draws with replacement and is too low.",
        question_zh="什么是 pass@k？怎样估计？",
        answer_zh=("k 个样本中至少一个正确的概率。有 n 个样本、c 个正确时：1 − C(n − c, k) / "
                   "C(n, k)，即不放回地取 k 个，不全是错的概率。"),
        follow_up_zh="pass@1 升而 pass@8 不升说明什么？策略更确定了，能力没有变强。",
        wrong_zh="“1 − (1 − c/n)^k。”这是有放回地抽，偏低。",
        code=["evaluate.py:pass_at_k"],
        tests=["test_data.py::test_pass_at_k_is_the_chance_that_k_of_n_hold_a_right_one"],
        errata=[36],
        numbers="SFT: {results/SFT/sampled} at k = 1, {results/SFT/pass@8} at k = 8.",
        numbers_zh="SFT：k = 1 为 {results/SFT/sampled}，k = 8 为 {results/SFT/pass@8}。"),
    Question(
        question="How does alignment work over several turns, with tools?",
        answer=("The state holds the whole conversation. Only the model's own tokens are "
                "actions; what the user or the tool wrote is masked out: no gradient, no KL, no "
                "discount. The reward may come at the end; returns and GAE pass over the masked "
                "tokens unchanged."),
        follow_up=("What is hard? Long credit assignment, replies that differ from training, and "
                   "simulated users who are too kind."),
        wrong=("“Train on the whole conversation.” Then the model learns to write the tool's "
               "replies."),
        question_zh="多轮、带工具时怎样对齐？",
        answer_zh=("状态包含整个对话。只有模型自己写的 token 是动作；用户和工具写的要用掩码排除："
                   "没有梯度，不计 KL，不折扣。奖励可以只在末尾；回报和 GAE 原样跨过被排除的 "
                   "token。"),
        follow_up_zh="难在哪里？信用分配的跨度长；真实回复与训练时不同；模拟用户太宽容。",
        wrong_zh="“整段对话都训练。”那模型会学着替工具写回复。",
        code=["rollout.py:generate:next_tokens = torch.where(is_told",
              "support/environments.py:Conversations"],
        tests=["test_policy_gradient.py::test_with_a_tool_every_estimator_has_the_exact_gradient",
               "test_policy_gradient.py::test_training_on_the_worlds_tokens_bends_the_gradient"],
        why="a.7"),
    Question(
        question="What is entropy collapse, and what helps?",
        answer=("The policy becomes certain: all answers alike, no group has a signal, learning "
                "ends, also where answers are wrong. Remedies: a wider upper clip, a higher "
                "temperature, KL to the reference, an entropy bonus, lower learning rate, other "
                "prompts."),
        follow_up=("Is falling entropy bad? No. It falls as the policy learns; near 0 early is "
                   "bad."),
        wrong="“An entropy bonus is always needed.” In the scripts here it is off by default.",
        question_zh="什么是熵坍缩？怎样缓解？",
        answer_zh=("策略变得过于确定：回答全都一样，没有一组有信号，学习停止，即使答案是错的。办"
                   "法：放宽裁剪上界，提高温度，加对参考模型的 KL，熵奖励，降低学习率，换提示"
                   "词。"),
        follow_up_zh="熵下降是坏事吗？不是，学习时本来就会降；早早接近 0 才是问题。",
        wrong_zh="“一定要加熵奖励。”这里的脚本默认都不加。",
        code=["losses.py:entropy", "support/run.py:find_trouble:collapsed"],
        tests=["test_runs.py::test_trouble_is_named"],
        why="g.20",
        numbers=("In a good run entropy goes from {curve/grpo/1/entropy} to "
                 "{curve/grpo/25/entropy}; at temperature 0.2 it is {curve/grpo_cold/10/entropy} "
                 "in step 10, and {curve/grpo_cold/10/no_signal} of the groups have no signal "
                 "(one seed). The wider clip is DAPO's; in [the lab](lab/clip_kl.md) it did not "
                 "raise entropy: {clip_kl/4 epochs, clip 0.2 to 0.28, β = 0/entropy}, without it "
                 "{clip_kl/4 epochs, clip 0.2, β = 0/entropy} (<seeds of clip_kl>)."),
        numbers_zh=("正常的训练中，熵从 {curve/grpo/1/entropy} 降到 {curve/grpo/25/entropy}；温度"
                    "为 0.2 时，第 10 步是 {curve/grpo_cold/10/entropy}，无信号组的比例为 "
                    "{curve/grpo_cold/10/no_signal}（一个种子）。放宽裁剪上界出自 DAPO；在"
                    "[实验室](lab/clip_kl.zh.md)里它没有提高熵："
                    "{clip_kl/4 epochs, clip 0.2 to 0.28, β = 0/entropy}，不放宽是 "
                    "{clip_kl/4 epochs, clip 0.2, β = 0/entropy}（<seeds of clip_kl>）。")),
    Question(
        question="Which average: over tokens, over answers, or by a constant?",
        answer=("Token mean: every token weighs the same, so long answers weigh more. Mean of "
                "each answer first (GRPO): every answer weighs the same, so a token of a long "
                "answer weighs less: a length bias. A constant (Dr. GRPO): the true gradient up "
                "to a factor."),
        follow_up="And micro-batches? Divide each by the whole batch's number, never by its own.",
        wrong="“The mean of the micro-batches' means is the batch's mean.”",
        question_zh="用哪种平均：按 token、按回答，还是除以常数？",
        answer_zh=("按 token 平均：每个 token 权重相同，长回答更重。先在回答内平均（GRPO）：每个"
                   "回答权重相同，长回答的 token 更轻，产生长度偏差。除以常数（Dr. GRPO）：与真实"
                   "梯度只差一个倍数。"),
        follow_up_zh="micro-batch 怎么办？每个都除以整批的个数，不要除以自己的。",
        wrong_zh="“micro-batch 均值的均值就是整批的均值。”",
        code=["losses.py:aggregate:return x.sum()", "losses.py:count_for"],
        tests=["test_losses.py::test_aggregate_modes",
               "test_rollout.py::test_gradient_of_a_split_batch_is_that_of_the_whole"],
        why="a.19, g.19",
        errata=[9, 10],
        numbers=("[Where length is free](lab/length.md), wrong answers end longer than right ones "
                 "by {length/seq-mean/gap} tokens (answers), {length/token-mean/gap} (tokens), "
                 "{length/seq-sum/gap} (constant; <seeds of length>). On the built-in task "
                 "length is not free, and answers end equally long: "
                 "{aggregation/seq-mean/response_length}, "
                 "{aggregation/token-mean/response_length}, "
                 "{aggregation/seq-sum/response_length} tokens (<seeds of aggregation>)."),
        numbers_zh=("在[长度不受限制的任务](lab/length.zh.md)上，结束时错误的回答比正确的长："
                    "{length/seq-mean/gap} 个 token（按回答）、{length/token-mean/gap}（按 token）、"
                    "{length/seq-sum/gap}（常数；<seeds of length>）。内置任务的长度是定下的，结束时都一"
                    "样：{aggregation/seq-mean/response_length}、"
                    "{aggregation/token-mean/response_length}、"
                    "{aggregation/seq-sum/response_length} 个 token（<seeds of aggregation>）。")),
    Question(
        question="What if the sampler's probabilities are not the trainer's?",
        answer=("Another engine, bfloat16, a KV cache or a temperature make the sampled policy "
                "another one than the scored one: a hidden off-policy bias, and a ratio that "
                "isn't 1 at the first update. Score old log-probs with the code that scores the "
                "new ones, at the sampling temperature; if the samplers really differ, weigh "
                "with a (truncated) importance ratio."),
        follow_up=("How do you notice? The mean ratio of the first update, and KL between "
                   "sampler and trainer."),
        wrong="“The temperature matters for sampling only.”",
        question_zh="采样器的概率与训练器不一致怎么办？",
        answer_zh=("推理引擎不同、bfloat16、KV 缓存、温度，都会使采样的策略与打分的不同：这是隐蔽"
                   "的异策略偏差，第一次更新时比率就不是 1。旧的对数概率要用计算新值的同一段代"
                   "码、同一温度来算；两者确实不同时，用（截断的）重要性权重修正。"),
        follow_up_zh="怎么发现？看第一次更新的平均比率，以及采样器与训练器之间的 KL。",
        wrong_zh="“温度只影响采样。”",
        code=["rollout.py:sample:probs = torch.softmax",
              "methods.py:importance_weights"],
        tests=["test_policy_gradient.py::test_whole_answers_weights_are_exact_and_tokens_weights_"
               "are_nearer",
               "test_rollout.py::test_sampled_log_probs_are_the_scored_ones",
               "test_memory.py::test_sampled_log_probs_are_near_the_scored_ones_in_bfloat16"],
        why="c.1",
        errata=[12],
        numbers=("[Right answers](lab/stale.md) after 60 steps: {stale/fresh/accuracy} with fresh "
                 "answers, {stale/bfloat16/accuracy} sampled in bfloat16, "
                 "{stale/4 steps old/accuracy} with weights 4 steps old; with those, "
                 "{stale/4 steps old + the ratio/accuracy} with the sampler's log-probs in the "
                 "ratio, {stale/4 steps old + truncated weights/accuracy} with truncated weights "
                 "(<seeds of stale>)."),
        numbers_zh=("60 步之后的[正确率](lab/stale.zh.md)：用当前权重采样 {stale/fresh/accuracy}，"
                    "bfloat16 采样 {stale/bfloat16/accuracy}，旧 4 步的权重采样 "
                    "{stale/4 steps old/accuracy}；这时把采样器的对数概率放进比率，有 "
                    "{stale/4 steps old + the ratio/accuracy}，用截断的权重，有 "
                    "{stale/4 steps old + truncated weights/accuracy}（<seeds of stale>）。")),
    Question(
        question="What happens at the end of an answer: stop token, length limit?",
        answer=("The stop token is an action: it was chosen, so it is trained. An answer that "
                "was cut off gets no reward, or a fixed low score, since the reward model never "
                "saw one. Everything after the end is masked by *length*, never by comparing ids "
                "with the padding id."),
        follow_up=("What if the stop token isn't trained? Nothing teaches the model to end, and "
                   "answers grow."),
        wrong=("“Mask all tokens equal to pad.” Where pad is the stop token, ending is never "
               "learned."),
        question_zh="回答结尾怎么处理：结束符、长度上限？",
        answer_zh=("结束符也是动作：它是选出来的，所以要训练。被截断的回答没有奖励，或给固定的低"
                   "分，因为奖励模型没见过这种回答。结尾之后按*长度*掩掉，而不是与填充 id 比较。"),
        follow_up_zh="不训练结束符会怎样？没有什么教模型收尾，回答越来越长。",
        wrong_zh="“等于 pad 的都掩掉。”如果 pad 就是结束符，就学不会结束。",
        code=["rollout.py:generate:lengths[rows] += ~finished",
              "support/rl.py:Reward:torch.where(rollout.finished"],
        tests=["test_rollout.py::test_stop_token_is_an_action",
               "test_data.py::test_a_cut_off_answer_is_never_right"],
        why="a.1",
        numbers=("With a limit of 16 tokens {curve/grpo_short/1/finished} of the first answers "
                 "end by themselves, and the reward of step 15 is {curve/grpo_short/15/reward} "
                 "(one seed)."),
        numbers_zh=("上限为 16 个 token 时，第一步有 {curve/grpo_short/1/finished} 的回答自己结"
                    "束，第 15 步的奖励是 {curve/grpo_short/15/reward}（一个种子）。")),
    Question(
        question="What comes next in this field?",
        answer=("Nobody knows; these are open. Rewards where nothing can be checked. Credit for "
                "single steps of very long answers. Agents with tools over hours, and "
                "asynchronous sampling whose data is always a little old. Judges that can't be "
                "fooled, and oversight of answers that people can't judge themselves."),
        follow_up=("Which of these can you study on a laptop? Credit, hacking, old data and "
                   "aggregation: each is a setting here."),
        wrong="A list of product names.",
        question_zh="这个领域接下来会怎样？",
        answer_zh=("没有人知道，以下是尚未解决的问题：无法校验时的奖励；超长回答中单个步骤的功"
                   "劳；使用工具、持续数小时的智能体，以及数据总是略旧的异步采样；骗不了的评委；"
                   "以及对人自己也判断不了的回答的监督。"),
        follow_up_zh=("哪些可以在笔记本上研究？信用分配、奖励作弊、旧数据、平均方式：这里各是一个"
                      "设置。"),
        wrong_zh="罗列产品名。",
        code=["lab/experiments.py:EXPERIMENTS"],
        why="c.10"),
]

SECTIONS = [
    ("The task", "任务", TASK),
    ("Values and policy gradients", "价值与策略梯度", GRADIENTS),
    ("PPO", "PPO", PPO),
    ("KL divergence", "KL 散度", KL),
    ("Preferences", "偏好", PREFERENCES),
    ("Groups instead of a critic", "以组代替价值模型", GROUPS),
    ("Practice", "实践", PRACTICE),
]
QUESTIONS = [question for _, _, questions in SECTIONS for question in questions]
