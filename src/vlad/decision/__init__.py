"""Decisions from scores: normal or anomalous, p-value and regions; see ``docs/decisions.md``."""

from vlad.decision.decision import Decision
from vlad.decision.file import find_decision
from vlad.decision.regions import Region
from vlad.decision.rules import ReferenceRecord, Rule
from vlad.decision.verdict import COLUMNS, Verdict

__all__ = ["COLUMNS", "Decision", "ReferenceRecord", "Region", "Rule", "Verdict", "find_decision"]
