// The operators of domain qtaml. They are in static storage, which outlives every session.
#pragma once

#include <vector>

#include "qtaml/ort_abi.h"

namespace qtaml {

// FaultInject, once for each word type: onnxruntime's "any type" leaves out those of 2 bits.
std::vector<const OrtCustomOp*> fault_inject_ops(const ort::Api& api, bool with_two_bits);

}  // namespace qtaml
