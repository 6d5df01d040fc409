/* How search results are ordered: Sphinx's own weights, and first the pages that have the query in a heading. */
const IN_TITLE = 40;
const IN_HEADING = 20;

/* Summaries are fetched, which browsers refuse for pages opened as files. */
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

var Scorer = {
  score([docname, title, anchor, descr, score]) {
    const query = (new URLSearchParams(location.search).get("q") ?? "").toLowerCase().trim();
    if (anchor || descr || !query) return score;
    if (title.toLowerCase().includes(query)) return score + IN_TITLE;
    const page = Search._index.docnames.indexOf(docname);
    const hasIt = ([heading, places]) => heading.toLowerCase().includes(query) && places.some(([file]) => file === page);
    return Object.entries(Search._index.alltitles).some(hasIt) ? score + IN_HEADING : score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
