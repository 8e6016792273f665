"""The names of the figures are a promise."""

from retcon.metrics import FORGET_METRICS, METRICS


def test_names_are_pinned() -> None:
    assert list(METRICS) == [
        "efficacy",
        "efficacy_prob",
        "efficacy_prefixed",
        "generalization",
        "generalization_prob",
        "specificity",
        "specificity_prob",
        "score",
        "fluency",
        "perplexity",
        "log_perplexity",
    ]


def test_only_perplexity_is_better_when_lower() -> None:
    assert [name for name, metric in METRICS.items() if metric.better == "lower"] == ["perplexity", "log_perplexity"]


def test_names_of_forgetting_are_pinned() -> None:
    assert list(FORGET_METRICS) == [
        "reliability",
        "generalization",
        "locality",
        "locality_near",
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
        "privleak",
        "rel_diff",
    ]
