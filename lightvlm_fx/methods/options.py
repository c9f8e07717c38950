"""Types of options that several methods have."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lightvlm_fx.frozen import Number

Power = Annotated[Number, Field(ge=0, le=4)]  # an exponent
Share = Annotated[Number, Field(gt=0, le=1)]  # of a whole, some of it at least
Part = Annotated[Number, Field(ge=0, le=1)]  # of a whole, none or all of it too
