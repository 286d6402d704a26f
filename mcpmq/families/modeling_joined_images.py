"""Connectors that are called once for all images of a sample, where transformers calls them for each image.

A block is called once in the forward pass of a sample, so that its calibration has the inputs of all images.
"""

from typing import Any

import torch
from torch import Tensor


def join_images_of_minicpmv4_6(model: Any) -> None:
    """Join the images before the MLP of the merger of MiniCPM-V 4.6 or 4.7."""
    published = type(model.model.merger)

    class JoinedImages(published):  # type: ignore[misc, valid-type]
        """Merger of 2 x 2 patches with a single MLP."""

        def forward(self, hidden_states: Tensor, target_sizes: Tensor) -> list[Tensor]:
            """Merge the patches [1, patches, size] of images with rows and columns [images, 2]."""
            images = torch.split(hidden_states[0], target_sizes.prod(-1).tolist())
            squares = [
                image.view(rows // 2, 2, columns // 2, 2, -1).transpose(1, 2).reshape(rows * columns // 4, -1)
                for image, (rows, columns) in zip(images, target_sizes.tolist(), strict=True)
            ]
            return _call_once(self.mlp[0], squares)

    model.model.merger.__class__ = JoinedImages


def join_images_of_lfm2_vl(model: Any) -> None:
    """Join the images before the projector of LFM2-VL."""
    published, projector = type(model.model), type(model.model.multi_modal_projector)
    unshuffle = projector.pixel_unshuffle

    class Rows(projector):  # type: ignore[misc, valid-type]
        """Projector of rows [tokens, size] whose pixels are unshuffled."""

        def pixel_unshuffle(self, hidden_states: Tensor) -> Tensor:
            return hidden_states

    class JoinedImages(published):  # type: ignore[misc, valid-type]
        def get_image_features(self, pixel_values: Tensor, spatial_shapes: Tensor, **arguments: Any) -> Any:
            """Return the states of slices [slices, patches, size], and their projections as `pooler_output`."""
            arguments |= {"pixel_values": pixel_values, "spatial_shapes": spatial_shapes, "return_dict": True}
            outputs = self.vision_tower(**arguments)
            squares = [
                unshuffle(self.multi_modal_projector, states[: rows * columns].view(1, rows, columns, -1))
                for states, (rows, columns) in zip(outputs.last_hidden_state, spatial_shapes.tolist(), strict=True)
            ]
            outputs.pooler_output = _call_once(self.multi_modal_projector, [one.flatten(0, 2) for one in squares])
            return outputs

    model.model.multi_modal_projector.__class__ = Rows
    model.model.__class__ = JoinedImages


def _call_once(connector: Any, images: list[Tensor]) -> list[Tensor]:
    """Return the outputs of every image [tokens, size]."""
    return list(torch.split(connector(torch.cat(images)), [len(image) for image in images]))
