"""A complete adapter plugin: XGLM, which funcnet-plugin does not bring.

Its projections stand in the decoder layer itself, without a gate, and its config calls the width
`ffn_dim`.
"""

from funcnet_plugin import MLPAdapter, hookimpl


@hookimpl
def funcnet_adapters():
    return [
        MLPAdapter(
            name="xglm",
            architectures=("XGLMForCausalLM",),
            layers="model.layers",
            mlp="",
            gate=None,
            up="fc1",
            down="fc2",
            activation="activation_fn",
            width_key="ffn_dim",
        )
    ]
