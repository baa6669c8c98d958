"""Quality after pruning: all methods, three models, several calibration texts.

    python benchmarks/quality.py --data DIR --model ref-llama=DIR/ref-llama --text wiki --out OUT

DIR holds `wikitext-2/{valid,test_a}.jsonl` and `domains/{shakespeare,speeches,bible}.jsonl`,
records with the text in "page". The first pages of each domain are measured on; what may calibrate
is the rest of it. Runs `funcnet compare`, so an interrupted run goes on; every comparison has a
directory of its own with rows, tables and plots.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from comparing import run_compare
from transformers import AutoTokenizer

from funcnet_plugin.text.sources import load_texts

DOMAINS = ("shakespeare", "speeches", "bible")
WINDOW, TEST_WINDOWS = 128, 64
MAIN = (
    "best", "best-without-own-text", "surgeon", "loss_effect", "taylor", "flap",
    "random-or-best", "random-or-surgeon", "random-or-loss_effect",
)  # fmt: skip
OTHERS = (
    "default", "best-uniform", "effect", "wanda_sp", "obs", "magnitude", "random",
    "networks-or-effect-uniform", "random-or-default", "random-or-effect",
    "random-or-effect-uniform", "shortgpt", "shortened_llama", "slicegpt",
)  # fmt: skip
FIELDS = {"align": 32, "scorer.networks.decomposer.n_init": 4}


def split_domains(data: Path, tokenizer: str, out: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Write test and calibration files of each domain, which share no page."""
    encode = AutoTokenizer.from_pretrained(tokenizer)
    test, calibration = {}, {}
    out.mkdir(parents=True, exist_ok=True)
    for name in DOMAINS:
        pages = load_texts(data / "domains" / f"{name}.jsonl", "page")
        tokens, n = 0, 0
        while tokens < WINDOW * TEST_WINDOWS:
            tokens += len(encode(pages[n], verbose=False)["input_ids"])
            n += 1
        for files, kind, part in ((test, "test", pages[:n]), (calibration, "calibrate", pages[n:])):
            files[name] = out / f"{name}-{kind}.jsonl"
            files[name].write_text("".join(json.dumps({"page": page}) + "\n" for page in part))
    return test, calibration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text", choices=["wiki", "mixed"], action="append", required=True)
    parser.add_argument(
        "--method",
        action="append",
        help="a method, a control, or others: what the main table leaves out",
    )
    parser.add_argument("--ratio", action="append", type=float)
    parser.add_argument("--seed", action="append", type=int)
    parser.add_argument("--set", action="append", default=[], help="besides FIELDS")
    parser.add_argument("--samples", type=int, default=320)
    args = parser.parse_args()
    wiki = args.data / "wikitext-2"
    methods = OTHERS if args.method == ["others"] else args.method or MAIN
    for model in args.model:
        name, _, path = model.partition("=")
        test, calibration = split_domains(args.data, path, args.out / "texts")
        sources = {
            "wiki": [wiki / "valid.jsonl"],
            "mixed": [wiki / "valid.jsonl", *calibration.values()],
        }
        arguments = ["--text-column", "page", "--window", str(WINDOW)]
        arguments += ["--windows", str(TEST_WINDOWS), "--samples", str(args.samples)]
        for text in args.text:
            run_compare(
                path,
                args.out / f"{name}-{text}",
                args.out / "recipes",
                methods,
                FIELDS,
                [*arguments, *(f"--set={field}" for field in args.set)],
                data=[f"{source}:1" for source in sources[text]],
                text=[f"wiki={wiki / 'test_a.jsonl'}"]
                + [f"{domain}={file}" for domain, file in test.items()],
                ratio=args.ratio or (0.1, 0.2, 0.3),
                seed=args.seed or (0,),
            )


if __name__ == "__main__":
    main()
