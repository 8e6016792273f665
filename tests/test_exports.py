"""The public names, pinned: adding one is a decision, losing one breaks users."""

import subprocess
import sys
from types import ModuleType

import pytest

import retcon

NAMES = {
    "LM", "METHODS", "Case", "Edit", "Forget", "Patch", "Probe", "RetconError", "__version__", "edit", "evaluate",
    "evaluate_forgetting", "forget",
}  # fmt: skip


def test_the_public_names_are_these_and_all_resolve() -> None:
    assert set(retcon.__all__) == NAMES
    for name in NAMES:
        assert not isinstance(getattr(retcon, name), ModuleType)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'rewrite'"):
        _ = retcon.rewrite


@pytest.mark.parametrize(
    "lines",
    [
        "import retcon.evaluate; assert callable(retcon.evaluate)",
        "import retcon.forget.target; assert callable(retcon.forget)",
        "import retcon; retcon.forget; from retcon.forget import FAMILIES; assert callable(retcon.forget)",
        "import retcon.evaluate.forgetting; assert callable(retcon.evaluate_forgetting)",
        "import retcon; retcon.evaluate; from retcon.evaluate import Report; assert callable(retcon.evaluate)",
        "import retcon, sys; assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)",
        "import retcon; assert set(retcon.__all__) <= set(dir(retcon))",
    ],
)
def test_in_a_fresh_interpreter(lines: str) -> None:
    subprocess.run([sys.executable, "-c", lines], check=True, timeout=120)
