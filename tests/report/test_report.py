"""The page of an atlas: what it holds, and what it does in a real browser."""

import base64
import json
import re
import zlib

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from funcnet_plugin import cli
from funcnet_plugin.atlas import read_atlas, write_atlas
from funcnet_plugin.atlas.files import read_structure
from funcnet_plugin.checkpoints.block import write_kept
from funcnet_plugin.errors import AtlasError, CheckpointError, FuncnetError
from funcnet_plugin.report import write_report
from funcnet_plugin.report.matrix import packed
from tests.conftest import make_llama
from tests.report.browser import opened
from tests.surveys import survey_of

MARKUP = "</script><img src=x onerror='window.harmed=1'>\u2028 & \"'"
EFFECTS = {
    "L0.N1": {
        "task/sort": {"value": 0.5, "change": -0.4, "control": 0.0, "low": -0.1, "high": 0.1,
                      "beyond_chance": True},
        "text/wiki": {"value": 12.0, "change": 0.02, "control": 0.01, "low": 0.0, "high": 0.03,
                      "beyond_chance": False},
    },
    "L1.N0+L2.N3": {
        "task/sort": {"value": 1.0, "change": 0.1, "control": None, "low": None, "high": None,
                      "beyond_chance": False},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, texts):
    """A directory with an atlas, in whose text stands markup, and a study of lesions."""
    folder = tmp_path_factory.mktemp("report")
    found = survey_of(make_llama(), texts, cut=1.0)
    for row in found.contexts:
        row |= {"source": "texts/wiki.jsonl", "record": 7, "title": MARKUP}
        row["tokens"][row["at"]] = row["token"] = MARKUP
    write_atlas(folder / "atlas", found.atlas, found.courses, found.contexts, found.connectivity)
    (folder / "lesions").mkdir()
    (folder / "lesions" / "effects.json").write_text(json.dumps(EFFECTS))
    write_report(folder / "atlas", folder / "page.html", folder / "lesions")
    return folder


def data_of(page) -> dict:
    (found,) = re.findall(
        r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.DOTALL
    )
    return json.loads(found)


def test_the_page_holds_what_the_atlas_says(folder):
    data, atlas = data_of(folder / "page.html"), read_atlas(folder / "atlas")
    assert [n["name"] for n in data["networks"]] == list(atlas.networks)
    for shown in data["networks"]:
        facts = atlas.networks[shown["name"]].facts
        assert data["blocks"][shown["block"]]["name"] == atlas.networks[shown["name"]].block
        assert shown["figures"]["variance"] == pytest.approx(facts["variance"], rel=5e-3)
        assert shown["raises"] == facts["raises"]
        assert [c["rank"] for c in shown["contexts"]] == [1, 2, 3, 4, -1]
        assert shown["contexts"][0]["document"] == f"wiki.jsonl, record 7: {MARKUP}"
    assert data["lesions"] == EFFECTS


def test_an_atlas_that_knows_no_documents_can_be_shown(texts, tmp_path):
    found = survey_of(make_llama(), texts)
    for row in found.contexts:
        for key in ("source", "record", "title"):
            del row[key]
    write_atlas(tmp_path / "atlas", found.atlas, found.courses, found.contexts, found.connectivity)
    write_report(tmp_path / "atlas", tmp_path / "page.html")
    network = data_of(tmp_path / "page.html")["networks"][0]
    assert {context["document"] for context in network["contexts"]} == {None}


def test_markup_in_the_text_stays_text(folder):
    page = (folder / "page.html").read_text()
    assert MARKUP not in page and "<img src=x" not in page
    token = data_of(folder / "page.html")["networks"][0]["contexts"][0]
    assert token["tokens"][token["at"]] == MARKUP


def test_nothing_is_fetched(folder):
    page = (folder / "page.html").read_text()
    assert not re.search(r"<(script|img|link|iframe)[^>]*\b(src|href)=", page.split("plotly.js")[0])
    assert not re.search(r"@import|url\(", page[: page.index("plotly.js")])


def unpacked(found: dict, n: int) -> torch.Tensor:
    """What the page makes of a packed matrix."""
    steps = np.frombuffer(zlib.decompress(base64.b64decode(found["values"])), dtype=np.int8)
    matrix = torch.eye(n)
    values = torch.tensor(steps).float() / 127 * found["scale"]
    matrix[tuple(torch.triu_indices(n, n, offset=1))] = values
    return matrix.triu() + matrix.triu(1).T


def test_matrices_and_clusters_are_those_of_the_atlas(folder):
    atlas, data = read_atlas(folder / "atlas"), data_of(folder / "page.html")
    structure = read_structure(folder / "atlas", atlas)
    for kind, matrix in (
        ("correlation", structure.correlation), ("partial correlation", structure.partial),
    ):  # fmt: skip
        found = unpacked(data["connectivity"][kind], 18)
        half_a_step = data["connectivity"][kind]["scale"] / 254
        assert torch.allclose(found, matrix, atol=half_a_step + 1e-3)
    assert [n["cluster"] for n in data["networks"]] == structure.clusters.tolist()
    assert data["silhouette"] == pytest.approx(structure.facts["silhouette"], rel=5e-3)


@pytest.mark.parametrize("matrix", [torch.ones(1, 1), torch.eye(3)])
def test_a_matrix_of_nothing_can_be_packed(matrix):
    assert torch.equal(unpacked(packed(matrix), len(matrix)), matrix)


def test_what_a_pruned_model_kept_is_counted(folder, tmp_path):
    atlas = read_atlas(folder / "atlas")
    kept = [list(range(24)), list(range(48)), [0]]
    write_kept(tmp_path, [48] * 3, kept)
    write_report(folder / "atlas", tmp_path / "page.html", pruned=tmp_path)
    for shown in data_of(tmp_path / "page.html")["networks"]:
        members = atlas.neurons([shown["name"]], 3.0)
        stayed = sum(len(set(n.tolist()) & set(kept[layer])) for layer, n in members.items())
        assert shown["kept"] == [stayed, sum(map(len, members.values()))]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"atlas": "gone"}, AtlasError, "there is no atlas at"),
        ({"lesions": "gone"}, AtlasError, "holds no study of lesions"),
        ({"pruned": "gone"}, CheckpointError, "no kept neurons at"),
        ({"out": "page.txt"}, FuncnetError, r"page\.txt is no HTML file"),
    ],
)
def test_what_cannot_be_shown_is_refused_and_nothing_is_written(
    folder, tmp_path, arguments, error, message
):
    paths = {"atlas": folder / "atlas", "out": tmp_path / "page.html"}
    paths |= {name: tmp_path / value for name, value in arguments.items()}
    with pytest.raises(error, match=message):
        write_report(**paths)
    assert not list(tmp_path.iterdir())


def test_a_pruned_model_of_other_layers_is_refused(folder, tmp_path):
    write_kept(tmp_path, [48], [[0, 1]])
    with pytest.raises(AtlasError, match="has 1 layers and the atlas is of 3"):
        write_report(folder / "atlas", tmp_path / "page.html", pruned=tmp_path)


def test_the_command_writes_the_page(folder, tmp_path):
    out = tmp_path / "atlas.html"
    done = CliRunner().invoke(cli.app, ["report", str(folder / "atlas"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert data_of(out)["lesions"] is None


def test_a_reader_clicks_through_it(folder):
    with opened((folder / "page.html").as_uri() + "#L1.N2") as page:
        page.wait("document.body && document.body.dataset.ready")
        title = "document.getElementById('network-title').textContent"
        assert page.run(title) == "Network L1.N2"
        page.press("ArrowRight")
        assert page.run(title) == "Network L1.N3" and page.run("location.hash") == "#L1.N3"
        page.run("document.getElementById('before').click()")
        assert page.run(title) == "Network L1.N2"
        page.run("location.hash = '#L0.N1'")
        page.wait(f"{title} === 'Network L0.N1'")
        assert not page.run("document.getElementById('effect').hidden")
        page.press("ArrowRight")
        assert page.run("document.getElementById('effect').hidden")  # it was not studied
        search = "const s = document.getElementById('search'); s.value = 'l2.n4'"
        page.run(f"{search}; s.dispatchEvent(new Event('change'))")
        assert page.run(title) == "Network L2.N4"
        assert page.run("!document.getElementById('lesions-section').hidden")
        # the first cell of the last block
        box = page.run(
            "(() => { const r = document.querySelector('#overview .nsewdrag')"
            ".getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; })()"
        )
        left, top, width, height = box
        page.click(left + width / 12, top + height * 5 / 6)
        page.wait(f"{title} === 'Network L2.N0'")
        # text of the data is text
        assert MARKUP in page.run("document.getElementById('contexts').textContent")
        assert page.run("window.harmed") is None
        assert page.errors == []
        assert all(address.startswith(("file:", "data:", "blob:")) for address in page.requests)


def centre(page, selector: str, right: float = 0.5, down: float = 0.5) -> tuple[float, float]:
    """A place inside of an element, once it is on the screen."""
    return page.run(
        f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView();"
        " const r = e.getBoundingClientRect();"
        f" return [r.left + {right} * r.width, r.top + {down} * r.height]; }})()"
    )


def test_a_reader_sees_who_acts_together(folder):
    atlas = read_atlas(folder / "atlas")
    structure = read_structure(folder / "atlas", atlas)
    names = list(atlas.networks)
    with opened((folder / "page.html").as_uri() + "#L1.N2") as page:
        page.wait("document.body && document.body.dataset.connected")
        here = names.index("L1.N2")
        partner = "document.querySelector('#partners button').textContent"
        for kind, matrix in (
            ("correlation", structure.correlation), ("partial correlation", structure.partial),
        ):  # fmt: skip
            page.run(
                f"(() => {{ const k = document.getElementById('kind'); k.value = {kind!r};"
                " k.dispatchEvent(new Event('change')); })()"
            )
            sizes = matrix[here].abs()
            sizes[here] = 0
            said, value = page.run(partner).split(" ")
            assert sizes[names.index(said)] == pytest.approx(float(sizes.max()), abs=0.01)
            assert float(value) == pytest.approx(float(matrix[here, names.index(said)]), abs=0.02)
            rows = page.run("document.getElementById('connectivity').data[0].y")
            assert sorted(rows) == [f"L1.N{k}" for k in range(6)]
            clusters = [int(structure.clusters[names.index(row)]) for row in rows]
            assert clusters == sorted(clusters)
            z = page.run("document.getElementById('connectivity').data[0].z")
            a, b = names.index(rows[1]), names.index(rows[4])
            assert z[1][4] == pytest.approx(float(matrix[a, b]), abs=0.02)
        # the first cell: its row is a network of the first cluster
        page.click(*centre(page, "#clusters .nsewdrag", 0.01, 0.01))
        page.wait("document.getElementById('among').value === 'the clusters that were chosen'")
        rows = page.run("document.getElementById('connectivity').data[0].y")
        first = [n for n, c in zip(names, structure.clusters.tolist(), strict=True) if c == 0]
        assert rows == first
        page.click(*centre(page, "#connectivity .nsewdrag", 0.01, 0.01))
        page.wait(f"location.hash === '#{first[0]}'")
        page.run("document.querySelector('#partners button').click()")
        assert page.run("location.hash") != f"#{first[0]}"
        assert page.errors == []
        assert all(address.startswith(("file:", "data:", "blob:")) for address in page.requests)


def test_it_fits_a_narrow_screen(folder):
    with opened((folder / "page.html").as_uri()) as page:
        page.resize(360, 800)
        page.wait("document.body && document.body.dataset.ready")
        assert page.run("document.documentElement.scrollWidth") <= 360
        assert page.errors == []
