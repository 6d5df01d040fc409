"use strict";
/** Which iterations of EM a gradient passes on its way back, for the three settings of `grad`. */
(function (emalab) {
  const { arrow, button, choice, drawing, panel, prompt, segment, slider, status, toolbar } = emalab.controls;
  const GRADS = { stop: 'grad="stop", the public code', last: 'grad="last"', unroll: 'grad="unroll"' };

  /** How many of the iterations a gradient passes. */
  const passed = (grad, iterations) => ({ stop: 0, last: 1, unroll: iterations })[grad];

  /**
   * @param {object} data
   * @param {number} data.most iterations
   * @param {string} data.color of the gradient
   */
  emalab.figures["gradient-paths"] = function (data) {
    const line = status();
    const counts = Array.from({ length: data.most }, (_, i) => i + 1);
    const grad = choice("gradient", GRADS, show);
    const time = slider("iterations T", counts, 3, show);
    const plot = drawing("Features X, iterations of EM, and the result, with the way of the gradient", 1.7, draw);

    function draw(context, width, height, colors) {
      const iterations = time.value;
      const back = passed(grad.value, iterations);
      const step = (width - 20) / (iterations + 1);
      const size = Math.min(0.55 * step, 64);
      const [top, features] = [0.34 * height, 0.82 * height];
      const center = (t) => 10 + step * (t - 0.5); // of iteration t, or of the result at T + 1
      context.textAlign = "center";
      context.textBaseline = "middle";

      function box(x, y, w, h, text) {
        context.strokeStyle = context.fillStyle = colors.text;
        context.lineWidth = 1.5;
        context.strokeRect(x - w / 2, y - h / 2, w, h);
        context.fillText(text, x, y);
      }

      function way(fromX, fromY, toX, toY, color, thickness) {
        context.strokeStyle = context.fillStyle = color;
        context.lineWidth = thickness;
        arrow(context, fromX, fromY, toX, toY);
      }

      box((center(1) + center(iterations)) / 2, features, step * (iterations - 1) + size, 30, "X, features");
      box(center(iterations + 1), top, size, 34, "X̃");
      for (let t = 1; t <= iterations; t++) {
        const [x, next, passes] = [center(t), center(t + 1), t > iterations - back];
        box(x, top, size, 34, step > 70 ? `EM ${t}` : String(t));
        way(x - 7, features - 16, x - 7, top + 19, colors.muted, 1.5);
        way(x + size / 2 + 2, top - 7, next - size / 2 - 2, top - 7, colors.muted, 1.5);
        if (passes) {
          way(next - size / 2 - 2, top + 7, x + size / 2 + 2, top + 7, data.color, 3);
          way(x + 7, top + 19, x + 7, features - 16, data.color, 3);
        } else if (t === iterations - back) {
          const end = next - size / 2 - 8;
          context.strokeStyle = data.color;
          context.lineWidth = 3;
          segment(context, end + 6, top + 7, end, top + 7);
          segment(context, end, top, end, top + 14);
        }
      }
    }

    function show() {
      const iterations = time.value;
      const back = passed(grad.value, iterations);
      const of = `${back} of ${iterations} iteration${iterations === 1 ? "" : "s"}`;
      line.textContent = back
        ? `The gradient passes ${of} and reaches X from each; autograd must store what ${back === 1 ? "it" : "they"} computed.`
        : `The gradient passes none of ${iterations} iteration${iterations === 1 ? "" : "s"}: X̃ counts as a constant, and autograd stores nothing.`;
      plot.redraw();
    }

    const reset = () => ([grad, time].forEach((control) => control.reset()), show());
    show();
    return [
      prompt('does the memory of grad="last" grow with T, and when does it equal grad="unroll"?'),
      toolbar(grad.node, time.node, button("Reset", reset)),
      line,
      panel("gray: forward; colored: backward, up to the bar", plot.node).node,
    ];
  };
})(globalThis.emalab);
