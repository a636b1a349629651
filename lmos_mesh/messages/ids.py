"""What every message names in the same way."""

from typing import Annotated

from pydantic import Field

DEFAULT_CHANNEL = "web"

Id = Annotated[str, Field(max_length=256)]
"""An id that callers make up. It becomes a token of a key, and a server hangs up on long ones."""
