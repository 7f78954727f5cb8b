"""The zoo as data: small and large relatives of BERT, how each is configured, and what the papers publish about it.

Every published figure is written as printed, so that its rounding can be told, and names its source.  They were read in transcriptions of the papers'
tables; figures that are quoted from memory say so (`confirmed`).  The shapes of the MobileBERTs and of IB-BERT are those of Google's configurations
(google-research/google-research: mobilebert/config).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mobile_export.checkpoint.geometry import Geometry
from mobile_export.timing.counting import Shape

UNITS = {"M": 1e6, "B": 1e9, "ms": 1e-3, "s": 1.0, "x": 1.0}


@dataclass(frozen=True, slots=True)
class Rounded:
    """A figure as printed: "14.5 M" is 14,500,000, give or take 50,000."""

    text: str

    @property
    def value(self) -> float:
        """In parameters, operations, seconds or times."""
        number, unit = self.text.split()
        return float(number) * UNITS[unit]

    @property
    def slack(self) -> float:
        """Half a unit of the last digit."""
        number, unit = self.text.split()
        return 0.5 * 10.0 ** -len(number.partition(".")[2]) * UNITS[unit]


@dataclass(frozen=True, slots=True)
class Source:
    """A paper, where its figures stand, and under which conditions it timed."""

    citation: str
    place: str
    timed_on: str = ""


@dataclass(frozen=True, slots=True)
class Published:
    """What one source says about one model.  time: of one query or one pass; speed_up: over BERT-base, as printed or from the two times."""

    source: str  # key of SOURCES
    parameters: Rounded | None = None
    flops: Rounded | None = None
    time: Rounded | None = None
    speed_up: Rounded | None = None
    confirmed: bool = True


@dataclass(frozen=True, slots=True)
class Variant:
    """Another shape that would give a published figure; why_not says what speaks against it."""

    description: str
    change: Callable[[Shape], Shape]
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """One animal of the zoo."""

    geometry: Geometry
    published: tuple[Published, ...] = ()
    variant: Variant | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """As its paper calls it."""
        return self.geometry.name


@dataclass(frozen=True, slots=True)
class Reported:
    """A model that is quoted and not run: its architecture is no BERT."""

    name: str
    published: tuple[Published, ...]
    note: str


SOURCES = {
    "bert": Source("Devlin et al. 2019, arXiv 1810.04805", "section 3"),
    "distilbert": Source("Sanh et al. 2019, arXiv 1910.01108", "table 3", "one pass over STS-B dev, batch 1, Xeon E5-2690 v3"),
    "tinybert": Source("Jiao et al. 2020, arXiv 1909.10351", "table 1", "one Nvidia K80"),
    "mobilebert": Source("Sun, Yu et al. 2020, arXiv 2004.02984", "tables 1 and 4", "128 tokens, Pixel 4, TensorFlow Lite, 4 threads"),
    "pkd": Source("Sun, Cheng et al. 2019, arXiv 1908.09355", "section 4.4", "128 tokens, batch 128, float16, Nvidia Titan RTX"),
    "turc": Source("Turc et al. 2019, arXiv 1908.08962", "model sizes"),
}
BASELINE = "BERT-base"
TOKENS = 128  # length at which the papers count operations; MobileBERT's and Patient-KD's times are of it too


def _r(text: str | None) -> Rounded | None:
    return None if text is None else Rounded(text)


def _said(
    source: str,
    parameters: str | None = None,
    flops: str | None = None,
    time: str | None = None,
    speed_up: str | None = None,
    *,
    confirmed: bool = True,
) -> Published:
    return Published(source, _r(parameters), _r(flops), _r(time), _r(speed_up), confirmed)


def _bert(name: str, layers: int, hidden: int = 768, feed_forward: int | None = None, heads: int = 12) -> Geometry:
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": feed_forward or 4 * hidden, "num_attention_heads": heads}
    return Geometry(name, "bert", sizes)


def _mobilebert(name: str, **changes: object) -> Geometry:
    """MobileBERT as released (uncased_L-24_H-128_B-512_A-4_F-4_OPT) but for the changes; transformers has its values as defaults, save the pooler."""
    return Geometry(name, "mobilebert", {"classifier_activation": False} | changes)


def _one_matrix_less(shape: Shape) -> Shape:
    """One of the four square maps of attention left out of each layer."""
    linears = list(shape.linears)
    linears.remove((shape.attention, shape.attention))
    return replace(shape, linears=tuple(linears))


def _queries_of_the_input(shape: Shape) -> Shape:
    """Queries and keys read what enters the layer, so that the bottleneck which they share is not needed."""
    squeeze, inner = (shape.hidden, shape.attention), (shape.attention, shape.attention)
    linears, norms = list(shape.linears), list(shape.norms)
    linears.remove(squeeze)
    linears.remove(inner)
    linears.remove(inner)
    norms.remove(shape.attention)
    return replace(shape, linears=(*linears, squeeze, squeeze), norms=tuple(norms))


QUERIES_OF_THE_INPUT = Variant("with queries and keys that read the 512-wide input of the layer, as values do", _queries_of_the_input)
ONE_MATRIX_LESS = Variant(
    "with one 128 x 128 matrix of attention less in each layer", _one_matrix_less, "but the published operations are those of the released shape"
)
LIKE_BERT = {"normalization_type": "layer_norm", "hidden_act": "gelu"}

ZOO = (
    Model(_bert("BERT-large", 24, 1024, heads=16), (_said("bert", "340 M"), _said("mobilebert", "334 M"))),
    Model(
        _bert(BASELINE, 12),
        (
            _said("bert", "110 M"),
            _said("distilbert", "110 M", time="668 s"),
            _said("tinybert", "109 M", "22.5 B"),
            _said("mobilebert", "109 M", "22.5 B", "342 ms"),
        ),
    ),
    Model(
        _bert("BERT-small", 4, 512, heads=8),
        (_said("tinybert", "29.2 M", "3.4 B", speed_up="5.7 x"), _said("turc", "29.1 M", confirmed=False)),
    ),
    Model(_bert("BERT-tiny, 4 x 312", 4, 312, 1200), (_said("tinybert", "14.5 M", "1.2 B", speed_up="9.4 x"),), note="the shape of TinyBERT 4"),
    Model(_bert("BERT-tiny, 2 x 128", 2, 128, heads=2), (_said("turc", "4.4 M"),), note="Google's model of that name"),
    Model(
        Geometry("DistilBERT 6", "distilbert"),
        (_said("distilbert", "66 M", time="410 s"), _said("tinybert", "67.0 M", "11.3 B", speed_up="2.0 x")),
    ),
    Model(Geometry("DistilBERT 4", "distilbert", {"n_layers": 4}), (_said("tinybert", "52.2 M", "7.6 B", speed_up="3.0 x"),)),
    Model(_bert("Patient-KD 6", 6), (_said("tinybert", "67.0 M", "11.3 B", speed_up="2.0 x"),)),
    Model(_bert("Patient-KD 4", 4), (_said("tinybert", "52.2 M", "7.6 B", speed_up="3.0 x"),)),
    Model(_bert("Patient-KD 3", 3), (_said("pkd", "45.7 M", speed_up="3.73 x", confirmed=False),)),
    Model(_bert("TinyBERT 6", 6), (_said("tinybert", "67.0 M", "11.3 B", speed_up="2.0 x"),)),
    Model(_bert("TinyBERT 4", 4, 312, 1200), (_said("tinybert", "14.5 M", "1.2 B", speed_up="9.4 x"),)),
    Model(_mobilebert("MobileBERT"), (_said("mobilebert", "25.3 M", "5.7 B", "62 ms"),), QUERIES_OF_THE_INPUT),
    Model(
        _mobilebert("MobileBERT without optimisations", **LIKE_BERT),
        (_said("mobilebert", "25.3 M", "5.7 B", "192 ms"),),
        QUERIES_OF_THE_INPUT,
        "LayerNorm and gelu in place of NoNorm and relu",
    ),
    Model(
        _mobilebert("MobileBERT-tiny", use_bottleneck_attention=True, key_query_shared_bottleneck=False, num_feedforward_networks=2),
        (_said("mobilebert", "15.1 M", "3.1 B", "40 ms"),),
        ONE_MATRIX_LESS,
    ),
    Model(
        Geometry(
            "IB-BERT-large",
            "mobilebert",
            LIKE_BERT
            | {"intra_bottleneck_size": 1024, "intermediate_size": 4096, "num_feedforward_networks": 1, "key_query_shared_bottleneck": False},
        ),
        (_said("mobilebert", "293 M"),),
        note="the teacher of MobileBERT, with inverted bottlenecks",
    ),
)

REPORTED = (
    Reported("ELMo", (_said("distilbert", "180 M", time="895 s"),), "bidirectional LSTMs over characters, and a BiLSTM classifier"),
    Reported("GPT", (_said("bert", "110 M"),), "BERT-base was given its size, 12 x 768"),
)
