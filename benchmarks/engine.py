"""The ICA engine against its peers and against the work around it.

    python -m benchmarks.engine MODEL --data CALIBRATION.jsonl --out benchmarks/results/engine.json
    python -m benchmarks.engine --part wide --part shape_1b --part launches

The second needs no model: it measures what the engine promises, side by side. Every figure is a
ratio of two things measured one after the other in this process, or a property of the result.
Parts (`--part`, all by default):

* `ica`: ours against nilearn's CanICA, scikit-learn's FastICA and python-picard, on real signals of
  one layer and on random ones of 22016 x 5000 (`wide`): seconds, iterations, contrast reached; ten
  starts of ours and of nilearn's, one of scikit-learn's;
* `agreement`: correlation of the neuron scores of two seeds, per layer, at the default settings;
* `run`: a whole pruning run against its own forward passes (two per layer), and against
  llm-compressor's own Wanda and SparseGPT; networks across layers against networks within them;
* `shape_1b`: the same for one layer of LLaMA-3.2-1B's shape and one group of 40 x 512 tokens;
* `launches`: kernels and host waits of the networks of one layer, counted on the CPU;
* `memory`: the peak beyond the model, with and without `max_memory`;
* `scaling`: fitted exponents in tokens, signals, components and starts (layers and groups are
  decomposed one after another, so in these it is linear);
* `cuda`: one layer of the shape of LLaMA-2-7B in the paper's setting, on a GPU if there is one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.launches import launches
from funcnet_plugin.adapters import bind
from funcnet_plugin.ica import canica, nilearn_canica, reduce_time, standardise, whiten
from funcnet_plugin.ica.contrast import negentropy
from funcnet_plugin.ica.fastica import fastica
from funcnet_plugin.ica.picard import picard
from funcnet_plugin.ica.runs import initial_unmixing
from funcnet_plugin.score.groups import map_scores
from funcnet_plugin.text.sources import load_texts
from funcnet_plugin.text.windows import make_loader, token_windows

K, GROUP, WINDOW = 64, 40, 128


def seconds(work: Callable) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


class Inputs:
    """Holds the model and its calibration windows, and gives (tokens, signals) of a layer."""

    def __init__(self, model: str, data: str, column: str, samples: int, window: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.path, self.column, self.data = model, column, data
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        texts = load_texts(data, column)
        self.windows = token_windows(texts, self.tokenizer, window=window, samples=samples, seed=0)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    @torch.no_grad()
    def forward(self) -> None:
        for batch in make_loader(self.windows, 1):
            self.model(**batch)

    def signals(self, layer: int) -> Tensor:
        block = bind(self.model).blocks[layer]
        seen: dict[str, list[Tensor]] = {"act": [], "up": []}
        hooks = [
            module.register_forward_hook(lambda m, a, o, key=key: seen[key].append(o[0]))
            for key, module in (("act", block.activation), ("up", block.up))
        ]
        self.forward()
        for hook in hooks:
            hook.remove()
        return torch.cat([torch.cat(seen["act"]), torch.cat(seen["up"])], dim=1).bfloat16()


def _contrast(maps: Tensor) -> float:
    maps = maps.double()
    return float(negentropy(maps, "cube").max())


def ica(inputs: Inputs | None, wide: bool, starts: int = 10) -> list[dict]:
    """Time each peer from the raw signals to the maps; starts counted as it counts them."""
    if not wide:
        layer = len(bind(inputs.model).blocks) // 2
        cases = [(f"layer {layer}", inputs.signals(layer)[: GROUP * WINDOW], K)]
    else:
        generator = torch.Generator().manual_seed(0)
        courses = torch.randn(5000, 400, generator=generator) * torch.arange(1, 401) ** -0.5
        torch.manual_seed(0)
        maps = torch.distributions.Laplace(0.0, 1.0).sample((400, 22016))
        noise = torch.randn(5000, 22016, generator=generator)
        cases = [("22016 x 5000", courses @ maps + noise, 128)]
    return [_ica_case(name, X, k, starts) for name, X, k in cases]


def _ica_case(name: str, X: Tensor, k: int, starts: int) -> dict:
    from sklearn.decomposition import fastica as sklearn_fastica

    row: dict = {"signals": name, "shape": list(X.shape), "components": k, "starts": starts}
    took, ours = seconds(lambda: canica(X, k, n_init=starts))
    row["ours"] = {"seconds": took, "contrast_best": _contrast(ours.maps)}
    row["ours"]["iterations"] = float(np.mean([run.n_iter for run in ours.runs]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        took, theirs = seconds(lambda: nilearn_canica(X.float(), k, n_init=starts))
        # nilearn scales every token to unit norm first, so its space is another one: ours there too
        space = whiten(theirs.maps[0].double())
        row["nilearn"] = {
            "seconds": took, "times_ours": took / row["ours"]["seconds"],
            "contrast": _contrast(theirs.maps),
            "our_contrast_in_its_space": _contrast(picard(space, n_init=starts).W @ space),
        }  # fmt: skip
        one, mine = seconds(lambda: canica(X, k, n_init=1))
        Z = torch.cat(list(standardise(X).rows())).numpy()
        start = initial_unmixing(k, 0, 0).numpy()
        took, (_, _, S) = seconds(
            lambda: sklearn_fastica(
                _pca_by_sklearn(Z, k), fun="cube", w_init=start, whiten="unit-variance",
                max_iter=300, tol=1e-4,
            )
        )  # fmt: skip
        row["scikit-learn, one start"] = {
            "seconds": took, "contrast": _contrast(torch.from_numpy(S.T)),
            "times_ours": took / one, "our_contrast": _contrast(mine.maps),
        }  # fmt: skip
    white = whiten(reduce_time(standardise(X), k)[0])
    took, ours_solver = seconds(lambda: picard(white, n_init=1))
    solver = {"our_seconds": took, "our_contrast": _contrast(ours_solver.W @ white)}
    fast, found = seconds(lambda: fastica(white, n_init=1))
    solver |= {"fastica_times_ours": fast / took, "fastica_contrast": _contrast(found.W @ white)}
    try:
        from picard import picard as reference
    except ImportError:
        solver["python-picard"] = "not installed"
    else:
        W0 = torch.linalg.svd(initial_unmixing(k, 0, 0))
        theirs_took, (_, W, _) = seconds(
            lambda: reference(
                white.numpy(), fun="cube", ortho=True, extended=True, whiten=False,
                centering=False, w_init=(W0.U @ W0.Vh).numpy(), max_iter=300, tol=1e-3,
            )
        )  # fmt: skip
        solver["python-picard_times_ours"] = theirs_took / took
        solver["python-picard_contrast"] = _contrast(torch.from_numpy(W) @ white)
    row["solver alone, one start"] = solver
    return row


def _pca_by_sklearn(Z: np.ndarray, k: int) -> np.ndarray:
    """Do what a user of scikit-learn does first: (signals, k)."""
    from sklearn.utils.extmath import randomized_svd

    _, S, Vt = randomized_svd(Z, k, random_state=0)
    return Vt.T * S


def agreement(inputs: Inputs, k: int, n_init: int) -> dict:
    """Compare two seeds on the same signals: the mean of scores over groups, as in a run."""
    window = len(inputs.windows[0])
    rows: dict = {"components": k, "starts": n_init, "window": window, "layers": []}
    for layer in range(len(bind(inputs.model).blocks)):
        X = inputs.signals(layer)
        groups = X.split(GROUP * window)
        groups = [g for g in groups if len(g) == GROUP * window]
        scores = [
            sum(map_scores(canica(g, k, n_init=n_init, seed=seed).maps, 2) for g in groups)
            for seed in (0, 1)
        ]
        r = float(torch.corrcoef(torch.stack(scores))[0, 1])
        ranks = torch.stack([s.argsort().argsort().double() for s in scores])
        keep = [set(s.topk(int(0.66 * len(s))).indices.tolist()) for s in scores]
        rows["layers"].append(
            {
                "correlation": r,
                "rank_correlation": float(torch.corrcoef(ranks)[0, 1]),
                "kept_alike": len(keep[0] & keep[1]) / len(keep[0]),
            }
        )
    rows["groups"] = len(groups)
    rows["lowest"] = min(layer["correlation"] for layer in rows["layers"])
    return rows


def run(inputs: Inputs) -> list[dict]:
    """Time whole `oneshot` runs on the same windows, against forward passes over them."""

    def ours(n_init: int = 16, **parameters: object) -> dict:
        decomposer = {"name": "canica", "n_init": n_init}
        networks = {"name": "networks", "n_components": K, "samples_per_group": GROUP}
        networks |= {"decomposer": decomposer} | parameters
        fields = {"pruning_ratio": 0.2, "align": 32, "scorer": [networks, "effect"]}
        return {"FunctionalNetworkModifier": fields}

    recipes = {
        # nothing is computed but what the pipeline does: calibration and propagation
        "forward passes alone": {
            "WidthPruningModifier": {
                "pruning_ratio": 0.2,
                "align": 32,
                "scorer": "random",
                "repair": "none",
            }
        },
        "FunctionalNetworkModifier, 16 starts": ours(),
        "FunctionalNetworkModifier, 4 starts": ours(n_init=4),
        "global, 16 starts": ours(strategy="global"),
        "WidthPruningModifier, effect": {
            "WidthPruningModifier": {"pruning_ratio": 0.2, "align": 32}
        },
        "llm-compressor's Wanda": {
            "WandaPruningModifier": {"sparsity": 0.2, "mask_structure": "0:0", "targets": "Linear"}
        },
        "llm-compressor's SparseGPT": {
            "SparseGPTModifier": {"sparsity": 0.2, "mask_structure": "0:0", "targets": "Linear"}
        },
    }
    _oneshot(inputs, recipes["forward passes alone"])  # imports and caches
    rows = []
    for name, modifiers in recipes.items():
        before = _resident("VmRSS", reset=True)
        took, _ = seconds(lambda m=modifiers: _oneshot(inputs, m))
        peak_MB = (_resident("VmHWM") - before) / 2**20
        row = {"run": name, "seconds": took, "peak_MB_beyond_start": peak_MB}
        if rows:
            row["times_forward"] = took / rows[0]["seconds"]
        rows.append(row)
    rows[3]["times_local"] = rows[3]["seconds"] / rows[1]["seconds"]
    return rows


def _resident(what: str, *, reset: bool = False) -> int:
    """Read bytes: `VmRSS` now, or `VmHWM`, the most since the last reset. Linux."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(what))
    return int(line.split()[1]) * 1024


def _oneshot(inputs: Inputs, modifiers: dict) -> None:
    import yaml
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(inputs.path, dtype=torch.float32)
    oneshot(
        model=model, tokenizer=inputs.tokenizer, dataset=make_loader(inputs.windows, 1),
        recipe=yaml.safe_dump({"t_stage": {"t_modifiers": modifiers}}),
    )  # fmt: skip


def shape_1b(tokens: int = 512, starts: int = 8) -> dict:
    """Time random weights and inputs; float32 on a CPU. Starts are those of a run of 8 groups."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    from funcnet_plugin.measure.moments import Moments

    config = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_attention_heads=32, num_key_value_heads=8,
        num_hidden_layers=1, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    layer = LlamaDecoderLayer(config, 0).eval()
    rotary = LlamaRotaryEmbedding(config)
    seen: dict[str, list[Tensor]] = {"act": [], "up": [], "hidden": []}
    layer.mlp.act_fn.register_forward_hook(lambda m, a, o: seen["act"].append(o[0].bfloat16()))
    layer.mlp.up_proj.register_forward_hook(lambda m, a, o: seen["up"].append(o[0].bfloat16()))
    layer.mlp.down_proj.register_forward_pre_hook(lambda m, a: seen["hidden"].append(a[0][0]))
    position = rotary(torch.zeros(1, tokens, 2048), torch.arange(tokens)[None])

    @torch.no_grad()
    def forward() -> None:
        for i in range(GROUP):
            generator = torch.Generator().manual_seed(i)
            layer(torch.randn(1, tokens, 2048, generator=generator), position_embeddings=position)

    once, _ = seconds(forward)
    blocks = [torch.cat(pair, 1) for pair in zip(seen["act"], seen["up"], strict=True)]
    moments = Moments(8192)
    summed, _ = seconds(lambda: [moments.add(h) for h in seen["hidden"]] and moments.second)
    found, _ = seconds(lambda: canica(blocks, 128, n_init=starts))
    return {
        "forward_seconds": once, "moments_seconds": summed, "networks_seconds": found,
        "starts": starts,
        "whole_run_times_its_two_forward_passes": (2 * once + summed + found) / (2 * once),
    }  # fmt: skip


def memory(T: int = 20480, V: int = 22016, k: int = 128) -> list[dict]:
    """Measure the peak memory of one decomposition beyond what it was given, in fresh processes."""
    rows = []
    for limit in ("", "256MB"):
        code = f"import benchmarks.engine as e; print(e.peak({T}, {V}, {k}, {limit!r}))"
        root = Path(__file__).parents[1]
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONPATH": str(root)},
        )  # fmt: skip
        signals, peak = map(int, done.stdout.split())
        rows.append({"tokens": T, "signals": V, "components": k, "max_memory": limit or None,
                     "signals_MB": signals / 2**20, "peak_MB": peak / 2**20})  # fmt: skip
    return rows


def peak(T: int, V: int, k: int, limit: str) -> str:
    """Give the bytes of signals in bfloat16, and the peak of resident memory from there on."""
    from funcnet_plugin.ica import SignalStream

    limits = {"": None, "256MB": 2**28}
    stream = SignalStream(V, 4 * k, limits[limit])
    before = _resident("VmRSS", reset=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(T // 256):
        stream.add(torch.randn(256, V, generator=generator, dtype=torch.float32).bfloat16())
    canica(stream.finish(), k, n_init=4)
    return f"{2 * T * V} {_resident('VmHWM') - before}"


def scaling(inputs: Inputs) -> dict:
    """Fit exponents of the time of one decomposition, least squares in log-log."""
    X = inputs.signals(0)
    T, V = GROUP * WINDOW, X.shape[1]
    axes = {
        "tokens": [(n, X[:n], K, 4) for n in (T // 2, T, 2 * T)],
        "signals": [(n, X[:T, :n], K, 4) for n in (V // 2, 3 * V // 4, V)],
        "components": [(n, X[:T], n, 4) for n in (32, 64, 128)],
        "starts": [(n, X[:T], K, n) for n in (4, 8, 16)],
    }
    found = {}
    for axis, points in axes.items():
        times = [min(seconds(lambda p=p: canica(p[1], p[2], n_init=p[3]))[0] for _ in range(3))
                 for p in points]  # fmt: skip
        logs = np.log([p[0] for p in points]), np.log(times)
        found[axis] = {"exponent": float(np.polyfit(*logs, 1)[0]), "seconds": times}
    return found


def cuda() -> dict | str:
    """Time one group of one layer of LLaMA-2-7B: 40 samples of 512 tokens, 128 components."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    X = torch.randn(40 * 512, 22016, device="cuda", dtype=torch.bfloat16)
    canica(X, 128, n_init=1)
    took, _ = seconds(lambda: canica(X, 128, n_init=16))
    groups = 3200 // 40 * 32
    return {
        "device": torch.cuda.get_device_name(), "seconds_per_layer_and_group": took,
        "minutes_for_3200_samples_32_layers": took * groups / 60,
        "peak_GB": torch.cuda.max_memory_allocated() / 2**30,
    }  # fmt: skip


def machine() -> dict:
    packages = ("torch", "numpy", "scikit-learn", "nilearn", "llmcompressor", "transformers")
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", help="for the parts on real signals")
    parser.add_argument("--data", help="calibration text, with a model")
    parser.add_argument("--column", default="text", help="field of a record that holds the text")
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--window", type=int, default=WINDOW, help="tokens")
    parser.add_argument("--out", type=Path, help="JSON; parts measured before are kept")
    parser.add_argument("--part", action="append", choices=PARTS, help="all but cuda if not given")
    args = parser.parse_args()
    parts = args.part or list(PARTS)
    of_a_model = [part for part in parts if part not in WITHOUT_MODEL]
    if of_a_model and (args.model is None or args.data is None):
        parser.error(f"give MODEL and --data for the parts {', '.join(of_a_model)}.")
    results = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # llm-compressor leaves a log where it runs
        inputs = None
        if of_a_model:
            inputs = Inputs(args.model, args.data, args.column, args.samples, args.window)
        for part in parts:
            results[part] = machine() | {"results": PARTS[part](inputs)}
            print(json.dumps({part: results[part]}, indent=1), flush=True)
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(results, indent=1) + "\n")


PARTS: dict[str, Callable[[Inputs | None], object]] = {
    "ica": lambda inputs: ica(inputs, wide=False),
    "wide": lambda inputs: ica(inputs, wide=True),
    "agreement": lambda inputs: agreement(inputs, K, 16),
    "run": run,
    "shape_1b": lambda inputs: shape_1b(),
    "launches": lambda inputs: launches(),
    "memory": lambda inputs: memory(),
    "scaling": scaling,
    "cuda": lambda inputs: cuda(),
}
WITHOUT_MODEL = ("wide", "shape_1b", "launches", "memory", "cuda")

if __name__ == "__main__":
    main()
