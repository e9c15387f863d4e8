"""What a device file may say: the pydantic models of cells, layers and states, each number with its source."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from qtaml_onnx.errors import InputError
from qtaml_onnx.physics.stack import Layer, Stack
from qtaml_onnx.physics.units import parse_duration

__all__ = ["CellSpec", "Duration", "LayerSpec", "NotNegative", "Number", "PlanesSpec", "Positive", "Quantity", "Share"]


class Strict(BaseModel):
    """Frozen, unknown keys refused, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Quantity(Strict):
    """A number with its source. A file may write the bare number; then the source is `not stated`."""

    value: float
    source: str = "not stated"


def _with_source(value: Any) -> Any:
    return {"value": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _time(value: Any) -> Any:
    try:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return {"value": parse_duration(value)}
        if isinstance(value, dict) and isinstance(value.get("value"), str):
            return {**value, "value": parse_duration(value["value"])}
    except InputError as error:
        raise ValueError(str(error)) from error
    return value


def _above_zero(quantity: Quantity) -> Quantity:
    if not quantity.value > 0:
        raise ValueError(f"must be above 0, got {quantity.value:g}")
    return quantity


def _not_negative(quantity: Quantity) -> Quantity:
    if quantity.value < 0:
        raise ValueError(f"must not be negative, got {quantity.value:g}")
    return quantity


def _between_0_and_1(quantity: Quantity) -> Quantity:
    if not 0 <= quantity.value <= 1:
        raise ValueError(f"must lie between 0 and 1, got {quantity.value:g}")
    return quantity


Number = Annotated[Quantity, BeforeValidator(_with_source)]
Positive = Annotated[Quantity, AfterValidator(_above_zero), BeforeValidator(_with_source)]
NotNegative = Annotated[Quantity, AfterValidator(_not_negative), BeforeValidator(_with_source)]
Share = Annotated[Quantity, AfterValidator(_between_0_and_1), BeforeValidator(_with_source)]
Duration = Annotated[Quantity, AfterValidator(_above_zero), BeforeValidator(_time)]

_ZERO = Quantity(value=0.0, source="default")
_HALF = Quantity(value=0.5, source="default: half of the cells")


class LayerSpec(Strict):
    """One dielectric between the storage node and the line.

    Attributes:
        material: Name, for the reader.
        thickness_nm: Thickness, nm.
        barrier_ev: Conduction-band edge above the band edge of the storage node, without field, eV.
        mass: Tunnelling mass, in electron masses.
        permittivity: Relative static permittivity.
        fixed: Whether the layer keeps its thickness when the cell's thickness is varied or scatters.
    """

    material: str
    thickness_nm: Positive
    barrier_ev: Positive
    mass: Positive
    permittivity: Positive
    fixed: bool = False


class StateSpec(Strict):
    """One stored state: the potentials that its charge and its surroundings make.

    Attributes:
        supply_fraction: Share of the supply voltage on the storage node just after the write.
        electrons: Excess electrons put on the node by the write, whatever the supply (negative: electrons missing).
        line_fraction: Share of the supply voltage on the line that drains this state.
        exposed_share: Threshold cells: share of the cells whose line sits at that level while they hold.
    """

    supply_fraction: Number = _ZERO
    electrons: Number = _ZERO
    line_fraction: Number = _ZERO
    exposed_share: Share = _HALF


class CellSpec(Strict):
    """One memory cell: a storage node behind a dielectric stack.

    Attributes:
        model: `threshold`: the node holds many electrons and is misread when enough have moved; `exchange`: two
            states that one tunnelling event exchanges.
        attempt_hz: Attempt frequency ν of an electron at the barrier, 1/s.
        layers: Dielectrics, from the storage node to the line.
        zero: The state that reads as 0: it fails when electrons leave the node.
        one: The state that reads as 1: it fails when electrons enter the node.
        sigma_thickness_nm: Standard deviation of the thickness from cell to cell, nm.
        built_in_ev: How much higher the barriers stand above the line's band edge than above the node's, eV.
        image_permittivity: Relative optical permittivity for image-force lowering; absent: no lowering.
        capacitance_af: Total capacitance of the storage node, aF (threshold cells, and states with `electrons`).
        sense_v: Node potential at which a read tells 1 from 0, V (threshold cells).
    """

    model: Literal["threshold", "exchange"]
    attempt_hz: Positive
    layers: tuple[LayerSpec, ...] = Field(min_length=1)
    zero: StateSpec = StateSpec()
    one: StateSpec = StateSpec()
    sigma_thickness_nm: NotNegative = _ZERO
    built_in_ev: Number = _ZERO
    image_permittivity: Positive | None = None
    capacitance_af: Positive | None = None
    sense_v: Number | None = None

    @model_validator(mode="after")
    def _consistent(self) -> CellSpec:
        if all(layer.fixed for layer in self.layers):
            raise ValueError("every layer is fixed: leave `fixed` off the layer whose thickness may vary")
        if self.model == "threshold" and (self.capacitance_af is None or self.sense_v is None):
            raise ValueError("a threshold cell needs capacitance_af and sense_v")
        if self.capacitance_af is None and (self.zero.electrons.value or self.one.electrons.value):
            raise ValueError("electrons on the node need capacitance_af to make a voltage")
        shares = self.zero.exposed_share.value + self.one.exposed_share.value
        if self.model == "threshold" and shares > 1:
            raise ValueError(
                f"zero.exposed_share + one.exposed_share = {shares:g} lets p01 + p10 exceed 1: keep the sum at most 1"
            )
        if 5 * self.sigma_thickness_nm.value > self.thickness_nm:
            raise ValueError(
                f"sigma_thickness_nm {self.sigma_thickness_nm.value:g} is more than a fifth of the thickness "
                f"{self.thickness_nm:g} nm: a normal distribution would put cells at no thickness"
            )
        if any(layer.barrier_ev.value + self.built_in_ev.value <= 0 for layer in self.layers):
            raise ValueError("built_in_ev takes a layer's barrier below the electron's energy on the line's side")
        return self

    @property
    def thickness_nm(self) -> float:
        """Thickness that varies: the sum over the layers that are not fixed, nm."""
        return sum(layer.thickness_nm.value for layer in self.layers if not layer.fixed)

    def stack(self) -> Stack:
        """The dielectric as an electron on the storage node meets it."""
        layers = tuple(
            Layer(
                layer.thickness_nm.value,
                layer.barrier_ev.value,
                layer.mass.value,
                layer.permittivity.value,
                layer.fixed,
            )
            for layer in self.layers
        )
        return Stack(layers, self.image_permittivity.value if self.image_permittivity else None)


class PlanesSpec(Strict):
    """Which cell stores which bit plane.

    Attributes:
        default: Cell of every plane that `from_msb` does not name.
        from_msb: Cells of the most significant planes, most significant first.
    """

    default: str
    from_msb: tuple[str, ...] = ()
