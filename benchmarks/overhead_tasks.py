"""What the overhead benchmark measures of a network, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
from overhead_network import BATCH, STATISTICS_SAMPLES, WANTED, Feed, Network, Record, Row, Trial, plain_session

from qtaml_onnx.carry_out import carry_out
from qtaml_onnx.errors import InputError
from qtaml_onnx.fault_inject import fault_inject
from qtaml_onnx.methods import METHODS, Method
from qtaml_onnx.modelio import SourceModel
from qtaml_onnx.passes.expose_weights import ExposeWeights
from qtaml_onnx.passes.substitute_weights import SubstituteWeights
from qtaml_onnx.plan import StoragePlan
from qtaml_onnx.planner import LONGEST_WORD, Planner, prepare
from qtaml_onnx.report.build import SATURATION_LEVEL
from qtaml_onnx.storage.tensor import decode_tensor, encode_tensor

HIGH_RATE = 0.1  # from which word lengths are a matter of the first round
BUDGETS = (0.005, 0.01, 0.02, 0.05, 0.10, 0.20)
PERCENTILE = 99.9

METHOD_ROWS = {name: Row(name, name) for name in ("uniform-msp", "tac", "channel-optimized", "magnitude")}
METHOD_ROWS["posterior-mean"] = Row("posterior-mean", "posterior-mean")
ABLATIONS = (
    Row("channel-optimized, no bias correction", "channel-optimized", bias=False),
    Row("channel-optimized, no input scales", "channel-optimized", input_scales=False),
    Row("channel-optimized, neither", "channel-optimized", bias=False, input_scales=False),
)
LENGTHS = tuple(
    Row(f"{bits} bits a weight all in, {title}", "channel-optimized", protection=protection, bits_per_weight=bits)
    for bits in (8, 4)
    for protection, title in (("ideal", "nothing protected"), ("ldpc-3-5", "ldpc-3-5"))
)
BY_CHANNEL = tuple(
    Row(f"{name}, by output channel", name, channels=True) for name in ("channel-optimized", "tac", "magnitude")
)
BASELINE = Row("plain int8", "none")


def ledger(plan: StoragePlan) -> Record:
    """What is stored."""
    weights = sum(tensor.size for tensor in plan.tensors)
    return {
        "protected": plan.protected_fraction,
        "words": plan.weight_bits / weights,
        "parity": plan.parity_bits / weights,
        "metadata": plan.metadata_bits / weights,
        "all_in": (plan.weight_bits + plan.parity_bits + plan.metadata_bits) / weights,
    }


def nothing(network: Network, row: Row, rate: float) -> Record:
    """What is kept with nothing protected, or at the word lengths chosen for a total."""
    planner, method = network.planner(row, rate), METHODS[row.method]
    try:
        plan = (
            planner.within_budget(method, 0)
            if row.bits_per_weight is None
            else planner.within_bits(method, row.bits_per_weight)
        )
    except InputError as error:
        return {"impossible": str(error)}
    return {"nothing": network.kept(network.faulty(plan)), "ledger": ledger(plan)}


def overhead(network: Network, row: Row, rate: float) -> Record:
    """The smallest overhead that reaches the target, measured and predicted."""
    planner, method = network.planner(row, rate), METHODS[row.method]
    plan = planner.within_budget(method, 0)
    kept = network.kept(network.faulty(plan))
    if kept["mean"] < WANTED:
        menu = planner.menu(method)
        sequence = menu.sequence()
        low, high = 1, len(sequence) - 1
        while low < high:
            middle = (low + high) // 2
            met = network.meets(network.faulty(planner.plan(menu, sequence[middle])))
            low, high = (low, middle) if met else (middle + 1, high)
        plan = planner.plan(menu, sequence[high])
        kept = network.kept(network.faulty(plan))
        while kept["mean"] < WANTED and high < len(sequence) - 1:  # all trials may say other than the search's
            high += 1
            plan = planner.plan(menu, sequence[high])
            kept = network.kept(network.faulty(plan))
    return {
        "overhead": plan.protected_fraction,
        "kept": kept,
        "ledger_there": ledger(plan),
        **prediction(network, row, planner, method, rate),
    }


def prediction(network: Network, row: Row, planner: Planner, method: Method, rate: float) -> Record:
    """Overheads predicted at the level of noise where ρ* compares them, what is kept there, ρ* as a report gives it."""
    sensitivity = planner.sensitivity
    if sensitivity is None:
        return {}
    limit = SATURATION_LEVEL * sensitivity.output_energy
    unprotected = planner.within_budget(method, 0).noise_energy
    if unprotected is not None and unprotected <= limit:
        return {"predicted_overhead": 0.0}  # no ratio; and the designs with protected planes need not be made
    own = planner.smallest_overhead(method, limit)
    plain = network.planner(METHOD_ROWS["uniform-msp"], rate)  # has no self-correcting biases, and is probed without
    found = plain.sensitivity
    uniform = plain.smallest_overhead(METHODS["uniform-msp"], SATURATION_LEVEL * found.output_energy) if found else 0
    record: Record = {"predicted_overhead": own, "predicted_ratio": uniform / own if uniform and own else None}
    if own:  # None where the method does not reach the level
        record["kept_at_prediction"] = network.kept(network.faulty(planner.within_budget(method, own)))
    return record


def budgets(network: Network, row: Row, rate: float) -> Record:
    """What is kept at each budget."""
    planner, method = network.planner(row, rate), METHODS[row.method]
    return {"budgets": {f"{b:g}": network.kept(network.faulty(planner.within_budget(method, b))) for b in BUDGETS}}


def clipped(network: Network, _row: Row, rate: float) -> Record:
    """Plain int8 after clipping each tensor at a percentile of its magnitudes."""
    values = {}
    for tensor in network.planner(BASELINE, rate).tensors:
        limit = float(np.percentile(np.abs(tensor.values), PERCENTILE))
        values[tensor.name] = np.clip(tensor.values, -limit, limit).astype(tensor.values.dtype)
    model = network.source.model.clone()
    SubstituteWeights(values)(model)
    source = SourceModel(network.source.path, network.source.sha256, model)
    planner = Planner(source, prepare(source), network.planner(BASELINE, rate).fault_model)
    plan = planner.within_budget(METHODS["none"], 0)
    proto = ir.to_proto(carry_out(source, plan)[1])
    return {"nothing": network.kept(network.instrumented(proto, rate)), "ledger": ledger(plan)}


def ranger(network: Network, _row: Row, rate: float) -> Record:
    """Plain int8 with the output of every layer held to the range that calibration saw (Ranger; Chen et al. 2021)."""
    planner = network.planner(METHOD_ROWS["posterior-mean"], rate)
    final = {str(value.name) for value in network.source.model.graph.outputs}
    outputs = [layer.output for layer in planner.layers.values() if layer.output not in final]
    probe = onnx.ModelProto()
    probe.CopyFrom(network.original)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    session = plain_session(probe)
    ranges = dict.fromkeys(outputs, (math.inf, -math.inf))
    for feed, _count in network.calibration.head(STATISTICS_SAMPLES).feeds(BATCH):
        for name, array in zip(outputs, session.run(outputs, feed), strict=True):
            low, high = ranges[name]
            ranges[name] = (min(low, float(array.min())), max(high, float(array.max())))
    plan = network.planner(BASELINE, rate).within_budget(METHODS["none"], 0)
    proto = ir.to_proto(carry_out(network.source, plan)[1])
    nodes = []
    for node in proto.graph.node:
        nodes.append(node)
        for name in set(node.output) & ranges.keys():
            node.output[list(node.output).index(name)] = f"{name}.free"
            limits = [f"{name}.low", f"{name}.high"]
            proto.graph.initializer.extend(
                onnx.helper.make_tensor(limit, onnx.TensorProto.FLOAT, [], [value])
                for limit, value in zip(limits, ranges[name], strict=True)
            )
            nodes.append(onnx.helper.make_node("Clip", [f"{name}.free", *limits], [name]))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return {"nothing": network.kept(network.instrumented(proto, rate)), "ledger": ledger(plan)}


def parity(network: Network, _row: Row, rate: float) -> Record:
    """Plain int8 with a parity bit a word, which flips like the others; a word of wrong parity is read as zero."""
    plan = network.planner(BASELINE, rate).within_budget(METHODS["none"], 0)
    weights = {tensor.name: tensor.values for tensor in network.planner(BASELINE, rate).tensors}
    model = network.source.model.clone()
    expose = ExposeWeights([tensor.name for tensor in plan.tensors])
    expose(model)
    rates = np.full((2, LONGEST_WORD), rate, dtype=np.float32)

    def make() -> Trial:
        session = plain_session(ir.to_proto(model))

        def trial(seed: int) -> float:
            feed: Feed = {}
            for tensor in plan.tensors:
                words = encode_tensor(tensor, weights[tensor.name])
                bit = np.bitwise_count(words.view(np.uint8)) & 1
                read = fault_inject(words, seed, rates, stream=tensor.stream)
                stored = fault_inject(bit, seed, rates, stream=len(plan.tensors) + tensor.stream, bits=1)
                right = (np.bitwise_count(read.view(np.uint8)) & 1) == stored
                feed[expose.inputs[tensor.name]] = np.where(right, decode_tensor(tensor, read), np.float32(0))
            return network.right(session, feed)

        return trial

    row = ledger(plan)
    return {
        "nothing": network.kept(network.cached(f"parity {rate}", make)),
        "ledger": {**row, "parity": 1.0, "all_in": row["all_in"] + 1.0},
    }


Task = Callable[[Network, Row, float], Record]


def tasks(rate: float) -> list[list[tuple[Task, Row]]]:
    """What to measure at a rate, in rounds: all networks and rates have a round before the next begins."""
    main, lengths = METHOD_ROWS["channel-optimized"], [(nothing, row) for row in LENGTHS]
    high = rate >= HIGH_RATE
    return [
        [(nothing, main), *(lengths if high else [])],
        [
            (overhead, main),
            (nothing, METHOD_ROWS["tac"]),
            *((overhead, METHOD_ROWS[name]) for name in ("uniform-msp", "tac")),
        ],
        [(nothing, row) for row in (*ABLATIONS, METHOD_ROWS["posterior-mean"], BASELINE)],
        [
            (clipped, Row(f"plain int8, clipped at the {PERCENTILE:g}th percentile", "none")),
            (parity, Row("plain int8, parity and nulling", "none")),
            (ranger, Row("plain int8, layer outputs in range", "none")),
        ],
        [(task, METHOD_ROWS[name]) for name in ("posterior-mean", "magnitude") for task in (nothing, overhead)],
        [(nothing, METHOD_ROWS["uniform-msp"]), *((budgets, row) for row in METHOD_ROWS.values())],
        list(() if high else lengths),
        [(overhead, row) for row in (BY_CHANNEL if high else ())],
        [(overhead, row) for row in ABLATIONS],
    ]
