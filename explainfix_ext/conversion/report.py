"""A ConversionReport is what `convert` returns: what it did, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from explainfix_ext._support.text import table_lines


@dataclass(frozen=True)
class ConvertedLayer:
    """A ConvertedLayer is one line of a report, on a layer that was converted or left.

    Attributes:
        name: the layer's name in `named_modules`.
        kind: its class and geometry, for people.
        init: the initialisation of its filters; "" if it was left.
        seed: their seed; None if it was left.
        reason: why it was left; "" if it was converted.
    """

    name: str
    kind: str
    init: str = ""
    seed: int | None = None
    reason: str = ""


@dataclass
class ConversionReport:
    """A ConversionReport says what `convert` did or, with dry_run, would do; `print(report)` shows it as a table.

    Attributes:
        converted: a ConvertedLayer for each layer that is fixed now.
        skipped: a ConvertedLayer for each layer that was left: spatial ones, and 1x1 with include_pointwise=True.
        pointwise_learned: number of 1x1 convolutions and linear layers of the model that learn, those that
            pointwise=True adds included.
        pointwise_fixed: number of 1x1 convolutions among `converted`.
        patches: names of the fixed layers whose stride is their kernel size, such as a ViT's patch embedding: their
            patches do not overlap.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 3, 3))
        >>> print(convert(model, "ghaar4_s1", seed=0, pointwise=True))
        0  Conv2d 3->8 3x3           fixed: ghaar4_s1
        1  ConvTranspose2d 8->3 3x3  left: spatial, still learned: only a Conv2d or Conv1d can be fixed
        1 spatial convolutions fixed, 1 left; 1 learned 1x1 or linear layers
    """

    converted: list[ConvertedLayer] = field(default_factory=list)
    skipped: list[ConvertedLayer] = field(default_factory=list)
    pointwise_learned: int = 0
    patches: tuple[str, ...] = ()
    pointwise_fixed: int = 0

    def __str__(self) -> str:
        rows = [(layer.name, layer.kind, f"fixed: {layer.init}") for layer in self.converted]
        rows += [(layer.name, layer.kind, f"left: {layer.reason}") for layer in self.skipped]
        fixed = f"{len(self.converted) - self.pointwise_fixed} spatial convolutions fixed"
        fixed += f" and {self.pointwise_fixed} 1x1" if self.pointwise_fixed else ""
        total = f"{fixed}, {len(self.skipped)} left; "
        lines = [*table_lines(rows), f"{total}{self.pointwise_learned} learned 1x1 or linear layers"]
        if self.patches:
            names = list(self.patches)
            lines.append(f"fixed too, of patches that do not overlap: to leave them learned, give exclude={names}")
        return "\n".join(lines)
