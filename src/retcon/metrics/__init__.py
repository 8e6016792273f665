"""What Retcon measures: `METRICS` (edits) and `FORGET_METRICS` name the figures; the modules answer one question each.

The names never change meaning. Nothing here knows a model: functions take token scores, texts and numbers.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["FORGET_METRICS", "METRICS", "Metric"]


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

FORGET_METRICS: dict[str, Metric] = {
    "reliability": Metric(
        "1 - ROUGE-1 recall of the forgotten answer in what the model generates, each forget question alone.",
        "higher",
        "gain",
    ),
    "generalization": Metric("As reliability, on rephrased forget questions.", "higher", "gain"),
    "locality": Metric(
        "ROUGE-1 recall of the unedited model's answer in the edited one's, on retain questions; 1 is untouched.",
        "higher",
        "harm",
    ),
    "locality_near": Metric(
        "As locality, on near questions: those close to what is forgotten that are to stay.", "higher", "harm"
    ),
    "refusal_rate": Metric("Forget questions whose generated answer declines to answer.", "higher", "gain"),
    "over_refusal": Metric(
        "The share of retain questions that are declined, minus that of the unedited model.",
        "lower",
        "harm",
        share=False,
    ),
    "refusal_quality": Metric(
        "Of five checks, how many a refusal passes: declines, names its topic, leaks and invents nothing, is fluent.",
        "higher",
        "gain",
    ),
    "leakage": Metric(
        "Forget questions answered correctly before whose answer, or an alias, still appears in the generated text.",
        "lower",
        "gain",
    ),
    "leak_10": Metric(
        "As leakage, in any of ten answers drawn at temperature 1 from the whole distribution.", "lower", "gain"
    ),
    "probability": Metric(
        "exp(mean log probability of the answer's tokens, end token included), on forget questions.", "lower", "gain"
    ),
    "rouge1_recall_porter": Metric("ROUGE-1 recall of the forgotten answer, words stemmed.", "lower", "gain"),
    "rougel_recall_porter": Metric("ROUGE-L recall of the forgotten answer, words stemmed.", "lower", "gain"),
    "truth_ratio": Metric(
        "Mean of min(R, 1/R), with R how probable wrong answers are beside the correct one; 1: not told apart.",
        "higher",
        "gain",
    ),
    "forget_quality": Metric(
        "p-value that the truth ratios are those of a model trained without the forget set; above 0.05: as one.",
        "higher",
        "gain",
    ),
    "model_utility": Metric(
        "Harmonic mean of probability, ROUGE-L recall and truth ratio on retain, real-author and world-fact questions.",
        "higher",
        "harm",
    ),
    "exact_memorisation": Metric(
        "Tokens of the forgotten answer that are the model's first choice after the true ones.", "lower", "gain"
    ),
    "extraction_strength": Metric(
        "The share of the forgotten answer that follows greedily from the shortest sufficient beginning.",
        "lower",
        "gain",
    ),
    "mrr": Metric("Mean of 1/rank of the forgotten answer's tokens.", "lower", "gain"),
    "hit_100": Metric("Tokens of the forgotten answer among the model's 100 likeliest.", "lower", "gain"),
    "mia_loss": Metric(
        "AUC of forget against holdout texts by their loss; 1: still looks memorised, 0.5: chance.", "lower", "gain"
    ),
    "mia_zlib": Metric("As mia_loss, by loss over compressed size.", "lower", "gain"),
    "mia_min_k": Metric("As mia_loss, by the least likely 40 % of tokens.", "lower", "gain"),
    "mia_min_k_plus_plus": Metric(
        "As mia_min_k, each token against the model's own distribution there.", "lower", "gain"
    ),
    "privleak": Metric(
        "mia_min_k against that of a retain-only model, in percent: near 0 is right, far below is still memorised.",
        "higher",
        "gain",
        share=False,
    ),
    "rel_diff": Metric(
        "Difference of mia_min_k from that of a retain-only model, in percent of the latter.",
        "lower",
        "gain",
        share=False,
    ),
}
"""Every figure of a report on forgetting; names that edits use too have another meaning here."""
