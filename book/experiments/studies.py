"""The book's studies: the ablation of EM attention, axis by axis, on four data sets.

    emalab study voc-animals          # from the root of a clone
    emalab study --list

The studies of one family share a folder of records, ``book/results/studies/FAMILY`` for those of the book. The study
that is called as its family has the cells of all. Each data set has a module beside this one, and what their studies
vary is in `study_axes`.
"""

from __future__ import annotations

from emalab.studies.config import Study
from experiments.generated_scene_studies import GENERATED_SCENES
from experiments.photograph_studies import PHOTOGRAPHS
from experiments.street_scene_studies import STREET_SCENES

__all__ = ["STUDIES"]

STUDIES: dict[str, Study] = {
    study.name: study for study in (*GENERATED_SCENES, *PHOTOGRAPHS, *STREET_SCENES)
}
