"""Training steps in PyTorch that do what the methods of `kerasseg` do, as `benchmarks.train_step` measures them.

They are written as one would for speed: channels last, fused losses and optimizers, each forward pass of a
discriminator used for both networks' losses, gradients only of the weights that a loss trains, nothing read back.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.pytorch_networks import ImageDiscriminator, PixelDiscriminator, build_segmenter

IGNORE_LABEL = 255
Losses = dict[str, torch.Tensor]


def cross_entropy(labels, logits, weights=None):
    """Mean over labelled pixels; 0 where there are none."""
    total = F.cross_entropy(logits, labels, weights, ignore_index=IGNORE_LABEL, reduction="sum")
    known = labels != IGNORE_LABEL
    count = known.sum() if weights is None else weights[labels.where(known, 0)].mul(known).sum()
    return total / count.clamp(min=1e-6)


def binary_cross_entropy(logits, target: float, weights=None):
    loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), weights, reduction="sum")
    return loss / (logits.numel() if weights is None else weights.sum().clamp(min=1e-6))


def one_hot(labels, classes: int):
    """(B,K,H,W), all zero where ignored."""
    known = labels.where(labels != IGNORE_LABEL, classes)
    return F.one_hot(known, classes + 1)[..., :classes].permute(0, 3, 1, 2).float()


class Step:
    """Networks, their optimizers, and a step on a batch. `networks` are those whose parameters are counted."""

    def __init__(self, config, segmenter: dict, fields: dict):
        self.classes = config.classes
        self.segmenter = build_segmenter(**segmenter, classes=config.classes, pad=config.pad)
        self.networks = {"segmenter": self.segmenter} | self.make_critic(config, segmenter, fields)
        for name, network in self.networks.items():
            network.to(memory_format=torch.channels_last).train()
            if config.compile:
                network.compile()
            setattr(self, name, network)
        self.parameters = {name: list(network.parameters()) for name, network in self.networks.items()}
        self.optimizers = {"segmenter": self.segmenter_optimizer(**self.sgd)} | self.critic_optimizer()

    sgd = {"lr": 2.5e-4, "weight_decay": 5e-4}

    def segmenter_optimizer(self, lr: float, **settings) -> torch.optim.Optimizer:
        parts: list[dict] = [
            {"params": self.segmenter.backbone.parameters()},
            {"params": self.segmenter.head.parameters(), "lr": 10 * lr},
        ]
        return torch.optim.SGD(parts, lr, momentum=0.9, fused=True, **settings)

    def make_critic(self, config, segmenter: dict, fields: dict) -> dict[str, torch.nn.Module]:
        return {}

    def critic_optimizer(self) -> dict[str, torch.optim.Optimizer]:
        settings = {"lr": 1e-4, "betas": (0.9, 0.99), "fused": True}
        return {
            name: torch.optim.Adam(parameters, **settings)
            for name, parameters in self.parameters.items()
            if name != "segmenter"
        }

    def minimize(self, **losses: torch.Tensor) -> None:
        """Updates each network by its own loss only: gradients first, since updates change the weights in place."""
        *_, last = losses
        for name, loss in losses.items():
            gradients = torch.autograd.grad(loss, self.parameters[name], retain_graph=name != last)
            for parameter, gradient in zip(self.parameters[name], gradients, strict=True):
                parameter.grad = gradient
        for name in losses:
            self.optimizers[name].step()

    def segment(self, x_l, x_u):
        return self.segmenter(torch.cat([x_l, x_u])).split([len(x_l), len(x_u)])

    def __call__(self, x_l, x_u, valid_u, y_l) -> Losses:
        raise NotImplementedError


class Supervised(Step):
    def __call__(self, x_l, x_u, valid_u, y_l):
        L_ce = F.cross_entropy(self.segmenter(x_l), y_l, ignore_index=IGNORE_LABEL)
        self.minimize(segmenter=L_ce)
        return {"L_ce": L_ce}


class AdvSemiSeg(Step):
    sgd = {"lr": 2.5e-4, "weight_decay": 1e-4, "nesterov": True}

    def make_critic(self, config, segmenter, fields):
        return {"discriminator": PixelDiscriminator(config.classes)}

    def __call__(self, x_l, x_u, valid_u, y_l):
        logits_l, logits_u = self.segment(x_l, x_u)
        valid_l, valid_u = (y_l != IGNORE_LABEL).float()[:, None], valid_u[:, None]
        D_Y = self.discriminator(one_hot(y_l, self.classes))
        D_l = self.discriminator(logits_l.softmax(1) * valid_l)
        D_u = self.discriminator(logits_u.softmax(1) * valid_u)

        with torch.no_grad():
            trusted_u = ((D_u.sigmoid() > 0.2) & valid_u)[:, 0]
            y_u = logits_u.argmax(1).where(trusted_u, IGNORE_LABEL)
        L_ce = cross_entropy(y_l, logits_l)
        L_adv, L_adv_u = binary_cross_entropy(D_l, 1.0, valid_l), binary_cross_entropy(D_u, 1.0, valid_u.float())
        L_semi = cross_entropy(y_u, logits_u)
        L_S = L_ce + 0.01 * L_adv + 0.001 * L_adv_u + 0.1 * L_semi
        L_D = (binary_cross_entropy(D_l, 0.0, valid_l) + binary_cross_entropy(D_Y, 1.0, valid_l)) / 2
        self.minimize(segmenter=L_S, discriminator=L_D)
        return {"L_S": L_S, "L_ce": L_ce, "L_adv": L_adv, "L_adv_u": L_adv_u, "L_semi": L_semi, "L_D": L_D}


class S4GAN(Step):
    def make_critic(self, config, segmenter, fields):
        return {"discriminator": ImageDiscriminator(config.classes)}

    def __call__(self, x_l, x_u, valid_u, y_l):
        logits_l, logits_u = self.segment(x_l, x_u)
        S_u = logits_u.softmax(1) * valid_u[:, None]
        features_real, D_real = self.discriminator(one_hot(y_l, self.classes), x_l)
        features_fake, D_fake = self.discriminator(S_u, x_u)

        with torch.no_grad():
            trusted_B = D_fake[:, 0].sigmoid() >= 0.6
            y_u = logits_u.argmax(1).where(trusted_B[:, None, None] & valid_u, IGNORE_LABEL)
        L_ce, L_st = cross_entropy(y_l, logits_l), cross_entropy(y_u, logits_u)
        L_fm = (features_real.mean(0).detach() - features_fake.mean(0)).abs().mean()
        L_S = L_ce + 0.1 * L_fm + L_st
        L_D = (binary_cross_entropy(D_real, 1.0) + binary_cross_entropy(D_fake, 0.0)) / 2
        self.minimize(segmenter=L_S, discriminator=L_D)
        return {"L_S": L_S, "L_ce": L_ce, "L_fm": L_fm, "L_st": L_st, "L_D": L_D}


class ECS(Step):
    sgd = {"lr": 0.01, "weight_decay": 1e-4}

    def make_critic(self, config, segmenter, fields):
        corrector = build_segmenter(
            "deeplab_v3plus",
            fields["corrector_backbone"] or segmenter["backbone"],
            config.classes + 1,
            config.pad,
            extra_channels=config.classes,
            head_channels=fields["corrector_head_channels"],
        )
        self.weights = torch.tensor([2.0] * config.classes + [1.0])
        return {"corrector": corrector}

    def critic_optimizer(self):
        adam = torch.optim.Adam(self.parameters["corrector"], 1e-4, (0.9, 0.99), weight_decay=1e-4, fused=True)
        return {"corrector": adam}

    def __call__(self, x_l, x_u, valid_u, y_l):
        logits_l = self.segmenter(x_l)
        known = y_l != IGNORE_LABEL
        y_t = torch.full_like(y_l, self.classes).where(known, IGNORE_LABEL)
        with torch.no_grad():
            S_l = logits_l.softmax(1)
            y_cor = y_l.where(logits_l.argmax(1) != y_l, self.classes)
        C_S, C_Y = self.corrector(S_l, x_l), self.corrector(one_hot(y_l, self.classes), x_l)
        L_cor = cross_entropy(y_cor, C_S, self.weights) + cross_entropy(y_t, C_Y, self.weights)
        self.minimize(corrector=L_cor)

        L_ce = cross_entropy(y_l, logits_l)
        L_aux = cross_entropy(y_t, self.corrector(logits_l.softmax(1), x_l))
        L_sup = L_ce + 0.1 * L_aux
        self.minimize(segmenter=L_sup)

        logits_u = self.segmenter(x_u)
        with torch.no_grad():
            j = self.corrector(logits_u.softmax(1), x_u).softmax(1)
            sureness, correction = j.max(1)
            y_p = logits_u.argmax(1).where(correction == self.classes, correction)
        loss_u = F.cross_entropy(logits_u, y_p, reduction="none")
        L_ecs = (sureness**2 * loss_u * valid_u).sum() / valid_u.sum().clamp(min=1)
        self.minimize(segmenter=L_ecs)
        return {"L_sup": L_sup, "L_ce": L_ce, "L_aux": L_aux, "L_ecs": L_ecs, "L_cor": L_cor}


STEPS = {"supervised": Supervised, "advsemiseg": AdvSemiSeg, "s4gan": S4GAN, "ecs": ECS}


def make_step(config, segmenter: dict, fields: dict, batch) -> tuple[Step, Callable[[], Losses]]:
    """A method's step, and the same as a function without arguments.

    Args:
        config: a `benchmarks.train_step.TrainStep`.
        segmenter, fields: the method's, as that file has them.
        batch: `({"labeled", "unlabeled", "unlabeled_valid"}, labels)` in NumPy.
    """
    torch.manual_seed(0)
    torch.set_num_threads(config.cores)
    step = STEPS[config.methods[0]](config, segmenter, fields)
    x, labels_BHW = batch
    images = [torch.from_numpy(x[name]).permute(0, 3, 1, 2) for name in ("labeled", "unlabeled")]
    tensors = *images, torch.from_numpy(x["unlabeled_valid"]), torch.from_numpy(labels_BHW).long()
    return step, lambda: step(*tensors)
