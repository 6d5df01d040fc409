"""The laboratory: what several pages of the book share, so that their cells need not repeat it.

Pages write ``from lab import miniature`` or ``from lab.verdicts import findings``. That works

- in Jupyter, under nbmake and in ``make book``: they start a page's kernel in the page's folder, ``book``, and Python
  looks for imports in its working directory first;
- with any other working directory, as in VS Code, in tests and in programs: ``pip install -e .`` puts ``book`` on the
  path beside the package (``dev-mode-dirs`` in ``pyproject.toml``).

A kernel that was started before the installation, as in Colab, takes ``%cd emalab/book``. The page on running the book
says all this for readers; nothing else in the repository touches the path.

Modules of the laboratory import `emalab` and each other, never a page, an experiment or a test.
"""
