"""The sets that Retcon knows by name: what each is, whose it is, and where its files are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["SETS", "Hub", "SetInfo", "markdown"]

Kind = Literal["edit", "forget", "facts"]


@dataclass(frozen=True, slots=True)
class Hub:
    """Where the hub has a set; only data files are fetched, never code."""

    repo: str
    """Of a data set on the Hugging Face hub."""
    files: Mapping[str, str]
    """Split -> a pattern that one file of it matches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetInfo:
    """What is known of a set before it is read."""

    name: str
    about: str
    """One sentence: what it holds."""
    kind: Kind
    """"edit": facts with new answers; "forget": questions with answers; "facts": facts whose new answers are drawn."""
    licence: str
    citation: str
    """A BibTeX entry."""
    url: str
    """Where its authors publish it."""
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Split -> names (patterns) of the file or files, the best first; the first split is the default."""
    readers: tuple[str, ...] = ("ours",)
    """Formats that it is published in, of `retcon.sets.READERS`."""
    neighbour: str = ""
    """What a neighbour is: the prompts whose answers are to stay."""
    hub: Hub | None = None
    records: Mapping[str, int] = field(default_factory=dict)
    """Split -> how many records its authors published, where that is known."""


_MENG = """@inproceedings{meng2022locating,
  title = {Locating and Editing Factual Associations in {GPT}},
  author = {Meng, Kevin and Bau, David and Andonian, Alex and Belinkov, Yonatan},
  booktitle = {Advances in Neural Information Processing Systems}, year = {2022}, eprint = {2202.05262}
}"""
_LEVY = """@inproceedings{levy2017zero,
  title = {Zero-Shot Relation Extraction via Reading Comprehension},
  author = {Levy, Omer and Seo, Minjoon and Choi, Eunsol and Zettlemoyer, Luke},
  booktitle = {CoNLL}, year = {2017}
}"""
_MITCHELL = """@inproceedings{mitchell2022fast,
  title = {Fast Model Editing at Scale},
  author = {Mitchell, Eric and Lin, Charles and Bosselut, Antoine and Finn, Chelsea and Manning, Christopher D.},
  booktitle = {ICLR}, year = {2022}, eprint = {2110.11309}
}"""
_KNOWEDIT = """@misc{zhang2024comprehensive,
  title = {A Comprehensive Study of Knowledge Editing for Large Language Models},
  author = {Zhang, Ningyu and Yao, Yunzhi and Tian, Bozhong and Wang, Peng and Deng, Shumin and others},
  year = {2024}, eprint = {2401.01286}, archivePrefix = {arXiv}
}"""
_COHEN = """@article{cohen2024evaluating,
  title = {Evaluating the Ripple Effects of Knowledge Editing in Language Models},
  author = {Cohen, Roi and Biran, Eden and Yoran, Ori and Globerson, Amir and Geva, Mor},
  journal = {TACL}, year = {2024}
}"""
_MQUAKE = """@inproceedings{zhong2023mquake,
  title = {{MQuAKE}: Assessing Knowledge Editing in Language Models via Multi-Hop Questions},
  author = {Zhong, Zexuan and Wu, Zhengxuan and Manning, Christopher D. and Potts, Christopher and Chen, Danqi},
  booktitle = {EMNLP}, year = {2023}, eprint = {2305.14795}
}"""
_TOFU = """@inproceedings{maini2024tofu,
  title = {{TOFU}: A Task of Fictitious Unlearning for {LLMs}},
  author = {Maini, Pratyush and Feng, Zhili and Schwarzschild, Avi and Lipton, Zachary C. and Kolter, J. Zico},
  booktitle = {COLM}, year = {2024}, eprint = {2401.06121}
}"""
_PISTOL = """@misc{qiu2024pistol,
  title = {{PISTOL}: Dataset Compilation Pipeline for Structural Unlearning of {LLMs}},
  author = {Qiu, Xinchi and Shen, William F. and Chen, Yihong and Cancedda, Nicola and Stenetorp, Pontus and others},
  year = {2024}, eprint = {2406.16810}, archivePrefix = {arXiv}
}"""
_LUME = """@misc{ramakrishna2025lume,
  title = {{LUME}: {LLM} Unlearning with Multitask Evaluations},
  author = {Ramakrishna, Anil and Wan, Yixin and Jin, Xiaomeng and Chang, Kai-Wei and Bu, Zhiqi and others},
  year = {2025}, eprint = {2502.15097}, archivePrefix = {arXiv}
}"""
_PARAREL = """@article{elazar2021measuring,
  title = {Measuring and Improving Consistency in Pretrained Language Models},
  author = {Elazar, Yanai and Kassner, Nora and Ravfogel, Shauli and Ravichander, Abhilasha and others},
  journal = {TACL}, year = {2021}, eprint = {2102.01017}
}"""
_BUILTIN = """@misc{retcon,
  title = {Retcon: edit what a language model knows}, author = {The Retcon authors}
}"""

_TOFU_SPLITS = (
    *("forget10", "forget05", "forget01", "retain90", "retain95", "retain99", "retain_perturbed"),
    *("full", "real_authors", "world_facts"),
)
_OTHER_SUBJECT = "another subject with the same relation and the same old answer"
_SAME_SUBJECT = "another property of the same subject"
_KNOWEDIT_REPO = "zjunlp/KnowEdit"

_ROWS = (
    SetInfo(
        name="builtin",
        about="common knowledge with paraphrases, neighbours and two-hop questions; ours",
        kind="edit",
        licence="Apache-2.0",
        citation=_BUILTIN,
        url="comes with Retcon",
        readers=(),
        neighbour=_OTHER_SUBJECT + " where there is one, else another subject with the same relation; never edited",
    ),
    SetInfo(
        name="counterfact",
        about="false facts to insert, each with paraphrases, neighbours and openings",
        kind="edit",
        licence="MIT",
        citation=_MENG,
        url="https://rome.baulab.info",
        files={
            "full": ("counterfact.json", "counterfact_full.jsonl*"),
            "10k": ("counterfact_10k.jsonl*",),
            "multi": ("multi_counterfact.json",),
            "flat": ("counterfact-edit.json",),
        },
        readers=("counterfact", "knowedit", "ours"),
        neighbour=_OTHER_SUBJECT,
        hub=Hub("azhx/counterfact", {"full": "data/t*.parquet"}),
        records={"full": 21919},
    ),
    SetInfo(
        name="zsre",
        about="questions with a new answer, a rephrased question, neighbours and consequences",
        kind="edit",
        licence="MIT",
        citation=f"{_LEVY}\n{_MITCHELL}\n{_KNOWEDIT}",
        url="https://github.com/zjunlp/EasyEdit",
        files={
            "test": ("zsre_conflict_free.jsonl*", "*ZsRE-test-all.json"),
            "all": ("zsre.jsonl*",),
            "mend": ("zsre_mend_eval.json", "zsre_mend_eval_portability_gpt4.json"),
        },
        readers=("knowedit", "mend", "ours"),
        neighbour=_SAME_SUBJECT + " (with `mend`: an unrelated question)",
        hub=Hub(_KNOWEDIT_REPO, {"test": "*ZsRE-test-all.json"}),
    ),
    SetInfo(
        name="wiki_recent",
        about="recent facts of Wikidata to insert, without an old answer",
        kind="edit",
        licence="MIT",
        citation=f"{_COHEN}\n{_KNOWEDIT}",
        url="https://github.com/zjunlp/EasyEdit",
        files={"train": ("wiki_recent.jsonl*", "*recent_train.json"), "test": ("*recent_test.json",)},
        readers=("knowedit", "ours"),
        neighbour=_SAME_SUBJECT,
        hub=Hub(_KNOWEDIT_REPO, {"train": "*recent_train.json", "test": "*recent_test.json"}),
        records={"train": 570, "test": 1266},
    ),
    SetInfo(
        name="wiki_counterfact",
        about="false facts of Wikidata subjects, with consequences and neighbours",
        kind="edit",
        licence="MIT",
        citation=f"{_COHEN}\n{_KNOWEDIT}",
        url="https://github.com/zjunlp/EasyEdit",
        files={"test": ("wiki_counterfact.jsonl*", "*test_cf.json"), "train": ("*train_cf.json",)},
        readers=("knowedit", "ours"),
        neighbour=_SAME_SUBJECT,
        hub=Hub(_KNOWEDIT_REPO, {"test": "*test_cf.json", "train": "*train_cf.json"}),
        records={"test": 885, "train": 1455},
    ),
    SetInfo(
        name="mquake",
        about="chains of edits with multi-hop questions that need all edits of their chain",
        kind="edit",
        licence="MIT",
        citation=_MQUAKE,
        url="https://github.com/princeton-nlp/MQuAKE",
        files={
            "hard": ("mquake_hard.jsonl*", "MQuAKE-hard.json"),
            "cf-3k": ("MQuAKE-CF-3k-v2.json", "MQuAKE-CF-3k.json"),
            "cf": ("MQuAKE-CF.json",),
            "t": ("MQuAKE-T.json",),
        },
        readers=("mquake",),
        neighbour="none",
    ),
    SetInfo(
        name="tofu",
        about="questions on 200 invented authors, to forget or to keep",
        kind="forget",
        licence="MIT",
        citation=_TOFU,
        url="https://huggingface.co/datasets/locuslab/TOFU",
        files={split: (f"{split}.jsonl*", f"{split}_perturbed.json", f"{split}.json") for split in _TOFU_SPLITS},
        readers=("questions",),
        neighbour="the retain splits, real_authors and world_facts",
        hub=Hub(
            "locuslab/TOFU",
            {
                split: f"{split}.json" if split[:6] in ("retain", "full") else f"{split}_perturbed.json"
                for split in _TOFU_SPLITS
            },
        ),
        records={
            "forget10": 400,
            "forget05": 200,
            "forget01": 40,
            "retain90": 3600,
            "retain95": 3800,
            "retain99": 3960,
            "full": 4000,
        },
    ),
    SetInfo(
        name="pistol",
        about="questions on invented contracts; what to forget is a choice of contracts (`group`)",
        kind="forget",
        licence="ODC-By 1.0",
        citation=_PISTOL,
        url="https://github.com/bill-shen-BS/PISTOL",
        files={
            "sample_1": ("sample_1.jsonl*", "sample_data_1.json"),
            "sample_2": ("sample_2.jsonl*", "sample_data_2.json"),
        },
        readers=("questions",),
        neighbour="the contracts that are not forgotten",
        hub=Hub("xinchiqiu/PISTOL", {"sample_1": "sample_data_1.json", "sample_2": "sample_data_2.json"}),
        records={"sample_1": 400},
    ),
    SetInfo(
        name="factual",
        about="TOFU's real authors and world facts as they come with PISTOL, to see what unlearning harms",
        kind="forget",
        licence="MIT (TOFU), ODC-By 1.0 (PISTOL)",
        citation=f"{_TOFU}\n{_PISTOL}",
        url="https://github.com/bill-shen-BS/PISTOL",
        files={"all": ("factual.jsonl*", "factual_data.json")},
        readers=("questions",),
        neighbour="none",
        records={"all": 217},
    ),
    SetInfo(
        name="lume",
        about="invented stories and biographies, and real biographies, to forget or to keep",
        kind="forget",
        licence="Apache-2.0",
        citation=_LUME,
        url="https://github.com/amazon-science/lume-llm-unlearning",
        files={"forget": ("forget.jsonl*",), "retain": ("retain.jsonl*",)},
        readers=("lume",),
        neighbour="the retain split",
        records={"forget": 2732, "retain": 2734},
    ),
    SetInfo(
        name="pararel",
        about="facts of up to 41 relations with templates; new answers are drawn by the seed",
        kind="facts",
        licence="MIT, facts CC BY-SA 4.0",
        citation=_PARAREL,
        url="https://github.com/yanaiela/pararel",
        files={"all": ("pararel.jsonl*", "P[0-9]*.jsonl")},
        readers=("pararel",),
        neighbour=_OTHER_SUBJECT + ", not in the sample that --limit takes",
    ),
)

SETS: dict[str, SetInfo] = {info.name: info for info in _ROWS}
"""Every set by its name."""


def markdown() -> str:
    """The table of all sets, as the documentation shows it."""
    lines = [
        "| set | kind | what it holds | a neighbour is | licence | splits and files |",
        "|---|---|---|---|---|---|",
    ]
    for info in SETS.values():
        files = "; ".join(
            f"{split}: " + ", ".join(f"`{name}`" for name in names) for split, names in info.files.items()
        )
        name = f"[`{info.name}`]({info.url})" if info.url.startswith("https://") else f"`{info.name}`"
        lines.append(f"| {name} | {info.kind} | {info.about} | {info.neighbour} | {info.licence} | {files or '–'} |")
    return "\n".join(lines) + "\n"
