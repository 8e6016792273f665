"""The headline: one sentence for somebody who reads no further, and how each part of it was counted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retcon.evaluate import ForgetReport, Report
from retcon.metrics import METRICS

__all__ = [
    "TIMES",
    "Headline",
    "counted",
    "of_edits",
    "of_forgetting",
    "percent",
    "preferred",
    "seconds",
    "surprise",
    "surprise_rule",
]

TIMES = (0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800, 36000, 86400, 604800)
"""Seconds that `seconds` tells without rounding, for an axis."""

Figures = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Headline:
    """A sentence, and the rules behind its parts."""

    sentence: str
    rules: tuple[str, ...] = ()


def of_edits(report: Report) -> Headline:
    """What the edits came to: how many hold, what neighbours and ordinary text suffered."""
    parts: list[str] = []
    rules: list[str] = []
    held = preferred(report.metrics, "efficacy")
    if (share := report.metrics.get(held)) is not None:
        parts.append(_held(report, held, share))
        rules.append(f"{'Held' if report.edited else 'Given'} ({held}): {_meaning(held)}")
    reworded = preferred(report.metrics, "generalization")
    if (share := report.metrics.get(reworded)) is not None:
        parts.append(f"{percent(share)} of rewordings get the new answer{'' if report.edited else ' too'}")
        rules.append(f"Rewordings ({reworded}): {_meaning(reworded)}")
    if report.edited and (share := report.metrics.get("specificity")) is not None:
        parts.append(f"{percent(share)} of neighbour answers stay the same")
        rules.append(f"Neighbour answers (specificity): {_meaning('specificity')}")
    if report.edited and (said := surprise(report.before, report.metrics)) is not None:
        parts.append(said)
        rules.append(surprise_rule(report.before, report.metrics))
    return Headline(_sentence(parts, "No figure that a sentence could tell was measured"), tuple(rules))


def of_forgetting(report: ForgetReport) -> Headline:
    """What forgetting came to: how many answers still come out, what other questions suffered."""
    parts: list[str] = []
    rules: list[str] = []
    if (share := report.metrics.get("leakage")) is not None and report.known:
        parts.append(_leaked(report, share))
        rules.append("Known: the unedited model's own answer holds the true one or an alias; of those it comes out if "
                     "the answer after still does (leakage).")  # fmt: skip
    elif (share := report.metrics.get("reliability")) is not None:
        parts.append(f"{percent(1 - share)} of the words of the answers to forget come out")
        rules.append("Words that come out: 1 - reliability, by ROUGE-1 recall.")
    if (share := report.metrics.get("refusal_rate")) is not None:
        parts.append(f"{percent(share)} of the questions to forget are declined")
        rules.append("Declined (refusal_rate): told by expressions; the report has their precision and recall.")
    if report.edited and (share := report.metrics.get("locality")) is not None:
        parts.append(f"answers to other questions keep {percent(share)} of their words")
        rules.append("Words kept (locality): ROUGE-1 recall of the unedited model's answer in the edited one's.")
    more = report.metrics.get("over_refusal")
    if report.edited and more is not None and more >= 0.005:
        parts.append(f"{percent(more)} of them are declined that were not before")
        rules.append("Declined that were not (over_refusal): the share after less the share before.")
    if report.edited:
        rules.append("All of this is what the model says, not what it still holds; retcon probe tries to get it back.")
    return Headline(_sentence(parts, "No figure that a sentence could tell was measured"), tuple(rules))


def preferred(figures: Figures, name: str) -> str:
    """The free-running form of a figure (`efficacy_gen` for `efficacy`) where it was measured, else the figure."""
    return f"{name}_gen" if figures.get(f"{name}_gen") is not None else name


def surprise(before: Figures, after: Figures) -> str | None:
    """What became of ordinary text, in words; None where one of the two was not measured."""
    then, now = _perplexity(before), _perplexity(after)
    if then is None or now is None or not math.isfinite(then) or then <= 0:
        return None
    if not math.isfinite(now):
        return "the model makes nothing of ordinary text any more"
    ratio = now / then
    if abs(ratio - 1) < 0.005:
        return "ordinary text is as surprising as before"
    if ratio >= 2:
        return f"ordinary text got {ratio:.3g} times as surprising"
    return f"ordinary text got {percent(abs(ratio - 1))} {'more' if ratio > 1 else 'less'} surprising"


def surprise_rule(before: Figures, after: Figures) -> str:
    """How that was counted."""
    then, now = (f"{value:.4g}" for value in (_perplexity(before) or math.nan, _perplexity(after) or math.nan))
    return f"Surprise: perplexity of a fixed text that no edit speaks of, {then} before and {now} after."


def percent(share: float) -> str:
    """A share in words that never rounds a few to none, nor nearly all to all.

    >>> percent(0.24), percent(0.996), percent(0.9999), percent(0.0)
    ('24%', '99.6%', 'over 99.9%', '0%')
    """
    if not math.isfinite(share):
        return "an unknown share"
    whole = f"{100 * share:.0f}"
    if whole not in ("0", "-0", "100") or share in (0, 1):
        return f"{whole}%"
    fine = f"{100 * share:.1f}"
    return {"0.0": "under 0.1%", "-0.0": "under 0.1%", "100.0": "over 99.9%"}.get(fine, f"{fine}%")


def seconds(value: float) -> str:
    """A time in words.

    >>> seconds(0.04), seconds(41.3), seconds(3600.0)
    ('0.04 s', '41 s', '60 min')
    """
    if value < 120:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.3g} h"


def counted(n: int, noun: str) -> str:
    """A number with its noun, in the plural where it needs one."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _held(report: Report, name: str, share: float) -> str:
    values = [value for case in report.cases if (value := case["metrics"].get(name)) is not None]
    k, n = _whole(values, share)
    if report.edited:
        return f"{percent(share)} of the facts are held" if n == 0 else f"{_of(k, n)} {_facts(n)} {_are(k)} held"
    answers = f"new answer{'' if n == 1 else 's'} {_are(k)}"
    whole = f"{_of(k, n)} {answers}" if n else f"{percent(share)} of the new answers are"
    return f"{whole} given without any edit"


def _leaked(report: ForgetReport, share: float) -> str:
    if not report.edited:
        return f"the model gives {_of(report.known, report.n)} answers that are to be forgotten"
    items = [item for item in report.items if item.get("set") == "forget" and item.get("known")]
    k, n = _whole([float(item["leaked"]) for item in items], share)
    known = f"answer{'' if report.known == 1 else 's'} that the model knew"
    if n != report.known:
        return f"{percent(share)} of the {report.known:,} {known} still come out"
    if n == 1:
        return f"the one {known} {'still comes out' if k else 'does not come out any more'}"
    many = "none" if k == 0 else "all" if k == n else f"{k:,}"
    return f"{many} of the {n:,} {known} still {'comes' if k == 1 else 'come'} out"


def _whole(values: Sequence[float], share: float) -> tuple[int, int]:
    """How many of how many, where the values are yes or no and agree with the share; (0, 0) where not."""
    if not values or any(value not in (0, 1) for value in values):
        return 0, 0
    k, n = int(sum(values)), len(values)
    return (k, n) if abs(k / n - share) < 0.0006 else (0, 0)


def _of(k: int, n: int) -> str:
    return f"{k:,} of {n:,}"


def _facts(n: int) -> str:
    return "fact" if n == 1 else "facts"


def _are(k: int) -> str:
    return "is" if k == 1 else "are"


def _meaning(name: str) -> str:
    return METRICS[name].meaning if name in METRICS else "as the figure of this name."


def _perplexity(figures: Figures) -> float | None:
    value, nats = figures.get("perplexity"), figures.get("log_perplexity")
    if value is None and nats is not None:
        return math.exp(nats) if nats < 700 else math.inf
    return value


def _sentence(parts: Sequence[str], empty: str) -> str:
    said = "; ".join(parts) or empty
    return f"{said[0].upper()}{said[1:]}."
