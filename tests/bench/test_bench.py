"""`funcnet bench` on small models: what is counted, kept, written and refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from funcnet_plugin.bench import Bench, Load, bench, parse_load, run, table, write_results
from funcnet_plugin.bench.backends import BACKENDS, Setting, find_runtime, hugging_face, vllm
from funcnet_plugin.bench.backends.hugging_face import Generating
from funcnet_plugin.bench.load import prompts
from funcnet_plugin.bench.models import Model, check_same_tokenizer, find_models
from funcnet_plugin.bench.plan import ready
from funcnet_plugin.bench.twins import rounded, twins_of
from funcnet_plugin.cli import main
from funcnet_plugin.errors import CheckpointError, FuncnetError
from funcnet_plugin.export import export_model
from tests.conftest import make_llama, make_tokenizer
from tests.export.test_gguf import byte_pairs, checkpoint, wide_llama

SHORT = Load(6, 4)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A dense model, one with odd widths of its own in each layer, and one with one width."""
    folder = tmp_path_factory.mktemp("models")
    widths = {"dense": None, "odd": (47, 20, 33), "even": (32, 32, 32)}
    return [checkpoint(folder / name, wide_llama(), widths[name]) for name in widths]


def plan(models, **changes):
    return Bench(**{"models": models, "loads": [SHORT], "repetitions": 6, "aligned": (16,),
                    "warm_up": 1} | changes)  # fmt: skip


@pytest.fixture(autouse=True)
def memory(request, monkeypatch):
    """Stand in for the process that measures memory, which takes seconds; `found` starts it."""
    if "found" not in request.fixturenames:
        monkeypatch.setattr(run, "peak_memory", lambda *args: 2**20)


@pytest.fixture(scope="module")
def found(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("found") / "bench"
    result = bench(plan(models, concurrency=(1, 2)), out)
    write_results(result, out)
    return out, result


def test_lengths_are_read_and_refused():
    assert parse_load("1000/200", 3) == Load(1000, 200, 3)
    assert str(Load(128, 64)) == "128/64" and str(Load(128, 64, 4)) == "128/64 x 4"
    for text in ("128", "a/b", "128/-1", "/8"):
        with pytest.raises(FuncnetError, match="PROMPT/WRITTEN"):
            parse_load(text)
    with pytest.raises(FuncnetError, match="nothing to time"):
        parse_load("8/1")


def test_all_models_read_the_same_tokens():
    drawn = prompts(300, Load(50, 2, 3))
    assert drawn == prompts(300, Load(50, 9, 3))
    assert np.shape(drawn) == (3, 50) and len({tuple(text) for text in drawn}) == 3
    assert np.min(drawn) >= 0 and np.max(drawn) < 300


def counted(path, tokens, behind):
    """Multiply-adds of linear layers and attention as torch's own counter sees them."""
    from torch.utils.flop_counter import FlopCounterMode

    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    ids = torch.zeros(1, tokens, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cache = model(ids, logits_to_keep=1).past_key_values
        first = counter.get_total_flops() // 2
        for _ in range(behind):
            model(ids[:, :1], past_key_values=cache)
    return first, counter.get_total_flops() // 2 - first


@pytest.mark.parametrize("which", [0, 1, 2])
def test_operations_are_those_that_torch_counts(models, which):
    shape, load = Model("m", models[which]).shape, Load(6, 4)
    first, rest = counted(models[which], 6, 3)
    assert shape.decode(load) == pytest.approx(rest, rel=0.002)  # rotary angles besides
    # eager attention computes what comes later, too
    later = shape.attention * (6 * 6 - 6 * 7 // 2)
    assert shape.prefill(load) + later == pytest.approx(first, rel=0.002)
    assert shape.prefill(Load(6, 4, 3)) == 3 * shape.prefill(load)


def test_a_gguf_has_the_shape_of_its_checkpoint(models, tmp_path):
    for path in models:
        export_model(path, tmp_path / path.name, "gguf:f32")
        assert Model("g", tmp_path / path.name).shape == Model("c", path).shape


def test_one_row_for_each_model_and_load(found):
    _, result = found
    names = ["dense", "odd", "odd (widths up to 16)", "even"]
    assert [m["name"] for m in result["models"]] == names
    assert [m["twin_of"] for m in result["models"]] == [None, None, "odd", None]
    assert result["models"][2]["widths"] == [48, 32, 48]
    rows = result["rows"]
    assert [(row["model"], row["load"]["concurrency"]) for row in rows] == [
        (name, at_once) for at_once in (1, 2) for name in names
    ]
    for row in rows:
        assert row["repetitions"] == 6 and row["backend"] == "transformers"
        assert 0 < row["time_to_first_token"]["p50"] <= row["time_to_first_token"]["p99"]
        assert 0 < row["time_per_token"]["p50"] <= row["time_per_token"]["p99"]
        assert row["peak_memory_bytes"] > 0
    sizes = {row["model"]: row["weight_bytes"] for row in rows}
    assert sizes["odd"] < sizes["odd (widths up to 16)"] < sizes["dense"]
    removed = {row["model"]: row["removed"]["decode"] for row in rows}
    assert removed["dense"] == 0 and 0 < removed["odd (widths up to 16)"] < removed["odd"]


def test_gains_stand_beside_what_operations_explain(found):
    _, result = found
    for row in result["rows"]:
        if row["model"] == "dense":
            assert row["speed_up"] is None
            continue
        for phase in ("prefill", "decode"):
            gain = row["speed_up"][phase]
            assert gain["ideal"] == pytest.approx(1 / (1 - row["removed"][phase]))
            assert gain["low"] <= gain["measured"] <= gain["high"]
    (odd, *_) = (row for row in result["rows"] if row["model"] == "odd")
    assert list(odd["against_twins"]) == ["odd (widths up to 16)"]
    assert odd["against_twins"]["odd (widths up to 16)"]["decode"]["ideal"] > 1


def test_what_is_written_is_what_was_found(found):
    out, result = found
    assert sorted(path.name for path in out.iterdir()) == [
        "bench.json", "bench.md", "bench.png", "rows.jsonl"
    ]  # fmt: skip
    assert json.loads((out / "bench.json").read_text()) == result
    text = (out / "bench.md").read_text()
    assert text == table.markdown(result)
    assert "## transformers: 6 tokens read, 4 written, 2 texts at once" in text
    assert text.count("| odd |") == 2 + 4  # speeds, and gains of two phases


def test_every_key_is_explained(found):
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    _, result = found
    keys = {*result, *result["machine"], *result["settings"], *result["models"][0]}
    keys |= {*result["rows"][1], *result["rows"][1]["speed_up"]["decode"], "refused"}
    missing = sorted(key for key in keys if f"`{key}`" not in page)
    assert not missing


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.90, 0.95, "the odd widths cost more time"),
        (0.95, 1.05, "gain nothing that shows"),
        (1.02, 1.05, "1.25 by operations: the narrower widths gain"),
        (None, None, "too few repetitions"),
    ],
)
def test_misalignment_is_said_in_words(low, high, said):
    ratio = {"ideal": 1.25, "measured": 1.0, "low": low, "high": high}
    row = {"model": "odd", "against_twins": {"twin": {"prefill": ratio, "decode": None}}}
    (sentence,) = table.twin_sentences(row)
    assert sentence.startswith("odd, prefill: 1.00 times as fast as twin") and said in sentence


def test_an_interrupted_bench_goes_on(models, tmp_path, monkeypatch):
    """What was timed stays; the round that was cut short is made again."""
    whole, runs = plan(models[:2], aligned=(1,)), []
    real = Generating.run

    def dies_in_round_three(self, load, repetitions):
        if len(runs) == 2 + 2 + 2 * 2 + 1:  # a try and a warm-up of each, two rounds, half a one
            raise KeyboardInterrupt
        runs.append(load)
        return real(self, load, repetitions)

    monkeypatch.setattr(Generating, "run", dies_in_round_three)
    with pytest.raises(KeyboardInterrupt):
        bench(whole, tmp_path)
    monkeypatch.setattr(Generating, "run", real)
    before = (tmp_path / "rows.jsonl").read_text().splitlines()
    kept = [json.loads(line)["row"] for line in before]
    assert [row["round"] for row in kept if "round" in row] == [0, 1]
    monkeypatch.setattr(run, "peak_memory", lambda *args: pytest.fail("it was measured before"))
    result = bench(whole, tmp_path)
    after = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert after[: len(before)] == before and len(after) == len(before) + 4
    assert result["rows"][1]["repetitions"] == 6


def test_a_bench_of_other_models_or_settings_is_not_mixed(models, tmp_path):
    bench(plan(models[:2], repetitions=1, aligned=(1,)), tmp_path)
    with pytest.raises(FuncnetError, match="other threads"):
        bench(plan(models[:2], repetitions=1, aligned=(1,), threads=2), tmp_path)
    with pytest.raises(FuncnetError, match="other models"):
        bench(plan(models[1:], repetitions=1, aligned=(1,)), tmp_path)


def test_an_output_that_is_no_bench_is_left_alone(models, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"is no bench, it holds notes\.txt"):
        bench(plan(models), tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"mark": "x", "row": {}}\n')
    with pytest.raises(FuncnetError, match="of no bench"):
        bench(plan(models), tmp_path)
    assert (tmp_path / "rows.jsonl").read_text() == '{"mark": "x", "row": {}}\n'


def test_models_of_other_tokenizers_are_refused(models, tmp_path):
    other = checkpoint(tmp_path / "other", make_llama(vocab_size=300), tokenizer=make_tokenizer())
    with pytest.raises(FuncnetError, match="dense and other have different tokenizers"):
        bench(plan([models[0], other]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_gguf_has_the_tokenizer_of_its_checkpoint(models, tmp_path):
    export_model(models[2], tmp_path / "even-gguf", "gguf:f32")
    check_same_tokenizer(find_models([models[0], tmp_path / "even-gguf"]))
    assert len(byte_pairs()) < 300  # GGUF has names for the rest


def test_requests_that_cannot_be_met(models, tmp_path):
    out = tmp_path / "out"
    wrong = {
        "no backend 'tgi'": {"backends": ["tgi"]},
        "takes one of compiled": {"backends": ["transformers:fast"]},
        "takes nothing after a colon": {"backends": ["onnxruntime:q8_0"]},
        "dtype is one of": {"dtype": "int3"},
        "128 positions and 100/100 needs 200": {"loads": [SHORT, Load(100, 100)]},
        "128 positions and 128/128 needs 256": {"loads": []},
        "given twice": {"models": [models[0], models[0]]},
        "is no directory": {"models": [models[0], tmp_path / "nothing"]},
        "the command /no/vllm, which is not there": {"backends": ["vllm"], "vllm": "/no/vllm"},
    }
    for said, changes in wrong.items():
        with pytest.raises(FuncnetError, match=said):
            bench(plan(models) if not changes else plan(**{"models": models} | changes), out)
    assert not out.exists()


def test_what_a_backend_does_not_read_is_said_and_the_rest_goes_on(models, tmp_path):
    export_model(models[2], tmp_path / "even-gguf", "gguf:f32")
    result = bench(plan([models[0], tmp_path / "even-gguf"], repetitions=1), tmp_path / "out")
    refused = [row for row in result["rows"] if "refused" in row]
    assert [row["model"] for row in refused] == ["even-gguf"]
    assert "transformers reads a checkpoint" in refused[0]["refused"]
    assert "even-gguf is a gguf" in table.markdown(result)
    assert [row["model"] for row in result["rows"] if "load" in row] == ["dense"]


def test_where_no_backend_takes_a_model_that_is_the_answer(models, tmp_path):
    export_model(models[2], tmp_path / "even-gguf", "gguf:f32")
    with pytest.raises(FuncnetError, match=r"no backend runs these models: .*even-gguf is a gguf"):
        bench(plan([tmp_path / "even-gguf"], backends=["transformers"]), tmp_path / "out")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnxruntime_reads_a_prompt_and_writes_one_token(models, tmp_path):
    pytest.importorskip("onnxruntime")
    result = bench(plan([models[0]], backends=["onnxruntime"], repetitions=2), tmp_path / "out")
    (row,) = result["rows"]
    assert row["prefill_tokens_per_second"] > 0 and row["decode_tokens_per_second"] is None
    assert "| - |" in table.markdown(result)


def test_the_missing_are_named(monkeypatch):
    setting = Setting(1, "auto", (SHORT,))
    for name, module in BACKENDS.items():
        runtime = find_runtime(name)
        if name in ("llama.cpp", "onnxruntime"):
            monkeypatch.setattr(runtime.module, "find_spec", lambda name: None)
            with pytest.raises(FuncnetError, match="not installed"):
                runtime.check(setting)
        assert module
    monkeypatch.setattr("shutil.which", lambda command: None)
    with pytest.raises(FuncnetError, match=r"needs a C\+\+ compiler"):
        hugging_face.check(setting, "compiled")


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo 0.9.2", "is vLLM 0.9.2, and its bench is known from 0.10 on"),
        ("echo hello", "does not start"),
        ("echo 'ImportError: no such thing' >&2; exit 1", "ImportError: no such thing"),
    ],
)
def test_a_vllm_that_is_not_known_is_refused(tmp_path, text, said):
    setting = Setting(1, "auto", (SHORT,), script(tmp_path / "vllm", text))
    with pytest.raises(FuncnetError, match=said):
        vllm.check(setting, None)


def test_vllm_is_asked_for_one_token_and_for_all(models, tmp_path):
    """Its own command answers; a script in its place notes what it was asked."""
    text = f"""echo "$@" >> {tmp_path}/asked
case "$1" in --version) echo 0.32.0;; esac
while [ $# -gt 1 ]; do
  case "$1" in --output-len) n=$2;; --output-json) out=$2;; esac; shift
done
[ -n "$out" ] && echo "{{\\"latencies\\": [$n.5, $n.5]}}" > "$out"
exit 0"""
    setting = Setting(2, "float32", (SHORT,), script(tmp_path / "vllm", text))
    runtime = find_runtime("vllm:eager")
    assert runtime.check(setting) == "0.32.0"
    timings = runtime.open(Model("m", models[0]), setting, tmp_path).run(Load(6, 4, 3), 2)
    assert [(t.first, t.rest) for t in timings] == [(1.5, 3.0)] * 2
    asked = (tmp_path / "asked").read_text().splitlines()[1:]
    assert [line.split("--output-len ")[1].split()[0] for line in asked] == ["1", "4"]
    for line in asked:
        assert f"--model {models[0]} --dtype float32 --max-model-len 11" in line
        assert "--input-len 6" in line and "--batch-size 3 --num-iters 2" in line
        assert "--enforce-eager" in line


def test_vllm_says_why_it_does_not_run(models, tmp_path):
    text = """echo 'INFO: begins'; echo 'Exception: it failed, see the root cause' >&2
echo '(Worker pid=7) ERROR 11-28 ValueError: widths differ.'; exit 1"""
    setting = Setting(1, "auto", (SHORT,), script(tmp_path / "vllm", text))
    backend = find_runtime("vllm").open(Model("m", models[0]), setting, tmp_path)
    with pytest.raises(FuncnetError, match=r"vLLM does not run m: ValueError: widths differ\."):
        backend.run(SHORT, 1)


def test_twins_are_rounded_up_and_only_where_they_differ(models, tmp_path):
    assert rounded([47, 20, 33], 16) == [48, 32, 48]
    dense, odd, _ = (Model(path.name, path) for path in models)
    assert twins_of(dense, (1, 16), tmp_path) == []
    twins = twins_of(odd, (32, 64, 1, 128), tmp_path)
    assert [twin.aligned for twin in twins] == [32, 64, 128]
    assert twins[0].shape.widths == (64, 32, 64) and twins[1].shape.widths == (64, 64, 64)
    loaded = AutoModelForCausalLM.from_pretrained(twins[0].path)
    assert loaded.dtype == AutoModelForCausalLM.from_pretrained(odd.path).dtype
    check_same_tokenizer([odd, *twins])


def test_the_backend_writes_what_transformers_writes(models):
    """The clock changes nothing: as many tokens as asked for, the end of a text ignored."""
    model = AutoModelForCausalLM.from_pretrained(models[0]).eval()
    ids = torch.tensor(prompts(300, SHORT))
    ends = model.generate(ids, max_new_tokens=1, do_sample=False)[0, -1]
    model.generation_config.eos_token_id = int(ends)  # the first that it writes
    model.config.eos_token_id = int(ends)
    (timing,) = Generating(model, False, models[0]).run(SHORT, 1)
    assert timing.first > 0 and timing.rest > 0


def test_compiled_is_asked_of_generate_on_any_device(models, monkeypatch):
    """`generate` leaves a CPU out unless it is told otherwise; really compiling takes a minute."""
    backend, found = Generating(make_llama(), True, models[0]), []
    real = type(backend._model).generate

    def noting(self, ids, generation_config, **others):
        compiling = generation_config.compile_config
        found.append((generation_config.cache_implementation, compiling._compile_all_devices))
        compiling._compile_all_devices = None
        return real(self, ids, generation_config=generation_config, **others)

    monkeypatch.setattr(type(backend._model), "generate", noting)
    (timing,) = backend.run(SHORT, 1)
    assert found == [("static", True)] and timing.rest > 0


def test_a_full_device_is_called_one(models, monkeypatch):
    backend = Generating(make_llama(), False, models[0])

    def full(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(backend._model), "generate", full)
    with pytest.raises(FuncnetError, match="no room for 6/4 tokens beside the models"):
        backend.run(SHORT, 1)


def test_a_device_without_room_for_the_weights_is_called_one(models, monkeypatch):
    def full(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(PreTrainedModel, "cuda", full)
    model, setting = Model("dense", models[0]), Setting(1, "float32", (SHORT,))
    with pytest.raises(FuncnetError, match=r"no room for .* beside the models that are loaded"):
        hugging_face.open_model(model, setting, None, models[0])


def test_quality_stands_beside_speed(models, tmp_path, texts):
    (tmp_path / "text.txt").write_text("the cat sat on the mat with 12 other cats " * 30)
    given = plan(models, texts={"cats": str(tmp_path / "text.txt")}, window=16, windows=4,
                 repetitions=1)  # fmt: skip
    result = bench(given, tmp_path / "out")
    perplexity = {m["name"]: m["perplexity"] for m in result["models"]}
    assert perplexity["dense"]["cats"] > 1 and perplexity["odd (widths up to 16)"] is None
    assert "## Perplexity" in table.markdown(result)


def test_the_command(models, tmp_path, capsys):
    arguments = ["bench", *map(str, models[:2]), "--lengths", "6/4", "--repetitions", "1",
                 "--aligned", "1", "--out", str(tmp_path / "out"), "--json"]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["schema"] == 1
    with pytest.raises(SystemExit) as ended:
        main(["bench", *map(str, models[:2]), "--widths", "--out", str(tmp_path / "w")])
    assert ended.value.code == 2 and "one MODEL" in capsys.readouterr().err


def test_what_is_benched_is_ready_or_refused(models):
    found = ready(plan(models, concurrency=(1, 4, 1)))
    assert found.setting.loads == (SHORT, Load(6, 4, 4)) and found.setting.longest == 10
    assert [model.name for model in found.models] == ["dense", "odd", "even"]
