"""What the commands share: flags, and the options of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from labelwise.errors import UserError
from labelwise.hardware import Hardware
from labelwise.inference_options import InferenceOptions

Flat = Parameter(name="*")


Json = Annotated[bool, Parameter(name="--json", negative="", help="print one JSON object")]


Flag = Parameter(negative="")


Several = Parameter(consume_multiple=True)
"""For options of any number of values, where no word of another meaning can follow."""


@dataclass(frozen=True, kw_only=True)
class Inference(InferenceOptions):
    """The same, with its flags."""

    scales: Annotated[tuple[float, ...], Several] = (1.0,)
    "factors of the image's size whose probabilities are averaged, such as 0.5 0.75 1 1.25 1.5 1.75"
    flip: Annotated[bool, Flag] = False
    "average with the mirrored image as well"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where to compute, for verbs that only use a trained model."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    "auto = a GPU where there is one"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    "auto = what was measured to be fastest on this kind of device"

    def hardware(self) -> Hardware:
        """The same as `Hardware`."""
        return Hardware(**asdict(self))


@dataclass(frozen=True, kw_only=True)
class SharedPlacement(Placement):
    """Where to compute, for verbs that share their work among devices."""

    devices: int = 1
    "processes on this machine, one device each; any number gives the same result"


def parsed_options(pairs: Sequence[str]) -> dict[str, Any]:
    """The values of NAME=VALUE pairs, each in the type that YAML gives it.

    Raises:
        UserError: a pair is not of this form.
    """
    import yaml

    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UserError(f"--option {pair}: must be NAME=VALUE, such as crop=64 or cps.cutmix=false")
        try:
            options[name.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--option {pair}: '{value}' is not a value; write a number, a word or [a, list]") from None
    return options
