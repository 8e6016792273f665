"""`retcon stats`: moments of the layers asked for."""

from pathlib import Path

from tests.cli.conftest import Retcon


def test_moments_are_collected_and_told(retcon: Retcon, model: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("A lighthouse is a tower with a lamp. " * 40)
    command = ["stats", "--model", model, "--corpus", corpus, "--layers", 1, 2, "--tokens", 200]
    found = retcon(*command, "--json").json
    assert [path.split(".")[-3] for path in found["modules"]] == ["1", "2"]
    assert all(kept["tokens"] == 200 for kept in found["modules"].values())
    assert "down_proj" in retcon(*command).out
