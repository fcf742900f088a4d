"""What is known of one net of the zoo. Data only: a list of nets needs no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt


class Card(BaseModel):
    """A net, how it was made, and what was measured of it.

    form             "packed" (bits, runs without the model's code) or "float" (weights of a model of `bw.models`)
    data, binarize   data set of training and test; pixels to 0 and 1
    normalize        whether its input is normalized with the mean and deviation of the data set, else pixels k / 255
    input, classes   shape of one input; number of answers
    model, recipe    topology with its arguments; recipe, empty for a float net
    epochs           of each stage, those of the parent first, joined by +
    parent           the float net of the zoo that training began with
    accuracy         share of right answers of THIS file on all test images: `right` of `images`
    trained          accuracy of the net before packing
    latency_ms       one image, one thread; with `peers`, the medians of other programs in the same run
    command          makes the net again; `commit` the state of the repository that made it
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: str
    form: Literal["packed", "float"]
    summary: str
    data: str
    binarize: bool = False
    normalize: bool
    input: tuple[PositiveInt, ...]
    classes: PositiveInt
    model: dict[str, Any]
    recipe: str = ""
    epochs: str
    seed: NonNegativeInt
    parent: str | None = None
    right: NonNegativeInt
    images: PositiveInt
    trained: float | None = None
    bytes: PositiveInt
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    float_bytes: PositiveInt | None = None
    latency_ms: float | None = None
    peers: dict[str, float] = {}
    measured_on: str = ""
    made_on: str
    date: str
    commit: str
    command: str
    source: str
    license: str = "Apache-2.0"

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right / self.images

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.name}.safetensors"
