"""A benchmark for people."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.report import samples

from retcon.errors import RetconError
from retcon.report.bench import Row, headline, html, markdown, pictures, table, write
from retcon.report.rows import boards, failures


def row(method: str, score: float, **more: Any) -> Row:
    made: dict[str, Any] = {
        "method": method, "dataset": "zsre", "n": 10, "seconds": 5.0,
        "figures": {"efficacy": score, "specificity": 0.9, "score": score, "perplexity": 22.0},
        "before": {"perplexity": 20.0}, "intervals": {"score": (score - 0.1, score + 0.1)},
    }  # fmt: skip
    return made | more  # type: ignore[return-value]


def printed(rows: list[Row]) -> str:
    stream = StringIO()
    Console(file=stream, width=140, color_system=None).print(table(rows))
    return stream.getvalue()


RENDERINGS = {"table": printed, "markdown": markdown, "html": html}


def test_the_headline_names_the_best_and_who_is_too_close() -> None:
    told = headline([row("rome", 0.5), row("memit", 0.9), row("emmet", 0.85)])
    assert told.sentence == (
        "Of 3 methods, memit does best with 10 facts of zsre: 90% are held, 90% of neighbour answers stay the same, "
        "ordinary text got 10% more surprising and it takes 5 s; emmet is too close to call."
    )
    assert "highest score" in told.rules[0]


def test_the_headline_of_several_boards_counts_who_leads() -> None:
    a, b = row("a", 0.9), row("b", 0.5)
    told = headline([a, b, row("a", 0.9, n=20), row("b", 0.5, n=20), row("b", 0.9, n=30)])
    assert told.sentence.startswith("In 2 of 3 comparisons a does best; with 10 facts of zsre, 90% are held")
    split = headline([a, b, row("b", 0.9, n=20)])
    assert split.sentence.startswith(
        "No method does best throughout: a and b do best in 1 of 2 comparisons each; a with"
    )


def test_failures_stand_first_and_are_counted() -> None:
    rows = [row("memit", 0.9), row("ece", 0.0, error="out of <memory>", figures={}), row("empty", 0.0, figures={})]
    assert headline(rows).sentence.endswith("2 cells have no figures.")
    assert [one["method"] for one in failures(rows)] == ["ece", "empty"]
    for kind, render in RENDERINGS.items():
        text = render(rows)
        assert text.index("out of") < text.rindex("90%"), kind
    assert "&lt;memory&gt;" in html(rows)
    assert headline(rows[1:]).sentence == "None of 2 cells of the benchmark has figures."


@pytest.mark.parametrize("kind", RENDERINGS)
def test_boards_are_sorted_and_show_harms_beside_gains(kind: str) -> None:
    text = RENDERINGS[kind]([row("beta", 0.4), row("alpha", 0.8), row("gamma", 0.3, seconds=None)])
    places = [text.index(part) for part in ("alpha", "beta", "gamma")]
    assert places == sorted(places)
    for part in ("80%", "90%", "+10%", "0.800", "5 s"):
        assert part in text


def test_seeds_are_averaged_and_their_intervals_span_all() -> None:
    (board,) = boards([row("a", 0.4, seed=0), row("a", 0.6, seed=1)])
    (entry,) = board.entries
    assert entry.seeds == 2
    assert entry.figures["score"] == pytest.approx(0.5)
    assert entry.intervals["score"] == pytest.approx((0.3, 0.7))
    assert entry.surprise == pytest.approx(0.1)
    assert "mean of 2 seeds" in html([row("a", 0.4, seed=0), row("a", 0.6, seed=1)])
    assert "a (2 seeds)" in printed([row("a", 0.4, seed=0), row("a", 0.6, seed=1)])


def test_a_figure_that_a_seed_lacks_is_no_figure() -> None:
    rows = [row("a", 0.4), row("a", 0.6, figures={"efficacy": 1.0, "score": None})]
    (board,) = boards(rows)
    assert board.entries[0].figures["score"] is None
    assert board.entries[0].figures["efficacy"] == pytest.approx(0.7)


def test_free_running_scores_rank_where_they_were_measured() -> None:
    a = row("a", 0.9, figures={"score": 0.9, "score_gen": 0.1})
    b = row("b", 0.5, figures={"score": 0.5, "score_gen": 0.5})
    (board,) = boards([a, b])
    assert [entry.method for entry in board.entries] == ["b", "a"]
    assert board.entries[0].ranked_by == "score_gen"


def test_models_sets_sizes_and_modes_are_boards_of_their_own() -> None:
    rows = [row("a", 0.5), row("a", 0.5, n=20), row("a", 0.5, model="m"), row("a", 0.5, mode="sequential")]
    assert len(boards([*rows, row("a", 0.5, dataset="b")])) == 5
    assert 'href="#board-5"' in html([*rows, row("a", 0.5, dataset="b")])


def test_a_comparison_is_named_by_what_differs() -> None:
    (board,) = boards([row("a", 0.5, n=1000, model="m", mode="sequential")])
    assert (board.facts, board.title) == ("1,000 facts of zsre, sequential", "1,000 facts of zsre on m, sequential")


def test_plots_are_drawn_from_two_methods_on() -> None:
    kept = [{"edits": 5, "figures": {"efficacy": 1.0}}, {"edits": 10, "figures": {"efficacy": 0.5}}]
    two = html([row("a", 0.5, retention=kept), row("b", 0.6)])
    for name in ("Efficacy against harm", "Time against quality", "Retention"):
        assert name in two
    assert "Efficacy against harm" not in html([row("a", 0.5)])


def test_the_plots_of_a_board_are_had_by_name() -> None:
    (board,) = boards([row("a", 0.5), row("b", 0.6, seconds=None), row("c", 0.7)])
    found = pictures(board)
    assert list(found) == ["harm", "time"]
    caption, picture = found["harm"]
    assert caption == "Efficacy against harm: efficacy over neighbour answers that changed (1 - specificity)"
    assert "3 methods; none beats c." in picture
    assert "2 methods" in found["time"][1]


def test_ruined_models_are_shown() -> None:
    bad = row("a", 0.5, figures={"efficacy": None, "score": float("nan"), "perplexity": float("inf")})
    text = html([bad, row("b", 0.4)])
    assert "∞" in text
    assert text.index(">b<") < text.index(">a<")


def test_rows_of_the_bench_command_are_taken_as_they_are(tmp_path: Path) -> None:
    asked = {"model": str(tmp_path), "method": "memit", "options": {"ridge": 1.0}, "dataset": "zsre", "edits": 100,
             "seed": 0, "mode": "sequential", "chunk": 2}  # fmt: skip
    origin = {"command": "retcon bench run.toml --out o", "data": {"sha256": "ab12"}, "versions": {"torch": "2.13"}}
    done = asked | {
        "row": "a", "key": "k", "n": 3, "metrics": {"efficacy": 0.9, "score": 0.8}, "intervals": {"score": [0.7, 0.9]},
        "before": {"efficacy": 0.1}, "seconds": {"edit": 9.0, "judge": 3.0}, "seconds_per_edit": 2.0,
        "retention": {"scores": [[1.0], [0.5, 1.0]], "final": 0.75}, "provenance": origin,
    }  # fmt: skip
    rows: list[dict[str, Any]] = [done | {"metrics": {"score": 0.1}}, done]  # the older of one name goes
    (board,) = boards(rows)
    (entry,) = board.entries
    assert (board.facts, board.model) == ("3 facts of zsre, 2 at a time", tmp_path.name)
    assert (entry.method, entry.seconds, entry.figures["score"]) == ("memit", 6.0, 0.8)
    assert [n for n, _ in entry.retention] == [2, 3]
    assert [found["efficacy"] for _, found in entry.retention] == [1.0, pytest.approx(2 / 3)]
    rows += [asked | {"row": "b", "failed": "out of memory"}, asked | {"row": "c", "na": "no subject"}]
    assert [row["error"] for row in failures(rows)] == ["out of memory", "does not apply: no subject"]
    page = html(rows)
    for part in ("retcon bench run.toml --out o", "ab12", "2.13"):
        assert part in page


def test_a_row_without_a_method_is_refused() -> None:
    with pytest.raises(RetconError, match="row 2 of the benchmark has no method"):
        boards([row("a", 0.5), {"dataset": "x", "n": 1}])


def test_an_empty_benchmark_is_a_page() -> None:
    for render in RENDERINGS.values():
        assert "None of 0 cells of the benchmark has figures." in render([])


def test_files_are_written_and_hold_the_rows(tmp_path: Path) -> None:
    rows = samples.rows()
    paths = write(rows, tmp_path, title="Night run", provenance={"command": "retcon bench run.toml"})
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    told = json.loads(paths[0].read_text(encoding="utf-8"))
    assert len(told["rows"]) == len(rows)
    assert told["provenance"]["command"] in paths[2].read_text(encoding="utf-8")


SEQUENTIAL = {"model": "tiny", "dataset": "zsre", "edits": 4, "n": 4, "mode": "sequential", "chunk": 2}


def followed(method: str, **retention: Any) -> dict[str, Any]:
    figures = {"efficacy": 0.75, "efficacy_gen": 0.5, "score_gen": 0.5}
    return SEQUENTIAL | {
        "method": method,
        "metrics": figures,
        "retention": {"scores": [[1.0], [0.5, 1.0]], **retention},
    }


def test_the_retention_of_the_preferred_figure_is_drawn_and_of_older_rows_the_strict_one() -> None:
    new, old = followed("a", efficacy_gen={"scores": [[1.0], [0.0, 1.0]]}), followed("b")
    for rows, caption, told in (
        ([new], "Retention: efficacy_gen over all edits so far", "a: 100% at 2, 50% at 4"),
        ([old], "Retention: efficacy over all edits so far", "b: 100% at 2, 75% at 4"),
        ([new, old], "Retention: efficacy over all edits so far", "a: 100% at 2, 75% at 4"),
    ):
        (board,) = boards(rows)
        found, picture = pictures(board)["retention"]
        assert found == caption
        assert told in picture


def test_a_ruined_figure_of_a_bench_row_is_shown_and_comes_last_of_equals(tmp_path: Path) -> None:
    whole = row("whole", 0.5)
    figures = {"efficacy": 0.5, "specificity": 0.9, "score": 0.5, "perplexity": None}
    ruined = row("ruined", 0.5, figures=figures, not_finite={"perplexity": "inf"})
    lost = row("lost", 0.5, figures=figures, not_finite={"perplexity": "nan"})
    (board,) = boards([ruined, lost, whole])
    assert board.entries[0].method == "whole"
    text = markdown([ruined, lost, whole])
    assert "| ruined | 50% | 90% | ∞ |" in text
    assert "| lost | 50% | 90% | not a number |" in text
    write([row("raw", 0.5, figures={"efficacy": 0.5, "perplexity": float("inf")})], tmp_path)
    (told,) = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["rows"]
    assert (told["figures"]["perplexity"], told["not_finite"]) == (None, {"perplexity": "inf"})
