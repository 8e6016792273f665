"""The names of the figures are a promise."""

from retcon.metrics import METRICS


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
