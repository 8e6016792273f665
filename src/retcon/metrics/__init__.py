"""What Retcon measures: `METRICS` (edits) and `FORGET_METRICS` name the figures; the modules answer one question each.

The names never change meaning. Nothing here knows a model: functions take token scores, texts and numbers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["ABILITY", "FORGET_METRICS", "METRICS", "Metric", "described"]

ABILITY = "ability_"
"""What the names of figures of general ability begin with; the name of a task follows."""


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
    rule: str = ""
    """How it is computed, to the letter."""


_BEGINS = "The greedy text begins, word by word and both in normal form, with the answer or an alias."
_ARGMAX = "Teacher-forced: every token of the answer is the argmax given the prompt and the tokens before it."
_LIKELIER = "The mean log probability a token of the one is above that of the other; a tie is a miss."

METRICS: dict[str, Metric] = {
    "efficacy_gen": Metric(
        "Edit prompts after which the model, writing freely, begins with the new answer or an alias.",
        "higher",
        "gain",
        rule=f"{_BEGINS} Bare edit prompt.",
    ),
    "efficacy": Metric(
        "Edit prompts at which every token of the new answer is the model's first choice.",
        "higher",
        "gain",
        rule=f"{_ARGMAX} Bare edit prompt, the answer as the edit spells it.",
    ),
    "efficacy_prob": Metric(
        "Edit prompts at which the new answer is likelier than the old one (by mean log probability).",
        "higher",
        "gain",
        rule=f"{_LIKELIER} Only where the edit names an old answer.",
    ),
    "efficacy_prefixed": Metric(
        "As efficacy, with each of ten texts written by the unedited model before the prompt.",
        "higher",
        "gain",
        rule="As efficacy, with each text and a full stop before the prompt; a case counts by the mean over the texts.",
    ),
    "generalization_gen": Metric(
        "Paraphrases after which the model, writing freely, begins with the new answer or an alias.",
        "higher",
        "gain",
        rule=f"{_BEGINS} Each paraphrase.",
    ),
    "generalization": Metric(
        "Paraphrases at which every token of the new answer is the model's first choice.",
        "higher",
        "gain",
        rule=f"{_ARGMAX} Each paraphrase.",
    ),
    "generalization_prob": Metric(
        "Paraphrases at which the new answer is likelier than the old one.",
        "higher",
        "gain",
        rule=f"{_LIKELIER} Each paraphrase, where the edit names an old answer.",
    ),
    "portability_gen": Metric(
        "Questions on what follows from the edit after which the model, writing freely, begins with a right answer.",
        "higher",
        "gain",
        rule="The greedy text begins with any of the question's answers. All kinds; by kind in the details.",
    ),
    "two_hop_gen": Metric(
        "As portability_gen, of the questions that need the edited fact and one more.",
        "higher",
        "gain",
        rule='As portability_gen, on questions of the kind "two-hop" or "2-hop" alone.',
    ),
    "specificity_gen": Metric(
        "Neighbour prompts answered right by the unedited model, writing freely, that still are.",
        "higher",
        "harm",
        rule="The greedy text begins with one of the neighbour's answers; asked only where the unedited model's does.",
    ),
    "specificity": Metric(
        "Neighbour prompts at which the first five greedy tokens are those of the unedited model.",
        "higher",
        "harm",
        rule="All five are the argmax, teacher-forced; what follows an end token is left out. No true answer needed.",
    ),
    "specificity_prob": Metric(
        "Neighbour prompts at which their own true answer is likelier than the edit's new one.",
        "higher",
        "harm",
        rule=f"{_LIKELIER} The likeliest of the true answers counts; left out where one of them is the new answer.",
    ),
    "neighbourhood_kl": Metric(
        "How far the next token's distribution moves at neighbour prompts: KL(unedited || edited), in nats.",
        "lower",
        "harm",
        share=False,
        rule="sum_v p(v) (log p(v) - log q(v)), p unedited, q edited, whole vocabulary, after the prompt's last token.",
    ),
    "score_gen": Metric(
        "The harmonic mean of efficacy_gen, generalization_gen and specificity_gen, of those that the cases have.",
        "higher",
        "gain",
        rule="n / (1/a + 1/b + ...); 0 where one is 0, none without efficacy_gen and one of the others.",
    ),
    "score": Metric(
        "The harmonic mean of efficacy, generalization and specificity.",
        "higher",
        "gain",
        rule="3 / (1/a + 1/b + 1/c) of the three figures; 0 where one is 0, none where one is missing.",
    ),
    "fluency": Metric(
        "How little 100 greedy tokens repeat themselves: entropy of their word bigrams and trigrams, in bits.",
        "higher",
        "harm",
        share=False,
        rule="(2/3 H2 + 4/3 H3) / 2; from the first generation prompt, else the edit prompt; of the first 50 cases.",
    ),
    "perplexity": Metric(
        "How surprised the model is by ordinary text, as exp(log_perplexity).",
        "lower",
        "harm",
        share=False,
        rule="exp of log_perplexity.",
    ),
    "log_perplexity": Metric(
        "Minus the mean natural log probability of a token of ordinary text.",
        "lower",
        "harm",
        share=False,
        rule="Every token weighs the same; windows of 512 tokens, the first 8,000 tokens of the text.",
    ),
    "log_perplexity_change": Metric(
        "By how much log_perplexity is above that of the unedited model, in nats.",
        "lower",
        "harm",
        share=False,
        rule="log_perplexity after minus before; the interval draws windows, the same of both.",
    ),
}
"""Every figure of a report, in the order in which reports show them: what the model writes by itself comes first."""


def described(names: Iterable[str]) -> dict[str, Metric]:
    """`METRICS`, and how to read those of `names` that are figures of general ability."""
    found = {
        name: Metric(
            f"Items of the task {name.removeprefix(ABILITY)} that the model gets right.",
            "higher",
            "harm",
            rule="The task's own, which stands in `details.ability` of the report.",
        )
        for name in names
        if name.startswith(ABILITY)
    }
    return METRICS | found


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
    "retain_drift": Metric(
        "Mean change, in nats, of the log probability of a token of the unedited model's own answers to retain "
        "questions.",
        "lower",
        "harm",
        share=False,
        rule="It says how far the model has moved where locality only says whether its likeliest words are the same.",
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
    "mia_reference": Metric("As mia_loss, by the loss minus that of a retain-only model.", "lower", "gain"),
    "mia_grad_norm": Metric(
        "As mia_loss, by the norm of the loss's gradient at a weight tensor, in the mean over these.",
        "lower",
        "gain",
        rule="l2 norms; the floating-point weights of the model count, those of the patch do not.",
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
