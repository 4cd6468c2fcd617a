"""The words of the report: what the logged quantities mean, and how a curve should look.

A method outside of this package has its own words on its class (`Method.terms`), as it says there what it does
(`Method.about`). A name without words still appears in the report, as a curve.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Term(NamedTuple):
    """One logged quantity."""

    group: str
    """Which plot it is drawn in: a key of `GROUPS`."""
    meaning: str
    expect: str
    """How its curve looks in a good training, for a newcomer: the rest of a sentence that begins with "It"."""


GROUPS = {
    "validation": "mIoU on validation images",
    "segmentation": "Segmentation losses",
    "discriminator": "Discriminator loss",
    "classifier": "Classifier losses",
    "consistency": "Consistency",
    "scores": "Discriminator's scores and self-training",
    "accuracy": "How often the critic is right",
    "gradients": "How hard each loss pulls",
    "overflows": "Updates left out",
    "other": "Other quantities",
}

TERMS = {
    "L_S": Term(
        "segmentation",
        "what the segmenter minimises, all its terms together",
        "falls fast, then slowly; it may step up where self-training sets in",
    ),
    "L_ce": Term(
        "segmentation",
        "cross-entropy on the labelled pixels",
        "falls fast, then flattens near zero; if it rises for long, the learning rate is too high",
    ),
    "L_fm": Term(
        "segmentation",
        "feature matching: how far the discriminator's features of predictions are from those of label maps",
        "stays small and varies without a trend, because the discriminator keeps learning too",
    ),
    "L_st": Term(
        "segmentation",
        "self-training: cross-entropy against the selected predictions",
        "is 0 until the first predictions pass the discriminator's threshold, then varies strongly and slowly falls",
    ),
    "L_G": Term(
        "segmentation",
        "what the segmenter minimises, all its terms together",
        "falls fast, then slowly; it may step up where learning from unlabelled images sets in",
    ),
    "L_sup": Term(
        "segmentation",
        "what the segmenter minimises on labelled images: cross-entropy, and the corrector's objections",
        "falls fast, then slowly",
    ),
    "L_aux": Term(
        "segmentation",
        "how strongly the corrector objects to the segmentation of labelled images",
        "rises while the corrector learns to find mistakes, then falls with their number",
    ),
    "L_ecs": Term(
        "segmentation",
        "cross-entropy against the corrected segmentations of unlabelled images, heavier where the corrector is sure",
        "falls as the segmenter takes over the corrections",
    ),
    "L_adv": Term(
        "segmentation",
        "how clearly the discriminator recognises segmentations of labelled images as predictions",
        "varies: it rises as the discriminator learns and falls as the segmenter learns",
    ),
    "L_adv_u": Term(
        "segmentation",
        "the same for unlabelled images",
        "varies like L_adv, a little above it",
    ),
    "L_ad": Term(
        "segmentation",
        "how clearly both discriminators recognise the segmentations as predictions",
        "varies, and steps up where learning from unlabelled images sets in",
    ),
    "L_semi": Term(
        "segmentation",
        "self-training: cross-entropy against the predictions at trusted pixels",
        "is small and slowly falls",
    ),
    "L_s": Term(
        "segmentation",
        "self-training: cross-entropy against the predictions at trusted pixels",
        "is small and slowly falls",
    ),
    "L_s1": Term(
        "segmentation",
        "disagreement with the first strongly changed view of unlabelled images",
        "grows as more pixels are trusted, then falls",
    ),
    "L_s2": Term(
        "segmentation",
        "disagreement with the second strongly changed view of unlabelled images",
        "is close to L_s1",
    ),
    "L_fp": Term(
        "segmentation",
        "disagreement with the view that lacks some inner features",
        "follows L_s1, a little below it",
    ),
    "L_latent": Term(
        "segmentation",
        "how little a latent class says about the true class, on labelled images",
        "falls and flattens above 0, as long as fewer latent classes are in use than there are classes",
    ),
    "L_cor": Term(
        "discriminator",
        "the corrector's mistakes on labelled images: which pixels are right, and which class the others have",
        "falls fast at first, then slowly",
    ),
    "L_D1": Term(
        "discriminator",
        "D1's mistakes in separating real label maps from predictions",
        "varies well above 0; 1.39 is guessing; near 0, D1 has won and the segmenter learns little from it",
    ),
    "L_D2": Term(
        "discriminator",
        "D2's mistakes in separating right pixels from wrong ones",
        "falls below the 0.69 of guessing and stays there",
    ),
    "L_D": Term(
        "discriminator",
        "the discriminator's mistakes in separating real label maps from predictions",
        "varies well above 0; 0.69 is guessing; near 0, it has won and the segmenter learns little from it",
    ),
    "L_MT": Term(
        "classifier",
        "what the student minimises, its terms together",
        "falls steadily and flattens",
    ),
    "L_cls": Term(
        "classifier",
        "how wrong the student is about which classes are in a labelled image",
        "falls steadily and flattens",
    ),
    "L_cons": Term(
        "consistency",
        "how far student and teacher disagree about two versions of an image (mlmt, meanteacher), or the two branches "
        "about an unlabelled one (latent)",
        "may rise while both become surer, then stays small",
    ),
    "D_real": Term(
        "scores",
        "the discriminator's mean score of real label maps",
        "lies above D_fake; the gap should narrow or hold, not open up to the whole range",
    ),
    "D_fake": Term(
        "scores",
        "the discriminator's mean score of predictions",
        "climbs towards D_real; if it lies at 0 for long, the discriminator overpowers the segmenter",
    ),
    "D1_real": Term(
        "scores",
        "D1's mean score of real label maps",
        "lies above D1_fake; the gap should narrow or hold, not open up to the whole range",
    ),
    "D1_fake": Term(
        "scores",
        "D1's mean score of predictions",
        "climbs towards D1_real; if it lies at 0 for long, D1 overpowers the segmenter, and D2 passes every pixel",
    ),
    "acc_real": Term(
        "accuracy",
        "share of real label maps (or of their pixels) that the discriminator recognises as real",
        "lies between 0.5 and 1; if acc_fake is at 1 too, it has won and the segmenter learns little from it",
    ),
    "acc_fake": Term(
        "accuracy",
        "share of predictions (or of their pixels) that the discriminator recognises as predictions",
        "lies between 0.5 and 1; if it and acc_real add up to 1, the discriminator is guessing",
    ),
    "acc_right": Term(
        "accuracy",
        "share of rightly segmented pixels of labelled images that the critic finds right",
        "rises towards 1 early",
    ),
    "acc_wrong": Term(
        "accuracy",
        "share of wrongly segmented pixels of labelled images that the critic finds wrong",
        "rises later than acc_right, and falls again when mistakes become few; at 0 the critic finds none",
    ),
    "kept": Term(
        "scores",
        "share of the unlabelled images' pixels that the corrector finds right",
        "rises as the segmentations improve",
    ),
    "selected": Term(
        "scores",
        "share of the unlabelled images (s4gan) or pixels whose prediction passed the threshold and is learned",
        "rises from 0 as predictions improve, and is neither always 0 nor always 1",
    ),
    "trust": Term(
        "scores",
        "how much of the teacher's labels of unlabelled images is learned, on average",
        "rises as the teacher becomes sure of its labels",
    ),
    "val_mIoU": Term(
        "validation",
        "mean intersection over union on the validation images during training",
        "rises fast, then levels off; if it still rises where the segmenter's training ends, more steps would help",
    ),
    "val_mIoU_student": Term(
        "validation",
        "the same for the segmenter with its last weights, where an average of its weights is what predicts",
        "lies below val_mIoU while the learning rate is high, and near it at the end",
    ),
    "val_mIoU_without_gate": Term(
        "validation",
        "the same for the output before the gate switches classes off",
        "lies below val_mIoU where the gate helps; the two are equal until the classifier begins to learn",
    ),
}


CONFIDENCES = {
    "softmax": Term(
        "",
        "the likeliest class's probability, by the segmenter itself",
        "lies on the dotted line if confidence equals accuracy; below the line, the segmenter is too sure",
    ),
    "critic": Term(
        "",
        "the second network's score of each pixel",
        "rises from left to right if its low values find mistakes",
    ),
}
CLASSIFIERS = Term(
    "",
    "how well the classifiers find which classes an image holds, all classes together; the threshold falls from left "
    "to right",
    "bends towards the upper left corner; the larger the area below, the better the gate",
)
CORRECTOR = Term(
    "",
    "the table below as a figure: how well the corrector finds the right class where the segmentation is wrong, and "
    "whether it trusts the right pixels",
    "has points far to the right, on unlabelled images as on labelled ones; near 0 the corrections are noise",
)
LATENT_CLASSES = Term("", "the classes that the second branch found by itself, and which classes go to each", "")


GRADIENTS = Term(
    "gradients",
    "norm of each loss's part of the gradient, its weight included, always on the same batch; on a logarithmic scale",
    "shows which loss of a network has the most effect: one far below the others changes little; L_S, L_G, L_sup and "
    "L_MT are sums of others",
)


SKIPPED = Term(
    "overflows",
    "updates of a network in a step that were left out because its gradient overflowed; with mixed_float16",
    "is above 0 in the first steps, until the loss scale fits, and then about once in 2000 steps; if it stays above 0, "
    "use mixed_bfloat16",
)


def term(name: str, own: Mapping[str, Sequence[str]]) -> Term:
    """The words for a logged quantity; for an unknown name, only the likeliest plot.

    Args:
        own: `Method.terms` of the run's method.
    """
    if name in TERMS:
        return TERMS[name]
    if name in own:
        return Term(*own[name])
    for prefix, words in (("grad_", GRADIENTS), ("skipped_", SKIPPED)):
        if name.startswith(prefix):
            return words
    guesses = (("val_", "validation"), ("D_", "scores"), ("L_D", "discriminator"), ("L_", "segmentation"))
    return Term(next((group for prefix, group in guesses if name.startswith(prefix)), "other"), "", "")
