"""A probe that predicts the labels of drawn images from the states of a vision encoder, discarded after training."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from calibration.scene_labels import BAR_SLOTS, CHARACTERS, OBJECT_CLASSES, REGION_SLOTS


class SceneProbe(nn.Module):
    """Predicts characters by patch and region, objects by quarter, counts and bar heights.

    The vision encoder has `state_channels`, and the connector, which has a feature for every region, `channels`.
    """

    def __init__(self, state_channels: int, channels: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1 + BAR_SLOTS, channels) * 0.5)
        self.attention = nn.MultiheadAttention(channels, 4, batch_first=True)
        self.object_head = nn.Linear(channels, sum(OBJECT_CLASSES))
        self.patch_head = nn.Linear(state_channels, len(CHARACTERS) + 1)
        self.region_head = nn.Linear(channels, REGION_SLOTS * (len(CHARACTERS) + 1))
        self.number_head = nn.Linear(channels, 10)

    def forward(self, states: Tensor, features: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the cross-entropy of each kind of label of `label_arrays`.

        `states` [images, 64, state_channels] and `features` [images, 16, channels] are row by row.
        """
        regions = self.region_head(features).unflatten(-1, (REGION_SLOTS, -1))
        return {
            "objects": self.object_loss(features, labels["objects"]),
            "patches": sparse_class_loss(self.patch_head(states), labels["patches"]),
            "regions": sparse_class_loss(regions, labels["regions"]),
            "numbers": self.number_loss(features, labels["numbers"]),
        }

    def object_loss(self, features: Tensor, truth: Tensor) -> Tensor:
        """Return the loss of shape, color and size of the object in each quarter."""
        quarters = features.view(-1, 2, 2, 2, 2, features.shape[-1]).mean(dim=(2, 4)).flatten(1, 2)
        parts = self.object_head(quarters).split(OBJECT_CLASSES, dim=-1)
        return torch.stack([class_loss(part, truth[..., index]) for index, part in enumerate(parts)]).sum()

    def number_loss(self, features: Tensor, truth: Tensor) -> Tensor:
        """Return the loss of counts and bar heights."""
        queries = self.queries.expand(len(features), -1, -1)
        states = queries + self.attention(queries, features, features, need_weights=False)[0]
        return class_loss(self.number_head(states), truth)


def weighted_sum(parts: Mapping[str, Tensor]) -> Tensor:
    """Return the weighted sum of all losses of the probe."""
    return parts["objects"] + parts["patches"] + parts["regions"] + 2 * parts["numbers"]


def class_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits [..., classes] for class numbers [...]."""
    return functional.cross_entropy(logits.float().flatten(0, -2), truth.flatten())


def sparse_class_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the mean loss of nonzero labels plus that of zero labels, because most labels are zero."""
    nonzero = truth > 0
    return class_loss(logits[nonzero], truth[nonzero]) + class_loss(logits[~nonzero], truth[~nonzero])
