"""How a trained model predicts, as the command line says it; free of torch, so that help pages are quick."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from labelwise.errors import UserError, require_at_least


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """How a segmenter predicts beyond a single pass over the image as it is."""

    scales: tuple[float, ...] = (1.0,)
    "factors of the image's size whose probabilities are averaged, such as 0.5 0.75 1 1.25 1.5 1.75"
    flip: bool = False
    "average with the mirrored image as well"
    window: int | None = None
    "side of the sliding window in pixels, 0 = the whole image; unless given, as the model was trained to"
    output_stride: int | None = None
    "another output stride than in training, such as 8 instead of 16: finer and slower, with the same weights"
    crf: str | None = None
    "dense CRF: deeplab_v1, deeplab_v2, cam, one of these with changes (deeplab_v2:iterations=5), or a file"

    def __post_init__(self) -> None:
        """Refuse numbers that no prediction can have.

        Raises:
            UserError: names the option.
        """
        if not self.scales or not all(0 < scale <= 8 for scale in self.scales):
            shown = " ".join(map(str, self.scales))
            raise UserError(f"--scales {shown}: must be one or more factors above 0 and up to 8")
        for name in ("window", "output_stride"):
            if getattr(self, name) is not None:
                require_at_least(name, getattr(self, name), 0 if name == "window" else 1)

    @property
    def changed(self) -> dict[str, object]:
        """The options that differ from their defaults."""
        return {
            field.name: asdict(self)[field.name] for field in fields(self) if getattr(self, field.name) != field.default
        }

    def __str__(self) -> str:
        """In words, such as `scales 0.5 1.0, flip, crf deeplab_v2`; empty for a single plain pass."""
        return ", ".join(_said(name, value) for name, value in self.changed.items())


def _said(name: str, value: object) -> str:
    words = name.replace("_", " ")
    if value is True:
        return words
    return f"{words} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
