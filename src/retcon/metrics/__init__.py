"""What Retcon measures: `METRICS` names the figures and says what they mean; the modules answer one question each.

The names never change meaning. Nothing here knows a model: functions take token scores, texts and numbers.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["METRICS", "Metric"]


@dataclass(frozen=True, slots=True)
class Metric:
    """How to read a figure."""

    meaning: str
    """One sentence: what is counted, on which prompts."""
    better: Literal["higher", "lower"]
    kind: Literal["gain", "harm"]
    """Whether it shows what the edit was to achieve, or what it was to leave alone."""
    share: bool = True
    """Whether it is a share between 0 and 1."""


METRICS: dict[str, Metric] = {
    "efficacy": Metric(
        "Edit prompts at which every token of the new answer is the model's first choice.", "higher", "gain"
    ),
    "efficacy_prob": Metric(
        "Edit prompts at which the new answer is likelier than the old one (by mean log probability).", "higher", "gain"
    ),
    "efficacy_prefixed": Metric(
        "As efficacy, with each of ten texts written by the unedited model before the prompt.", "higher", "gain"
    ),
    "generalization": Metric(
        "Paraphrases at which every token of the new answer is the model's first choice.", "higher", "gain"
    ),
    "generalization_prob": Metric(
        "Paraphrases at which the new answer is likelier than the old one.", "higher", "gain"
    ),
    "specificity": Metric(
        "Neighbour prompts at which the first five greedy tokens are those of the unedited model.", "higher", "harm"
    ),
    "specificity_prob": Metric(
        "Neighbour prompts at which their own true answer is likelier than the edit's new one.", "higher", "harm"
    ),
    "score": Metric("The harmonic mean of efficacy, generalization and specificity.", "higher", "gain"),
    "fluency": Metric(
        "How little 100 greedy tokens repeat themselves: entropy of their word bigrams and trigrams, in bits.",
        "higher",
        "harm",
        share=False,
    ),
    "perplexity": Metric(
        "How surprised the model is by ordinary text, as exp(log_perplexity).", "lower", "harm", share=False
    ),
    "log_perplexity": Metric(
        "Minus the mean natural log probability of a token of ordinary text.", "lower", "harm", share=False
    ),
}
"""Every figure of a report, in the order in which reports show them."""
