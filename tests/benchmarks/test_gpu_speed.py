"""A profile's kernels are in the right groups."""

from __future__ import annotations

import ast

import pytest

from benchmarks import gpu_speed
from benchmarks.reporting import ROOT

KERNELS = {
    "_kernel": "attention",
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, false, false, cutlass::bfloat16_t>, false>"
    "(pytorch_flash::Flash_fwd_params)": "attention",
    "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t>::Params)": "attention",
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64_4x1x1_kernel0_0": "attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_bias_TNT": "matrix products",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_kernel__5x_cublas": "matrix products",
    "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_64x3_tn": "matrix products",
    "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>(Params)": "matrix products",
    "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, __nv_bfloat16, true>": "matrix products",
    "triton_tem_fused_addmm_4": "matrix products",
    "aten::addmm": "matrix products",
    "mkldnn::_linear_pointwise": "matrix products",
    "Memcpy HtoD (Pinned -> Device)": "copies",
    "Memset (Device)": "copies",
    "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)>": "copies",
    "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl(at::TensorIteratorBase&)>": "all else",
    "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<CUDAFunctor_add<c10::BFloat16>>>": "all else",
    "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float, false>": "all else",
    "void (anonymous namespace)::softmax_warp_forward<c10::Half, c10::Half, float, 9, false, false>": "all else",
    "void at::native::(anonymous namespace)::indexSelectLargeIndex<c10::BFloat16, long, unsigned int>": "all else",
    "triton_poi_fused_addmm_gelu_3": "all else",
    "triton_per_fused_add_addmm_native_layer_norm_2": "all else",
}
"""As CUPTI and torch call them."""


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_are_grouped_by_what_they_do(kernel: str) -> None:
    assert gpu_speed._group(kernel) == KERNELS[kernel]


def test_our_kernels_are_all_known() -> None:
    found = {
        node.name
        for path in (ROOT / "operators").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list)
    }
    assert found == gpu_speed.OUR_KERNELS
