"""What it takes to repeat an evaluation."""

import json

import torch

from retcon.evaluate import provenance
from retcon.lm import LM
from retcon.testing import tiny_model, tiny_tokenizer


def test_the_model_is_named_with_its_form_and_its_bos() -> None:
    lm = LM.wrap(tiny_model("llama", dtype=torch.bfloat16), tiny_tokenizer("bos"), name="tiny")
    found = provenance.model(lm)
    assert (found["name"], found["dtype"], found["bos"], found["chat"]) == ("tiny", "bfloat16", ["<s>"], False)
    assert found["fingerprint"] == lm.fingerprint()
    json.dumps(found)


def test_machine_and_versions_are_plain_and_filled_in() -> None:
    assert all(provenance.versions().values())
    machine = provenance.hardware()
    assert machine["cpu"]
    assert machine["threads"] == torch.get_num_threads()
    json.dumps([machine, provenance.versions()])


def test_no_patch_is_none() -> None:
    assert provenance.of_patch(None) is None
