"""The baseline of all papers: cross-entropy on the labelled images only."""

import tensorflow as tf

from kerasseg.methods.config import SegmenterConfig
from kerasseg.methods.method import Method
from kerasseg.methods.registry import register_method
from kerasseg.optimizers import segmenter_optimizer


@register_method
class Supervised(Method):
    """L = CE(S(x_l), y_l).

    Args:
        segmenter: images (B,H,W,3) to logits (B,H,W,K).
        fields: of `SegmenterConfig`.

    Example:
        >>> images, labels = np.random.randint(256, size=(2, 32, 32, 3)), np.zeros((2, 32, 32), "int32")
        >>> method = kerasseg.Supervised(kerasseg.DeepLabV3Plus("mobilenet_v2", num_classes=2), steps=100)
        >>> method.compile()
        >>> history = method.fit(images, labels, batch_size=2, verbose=0)
        >>> list(history.history)
        ['loss', 'L_ce']
    """

    registry_name = "supervised"
    when = "the baseline: train it to compare any other method with"
    about = (
        "Learns from the labelled images only. This is the baseline that the methods using unlabelled "
        "images have to beat."
    )
    Config = SegmenterConfig
    config: SegmenterConfig
    needs_unlabeled = False

    def __init__(self, segmenter, *, name=None, **fields):
        super().__init__({"segmenter": segmenter}, fields, name=name)

    def make_optimizers(self):
        return {"segmenter": segmenter_optimizer(self.config, self.segmenter)}

    def update(self, batch):
        x_l, y_l = batch.labeled, batch.labels

        with tf.GradientTape(persistent=True) as tape:
            logits_l = self.segmenter(x_l, training=True)  # train mode: batch norm sees the labelled batch
            L_ce = self.labeled_loss(y_l, logits_l)

        self.minimize("segmenter", L_ce, tape)
        return {"L_ce": L_ce}
