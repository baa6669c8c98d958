"""Holds the one dataclass that an architecture is described with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MLPAdapter:
    """Says where the neurons of an architecture are.

    A neuron is one row of `gate` and of `up` and one column of `down`:

    * gated, ``down(activation(gate(x)) * up(x))``: the default;
    * gated and fused, the rows of gate and up stacked in one projection, gate first: `up` is that
      projection, `gate` None, `fused` True;
    * ungated, ``down(activation(up(x)))``: `gate` None.

    Attributes:
        name: what `funcnet inspect` prints.
        architectures: model class names, as in ``config.architectures``.
        bias_key: config switch by which stock modelling code gives `down` a bias (and then `gate`
            and `up` too). None: the architecture cannot carry the bias of `repair: bias`,
            unless its `down` has one anyway.
        layers: path from the model to the list of decoder layers.
        mlp: path from a decoder layer to its MLP; "" if the projections stand in the layer itself.
        gate, up, down: paths inside the MLP of `torch.nn.Linear` or transformers `Conv1D` modules.
        fused: see above.
        activation: path of the activation module inside the MLP.
        width_key: name by which modelling code reads the number of neurons from the config (the
            config's own `attribute_map` says what it is called in config.json).
    """

    name: str
    architectures: tuple[str, ...]
    bias_key: str | None = None
    layers: str = "model.layers"
    mlp: str = "mlp"
    gate: str | None = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    fused: bool = False
    activation: str = "act_fn"
    width_key: str = "intermediate_size"
