"""Times of videos that the cache of llama.cpp can hold."""

from itertools import accumulate

from mcpmq.errors import EngineError
from mcpmq.families.inputs import Inputs, slice_size
from mcpmq.runners.llamacpp.vision import token_grid


def check_times(sample: Inputs) -> None:
    """Check that the text after every video has a later position than the last time of the video.

    In Qwen2-VL and Qwen2.5-VL the text begins after the longer side of a frame, also after many frames, but the
    positions of the cache must rise.

    Raises:
        EngineError: the text has an earlier position.
    """
    if not any(sample.slice_times):
        return
    lengths = (sample.image_bounds[:, 1] - sample.image_bounds[:, 0]).tolist()
    ends = list(accumulate(sample.slices_per_image))
    for end in ends:
        time, side = sample.slice_times[end - 1], max(token_grid(slice_size(sample.slices[end - 1]), lengths[end - 1]))
        if time >= side:
            raise EngineError(
                f"sample `{sample.id}`: the text after a video begins {side} positions after its first frame, and its"
                f" last frame is {time} positions after the first; positions in the cache of llama.cpp must rise",
                "use videos with fewer frames, or measure them in another format",
            )
