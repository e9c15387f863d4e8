// The operators of domain qtaml. Each function gives an object in static storage, which outlives every session.
#pragma once

#include "qtaml/ort_abi.h"

namespace qtaml {

const OrtCustomOp* fault_inject_op(const ort::Api& api);

}  // namespace qtaml
