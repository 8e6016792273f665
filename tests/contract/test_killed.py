"""A run that is killed leaves its patch whole or not at all, and goes on to the patch of an undisturbed run."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retcon.lm import LM
from retcon.methods import METHODS
from retcon.patch import Patch
from retcon.targets import Store
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.contract import RETAIN, quick, unlearns

ENDLESS = """
import sys
from itertools import count
from pathlib import Path
from retcon.lm import LM
from retcon.targets import Store
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.contract import RETAIN, quick, unlearns

name, folder = sys.argv[1], Path(sys.argv[2])
lm = LM.wrap(tiny_model("llama"), tiny_tokenizer())
(folder / "ready").touch()
for run in count():
    state = None
    for edit in tiny_edits(3):
        method, stores = quick(name), [Store(folder / f"targets-{run % 2}.sqlite")]
        state = method.edit(lm, [edit], retain=RETAIN if unlearns(method) else (), state=state, stores=stores)
        state.save(folder / "patch")
"""

FAST = ("memit", "ece", "ultraedit", "grace", "wise", "scr", "lora", "npo")
"""One method for each way of going on from a file: the others go on by the code of one of these."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in METHODS])
def test_a_killed_run_leaves_nothing_half_written(name: str, tmp_path: Path) -> None:
    lm, method = LM.wrap(tiny_model("llama"), tiny_tokenizer()), quick(name)
    retain = RETAIN if unlearns(method) else ()
    wanted: list[Patch] = []
    for edit in tiny_edits(3):
        wanted.append(method.edit(lm, [edit], retain=retain, state=wanted[-1] if wanted else None))
    wait = random.Random(name)
    run = subprocess.Popen([sys.executable, "-c", ENDLESS, name, str(tmp_path)])
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "ready").exists():
            assert run.poll() is None, "the run ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3 + 0.4 * wait.random())
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    if (tmp_path / "patch").exists():
        done = Patch.load(tmp_path / "patch")
        assert done.id in {patch.id for patch in wanted}
        rest = tiny_edits(3)[len(done.edits) :]
        for edit in rest:
            done = method.edit(lm, [edit], retain=retain, state=done)
        assert done.id == wanted[-1].id, "from what a killed run has saved, another patch follows"
    for file in tmp_path.glob("targets-*.sqlite"):
        again = method.edit(lm, tiny_edits(1), retain=retain, stores=[Store(file)])
        assert again.id == wanted[0].id, "a kept target is damaged"
