"""Results made by hand, for views and figures."""

import pytest
import torch

from retcon.locate import Attributions, Suggestion, Trace, Tracing


@pytest.fixture
def made_trace() -> Trace:
    """Ten layers and four tokens; the subject is the second and third; a cost of $5 stands in the prompt."""
    restored = torch.full((10, 4), 0.1, dtype=torch.float64)
    restored[3, 2], restored[9, 3], restored[4, 1] = 0.7, 0.9, 0.05
    return Trace(
        config=Tracing(kind="mlp"),
        prompt="A$ bLue tower\nis $",
        tokens=("A$", " bLue", " tower", "\n"),
        subject=(1, 2),
        answer="tall $x$ indeed",
        token=" tall",
        known=False,
        high=0.9,
        low=0.1,
        columns=(0, 1, 2, 3),
        restored=restored,
    )


@pytest.fixture
def made_scores() -> Attributions:
    """Two facts, three layers, six neurons."""
    scores = {layer: torch.zeros(2, 6) for layer in (1, 4, 5)}
    scores[4][0, 2], scores[4][0, 5], scores[5][0, 1] = 2.0, -0.5, 0.25
    scores[1][1, 0] = 1.0
    return Attributions(scores, torch.tensor([-1.5, 0.5]), ("Paris", "Rome"), ("", "Lima"), "gradient")


@pytest.fixture
def made_suggestion() -> Suggestion:
    """Layers 2 and 3 by tracing; the gradient would take 4 and 5."""
    evidence: dict[str, tuple[float, ...]] = {
        "tracing": (0.0, 0.1, 0.4, 0.3, -0.2, 0.0),
        "gradient": (0.0, 0.0, 1.0, 1.0, 2.0, 3.0),
    }
    windows: dict[str, tuple[int, ...]] = {"tracing": (2, 3), "gradient": (4, 5)}
    return Suggestion((2, 3), "tracing", evidence, windows, 0.875, 3, 4, Tracing(kind="mlp"))
