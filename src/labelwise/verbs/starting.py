"""Starting a training from the weights of a finished run, also of one with other classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from labelwise.errors import UserError
from labelwise.method import Method
from labelwise.saved import load_weights
from labelwise.verbs.preparation import note

_SHOWN = 4


def initial_weights(run: Path, method: Method, partly: bool) -> dict[str, Tensor]:
    """The weights of a finished run that fit a method's network.

    Args:
        run: the folder of the run.
        method: built as it will be trained; its weights are not changed.
        partly: leave out the layers that do not fit, and say which, instead of refusing.

    Raises:
        UserError: the folder holds no finished run, some layers do not fit and `partly` is not set, or none fits.
    """
    try:
        theirs = load_weights(run)
    except UserError as error:
        raise UserError(f"--start-from {error}") from None
    ours = method.network.state_dict()
    fitting = {name: value for name, value in theirs.items() if name in ours and value.shape == ours[name].shape}
    other = [_described(name, ours, theirs) for name in ours if name not in fitting]
    unused = [name for name in theirs if name not in ours]
    if not fitting:
        raise UserError(
            f"--start-from {run}: no layer fits the network of '{method.card.name}'; name a run of its kind"
        )
    if (other or unused) and not partly:
        what = f"{_some(other)} do not fit" if other else f"{_some(unused)} have no place"
        raise UserError(f"--start-from {run}: {what} in this network; --start-partly loads the rest")
    if other:
        note(f"--start-from {run}: {len(fitting)} of {len(ours)} tensors loaded; not {_some(other)}")
    return fitting


def _described(name: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    if name not in theirs:
        return f"{name} (missing there)"
    sizes = ("x".join(map(str, tensors[name].shape)) or "1" for tensors in (theirs, ours))
    return f"{name} ({' there, '.join(sizes)} here)"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
