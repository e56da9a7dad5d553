"""What clients of the server are asked to make: a nested model, which a tool takes and an output may be."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

MESSAGES = [{"role": "user", "content": "hi"}]


class Address(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: Literal["Oslo", "Rome"]


class Person(BaseModel):
    """Somebody, who lives somewhere."""

    model_config = ConfigDict(extra="forbid")
    name: Literal["Ada", "Bo"]
    home: Address
