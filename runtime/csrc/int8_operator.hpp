// spq::Int8MatMul as ONNX Runtime sees it: activations quantized to uint8, weights in int8, sums in int32.
//
// The library gives four names to one kernel, since a function in a file has one list of inputs and no more:
//   Int8MatMul          A, B, b_scale, bias, a_scale, a_zero_point
//   Int8MatMulByToken   A, B, b_scale, bias                         a scale and a zero point for every row
//   ...Branch           and channels [C], rows [C, N] behind them
// The channels do not count for the range; they are multiplied by their rows of the weight in float32, and added. B has
// zeros in those rows.
//
// spq::Int8Gather looks rows up in the transpose of such a weight, an embedding that is tied to it, in float32:
//   Int8Gather          B, ids [...], b_scale                       -> [..., K]
//   Int8GatherBranch    and channels [C], rows [C, N] behind them
#pragma once

#include <vector>

#include "tensors.hpp"

namespace spq {

// Adds all overloads; they live as long as the process.
void add_int8(std::vector<const ort::CustomOp*>& all);
void add_int8_gather(std::vector<const ort::CustomOp*>& all);

}  // namespace spq
