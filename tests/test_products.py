"""How exact a GPU's products are is the caller's again when ours are done."""

import pytest
import torch

from funcnet_plugin.products import tf32

MATMUL = torch.backends.cuda.matmul


@pytest.mark.parametrize(("allowed", "within"), [(True, "tf32"), (False, "ieee")])
def test_the_setting_is_put_back_even_after_an_error(allowed, within):
    before = MATMUL.fp32_precision
    with pytest.raises(ZeroDivisionError), tf32(allowed):
        assert MATMUL.fp32_precision == within
        raise ZeroDivisionError
    assert MATMUL.fp32_precision == before


def test_the_older_setting_of_torch_still_reads_and_stays():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with tf32(False):
            pass
        assert MATMUL.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
