"use strict";
/** Where a position of a photograph looks: under non-local attention, and under EM attention. */
(function (emalab) {
  const { head, unpack, emAttention, emRow, nonLocalRow, perplexity } = emalab.core;
  const { magma, panel, panels, positionMap, prompt, slider, status, threePanels, toolbar } = emalab.controls;

  /** What the arrow keys, Home and End do to a row and a column. */
  const MOVES = {
    ArrowUp: ([i, j]) => [i - 1, j],
    ArrowDown: ([i, j]) => [i + 1, j],
    ArrowLeft: ([i, j]) => [i, j - 1],
    ArrowRight: ([i, j]) => [i, j + 1],
    Home: ([i]) => [i, 0],
    End: ([i]) => [i, Infinity],
  };

  /**
   * @param {object} data
   * @param {[number, number]} data.size rows and columns
   * @param {string} data.photograph as a data URI
   * @param {object} data.x features (n, c), packed
   * @param {[number, number]} data.position the row and the column to begin with
   * @param {{values: number[], start: number}} data.scale values of s
   * @param {{bases: object, iterations: number, scale: {values: number[], start: number}, start: number}} [data.em]
   *   without it, there is non-local attention alone
   */
  emalab.figures["pixel-attention"] = function (data) {
    const [rows, columns] = data.size;
    const x = unpack(data.x);
    let chosen = data.position[0] * columns + data.position[1];

    const photo = positionMap(rows, columns, "", data.photograph);
    const line = status();
    const scale = slider("non-local: scale s", data.scale.values, data.scale.start, show);
    const views = [view("non-local", "Where the position looks under non-local attention", () => nonLocalRow(x, chosen, scale.value))];
    const sliders = [scale.node];
    if (data.em) addEm(data.em);

    function addEm({ bases, iterations, scale: scales, start }) {
      const directions = unpack(bases);
      const counts = Array.from({ length: directions.rows }, (_, i) => i + 1);
      const number = slider("EM: bases K", counts, start, fit);
      const concentration = slider("EM: concentration λ", scales.values, scales.start, fit);
      let z;
      function fit() {
        const options = { iterations, scale: concentration.value };
        z = emAttention(x, head(directions, number.value), options).responsibilities;
        show();
      }
      views.push(view("EM", "Where the position looks under EM attention", () => emRow(z, chosen)));
      sliders.push(number.node, concentration.node);
      fit();
    }

    /** A map of one kind of attention; `weights()` is its row of the chosen position. */
    function view(name, label, weights) {
      const map = positionMap(rows, columns, label);
      return { name, map, weights, ...panel(name, map.node) };
    }

    function show() {
      photo.mark(chosen);
      const spoken = views.map(({ name, map, weights, title }) => {
        const values = weights();
        const most = values.reduce((a, b) => Math.max(a, b));
        map.paint((n) => magma(Math.sqrt(values[n] / most))); // or the position itself would outshine all others
        map.mark(chosen);
        title.textContent = `${name}: weight × N up to ${(most * x.rows).toPrecision(3)}`;
        return `${name} attention looks at ${perplexity(values).toFixed(0)}`;
      });
      const place = `Row ${Math.floor(chosen / columns) + 1}, column ${(chosen % columns) + 1}`;
      line.textContent = `${place}: ${spoken.join(", ")} of ${x.rows} positions (effective number).`;
    }

    function move(event) {
      const target = MOVES[event.key]?.([Math.floor(chosen / columns), chosen % columns]);
      if (!target) return;
      event.preventDefault(); // the page does not scroll
      const [i, j] = [Math.min(Math.max(target[0], 0), rows - 1), Math.min(Math.max(target[1], 0), columns - 1)];
      chosen = i * columns + j;
      show();
    }

    function follow(map, event) {
      if (event.type === "pointermove" && !event.buttons) return;
      chosen = map.at(event);
      show();
    }

    for (const map of [photo, ...views.map((each) => each.map)]) {
      map.node.classList.add("emalab-pick");
      for (const type of ["pointerdown", "pointermove"]) map.node.addEventListener(type, (event) => follow(map, event));
    }
    const help = "The photograph. Arrow keys move the position whose attention is shown; Home and End go to the edges.";
    const attributes = { tabindex: "0", role: "application", "aria-roledescription": "position picker", "aria-label": help };
    for (const [name, value] of Object.entries(attributes)) photo.node.setAttribute(name, value);
    photo.node.addEventListener("keydown", move);

    show();
    const first = panel("click, drag, or use arrow keys", photo.node);
    const arrange = data.em ? threePanels : panels;
    const task = data.em
      ? "at which scale s does non-local attention look at as few positions as EM attention with two bases?"
      : "how many positions does this one look at when the scale s is zero?";
    return [prompt(task), toolbar(...sliders), line, arrange(first.node, ...views.map((each) => each.node))];
  };
})(globalThis.emalab);
