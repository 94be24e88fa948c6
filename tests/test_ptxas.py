"""Rows of what ptxas says, and the table that docs have of them."""

from __future__ import annotations

import shutil

import pytest

from mbv3fast.csrc.ptxas import Usage, demangled, parse_log, table

# Of nvcc 13.0: a kernel with spills of its own and of a function that it calls, and shared memory; a plain one.
LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8mbv3fast43_GLOBAL__N__fc3c7376_5_k2_cu_4ebf179e_254704sumsIfLi3EEEvPT_' for 'sm_80'
ptxas info    : Function properties for _ZN8mbv3fast43_GLOBAL__N__fc3c7376_5_k2_cu_4ebf179e_254704sumsIfLi3EEEvPT_
    896 bytes stack frame, 32 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 896 bytes cumulative stack size, 256 bytes smem, 360 bytes cmem[0]
ptxas info    : Compile time = 31.467 ms
ptxas info    : Function properties for _ZN41_INTERNAL_fc3c7376_5_k2_cu_4ebf179e_254708mbv3fast43_GLOBAL__N__fc3c7376_5_k2_cu_4ebf179e_254706helperEf
    0 bytes stack frame, 860 bytes spill stores, 896 bytes spill loads
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8mbv3fast50_GLOBAL__N__5546355a_17_depthwise_conv_cu_73eaf8d121depthwise_conv_kernelI13__nv_bfloat16Li5ELi2ELNS_10ActivationE2EEEvNS0_13DepthwiseConvIT_EE' for 'sm_90'
ptxas info    : Function properties for _ZN8mbv3fast50_GLOBAL__N__5546355a_17_depthwise_conv_cu_73eaf8d121depthwise_conv_kernelI13__nv_bfloat16Li5ELi2ELNS_10ActivationE2EEEvNS0_13DepthwiseConvIT_EE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 112 registers, used 1 barriers
ptxas info    : Compile time = 74.820 ms
"""  # noqa: E501


def test_a_log_of_ptxas_becomes_rows() -> None:
    rows = parse_log(LOG)
    assert [row[1:] for row in rows] == [("80", 32, 892, 916, 256), ("90", 112, 0, 0, 0)]
    assert rows[1].kernel.startswith("_ZN8mbv3fast50_GLOBAL__N__5546355a")
    assert parse_log("") == demangled([]) == []


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt")
def test_rows_have_readable_names() -> None:
    assert [row.kernel for row in demangled(parse_log(LOG))] == [
        "sums<float, 3>",
        "depthwise_conv_kernel<__nv_bfloat16, 5, 2, (Activation)2>",
    ]
    assert demangled([Usage("main", "90", 1, 0, 0, 0)])[0].kernel == "main"


def test_a_table_has_a_column_an_architecture() -> None:
    rows = [Usage("b", "100", 40), Usage("b", "90", 48, 4, 8), Usage("a<1>", "90", 32)]
    assert table(rows).splitlines() == [
        "| kernel | sm_90 | sm_100 |",
        "| --- | ---: | ---: |",
        "| `a<1>` | 32 | - |",
        "| `b` | 48 (4 B spilled) | 40 |",
    ]
