"""The unlearning objectives as methods: each makes a patch under which answers are forgotten, by a loss of its own."""

from typing import Any

from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods.family import edited_layers
from retcon.methods.unlearning.base import Unlearning
from retcon.methods.unlearning.config import (
    CEUConfig,
    DPOConfig,
    GAConfig,
    GradDiffConfig,
    IDKConfig,
    KLConfig,
    NPOConfig,
    RMUConfig,
    SatImpConfig,
    SimNPOConfig,
    UNDIALConfig,
    WGAConfig,
)

__all__ = ["CEU", "DPO", "GA", "IDK", "KL", "NPO", "RMU", "UNDIAL", "WGA", "GradDiff", "SatImp", "SimNPO"]


class GA(Unlearning):
    """GA: gradient ascent on the answers to be forgotten, the plainest of all, and the first to ruin a model.

        L = -(sum_i s_i) / (sum_i n_i)

    s_i is the negative log-likelihood of answer i, n_i its number of tokens. Nothing holds what is to stay; texts to
    keep are only watched.

    Paper: Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, arXiv 2401.06121.
    """

    Config: Any = GAConfig
    name: str = "ga"


class GradDiff(Unlearning):
    """GradDiff: gradient ascent on the answers to be forgotten, descent on texts to keep.

        L = -(sum_i s_i) / (sum_i n_i) + alpha * mean nll of the texts

    Paper: as the gradient difference of TOFU, arXiv 2401.06121.
    """

    Config: Any = GradDiffConfig
    name: str = "graddiff"


class KL(Unlearning):
    """KL: gradient ascent on the answers to be forgotten, with the model's own predictions held on texts to keep.

        L = -(sum_i s_i) / (sum_i n_i) + alpha * mean KL(p_ref || p)

    The divergence is over labelled tokens alone. Paper: as the KL minimisation of TOFU, arXiv 2401.06121.
    """

    Config: Any = KLConfig
    name: str = "kl"


class IDK(Unlearning):
    """IDK: fine-tune on refusals to the questions, and on texts to keep; also called preference optimisation (PO).

        L = mean nll of the refusals' tokens + alpha * mean nll of the texts

    Each question has one refusal, its `target`, in all passes. Paper: as PO in TOFU, arXiv 2401.06121.
    """

    Config: Any = IDKConfig
    name: str = "idk"
    learns_refusal: bool = True


class DPO(Unlearning):
    """DPO: prefer the refusal to the answer, measured against the model before training.

        L_f = -(2/beta) mean log sigma(beta [(s_ref - s)(refusal) - (s_ref - s)(answer)])

    Each question has one refusal, its `target`, in all passes. Papers: Rafailov et al., arXiv 2305.18290; as IdkDPO in
    TOFU, arXiv 2401.06121, whose code has a factor of 1 for 2/beta.
    """

    Config: Any = DPOConfig
    name: str = "dpo"
    learns_refusal: bool = True


class NPO(Unlearning):
    """NPO: make the answers less likely than they were, ever more gently the less likely they are.

        L_f = -(2/beta) mean log sigma(beta (s - s_ref))

    Paper: Zhang et al., Negative Preference Optimization, arXiv 2404.05868.
    """

    Config: Any = NPOConfig
    name: str = "npo"


class SimNPO(Unlearning):
    """SimNPO: NPO without a reference, by the loss a token, so that long answers do not outweigh short ones.

        L_f = -(2/beta) mean log sigma(beta (s/n - margin))

    Paper: Fan et al., Simplicity Prevails, arXiv 2410.07163.
    """

    Config: Any = SimNPOConfig
    name: str = "simnpo"


class RMU(Unlearning):
    """RMU: steer a layer's states at the answers to one random direction, and hold those at texts to keep.

        L_f = mean_i mean_t |h_t - c u|^2 / d,   L_r = mean_i mean_t |h_t - h_ref,t|^2 / d

    h_t is what the layer gives where the t-th token of an answer is predicted; u is drawn once from the seed, uniform
    on [0, 1)^d and divided by its norm. The steered layer and the two below it are trained.

    Paper: Li et al., The WMDP Benchmark, arXiv 2403.03218.
    """

    Config: Any = RMUConfig
    name: str = "rmu"

    def layer(self, lm: LM) -> int:
        """The layer whose states are steered.

        Raises:
            RetconError: it is not there.
        """
        n = lm.arch.n_layers
        chosen: int = min(7, max(n // 2 - 1, 0)) if self.config.layer is None else self.config.layer
        return edited_layers(lm, (chosen,))[0]

    def layers(self, lm: LM) -> tuple[int, ...]:
        """The layers that are trained; those above the steered one have no part in its states.

        Raises:
            RetconError: one of them is not there, or above the steered one.
        """
        steered = self.layer(lm)
        if self.config.layers is None:
            return tuple(range(max(steered - 2, 0), steered + 1))
        chosen = edited_layers(lm, self.config.layers)
        if chosen[-1] > steered:
            raise RetconError(f"layer {chosen[-1]} is above the steered layer {steered}; train layers up to that")
        return chosen


class UNDIAL(Unlearning):
    """UNDIAL: learn the model's own predictions with the answers' tokens turned down.

        L_f = mean_t CE(softmax(z_ref - beta onehot(y)), softmax(z))

    By default nothing else is held; texts to keep are then only watched.

    Paper: Dong et al., UNDIAL: Self-Distillation with Adjusted Logits, arXiv 2402.10052.
    """

    Config: Any = UNDIALConfig
    name: str = "undial"


class WGA(Unlearning):
    """WGA: gradient ascent that counts a token by how likely it still is.

        L_f = - mean_t p_t^beta nll_t,   p_t without gradient

    Paper: Wang et al., Rethinking LLM Unlearning Objectives, arXiv 2502.19301.
    """

    Config: Any = WGAConfig
    name: str = "wga"


class SatImp(Unlearning):
    """SatImp: gradient ascent that counts a token by saturation and importance: likely, but not certain.

        L_f = - mean_t p_t^beta1 (1 - p_t)^beta2 nll_t,   p_t without gradient

    Paper: Yang et al., Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning, arXiv 2505.11953.
    """

    Config: Any = SatImpConfig
    name: str = "satimp"


class CEU(Unlearning):
    """CE-U: learn the model's own predictions with the answers' tokens ruled out.

        L_f = mean_t CE(q, p),   q = softmax of z with minus infinity at y, without gradient

    The first token of each answer is left alone. By default nothing else is held; texts to keep are only watched.

    Paper: Yang, CE-U: Cross Entropy Unlearning, arXiv 2503.01224.
    """

    Config: Any = CEUConfig
    name: str = "ceu"
