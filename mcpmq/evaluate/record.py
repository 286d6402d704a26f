"""What all records of a report have in common."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Facts that are kept as JSON; what cannot be known, as the error of one sample, is "NaN" there."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")
