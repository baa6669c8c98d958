"""What a GPU does: the engine against a CPU, one layer's networks, writing, whole runs, speed.

    python benchmarks/gpu.py [--part agreement] [--part layer] [--part writing] [--part run]
        [--part widths] [--part speed]

Prints a JSON object a line. Shapes are those of a 1.1B LLaMA (22 layers, hidden 2048, width 5632)
with random weights, and `--layers` of them in a whole run, whose time is to be multiplied; `widths`
and `speed` have those of LLaMA-3.2-1B and LLaMA-2-7B, dense and with 20% of all parameters less,
the width a multiple of 128 and odd. With `--small` shapes are tiny and the device may be a CPU: a
dry run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from funcnet_plugin.adapters import count_parameters
from funcnet_plugin.bench import Load
from funcnet_plugin.bench.backends.hugging_face import Generating
from funcnet_plugin.bench.rounds import measure
from funcnet_plugin.bench.summary import speed_ups, speeds
from funcnet_plugin.bench.widths import bench_widths
from funcnet_plugin.ica import SignalStream, canica
from funcnet_plugin.pruning import prune
from funcnet_plugin.score.groups import map_scores
from funcnet_plugin.text.writing import write

PARTS = ("agreement", "layer", "writing", "run", "widths", "speed")
RECIPES = ("prune_fast", "ica_prune", "prune_best")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def say(**row: object) -> None:
    print(json.dumps(row), flush=True)


def timed(work: Callable[[], object]) -> float:
    """Time work after a first run of it, which loads kernels."""
    work()
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def signals(n_tokens: int, n_signals: int, n_networks: int = 120) -> Tensor:
    """Mix heavy-tailed maps by random time courses, and add noise."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(2, n_networks, n_signals, generator=generator).clamp_min(1e-9)
    maps = (uniform[0] - 0.5).sign() * -uniform[1].log()
    courses = torch.randn(n_tokens, n_networks, generator=generator)
    courses *= torch.arange(1, n_networks + 1) ** -0.5
    noise = torch.randn(n_tokens, n_signals, generator=generator)
    return (courses @ maps + noise).bfloat16()


def agreement(small: bool) -> None:
    """Compare the scores that both devices give."""
    X = signals(500 if small else 2000, 300 if small else 1536)
    k, starts = (8, 4) if small else (48, 16)
    scores = [
        map_scores(canica(x, k, n_init=starts).maps.cpu(), 2).flatten() for x in (X, X.to(DEVICE))
    ]
    say(part="agreement", scores=float(torch.corrcoef(torch.stack(scores))[0, 1]))


def layer(small: bool) -> None:
    """Time the networks of one layer: groups of 40 x 512 tokens."""
    tokens, width, k, groups = (256, 256, 8, 2) if small else (40 * 512, 2 * 5632, 128, 8)
    X = signals(tokens, width).to(DEVICE)

    def networks() -> None:
        for _ in range(groups):
            stream = SignalStream(width, 4 * k)
            for sample in X.split(512):
                stream.add(sample)
            canica(stream.finish(), k, n_init=16)

    say(part="layer", groups=groups, starts=16, seconds=timed(networks))


def writing(small: bool) -> None:
    """Time what a model writes, all windows at once."""
    model, count, window = shape(small, 2 if small else 22).to(DEVICE), 8 if small else 256, 64
    size = model.config.vocab_size
    begin = [[3 + i % (size - 3)] for i in range(count)]
    seconds = timed(lambda: write(model, range(3, size), begin=begin, window=window, seed=0))
    say(part="writing", windows=count, tokens_per_second=count * (window - 1) / seconds)


def whole_run(small: bool, layers: int) -> None:
    """Time whole runs of the recipes, and measure what they take on the GPU."""
    samples, window = (48, 32) if small else (128, 512)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model"
        shape(small, layers).save_pretrained(source)
        tokenizer().save_pretrained(source)
        text = Path(folder) / "text.txt"
        generator = torch.Generator().manual_seed(0)
        words = torch.randint(3, 32, (samples * window + 1,), generator=generator)
        text.write_text(" ".join(f"w{word}" for word in words.tolist()))
        fields = {"align": 8, "pruning_ratio": 0.05} if small else {}
        prune(  # imports, and what CUDA loads at first, are not of a run
            source, text, Path(folder) / "first", recipe="prune_fast",
            overrides=fields, samples=16, window=window,
        )  # fmt: skip
        for recipe in RECIPES:
            if DEVICE.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            prune(
                source, text, Path(folder) / recipe, recipe=recipe,
                overrides=fields, samples=samples, window=window,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            gpu = torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else None
            say(part="run", recipe=recipe, layers=layers, seconds=seconds, gpu_gb=gpu)


def widths(small: bool) -> None:
    """Time an MLP of each shape at many widths."""
    for name, config in served(small).items():
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            found = bench_widths(Path(folder), [1, 512], 1 if small else 30, "bfloat16", 1)
        say(part="widths", shape=name, align=found["align"], steps=found["steps"])


def speed(small: bool) -> None:
    """Time dense and narrower models in turns: eager where it is quick, compiled both."""
    load = Load(8, 4) if small else Load(512, 32)
    for name, config in served(small).items():
        wide = config.intermediate_size
        for compiled in (False, True):
            if not small and not compiled and config.hidden_size > 2048:
                continue  # the host cannot launch its kernels faster than that of the smaller one
            models = {w: served_model(config, w) for w in (wide, *narrower(config))}
            backends = {str(w): Generating(m, compiled, Path()) for w, m in models.items()}
            for backend in backends.values():
                backend.run(load, 3)
            timings = measure(backends, load, 3 if small else 30, lambda n, measured: measured())
            for width, of in timings.items():
                gains = {
                    phase: None if gain is None else [gain.median, gain.low, gain.high]
                    for phase, gain in speed_ups(timings[str(wide)], of).items()
                }
                say(part="speed", shape=name, compiled=compiled, load=str(load), width=int(width),
                    speed_up=gains, **speeds(of, load))  # fmt: skip
            for backend in backends.values():
                backend.close()
            del models, backends


def served(small: bool) -> dict[str, LlamaConfig]:
    """Give the shapes of LLaMA-3.2-1B and LLaMA-2-7B."""
    rows = {
        "llama-3.2-1b": (2048, 8192, 16, 8, 128256, True),
        "llama-2-7b": (4096, 11008, 32, 32, 32000, False),
    }
    if small:
        rows = {name: (64, 1024, 2, *of[3:4], 64, of[5]) for name, of in rows.items()}
    return {
        name: LlamaConfig(
            hidden_size=hidden, intermediate_size=width, num_hidden_layers=layers,
            num_attention_heads=32, num_key_value_heads=groups, vocab_size=vocabulary,
            tie_word_embeddings=tied, max_position_embeddings=4096, dtype="bfloat16",
        )
        for name, (hidden, width, layers, groups, vocabulary, tied) in rows.items()
    }  # fmt: skip


def narrower(config: LlamaConfig) -> list[int]:
    """Find the widths nearest to 20% of all parameters less: a multiple of 128, and an odd one."""
    with torch.device("meta"):
        total = count_parameters(LlamaForCausalLM(config))
    each = 3 * config.hidden_size * config.num_hidden_layers
    wanted = round(config.intermediate_size - 0.2 * total / each)
    return [round(wanted / 128) * 128, wanted | 1]


def served_model(config: LlamaConfig, width: int) -> LlamaForCausalLM:
    """Make a model of another width on the device, its weights whatever torch draws first."""
    torch.manual_seed(0)
    changed = LlamaConfig(**config.to_dict() | {"intermediate_size": width})
    with DEVICE:
        return LlamaForCausalLM._from_config(changed, dtype=torch.bfloat16).eval()


def shape(small: bool, layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    hidden, width = (32, 192) if small else (2048, 5632)
    config = LlamaConfig(
        vocab_size=32 if small else 32000, hidden_size=hidden, intermediate_size=width,
        num_hidden_layers=layers, num_attention_heads=hidden // 16 if small else 32,
        num_key_value_heads=2 if small else 4, max_position_embeddings=2048,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """Make one that knows a word for each of the first 32 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(32)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w1")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--layers", type=int, default=4, help="of the model of a whole run")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if DEVICE.type != "cuda" and not args.small:
        raise SystemExit("no CUDA device; --small tries the script on a CPU.")
    say(device=torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu")
    parts = args.part or PARTS
    if "agreement" in parts:
        agreement(args.small)
    if "layer" in parts:
        layer(args.small)
    if "writing" in parts:
        writing(args.small)
    if "run" in parts:
        whole_run(args.small, args.layers)
    if "widths" in parts:
        widths(args.small)
    if "speed" in parts:
        speed(args.small)


if __name__ == "__main__":
    main()
