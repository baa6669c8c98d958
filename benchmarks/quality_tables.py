"""The tables of docs/quality.md, from the rows that benchmarks/quality.py measured.

    python benchmarks/quality_tables.py [--out OUT]

OUT is the directory that quality.py wrote: its rows, without times (several ran side by side), go
into benchmarks/results/quality.jsonl first. tests/test_documents.py checks that the page is what
the rows give.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "benchmarks" / "results" / "quality.jsonl"
PAGE = ROOT / "docs" / "quality.md"

RATIOS = (0.1, 0.2, 0.3)
TEXTS = {"wiki": "WikiText alone", "mixed": "mixed"}
MODELS = {
    "ref-llama": "LLaMA, 6 layers of width 704, 5.5M parameters",
    "deep": "LLaMA, 10 layers of width 320, 5.5M parameters",
    "ungated": "GPT-NeoX, ungated, 6 layers of width 1024, 5.8M parameters",
}
# What `best` with continuations was measured on, and the peers that come near it: the second and
# third trained without the pages that are measured. All peers were measured without continuations,
# which take the time of four times the text; the second and third then came from another machine.
AS_IT_IS = ("ref-llama", "deep-again", "ungated-again")
NOW = ("ref-llama", "deep-unseen", "ungated-unseen")
MORE_TEXT = ("ref-llama-1280",)  # the first, four times the calibration text
CONTINUED = tuple(f"{model}-continued" for model in AS_IT_IS)
AGAIN = AS_IT_IS[1:]  # the same models without
LITTLE_TEXT = ("ref-llama-32", "ref-llama-32-continued")  # the first, a tenth of the text
# Comparisons on the first model that differ in their text alone, and the methods that are shown.
BY_TEXT = {
    "ref-llama-wiki": "WikiText alone",
    "ref-llama-continued-wiki": "WikiText alone, three continuations of each window",
    "ref-llama-mixed": "mixed",
    "ref-llama-continued-mixed": "mixed, three continuations of each window",
    "ref-llama-1280-mixed": "mixed, 1280 windows",
    "ref-llama-32-mixed": "mixed, 32 windows",
    "ref-llama-32-continued-mixed": "mixed, 32 windows, ten continuations of each",
}
SHOWN_BY_TEXT = ("best", "best-without-own-text", "surgeon")
# Peers that `best` is told against, and what repaired two of them before.
WITH_OWN_TEXT = ("flap-own-text", "taylor-own-text", "obs-own-text")
OTHER_REPAIRS = {"surgeon": "least_squares", "flap": "bias"}
# The second and third as they were trained once in bfloat16 (`--autocast`): all peers, three seeds,
# but none of the recipes that let the model write.
EARLIER = {f"{name}-bf16": f"{MODELS[name]}, other weights" for name in ("deep", "ungated")}
SETTINGS = tuple(product(MODELS, TEXTS, RATIOS))
CONTROL = "random"  # how their names begin
PEERS = {"flap", "wanda_sp", "taylor", "obs", "surgeon", "loss_effect", "magnitude", "random"}
REPAIR = "reconstruction"  # of the recipes as they were then; the second part has least squares
BETTER_REPAIRS = ("residual_least_squares", REPAIR)
FLAP_AS_PUBLISHED = "bias"
# networks, random numbers in their place
WITH_CONTROL = ("networks-or-effect-uniform", "random-or-effect-uniform")
# What each method that was measured cut, as it was then; some cannot be run any more.
CUT = {
    "best": "one cut",
    "best-uniform": "equal widths",
    "best-without-own-text": "one cut",
    "default": "equal widths",
    "deployable": "equal widths",
    "fast": "equal widths",
    "paper": "one cut, bias",
    "networks": "one cut",
    "networks-vocabulary": "one cut",
    "networks-or-effect-uniform": "equal widths",
    "surgeon": "one cut",
    "surgeon-vocabulary": "one cut",
    "loss_effect": "one cut",
    "effect": "one cut",
    "effect-uniform": "equal widths",
    "flap": "one cut, bias",
    "flap-own-text": "one cut",
    "taylor": "one cut",
    "taylor-own-text": "one cut",
    "wanda_sp": "equal widths",
    "wanda_sp-own-text": "equal widths",
    "obs": "equal widths",
    "obs-own-text": "equal widths",
    "magnitude": "equal widths",
    "random": "equal widths",
    "random-or-best": "one cut",
    "random-or-default": "equal widths",
    "random-or-deployable": "equal widths",
    "random-or-effect": "one cut",
    "random-or-effect-uniform": "equal widths",
    "random-or-loss_effect": "one cut",
    "random-or-surgeon": "one cut",
    "shortgpt": "layers",
    "shortened_llama": "layers",
    "slicegpt": "hidden axes",
}
Row = dict[str, Any]
Seeds = dict[int, Row]  # one method at one ratio


def collect(out: Path) -> list[Row]:
    """Read the rows of all comparisons under `out`, but for what the machine's load decides."""
    hidden = {"seconds", "peak_mb", "tokens_per_second", "tasks", "refused"}
    found = []
    for path in sorted(out.glob("*/rows.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)["row"]
            if "gm" in row:
                row = {key: value for key, value in row.items() if key not in hidden}
                found.append({"comparison": path.parent.name} | row)
    return found


def merge(old: list[Row], new: list[Row]) -> list[Row]:
    """Replace rows that were measured again; sorted, so that a change can be read."""

    def key(row: Row) -> tuple:
        facts = (row.get(k) for k in ("ratio", "seed", "samples", "repair", "setting"))
        return (row["comparison"], row["method"], *map(json.dumps, facts))

    return [row for _, row in sorted({key(row): row for row in old + new}.items())]


def page(rows: list[Row]) -> str:
    """Write the whole of docs/quality.md."""
    cells, runs = _cells(rows), _runs(rows)
    dense = {r["comparison"]: r["perplexity"] for r in rows if r["method"] == "dense"}
    parts = [_INTRODUCTION, "## `best` with continuations, and its peers\n"]
    parts += [_CONTINUED, _best_as_it_is(runs), _ahead(runs, CONTINUED)]
    parts += [_as_they_are(runs, CONTINUED)]
    parts += [_AGAIN, _as_they_are(runs, AGAIN)]
    parts += ["## Without continuations: all peers\n", _NOW, _first_peers(runs, NOW)]
    parts += [_SHORT, _by_text(runs), _ahead(runs, NOW), _by_repair(runs), _as_they_are(runs, NOW)]
    parts += ["## With four times the text\n", _MORE]
    parts += [_first_peers(runs, MORE_TEXT), _as_they_are(runs, MORE_TEXT)]
    parts += ["## With a tenth of the text\n", _LITTLE, _as_they_are(runs, LITTLE_TEXT)]
    parts += ["## With least squares, and the recipes as they were\n", _BEFORE]
    parts += ["### The geometric mean of all\n", _overview(cells)]
    parts += ["### How far behind the first\n", _behind_the_first(cells)]
    parts += ["### Networks, and random numbers in their place\n", _against_control(cells)]
    for model, what in (MODELS | EARLIER).items():
        parts += [
            f"### {model}: {what}\n",
            _of_model(model, cells),
            _in_domain(model, cells, dense),
        ]
        if model in MODELS:
            parts += [_share_of_flap(model, cells)]
    return "\n".join(parts)


def _cells(rows: list[Row]) -> dict[tuple[str, str, float], Seeds]:
    cells: dict[tuple[str, str, float], Seeds] = defaultdict(dict)
    for row in rows:
        plain = not row.get("setting") and row.get("repair") not in BETTER_REPAIRS
        if row["method"] in CUT and plain:
            cells[row["comparison"], row["method"], row["ratio"]][row["seed"]] = row
    return cells


def _runs(rows: list[Row]) -> dict[tuple[str, str, str], dict[float, Seeds]]:
    """Sort rows: comparison, method, repair -> ratio -> seeds."""
    found: dict[tuple, dict[float, Seeds]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["method"] in CUT and not row.get("setting"):
            run = (row["comparison"], row["method"], row.get("repair"))
            found[run][row["ratio"]][row["seed"]] = row
    return found


def _repaired(runs: dict, where: str) -> dict[str, dict[float, Seeds]]:
    """Select method -> ratio -> seeds, in one comparison and with the recipes' repair."""
    return {run[1]: at for run, at in runs.items() if (run[0], run[2]) == (where, REPAIR)}


def _with_own_text(of: dict[str, dict[float, Seeds]]) -> dict[str, dict[float, Seeds]]:
    """Select FLAP, Taylor and OBS with own text, as far as measured, under their plain names."""
    return {name.removesuffix("-own-text"): of[name] for name in WITH_OWN_TEXT if name in of}


def _best_as_it_is(runs: dict) -> str:
    """Show `best` with and without continuations, and the first peer with both texts of the model.

    Last comes what `best` loses as a share of what FLAP as published does.
    """
    lines = []
    for model, text in product(AS_IT_IS, TEXTS):
        of, plain = (_repaired(runs, f"{name}-{text}") for name in (f"{model}-continued", model))
        best, flap = of["best"], runs[f"{model}-{text}", "flap", FLAP_AS_PUBLISHED]
        peers = _with_own_text(of)
        at = [{name: _mean_gm(found[ratio]) for name, found in peers.items()} for ratio in RATIOS]
        shares = ", ".join(_share(best[ratio], flap[ratio]) for ratio in RATIOS)
        place = f"{model}, {TEXTS[text]}"
        lines.append(
            [place, _gms(best), _gms(plain["best"]), ", ".join(map(_first_of, at)), shares]
        )
    header = ["model, calibration", "`best`", "without continuations"]
    return _table([*header, "first of FLAP, Taylor, OBS", "share of FLAP's increase"], lines)


def _first_peers(runs: dict, models: Sequence[str]) -> str:
    """Show `best`, the first peer, and what `best` loses as a share of what FLAP does."""
    lines = []
    for model, text in product(models, TEXTS):
        where = f"{model}-{text}"
        of = _repaired(runs, where)
        flap = runs.get((where, "flap", FLAP_AS_PUBLISHED))
        for ratio in RATIOS if "best" in of else ():
            at = {name: found[ratio] for name, found in of.items() if ratio in found}
            first = [
                _first_of({peer: _mean_gm(at[peer + own]) for peer in PEERS if peer + own in at})
                for own in ("", "-own-text")
            ]
            share = "-" if flap is None else _share(at["best"], flap[ratio])
            place = f"{model}, {TEXTS[text]}, {100 * ratio:.0f}%"
            without = _gm(at.get("best-without-own-text", {}))
            lines.append([place, _gm(at["best"]), without, *first, share])
    header = ["model, calibration", "`best`", "`best-without-own-text`", "first peer"]
    return _table([*header, "first peer with own text", "share of FLAP's increase"], lines)


def _by_text(runs: dict) -> str:
    """Show what the calibration text decides, and what the model makes of it."""
    lines = [
        [what, *(_gms(runs.get((where, method, REPAIR))) for method in SHOWN_BY_TEXT)]
        for where, what in BY_TEXT.items()
    ]
    return _table(["calibration", *(f"`{method}`" for method in SHOWN_BY_TEXT)], lines)


def _ahead(runs: dict, models: Sequence[str]) -> str:
    """Show how far the first of the peers with own text is behind `best`."""
    lines = []
    for model, text in product(models, TEXTS):
        of = _repaired(runs, f"{model}-{text}")
        peers = _with_own_text(of)
        behind = [
            100 * (min(_mean_gm(peer[r]) for peer in peers.values()) / _mean_gm(of["best"][r]) - 1)
            for r in RATIOS
        ]
        lines.append(
            [f"{model}, {TEXTS[text]}", ", ".join(f"{round(b, 1) + 0.0:.1f}%" for b in behind)]
        )
    header = ["model, calibration", "the first of FLAP, Taylor, OBS is behind `best` by"]
    return _table(header, lines)


def _by_repair(runs: dict) -> str:
    """Show what is gained by the recipes' repair."""
    where = f"{NOW[0]}-mixed"
    lines = [
        [
            f"`{method}`",
            f"`{own}`: {_gms(runs[where, method, own])}",
            _gms(runs[where, method, REPAIR]),
        ]
        for method, own in OTHER_REPAIRS.items()
    ]
    return _table([f"{NOW[0]}, mixed", "plain repair", f"`{REPAIR}`"], lines)


def _as_they_are(runs: dict, models: Sequence[str]) -> str:
    """Show what every method loses with the recipes' repair, and what it removed for it."""
    lines = []
    for model, text in product(models, TEXTS):
        for (where, method, repair), at in sorted(runs.items()):
            if (where, repair) == (f"{model}-{text}", REPAIR):
                cells = [at.get(ratio, {}) for ratio in RATIOS]
                line = [f"{model}, {TEXTS[text]}", f"`{method}`", f"`{REPAIR}`", f"{len(cells[1])}"]
                joined = [", ".join(map(of, cells)) for of in (_wiki, _reached)]
                lines.append([*line, *map(_gm_and_worst, cells), *joined])
    header = ["model, calibration", "method", "repaired by", "seeds"]
    header += [f"{100 * ratio:.0f}%" for ratio in RATIOS]
    return _table([*header, "perplexity of WikiText", "% removed"], lines)


def _of_model(model: str, cells: dict) -> str:
    """Show gm and worst text of every method that was measured on a model."""
    header = ["method", "what it cuts", "seeds"]
    header += [f"{text}, {100 * ratio:.0f}%" for text in TEXTS.values() for ratio in RATIOS]
    keys = [(f"{model}-{text}", ratio) for text in TEXTS for ratio in RATIOS]
    lines = []
    for name in _order(model, cells):
        seeds = [cells.get((where, name, ratio), {}) for where, ratio in keys]
        counts = sorted({len(found) for found in seeds if found})
        number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        lines.append([f"`{name}`", CUT[name], number, *map(_gm_and_worst, seeds)])
    return _table(header, lines)


def _order(model: str, cells: dict) -> list[str]:
    """Order methods by their median gm; `best` first."""
    mine = [f"{model}-{text}" for text in TEXTS]
    lost = defaultdict(list)
    for (where, name, _), seeds in cells.items():
        if where in mine and seeds:
            lost[name].append(_mean_gm(seeds))
    return sorted(lost, key=lambda name: (name != "best", statistics.median(lost[name])))


def _overview(cells: dict) -> str:
    """Show `best`, the first of all other methods, and the first of the controls."""
    lines = []
    for model, text, ratio in SETTINGS:
        of = _all_at(f"{model}-{text}", ratio, cells)
        controls = {n: gm for n, gm in of.items() if n.startswith(CONTROL)}
        others = {n: gm for n, gm in of.items() if n != "best" and n not in controls}
        where = f"{model}, {TEXTS[text]}, {100 * ratio:.0f}%"
        best = cells[f"{model}-{text}", "best", ratio]
        lines.append([where, _gm(best), *map(_first_of, (others, controls))])
    return _table(["model, calibration", "`best`", "first other", "first control"], lines)


def _behind_the_first(cells: dict) -> str:
    """Show how far the gm of every method is above the lowest of all, over the settings."""
    behind = defaultdict(list)
    for model, text, ratio in SETTINGS:
        of = _all_at(f"{model}-{text}", ratio, cells)
        for name, gm in of.items():
            behind[name].append(gm / min(of.values()) - 1.0)
    lines = [
        [f"`{name}`", f"{len(found)}", *(f"{100 * f(found):.1f}%" for f in (statistics.mean, max))]
        for name, found in sorted(behind.items(), key=lambda item: max(item[1]))
    ]
    header = ["method", f"settings, of {len(SETTINGS)}", "behind the first, mean", "at worst"]
    return _table(header, lines)


def _against_control(cells: dict) -> str:
    lines = []
    for model, text in product(MODELS | EARLIER, TEXTS):
        for name in WITH_CONTROL:
            of = [cells.get((f"{model}-{text}", name, ratio), {}) for ratio in RATIOS]
            if any(of):
                lines.append([f"{model}, {TEXTS[text]}", f"`{name}`", *map(_gm, of)])
    header = ["model, calibration", "method", *(f"{100 * ratio:.0f}%" for ratio in RATIOS)]
    return _table(header, lines)


def _all_at(where: str, ratio: float, cells: dict) -> dict[str, float]:
    """Average the gm of every method in one setting."""
    return {
        name: _mean_gm(seeds)
        for (comparison, name, r), seeds in cells.items()
        if comparison == where and r == ratio and seeds
    }


def _in_domain(model: str, cells: dict, dense: dict) -> str:
    """Show perplexity on WikiText, calibrated on it."""
    where = f"{model}-wiki"
    lines = [
        [f"`{name}`"] + [_wiki(cells.get((where, name, ratio), {})) for ratio in RATIOS]
        for name in _order(model, cells)
    ]
    header = [f"perplexity of WikiText ({dense[where]['wiki']:.1f} dense), calibrated on it"]
    return _table([*header, *(f"{100 * ratio:.0f}%" for ratio in RATIOS)], lines)


def _share_of_flap(model: str, cells: dict) -> str:
    """Show the increase of gm over dense, against that of FLAP as published."""
    lines = []
    for text, title in TEXTS.items():
        of = [[cells[f"{model}-{text}", n, ratio] for n in ("best", "flap")] for ratio in RATIOS]
        lines.append([title, *(_share(best, flap) for best, flap in of)])
    header = ["increase of `best` as a share of FLAP's"]
    return _table([*header, *(f"{100 * ratio:.0f}%" for ratio in RATIOS)], lines)


def _share(best: Seeds, flap: Seeds) -> str:
    """Divide the one's increase of gm over dense by the other's."""
    return f"{100 * (_mean_gm(best) - 1.0) / (_mean_gm(flap) - 1.0):.0f}%"


def _mean_gm(seeds: Seeds) -> float:
    return statistics.mean(row["gm"] for row in seeds.values())


def _gms(at: dict[float, Seeds] | None) -> str:
    """Write mean gm at all ratios."""
    return "-" if at is None else ", ".join(f"{_mean_gm(at[ratio]):.3f}" for ratio in RATIOS)


def _gm(seeds: Seeds) -> str:
    if not seeds:
        return "-"
    values = [row["gm"] for row in seeds.values()]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def _gm_and_worst(seeds: Seeds) -> str:
    if not seeds:
        return "-"
    return f"{_gm(seeds)} / {statistics.mean(row['worst'] for row in seeds.values()):.2f}"


def _wiki(seeds: Seeds) -> str:
    """Write the perplexity of WikiText."""
    if not seeds:
        return "-"
    return f"{statistics.mean(row['perplexity']['wiki'] for row in seeds.values()):.1f}"


def _reached(seeds: Seeds) -> str:
    """Write what was removed of all parameters, in percent.

    Equal widths come less close to what was asked than one cut.
    """
    if not seeds:
        return "-"
    return f"{100 * statistics.mean(row['ratio_reached'] for row in seeds.values()):.1f}"


def _first_of(found: dict[str, float]) -> str:
    if not found:
        return "-"
    name = min(found, key=found.__getitem__)
    return f"{found[name]:.3f} `{name}`"


def _table(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


_INTRODUCTION = """# Quality after pruning, all methods

Written by `benchmarks/quality_tables.py` from `benchmarks/results/quality.jsonl`.

Token perplexity relative to the dense model, on WikiText-2 test, Shakespeare, speeches and the
Bible (64 windows of 128 tokens each): geometric mean over the four texts, ± standard deviation over
seeds / worst text. Calibrated on 320 windows of 128 tokens, of WikiText-2 valid alone or of
WikiText-2 and other pages of the three domains in equal parts ("mixed"). Percent of all parameters;
kept widths are multiples of 32; four ICA starts. A seed decides which windows calibrate, in which
order, and all random numbers. What each method is: `funcnet_plugin/compare/methods.py`, controls
and variants `benchmarks/controls.py`; settings are written here as they are called now.

`best` and `deployable` are `prune_best.yaml` and `ica_prune.yaml` as they were before real models
were measured: both repaired by `reconstruction` and had a quarter of own text. What they are now,
and on what evidence, says `docs/real-models.md`.

Measured with what was removed since, for it gained nothing: `networks` (a twentieth of the neurons
kept for networks across layers, `networks_share`), `surgeon-vocabulary` and `networks-vocabulary`
(the vocabulary in place of own text, `token_share: 0.003`, and labels of the text), and, with that
`token_share` alone, `deployable`, `networks-or-effect-uniform`, `random-or-surgeon`,
`random-or-effect-uniform` and `random-or-deployable`.

`best`, its control `random-or-best`, `best-uniform` and `deployable` let the model write besides
(`own_text`), whatever text calibrates, and so do the peers called `...-own-text`; no other method
on this page does.
`best-without-own-text` is what to take where the calibration text shows all that the model is for.
"""


_CONTINUED = """Everything repaired by `reconstruction`, which reads three continuations of each
window too (`--repair reconstruction --set repair.continuations=3` for all), checkpoints stored
in float32, one seed. FLAP, Taylor and OBS have the same own text, continuations and repair;
measured are those that came near `best` without continuations.
`deep-again` and `ungated-again` are made by `scripts/train_reference_models.py`, 1500 and 1000
steps on WikiText-2 valid and the pages of the domains that may calibrate: they never saw the pages
that are measured. "Share of FLAP's increase": that of `best` over dense in that of FLAP as
published, which repairs by its bias.
"""

_AGAIN = """The same two models without continuations (`--set repair.continuations=0`).
"""

_NOW = """Everything that cuts neurons repaired by `reconstruction`, without continuations (`--set
repair.continuations=0`; when they were measured no recipe had any), checkpoints stored in float32.
`deep-unseen` and `ungated-unseen` are the two models above, trained on another machine.
"""

_SHORT = """In short, at 10, 20 and 30%: what the calibration text of `ref-llama` decides, how far
FLAP, Taylor and OBS with own text are behind, and what the repair gains.
"""

_MORE = """As above, 1280 windows of mixed text instead of 320 (`--samples 1280`).
"""

_LITTLE = """32 windows (`--samples 32`); the same and ten continuations of each, two epochs instead
of five (`--set repair.continuations=10 --set repair.epochs=2`). Own text keeps its share.
"""

_BEFORE = """Repaired by `least_squares` is what cuts neurons. `best`, its control, `best-uniform`
and `best-without-own-text` had `token_share: 0.003` then, and own text was a share of 0.4, begun
with random tokens. `best`, its control, `best-without-own-text` and everything on `deep` and
`ungated` were measured with checkpoints stored in float32, the others with bfloat16. `deep` and
`ungated` were trained on the four texts, 1500 and 1000 steps, by their perplexities the measured
pages of the three domains among them; their `-bf16` kin were trained with `--autocast`, 1500 steps,
and measured before that.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    if args.out is not None:
        rows = merge(rows, collect(args.out))
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    PAGE.write_text(page(rows))


if __name__ == "__main__":
    main()
