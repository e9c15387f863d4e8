"""What can be asked of `harden`, and which of it goes together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtaml_onnx.book_choice import CODE_BOOKS, BookKind
from qtaml_onnx.errors import InputError
from qtaml_onnx.methods import Method, method_named
from qtaml_onnx.planner import LONGEST_WORD
from qtaml_onnx.storage.repetition import MOST_COPIES
from qtaml_onnx.storage.two_words import LONGEST_PAIR
from qtaml_onnx.uniform_codes import CODE_CHOICES

__all__ = ["DEFAULT_METHOD", "HardenOptions"]

DEFAULT_METHOD = "channel-optimized"
SENSITIVITIES = ("auto", "probe", "magnitude")
GRANULARITIES = ("tensor", "channel")


@dataclass(frozen=True)
class HardenOptions:
    """How to harden.

    Attributes:
        method: See `qtaml_onnx.methods.METHODS`.
        bits: Word length of float weights.
        bits_per_weight: Instead of one word length: most stored bits a weight, all in, shared out over the tensors.
        longest_word: With `bits_per_weight`, most bits of a weight; beyond 12 it has two words. 20 if None.
        code_books: Of codes that are designed: one code book for the model (`shared`), one a tensor, one a group of
            channels (`channel`), or by predicted noise and bits together (`auto`).
        code: Uniform code of methods that do not design one, see `qtaml_onnx.uniform_codes.CODE_CHOICES`; two's
            complement if None.
        protection: Scheme of protected planes, see `qtaml_onnx.protection.scheme`.
        budget: Most protected bits, as a fraction of all weight bits.
        target: Instead of a budget: the share of the clean metric to keep at the smallest budget; needs evaluation
            data.
        granularity: What gets protected planes, or with `bits_per_weight` word lengths, of its own: a `tensor`, or each
            of a few groups of its output channels (`channel`), by what noise in them adds to the outputs.
        per_tensor_scales: One scale a tensor in place of one an output channel.
        bias_correction: Whether layers get self-correcting biases, where the method has them and calibration data are
            given.
        input_scales: Whether inputs of a layer get scales of their own, likewise.
        sensitivity: How tensors are weighed: `probe` runs the model, `magnitude` looks at the weights alone and needs
            no more memory than one tensor, `auto` probes models of at most 1 GiB, and any with calibration data.
        keep_codes: Whether the words of quantised weights stay as they are: only their read-out, protection and biases
            are changed then.
        include: Patterns of weights to harden; all if empty.
        exclude: Patterns of weights to leave alone.
        include_small: Whether biases, norms, scales and zero points are in the fault model too.
        small_copies: How often each of their bits is stored; as often as the rates need if None.
        trials: Trials a rate when evaluating.
        seed: Of probes, synthetic inputs and trials.
        workers: Processes of the campaign.
        confidence: Of the intervals.
        compare: Whether the other methods are measured as well, with no more protected bits.
        off_design: Whether the hardened model is also measured at half and at twice the designed rates.
        sweep: Whether evaluating also looks at rates around the designed ones, with a quarter of the trials, at most 5,
            on at most 1000 samples.
        fail_under: Share of the clean metric below which `HardenResult.gate` fails.
    """

    method: str = DEFAULT_METHOD
    bits: int = 8
    bits_per_weight: float | None = None
    longest_word: int | None = None
    code_books: BookKind = "auto"
    code: str | None = None
    protection: str = "ideal"
    budget: float = 0.0
    target: float | None = None
    granularity: str = "tensor"
    per_tensor_scales: bool = False
    bias_correction: bool = True
    input_scales: bool = True
    sensitivity: str = "auto"
    keep_codes: bool = False
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    include_small: bool = False
    small_copies: int | None = None
    trials: int = 20
    seed: int = 0
    workers: int = 1
    confidence: float = 0.95
    compare: bool = False
    off_design: bool = False
    sweep: bool = True
    fail_under: float | None = None

    def check(self, has_evaluation: bool) -> Method:
        """The method; raises InputError for options out of range or that do not go together."""
        method = method_named(self.method)
        if self.sensitivity not in SENSITIVITIES:
            raise InputError(f"unknown --sensitivity '{self.sensitivity}'; choose from {', '.join(SENSITIVITIES)}")
        if self.granularity not in GRANULARITIES:
            raise InputError(f"unknown --granularity '{self.granularity}'; choose from {', '.join(GRANULARITIES)}")
        if self.granularity == "channel" and method.weighting in ("uniform", "none"):
            alike = "protects the same planes everywhere" if method.weighting == "uniform" else "protects nothing"
            raise InputError(f"--granularity channel: method {method.name} {alike}; leave it out")
        if not 0 <= self.budget <= 1:
            raise InputError(f"--budget {self.budget:g} is not a fraction; give one from 0 to 1")
        for name, value in (("--target", self.target), ("--fail-under", self.fail_under)):
            if value is None:
                continue
            if not 0 < value <= 1:
                raise InputError(f"{name} {value:g} is not a share of the clean metric; give one above 0 and up to 1")
            if not has_evaluation:
                raise InputError(f"{name} needs data to measure on; add --eval FILE.npz")
        if self.target is not None and self.trials < 2:
            raise InputError("--target compares intervals, which one trial does not have; give --trials 2 or more")
        if self.target is not None and self.budget:
            raise InputError("--budget and --target exclude each other; give one")
        if self.code is not None:
            if self.code not in CODE_CHOICES:
                raise InputError(f"unknown --code '{self.code}'; choose from {', '.join(CODE_CHOICES)}")
            if method.code != "twos-complement" or method.weighting == "none":
                other = "designs its own code" if method.weighting != "none" else "is the plain baseline"
                raise InputError(
                    f"--code {self.code}: method {method.name} {other}; take --method posterior-mean, or leave it out"
                )
        longest = LONGEST_WORD if method.code == "channel-optimized" else 8
        if not 2 <= self.bits <= longest:
            raise InputError(f"--bits {self.bits} is out of range; {method.name} stores words of 2 to {longest} bits")
        if self.bits_per_weight is not None:
            if not 1 <= self.bits_per_weight <= 64:
                raise InputError(f"--bits-per-weight {self.bits_per_weight:g} is out of range; give 1 to 64")
            if self.target is not None or self.budget:
                raise InputError("--bits-per-weight excludes --budget and --target; give one")
        if self.code_books not in CODE_BOOKS:
            raise InputError(f"unknown --code-books '{self.code_books}'; choose from {', '.join(CODE_BOOKS)}")
        if self.code_books != "auto" and method.code != "channel-optimized":
            raise InputError(f"--code-books {self.code_books}: method {method.name} designs no code books")
        if self.longest_word is not None:
            if self.bits_per_weight is None:
                raise InputError("--longest-word limits the lengths that --bits-per-weight chooses; give both")
            if not 1 <= self.longest_word <= LONGEST_PAIR:
                raise InputError(f"--longest-word {self.longest_word} is out of range; give 1 to {LONGEST_PAIR}")
        if self.small_copies is not None and not self.include_small:
            raise InputError("--small-copies says how small tensors are stored; add --include-small")
        if self.small_copies is not None and self.small_copies not in range(1, MOST_COPIES + 1, 2):
            raise InputError(f"--small-copies {self.small_copies}: give an odd number from 1 to {MOST_COPIES}")
        if self.compare and not has_evaluation:
            raise InputError("--compare needs data to measure on; add --eval FILE.npz")
        if self.compare and self.bits_per_weight is not None:
            raise InputError("--compare needs one word length for all methods; leave out --bits-per-weight")
        return method
