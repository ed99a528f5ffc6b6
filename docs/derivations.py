"""The links at the end of each page of docs/DERIVATIONS.md and of its Chinese twin, which
`python docs/concepts.py` writes with every line number as it is now.

Refused are: an equation without a test, a test without an equation, numbers that don't count up,
and pages whose formulas are not the same in both languages.
"""
import re

from concepts import ROOT, code_link, line_of, read, test_link

PAGES = {"English": ROOT / "docs" / "DERIVATIONS.md",
         "Chinese": ROOT / "docs" / "DERIVATIONS.zh.md"}
TESTS = "tests/test_derivations.py"
LABELS = {"English": ("In the code", "Each equation's test", "Other tests"),
          "Chinese": ("代码", "各公式的测试", "其他测试")}
# Of each page: places in the code and further tests, written as in concepts.py.
LINKS = {
    "a": (["losses.py:policy_gradient_loss:loss = aggregate",
           "losses.py:gather_log_probs",
           "advantages.py:discounted_returns:return_t ="],
          ["test_policy_gradient.py::test_reinforce",
           "test_policy_gradient.py::test_rloo",
           "test_policy_gradient.py::test_a_baseline_takes_variance_away"]),
    "b": (["advantages.py:gae:delta = rewards",
           "losses.py:value_loss:loss = error",
           "tests/test_policy_gradient.py:World:# Bellman"],
          ["test_policy_gradient.py::test_the_critic_converges_to_the_bellman_values",
           "test_closed_form.py::test_ends_at_the_optimum"]),
    "c": (["losses.py:_log_ratio",
           "losses.py:_clipped_surrogate:loss = torch.maximum",
           "train_ppo.py:main:= ppo_policy_loss("],
          ["test_policy_gradient.py::test_importance_sampling_corrects_for_another_sampler",
           "test_policy_gradient.py::test_ratio_losses_are_a2c_where_the_policy_has_not_moved",
           "test_losses.py::test_where_the_clip_stops_the_gradient"]),
    "d": (["advantages.py:gae:delta = rewards",
           "advantages.py:gae:advantage = delta",
           "train_ppo.py:main:= gae("],
          ["test_losses.py::test_gae_by_hand",
           "test_policy_gradient.py::test_gae_with_lambda_below_1_needs_the_right_critic",
           "test_policy_gradient.py::test_a_smaller_lambda_has_less_variance"]),
    "e": (["losses.py:value_loss:loss = error",
           "rollout.py:token_values",
           "advantages.py:token_rewards:return penalty",
           "advantages.py:explained_variance"],
          ["test_policy_gradient.py::test_the_critic_is_repaired_by_monte_carlo_targets",
           "test_losses.py::test_score_sits_on_the_last_action"]),
    "f": (["losses.py:kl_k1", "losses.py:kl_k2", "losses.py:kl_k3", "losses.py:kl_exact",
           "advantages.py:token_rewards:penalty = -kl_coef",
           "losses.py:grpo_loss:loss = loss + kl_coef",
           'losses.py:_ratio_stats:"approx_kl"'],
          ["test_losses.py::test_why_there_are_three_kl_estimators",
           "test_closed_form.py::test_k2_in_the_loss_ends_at_the_optimum",
           "test_closed_form.py::test_k3_in_the_loss_ends_elsewhere"]),
    "g": (["losses.py:reward_model_loss:-F.logsigmoid",
           "losses.py:dpo_loss:h = chosen_reward",
           "train_dpo.py:preference_loss:return dpo_loss",
           "advantages.py:grpo_advantages:groups.std",
           "losses.py:grpo_loss:loss = loss + kl_coef",
           "losses.py:aggregate:x = x.sum(1)"],
          ["test_closed_form.py::test_ends_at_the_optimum",
           "test_closed_form.py::test_the_implicit_reward_of_dpo_is_the_score_up_to_a_constant",
           "test_policy_gradient.py::test_dividing_by_length_maximises_reward_per_token",
           "test_policy_gradient.py::test_dividing_by_the_group_std_plays_to_win"]),
}


def sections(text: str) -> dict[str, str]:
    """The pages by their letters."""
    parts = re.split(r"^## (?=[a-z]\. )", text, flags=re.M)
    return {part[0]: part for part in parts[1:]}


def equations(text: str) -> dict[str, str]:
    """Every displayed formula by its number, such as a.7. ValueError if one has none, or not the
    next one of its page."""
    found = {}
    for letter, page in sections(text).items():
        for count, formula in enumerate(re.findall(r"^```math\n(.*?)\n```$", page, re.M | re.S), 1):
            expected = f"{letter}.{count}"
            if not formula.endswith(f" \\qquad \\text{{({expected})}}"):
                raise ValueError(f"expected the number ({expected}) at the end of {formula}")
            found[expected] = formula
    return found


def inline(text: str) -> dict[str, set[str]]:
    """The formulas within sentences, by page."""
    return {letter: set(re.findall(r"\$`(.*?)`\$", page))
            for letter, page in sections(text).items()}


def tests() -> dict[str, str]:
    """The tests of equations, by the number in their names."""
    found = {}
    for name in read(TESTS)[1]:
        match = re.match(r"test_([a-z])(\d+)_", name)
        if match:
            found[f"{match[1]}.{match[2]}"] = name
    return found


def check(english: str, chinese: str, tested: dict[str, str]) -> None:
    """ValueError if an equation has no test, or a test no equation, or the languages differ."""
    numbered = equations(english)
    for number in numbered:
        if number not in tested:
            raise ValueError(f"({number}) has no test in {TESTS}")
    for number, name in tested.items():
        if number not in numbered:
            raise ValueError(f"{TESTS}: {name} is the test of no equation")
    others = equations(chinese)
    for number in numbered | others:
        if numbered.get(number) != others.get(number):
            raise ValueError(f"({number}) is not the same in English and in Chinese")
    others = inline(chinese)
    for letter, formulas in inline(english).items():
        odd = formulas ^ others[letter]
        if odd:
            raise ValueError(f"page {letter}: in one language only: {min(odd)}")


def links(letter: str, language: str) -> str:
    """The last lines of a page."""
    code, others = LINKS[letter]
    own = [f"[{number}](../{TESTS}#L{line_of(TESTS, name)})"
           for number, name in tests().items() if number[0] == letter]
    parts = [" · ".join(map(code_link, code)), " · ".join(own), " · ".join(map(test_link, others))]
    return "".join(f"* **{what}:** {part}\n" for what, part in zip(LABELS[language], parts))


def with_links(language: str) -> str:
    """The whole file as it should be now."""
    text = PAGES[language].read_text(encoding="utf-8")
    for letter, page in sections(text).items():
        head, _, rest = page.partition("<!-- links -->\n")
        _, _, tail = rest.partition("<!-- end -->\n")
        text = text.replace(page, f"{head}<!-- links -->\n{links(letter, language)}"
                            f"<!-- end -->\n{tail}")
    return text


def write() -> None:
    check(*(file.read_text(encoding="utf-8") for file in PAGES.values()), tests())
    for language, file in PAGES.items():
        file.write_text(with_links(language), encoding="utf-8")
