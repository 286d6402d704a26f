"""The device for tests of Triton kernels: a GPU, else the CPU with Triton's interpreter. Import it before kernels."""

import os
from typing import Any

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
    from triton.runtime import interpreter

    _patch_lang_tensor = interpreter._patch_lang_tensor

    def _patch_tensor(tensor: Any, scope: Any) -> None:
        """Let `range` take scalars: they are arrays of one element, which numpy 2.4 does not convert."""
        _patch_lang_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = _patch_tensor
