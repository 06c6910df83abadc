"""Where a family's training drops."""

from __future__ import annotations

from q8core.model.dropout import DropoutRates
from q8core.model.families import FAMILIES


def test_a_rate_holds_wherever_a_family_drops() -> None:
    bert = FAMILIES["bert"]
    encoder = DropoutRates(embeddings=0.1, attention=0.1, attention_output=0.1, ffn_output=0.1)
    assert bert.dropout_rates("qa", 0.1) == bert.dropout_rates(None, 0.1) == encoder
    assert bert.dropout_rates("classify", 0.1) == DropoutRates(0.1, 0.1, 0.1, 0.1, head_input=0.0, head_output=0.1)
    assert bert.dropout_rates("classify", 0.0) == DropoutRates()
