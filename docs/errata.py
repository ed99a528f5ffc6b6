"""Wrong statements that circulate, with their corrections: `python docs/concepts.py` writes
docs/ERRATA.md and docs/ERRATA.zh.md from this list, with a link to the test of each.
"""
from typing import NamedTuple

from concepts import ROOT, anchor_of, equation_links, line_of, read

PAGES = {"English": ROOT / "docs" / "ERRATA.md", "Chinese": ROOT / "docs" / "ERRATA.zh.md"}
TESTS = "tests/test_errata.py"


class Erratum(NamedTuple):
    """What one reads, what is so, and what the wrong formula gives when it is run; the equations
    of DERIVATIONS.md that say why; the same in Chinese."""
    wrong: str
    right: str
    run: str
    why: str
    wrong_zh: str
    right_zh: str
    run_zh: str


# A \ joins two lines: the page's lines are longer than those of a source file.
INTRO = {"English": """# Wrong statements that circulate

Each of these can be read in articles, answers and code. After each stands what is true, and what \
the wrong formula does when it is run. The
numbers are the tests'; most are from a world of 15 answers, in which every mean can be computed \
exactly, so that there is no noise in
them. An angle is that between a mean gradient and the true gradient of the expected reward: \
0 degrees is right, 90 is useless. Numbers
such as g.21 are equations of [DERIVATIONS.md](DERIVATIONS.md). English | [简体中文](ERRATA.zh.md)
""", "Chinese": """# 流传的错误说法

以下说法都能在文章、回答或代码里见到。每条后面是正确的说法，以及把错误的公式真正跑一遍的结果。\
数字来自测试，大多在只有 15 个回答的小世界里算出，那里所有均值都能精确计算，没有噪声。\
角度是平均梯度与期望奖励的真实梯度之间的夹角：0 度正确，90 度毫无用处。\
g.21 之类的编号是[公式推导](DERIVATIONS.zh.md)里的公式。[English](ERRATA.md) | 简体中文
"""}

GRADIENTS = [
    Erratum(
        "GRPO's loss is 0, so nothing is learned.",
        "At the first update all ratios are 1, and a group's advantages sum to 0: the loss is 0 "
        "for every policy. Only its gradient counts.",
        "the loss is 0.00, its gradient has the length 0.25.", "a.18, g.17",
        "GRPO 的损失是 0，所以什么也没学到。",
        "第一次更新时所有比率都是 1，而一组的优势之和为 0：不论什么策略，损失都是 0。起作用的只是梯度。",
        "损失为 0.00，梯度的长度为 0.25。"),
    Erratum(
        "A falling policy loss shows that training goes well.",
        "Another baseline gives the same mean gradient and another loss. Look at the reward.",
        "two baselines, the same mean gradient: the loss is 3.6 with one, −0.3 with the other.",
        "a.14, a.18",
        "策略损失下降，说明训练顺利。",
        "换一个基线，平均梯度不变，损失却变了。应当看奖励。",
        "两个基线，平均梯度相同，损失却分别是 3.6 和 −0.3。"),
    Erratum(
        "A baseline must not depend on the action, or it can't reduce the variance.",
        "The reason is bias, not variance: with the action in it the variance may fall further, "
        "but the mean gradient is another one.",
        "with Q(s, a) for V(s) the variance is 0.41 of what it was, and the mean gradient is 0.",
        "a.13",
        "基线不能依赖动作，否则方差降不下来。",
        "不能依赖动作，是为了无偏。依赖动作的基线可以使方差更小，但平均梯度也变了。",
        "用 Q(s, a) 代替 V(s)，方差变为原来的 0.41，而平均梯度为 0。"),
    Erratum(
        "Any baseline reduces the variance.",
        "A bad one adds to it. It never changes the mean.",
        "V with 5 added has 25 times the variance of V.", "a.14, a.15",
        "任何基线都能减小方差。",
        "不好的基线会增大方差，只是不改变均值。",
        "给 V 加上 5，方差是原来的 25 倍。"),
    Erratum(
        "Weighing every token with the whole answer's reward is biased; only reward-to-go is "
        "right.",
        "Both have the same mean: the past has expectation 0. Reward-to-go usually has less noise. "
        "With one reward at the end they are the same.",
        "equal means; the variance of reward-to-go is 0.56 of the other's.", "a.11, a.12",
        "用整个回答的奖励给每个 token 加权是有偏的，只有从当前往后的回报才对。",
        "两者均值相同：过去的奖励期望为 0。后者的噪声通常更小。如果只在末尾有一个奖励，两者相同。",
        "均值相等；只计此后的奖励时，方差是用整个奖励时的 0.56。"),
    Erratum(
        "The group's mean contains the answer's own reward, so GRPO is biased (towards negative "
        "advantages).",
        "A group's advantages sum to 0, and the mean gradient is shorter by (G − 1) / G, a "
        "constant. "
        "The biases of GRPO come from the length and the standard deviation.",
        "the mean gradient of groups of two is 0 degrees off.", "g.17, g.18",
        "组内均值包含回答自己的奖励，所以 GRPO 有偏（偏向负优势）。",
        "一组的优势之和为 0，平均梯度只缩短到 (G − 1) / G，是常数倍。GRPO 的偏差来自长度和标准差。",
        "每组两个回答，平均梯度偏离 0 度。"),
    Erratum(
        "Dividing by the group's standard deviation only changes the learning rate.",
        "Each prompt gets another learning rate, which depends on its samples. What is "
        "maximised is "
        "another quantity.",
        "the mean gradient of groups of two is 34 degrees off.", "g.21, g.22",
        "除以组内标准差只是改变学习率。",
        "它给每个提示词不同的、依赖样本的学习率。最大化的是另一个量。",
        "每组两个回答，平均梯度偏离 34 度。"),
    Erratum(
        "GRPO compares groups with each other.",
        "It compares answers to the same prompt. A number added to one group's rewards changes "
        "nothing.",
        "100 more for every answer of one group, and all advantages are the same.", "g.17",
        "GRPO 在组与组之间比较。",
        "它比较的是同一提示词的各个回答。给一组的奖励都加上同一个数，什么也不变。",
        "给一组的每个回答加 100，所有优势不变。"),
    Erratum(
        "Averaging over each answer first is only a matter of taste.",
        "It is the gradient of the reward per token: a right answer gains by being short, a wrong "
        "one loses less by being long.",
        "the mean gradient is 70 degrees off.", "g.19",
        "先对每个回答求平均，只是习惯问题。",
        "这样得到的是“每 token 奖励”的梯度：正确的回答越短越得益，错误的回答越长损失越少。",
        "平均梯度偏离 70 度。"),
    Erratum(
        "The mean of the micro-batches' means is the batch's mean.",
        "Only if all micro-batches hold the same number of tokens. Divide each by the whole "
        "batch's "
        "number instead.",
        "the mean of the batch is 0.80, the mean of its two means 0.50.", "a.19",
        "各 micro-batch 均值的均值就是整个批次的均值。",
        "只有各 micro-batch 的 token 数相同时才是。应当都除以整个批次的 token 数。",
        "批次的均值是 0.80，两个均值的均值是 0.50。"),
    Erratum(
        "∇J ≈ Σ_i R_i ∇log π(y_i), over the N samples.",
        "A mean has its 1/N. Without it the gradient grows with the batch, and a learning rate or "
        "a clip of the norm that fits one size fits no other.",
        "each answer twice, and the sum's gradient is 2.0 times as long, the mean's 1.0 times.",
        "a.16, a.18",
        "∇J ≈ Σ_i R_i ∇log π(y_i)，对 N 个样本求和。",
        "均值要除以 N。漏掉 1/N，梯度就随批次变大，适合一种批次大小的学习率和范数裁剪，换一种大小就不适合了。",
        "每个回答重复一次：和的梯度变为 2.0 倍长，均值的是 1.0 倍。"),
    Erratum(
        "The temperature matters for sampling only.",
        "The policy that is trained is the one that sampled. Its log-probs are those at its "
        "temperature.",
        "sampled at half the temperature, scored at the whole: the mean gradient is 35 degrees "
        "off.",
        "a.9, c.1",
        "温度只影响采样。",
        "训练的策略就是采样的策略，它的对数概率要用采样时的温度计算。",
        "以一半的温度采样，以原温度计算：平均梯度偏离 35 度。"),
]

PPO = [
    Erratum(
        "The clip keeps the ratio within 1 ± ε.",
        "It only takes the gradient away. Momentum and shared parameters carry the ratio on. It is "
        "no constraint.",
        "with ε = 0.2 and Adam, the ratio of one sample ends at 2.6.", "c.15",
        "裁剪把比率限制在 1 ± ε 之内。",
        "它只是去掉梯度。动量和共享参数会使比率继续变化。它不是约束。",
        "ε = 0.2，用 Adam，一个样本的比率最终到了 2.6。"),
    Erratum(
        "The clip bounds the loss.",
        "Not for a bad action that became likely: there the loss is the unclipped one, and grows "
        "with the ratio. This is why some use a second clip (dual clip).",
        "with the ratio 10 and the advantage −1 the loss is 10.0, and the clipped share 0.", "c.14",
        "裁剪使损失有界。",
        "对概率变大的坏动作不是：那里用的是未裁剪的损失，随比率增大。所以有人再加一道裁剪（dual clip）。",
        "比率为 10、优势为 −1 时，损失为 10.0，被裁剪的比例为 0。"),
    Erratum(
        "PPO's objective is clip(ρ) A; the min is decoration.",
        "Without the min, a ratio that went the wrong way has no gradient either, and never "
        "returns.",
        "a good action at half its probability has the gradient −0.5 with the min and 0.0 without.",
        "c.14, c.15",
        "PPO 的目标是 clip(ρ) A，min 只是装饰。",
        "没有 min，走错方向的比率也没有梯度，再也回不来。",
        "好动作的概率减半时，有 min 时梯度为 −0.5，没有时为 0.0。"),
    Erratum(
        "For a negative advantage the min becomes a max.",
        "The min stands outside of the products, for either sign. It is the *ratio* that is then "
        "bounded from below: A max(ρ, 1 − ε). With a max outside, a bad action that became likely "
        "is never pushed back. While all ratios are 1 nobody notices.",
        "a bad action at twice its probability has the gradient 2.0 with the min and 0.0 with the "
        "max.", "c.14",
        "优势为负时，min 要换成 max。",
        "不论正负，min 都在乘积之外。此时是*比率*有下界：A max(ρ, 1 − ε)。若在外面取 max，概率变大的坏动作就再也不会被压回去。"
        "只要所有比率都是 1，就没人发现。",
        "坏动作的概率加倍时，用 min 梯度为 2.0，用 max 为 0.0。"),
    Erratum(
        "The ratios make PPO exact for samples of an older policy.",
        "Exact is the product over the whole answer. One ratio per token leaves the older policy's "
        "prefixes in place; the error is small only while the policies are close.",
        "with an unrelated older policy and no clip, the mean gradient is 68 degrees off.",
        "c.2, c.7, c.10",
        "有了比率，PPO 用旧策略的样本也是精确的。",
        "精确的是整个回答的比率之积。每个 token 只用自己的比率，前缀仍然是旧策略的；只有两个策略接近时误差才小。",
        "旧策略与新策略无关、不裁剪时，平均梯度偏离 68 度。"),
    Erratum(
        "GRPO has one ratio for the whole answer.",
        "It has one advantage for the answer, and a ratio for each token. One ratio for the answer "
        "is GSPO.",
        "for the same log-probs, the clipped share is 0.33 in GRPO and 0.00 in GSPO.", "g.16",
        "GRPO 对整个回答用一个比率。",
        "整个回答共用的是优势，比率是每个 token 一个。整个回答一个比率的是 GSPO。",
        "同样的对数概率，GRPO 裁剪的比例是 0.33，GSPO 是 0.00。"),
    Erratum(
        "PPO needs preference pairs.",
        "It needs a number for each answer. Pairs are one way to learn a model that gives it; a "
        "program that checks answers is another.",
        "with 1 for some answers and 0 for the others, PPO's updates raise the probability of the "
        "right ones from 0.09 to 1.00.", "a.2, c.14",
        "PPO 需要偏好对。",
        "它需要每个回答的一个分数。从偏好对学出奖励模型是一种办法，用程序检查答案是另一种。",
        "一些回答给 1，其余给 0，PPO 的更新把正确回答的概率从 0.09 提高到 1.00。"),
    Erratum(
        "Without the critic, two models are left.",
        "Three are: actor, reference and reward model. Two are left if a program checks the "
        "answers.",
        "a step of `train_grpo.py` uses 3 models with a reward model, 2 with a program.", "g.1",
        "去掉价值模型，只剩两个模型。",
        "还剩三个：策略模型、参考模型、奖励模型。由程序判断对错，才只剩两个。",
        "`train_grpo.py` 的一步，用奖励模型时有 3 个模型，用程序判断时有 2 个。"),
]

VALUES = [
    Erratum(
        "TD has high variance, Monte Carlo high bias.",
        "The reverse. TD looks one step ahead and trusts the critic; Monte Carlo waits for all "
        "later noise and needs no critic.",
        "λ = 0 has 0.59 of the variance of λ = 1; with a wrong critic its mean gradient is 50 "
        "degrees off, that of λ = 1 is 0 off.", "d.12, d.13",
        "TD 方差大，蒙特卡洛偏差大。",
        "恰好相反。TD 只看一步，其余相信价值模型；蒙特卡洛等到后面的噪声全部发生，不需要价值模型。",
        "λ = 0 的方差是 λ = 1 的 0.59；价值模型不准时，它的平均梯度偏离 50 度，λ = 1 偏离 0 度。"),
    Erratum(
        "With λ = 1, GAE has no bias, whatever the critic.",
        "The mean of the plain policy gradient is then right. The advantages themselves are off by "
        "the critic's error, and a clip or a division that depends on them lets it back in.",
        "with a critic that is 5 too high and a policy that has moved, the mean of PPO's clipped "
        "gradient turns by 11 degrees.", "d.11, d.12",
        "λ = 1 时，不论价值模型如何，GAE 都没有偏差。",
        "此时正确的是普通策略梯度的均值。优势本身仍带有价值模型的误差，裁剪或依赖优势的除法会让它重新起作用。",
        "价值模型高估 5，且策略已经移动，PPO 裁剪后的平均梯度转了 11 度。"),
    Erratum(
        "The critic is unbiased, since it learns from real rewards.",
        "With λ < 1 it learns from itself as well: what it says of later states is in its targets. "
        "Only λ = 1 has targets with the right mean from the start.",
        "from a critic of 0, the mean target of the first state is 0.28 with λ = 0, 0.53 with "
        "λ = ½, 0.98 with λ = 1; its value is 0.98.", "d.14, e.4",
        "价值模型从真实奖励中学习，所以无偏。",
        "λ < 1 时它也从自己学：目标里含有它对后面状态的估计。只有 λ = 1 的目标一开始均值就正确。",
        "价值模型全为 0 时，首个状态的平均目标：λ = 0 时 0.28，λ = ½ 时 0.53，λ = 1 时 0.98；真实价值是 0.98。"),
    Erratum(
        "A good critic has a loss near 0 and an explained variance near 1; V is the return.",
        "V is the *mean* return. A single return is V and noise, which no critic can know.",
        "the true values have the loss 0.52 and the explained variance 0.24.", "e.1, e.10",
        "好的价值模型损失接近 0，解释方差接近 1；V 就是回报。",
        "V 是*平均*回报。单个回报是 V 加噪声，任何价值模型都无法预知噪声。",
        "真实价值的损失是 0.52，解释方差是 0.24。"),
    Erratum(
        "The target may as well be differentiated: the squared TD error is then minimised "
        "properly.",
        "That minimum trades the truth for next states that look alike. The target is held fixed.",
        "at that minimum, a value is off by up to 1.15.", "e.5",
        "不妨对目标也求导，这样 TD 误差的平方才真正最小。",
        "那个最小值为了让各个下一状态看起来相近，牺牲了准确性。目标应当固定。",
        "在那个最小值处，价值的误差最大到 1.15。"),
]

KL = [
    Erratum(
        "k1 in the loss penalises the KL divergence.",
        "Its gradient is that of the log-prob, with mean 0. In the reward it is right.",
        "at the end of training the KL is 2.2 with k1 in the loss, 2.2 without any penalty, and "
        "0.04 with k2.", "f.12, f.15",
        "把 k1 放进损失就能惩罚 KL 散度。",
        "它的梯度就是对数概率的梯度，均值为 0。放进奖励才对。",
        "训练结束时的 KL：k1 放进损失是 2.2，不加惩罚是 2.2，k2 是 0.04。"),
    Erratum(
        "GRPO's k3 in the loss has the gradient of KL(π‖π_ref), since its mean is that.",
        "The mean of its gradient is that of the other direction, KL(π_ref‖π). The value and the "
        "gradient of an estimate are two questions.",
        "far from the reference, the two gradients have the cosine 0.64.", "f.10, f.14",
        "GRPO 损失里的 k3 均值是 KL(π‖π_ref)，所以梯度也是它的。",
        "它的平均梯度属于另一个方向 KL(π_ref‖π)。估计量的值和梯度是两个问题。",
        "离参考策略较远时，两个梯度的余弦是 0.64。"),
    Erratum(
        "An estimate of the KL is never negative, as the KL isn't; a negative one is a bug.",
        "k1 is negative wherever a token is less likely than under the reference. k2 and k3 never "
        "are. A mean of k1 that stays negative over many samples is a bug: see the next.",
        "the KL is 0.84, and k1 is negative with probability 0.21.", "f.7, f.8",
        "KL 不会是负的，所以它的估计也不会；出现负值就是程序有错。",
        "只要 token 的概率比参考策略下小，k1 就是负的；k2 和 k3 永远不是。如果大量样本的 k1 均值一直为负，那才是程序有错：见下一条。",
        "KL 为 0.84 时，k1 为负的概率是 0.21。"),
    Erratum(
        "The KL penalty is the mean of log π − log π_ref over the SFT model's answers.",
        "KL(π‖π_ref) is a mean under π. Under the reference the same difference has the mean "
        "−KL(π_ref‖π), which is negative and without bound.",
        "the mean under the reference is −1.06.", "f.2, f.7",
        "KL 惩罚就是 log π − log π_ref 对 SFT 模型的回答求平均。",
        "KL(π‖π_ref) 是 π 下的均值。在参考策略下，同一个差的均值是 −KL(π_ref‖π)，它是负的，而且没有下界。",
        "在参考策略下的均值是 −1.06。"),
    Erratum(
        "k1, k2 and k3 are all unbiased estimates of the KL.",
        "k1 and k3 are. k2 is off by a sixth of the third moment, and more.",
        "the mean of k2 is 1.03, the KL 0.84.", "f.9",
        "k1、k2、k3 都是 KL 的无偏估计。",
        "k1 和 k3 是。k2 首先差了三阶矩的六分之一。",
        "k2 的均值是 1.03，而 KL 是 0.84。"),
]

PREFERENCES = [
    Erratum(
        "DPO needs no reference.",
        "It needs no reward model. Without the reference's log-probs it goes to exp(r / β) alone, "
        "as if all texts were equally likely at the start.",
        "DPO ends at a distance (total variation) of 0.00 from the optimum, and of 0.35 without "
        "its reference.", "g.6, g.11",
        "DPO 不需要参考模型。",
        "它不需要的是奖励模型。去掉参考模型的对数概率，就会收敛到单独的 exp(r / β)，好像一开始所有文本的概率都相同。",
        "DPO 的终点与最优策略的全变差距离是 0.00，去掉参考模型后是 0.35。"),
    Erratum(
        "DPO makes the chosen answer more likely.",
        "It makes the difference larger. Where parameters are shared, the chosen answer may fall, "
        "if the rejected one falls faster.",
        "five answers and two shared parameters: a step lowers the chosen one in 2 of the twenty "
        "pairs.", "g.15",
        "DPO 会提高被选中的回答的概率。",
        "它扩大的是差值。参数共享时，被选中的回答概率也可能下降，只要被拒绝的下降得更快。",
        "五个回答、两个共享参数：二十对中有 2 对，走一步后被选中的回答概率下降。"),
    Erratum(
        "DPO's loss is log σ(h) (or: −log σ of rejected minus chosen).",
        "It is −log σ of chosen minus rejected. Turned around, it learns the rejected answer, "
        "without any warning but the accuracy.",
        "the chosen one of two answers ends at 1.00 with the right sign, at 0.00 with the other.",
        "g.9, g.12",
        "DPO 的损失是 log σ(h)（或者：−log σ 里是被拒绝的减被选中的）。",
        "应当是 −log σ，里面是被选中的减被拒绝的。反过来就会学成被拒绝的回答，除了准确率，没有任何征兆。",
        "两个回答中被选中的那个，符号正确时概率最终为 1.00，反过来是 0.00。"),
    Erratum(
        "A reward model's score of 2 is a good answer.",
        "Pairs fix differences within a prompt only. A constant may be added for each prompt.",
        "another constant for each prompt, and the loss is the same.", "g.8, g.10",
        "奖励模型给 2 分，就是好回答。",
        "偏好对只确定同一提示词内的差值。每个提示词都可以加上一个常数。",
        "给每个提示词加不同的常数，损失不变。"),
    Erratum(
        "A larger β makes DPO move further.",
        "Its first steps are larger, since β stands before the gradient. It ends nearer to the "
        "reference: β is the price of distance.",
        "β ten times as large: the first gradient is 10.0 times as long, and the best policy's "
        "distance from the reference is 0.22 instead of 0.85.", "g.3, g.12",
        "β 越大，DPO 走得越远。",
        "最初几步确实更大，因为梯度前有 β；但终点离参考模型更近：β 是距离的价格。",
        "β 增大到十倍：最初的梯度是 10.0 倍，而最优策略与参考模型的距离从 0.85 降到 0.22。"),
]

EVALUATION = [
    Erratum(
        "pass@k is 1 − (1 − c/n)^k, with c right answers among n.",
        "That formula draws with replacement from the same n answers, and is too low on average. "
        "The unbiased one is 1 − C(n − c, k) / C(n, k).",
        "two right of eight, k = four: 0.68 instead of 0.79. Where the truth is 0.68, the mean of "
        "the unbiased formula is 0.68, that of the other 0.61.", "",
        "n 个回答中有 c 个正确，pass@k 就是 1 − (1 − c/n)^k。",
        "这个公式是从同样的 n 个回答里有放回地抽，平均偏低。无偏的是 1 − C(n − c, k) / C(n, k)。",
        "八个中两个正确，取四个：算成 0.68，应为 0.79。真实值为 0.68 时，无偏公式的均值是 0.68，另一个是 0.61。"),
]

SECTIONS = [
    ("Policy gradients", "策略梯度", GRADIENTS),
    ("PPO", "PPO", PPO),
    ("Values", "价值", VALUES),
    ("KL divergence", "KL 散度", KL),
    ("Preferences", "偏好", PREFERENCES),
    ("Evaluation", "评估", EVALUATION),
]
ERRATA = [erratum for _, _, errata in SECTIONS for erratum in errata]


def link(number: int, label: str, language: str) -> str:
    """A link to the section that holds this number."""
    [titles] = [titles for *titles, errata in SECTIONS if ERRATA[number - 1] in errata]
    english, chinese = titles
    file, title = ("ERRATA.md", english) if language == "English" else ("ERRATA.zh.md", chinese)
    return f"[{label}]({file}#{anchor_of(title)})"


def tests() -> dict[int, str]:
    """The tests by number, which are as many as the errata. ValueError if not."""
    found = {int(name.split("_")[1]): name for name in read(TESTS)[1]
             if name.startswith("test_") and name.split("_")[1].isdigit()}
    if sorted(found) != list(range(1, len(ERRATA) + 1)):
        raise ValueError(f"{TESTS}: found the numbers {sorted(found)}, "
                         f"expected 1 to {len(ERRATA)}")
    return found


def entry(number: int, erratum: Erratum, language: str) -> str:
    test = f"../{TESTS}#L{line_of(TESTS, tests()[number])}"
    links = equation_links(erratum.why, language)
    if language == "English":
        why = f" Why: {', '.join(links)}." if links else ""
        return (f"{number}. **“{erratum.wrong}”** {erratum.right} *Run:* {erratum.run}{why} "
                f"[Test]({test})\n")
    why = f"理由：{'、'.join(links)}。" if links else ""
    return (f"{number}. **“{erratum.wrong_zh}”** {erratum.right_zh}*实测*：{erratum.run_zh}{why}"
            f"[测试]({test})\n")


def page(language: str) -> str:
    parts, number = [INTRO[language]], 0
    for english, chinese, errata in SECTIONS:
        parts.append(f"\n## {english if language == 'English' else chinese}\n\n")
        for erratum in errata:
            number += 1
            parts.append(entry(number, erratum, language))
    return "".join(parts)


def write() -> None:
    for language, file in PAGES.items():
        file.write_text(page(language), encoding="utf-8")
