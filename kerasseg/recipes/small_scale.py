"""Recipes for a laptop: minutes on two CPU cores."""

from kerasseg.recipes.recipe import Fields, recipe, same_for_all
from kerasseg.settings import TrainingSettings


@recipe(method="mlmt", measured="mIoU and times in benchmarks/results/shapes.md")
def shapes(method: str) -> tuple[TrainingSettings, Fields]:
    """The built-in dataset from scratch, in minutes on two CPU cores.

    `python -m training.run --method mlmt`: 600 steps of s4gan, 800 of the classifier. Their gain over 600
    of supervised, and their times, are in benchmarks/results/shapes.md.
    """
    config = TrainingSettings(
        method=method,
        dataset="shapes",
        labeled="1/20",
        cover=True,
        backbone="mobilenet_v2_c4",  # as good as the whole one here, and faster
        head_channels=64,
        weights="none",
        crop=(96, 96),  # so that whole scenes are squeezed but little for the classifier
        # A crop shows a quarter to three quarters of a scene, mlmt's classifier sees all of it.
        scale=(1.0, 1.75),
        batch_size=4,
        steps=600,
        learning_rate=1e-3,
        evaluate_every=300,
    )
    # Coats and skies differ by colour here.
    mild = {"jitter": 0.2, "hue": 0.02, "grey_probability": 0.0}
    # From random weights batch norm's averages follow late. A pass each for labelled and unlabelled images, as in the
    # papers' code, moves them twice a step (benchmarks/results/shapes.md).
    apart = {"joint_batch_norm": False}
    fields = _small_scale(classifier_steps=800)
    for own in fields.values():
        own.setdefault("ema_decay", 0.95)  # 600 steps are few to average over
    # In so few steps the discriminator at the paper's weight, and labels of the network's own, cost points.
    fields["s4gan"] |= apart | {"average_weights": True, "lambda_fm": 0.01, "lambda_st": 0.0}
    fields["meanteacher"] |= apart | mild | {"cons_start": 0.4}
    fields["unimatch"] |= mild
    fields["unimatch_v2"] |= apart | mild
    fields["mlmt"] |= {
        "classifier_start": "segmenter",  # from random weights it learned nothing (before/shapes.md)
        # It must learn the sky without forgetting the coats: slowly, and with every image in changing colours.
        "classifier_learning_rate": 3e-3,
        "perturb_labeled": True,
        "jitter": 0.2,
        "hue": 0.02,
        "blur_probability": 0.5,
    }
    return config, fields


@recipe(
    method="meanteacher", needs={"--dataset": "a dataset folder"}, measured="mIoU in benchmarks/results/comparison.md"
)
def photos(method: str) -> tuple[TrainingSettings, Fields]:
    """A few labelled photographs, many unlabelled ones, a pretrained MobileNetV2, crops as a laptop can train them.

    `python -m training.run --dataset PATH --labeled 42 --cover`. The results of every method are in
    benchmarks/results/comparison.md.
    """
    config = TrainingSettings(
        method=method,
        # All of it, and slowly: its last blocks recognise each animal, and at the head's rate it forgets how.
        # Either is worth five points of supervised (docs/decisions/photographs.md).
        backbone="mobilenet_v2",
        head_channels=64,
        weights="imagenet",
        labeled="all",
        size="auto",
        crop=(176, 240),
        batch_size=4,
        steps=1500,
        learning_rate=3e-4,
    )
    fields = _small_scale(classifier_steps=750, head_multiplier=3.0)
    fields["unimatch"] = fields["unimatch"] | {
        # Labels made in train mode cost points on photographs, outside of this project (docs/decisions/methods.md).
        "targets": "teacher",
        # As sure and as often pasted as meanteacher, and each strong view as heavy as the one with dropped features.
        "threshold": 0.9,
        "cutmix": 1.0,
        "lambda_s": 0.5,
    }
    fields["unimatch_v2"] = fields["unimatch_v2"] | {"threshold": 0.9, "cutmix": 1.0}  # as meanteacher
    fields["s4gan"] = fields["s4gan"] | {
        # On CamVid, full self-training from the start costs points; ignored pixels may give label maps away.
        "lambda_st": 0.1,
        "self_training_start": 0.5,
        "hide_ignored": True,
    }
    fields["dualgan"] = fields["dualgan"] | {
        # On CamVid, 0.01 pulls 0.4 times as hard as the labels, and costs points.
        "lambda_ad": 0.001,
        # D1 is hardly ever deceived, so its score as the threshold lets every pixel through. The paper's static
        # variant has no D1.
        "threshold": "static",
        "use_d1": False,
    }
    return config, fields


def _small_scale(classifier_steps: int, head_multiplier: float = 1.0) -> Fields:
    """Where a run of a thousand steps needs other settings than one of twenty thousand.

    Terms that set in late do so at a share of training, whatever its length, so they are not here.
    """
    # In full a discriminator takes longer than the MobileNetV2 with its head. One that judges images can do so at
    # half size; one that judges pixels keeps the size and has half the channels.
    narrow = {"discriminator_channels": 32}
    return same_for_all(
        {
            "optimizer": "adamw",
            "head_multiplier": head_multiplier,
            "nesterov": False,  # AdamW has none: with it, methods would differ and not be comparable
            # AdamW's decoupled 1e-4 is nothing over 1500 steps, and 0.05 was no better (docs/decisions/photographs.md).
            "weight_decay": 0.0,
        },
        s4gan={"discriminator_shrink": 2},
        advsemiseg=narrow,
        latent=narrow,
        dualgan=narrow,
        ecs={
            "corrector_backbone": None,
            "corrector_head_channels": 64,
            # The paper's 1e-4 is for 22,000 steps: in 1500 such a corrector learns to find nothing (before/camvid.md).
            "corrector_learning_rate": 1e-3,
            # The paper's two updates of the segmenter a step are twice the other methods'.
            "joint_update": True,
        },
        mlmt={"steps": classifier_steps, "classifier_learning_rate": 1e-2, "ema_decay": 0.99},
    )
