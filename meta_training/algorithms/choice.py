"""The names that recipes know algorithms by."""

from __future__ import annotations

from meta_training.algorithms.controls import InContext, MultiTask
from meta_training.algorithms.episodes import Algorithm
from meta_training.algorithms.maml import Maml
from meta_training.algorithms.maml_plus_plus import MamlPlusPlus
from meta_training.algorithms.metric import Matching, Prototypical, Siamese
from meta_training.algorithms.metric_training import MetricTraining
from meta_training.algorithms.reptile import Reptile
from meta_training.recipe_parts import OuterPart


def choose(part: OuterPart) -> Algorithm:
    """The algorithm that a recipe names, with its options."""
    share, flat = part.first_order_share, part.gradient == "adjoint"
    match part.algorithm:
        case "maml" | "meta-sgd" | "anil":  # the two are MAML over another form of inner rule
            return Maml(share, flat)
        case "fomaml":
            return Maml(1.0)
        case "maml++":
            return MamlPlusPlus(share, flat, multi_step_share=part.multi_step_share)
        case "reptile":
            return Reptile()
        case "multitask":
            return MultiTask()
        case "in-context":
            return InContext()
        case "prototypical":
            return MetricTraining(Prototypical())
        case "matching":
            return MetricTraining(Matching(part.sharpness))
        case "siamese":
            return MetricTraining(Siamese(part.margin))
