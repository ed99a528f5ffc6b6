"""Where every topic is found: `python docs/concepts.py` writes docs/INDEX.md and its Chinese twin
from this list, with links to the rows of CONCEPTS.md and the questions of INTERVIEW.md.
"""
from typing import NamedTuple

from concepts import ROOT, ROWS, anchor, name_of
from errata import link as erratum_link
from questions import QUESTIONS

PAGES = {"English": ROOT / "docs" / "INDEX.md", "Chinese": ROOT / "docs" / "INDEX.zh.md"}


class Topic(NamedTuple):
    """rows: names in concept_rows.py. question: a part of one title in questions.py. elsewhere: a
    link, if this repository does not do it. erratum: a number of ERRATA.md. play: a section of
    play.html. traced: one batch with its real numbers shows it."""
    english: str
    chinese: str
    rows: list[str] = []
    question: str = ""
    elsewhere: str = ""
    erratum: int = 0
    play: str = ""
    traced: bool = False


INTRO = {"English": """# Index

Every topic that is asked about, with the rows of [CONCEPTS.md](CONCEPTS.md) that hold its \
equation, its reason, its line and its test, and
the [interview question](INTERVIEW.md) that it answers. \
What this repository does not do says *not here*, and where to go. Also:
[derivations](DERIVATIONS.md), [wrong statements](ERRATA.md), [reading curves](READING_CURVES.md), \
[mistakes in code](MISTAKES.md),
[one batch with its real numbers](trace.html), [the lab](lab/README.md). \
English | [简体中文](INDEX.zh.md)
""", "Chinese": """# 索引

常被问到的每个主题，对应到[概念](CONCEPTS.zh.md)里的行（公式、理由、代码行、测试），以及\
[面试题](INTERVIEW.zh.md)。本仓库没有做的标“这里没有”，并给出该去哪里找。另见：\
[公式推导](DERIVATIONS.zh.md)、[流传的错误说法](ERRATA.zh.md)、[读曲线](READING_CURVES.zh.md)、\
[代码里常犯的错误](MISTAKES.zh.md)、[一个批次的真实数字](trace.html)、\
[实验室](lab/README.zh-CN.md)。[English](INDEX.md) | 简体中文
"""}
TOPICS = [
    ("Text as a decision process", "文本作为决策过程", [
        Topic("state, action, policy, trajectory", "状态、动作、策略、轨迹",
              ["state", "action", "policy", "trajectory"], "decision process"),
        Topic("an episode that ends with the stop token", "以结束符结束的回合",
              ["stop token", "truncation"], "end of an answer"),
        Topic("the reward at the last token", "最后一个 token 处的奖励",
              ["outcome rewards", "verifiable rewards"], "One reward"),
        Topic("the tuple (S, A, P, R, γ), with a transition that is certain",
              "五元组 (S, A, P, R, γ)，转移是确定的",
              ["decision process"], "decision process"),
        Topic("an action: a token or a whole answer", "动作是 token 还是整个回答",
              ["token or answer"], "Is an action"),
        Topic("why γ = 1", "为什么 γ = 1", ["discount"], "Why is γ"),
        Topic("teacher forcing against own samples", "教师强制与自己采样",
              ["teacher forcing"], "teacher forcing"),
        Topic("what is not Markov; partial observation", "什么不满足马尔可夫性；部分可观测",
              ["Markov property"], "Is text Markov"),
        Topic("the prefix as the history, attention as its memory", "前缀是历史，注意力是记忆",
              ["Markov property", "KV cache"], "Is text Markov"),
    ]),
    ("Values", "价值", [
        Topic("V, the value of a state", "状态价值 V", ["V", "return"], "a policy and a value"),
        Topic("Monte Carlo against temporal difference", "蒙特卡洛与时序差分",
              ["Monte Carlo", "TD"], "What does λ"),
        Topic("bias and variance of λ", "λ 的偏差与方差", ["bias and variance"], "What does λ",
              play="lambda"),
        Topic("Q with an example: Paris and London", "Q 的例子：巴黎与伦敦",
              ["Q"], "a policy and a value"),
        Topic("V as the mean of Q, the advantage with mean 0", "V 是 Q 的均值，优势的均值为 0",
              ["V", "advantage"], "the advantage"),
        Topic("Bellman's expectation equation, in steps", "贝尔曼期望方程，逐步推导",
              ["Bellman equation"], "a policy and a value"),
        Topic("why there is no Q network", "为什么没有 Q 网络",
              ["Q", "Q-learning and SARSA"], "Q network"),
        Topic("the critic as a predictor, and its semi-gradient", "价值模型是预测器；半梯度",
              ["semi-gradient", "value loss"], "critic regresses"),
        Topic("why regression on noisy returns finds the mean", "为什么拟合带噪声的回报能得到均值",
              ["why a critic learns the mean"], "critic regresses"),
        Topic("Bellman's optimality equation", "贝尔曼最优方程",
              ["Bellman optimality equation"], "Q network"),
        Topic("the soft optimality equation, solved by π*", "软最优方程，解为 π*",
              ["soft Bellman equation", "optimal policy π*"], "Derive DPO"),
        Topic("the matrix form, and why it can't be solved at this size", "矩阵形式，以及为什么规模大了解不动",
              ["matrix form of Bellman's equation"], ""),
        Topic("value iteration and policy iteration against sampling", "价值迭代、策略迭代与采样",
              ["dynamic programming"], "Q network"),
        Topic("Q-learning and SARSA, and why they are not used", "Q-learning 与 SARSA，以及为什么不用",
              ["Q-learning and SARSA"], "Q network"),
        Topic("exploration: ε-greedy, temperature, groups, entropy, a higher clip",
              "探索：ε-贪心、温度、分组、熵、提高裁剪上界",
              ["exploration", "temperature", "entropy", "DAPO"], "explore"),
    ]),
    ("Policy gradients", "策略梯度", [
        Topic("a baseline, and why it adds no bias", "基线，为什么没有偏差",
              ["baseline"], "baseline not bias"),
        Topic("the ratio, per token and per answer", "比率：逐 token 与整个回答",
              ["importance ratio", "GSPO"], "importance ratio"),
        Topic("the gradient from N samples", "用 N 个样本估计梯度",
              ["samples in place of the expectation"], "Derive the policy"),
        Topic("reward-to-go", "未来回报", ["reward-to-go"], "Derive the policy"),
        Topic("the surrogate loss: its name, its sign, its value", "代理损失：名称、符号、数值",
              ["surrogate loss"], "loss is 0"),
        Topic("importance sampling, to the mean of ρ A under old samples", "重要性采样，到旧样本下的 E[ρ A]",
              ["importance ratio", "off-policy"], "importance ratio"),
        Topic("why the plain gradient is unstable, and what follows from it",
              "普通策略梯度为什么不稳定，由此引出什么",
              ["plain gradient"], "TRPO"),
        Topic("the gradient of J by the log-derivative", "用对数导数求 ∇J",
              ["log-derivative trick", "policy gradient theorem"], "Derive the policy"),
        Topic("the probability of a trajectory, and why the environment vanishes",
              "轨迹的概率，环境项为什么消失",
              ["environment's terms vanish", "trajectory"], "Derive the policy"),
        Topic("credit assignment", "信用分配", ["credit assignment"], "One reward", traced=True),
        Topic("a small step in parameters against one in policies", "参数的小步与策略的小步",
              ["natural gradient"], "TRPO"),
        Topic("plain gradient, TRPO and PPO compared", "普通策略梯度、TRPO、PPO 对比",
              ["plain gradient"], "TRPO"),
    ]),
    ("PPO", "PPO", [
        Topic("the clip with its four cases", "裁剪的四种情况", ["clip", "dual clip"], "four cases",
              play="clip", traced=True),
        Topic("value clipping", "价值裁剪", ["value clipping"], "keeps a critic"),
        Topic("warm-up of the critic", "价值模型预热", ["critic warm-up"], "keeps a critic"),
        Topic("explained variance", "解释方差", ["explained variance"], "critic regresses"),
        Topic("whitening of advantages, and not of targets", "白化优势，而不是目标",
              ["whitening", "value loss"], "keeps a critic"),
        Topic("TRPO: bound, constraint, natural gradient, and why it is hard",
              "TRPO：界、约束、自然梯度，为什么难做",
              ["trust region", "natural gradient"], "TRPO"),
        Topic("actor and critic, one step after the other", "actor-critic 的先后步骤",
              ["actor-critic", "order of work in a step"], "Classical RLHF"),
        Topic("the critic's squared error is A² at the first update", "第一次更新时，价值模型的平方误差就是 A²",
              ["A2C", "value loss"], "A2C"),
        Topic("the four models: who reads what, who learns", "四个模型：各读什么，谁在学习",
              ["four models of PPO"], "four models"),
        Topic("why the reward model is frozen and the critic is not", "为什么奖励模型冻结而价值模型不冻结",
              ["four models of PPO"], "four models"),
        Topic("the order of work in a step", "一步之内的工作顺序",
              ["order of work in a step"], "Classical RLHF"),
        Topic("the cost in memory", "显存开销", ["memory"], "fills the memory"),
        Topic("sums over k steps", "k 步估计", ["k-step sums"], "What is GAE"),
        Topic("GAE as their weighted mean", "GAE 是它们的加权平均", ["GAE"], "What is GAE",
              play="lambda", traced=True),
        Topic("how a critic spreads the last reward", "价值模型怎样分摊最后的奖励",
              ["credit assignment"], "One reward", traced=True),
    ]),
    ("KL divergence", "KL 散度", [
        Topic("k1, k2 and k3 as values", "k1、k2、k3 的数值",
              ["KL estimators", "k1", "k2", "k3"], "k1, k2", play="kl", traced=True),
        Topic("k1, k2 and k3 as losses, and their gradients", "k1、k2、k3 作损失及其梯度",
              ["gradients of the KL estimators"], "k1, k2", play="kl"),
        Topic("KL in the reward or in the loss", "KL 放进奖励还是放进损失",
              ["KL in the reward or in the loss"], "in the reward or"),
        Topic("β = 0", "β = 0", ["KL-regularised objective", "reward hacking"], "KL penalty do"),
        Topic("a reference that moves", "会动的参考模型", ["reference model"], "reference move"),
        Topic("definition and directions, with numbers", "定义与方向，带数字例子",
              ["forward and reverse KL", "exact KL"], "Forward or reverse"),
        Topic("the clip against the KL penalty, and why both", "裁剪与 KL 惩罚，为什么都要",
              ["clip and KL penalty"], "have both"),
        Topic("a coefficient that adapts", "自适应系数", ["adaptive KL coefficient"], ""),
    ]),
    ("Preferences", "偏好", [
        Topic("DPO's signs", "DPO 的符号", ["implicit reward"], "Derive DPO"),
        Topic("what becomes of the chosen answer's log-prob", "被选中的回答的对数概率会怎样",
              ["NLL beside DPO"], "log-probs of chosen"),
        Topic("learning without pairs: KTO", "不要成对数据：KTO", ["KTO"], "What else"),
        Topic("IPO, SimPO, ORPO", "IPO、SimPO、ORPO", ["IPO", "SimPO", "ORPO"], "What else"),
        Topic("Bradley-Terry and its likelihood", "Bradley-Terry 及其似然",
              ["Bradley-Terry", "reward model"], "reward model trained"),
        Topic("the RLHF objective, term by term", "RLHF 目标，逐项解释",
              ["KL-regularised objective"], "KL penalty do"),
        Topic("the implicit reward with its Z(x)", "隐式奖励与 Z(x)",
              ["implicit reward", "Z cancels"], "Derive DPO"),
        Topic("π* derived from the objective", "由目标推导 π*", ["optimal policy π*"], "Derive DPO",
              play="beta"),
        Topic("how Z cancels", "Z 怎样抵消", ["Z cancels"], "Derive DPO"),
        Topic("DPO's gradient and its weight σ(−h)", "DPO 的梯度及权重 σ(−h)",
              ["gradient of DPO"], "DPO's gradient"),
        Topic("DPO and contrastive learning", "DPO 与对比学习",
              ["DPO and contrastive learning"], "contrastive"),
    ]),
    ("Groups", "组", [
        Topic("the group's mean as a baseline", "组均值作基线", ["group baseline"], "GRPO's idea",
              play="group"),
        Topic("group size", "组大小", ["group baseline", "exploration"], "group size"),
        Topic("groups without a signal", "无信号的组", ["groups without signal"], "samples are poor",
              play="group"),
        Topic("length bias", "长度偏差", ["aggregation", "Dr. GRPO"], "biases has GRPO",
              traced=True),
        Topic("ReMax and RLOO", "ReMax 与 RLOO", ["ReMax", "RLOO"], "RLOO, ReMax", play="group"),
        Topic("GRPO's whole objective", "GRPO 的完整目标", ["GRPO"], "GRPO's idea"),
        Topic("REINFORCE++: rewards with the KL to come", "REINFORCE++：奖励含后续的 KL",
              ["REINFORCE++"], "RLOO, ReMax"),
        Topic("why GSPO takes one ratio", "GSPO 为什么只用一个比率", ["GSPO"], "GSPO"),
        Topic("variants of the clip", "裁剪的各种变体", ["DAPO", "CISPO", "dual clip"], "DAPO change"),
        Topic("remedies for entropy collapse", "熵坍缩的对策",
              ["entropy collapse"], "entropy collapse"),
        Topic("a sampler that is not the policy", "采样器与策略不一致",
              ["sampler that is not the policy"], "sampler's probabilities"),
        Topic("GRPO against DPO", "GRPO 与 DPO 的对比", ["GRPO against DPO"], "GRPO's idea"),
    ]),
    ("Practice", "实践", [
        Topic("reward hacking", "奖励作弊（reward hacking）", ["reward hacking"], "reward hacking"),
        Topic("reading curves", "读曲线", ["explained variance", "entropy"], "reward falls"),
        Topic("chat templates", "对话模板", ["chat template"], ""),
        Topic("evaluation", "评估", ["evaluation", "pass@k"], "evaluated"),
        Topic("several turns, tools", "多轮与工具", ["environment", "mask"], "several turns"),
        Topic("why SFT is not enough", "为什么只做 SFT 不够", ["SFT"], "Why is SFT"),
        Topic("remedies for hacking beyond KL", "KL 以外的作弊对策",
              ["remedies for reward hacking"], "reward hacking"),
        Topic("ensembles of reward models", "奖励模型集成",
              ["remedies for reward hacking"], ""),
        Topic("a fresh reward model in every round, and people in the loop", "每轮重新训练奖励模型，由人参与",
              [], "", "[Bai et al. 2022](https://arxiv.org/abs/2204.05862)"),
        Topic("the alignment tax", "对齐税", ["alignment tax"], "alignment tax"),
        Topic("mixing in pretraining text (PPO-ptx)", "混入预训练文本（PPO-ptx）",
              ["alignment tax"], "alignment tax"),
        Topic("constitutional AI", "宪法式 AI",
              [], "What else", "[Bai et al. 2022](https://arxiv.org/abs/2212.08073)"),
        Topic("feedback from AI (RLAIF)", "AI 反馈（RLAIF）",
              [], "What else", "[Lee et al. 2023](https://arxiv.org/abs/2309.00267)"),
        Topic("retrieval, a means against invented facts and not alignment", "检索：用来减少编造，不是对齐",
              [], "", "[Lewis et al. 2020](https://arxiv.org/abs/2005.11401)"),
        Topic("process reward models", "过程奖励模型",
              ["process rewards"], "",
              "[Lightman et al. 2023](https://arxiv.org/abs/2305.20050)"),
        Topic("blind comparisons by people", "人工盲测",
              [], "evaluated", "[Chatbot Arena](https://arxiv.org/abs/2403.04132)"),
        Topic("models as judges", "用模型当评委",
              [], "evaluated", "[Zheng et al. 2023](https://arxiv.org/abs/2306.05685)"),
        Topic("red teams", "红队测试",
              [], "evaluated", "[Perez et al. 2022](https://arxiv.org/abs/2202.03286)"),
        Topic("a natural-gradient step in code (TRPO)", "自然梯度的代码（TRPO）",
              ["trust region"], "TRPO",
              "[Schulman et al. 2015](https://arxiv.org/abs/1502.05477)"),
        Topic("servers for sampling, sharded models, asynchronous rollouts",
              "采样服务、模型切分、异步 rollout",
              [], "",
              "[verl](https://github.com/volcengine/verl), "
              "[OpenRLHF](https://github.com/OpenRLHF/OpenRLHF)"),
        Topic("where the field goes", "这个领域往哪里去",
              [], "comes next", "[DeepSeek-R1](https://arxiv.org/abs/2501.12948)"),
    ]),
    ("Questions", "问题", [
        Topic("reinforcement learning against supervised learning", "强化学习与监督学习",
              [], "What is reinforcement"),
        Topic("RLHF, and why it has so many parts", "RLHF，为什么部件多", [], "What is RLHF"),
        Topic("the decision process of a language model", "语言模型的决策过程", [], "decision process"),
        Topic("why SFT is not enough", "为什么只做 SFT 不够", [], "Why is SFT"),
        Topic("SFT, RLHF, or both", "SFT、RLHF，还是都要", [], "SFT and RL"),
        Topic("policy and value function", "策略与价值函数", [], "a policy and a value"),
        Topic("the steps of classical RLHF", "经典 RLHF 的步骤", [], "Classical RLHF"),
        Topic("the four models of PPO", "PPO 的四个模型", [], "four models"),
        Topic("the advantage, and the use of a critic", "优势，以及价值模型的用处", [], "the advantage"),
        Topic("GAE", "GAE", [], "What is GAE"),
        Topic("is PPO on-policy", "PPO 是同策略吗", [], "on-policy"),
        Topic("the troubles of classical RLHF", "经典 RLHF 的难处", [], "What hurts"),
        Topic("how DPO avoids them", "DPO 怎样避开", [], "How does DPO avoid"),
        Topic("is DPO contrastive learning", "DPO 是对比学习吗", [], "contrastive"),
        Topic("the idea of GRPO, and what it has over DPO", "GRPO 的思路，比 DPO 好在哪里",
              [], "GRPO's idea"),
        Topic("GRPO against PPO", "GRPO 与 PPO", [], "GRPO against PPO"),
        Topic("what each is better at", "各自适合什么", [], "each of PPO"),
        Topic("GRPO for code and mathematics", "代码和数学为什么用 GRPO", [], "code and mathematics"),
        Topic("the KL penalty, and β = 0", "KL 惩罚，以及 β = 0", [], "KL penalty do"),
        Topic("the clip, and how it differs from the KL penalty", "裁剪，与 KL 惩罚有何不同",
              [], "how is it not the KL"),
        Topic("why both", "为什么都要", [], "have both"),
        Topic("the group size", "组大小", [], "group size"),
        Topic("poor samples", "样本太差", [], "samples are poor"),
        Topic("a reward that falls suddenly", "奖励突然下降", [], "reward falls"),
        Topic("a reference that moves", "参考模型可以动吗", [], "reference move"),
        Topic("other methods: KTO, constitutional AI", "其他方法：KTO、宪法式 AI", [], "What else"),
        Topic("reward hacking, and what helps", "奖励作弊与对策", [], "reward hacking"),
        Topic("the alignment tax", "对齐税", [], "alignment tax"),
        Topic("does RLHF hurt knowledge or reasoning", "RLHF 损害知识或推理吗", [], "hurt knowledge"),
        Topic("evaluating an aligned model", "怎样评估对齐后的模型", [], "evaluated"),
        Topic("alignment over several turns", "多轮对齐", [], "several turns"),
        Topic("what comes next", "接下来会怎样", [], "comes next"),
    ]),
    ("Wrong statements", "错误的说法", [
        Topic("DPO's loss with its sign turned", "DPO 损失的符号写反", erratum=33),
        Topic("the KL as a mean over the SFT model's answers", "在 SFT 模型的回答上求 KL", erratum=29),
        Topic("GRPO with one ratio per answer", "GRPO 整个回答一个比率", ["GSPO"], erratum=18),
        Topic("PPO needs pairs", "PPO 需要偏好对", erratum=19),
        Topic("GRPO compares groups with each other", "GRPO 在组与组之间比较", erratum=8),
        Topic("the clip as a hard limit", "裁剪是硬约束", ["clip"], erratum=13),
        Topic("a group's mean makes advantages negative", "组均值使优势偏负", erratum=6),
        Topic("TD noisy, Monte Carlo biased", "TD 方差大，蒙特卡洛偏差大", erratum=21),
        Topic("a mean without its 1/n", "均值漏掉 1/n",
              ["samples in place of the expectation", "aggregation"], erratum=11),
        Topic("k1 in the loss as the KL penalty", "k1 放进损失当作 KL 惩罚", ["k1"], erratum=26),
        Topic("the critic as unbiased", "价值模型无偏", erratum=23),
        Topic("V taken for the return", "把 V 当作回报", ["V", "return"], erratum=24),
        Topic("two models left without the critic", "去掉价值模型只剩两个模型",
              ["four models of PPO"], "four models", erratum=20),
    ]),
]


def row_link(name: str, language: str) -> str:
    found = [row for row in ROWS if name_of(row) == name]
    if len(found) != 1:
        raise ValueError(f"index.py: found {len(found)} rows with the name {name}, expected 1")
    file = "CONCEPTS.md" if language == "English" else "CONCEPTS.zh.md"
    label = name
    if language == "Chinese":
        label = found[0].chinese
        # The Chinese names of GRPO and its like are hardly used.
        is_acronym = " " not in name and sum(c.isupper() for c in name) > 1
        if is_acronym and name not in label:
            label = f"{name}，{label}"
    return f"[{label}]({file}#{anchor(found[0])})"


def question_link(part: str, language: str) -> str:
    """The question whose title has this part, by its number."""
    found = [n for n, question in enumerate(QUESTIONS, 1) if part in question.question]
    if len(found) != 1:
        raise ValueError(f"index.py: found {len(found)} questions with {part!r}, expected 1")
    [n] = found
    if language == "English":
        return f"[question {n}](INTERVIEW.md#q{n})"
    return f"[第 {n} 题](INTERVIEW.zh.md#q{n})"


def entry(topic: Topic, language: str) -> str:
    links = [row_link(name, language) for name in topic.rows]
    if topic.question:
        links.append(question_link(topic.question, language))
    if topic.erratum:
        label = "wrong statement {}" if language == "English" else "错误说法第 {} 条"
        links.append(erratum_link(topic.erratum, label.format(topic.erratum), language))
    if topic.play:
        links.append(f"[try it](play.html#en/{topic.play})" if language == "English"
                     else f"[动手试试](play.html#zh/{topic.play})")
    if topic.traced:
        label = "a batch with its numbers" if language == "English" else "一个批次的真实数字"
        links.append(f"[{label}](trace.html)")
    if topic.elsewhere:
        links.append(f"not here: {topic.elsewhere}" if language == "English"
                     else f"这里没有：{topic.elsewhere}")
    if not links:
        raise ValueError(f"index.py: {topic.english} leads nowhere")
    what = f"{topic.english}: " if language == "English" else f"{topic.chinese}："
    return f"* {what}{' · '.join(links)}\n"


def page(language: str) -> str:
    parts = [INTRO[language]]
    for english, chinese, topics in TOPICS:
        parts.append(f"\n## {english if language == 'English' else chinese}\n\n")
        parts += [entry(topic, language) for topic in topics]
    return "".join(parts)


def write() -> None:
    for language, file in PAGES.items():
        file.write_text(page(language), encoding="utf-8")
