"""Studies: many runs of one recipe with changes, from several seeds, and what they say together.

A study is a value; `run_study` makes its missing records and `summarize` reads them.
"""

from emalab.studies.config import Cell, Run, Study, family, override
from emalab.studies.engine import Outcome, StudyOptions, run_study
from emalab.studies.folder import StudyFolder

__all__ = ["Cell", "Outcome", "Run", "Study", "StudyFolder", "StudyOptions", "family", "override", "run_study"]
