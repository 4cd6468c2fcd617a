"""The words of the report: what the methods and the logged quantities mean, and how a curve should look.

A name that is missing here still appears in the report, drawn and without words; a new method adds its lines.
"""

from typing import NamedTuple

METHODS = {
    "supervised": (
        "Learns from the labelled pictures alone. This is the baseline that the methods using unlabelled "
        "pictures have to beat."
    ),
    "s4gan": (
        "Learns from the labelled pictures, and from the unlabelled ones through a discriminator: a second "
        "network that looks at a picture with its segmentation and scores, from 0 to 1, how much it "
        "resembles one labelled by hand. The segmenter learns to imitate the features of such label maps "
        "(feature matching), and its own segmentations that score well enough serve as further labels "
        "(self-training)."
    ),
    "mlmt": (
        "Two branches. One learns to segment as s4gan does: from the labelled pictures, and from the "
        "unlabelled ones through a discriminator that scores how much a segmentation resembles one made by "
        "hand. The other then learns which classes are in a picture at all; its teacher is a running average of "
        "its student. In the final segmentation a gate switches off every class that the teacher finds "
        "unlikely in the picture."
    ),
}


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
    "scores": "Discriminator's scores and self-training",
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
        "classifier",
        "how far student and teacher disagree about two versions of a picture",
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
    "selected": Term(
        "scores",
        "share of unlabelled pictures whose prediction passed the threshold and was learned from",
        "starts at 0 and comes to life as predictions improve; neither always 0 nor always 1",
    ),
    "val_mIoU": Term(
        "validation",
        "mean intersection over union on the validation pictures during training",
        "rises fast, then levels off; if it still rises where the segmenter's training ends, more steps would help",
    ),
    "val_mIoU_without_gate": Term(
        "validation",
        "the same for the output before the gate switches classes off",
        "lies below val_mIoU where the gate helps; the two are one until the classifier has begun to learn",
    ),
}


def term(name: str) -> Term:
    """The words for a logged quantity; for an undescribed name, only the likeliest plot to draw it in."""
    if name in TERMS:
        return TERMS[name]
    guesses = (("val_", "validation"), ("D_", "scores"), ("L_D", "discriminator"), ("L_", "segmentation"))
    return Term(next((group for prefix, group in guesses if name.startswith(prefix)), "other"), "", "")
