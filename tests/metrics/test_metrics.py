"""The names of the figures are a promise."""

from retcon.metrics import FORGET_METRICS, METRICS, described


def test_names_are_pinned() -> None:
    assert list(METRICS) == [
        "efficacy_gen",
        "efficacy",
        "efficacy_prob",
        "efficacy_prefixed",
        "generalization_gen",
        "generalization",
        "generalization_prob",
        "portability_gen",
        "two_hop_gen",
        "specificity_gen",
        "specificity",
        "specificity_prob",
        "neighbourhood_kl",
        "score_gen",
        "score",
        "fluency",
        "perplexity",
        "log_perplexity",
        "log_perplexity_change",
    ]


def test_only_what_moves_and_surprises_is_better_when_lower() -> None:
    lower = [name for name, metric in METRICS.items() if metric.better == "lower"]
    assert lower == ["neighbourhood_kl", "perplexity", "log_perplexity", "log_perplexity_change"]


def test_every_figure_has_its_rule() -> None:
    assert all(metric.rule.endswith(".") for metric in METRICS.values())


def test_figures_of_ability_are_described_by_their_task() -> None:
    assert described(["efficacy", "score"]) == METRICS
    found = described(["efficacy", "ability_word_order"])
    assert list(found) == [*METRICS, "ability_word_order"]
    one = found["ability_word_order"]
    assert (one.kind, one.better, one.share) == ("harm", "higher", True)
    assert "word_order" in one.meaning


def test_names_of_forgetting_are_pinned() -> None:
    assert list(FORGET_METRICS) == [
        "reliability",
        "generalization",
        "locality",
        "locality_near",
        "retain_drift",
        "refusal_rate",
        "over_refusal",
        "refusal_quality",
        "leakage",
        "leak_10",
        "probability",
        "rouge1_recall_porter",
        "rougel_recall_porter",
        "truth_ratio",
        "forget_quality",
        "model_utility",
        "exact_memorisation",
        "extraction_strength",
        "mrr",
        "hit_100",
        "mia_loss",
        "mia_zlib",
        "mia_min_k",
        "mia_min_k_plus_plus",
        "mia_reference",
        "mia_grad_norm",
        "privleak",
        "rel_diff",
    ]
