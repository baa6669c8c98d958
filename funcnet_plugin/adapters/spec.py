"""The one dataclass that an architecture is described with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MLPAdapter:
    """Where the neurons of an architecture are.

    A neuron is one row of `gate` and of `up` and one column of `down`:
    ``down(activation(gate(x)) * up(x))``.

    Attributes:
        name: what `funcnet inspect` prints.
        architectures: model class names, as in ``config.architectures``.
        bias_key: config switch by which stock modelling code gives `down` a bias (and then `gate`
            and `up` too). None: the architecture cannot carry the bias of `compensation: bias`.
        layers: path from the model to the list of decoder layers.
        mlp: path from a decoder layer to its MLP.
        gate, up, down: `torch.nn.Linear` paths inside the MLP.
        activation: path of the activation module inside the MLP.
        width_key: config key of the number of neurons.
    """

    name: str
    architectures: tuple[str, ...]
    bias_key: str | None = None
    layers: str = "model.layers"
    mlp: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    activation: str = "act_fn"
    width_key: str = "intermediate_size"
