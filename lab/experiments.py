"""What the lab runs: the table of methods, and experiments that turn one setting.

A command may hold {rm}, the seed's reward model. An experiment without runs has a training loop of
its own: its csv file is what run(out, seeds, quick) of NAME.py returns, with a row for each step of
each run, {line, setting, seed, step, ...}.
"""
from dataclasses import dataclass

SFT, RM, DPO, GRPO = "train_sft.py", "train_rm.py", "train_dpo.py", "train_grpo.py"
DR_GRPO, DAPO = f"{GRPO} --method dr_grpo", f"{GRPO} --method dapo"
PPO = "train_ppo.py --reward verifier"
PPO_RM = "train_ppo.py --reward-model {rm} --eval-every 5"
# Steps with --quick; PPO needs 25 to show how far it falls on a reward model.
QUICK = {DPO: 27, GRPO: 17, "train_ppo.py": 25}

# name: full models in memory while it trains; script and flags. DPO's reference is gone by then,
# its log-probs were taken before.
METHODS = {
    "SFT": (1, SFT),
    "reward model": (1, RM),
    "DPO": (1, DPO),
    "DPO without NLL": (1, f"{DPO} --nll-coef 0"),
    "IPO": (1, f"{DPO} --loss ipo"),
    "KTO": (1, f"{DPO} --loss kto"),
    "PPO": (3, PPO),
    "A2C": (3, f"{PPO} --epochs 1 --minibatches 1"),
    "PPO on RM": (4, PPO_RM),
    "PPO on RM, no KL": (4, f"{PPO_RM} --kl-coef 0"),
    "GRPO": (2, GRPO),
    "Dr. GRPO": (2, DR_GRPO),
    "DAPO": (2, DAPO),
    "RLOO": (2, f"{GRPO} --method rloo"),
    "REINFORCE++": (2, f"{GRPO} --method reinforce_pp"),
    "ReMax": (2, f"{GRPO} --method remax"),
    "REINFORCE": (2, f"{GRPO} --method reinforce"),
    "GSPO": (2, f"{GRPO} --method gspo"),
    "CISPO": (2, f"{GRPO} --method cispo"),
}

# What a panel shows: what is drawn, over what (step, setting, answer_kl or another column), and its
# column in the csv file. Over nothing (""): it stands in the page's table only.
Panel = tuple[str, str, str]


@dataclass
class Experiment:
    question: str
    # (line in the figure, setting) -> script and flags
    runs: dict[tuple[str, str], str]
    panels: list[Panel]
    # What the other settings are held against.
    base: str = ""
    # What theory says will happen, and why: written before the runs.
    expected: str = ""
    # Of a world of its own: what model learns there, and how.
    settings: str = ""
    seeds: int = 3
    # Whether NAME.py has a further figure: draw(folder) makes it from csv files.
    draws: bool = False


RIGHT = ("right answers, sampled (share)", "setting", "sampled")
KL = ("KL to the SFT model (nats per answer)", "setting", "kl_to_sft")
NO_SIGNAL = ("groups without signal (share)", "step", "no_signal")
# Dr. GRPO has no std that changes what β weighs, and may have the KL anywhere. A β of 0.5 is there
# to show it.
STRONG = f"{DR_GRPO} --kl-in loss --kl-coef 0.5"
GRPO_25, PPO_25 = f"{GRPO} --steps 25", f"{PPO} --steps 25"
NO_CLIP = "--clip-low 1e9 --clip-high 1e9"
CRITIC_RM = "--critic {rm}"
# Few answers, used often: so that it matters what holds the policy.
GRPO_64 = f"{GRPO_25} --prompts-per-step 8 --eval-every 0"
EPOCHS_1, EPOCHS_4 = f"{GRPO_64} --epochs 1", f"{GRPO_64} --epochs 4"

EXPERIMENTS = {
    # Gao et al. 2022, arXiv:2210.10760, fig. 1
    "overoptimization": Experiment(
        "PPO on a reward model: when does pleasing it stop being right?",
        {("", "β = 0"): f"{PPO_RM} --kl-coef 0",
         ("", "β = 0.01"): f"{PPO_RM} --kl-coef 0.01",
         ("", "β = 0.02"): f"{PPO_RM} --kl-coef 0.02",
         ("", "β = 0.05"): PPO_RM},
        [("right answers, greedy (share)", "answer_kl", "eval_greedy"),
         ("the reward model's score", "answer_kl", "reward")],
        expected=(
            "The reward model has seen answers of the SFT model only: the further the policy "
            "moves away, the less its score says. Without a penalty the score should rise to the "
            "end, and accuracy rise and then fall (Gao et al. 2022). A larger β should end nearer "
            "to the best accuracy, at a lower score."),
        seeds=5),
    "group_size": Experiment(
        "GRPO, 256 samples per step: many prompts, or many answers to each?",
        {("", "G = 2"): f"{GRPO} --prompts-per-step 128 --group-size 2",
         ("", "G = 4"): f"{GRPO} --prompts-per-step 64 --group-size 4",
         ("", "G = 8"): GRPO,
         ("", "G = 16"): f"{GRPO} --prompts-per-step 16 --group-size 16",
         ("", "G = 32"): f"{GRPO} --prompts-per-step 8 --group-size 32",
         ("", "G = 64"): f"{GRPO} --prompts-per-step 4 --group-size 64"},
        [RIGHT, NO_SIGNAL],
        base="G = 8",
        expected=(
            "At equal samples a larger group has a mean with less noise of its own and is less "
            "often all right or all wrong; but there are fewer prompts, and some are harder than "
            "others. So G = 2 should be the worst, from 8 on little should change, and four "
            "prompts a step (G = 64) should cost something.")),
    "kl": Experiment(
        "Dr. GRPO with β = 0.5: which penalty keeps the policy near its start?",
        {("", "none"): f"{DR_GRPO} --kl-coef 0",
         ("", "k1 in the loss"): f"{STRONG} --kl-estimator k1",
         ("", "k2 in the loss"): f"{STRONG} --kl-estimator k2",
         ("", "k3 in the loss"): STRONG,
         ("", "k1 in the reward"): f"{DR_GRPO} --kl-in reward --kl-coef 0.5"},
        [KL, RIGHT],
        base="none",
        expected=(
            "In the loss, k1 has the gradient of ∇log π, whose mean is 0: it should hold nothing. "
            "k2 has the gradient of the KL, and k3 nearly so near the reference; so has k1 in the "
            "reward. These three should end with a KL well below that without a penalty, at some "
            "cost in accuracy.")),
    "clip": Experiment(
        "GRPO: how many passes over a batch, and what does the clip do?",
        {("clip 0.2", "epochs = 1"): f"{GRPO_25} --epochs 1",
         ("no clip", "epochs = 1"): f"{GRPO_25} --epochs 1 {NO_CLIP}",
         ("clip 0.2", "epochs = 2"): f"{GRPO_25} --epochs 2",
         ("no clip", "epochs = 2"): f"{GRPO_25} --epochs 2 {NO_CLIP}",
         ("clip 0.2", "epochs = 4"): f"{GRPO_25} --epochs 4",
         ("no clip", "epochs = 4"): f"{GRPO_25} --epochs 4 {NO_CLIP}"},
        [RIGHT, KL],
        base="clip 0.2, epochs = 1",
        expected=(
            "With one pass (two updates) the ratio stays near 1, and the clip should change "
            "nothing. With two and four passes the policy moves further than its answers can say: "
            "without the clip KL should be higher and accuracy lower. With it, four passes should "
            "be as good as one, or better.")),
    "lambda": Experiment(
        "PPO on the verifier: λ of GAE, and what the critic starts as",
        {("critic from the policy", "λ = 0"): f"{PPO_25} --lam 0",
         ("critic from the reward model", "λ = 0"): f"{PPO_25} --lam 0 {CRITIC_RM}",
         ("critic from the policy", "λ = 0.5"): f"{PPO_25} --lam 0.5",
         ("critic from the reward model", "λ = 0.5"): f"{PPO_25} --lam 0.5 {CRITIC_RM}",
         ("critic from the policy", "λ = 0.95"): f"{PPO_25} --lam 0.95",
         ("critic from the reward model", "λ = 0.95"): f"{PPO_25} --lam 0.95 {CRITIC_RM}",
         ("critic from the policy", "λ = 1"): f"{PPO_25} --lam 1",
         ("critic from the reward model", "λ = 1"): f"{PPO_25} --lam 1 {CRITIC_RM}"},
        [RIGHT, ("explained variance of the critic", "setting", "explained_variance")],
        base="critic from the policy, λ = 0.95",
        expected=(
            "λ = 1 trusts rewards alone: no bias, and the most noise. λ = 0 trusts the critic "
            "alone: with one that starts from nothing PPO should learn the slowest, with the "
            "reward model's trunk sooner. Answers are short, so 0.95 and 1 should do alike. "
            "Explained variance should be highest with λ = 0, where returns are made of the "
            "critic's own values.")),
    "reference": Experiment(
        "Dr. GRPO with β = 0.5: a reference that stays, follows, or is replaced",
        {("", "frozen"): STRONG,
         ("", "EMA 0.9"): f"{STRONG} --ref-ema 0.9",
         ("", "synced every 10"): f"{STRONG} --ref-sync 10"},
        [KL, RIGHT],
        base="frozen",
        expected=(
            "Towards a frozen reference, β = 0.5 should cost accuracy: the best policy is then "
            "π_ref exp(r / β), normalised, which is far from always right. A reference that "
            "follows gives way: accuracy should come near that without a penalty, and KL to the "
            "SFT model be larger.")),
    "aggregation": Experiment(
        "GRPO: what is averaged over what, and what that does to length",
        {("", "seq-mean"): GRPO,
         ("", "token-mean"): f"{GRPO} --aggregate token-mean",
         ("", "seq-sum"): f"{GRPO} --aggregate seq-sum"},
        [("answer length (tokens)", "step", "response_length"), RIGHT],
        base="seq-mean",
        expected=(
            "The right answers are the longer ones here, since they think. An average over each "
            "answer (seq-mean) gives their tokens less weight, so it should be somewhat later "
            "than token-mean and seq-sum; but the task is easy, and all three should end at the "
            "same accuracy and length.")),
    "no_signal": Experiment(
        "DAPO: groups without signal, left out or replaced",
        {("", "left out"): f"{DAPO} --no-signal drop",
         ("", "replaced"): DAPO},
        [NO_SIGNAL, ("samples per step", "step", "samples"), RIGHT],
        base="left out",
        expected=(
            "Replaced groups make every update one of 256 answers that say something. So accuracy "
            "should be higher at the same number of steps, for more samples a step, and the more "
            "samples the fewer groups have a signal.")),
    # Without runs: a world of its own, lab/NAME.py.
    "hard": Experiment(
        "Rewards are rare: one answer in forty is right. Who learns from the few, and how soon?",
        {},
        [("mean reward of all samples (share)", "setting", "mean_reward"),
         ("answers sampled until half are right", "setting", "half_samples"),
         RIGHT],
        base="GRPO",
        expected=(
            "(1) The right answers are the long ones, and it is the first token that decides. An "
            "average over each answer (GRPO, GSPO) gives a token of a right answer an eighth of "
            "the weight of a wrong one's: these two are the slowest. Dr. GRPO, DAPO, CISPO, "
            "REINFORCE++, RLOO, ReMax, REINFORCE, and GRPO with a token mean, are faster. "
            "(2) Where hardly anything is right there is hardly anything to subtract: REINFORCE "
            "is as fast as RLOO. "
            "(3) At equal answers, the size of a group hardly matters. To replace groups without "
            "signal takes fewer steps, but not fewer answers. "
            "(4) At temperature 1.3 a rare token comes more often, and three additions in a row "
            "go wrong more often: slower. "
            "(5) Four passes are faster than one. An upper clip of 0.2 lets a probability of 0.03 "
            "grow to 0.036 in a step: with 0.28 it is faster, and without one the fastest. "
            "(6) An entropy bonus lifts every rare token, not just the right one: 0.01 changes "
            "nothing, 0.05 harms. "
            "(7) PPO and A2C begin later: for two steps only the critic learns, and λ = 0.95 "
            "carries a sixth of a reward over 35 tokens."),
        settings="a model a third as large, 64 answers per step, 30 steps, learning rate 5e-5",
        seeds=5,
        draws=True),
    "credit": Experiment(
        "PPO's critic: does V fall at the token where an addition goes wrong?",
        {},
        [("correlation of V with the share of right continuations", "setting", "correlation"),
         ("wrong answers whose V falls most at the first wrong token (share)", "setting",
          "at_wrong_value"),
         ("the same, or at one of the two tokens after it (share)", "", "near_wrong_value"),
         ("correlation of PPO's advantage with what a token changed", "setting", "credit_ppo")],
        base="after 30 steps",
        expected=(
            "A critic that starts as the policy's trunk with V = 0 knows little after 6 steps "
            "(correlation under 0.5) and most at the end (over 0.8). Then V of a wrong answer "
            "falls most at the first wrong token, in at least half of them. So PPO's advantage has "
            "a correlation with what a token really changed, and GRPO's, one number for the "
            "whole answer, has next to none. At equal answers PPO is then faster than GRPO "
            "once its critic is good; at equal seconds it is not, since its steps cost more."),
        settings=("the runs of hard; 8 right and 8 wrong answers of each, 32 continuations of "
                  "each prefix"),
        draws=True),
    "length": Experiment(
        "An answer may run on after its reward is decided: what makes it longer?",
        {},
        [("length of wrong answers (tokens)", "step", "wrong_length"),
         ("length of right answers (tokens)", "step", "right_length"),
         ("wrong answers longer by (tokens)", "step", "gap")],
        base="seq-sum",
        expected="What follows the verdict can't change the reward, so an unbiased gradient leaves "
        "length alone, but for a random walk. seq-mean divides an answer's gradient by the "
        "answer's own length: a wrong token costs less the longer its answer is, and a right one "
        "earns more the shorter its answer is. So wrong answers should grow towards the limit of "
        "48 tokens, and right ones shrink towards 3, the least there can be. seq-sum divides by a "
        "constant, so neither should move. token-mean divides by the tokens of all 256 answers, "
        "of which an answer's own are a small part: its bias is smaller by about that factor, so "
        "it should do as seq-sum does.",
        settings=("a model of 2 layers, 256 answers per step in groups of 8, 40 steps, learning "
                  "rate 5e-4"),
        seeds=5),
    "stale": Experiment(
        "Answers sampled by something else than the policy: what does it cost?",
        {},
        [("right answers, sampled (share)", "setting", "accuracy"),
         ("KL of the sampler to the policy (nats per answer)", "setting", "kl"),
         ("spread of a token's log-ratio (nats)", "setting", "spread")],
        base="fresh",
        expected="The policy gradient is an expectation over the policy's own answers; over "
        "another sampler's it is biased, and the more so the further that sampler is away. "
        "bfloat16 only rounds: the log-ratio of a token should spread by about a hundredth, and "
        "accuracy should not suffer. The older the weights, the slower the policy should learn, "
        "and with 4 steps it should not reach what fresh answers teach. GRPO's own ratio can't "
        "help: its old log-probs are computed anew. The sampler's log-probs in the ratio should "
        "help, because the clip leaves out tokens that have already moved; truncated weights "
        "should help too, and neither in full, since a token's weight leaves out the tokens before "
        "it. At temperature 0.8 the sampler is surer than the policy that is scored: answers are "
        "less varied, and we expect a small loss that the weights repair.",
        settings=("a model of 2 layers, 256 answers per step in groups of 8, 60 steps, learning "
                  "rate 1e-3"),
        seeds=5),
    "clip_kl": Experiment(
        "GRPO, 64 answers per step: does the clip hold the policy, or the KL penalty?",
        {("1 epoch", "clip 0.2, β = 0"): f"{EPOCHS_1} --kl-coef 0",
         ("1 epoch", "clip 0.2, β = 0.05"): f"{EPOCHS_1} --kl-coef 0.05",
         ("1 epoch", "no clip, β = 0"): f"{EPOCHS_1} --kl-coef 0 {NO_CLIP}",
         ("1 epoch", "no clip, β = 0.05"): f"{EPOCHS_1} --kl-coef 0.05 {NO_CLIP}",
         ("4 epochs", "clip 0.2, β = 0"): f"{EPOCHS_4} --kl-coef 0",
         ("4 epochs", "clip 0.2, β = 0.05"): f"{EPOCHS_4} --kl-coef 0.05",
         ("4 epochs", "no clip, β = 0"): f"{EPOCHS_4} --kl-coef 0 {NO_CLIP}",
         ("4 epochs", "no clip, β = 0.05"): f"{EPOCHS_4} --kl-coef 0.05 {NO_CLIP}",
         ("4 epochs", "clip 0.2 to 0.28, β = 0"): f"{EPOCHS_4} --kl-coef 0 --clip-high 0.28"},
        [RIGHT, KL, ("one of 8 answers is right: pass@8 (share)", "setting", "pass@8"),
         ("entropy (nats per token)", "setting", "entropy")],
        base="4 epochs, clip 0.2, β = 0",
        expected="Both hold the policy near something: the clip near the policy that sampled this "
        "step, the KL penalty near the policy of the start. With one epoch (two updates) the ratio "
        "is near 1 and the clip hardly acts: only the penalty should lower the KL to the start. "
        "With four (eight updates) the clip should lower it as well, and save accuracy, and most "
        "where there is no penalty: one of the two should be nearly enough. A higher upper clip "
        "(DAPO) lets improbable tokens of right answers rise by more per step: entropy and pass@8 "
        "should end higher."),
    "reward_models": Experiment(
        "Over-optimisation: more pairs, three reward models instead of one, best of n",
        {},
        [("right answers, policy gradient (share)", "answer_kl", "gold"),
         ("right answers, best of n (share)", "answer_kl", "best_gold"),
         ("the reward, policy gradient", "answer_kl", "proxy"),
         ("the reward, best of n", "answer_kl", "best_proxy"),
         ("right answers, best of 8 (share)", "", "best_of_8"),
         ("right answers, policy gradient at the KL of best of 8 (share)", "", "gold_at_8"),
         ("right answers, policy gradient at the KL of best of 256 (share)", "", "gold_at_256")],
        base="1,024 pairs",
        expected="Over √KL, accuracy rises while the reward model is right about what it sees, and "
        "then falls while its score goes on rising (Gao et al. 2022). More pairs and ensembles "
        "should move the peak later and soften the fall, for errors that single models do not "
        "share cost nothing in a mean; the least of three should be the most careful (Coste et al. "
        "2023). Of one nat, best of n should make more than the policy gradient: it is nearly the "
        "most reward that a nat can buy, while the policy's KL is also spent on things that the "
        "reward does not ask for. But it ends at 4.5 nats, before the deep fall.",
        settings=("64 answers per step in groups of 4, 20 steps, learning rate 4e-4; where no n is "
                  "named, n is 256")),
    "forgetting": Experiment(
        "A model that knows two tasks is trained by reward on one: what is left of the other?",
        {},
        [("right answers at the other task (share)", "trained", "other"),
         ("right answers at the other task (share)", "answer_kl", "other"),
         ("right answers at the trained task (share)", "step", "trained"),
         ("KL to the start at the trained task (nats per answer)", "step", "answer_kl")],
        base="β = 0",
        expected="No gradient keeps the other task, and the two share all weights: accuracy at it "
        "should fall while that at the trained task rises, and the longer the more. A KL penalty "
        "on answers of the trained task (β = 0.1, 0.5) holds the policy only where it is asked, "
        "but the weights that it holds are the same: it should soften the fall, at some cost in "
        "speed. Demonstrations of the other task in each update (an SFT loss of weight 0.5, as in "
        "InstructGPT's PPO-ptx) should prevent it altogether. What is forgotten should go with the "
        "KL to the start (Shenfeld et al. 2025). The same updates by demonstrations of the trained "
        "task, instead of by reward, should reach the same accuracy and forget more.",
        settings=("a model of 3 layers, 128 answers per step in groups of 8, 80 steps, learning "
                  "rate 3e-4")),
}
