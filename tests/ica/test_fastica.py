from dataclasses import replace

import pytest
import torch

from funcnet_plugin.errors import DecompositionError
from funcnet_plugin.ica import whiten
from funcnet_plugin.ica.contrast import CONTRASTS
from funcnet_plugin.ica.fastica import fastica
from funcnet_plugin.ica.runs import RunReport, initial_unmixing
from tests.ica.sources import planted


@pytest.fixture
def white():
    return whiten(planted(k=6, neurons=2000)[1])


def test_unmixing_is_orthonormal(white):
    W = fastica(white, n_init=3).W
    assert torch.allclose(W @ W.mT, torch.eye(6).double().expand(3, 6, 6), atol=1e-9)


def test_a_run_that_does_not_converge_says_so_with_its_final_tolerance(white):
    report = fastica(white, max_iter=1).runs[0]
    assert report == RunReport(False, 1, report.final_tolerance)
    assert report.final_tolerance > 1e-4


def test_converged_runs_leave_the_batch_unchanged(white):
    together = fastica(white, n_init=4)
    for i in range(4):
        alone = fastica(white, w_init=initial_unmixing(6, 0, i))
        assert alone.runs[0].n_iter == together.runs[i].n_iter
        assert torch.allclose(alone.W[0], together.W[i], atol=1e-8)


# cube in a dtype with too small a range: infinite in float32 and worse in float64
OVERFLOWING = replace(
    CONTRASTS["cube"],
    g=lambda Y: Y * Y * Y * 1e38,
    slope=lambda Y, _: 3e38 * (Y * Y).mean(-1),
)


def test_overflow_in_float32_is_redone_in_float64(white, monkeypatch):
    monkeypatch.setitem(CONTRASTS, "cube", OVERFLOWING)
    result = fastica(white.float())
    assert torch.isfinite(result.W).all()
    assert result.W.dtype == torch.float32
    assert result.runs[0].promoted and result.runs[0].converged


def test_a_singular_update_is_damped(white, monkeypatch):
    cube, calls = CONTRASTS["cube"], []

    def singular(Y):
        calls.append(1)
        gY = cube.g(Y)
        # all rows alike: decorrelation cannot make them orthonormal
        return gY[:, :1].expand_as(gY) * 1.0 if len(calls) in (2, 5) else gY

    def slope(Y, gY):
        return cube.slope(Y, gY) * (len(calls) not in (2, 5))

    monkeypatch.setitem(CONTRASTS, "cube", replace(cube, g=singular, slope=slope))
    result = fastica(white)
    assert torch.isfinite(result.W).all()
    assert result.runs[0].damped_steps + result.runs[0].restarts >= 1
    assert result.runs[0].converged


def test_when_nothing_helps_there_is_an_error_and_no_nan(white, monkeypatch):
    monkeypatch.setitem(CONTRASTS, "cube", replace(CONTRASTS["cube"], g=lambda Y: Y * float("nan")))
    with pytest.raises(DecompositionError, match="no finite solution"):
        fastica(white)


def test_bad_input_is_refused(white):
    with pytest.raises(DecompositionError, match="choose one of cube, logcosh, exp"):
        fastica(white, contrast="tanh")
    white = white.clone()
    white[0, 0] = float("nan")
    with pytest.raises(DecompositionError, match="NaN"):
        fastica(white)
