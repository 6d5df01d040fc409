"use strict";
/** The landing page: a photograph, and the base that each of its positions resembles most after some EM iterations. */
(function (emalab) {
  const { head, row, unpack, eStep, iterate, countDistinct } = emalab.core;
  const { PALETTE, button, panel, panels, player, positionMap, slider, status, toolbar } = emalab.controls;
  const START = { bases: 6, iterations: 3 };
  const MOST_ITERATIONS = 8;

  /** The base that is most responsible for each position. */
  function winners(z) {
    return Array.from({ length: z.rows }, (_, n) => row(z, n).reduce((best, w, k, all) => (w > all[best] ? k : best), 0));
  }

  /**
   * @param {object} data
   * @param {[number, number]} data.size rows and columns
   * @param {string} data.photograph as a data URI
   * @param {object} data.x features (n, c), packed
   * @param {object} data.bases where EM starts (k, c), packed
   */
  emalab.figures.landing = function (data) {
    const [rows, columns] = data.size;
    const x = unpack(data.x);
    const starts = unpack(data.bases);
    const span = (from, to) => Array.from({ length: to - from + 1 }, (_, i) => from + i);
    const photo = positionMap(rows, columns, "A photograph of an astronaut", data.photograph);
    const map = positionMap(rows, columns, "For each position, the color of the base that it resembles most");
    const line = status();
    const count = slider("bases K", span(2, starts.rows), Math.min(START.bases, starts.rows), () => (run.stop(), show()));
    const time = slider("iterations T", span(0, MOST_ITERATIONS), START.iterations, () => (run.stop(), show()));
    const rewind = () => ((time.value = 0), show());
    const run = player("Run", step, 500, { ended: () => time.value === MOST_ITERATIONS, rewind });

    /** One iteration more; whether there is another one. */
    function step() {
      time.value += 1;
      show();
      return time.value < MOST_ITERATIONS;
    }

    function reset() {
      run.stop();
      for (const control of [count, time]) control.reset();
      show();
    }

    function show() {
      let bases = head(starts, count.value);
      let before;
      for (let t = 0; t < time.value; t++) [before, bases] = [bases, iterate(x, bases)];
      const z = eStep(x, bases);
      const [now, then] = [winners(z), before && winners(eStep(x, before))];
      // A color is paler where the base is not alone.
      map.paint((n) => PALETTE[now[n]].map((value) => 255 + (0.4 + 0.6 * row(z, n)[now[n]]) * (value - 255)));
      const moved = then && now.filter((winner, n) => winner !== then[n]).length / now.length;
      const different = countDistinct(bases);
      line.textContent = then
        ? `After ${time.value} iteration${time.value === 1 ? "" : "s"}: ${count.value} bases, ${different} distinct. ` +
          `The last one moved ${Math.round(100 * moved)} % of the positions to another base.`
        : `At the start: ${count.value} random bases, and no position resembles one much more than another.`;
    }

    show();
    return [
      panels(panel("photograph", photo.node).node, panel("most alike", map.node).node),
      toolbar(time.node, count.node, run.node, button("Reset", reset)),
      line,
    ];
  };
})(globalThis.emalab);
