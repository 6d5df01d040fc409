"use strict";
/** Measured differences of settings from the default, with their intervals: one hyperparameter and data set at a time. */
(function (emalab) {
  const { button, choice, disc, drawing, panel, prompt, segment, status, toolbar } = emalab.controls;

  const signed = (value) => {
    const text = Math.abs(value).toFixed(1);
    return text === "0.0" ? text : `${value < 0 ? "−" : "+"}${text}`;
  };

  /**
   * @param {object} data
   * @param {Record<string, {text: string, cells: Record<string, {value: string, mean: number, low: number, high: number, default?: boolean}[]>}>} data.settings
   *   name → for each data set the differences from the default, which is among them, in points of mIoU
   * @param {Record<string, string>} data.sets name of a data set → what readers call it
   */
  emalab.figures.settings = function (data) {
    let index = 0;
    const line = status();
    const texts = Object.fromEntries(Object.entries(data.settings).map(([name, { text }]) => [name, text]));
    const setting = choice("hyperparameter", texts, restart);
    const set = choice("data", data.sets, restart);
    const cells = () => data.settings[setting.value].cells[set.value];
    const plot = drawing("Differences from the default with 95 % intervals", 1.9, draw);

    function restart() {
      index = 0;
      show();
    }

    function move(step) {
      index = Math.min(Math.max(index + step, 0), cells().length - 1);
      show();
    }

    function draw(context, width, height, colors) {
      const all = cells();
      const reach = 1.15 * Math.max(...all.flatMap(({ low, high }) => [Math.abs(low), Math.abs(high)]), 1);
      const [left, right, top, bottom] = [44, width - 10, 22, height - 36];
      const toX = (i) => left + ((right - left) * (i + 0.5)) / all.length;
      const toY = (value) => (top + bottom) / 2 - ((bottom - top) / 2 / reach) * value;
      context.textBaseline = "middle";
      context.fillStyle = colors.muted;
      context.textAlign = "left";
      context.fillText("mIoU − default / points", 4, 8);
      const tick = reach > 4 ? 2 : reach > 2 ? 1 : 0.5;
      for (let value = -Math.floor(reach / tick) * tick; value <= reach; value += tick) {
        context.strokeStyle = Math.abs(value) < 1e-9 ? colors.text : colors.line;
        context.lineWidth = 1;
        segment(context, left, toY(value), right, toY(value));
        context.textAlign = "right";
        context.fillText(signed(value), left - 6, toY(value));
      }
      all.forEach(({ value, mean, low, high }, i) => {
        const clear = low * high > 0;
        context.fillStyle = context.strokeStyle = clear ? colors.accent : colors.muted;
        context.lineWidth = i === index ? 4 : 2;
        segment(context, toX(i), toY(low), toX(i), toY(high));
        disc(context, toX(i), toY(mean), i === index ? 7 : 5);
        context.textAlign = "center";
        context.fillStyle = i === index ? colors.text : colors.muted;
        context.fillText(value, toX(i), bottom + 12);
      });
      context.fillText(texts[setting.value], (left + right) / 2, bottom + 28);
    }

    function show() {
      const { value, mean, low, high } = cells()[index];
      const name = texts[setting.value].split(",")[0];
      const base = cells().find((cell) => cell.default).value;
      const numbers = `${signed(mean)} points, 95 % interval [${signed(low)}, ${signed(high)}]`;
      const different = low * high > 0 ? `different from ${base}` : `no detectable difference from ${base}`;
      const verdict = value === base ? "this is the default, which all others are compared with" : `${numbers}: ${different}`;
      line.textContent = `${name} = ${value} on ${data.sets[set.value]}: ${verdict}.`;
      plot.redraw();
    }

    function pick(event) {
      const box = plot.node.getBoundingClientRect();
      const share = (event.clientX - box.left - 44) / (box.width - 54);
      index = Math.min(Math.max(Math.floor(share * cells().length), 0), cells().length - 1);
      show();
    }

    function reset() {
      for (const control of [setting, set]) control.reset();
      restart();
    }

    plot.node.addEventListener("pointerdown", pick);
    plot.node.classList.add("emalab-pick");
    show();
    return [
      prompt("which setting differs most from the default, and does its interval exclude zero?"),
      toolbar(setting.node, set.node, button("Lower", () => move(-1)), button("Higher", () => move(1)), button("Reset", reset)),
      line,
      panel("blue: the interval excludes zero", plot.node).node,
    ];
  };
})(globalThis.emalab);
