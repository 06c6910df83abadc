"""What the papers claim of their own systems, to stand beside ours: only what an abstract or a printed table says.

Sources: the poster of Q8BERT (Zafrir et al., 2019); the abstracts of Q-BERT (Shen et al., 2019), KDLSQ-BERT (2021),
TernaryBERT (Zhang et al., 2020), MKQ-BERT (Tang et al., 2022) and BinaryBERT (Bai et al., 2020); BinaryBERT's scores as
the authors of BiT have run it again (facebookresearch/bit), whose table does not say the metrics of MRPC, QQP and
STS-B; XTC (arXiv 2206.01859) as DeepSpeed documents it. MKQ-BERT has no score here: its text is not public.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from q8core.reproduce.paper import PAPER


@dataclass(frozen=True)
class Claim:
    """What a paper claims.

    Attributes:
        system: its name.
        model: the model that it is about.
        text: the claim, of no task.
        scores: task -> what it says of that task.
    """

    system: str
    model: str
    text: str
    scores: Mapping[str, str] = field(default_factory=dict[str, str])

    def of(self, task: str) -> str:
        """Return the claim in words, with the task's score where there is one."""
        said = self.scores.get(task)
        return f"{self.system}: {self.text}{f'; {said}' if said else ''} ({self.model})"


def _q8bert() -> dict[str, str]:
    base = {task: row for task, rows in PAPER.items() for row in rows if row.model == "BERT-base"}
    return {task: f"{row.qat.mean:.2f}, fp32 {row.fp32.mean:.2f}" for task, row in base.items()}


_BINARY = {
    "mnli": "1-1-4 bits 83.9, fp32 84.9 (BiT's run)",
    "mnli-mm": "1-1-4 bits 84.2, fp32 85.5 (BiT's run)",
    "qnli": "1-1-4 bits 90.9, fp32 92.1 (BiT's run)",
    "sst2": "1-1-4 bits 92.3, fp32 93.2 (BiT's run)",
    "cola": "1-1-4 bits 44.4, fp32 59.7 (BiT's run)",
    "rte": "1-1-4 bits 65.3, fp32 72.2 (BiT's run)",
    "squad": "1-1-4 bits 85.8, fp32 89.7 (BiT's run)",
}
_XTC = {
    "mnli": "1-1-8 bits 82.9 with 12 layers; 81.4, fp32 83.8 with 6",
    "mnli-mm": "1-1-8 bits 84.0 with 12 layers; 82.0, fp32 83.7 with 6",
}
_Q8BERT = Claim("Q8BERT", "BERT-base, simulated", "4 times smaller", _q8bert())
_QBERT = Claim(
    "Q-BERT", "BERT-base", "down to 2 bits, at most 2.3 % worse, parameters up to 13 times smaller, embeddings 4 times"
)
_KDLSQ = Claim("KDLSQ-BERT", "BERT-base", "2 to 8 bits, 14.9 times smaller, comparable to fp32")
_TERNARY = Claim("TernaryBERT", "BERT-base", "2-2-8 bits, 14.9 times smaller")
_MKQ = Claim("MKQ-BERT", "the abstract's", "4-bit weights and activations, 5.3 times fewer bits, accuracy kept")
_BINARYBERT = Claim("BinaryBERT", "BERT-base", "24 times smaller", _BINARY)
_DIRECT = Claim("XTC", "BERT-base and 6 layers of its width", "1 bit without splitting", _XTC)

CLAIMS: Mapping[str, tuple[Claim, ...]] = MappingProxyType(
    {
        "q8bert": (_Q8BERT,),
        "q8bert-paper": (_Q8BERT,),
        **dict.fromkeys(("qbert-4", "qbert-3", "qbert-2", "qbert-mp"), (_QBERT,)),
        **dict.fromkeys(("kdlsq-4", "kdlsq-2"), (_KDLSQ,)),
        "ternary": (_TERNARY,),
        "mkq": (_MKQ,),
        "binary": (_BINARYBERT, _DIRECT),
        "binary-split": (_BINARYBERT,),
    }
)
"""The claims beside each preset, by its name; other schemes have none."""


def claim_of(scheme: str, task: str) -> str:
    """Return what the papers claim beside a scheme, empty if nothing."""
    return "; ".join(claim.of(task) for claim in CLAIMS.get(scheme, ()))
