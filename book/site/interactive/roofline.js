"use strict";
/** What limits attention on a GPU: its operations for each byte that it moves, under the roof of bandwidth and arithmetic. */
(function (emalab) {
  const { button, disc, drawing, element, panel, prompt, segment, slider, status, toolbar } = emalab.controls;
  const NAMES = { em: "EM attention", nonlocal: "Non-local attention" };
  const X = [1, 1e5]; // operations per byte
  const Y = [1e12, 2e15]; // operations per second

  /** `emalab.bench.Size.cost`: bytes and operations of one forward pass; non-local attention has c / 2 inner channels. */
  function cost({ b, n, k, c, iterations, itemsize }) {
    return {
      em: { bytes: (iterations + 1) * b * n * c * itemsize, operations: 2 * (2 * iterations + 1) * b * n * k * c },
      nonlocal: { bytes: 2 * b * n * c * itemsize, operations: 2 * b * n * n * c },
    };
  }

  const three = (value) => String(Number(value.toPrecision(3)));

  /**
   * @param {object} data
   * @param {{b: number, c: number, itemsize: number}} data.size what stays the same
   * @param {number} data.bandwidth bytes per second
   * @param {number} data.arithmetic operations per second
   * @param {Record<"side" | "k" | "iterations", {values: number[], start: number}>} data.sliders N = side², K, T
   * @param {{method: "em" | "nonlocal", side: number, k: number, iterations: number, seconds: number}[]} data.measured
   * @param {Record<"em" | "nonlocal", string>} data.colors
   */
  emalab.figures.roofline = function (data) {
    const { bandwidth, arithmetic, sliders } = data;
    const line = status();
    const side = slider("positions N", sliders.side.values, sliders.side.start, show, (value) => `${value}²`);
    const bases = slider("bases K", sliders.k.values, sliders.k.start, show);
    const rounds = slider("iterations T", sliders.iterations.values, sliders.iterations.start, show);
    const roof = drawing("Operations per second against operations per byte, under the roof", 1.7, draw);

    function points() {
      const found = cost({ ...data.size, n: side.value ** 2, k: bases.value, iterations: rounds.value });
      return Object.entries(found).map(([method, { bytes, operations }]) => {
        const seconds = Math.max(bytes / bandwidth, operations / arithmetic);
        const measured = data.measured.find(
          (each) =>
            each.method === method && each.side === side.value &&
            (method === "nonlocal" || (each.k === bases.value && each.iterations === rounds.value)),
        )?.seconds;
        return { method, intensity: operations / bytes, operations, seconds, measured, bound: bytes / bandwidth > operations / arithmetic };
      });
    }

    function draw(context, width, height, colors) {
      const [left, right, top, bottom] = [50, width - 12, 20, height - 38];
      const toX = (value) => left + ((right - left) * Math.log(value / X[0])) / Math.log(X[1] / X[0]);
      const toY = (value) => bottom - ((bottom - top) * Math.log(value / Y[0])) / Math.log(Y[1] / Y[0]);
      context.lineWidth = 1;
      context.strokeStyle = colors.line;
      context.fillStyle = colors.muted;
      context.textBaseline = "middle";
      for (const power of [12, 13, 14, 15]) {
        context.textAlign = "right";
        context.fillText(String(10 ** (power - 12)), left - 6, toY(10 ** power));
        segment(context, left, toY(10 ** power), right, toY(10 ** power));
      }
      for (const power of [0, 1, 2, 3, 4]) {
        context.textAlign = "center";
        context.fillText(String(10 ** power), toX(10 ** power), bottom + 12);
      }
      context.fillText("operations per byte", (left + right) / 2, bottom + 28);
      context.textAlign = "left";
      context.fillText("10¹² operations per second", 4, 8);

      const ridge = arithmetic / bandwidth;
      context.strokeStyle = context.fillStyle = colors.text;
      context.lineWidth = 2;
      segment(context, toX(X[0]), toY(bandwidth * X[0]), toX(ridge), toY(arithmetic));
      segment(context, toX(ridge), toY(arithmetic), right, toY(arithmetic));
      context.fillText("arithmetic", toX(8e3), toY(arithmetic) + 14);
      context.textAlign = "right";
      context.fillText("bandwidth", toX(8) - 10, toY(bandwidth * 8) - 6);
      for (const { method, intensity, operations, seconds, measured } of points()) {
        context.fillStyle = context.strokeStyle = data.colors[method];
        disc(context, toX(intensity), toY(operations / seconds), 6);
        if (!measured) continue;
        context.lineWidth = 2;
        segment(context, toX(intensity), toY(operations / seconds), toX(intensity), toY(operations / measured));
        context.fillStyle = colors.ground;
        disc(context, toX(intensity), toY(operations / measured), 6);
        context.stroke();
      }
    }

    function show() {
      const texts = points().map(({ method, seconds, measured, bound }) => {
        const time = `at least ${three(1e3 * seconds)} ms, limited by ${bound ? "bandwidth" : "arithmetic"}`;
        return `${NAMES[method]} takes ${time}${measured ? `; measured ${three(1e3 * measured)} ms` : ""}.`;
      });
      line.textContent = texts.join(" ");
      roof.redraw();
    }

    function key() {
      const items = Object.entries(NAMES).map(([method, text]) => {
        const swatch = element("span", { class: "emalab-swatch" });
        swatch.style.cssText = `background: ${data.colors[method]}; border-radius: 50%; display: inline-block; margin-right: 0.4rem`;
        return element("span", {}, swatch, text);
      });
      return element("p", { class: "emalab-key" }, ...items, "filled: the best possible; ring: measured");
    }

    const reset = () => ([side, bases, rounds].forEach((control) => control.reset()), show());
    show();
    return [
      prompt("how many bases does EM attention need until arithmetic limits it, and does T matter for that?"),
      toolbar(side.node, bases.node, rounds.node, button("Reset", reset)),
      line,
      panel("what one H200 can reach", roof.node).node,
      key(),
    ];
  };
})(globalThis.emalab);
