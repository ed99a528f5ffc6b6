"""The lab's pages in Chinese: `python docs/concepts.py` writes docs/lab/NAME.zh.md from the csv
files that compare.py wrote, by the functions that make the English pages (lab/report.py).
"""
import re
import sys
from pathlib import Path

from concepts import ROOT

sys.path.append(str(ROOT))
from lab import gradient_page
from lab.experiments import EXPERIMENTS
from lab.report import experiment_page, results_page
from support.plot import read_csv

LAB = ROOT / "docs" / "lab"
# Of gradient.md.
GRADIENT = {
    "What are a baseline, a group and a critic worth?": "基线、组、价值模型各值多少？",
    "Each method's gradient from 256 answers, against the true one, at two fixed policies. How "
    "many times the answers of another method does it need, until the cosine of the two is 0.9?":
        "在两个固定的策略上，每种方法由 256 个回答得出的梯度，与真实梯度相比。要使两者的余弦达到 0.9，所需的回答数是"
        "另一种方法的多少倍？",
    "against": "相比", "no baseline": "不用基线", "the batch's mean": "批内均值",
    "the batch's mean as a baseline": "用批内均值作基线",
    "a mean for each problem (RLOO, G = 8)": "每道题用自己的均值（RLOO，G = 8）",
    "of GRPO, only the division by the standard deviation": "GRPO 中只除以标准差",
    "of GRPO, only the division by the length": "GRPO 中只除以长度",
    "an exact critic, λ = 0": "精确的价值模型，λ = 0",
    "the SFT model of seed 0, and GRPO after 25 of its 50 steps":
        "种子 0 的 SFT 模型，以及 GRPO 50 步中的第 25 步之后",
    "* {} {}: **{}**.": "* {}{}：**{}**。",
    " and ": " 和 ", " to ": " 至 ", "none found": "没有找到",
    "the SFT model": "SFT 模型处", "halfway through GRPO": "GRPO 进行到一半处",
    "{:.2f} where {:.2f} of answers are right": "{:.2f}（回答的 {:.2f} 答对时）",
    "The mean reward is not the best baseline. A baseline b leaves the noise "
    "E[(r - b)² |∇log π|²]. Wrong answers are improbable, so their ∇log π is long: with b = 0 they "
    "do not count, with b > 0 they do. The best constant is E[r |∇log π|²] / E[|∇log π|²]: {}. By "
    "this formula it leaves {} of the noise of no baseline, and the mean reward {}. A verifier "
    "that says 0 and 1 is near the best by itself. One that says -1 and 1 is the same with a "
    "baseline of a half.":
        "平均奖励不是最好的基线。基线 b 留下的噪声是 E[(r - b)² |∇log π|²]。答错的回答概率低，所以 ∇log π 长：b = 0 时"
        "它们不起作用，b > 0 时才起作用。最好的常数是 E[r |∇log π|²] / E[|∇log π|²]：{}。按这个公式，它留下的噪声是不用"
        "基线时的 {}，平均奖励留下 {}。给 0 和 1 的校验器本身就接近最好。给 -1 和 1 的，就是同一个校验器加上二分之一的基线。",
    "What its own noise costs was not measured.": "它自身噪声的代价没有测量。",
    "With λ = 0 its noise per answer is {:.1f} times |∇J|², with half of the continuations {:.1f}, "
    "so with endless ones about {:.1f}.":
        "λ = 0 时，它每个回答的噪声是 |∇J|² 的 {:.1f} 倍，续写减半时是 {:.1f} 倍，所以续写无穷多时约为 {:.1f} 倍。",
    "{}: {:.2f} of answers are right, {:.1f} tokens long (right ones {:.1f}). The truth: {:,} "
    "answers to {:,} problems; its halves have cosine {:.3f}. A right answer's |∇log π|² is {:.3f} "
    "of a wrong one's. The exact critic is off by {:.2f} (root mean square), and explains {:.2f} "
    "of the rewards' variance; the warmed-up one {:.2f}. {}":
        "{}：回答的 {:.2f} 答对，长 {:.1f} 个 token（答对的 {:.1f} 个）。真实梯度：{:,} 个回答，{:,} 道题；它的两半之间"
        "余弦为 {:.3f}。答对的回答，|∇log π|² 是答错的 {:.3f}。精确的价值模型误差为 {:.2f}（均方根），解释了奖励方差的 "
        "{:.2f}；预热过的解释了 {:.2f}。{}",
    "{}: limit | at 256 | for 0.9": "{}：极限 | 256 个回答 | 达到 0.9",
    "REINFORCE, mean of the batch": "REINFORCE，批内均值作基线",
    "PPO, new critic, λ = 0.95": "PPO，新的价值模型，λ = 0.95",
    "PPO, warmed-up critic, λ = 0.95": "PPO，预热过的价值模型，λ = 0.95",
    "PPO, warmed-up critic, λ = 1": "PPO，预热过的价值模型，λ = 1",
    "PPO, exact critic, λ = 0": "PPO，精确的价值模型，λ = 0",
    "PPO, exact critic, λ = 1": "PPO，精确的价值模型，λ = 1",
    "limit: the cosine of the mean estimate with the truth, 1 without bias (more is the noise of "
    "measuring; ?: known to no better than ±0.25). at 256: the cosine of one batch, the mean of "
    "many. for 0.9: answers needed for that cosine; a greedy answer counts, what a critic learned "
    "from does not. In brackets: 95 %, from one block of problems to another; critics are measured "
    "on fewer answers. All this is of one gradient, in the plain metric of the parameters. It says "
    "nothing of Adam's steps, or of a second update on the same answers.":
        "极限：平均估计与真实梯度的余弦，没有偏差时为 1（超出的是测量噪声；?：误差大于 ±0.25）。256 个回答：一批的余弦，许多批"
        "的均值。达到 0.9：余弦达到 0.9 所需的回答数；贪心回答计入，价值模型学习用的不计入。括号里是 95 % 的区间，由一块题到"
        "另一块题的差别得出；价值模型用较少的回答测量。以上都只关乎一个梯度，用参数的普通度量；与 Adam 的更新、以及在同一批"
        "回答上的第二次更新无关。",
    "What was expected, written down before this run (after a trial with 32 problems, and not "
    "changed for it); the numbers, first policy, then second; and whether it came out:":
        "运行之前写下的预期（在 32 道题的试验之后，没有因它改动）；数字先是第一个策略的，再是第二个的；以及是否符合：",
    "yes": "符合", "no": "不符合", "too noisy to say": "噪声太大，无法判断",
    "The batch's mean as a baseline leaves E[(r - b)²] = p (1 - p) of E[r²] = p: without it there "
    "is 1 / (1 - p) times the noise, 1.7 times at the SFT model (1.3 to 2.2), over 5 times "
    "halfway.":
        "批内均值作基线，从 E[r²] = p 留下 E[(r - b)²] = p (1 - p)：不用它，噪声是 1 / (1 - p) 倍，在 SFT 模型处是 1.7 倍"
        "（1.3 至 2.2），进行到一半时超过 5 倍。",
    "A mean for each problem (RLOO, G = 8) adds little to that of the batch: 0.8 to 1.3 times the "
    "answers. What an answer earns depends on whether it thinks, not on the problem.":
        "每道题用自己的均值（RLOO，G = 8），比批内均值好不了多少：所需回答数是 0.8 至 1.3 倍。回答得多少奖励，取决于它是否"
        "先思考，而不取决于题目。",
    "Two answers make a noisy mean: G = 2 needs over 1.3 times the answers of G = 8.":
        "两个回答的均值噪声大：G = 2 所需的回答数超过 G = 8 的 1.3 倍。",
    "And 64 answers leave four problems: G = 64 needs over 1.2 times the answers of G = 8.":
        "而每题 64 个回答就只剩四道题：G = 64 超过 G = 8 的 1.2 倍。",
    "Dr. GRPO is RLOO times (G - 1) / G: the same, on the same batches.":
        "Dr. GRPO 是 RLOO 乘以 (G - 1) / G：在同样的批上相同。",
    "GRPO divides by length, and where right answers are the long ones that bends: its mean has a "
    "cosine under 0.95 at the SFT model, over 0.95 halfway, where all are long.":
        "GRPO 除以长度，在长回答才答对的地方，这会使方向偏转：平均梯度的余弦在 SFT 模型处低于 0.95，在进行到一半、回答都长时"
        "高于 0.95。",
    "The standard deviation alone bends less: over 0.95 at both.": "只除以标准差偏转较小：两处都高于 0.95。",
    "ReMax's greedy answer is a coarse baseline and a sample more: over 1.5 times the answers of "
    "the batch's mean.":
        "ReMax 的贪心回答是粗糙的基线，又多一个样本：超过批内均值的 1.5 倍。",
    "REINFORCE++ is the batch's mean, by token: 0.75 to 1.25 times its noise.":
        "REINFORCE++ 是按 token 的批内均值：噪声是它的 0.75 至 1.25 倍。",
    "λ = 0 with a new critic credits the last token only: the mean's cosine is under 0.5.":
        "新的价值模型加 λ = 0，只把功劳记给最后一个 token：平均梯度的余弦低于 0.5。",
    "λ = 0 with an exact critic credits the token that decides: at most a third of the answers of "
    "RLOO with G = 8.":
        "精确的价值模型加 λ = 0，把功劳记给起决定作用的 token：至多是 RLOO（G = 8）的三分之一。",
    "λ = 1 with an exact critic is only a better baseline: a third of them to as many.":
        "精确的价值模型加 λ = 1，只是更好的基线：三分之一到一样多。",
    "A warmed-up critic has no bias with λ = 1 (over 0.95), hardly any with 0.95 (over 0.95), and "
    "too much with 0 (under 0.9).":
        "预热过的价值模型，λ = 1 时没有偏差（高于 0.95），0.95 时几乎没有（高于 0.95），0 时偏差太大（低于 0.9）。",
    "Cosine at 256 answers, and answers for a cosine of 0.9": "256 个回答的余弦，以及余弦达到 0.9 所需的回答数",
}
CHINESE = {
    # What an experiment asks.
    "PPO on a reward model: when does pleasing it stop being right?":
        "用奖励模型的 PPO：讨好它，到什么时候就不再答对？",
    "GRPO, 256 samples per step: many prompts, or many answers to each?":
        "GRPO，每步 256 个样本：多些提示词，还是每个提示词多些回答？",
    "Dr. GRPO with β = 0.5: which penalty keeps the policy near its start?":
        "Dr. GRPO，β = 0.5：哪种惩罚使策略留在起点附近？",
    "GRPO: how many passes over a batch, and what does the clip do?":
        "GRPO：每批样本过几遍，裁剪起什么作用？",
    "PPO on the verifier: λ of GAE, and what the critic starts as":
        "用校验器的 PPO：GAE 的 λ，以及价值模型从哪里开始",
    "Dr. GRPO with β = 0.5: a reference that stays, follows, or is replaced":
        "Dr. GRPO，β = 0.5：参考模型冻结、跟随，还是定期替换",
    "GRPO: what is averaged over what, and what that does to length":
        "GRPO：对什么求平均，对长度有什么影响",
    "DAPO: groups without signal, left out or replaced": "DAPO：无信号的组，跳过还是补上",
    # The worlds of rare rewards and of credit.
    "Rewards are rare: one answer in forty is right. Who learns from the few, "
    "and how soon?":
        "奖励很稀少：四十个回答里只有一个对。谁能从这少数几个里学到东西，"
        "要多久？",
    "PPO's critic: does V fall at the token where an addition goes wrong?":
        "PPO 的价值模型：在加错的那个 token 上，V 会下降吗？",
    "(1) The right answers are the long ones, and it is the first token that "
    "decides. An average over each answer (GRPO, GSPO) gives a token of a right "
    "answer an eighth of the weight of a wrong one's: these two are the slowest. "
    "Dr. GRPO, DAPO, CISPO, REINFORCE++, RLOO, ReMax, REINFORCE, and GRPO with "
    "a token mean, are faster. (2) Where hardly anything is right there is "
    "hardly anything to subtract: REINFORCE is as fast as RLOO. (3) At equal "
    "answers, the size of a group hardly matters. To replace groups without "
    "signal takes fewer steps, but not fewer answers. (4) At temperature 1.3 "
    "a rare token comes more often, and three additions in a row go wrong more "
    "often: slower. (5) Four passes are faster than one. An upper clip of 0.2 "
    "lets a probability of 0.03 grow to 0.036 in a step: with 0.28 it is faster, "
    "and without one the fastest. (6) An entropy bonus lifts every rare token, "
    "not just the right one: 0.01 changes nothing, 0.05 harms. (7) PPO and "
    "A2C begin later: for two steps only the critic learns, and λ = 0.95 carries "
    "a sixth of a reward over 35 tokens.":
        "（1）对的回答是长的，而决定一切的是第一个 token。按回答求平均（GRPO、"
        "GSPO）时，对的回答里每个 token 的权重只有错的回答的八分之一，"
        "所以这两个最慢；Dr. GRPO、DAPO、CISPO、REINFORCE++、"
        "RLOO、ReMax、REINFORCE，以及按 token "
        "平均的 GRPO 更快。（2）几乎没有对的回答，也就几乎没有可减的基线："
        "REINFORCE 和 RLOO 一样快。（3）回答总数相同时，"
        "组的大小几乎没有影响。补上无信号的组，步数更少，回答数并不更少。"
        "（4）温度 1.3 时，罕见的 token 出现得更多，但连续三次加法更容易出错："
        "更慢。（5）每批过四遍比一遍快。裁剪上界 0.2 使 0.03 "
        "的概率一步最多长到 0.036：0.28 更快，没有上界最快。"
        "（6）熵奖励抬高每一个罕见的 token，不只是对的那个：0.01 "
        "没有影响，0.05 有害。（7）PPO 和 A2C 起步晚："
        "前两步只有价值模型在学，而且 λ = 0.95 隔着 35 "
        "个 token 只传来六分之一的奖励。",
    "A critic that starts as the policy's trunk with V = 0 knows little after "
    "6 steps (correlation under 0.5) and most at the end (over 0.8). Then V "
    "of a wrong answer falls most at the first wrong token, in at least half "
    "of them. So PPO's advantage has a correlation with what a token really "
    "changed, and GRPO's, one number for the whole answer, has next to none. "
    "At equal answers PPO is then faster than GRPO once its critic is good; "
    "at equal seconds it is not, since its steps cost more.":
        "价值模型从策略的主干和 V = 0 开始，6 步之后所知不多（相关系数低于 "
        "0.5），结束时大致知道（高于 0.8）。那时，错误回答的 "
        "V 至少有一半在第一个错的 token 上降得最多。所以 PPO "
        "的优势与一个 token 实际造成的变化相关；GRPO 的优势是整个回答共用的一个数，"
        "几乎不相关。回答数相同时，价值模型变好之后 PPO 比 GRPO "
        "快；时间相同时并不快，因为它每一步更贵。",
    "mean reward of all samples (share)": "全部样本的平均奖励",
    "answers sampled until half are right": "到一半回答正确为止采样的回答数",
    "correlation of V with the share of right continuations": "V 与续写正确率的相关系数",
    "the same, or at one of the two tokens after it (share)": "同左，或在其后两个 token 之内",
    "wrong answers whose V falls most at the first wrong token (share)":
        "V 在第一个错的 token 上降得最多的错误回答的比例",
    "correlation of PPO's advantage with what a token changed":
        "PPO 的优势与 token 实际造成的变化的相关系数",
    "then the critic alone": "之后只训练价值模型", "1 update": "更新一次", "PPO, 2 updates": "PPO，更新两次",
    "token mean": "按 token 平均",
    "groups replaced": "补上无信号的组",
    "temperature 1.3": "温度 1.3",
    "entropy bonus 0.01": "熵奖励 0.01",
    "entropy bonus 0.05": "熵奖励 0.05",
    "4 passes": "过四遍",
    "4 passes, upper clip 0.28": "过四遍，裁剪上界 0.28",
    "4 passes, no upper clip": "过四遍，无裁剪上界",
    "after 6 steps": "6 步之后",
    "after 15 steps": "15 步之后",
    "after 30 steps": "30 步之后",
    "An answer may run on after its reward is decided: what makes it longer?":
        "奖励定下之后，回答还可以继续：什么使它变长？",
    "Answers sampled by something else than the policy: what does it cost?":
        "回答出自别的采样器，而不是策略：代价是什么？",
    "GRPO, 64 answers per step: does the clip hold the policy, or the KL penalty?":
        "GRPO，每步 64 个回答：是裁剪拉住策略，还是 KL 惩罚？",
    "Over-optimisation: more pairs, three reward models instead of one, best of n":
        "奖励过优化：更多偏好对、三个奖励模型代替一个、n 选一",
    "A model that knows two tasks is trained by reward on one: what is left of the other?":
        "会两个任务的模型，只用奖励训练其中一个：另一个还剩多少？",
    "All methods, from the same SFT models": "全部方法，从同样的 SFT 模型开始",
    # How it was run.
    EXPERIMENTS["hard"].settings: "模型是内置的三分之一大，每步 64 个回答，30 步，学习率 5e-5",
    EXPERIMENTS["credit"].settings:
        "hard 的运行；每个看 8 个对的和 8 个错的回答，每个前缀续写 32 次",
    EXPERIMENTS["length"].settings: "2 层的模型，每步 256 个回答，每组 8 个，40 步，学习率 5e-4",
    EXPERIMENTS["stale"].settings: "2 层的模型，每步 256 个回答，每组 8 个，60 步，学习率 1e-3",
    EXPERIMENTS["reward_models"].settings:
        "每步 64 个回答，每组 4 个，20 步，学习率 4e-4；没有写明 n 的，n 是 256",
    EXPERIMENTS["forgetting"].settings: "3 层的模型，每步 128 个回答，每组 8 个，80 步，学习率 3e-4",
    # What was expected.
    EXPERIMENTS["length"].expected:
        "判定之后写什么都改变不了奖励，所以无偏的梯度不会改变长度，只会随机游走。seq-mean"
        " 把每个回答的梯度除以它自己的长度：回答越长，错误的 token 代价越小；回答越短，正"
        "确的 token 收益越大。所以错误的回答应当增长到 48 个 token 的上限，正确"
        "的应当缩短到最少的 3 个。seq-sum 除以常数，两者都不该变。token-mean"
        " 除以全部 256 个回答的 token 数，其中一个回答自己的只占一小部分：它的偏差大"
        "约小这么多倍，所以应当与 seq-sum 相同。",
    EXPERIMENTS["stale"].expected:
        "策略梯度是对策略自己的回答求期望；换成别的采样器的回答就有偏，采样器离得越远，偏得越多。"
        "bfloat16 只有舍入：每个 token 的对数比率应当只散开约百分之一，正确率不该"
        "受损。权重越旧，策略应当学得越慢；旧 4 步时，不该达到用当前权重采样的水平。GRPO "
        "自己的比率帮不上忙：它的旧对数概率是重新计算的。把采样器的对数概率放进比率应当有帮助，因"
        "为裁剪会略过已经移动的 token；截断的权重也应当有帮助；两者都不能完全弥补，因为一个"
        " token 的权重不含它之前的 token。温度 0.8 时，采样器比被打分的策略更确"
        "定：回答更单一，我们预期有小的损失，权重可以补上。",
    EXPERIMENTS["clip_kl"].expected:
        "两者都让策略留在某处附近：裁剪是本步采样时的策略附近，KL 惩罚是初始策略附近。一遍（两次更新）时比率接近 1，裁剪几乎不起作用："
        "应当只有惩罚能降低与初始模型的 KL。四遍（八次更新）时，裁剪也应当降低它并保住正确率，没有惩罚时最明显：两者有一个就差不多够了。"
        "更高的裁剪上界（DAPO）让正确回答里概率小的 token 每步升得更多：最后的熵和 pass@8 应当更高。",
    EXPERIMENTS["reward_models"].expected:
        "以 √KL 为横轴，奖励模型对所见回答判断正确时，正确率上升；之后打分继续上升而正确率下降（Gao 等 2022）。更多偏好对和集成应当使峰值"
        "更晚、下降更缓，因为各个模型不共有的错误在均值里不起作用；三者取最小应当最谨慎（2023 年的一项研究这样说）。同样的 KL，n 选一应当比策略"
        "梯度得到更多：它几乎是一个 nat 能买到的最大奖励，而策略的 KL 有一部分花在奖励并不要求的变化上。但它止于 4.5 nats，到不了深处的下降。",
    EXPERIMENTS["forgetting"].expected:
        "没有梯度保住另一个任务，而两个任务共用全部权重：被训练任务的正确率上升时，另一个任务的正确率应当下降，训练越久降得越多。对被训练"
        "任务的回答加 KL 惩罚（β = 0.1、0.5），只在提问之处拉住策略，但拉住的是同样的权重：下降应当变缓，代价是学得慢些。每次更新混入另一个"
        "任务的示范（权重 0.5 的 SFT 损失，即 PPO-ptx）应当完全防止下降。遗忘的多少应当随与初始模型的 KL 而定（2025 年的一项研究这样"
        "说）。用被训练任务的示范代替奖励做同样多次更新，应当达到同样的正确率而忘得更多。",
    EXPERIMENTS["overoptimization"].expected:
        "奖励模型只见过 SFT 模型的回答：策略离得越远，它的打分就越说明不了什么。没有惩罚时，打分应当一直上升，正确率"
        "应当先升后降（Gao 等 2022）。β 越大，最后应当越接近最好的正确率，打分也越低。",
    EXPERIMENTS["group_size"].expected:
        "样本数相同时，组越大，组均值自身的噪声越小，全对或全错的组也越少；但题目变少，而题目有难有易。所以 G = 2 "
        "应当最差，从 8 起应当变化不大，每步只有四道题（G = 64）应当有些损失。",
    EXPERIMENTS["kl"].expected:
        "放在损失里时，k1 的梯度是 ∇log π，均值为 0：应当什么也拉不住。k2 的梯度就是 KL 的梯度，k3 "
        "在参考模型附近差不多；放进奖励的 k1 也是。这三种最后的 KL 应当远低于没有惩罚时，正确率有些损失。",
    EXPERIMENTS["clip"].expected:
        "一遍（两次更新）时比率接近 1，裁剪应当没有影响。两遍和四遍时，策略移动得超出这些回答所能说明的范围：没有裁剪，"
        "KL 应当更高，正确率更低。有裁剪时，四遍应当与一遍一样好，或者更好。",
    EXPERIMENTS["lambda"].expected:
        "λ = 1 只信奖励：没有偏差，噪声最大。λ = 0 只信价值模型：价值模型从零开始时，PPO 应当学得最慢；用"
        "奖励模型的主干开始则快一些。回答很短，所以 0.95 和 1 应当差不多。λ = 0 时解释方差应当最高，因为回"
        "报由价值模型自己的值构成。",
    EXPERIMENTS["reference"].expected:
        "参考模型冻结时，β = 0.5 应当损失正确率：那时最好的策略是归一化的 π_ref exp(r / β)，远不"
        "是总能答对。跟随的参考模型会让步：正确率应当接近没有惩罚时，与 SFT 模型的 KL 更大。",
    EXPERIMENTS["aggregation"].expected:
        "这里正确的回答较长，因为其中有思考。对每个回答取平均（seq-mean）使它们的 token 权重较小，所以应当"
        "比 token-mean 和 seq-sum 稍晚；但任务容易，三者最后的正确率和长度应当相同。",
    EXPERIMENTS["no_signal"].expected:
        "补上无信号的组之后，每次更新的 256 个回答都有信息。所以步数相同时正确率应当更高，每步的样本更多；有信号的组"
        "越少，样本越多。",
    # What is measured.
    "right answers, sampled (share)": "采样正确率",
    "KL to the SFT model (nats per answer)": "与 SFT 模型的 KL（每个回答的 nats）",
    "groups without signal (share)": "无信号组的比例",
    "explained variance of the critic": "价值模型的解释方差",
    "answer length (tokens)": "回答长度（token）",
    "samples per step": "每步样本数",
    "length of wrong answers (tokens)": "错误回答的长度（token）",
    "length of right answers (tokens)": "正确回答的长度（token）",
    "wrong answers longer by (tokens)": "错误的比正确的长（token）",
    "KL of the sampler to the policy (nats per answer)": "采样器与策略的 KL（每个回答的 nats）",
    "spread of a token's log-ratio (nats)": "每个 token 对数比率的标准差（nats）",
    "one of 8 answers is right: pass@8 (share)": "8 个回答中至少一个正确（pass@8）",
    "entropy (nats per token)": "熵（每个 token 的 nats）",
    "right answers, policy gradient (share)": "正确率，策略梯度",
    "right answers, best of n (share)": "正确率，n 选一",
    "the reward, policy gradient": "奖励，策略梯度",
    "right answers, best of 8 (share)": "正确率，8 选一",
    "right answers, policy gradient at the KL of best of 8 (share)":
        "正确率，策略梯度，在 8 选一的 KL 处",
    "right answers, policy gradient at the KL of best of 256 (share)":
        "正确率，策略梯度，在 256 选一的 KL 处",
    "the reward, best of n": "奖励，n 选一",
    "right answers at the other task (share)": "另一个任务的正确率",
    "right answers at the trained task (share)": "被训练任务的正确率",
    "KL to the start at the trained task (nats per answer)":
        "被训练任务上与初始模型的 KL（每个回答的 nats）",
    # Settings; what is neither here nor in PARTS, such as G = 8, stays as it is.
    "none": "不加惩罚", "k1 in the loss": "k1 放进损失", "k2 in the loss": "k2 放进损失",
    "k3 in the loss": "k3 放进损失", "k1 in the reward": "k1 放进奖励",
    "frozen": "冻结", "EMA 0.9": "EMA 0.9 跟随", "synced every 10": "每 10 步替换",
    "left out": "跳过", "replaced": "补上",
    "256 pairs": "256 对", "1,024 pairs": "1,024 对", "3,072 pairs": "3,072 对",
    "mean of three": "三者的均值", "least of three": "三者的最小值",
    "demonstrations of the other task": "混入另一个任务的示范",
    "imitation instead of reward": "以模仿代替奖励",
    "PPO on RM": "PPO（RM）", "PPO on RM, no KL": "PPO（RM，不加 KL）",
    "DPO without NLL": "DPO（不加 NLL）",
    # Columns of tables.
    "greedy": "贪心", "sampled": "采样", "pass@8": "pass@8", "length": "长度",
    "kl to sft": "与 SFT 的 KL", "samples": "样本数", "seconds": "秒", "models": "模型数",
    "peak greedy": "最好时贪心", "peak sampled": "最好时采样", "score at peak": "最好时打分",
    "score": "打分", "greedy accuracy at its best": "贪心正确率：最好的一次评估",
    "at the end": "最后一次", "score at the best": "打分：最好的一次评估",
    "score at the end": "打分：最后一次",
    # Sentences.
    ": ": "：", ", ": "、",
    "{} ({})": "{}（{}）", "Settings: {}. Again: {}.": "设置：{}。重新运行：{}。",
    "One seed, so there is no spread to hold differences against.":
        "只有一个种子，没有波动可比。",
    "Against {}, no difference beyond the seeds' spread.":
        "与“{}”相比，差别都没有超出种子间的波动。",
    "Against {}, beyond the seeds' spread: {}.": "与“{}”相比，超出种子间波动的：{}。",
    "higher with {}": "更高的是 {}", "lower with {}": "更低的是 {}", "; ": "；",
    "Expected, written before the runs: {}": "运行之前写下的预期：{}",
    "Mean ± standard deviation over {} seeds; of what is measured at several steps, the last fifth "
    "of them. Bold: differs from {} beyond the seeds' spread.":
        "{} 个种子的均值 ± 标准差；多次测量的，取最后五分之一的步。粗体：与“{}”的差别超出种子间的波动。",
    "Mean ± standard deviation over {} seeds. Bold: falls beyond the seeds' spread while the score "
    "rises.": "{} 个种子的均值 ± 标准差。粗体：打分上升而正确率下降，且超出种子间的波动。",
    "Mean ± standard deviation over {} seeds.": "{} 个种子的均值 ± 标准差。",
    "length: tokens per answer. kl to sft: exact, in nats per answer. samples: answers that the "
    "policy sampled to learn from; with DPO and its relatives, those that its pairs were found "
    "among. seconds: of processor time, of the training script. models: full models in memory "
    "while it trains; DPO's reference is gone by then, its log-probs were taken before.":
        "长度：每个回答的 token 数。与 SFT 的 KL：精确值，每个回答的 nats。样本数：策略为学习而采样的回答数；"
        "DPO 一类方法，是从中找出偏好对的回答数。秒：训练脚本的处理器时间。模型数：训练时内存里完整模型的个数；"
        "DPO 的参考模型那时已经不在，它的对数概率事先算好。",
    "The reward model ranks {} of held-out pairs right. PPO on it (RM), at its best evaluation "
    "(the one at which the other seeds are best) and at the end:":
        "奖励模型对留出的偏好对，排序正确的比例为 {}。用它打分的 PPO（RM），在最好的一次评估（其他种子最好的那一次）和最后一次：",
    **GRADIENT,
}
# Of settings that are made of parts.
PARTS = {
    "fresh": "当前权重", "temperature 0.8": "温度 0.8", "1 step old": "旧 1 步",
    "2 steps old": "旧 2 步", "4 steps old": "旧 4 步", "the ratio": "放进比率",
    "truncated weights": "截断权重",
    "critic from the policy": "价值模型从策略开始",
    "critic from the reward model": "价值模型从奖励模型开始",
    "1 epoch": "1 遍", "4 epochs": "4 遍", "clip 0.2 to 0.28": "裁剪 0.2 到 0.28",
    "clip 0.2": "裁剪 0.2", "no clip": "不裁剪", "epochs = ": "遍数 = ",
}


def say(text: str) -> str:
    """A text of an English page in Chinese."""
    if text in CHINESE:
        return CHINESE[text]
    said = text
    for english, chinese in PARTS.items():
        said = said.replace(english, chinese)
    if said != text:
        return said.replace(", ", "，")
    # Names of methods and settings such as β = 0.01 are the same in both languages.
    if re.search(r"[a-z]{3} [a-z]|\w\.$", text):
        raise ValueError(f"docs/lab_chinese.py: no Chinese for {text!r}")
    return text


def pages() -> dict[Path, str]:
    """Each Chinese page, by its file."""
    english = [file for file in sorted(LAB.glob("*.md"))
               if not re.search(r"\.zh|README", file.name)]
    found = {}
    for file in english:
        rows = read_csv(file.with_suffix(".csv"))
        if file.stem == "gradient":
            policies = read_csv(LAB / "gradient_policies.csv")
            text = gradient_page.page(gradient_page.Found(rows), policies, say)
        elif file.stem == "results":
            text = results_page(rows, say)
        else:
            text = experiment_page(file.stem, rows, say)
        # No space between two Chinese words.
        text = re.sub("(?<=[\u4e00-\u9fff]) (?=[\u4e00-\u9fff])", "", text)
        found[file.with_suffix(".zh.md")] = text
    return found


def write() -> None:
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")
