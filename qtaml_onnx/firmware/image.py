"""The images of a hardened model: what is written, and what is read back with its faults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtaml_onnx.errors import InputError
from qtaml_onnx.firmware.layout import (
    PARITY_STREAM,
    PROTECTED_STREAM,
    Bits,
    Bytes,
    Rows,
    join_planes,
    mask_bytes,
    pack_bits,
    split_planes,
    unpack_bits,
)
from qtaml_onnx.firmware.manifest import ImageFile, ImageName, ImageTensor, Manifest, Region, Scheme, WeightType
from qtaml_onnx.firmware.parity import Coder, Corrected, LdpcCoder, ParityCoder, coder_of
from qtaml_onnx.graph import constant_array
from qtaml_onnx.modelio import PLAN_KEY, SourceModel, load_model
from qtaml_onnx.passes.inject_faults import stored_words
from qtaml_onnx.plan import StoragePlan, read_plan
from qtaml_onnx.protection import scheme
from qtaml_onnx.storage.packing import pack
from qtaml_onnx.storage.tensor import decode_tensor
from qtaml_onnx.stored import plan_path
from qtaml_onnx.tensor_plan import TensorPlan

__all__ = ["IMAGE_NAMES", "Images", "TensorImage", "build_image", "coder_for", "load_hardened", "read_images"]

IMAGE_NAMES: tuple[ImageName, ...] = ("bulk.bin", "protected.bin", "parity.bin")
_FORMS = ("affine", "table", "dequantize", "integer-table", "integer-grid")
_WORDS = ("INT8", "UINT8", "UINT16")
_LONGEST_WORD = 16
_MOST_WEIGHTS = 1 << 31
_TYPES: dict[ir.DataType, WeightType] = {
    ir.DataType.FLOAT: "FLOAT",
    ir.DataType.FLOAT16: "FLOAT16",
    ir.DataType.BFLOAT16: "BFLOAT16",
    ir.DataType.DOUBLE: "DOUBLE",
}


@dataclass(frozen=True)
class Images:
    """The bytes of the three images, empty where there is nothing."""

    bulk: Bytes
    protected: Bytes
    parity: Bytes

    def named(self) -> dict[ImageName, Bytes]:
        """By file name, without the empty ones."""
        found = dict(zip(IMAGE_NAMES, (self.bulk, self.protected, self.parity), strict=True))
        return {name: data for name, data in found.items() if data.size}


@dataclass(frozen=True)
class TensorImage:
    """The stored bits of a tensor as they are in the images.

    Attributes:
        exposed: Exposed bits a word, uint16 [weights].
        protected: Protected bits a word, uint16 [weights], as stored, not corrected.
        parity: uint8 [parity bits].
    """

    exposed: NDArray[np.uint16]
    protected: NDArray[np.uint16]
    parity: Bits

    @classmethod
    def read(cls, tensor: ImageTensor, images: Images, rows: Rows, coded: bool) -> TensorImage:
        """Takes a tensor out of images."""
        plan = tensor.storage
        bulk = _cut(images.bulk, tensor.bulk)
        safe = _cut(images.protected, tensor.protected)
        checks = _cut(images.parity, tensor.parity)
        if coded:
            safe = safe ^ mask_bytes(PROTECTED_STREAM, tensor.protected.offset, safe.size)
            checks = checks ^ mask_bytes(PARITY_STREAM, tensor.parity.offset, checks.size)
        return cls(
            rows.unpack(bulk, tensor.bulk.bits, plan.size),
            Rows().unpack(safe, tensor.protected.bits, plan.size),
            unpack_bits(checks, tensor.parity.bits),
        )

    def corrected(self, tensor: ImageTensor, coder: Coder | None) -> tuple[NDArray[np.integer], Corrected | None]:
        """The stored words after correction, as the model's initializer holds them, and what the code did."""
        plan, width = tensor.storage, tensor.protected.bits
        if coder is None or not width or not plan.size:
            return join_planes(plan, self.exposed, self.protected), None
        places = np.arange(width, dtype=np.uint16)
        bits = (self.protected[:, None] >> places & np.uint16(1)).astype(np.uint8).reshape(-1)
        done = coder.correct(bits, self.parity)
        safe = (done.data.reshape(-1, width).astype(np.uint16) << places).sum(axis=1, dtype=np.uint16)
        words = join_planes(plan, self.exposed, safe)
        if isinstance(coder, ParityCoder):
            block = np.arange(bits.size) // coder.data_bits
            nulled = done.failed[block].reshape(-1, width).any(axis=1).reshape(plan.shape)
            null = np.array(tensor.null_word, f"u{words.itemsize}").view(words.dtype)
            words = np.where(nulled, null, words).astype(words.dtype)
        return words, done


def _cut(image: Bytes, region: Region) -> Bytes:
    return image[region.offset : region.offset + region.size]


def load_hardened(path: Path) -> tuple[SourceModel, StoragePlan]:
    """A hardened model and the plan beside it.

    Raises:
        InputError: if the model is not hardened, or its plan is missing or another's.
    """
    source = load_model(path)
    if source.instrumented:
        raise InputError(f"{path} is instrumented; give the hardened model")
    wanted = source.model.metadata_props.get(PLAN_KEY)
    if wanted is None:
        raise InputError(f"{path} is not a hardened model (no {PLAN_KEY}); make one with `qtaml-onnx harden`")
    plan = read_plan(plan_path(path))
    if plan.sha256 != wanted:
        raise InputError(f"{plan_path(path)} is not the plan of {path}; harden the model again")
    return source, plan


def raw_rate(plan: StoragePlan) -> float:
    """The mean of the two flip rates, on the plane where it is largest: what a protection is chosen for."""
    faults = plan.fault_model
    return max((a + b) / 2 for a, b in zip(faults.p01, faults.p10, strict=True))


def coder_for(protection: Scheme) -> Coder | None:
    """The coder of a manifest's scheme.

    Raises:
        InputError: if the scheme is unknown, or its code is not the one that this program makes.
    """
    coder = coder_of(scheme(protection.name), protection.raw_rate)
    if _scheme(protection.name, protection.raw_rate, coder) != protection:
        raise InputError(f"the manifest's code {protection.name} is not this program's; export the image again")
    return coder


def _scheme(name: str, rate: float, coder: Coder | None) -> Scheme:
    return Scheme(
        name=name,
        data_bits=coder.data_bits if coder else 1,
        parity_bits=coder.parity_bits if coder else 0,
        raw_rate=rate,
        ldpc_prior=coder.prior if isinstance(coder, LdpcCoder) else None,
        ldpc_checks_sha256=coder.code.sha256 if isinstance(coder, LdpcCoder) else None,
    )


@dataclass
class _Image:
    """An image as it grows."""

    alignment: int
    parts: list[Bytes] = field(default_factory=list)
    size: int = 0

    def add(self, data: Bytes, bits: int) -> Region:
        gap = -self.size % self.alignment
        if gap and data.size:
            self.parts.append(np.zeros(gap, np.uint8))
            self.size += gap
        region = Region(offset=self.size, size=int(data.size), bits=bits)
        self.parts.append(data)
        self.size += int(data.size)
        return region

    def joined(self) -> Bytes:
        return np.concatenate(self.parts) if self.parts else np.zeros(0, np.uint8)


def build_image(source: SourceModel, plan: StoragePlan, rows: Rows) -> tuple[Manifest, Images]:
    """The images of a hardened model, and their manifest.

    Raises:
        InputError: if a tensor or the protection cannot be written, with the reason.
    """
    if not plan.tensors:
        raise InputError(f"{source.path} has no hardened weights; there is nothing to write")
    if plan.small is not None:
        raise InputError(
            f"{source.path} keeps biases, norms and scales as repeated words, which images do not hold yet; "
            "harden it without --include-small"
        )
    rate = raw_rate(plan)
    coder = coder_of(scheme(plan.protection), min(rate, 0.5)) if plan.protected_bits else None
    known = stored_words(source.model)
    bulk, protected, parity = _Image(rows.alignment), _Image(4), _Image(4)
    tensors = []
    for tensor in plan.tensors:
        _check_tensor(tensor)
        if tensor.words_name not in known:
            raise InputError(f"the stored words '{tensor.words_name}' are not in {source.path}; harden the model again")
        value = known[tensor.words_name][1]
        words = constant_array(value)
        if words.shape != tensor.shape or words.dtype != np.dtype(tensor.words_type.lower()):
            raise InputError(f"the words '{tensor.words_name}' are not as the plan says; harden the model again")
        if int(np.ravel(words).view(f"u{words.itemsize}").max(initial=0)) >> tensor.bits:
            raise InputError(f"a word of '{tensor.name}' is longer than {tensor.bits} bits; harden the model again")
        width = len(tensor.protected_planes)
        exposed, safe = split_planes(tensor, words)
        stored = rows.pack(exposed, tensor.bits - width)
        shielded = pack(safe, width) if width else np.zeros(0, np.uint8)
        checks: Bits = np.zeros(0, np.uint8)
        if coder is not None and width:
            checks = coder.encode(unpack_bits(shielded, plan_bits(tensor)))
        regions = (
            bulk.add(stored, tensor.bits - width),
            protected.add(shielded, width),
            parity.add(pack_bits(checks), int(checks.size)),
        )
        tensors.append(
            ImageTensor(
                storage=tensor,
                weight_type=_TYPES[ir.DataType[tensor.steps.dtype if tensor.steps else tensor.dtype]],
                null_word=_null_word(tensor),
                bulk=regions[0],
                protected=regions[1],
                parity=regions[2],
            )
        )
    images = Images(bulk.joined(), protected.joined(), parity.joined())
    if coder is not None:
        images.protected[:] ^= mask_bytes(PROTECTED_STREAM, 0, images.protected.size)
        images.parity[:] ^= mask_bytes(PARITY_STREAM, 0, images.parity.size)
    manifest = Manifest(
        plan_sha256=plan.sha256,
        source_sha256=plan.source_sha256,
        row_bits=rows.row_bits,
        protection=_scheme(plan.protection, min(rate, 0.5), coder),
        files=tuple(ImageFile.of(name, data.tobytes()) for name, data in images.named().items()),
        tensors=tuple(tensors),
    )
    return manifest, images


def plan_bits(tensor: TensorPlan) -> int:
    """Protected bits of a tensor."""
    return tensor.size * len(tensor.protected_planes)


def _check_tensor(tensor: TensorPlan) -> None:
    if tensor.part is not None:
        raise InputError(
            f"'{tensor.name}' is stored in parts by output channel, which the C reader does not know; "
            "harden with --granularity tensor"
        )
    if tensor.form not in _FORMS or tensor.words_type not in _WORDS:
        raise InputError(
            f"'{tensor.name}': the C reader knows no {tensor.words_type} words read as '{tensor.form}'; --exclude it"
        )
    if tensor.bits > _LONGEST_WORD or tensor.size >= _MOST_WEIGHTS:
        raise InputError(f"'{tensor.name}' is too large for the C reader; --exclude it when hardening")
    if tensor.quantized and (tensor.steps is None or tensor.packing is not None):
        raise InputError(
            f"'{tensor.name}' has scales a block, or a zero point a channel, which the C reader does not know; "
            "--exclude it when hardening"
        )
    if tensor.dtype == "UINT16":
        raise InputError(f"'{tensor.name}': the C reader has no room for UINT16; --exclude it when hardening")
    if tensor.bias is not None and tensor.bias.quantized is not None and tensor.bias.quantized.rounded:
        raise InputError(
            f"the bias of '{tensor.name}' corrects itself in 32-bit integers, which the C reader does not compute; "
            "harden with --no-bias-correction"
        )
    steps = tensor.steps.values if tensor.steps is not None else ()
    numbers = [*tensor.scales, *(tensor.input_scales or ()), *(tensor.table or ()), *steps, tensor.offset]
    if not np.isfinite(np.array(numbers)).all():
        raise InputError(f"'{tensor.name}' has constants that are not finite; --exclude it when hardening")


def _null_word(tensor: TensorPlan) -> int:
    """The word nearest to zero: of one channel as good as of all, as scales are positive."""
    words = np.arange(1 << tensor.bits, dtype=np.uint16 if tensor.words_type == "UINT16" else np.uint8)
    single = tensor.model_copy(
        update={"scales": tensor.scales[:1] or (1.0,), "channel_axis": None, "input_scales": None}
    )
    values = decode_tensor(single, words.view(tensor.words_type.lower()))
    return int(np.argmin(np.abs(values)))


def read_images(folder: Path, manifest: Manifest) -> Images:
    """The images of a folder, as a memory was dumped.

    Raises:
        InputError: if one is missing or has not the size that the manifest gives.
    """
    found = []
    for name in IMAGE_NAMES:
        file = manifest.file(name)
        if file is None:
            found.append(np.zeros(0, np.uint8))
            continue
        path = folder / name
        try:
            size = path.stat().st_size
            if size != file.size:
                raise InputError(f"{path} has {size} bytes, the image has {file.size}; dump the whole memory")
            found.append(np.fromfile(path, np.uint8))
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); put the dumped image there") from error
    return Images(*found)
