"use strict";
/** EM on the features of a photograph, one iteration at a time. */
(function (emalab) {
  const { head, unpack, countDistinct, eStep, iterate, logLikelihood } = emalab.core;
  const { PALETTE, css, element, magma } = emalab.controls;
  const { button, chart, choice, panel, panels, player, positionMap, prompt, slider, status, threePanels, toolbar } = emalab.controls;
  const MOST_ITERATIONS = 40;

  /** Share of the positions that each base is responsible for, (n, k) → (k,). */
  function shares(z) {
    const result = new Float64Array(z.columns);
    z.values.forEach((value, i) => (result[i % z.columns] += value / z.rows));
    return result;
  }

  /** Index of the largest value. @param {Float64Array} values */
  function largest(values) {
    return values.reduce((best, value, k) => (value > values[best] ? k : best), 0);
  }

  /**
   * @param {object} data
   * @param {[number, number]} data.size rows and columns
   * @param {string} data.photograph as a data URI
   * @param {object} data.x features (n, c), packed
   * @param {Record<string, {text: string, bases: object}>} data.starts bases (k, c) to start from, packed
   * @param {number[]} data.scales values of λ
   */
  emalab.figures["step-em"] = function (data) {
    const [rows, columns] = data.size;
    const x = unpack(data.x);
    const starts = Object.fromEntries(Object.entries(data.starts).map(([name, { bases }]) => [name, unpack(bases)]));
    const texts = Object.fromEntries(Object.entries(data.starts).map(([name, { text }]) => [name, text]));
    const most = Math.min(...Object.values(starts).map((bases) => bases.rows));
    const counts = Array.from({ length: most - 1 }, (_, i) => i + 2);
    let bases, z, objective, chosen;

    const where = positionMap(rows, columns, "For each position, the color of the base that is most responsible for it");
    const one = positionMap(rows, columns, "Responsibility of the chosen base for each position");
    const photo = positionMap(rows, columns, "The photograph", data.photograph);
    const onePanel = panel("", one.node);
    const legend = element("fieldset", { class: "emalab-bases" });
    const line = status();
    const climb = chart("The objective L after each iteration", () => ({
      curves: [{ values: objective }],
      x: "iteration",
      y: "objective L / nats",
      xMax: Math.max(10, objective.length - 1),
    }));
    const number = slider("bases K", counts, Math.min(8, most), restart);
    const scale = slider("concentration λ", data.scales, 1, restart);
    const from = choice("start from", texts, restart);
    const run = player("Run", step, 350, { ended: () => !climbs(), rewind: restart });

    /** Whether another iteration would still climb. */
    function climbs() {
      const [before, after] = objective.slice(-2);
      return objective.length <= MOST_ITERATIONS && !(after - before <= 1e-4 * x.rows);
    }

    /** One iteration; whether another one would still climb. */
    function step() {
      if (objective.length > MOST_ITERATIONS) return false;
      bases = iterate(x, bases, scale.value);
      objective.push(logLikelihood(x, bases, scale.value));
      show();
      return climbs();
    }

    function reset() {
      for (const control of [number, scale, from]) control.reset();
      restart();
    }

    function restart() {
      run.stop();
      bases = head(starts[from.value], number.value);
      objective = [logLikelihood(x, bases, scale.value)];
      chosen = largest(shares(eStep(x, bases, scale.value)));
      show();
    }

    function show() {
      z = eStep(x, bases, scale.value);
      // A color is paler where the base is not alone.
      where.paint((n) => {
        const weights = z.values.subarray(n * z.columns, (n + 1) * z.columns);
        const color = PALETTE[largest(weights)];
        const certainty = 0.4 + 0.6 * Math.max(...weights);
        return color.map((value) => 255 + certainty * (value - 255));
      });
      showLegend(shares(z));
      showOne();
      climb.redraw();
      const t = objective.length - 1;
      const parts = shares(z);
      const first = largest(parts);
      line.textContent =
        `${t} ${t === 1 ? "iteration" : "iterations"}: L = ${objective[t].toFixed(1)} nats; ` +
        `${bases.rows} bases, ${countDistinct(bases)} distinct; ` +
        `base ${first + 1} has the most of the image, ${Math.round(100 * parts[first])} %.`;
    }

    function showOne() {
      one.paint((n) => magma(z.values[n * z.columns + chosen]));
      onePanel.title.textContent = `responsibility of ${chosen + 1}`;
    }

    /** Radio buttons, one for each base; made anew only if their number changes, so that the focus stays. */
    function showLegend(values) {
      if (legend.querySelectorAll("input").length !== values.length) {
        const options = Array.from(values, (_, k) => {
          const input = element("input", { type: "radio", name: "emalab-base", value: k });
          input.addEventListener("change", () => ((chosen = k), showOne()));
          const swatch = element("span", { class: "emalab-swatch" });
          swatch.style.background = css(PALETTE[k]);
          return element("label", {}, input, swatch, element("span", { class: "emalab-share" }));
        });
        legend.replaceChildren(element("legend", {}, "base, and its share of the image"), ...options);
      }
      legend.querySelectorAll("input")[chosen].checked = true;
      legend.querySelectorAll(".emalab-share").forEach((node, k) => {
        node.textContent = `${k + 1}: ${Math.round(100 * values[k])} %`;
      });
    }

    reset();
    return [
      prompt("how many of the bases remain distinct after ten iterations, and does a larger λ leave more of them?"),
      toolbar(button("Step", () => (run.stop(), step())), run.node, button("Reset", reset), number.node, scale.node, from.node),
      line,
      threePanels(
        panel("photograph", photo.node).node,
        panel("most responsible", where.node).node,
        onePanel.node,
      ),
      panels(panel("how EM climbs", climb.node).node, legend),
    ];
  };
})(globalThis.emalab);
