"""Studies: many runs of one recipe with changes, from several seeds, and how their scores compare.

A study is a value. `run_study` makes its missing records, `load_studies` finds studies in a file, and
`emalab.studies.summary` and `emalab.studies.statistics` read the records; these two import numpy, this package nothing
slow.
"""

from emalab.studies.config import Cell, Run, Study, family, override
from emalab.studies.folder import StudyFolder
from emalab.studies.runner import Outcome, StudyOptions, run_study
from emalab.studies.sources import find_study, load_studies

__all__ = [
    "Cell",
    "Outcome",
    "Run",
    "Study",
    "StudyFolder",
    "StudyOptions",
    "family",
    "find_study",
    "load_studies",
    "override",
    "run_study",
]
