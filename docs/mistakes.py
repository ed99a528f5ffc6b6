"""docs/MISTAKES.md, in English and in Chinese: the mistakes of tests/mutations.py, what each does
to a run (docs/effects.py), and the test that notices it.

    python docs/mistakes.py        writes the pages and docs/mistakes/mistakes.svg; so does
                                   docs/concepts.py
"""
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT), str(ROOT / "tests")]

from effects import KINDS, effect, figure, kind, runs  # noqa: E402
from mutation_runs import COMMON, PROBLEMS, RUNS  # noqa: E402
from mutations import MUTATIONS, NOTICED_BY, NUMBERS, PUBLIC, SECTIONS, Mutation  # noqa: E402
from support.plot import read_csv  # noqa: E402

PAGES = {"English": ROOT / "docs" / "MISTAKES.md", "Chinese": ROOT / "docs" / "MISTAKES.zh.md"}
FIGURES = {"English": "mistakes/mistakes.svg", "Chinese": "mistakes/mistakes.zh.svg"}
# A mistake -> the same in Chinese, and what one sees.
ROWS = {
    "The stop token is not an action": ("结束符不算动作", "结束没有梯度：回答越来越长"),
    "Demonstrations without their stop token": ("示范里没有结束符", "SFT 模型从不结束回答"),
    "The mask is inferred from ids: everything that is not the padding id": (
        "掩码由 id 推断：凡不是填充 id 的都算",
        "填充与真实 token 共用 id 时，真实的动作会消失"),
    "Padding after an answer without a stop token counts as actions": (
        "没有结束符的回答之后，填充也算动作",
        "回答看起来比实际长，填充也被训练"),
    "All rows of a batch get the positions of the longest": (
        "一批中所有行都用最长一行的位置",
        "其他长度的行看到错误的距离"),
    "Logits score the token they saw last, not the next": (
        "logits 给刚读过的 token 打分，而不是下一个",
        "对数概率属于错误的 token，什么也学不到"),
    "The critic's value of the state after the action": ("价值模型取动作之后的状态", "优势里已经含有动作的结果"),
    "Masked inputs are overwritten in place": ("就地改写被掩掉的输入", "之后统计或记录的，不是传入的值"),
    "One noise for all samples of a prompt": ("同一提示词的所有样本共用一份噪声", "一组样本开头都一样，没有一组有信号"),
    "Special-token text in a user's string becomes the special token": (
        "用户文字里的特殊 token 文本变成特殊 token",
        "提示词可以结束它所在的对话"),
    "Temperature in sampling only": ("温度只用于采样", "打分的不是采样的策略：隐蔽的异策略偏差"),
    "Log-probs computed in the model's low precision": (
        "用模型的低精度计算对数概率",
        "第一次更新时比率就不是 1"),
    "The difference the wrong way round": ("差值减反了", "“KL”变成负的，策略被推离参考模型"),
    "k1 as the penalty in the loss": ("k1 作为损失里的惩罚", "期望梯度为 0：惩罚不起作用"),
    "The KL penalty counted on the padding": ("在填充上也计 KL 惩罚", "奖励取决于有多少填充"),
    "The score on the last column instead of the last action": (
        "得分放在最后一列，而不是最后一个动作",
        "短回答完全没有奖励"),
    "A cut-off answer is verified like a finished one": ("被截断的回答也照常校验", "模型学到不必结束"),
    "GAE does not skip holes": ("GAE 不跳过非动作的 token", "两个动作之间工具的输出，增加折扣和为零的价值"),
    "What the environment wrote is trained on as if the policy had chosen it": (
        "环境写的内容被当成策略选的来训练",
        "策略离开参考模型，去学工具会说什么，而它不需要知道"),
    "The discount and the TD error are taken across what the environment wrote": (
        "折扣和 TD 误差算过环境写的内容",
        "工具输出越长，之前的调用与奖励的关系越弱"),
    "The row that is asked about is numbered within its process": (
        "被询问的行用进程内的编号",
        "用 torchrun 时，环境按另一段对话的内容作答"),
    "The critic's targets from whitened advantages": (
        "价值模型的目标用白化后的优势",
        "价值模型学的是不断变化、没有单位的目标"),
    "Whitening shifts the mean although told not to": (
        "要求不平移均值，白化却平移了",
        "奖励的正负取决于它所在的批次"),
    "Equal rewards are left to rounding and a tiny epsilon": (
        "奖励全相等时，听任舍入误差除以极小的 ε",
        "八个 0.7 的奖励，得出 0.81 的优势"),
    "Groups interleaved instead of consecutive": ("组是交错排列，而不是连续排列", "回答与其他提示词的回答比较"),
    "A group of one": ("只有一个回答的组", "一个数的无偏标准差是 NaN"),
    "The clip turned round: min where the loss needs max": (
        "裁剪写反：损失里该用 max 的地方用了 min",
        "负优势被无限推动；比率为 1 时看不出来"),
    "The mean of micro-batch means": ("micro-batch 均值的均值", "长短回答的权重随 micro-batch 大小而变"),
    "The mean of micro-batch means, in SFT": (
        "SFT 里 micro-batch 均值的均值", "长短示范的权重随 micro-batch 大小而变"),
    "Dr. GRPO that still divides by each answer's length": (
        "Dr. GRPO 仍除以每个回答的长度",
        "两处改动只做了一处：长度偏差还在"),
    "IPO on summed log-probs where averaged ones are meant": (
        "IPO 本该用平均的对数概率，却用了总和",
        "差值的目标取决于回答的长度"),
    "No warm-up: the critic's noise moves the policy": (
        "没有预热：价值模型的噪声推动策略",
        "价值模型还没学会，错误的优势就毁了策略"),
    "An unfinished answer scored by the reward model": (
        "让奖励模型给未结束的回答打分",
        "它没见过这种回答：从不结束的可能得分最高"),
    "Gradients clipped after each micro-batch": ("每个 micro-batch 之后都裁剪梯度", "步长取决于 micro-batch 的大小"),
    "The reward model read at the last column": ("在最后一列读取奖励模型", "得分取决于后面有多少填充"),
    "The reference is the policy itself": ("参考模型就是策略自己", "KL 永远是 0"),
    "A run that another one trains first leaves its own precision behind": (
        "先训练的运行留下了自己的精度设置",
        "实际运行的与 config.json 写的不符"),
    "No signal taken from equal rewards, whatever the advantage": (
        "奖励相等就判为无信号，不看优势",
        "ReMax 和 REINFORCE++ 丢掉了本来可学的组"),
    "One noise for every pass over a step's answers": ("同一步的每一遍共用一份噪声", "每一遍的小批次都一样"),
    "Momentum without a gradient": ("没有梯度，动量还在更新", "什么也没学到，权重却在动"),
    "The training pass without the sampling temperature": (
        "训练时的前向没有用采样温度",
        "一开始比率就不是 1；训练的不是采样的策略"),
    "The reference without the sampling temperature": (
        "参考模型没有用采样温度",
        "KL 所比较的策略，没有人采样过"),
    "ReMax's baseline is the greedy answer to another prompt": (
        "ReMax 的基线是另一个提示词的贪心回答",
        "方差比没有基线还大"),
    "Dynamic sampling keeps the first groups instead of those with a signal": (
        "动态采样保留最前面的组，而不是有信号的组",
        "采样更多，可学的和以前一样少"),
    "The adaptive β turned round": ("自适应 β 写反", "KL 小时 β 反而增大：要么什么也学不到，要么全部失控"),
    "clip_low and clip_high swapped": (
        "clip_low 与 clip_high 写反",
        "两者相等时看不出来；DAPO 放宽的不再是上界，而是下界"),
    "--ref-sync N copies the policy at every step": (
        "--ref-sync N 每一步都复制策略",
        "KL 永远接近 0"),
    "PPO without any KL penalty": ("PPO 完全没有 KL 惩罚", "得分上升，回答不再像语言"),
    "γ and λ swapped": ("γ 与 λ 写反", "通常 γ = 1，于是 λ 不起作用，而奖励被折扣"),
    "KTO's reference point with its sign turned": (
        "KTO 的参考点符号写反",
        "只要策略动过，就被截到 0：等于没有参考点的 KTO"),
    "SimPO on summed log-probs": ("SimPO 用了对数概率之和", "长回答的差值更大"),
    "KL in the reward, and in the loss as well": ("KL 既放进奖励，又放进损失", "付了两次 β"),
    "The reference's moving average with its weights swapped": (
        "参考模型滑动平均的权重写反",
        "参考模型几乎就是策略：KL 永远接近 0"),
    "Values are clipped around themselves": ("估值围绕自己裁剪", "价值裁剪不起作用"),
    "The critic at the actor's learning rate": ("价值模型用了策略模型的学习率", "它总是落后；λ 小于 1 时有偏差"),
    "The mean of each pair's NLL in place of all tokens'": (
        "每对各自平均 NLL，而不是对全部 token 平均",
        "短回答的 token 更重"),
    "A learning rate that never falls": ("学习率从不下降", "最后几步都是噪声"),
    "KTO's reference point may fall below 0": (
        "KTO 的参考点可以低于 0",
        "它估计的是 KL，不会为负；否则回答白白算成好的"),
    "Gradients are not cleared between updates": ("两次更新之间不清梯度", "每次更新都重复之前的全部"),
    "Old log-probs taken anew before each pass": (
        "每一遍之前都重新计算旧的对数概率",
        "每一遍开始时比率都是 1：没有什么限制策略"),
    "Importance weights upside down": ("重要性权重取了倒数", "采样器抽得过多的，反而更重"),
    "Importance weights where the sampler's log-probs stand for the policy's": (
        "重要性权重用采样器的对数概率代替了策略的",
        "重要性权重全是 1"),
    "The mask of a cache of fixed size hides the token that is being computed": (
        "固定大小的缓存，掩码把正在计算的 token 也遮住了",
        "每个 token 都注意不到自己：采样的策略不是训练的策略"),
}
# A section -> the same in Chinese.
TITLES = {
    "Layout and mask": "排列与掩码",
    "Log-probs and the ratio": "对数概率与比率",
    "KL and the reference": "KL 与参考模型",
    "Rewards": "奖励",
    "Advantages, returns and the critic": "优势、回报与价值模型",
    "Losses and averages": "损失与平均",
    "The update loop": "更新循环",
    "Preferences": "偏好",
    "Data, precision and processes": "数据、精度与进程",
}
# Why nothing shows -> the same in Chinese.
UNSEEN = {
    "in float32 the sampler is the policy, and all weights are 1":
        "float32 下采样器就是策略，权重全是 1",
    "no script whitens and keeps the mean": "没有脚本在白化时保留均值",
    "--group-size 1 is refused before it comes to this": "`--group-size 1` 在这之前就被拒绝",
    "the built-in prompts hold no special-token text": "内置任务的提示词里没有特殊 token 的文本",
    "on a CPU both runs are in float32": "在 CPU 上两次运行都是 float32",
    "a run has one process": "一次运行只有一个进程",
    "on a CPU nothing is decoded by graphs": "CPU 上不用图解码",
    "the scripts' inputs are 0 off the mask anyway": "这些脚本的输入在掩码之外本来就是 0",
    "on a CPU logits are in float32 anyway": "在 CPU 上 logits 本来就是 float32",
    "the scripts' log-probs are 0 off the mask anyway": "这些脚本的对数概率在掩码之外本来就是 0",
    "the mean of rewards of 0 and 1 has no rounding": "0 和 1 的奖励，求均值没有舍入误差",
    "no token of an answer has the id of the padding": "回答里没有 token 用填充的 id",
}
HEADERS = {
    "English": "| | mistake | in theory | in a short run | seen in | made here in | noticed by |",
    "Chinese": "| | 错误 | 理论上 | 在一次短的运行里 | 见于 | 在这里改动的文件 | 首先发现它的测试 |",
}
# A \ joins two lines: the page's lines are longer than those of a source file.
INTRO = {
    "English": """# What goes wrong in implementations of these algorithms

None of these mistakes crashes: training runs, curves move, and the result is a little or very \
wrong. A mistake that somebody
reported is linked to the report. *Public code* means code from which people learn, or \
with which they train. The others were found
in this project's own first versions, or made up to see whether its tests would notice. Here each \
is made on purpose in a copy of this
project, and the test in the last column is the first to fail (`python tests/mutations.py --table`).

The copy then trains for a few steps, eight or ten of GRPO and PPO and fifteen of DPO, by one of \
[the commands below](#the-runs).
**Of {all} mistakes {model} change what the trained model can do (how many answers are right, how \
long they are, whether they end),
{numbers} show in other numbers of the run alone, and {hidden} are invisible there**: {spread} \
differ by less than four times the seeds' spread, in {same}
no number changes at all, and for {unseen} there is no run here that could show them. A curve that \
rises proves little: it is the tests
that find most of these. And a mistake that does nothing in ten steps may do much in ten thousand. \
Some look like an improvement.

In the fourth column a number is the mistake's, and *instead of* stands before that of the same \
command without it: mean ± standard
deviation over its seeds, where there are several. The trained model is measured by this project, \
not by the copy, on {problems} held-out
problems, one sampled answer each; other numbers are means over the last half of the run's steps, \
as the copy itself logs them ([what
each is](READING_CURVES.md)). *Within the spread* is what differs by less than four times the \
spread: that of the command's seeds,
or the typical one of all commands if that is larger. With one run of each mistake, less would \
prove nothing. To practise: `python exercises/bug.py 1` shows curves, and asks which \
mistake they are of. English | [简体中文](MISTAKES.zh.md)

![Accuracy over training with a mistake, beside the runs without]({figure})
""",
    "Chinese": """# 这类代码常犯的错误

这些错误都不会使程序崩溃：训练照常进行，曲线照常变化，只是结果差一点，或者完全错误。有人报告过的，附上链接；\
“公开代码”表示人们用来学习和训练的代码里出现过；其余的是本项目最初的版本里发现的，或者为检验测试而编的。\
这里在本项目的一份拷贝里故意把每个错误犯一遍，最后一列是首先失败的测试（`python tests/mutations.py --table`）。

然后用这份拷贝训练很短的一次：GRPO 或 PPO 八步或十步，DPO 十五步，命令见[下面](#the-runs)。**{all} 个错误里，\
{model} 个改变了训练出来的模型（正确率、回答长度、能否结束），{numbers} 个只在运行的其他数字里看得出来，\
{hidden} 个在运行里看不出来**：{spread} 个的差别小于种子波动的四倍，{same} 个不改变任何数字，\
还有 {unseen} 个，这里没有能显示它的运行。曲线上升说明不了什么：这些错误大多要靠测试发现。十步里没有影响的错误，\
一万步里可能影响很大。有的看起来反而更好。

第四列里先写有错误时的数字，“正常为”后面是同一命令没有错误时的数字：有几个种子时是均值 ± 标准差。\
训练出来的模型由本项目测量，而不是由那份拷贝，用 {problems} 道留出的题，每题采样一个回答；\
其他数字是运行后一半步数的均值，由拷贝自己记录（[各是什么](READING_CURVES.zh.md)）。“在波动之内”指差别小于波动的四倍（该命令各种子的波动，或所有命令的典型波动，取较大的）：\
每个错误只有一次运行，更小的差别说明不了什么。想练习：`python exercises/bug.py 1` 给出曲线，问是哪个错误。[English](MISTAKES.md) | 简体中文

![有错误时训练中的正确率，与没有错误的运行相比]({figure})
""",
}
OUTRO = {
    "English": """
Three mistakes of the same kind can't be made by changing a line here:

* **Sampled text is decoded and tokenised again**, so that what is trained on is not what was \
sampled: huggingface/trl#5224. Rollouts
  are ids from beginning to end; text is made only to be shown and rewarded.
* **The sampler's log-probs serve as old log-probs** although cached decoding rounds differently \
from a full forward. With both in
  float32 the difference is near 1e-6 and changes nothing; in bfloat16 it is a ratio that isn't 1. \
`train_grpo.py` and
  `train_ppo.py` take old log-probs with the function that takes the new ones.
* **Dropout, or a reference in train mode**: the model has no dropout.

What mistake {tool} does in forty steps, [`docs/tool.py`](tool.py) shows for three \
seeds: the policy learns to ask, but later, and
moves four times as far from its reference ([figure](tool/tool.png); 0.93 nats a token instead of \
0.23, over what was trained on).

## <a id="the-runs"></a>The runs

`python tests/mutation_runs.py` makes what [`runs.csv`](mistakes/runs.csv) lacks, which has every \
step. With a mistake it is seed 0; \
nothing is evaluated or saved on the way ({common}). They start from `runs/sft`, and \
where products are asked, from
`runs/sft_products`; the reward model is `runs/rm`.

| run | command | seeds without a mistake |
|---|---|---|
{commands}
""",
    "Chinese": """
还有三个同类的错误，改动这里的一行是犯不出来的：

* **采样的文本先解码再重新分词**，于是训练的不是采样的内容：huggingface/trl#5224。\
这里的 rollout 从头到尾都是 id，文本只用来显示和打分。
* **把采样器的对数概率当作旧的对数概率**，而带缓存的解码与完整前向的舍入不同。两者都是 float32 \
时相差约 1e-6，没有影响；bfloat16 时，比率就不是 1 了。`train_grpo.py` 和 `train_ppo.py` 用计算新值的同一个\
函数计算旧值。
* **dropout，或参考模型处于训练模式**：这里的模型没有 dropout。

错误 {tool} 在四十步里有什么影响，[`docs/tool.py`](tool.py) 用三个种子展示：策略也学会了提问，\
但更晚，而且离参考模型的距离是四倍（[图](tool/tool.png)；在被训练的 token 上，每个 token 0.93 nats，\
正确时为 0.23）。

## <a id="the-runs"></a>这些运行

`python tests/mutation_runs.py` 补齐 [`runs.csv`](mistakes/runs.csv) 里缺的运行，那里有每一步的数字。\
有错误时用种子 0；中途不评估也不保存（{common}）。都从 `runs/sft` 开始，\
求乘积的从 `runs/sft_products` 开始；奖励模型是 `runs/rm`。

| 运行 | 命令 | 没有错误的种子 |
|---|---|---|
{commands}
""",
}


def links(seen: str, language: str) -> str:
    """owner/name#1 and #2 of the same repository as links; a repository without a number as one
    to itself."""
    if seen == PUBLIC:
        return seen if language == "English" else "公开代码"
    found, repository = [], ""
    for word in filter(None, seen.split(", ")):
        owner, _, number = word.partition("#")
        repository = owner or repository
        found.append(f"[{repository}{'#' + number if number else ''}]"
                     f"(https://github.com/{repository}{'/issues/' + number if number else ''})")
    return ", ".join(found)


def in_chinese(table: dict, text: str):
    """ValueError if it is missing there."""
    if text not in table:
        raise ValueError(f"docs/mistakes.py: no Chinese for {text!r}")
    return table[text]


def row(mutation: Mutation, test: str, language: str) -> str:
    mistake, symptom, unseen = mutation.mistake, mutation.symptom, mutation.unseen
    if language == "Chinese":
        mistake, symptom = in_chinese(ROWS, mistake)
        unseen = unseen and in_chinese(UNSEEN, unseen)
    cells = [str(NUMBERS[mutation.name]), mistake, symptom, effect(mutation, language, unseen),
             links(mutation.seen, language), f"`{mutation.file}`", f"`{test}`"]
    return "| " + " | ".join(cells) + " |"


def page(language: str) -> str:
    tests = {found["mistake"]: found["test"] for found in read_csv(NOTICED_BY)}
    kinds = [kind(mutation) for mutation in MUTATIONS]
    counts = {name: kinds.count(name) for name in KINDS}
    hidden = counts["spread"] + counts["same"] + counts["unseen"]
    parts = [INTRO[language].format(all=len(MUTATIONS), hidden=hidden, problems=PROBLEMS,
                                    figure=FIGURES[language], **counts)]
    for title, mutations in SECTIONS.items():
        rows = [row(mutation, tests[mutation.name], language) for mutation in mutations]
        title = title if language == "English" else in_chinese(TITLES, title)
        parts.append(f"\n## {title}\n\n{HEADERS[language]}\n|---|---|---|---|---|---|---|\n"
                     + "\n".join(rows) + "\n")
    commands = "\n".join(
        f"| `{name}` | `{command}` | {', '.join(map(str, runs()[name, '']))} |"
        for name, command in RUNS.items())
    parts.append(OUTRO[language].format(tool=NUMBERS["tool_trained_on"], commands=commands,
                                        common=f"`{COMMON}`"))
    return "".join(parts)


def write() -> None:
    for language, file in PAGES.items():
        file.write_text(page(language), encoding="utf-8")
        (ROOT / "docs" / FIGURES[language]).write_text(figure(language), encoding="utf-8")


if __name__ == "__main__":
    write()
