"""What the comparisons of the tests are made of."""

from funcnet_plugin.compare import Comparison

NETWORKS = "scorer.networks."
SMALL = {
    "align": 8,
    "own_text": 0.0,  # which takes most of the time
    f"{NETWORKS}n_components": 6,
    f"{NETWORKS}samples_per_group": 8,
    f"{NETWORKS}decomposer.n_init": 1,
}


ALIGNED = {"align": 8}  # for plans without a method that has networks


def plan(checkpoint, files, **changes):
    return Comparison(
        **{
            "model": str(checkpoint),
            "data": {str(files["calibration"]): 1.0},
            "texts": {name: str(files[name]) for name in ("near", "far")},
            "methods": ("default", "flap", "random"),
            "ratios": (0.1, 0.2),
            "repairs": ("none",),
            "overrides": SMALL,
            "samples": (16,),
            "window": 40,
        }
        | changes
    )
