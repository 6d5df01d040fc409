"""Programs that make the records in ``book/results``, each named like the record that it writes."""
