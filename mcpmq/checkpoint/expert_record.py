"""The record of calibrated experts in a manifest."""

from pydantic import BaseModel, ConfigDict


class ExpertRecord(BaseModel):
    """The experts of a calibrated mixture of experts, by the calibration tokens that were routed to them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int
    without_tokens: int  # their matrices are rounded to nearest
    with_few_tokens: int  # fewer than columns: the Hessian is shrunk towards its diagonal
    rounded_to_nearest: int  # all matrices, because of no tokens or a smaller error on held-out samples
    min_tokens: int
    median_tokens: float
