"""The words of the report: what the logged quantities mean, and how a curve should look.

A name that is missing here still appears in the report, drawn and without words; a new method adds its terms. What the
method itself does stands on its class (`Method.summary`).
"""

from typing import NamedTuple


class Term(NamedTuple):
    """One logged quantity."""

    group: str
    """Which plot it is drawn in: a key of `GROUPS`."""
    meaning: str
    expect: str
    """How its curve looks when all is well, for a newcomer: the rest of a sentence that begins with "It"."""


GROUPS = {
    "validation": "mIoU on validation pictures",
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
        "stays small and wavers without a trend, because the discriminator keeps learning too",
    ),
    "L_st": Term(
        "segmentation",
        "self-training: cross-entropy against the selected predictions",
        "is 0 until the discriminator lets the first predictions pass, then jumps about and slowly falls",
    ),
    "L_G": Term(
        "segmentation",
        "what the segmenter minimises, all its terms together",
        "falls fast, then slowly; it may step up where learning from unlabelled pictures sets in",
    ),
    "L_sup": Term(
        "segmentation",
        "what the segmenter minimises on labelled pictures: cross-entropy, and what the corrector would correct",
        "falls fast, then slowly",
    ),
    "L_aux": Term(
        "segmentation",
        "how far the corrector is from finding the segmentation of labelled pictures right",
        "rises while the corrector learns to find mistakes, then falls with their number",
    ),
    "L_ecs": Term(
        "segmentation",
        "cross-entropy against the corrected segmentations of unlabelled pictures, heavier where the corrector is sure",
        "falls as the segmenter takes over the corrections",
    ),
    "L_adv": Term(
        "segmentation",
        "how far the segmentations of labelled pictures are from passing for drawn by hand",
        "wavers: it rises as the discriminator learns and falls as the segmenter does",
    ),
    "L_adv_u": Term(
        "segmentation",
        "the same for unlabelled pictures",
        "wavers like L_adv, a little above it",
    ),
    "L_ad": Term(
        "segmentation",
        "how far the segmentations are from convincing both discriminators",
        "wavers, and steps up where unlabelled pictures come in",
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
        "disagreement with the first strongly changed view of unlabelled pictures",
        "grows as more pixels are trusted, then falls",
    ),
    "L_s2": Term(
        "segmentation",
        "disagreement with the second strongly changed view of unlabelled pictures",
        "goes with L_s1",
    ),
    "L_fp": Term(
        "segmentation",
        "disagreement with the view of which some inner features are missing",
        "goes with L_s1, a little below it",
    ),
    "L_latent": Term(
        "segmentation",
        "how little a latent class says about the real one, on labelled pictures",
        "falls and flattens above 0, as long as there are fewer latent classes in use than real ones",
    ),
    "L_cor": Term(
        "discriminator",
        "the corrector's mistakes on labelled pictures: what is right, what is wrong, what belongs there",
        "falls fast at first, then slowly",
    ),
    "L_D1": Term(
        "discriminator",
        "D1's mistakes in telling real label maps from predictions",
        "wavers well above 0; 1.39 is guessing, and near 0 it has won and teaches little",
    ),
    "L_D2": Term(
        "discriminator",
        "D2's mistakes in telling right pixels from wrong ones",
        "falls below the 0.69 of guessing and stays there",
    ),
    "L_D": Term(
        "discriminator",
        "the discriminator's mistakes in telling real label maps from predictions",
        "wavers well above 0; 0.69 is guessing, and near 0 the discriminator has won and teaches little",
    ),
    "L_MT": Term(
        "classifier",
        "what the student minimises, its terms together",
        "falls steadily and flattens",
    ),
    "L_cls": Term(
        "classifier",
        "how wrong the student is about which classes are in a labelled picture",
        "falls steadily and flattens",
    ),
    "L_cons": Term(
        "consistency",
        "how far student and teacher disagree about two versions of a picture (mlmt, meanteacher), or the two branches "
        "about an unlabelled one (latent)",
        "may rise while both begin to commit themselves, then stays small",
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
        "share of real label maps (of their pixels, where pixels are judged) that the discriminator takes for real",
        "lies between one half and 1; at 1 together with acc_fake, it has won and teaches little",
    ),
    "acc_fake": Term(
        "accuracy",
        "share of predictions (or of their pixels) that the discriminator takes for predictions",
        "lies between one half and 1; if it and acc_real add up to 1, the discriminator is guessing",
    ),
    "acc_right": Term(
        "accuracy",
        "share of rightly segmented pixels of labelled pictures that the critic finds right",
        "rises towards 1 early",
    ),
    "acc_wrong": Term(
        "accuracy",
        "share of wrongly segmented pixels of labelled pictures that the critic finds wrong",
        "rises later than acc_right, and sinks again where mistakes have become few; at 0 it finds none",
    ),
    "kept": Term(
        "scores",
        "share of the unlabelled pictures' pixels that the corrector finds right",
        "rises as the segmentations improve",
    ),
    "selected": Term(
        "scores",
        "share of the unlabelled pictures (s4gan) or pixels whose prediction passed the threshold, to be learned from",
        "comes to life as predictions improve; neither always 0 nor always 1",
    ),
    "trust": Term(
        "scores",
        "how much of the teacher's labels of unlabelled pictures is learned, on average",
        "rises as the teacher grows sure of its labels",
    ),
    "val_mIoU": Term(
        "validation",
        "mean intersection over union on the validation pictures during training",
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
        "lies below val_mIoU where the gate helps; the two are one until the classifier has begun to learn",
    ),
}


CONFIDENCES = {
    "softmax": Term(
        "",
        "the likeliest class's probability, by the segmenter itself",
        "lies on the dotted line if it is as sure as it is right; below it, it is too sure",
    ),
    "critic": Term(
        "",
        "what the second network makes of each pixel",
        "rises from left to right if its low values find mistakes",
    ),
}
CLASSIFIERS = Term(
    "",
    "how well the classifiers tell which classes a picture holds, all classes together; the threshold falls from left "
    "to right",
    "bends towards the upper left corner; the larger the area below, the better the gate",
)
CORRECTOR = Term(
    "",
    "the table below as a picture: how well the corrector finds what belongs where the segmentation is wrong, and "
    "whether its trust goes with the truth",
    "has points far to the right, on unlabelled pictures as on labelled ones; near 0 the corrections are noise",
)
LATENT_CLASSES = Term("", "the classes the second branch found by itself, and which real ones go to each", "")


GRADIENTS = Term(
    "gradients",
    "norm of each loss's part of the gradient, its weight included, always on the same batch; on a logarithmic scale",
    "tells, among the losses of one network, which leads: one far below the others changes little; L_S, L_G, L_sup and "
    "L_MT are sums of others",
)


SKIPPED = Term(
    "overflows",
    "updates of a network in a step that were left out because its gradient overflowed; with mixed_float16",
    "is above 0 in the first steps, until the loss scale fits, and then about once in 2000 steps; if it stays above 0, "
    "use mixed_bfloat16",
)


def term(name: str) -> Term:
    """The words for a logged quantity; for an undescribed name, only the likeliest plot to draw it in."""
    if name in TERMS:
        return TERMS[name]
    for prefix, words in (("grad_", GRADIENTS), ("skipped_", SKIPPED)):
        if name.startswith(prefix):
            return words
    guesses = (("val_", "validation"), ("D_", "scores"), ("L_D", "discriminator"), ("L_", "segmentation"))
    return Term(next((group for prefix, group in guesses if name.startswith(prefix)), "other"), "", "")
