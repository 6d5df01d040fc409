"use strict";
/** A stored base that follows what batches of images say: how short it becomes, and how late it is. */
(function (emalab) {
  const { matrix, norm, movingAverage } = emalab.core;
  const { PALETTE, arrow, button, chart, choice, css, disc, drawing } = emalab.controls;
  const { element, panel, panels, player, prompt, slider, status, toolbar } = emalab.controls;
  const DEGREE = Math.PI / 180;

  const RULES = { none: "as it comes", batch_mean: "mean at length one", after_mixing: "result at length one" };
  const DASHES = { none: [], batch_mean: [6, 4], after_mixing: [2, 3] };
  const COLORS = Object.fromEntries(Object.keys(RULES).map((rule, k) => [rule, css(PALETTE[k])]));

  /** Angle from one vector of the plane to another, in degrees, in (-180, 180]. */
  function turn(from, to) {
    return Math.atan2(from[0] * to[1] - from[1] * to[0], from[0] * to[0] + from[1] * to[1]) / DEGREE;
  }

  /**
   * @param {object} data
   * @param {number[][]} data.noise standard normal, (batches, images)
   * @param {number} data.rest from which batch on the right direction rests
   * @param {Record<"momentum" | "images" | "scatter" | "drift", {values: number[], start: number}>} data.sliders
   *   α; images per batch; degrees by which images differ; degrees per batch by which the right direction turns
   */
  emalab.figures["moving-average"] = function (data) {
    const last = data.noise.length;
    const { sliders } = data;
    const START = Math.floor(last / 4); // so that there is a way to be seen
    let t, histories;

    const degrees = (value) => `${value}°`;
    const momentum = slider("momentum α", sliders.momentum.values, sliders.momentum.start, compute);
    const images = slider("images per batch", sliders.images.values, sliders.images.start, compute);
    const scatter = slider("images differ by", sliders.scatter.values, sliders.scatter.start, compute, degrees);
    const drift = slider("turn per batch", sliders.drift.values, sliders.drift.start, compute, degrees);
    const rule = choice("length", RULES, show);
    const time = slider("batch", Array.from({ length: last + 1 }, (_, i) => i), START, seek);
    const run = player("Run", step, 60, { ended: () => t === last, rewind: () => seek(0) });
    const line = status();

    /** The direction that the images of batch t scatter around, as an angle. */
    const right = (batch) => drift.value * DEGREE * Math.min(batch, data.rest);
    const unit = (angle) => [Math.cos(angle), Math.sin(angle)];
    const angles = (batch) => data.noise[batch - 1].slice(0, images.value).map((noise) => right(batch) + scatter.value * DEGREE * noise);

    /** The stored base at the start and after each batch, (batches + 1) of (1, 2). */
    function history(renormalize) {
      const stored = [matrix([unit(0)])];
      for (let batch = 1; batch <= last; batch++) {
        const reached = angles(batch).map((angle) => matrix([unit(angle)]));
        stored.push(movingAverage(stored[batch - 1], reached, momentum.value, renormalize));
      }
      return stored.map(({ values }) => values);
    }

    function compute() {
      histories = Object.fromEntries(Object.keys(RULES).map((name) => [name, history(name)]));
      show();
    }

    function seek(value) {
      t = time.value = value;
      show();
    }

    function step() {
      if (t < last) seek(t + 1);
      return t < last;
    }

    function reset() {
      run.stop();
      for (const control of [momentum, images, scatter, drift, rule, time]) control.reset();
      t = time.value;
      compute();
    }

    /** Curves of all rules, the chosen one heavy and on top. */
    function curves(measure) {
      const names = Object.keys(RULES).sort((a, b) => (a === rule.value) - (b === rule.value));
      return names.map((name) => ({
        values: histories[name].map(measure),
        color: COLORS[name],
        dash: DASHES[name],
        width: name === rule.value ? 3 : 1.3,
      }));
    }

    const behind = (base, batch) => turn(base, unit(right(batch)));
    const lengths = chart("Length of the stored base after each batch", () => ({
      ...{ curves: curves(norm), x: "batches", y: "length", xMax: last, range: [0, 1.05], cursor: t },
    }));
    const lags = chart("How many degrees the stored base is behind", () => ({
      ...{ curves: curves(behind), x: "batches", y: "behind / degrees", xMax: last, cursor: t },
    }));
    const plane = drawing("The stored base, its way, and the bases of the images of one batch", 1, draw);

    function draw(context, width, height, colors) {
      const toX = (value) => width / 2 + (value * width) / 2.4;
      const toY = (value) => height / 2 - (value * width) / 2.4;
      const ray = ([first, second]) => arrow(context, toX(0), toY(0), toX(first), toY(second));
      context.strokeStyle = colors.line;
      context.beginPath();
      context.arc(toX(0), toY(0), width / 2.4, 0, 2 * Math.PI);
      context.stroke();
      if (t > 0) {
        const reached = angles(t).map(unit);
        context.strokeStyle = context.fillStyle = colors.muted;
        context.lineWidth = 0.7;
        reached.forEach(ray);
        context.lineWidth = 2;
        ray([0, 1].map((i) => reached.reduce((sum, base) => sum + base[i] / reached.length, 0)));
      }
      context.fillStyle = COLORS[rule.value];
      histories[rule.value].slice(Math.max(0, t - 40), t).forEach(([first, second]) => disc(context, toX(first), toY(second), 2));
      context.strokeStyle = COLORS[rule.value];
      context.lineWidth = 3.5;
      ray(histories[rule.value][t]);
    }

    function show() {
      const base = histories[rule.value][t];
      const length = norm(base).toFixed(3);
      line.textContent = `After ${t} ${t === 1 ? "batch" : "batches"}: length ${length}, ${behind(base, t).toFixed(1)}° behind.`;
      for (const each of [plane, lengths, lags]) each.redraw();
    }

    /** What the curves stand for. */
    function key() {
      const items = Object.entries(RULES).map(([name, text]) => {
        const swatch = element("span", { class: "emalab-line" });
        swatch.style.borderTop = `3px ${name === "none" ? "solid" : name === "batch_mean" ? "dashed" : "dotted"} ${COLORS[name]}`;
        return element("span", {}, swatch, text);
      });
      return element("p", { class: "emalab-key" }, ...items);
    }

    t = START;
    compute();
    return [
      prompt("does a longer memory, a larger α, make the stored base shorter, or later, or both?"),
      toolbar(button("Step", () => (run.stop(), step())), run.node, button("Reset", reset), time.node),
      toolbar(momentum.node, images.node, scatter.node, drift.node, rule.node),
      line,
      panels(
        panel("the stored base; in gray, the batch and its mean", plane.node).node,
        element("div", {}, panel("how long it is", lengths.node).node, panel("how late it is", lags.node).node),
      ),
      key(),
    ];
  };
})(globalThis.emalab);
