"use strict";
/** What the figures share: elements, controls, maps, drawings that follow the page's size and theme. */
(function (emalab) {
  /** Colors of bases, distinct on a light and on a dark page. */
  const PALETTE = [
    ...["#4477dd", "#ee7733", "#22a884", "#cc3377", "#ddaa22", "#7755cc", "#55bbee", "#997755"],
    ...["#88bb33", "#ee99bb", "#117788", "#bb4422", "#aa99ee", "#667788", "#ccc477", "#993388"],
  ].map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));

  // Nine samples of matplotlib's "magma".
  const MAGMA = ["000004", "1c1044", "4f127b", "812581", "b5367a", "e55964", "fb8761", "fec287", "fcfdbf"].map((hex) =>
    [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)),
  );

  /** @param {number} share in [0, 1] @returns {number[]} red, green, blue */
  function magma(share) {
    const place = Math.min(Math.max(share, 0), 1) * (MAGMA.length - 1);
    const low = Math.min(Math.floor(place), MAGMA.length - 2);
    return MAGMA[low].map((value, i) => value + (place - low) * (MAGMA[low + 1][i] - value));
  }

  /** The mean of the palette's colors, weighted. @param {ArrayLike<number>} weights @returns {number[]} */
  function blend(weights) {
    return [0, 1, 2].map((i) => Array.from(weights).reduce((sum, w, k) => sum + w * PALETTE[k][i], 0));
  }

  /** @param {number[]} color @returns {string} */
  function css(color) {
    return `rgb(${color.map(Math.round).join(" ")})`;
  }

  /** @param {string} tag @param {object} attributes @param {...(Node | string)} children @returns {HTMLElement} */
  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  /** @returns {HTMLButtonElement} */
  function button(text, onClick) {
    const node = element("button", { type: "button" }, text);
    node.addEventListener("click", onClick);
    return node;
  }

  /**
   * A slider over a list of values.
   *
   * @param {string} text @param {number[]} values @param {number} start one of them
   * @param {(value: number) => void} onInput @param {(value: number) => string} format
   * @returns {{node: HTMLElement, value: number, reset: () => void}}
   */
  function slider(text, values, start, onInput, format = String) {
    const input = element("input", { type: "range", min: 0, max: values.length - 1, step: 1 });
    const output = element("output");
    const control = { node: element("label", {}, element("span", {}, text), input, output) };
    const get = () => values[Number(input.value)];
    const set = (value) => {
      input.value = String(values.indexOf(value));
      show();
    };
    const show = () => {
      output.textContent = format(get());
      input.setAttribute("aria-valuetext", format(get()));
    };
    Object.defineProperty(control, "value", { get, set });
    control.reset = () => set(start);
    input.addEventListener("input", () => (show(), onInput(get())));
    set(start);
    return control;
  }

  /**
   * A list to choose from, with the first option chosen.
   *
   * @param {Record<string, string>} options value → text
   * @returns {{node: HTMLElement, value: string, reset: () => void}}
   */
  function choice(text, options, onInput) {
    const items = Object.entries(options).map(([value, label]) => element("option", { value }, label));
    const select = element("select", {}, ...items);
    select.addEventListener("change", () => onInput(select.value));
    const node = element("label", {}, element("span", {}, text), select);
    return { node, get value() { return select.value; }, reset: () => (select.selectedIndex = 0) };
  }

  /** What to try. */
  function prompt(text) {
    return element("p", { class: "emalab-prompt" }, element("strong", {}, "Predict, then drag: "), text);
  }

  /** A line that screen readers announce when it changes. */
  function status() {
    return element("p", { role: "status", class: "emalab-status" });
  }

  /** The controls of a figure in a row that wraps. @param {...Node} nodes */
  function toolbar(...nodes) {
    return element("div", { class: "emalab-controls" }, ...nodes);
  }

  /** Panels side by side, as many as fit. @param {...Node} nodes */
  function panels(...nodes) {
    return element("div", { class: "emalab-panels" }, ...nodes);
  }

  /** Three panels in a row; on a phone the first one above the others. @param {...Node} nodes */
  function threePanels(...nodes) {
    return element("div", { class: "emalab-panels emalab-three" }, ...nodes);
  }

  /** A titled panel around a drawing. @returns {{node: HTMLElement, title: HTMLElement}} */
  function panel(text, drawing) {
    const title = element("div", { class: "emalab-title" }, text);
    return { node: element("div", { class: "emalab-panel" }, title, drawing), title };
  }

  /**
   * A picture with one cell for each position. Screen readers get `label`; what changes is said by a status line.
   *
   * @param {number} rows @param {number} columns @param {string} label @param {string} [photograph] behind the cells
   */
  function positionMap(rows, columns, label, photograph) {
    const canvas = element("canvas", { width: columns, height: rows, "aria-hidden": "true" });
    const marker = element("span", { class: "emalab-marker", hidden: "" });
    const node = element("div", { class: "emalab-map", role: "img", "aria-label": label }, canvas, marker);
    node.style.aspectRatio = `${columns} / ${rows}`;
    if (photograph) node.style.backgroundImage = `url("${photograph}")`;

    /** @param {(n: number) => number[]} color red, green, blue of position n */
    function paint(color) {
      const image = new ImageData(columns, rows);
      for (let n = 0; n < rows * columns; n++) image.data.set([...color(n), 255], 4 * n);
      canvas.getContext("2d").putImageData(image, 0, 0);
    }

    function mark(n) {
      marker.hidden = false;
      marker.style.left = `${(100 * ((n % columns) + 0.5)) / columns}%`;
      marker.style.top = `${(100 * (Math.floor(n / columns) + 0.5)) / rows}%`;
    }

    /** Position under a pointer. @param {PointerEvent} event */
    function at(event) {
      const box = node.getBoundingClientRect();
      const cell = (share, count) => Math.min(Math.max(Math.floor(share * count), 0), count - 1);
      const i = cell((event.clientY - box.top) / box.height, rows);
      return i * columns + cell((event.clientX - box.left) / box.width, columns);
    }

    return { node, paint, mark, at };
  }

  /** The theme's colors where a node stands. */
  function theme(node) {
    const style = getComputedStyle(node);
    const read = (name) => style.getPropertyValue(`--emalab-${name}`).trim();
    return { text: read("text"), muted: read("muted"), line: read("line"), ground: read("ground"), accent: read("accent") };
  }

  /**
   * A canvas that is drawn again when its size or the theme changes.
   *
   * @param {string} label @param {number} aspect width / height
   * @param {(context: CanvasRenderingContext2D, width: number, height: number, colors: object) => void} draw
   * @returns {{node: HTMLCanvasElement, redraw: () => void}}
   */
  function drawing(label, aspect, draw) {
    const node = element("canvas", { role: "img", "aria-label": label, class: "emalab-drawing" });
    node.style.aspectRatio = String(aspect);
    function redraw() {
      const width = node.clientWidth;
      if (!width) return;
      const height = width / aspect;
      const density = globalThis.devicePixelRatio || 1;
      node.width = Math.round(width * density);
      node.height = Math.round(height * density);
      const context = node.getContext("2d");
      context.scale(density, density);
      context.font = `12px ${getComputedStyle(node).fontFamily}`;
      draw(context, width, height, theme(node));
    }
    new ResizeObserver(redraw).observe(node);
    const themes = new MutationObserver(redraw);
    const options = { attributes: true, attributeFilter: ["data-theme", "data-jp-theme-light", "class"] };
    for (const place of [document.documentElement, document.body]) themes.observe(place, options);
    return { node, redraw };
  }

  /** About `count` round numbers within a range. */
  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
    const first = Math.ceil(low / step - 1e-9);
    return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
  }

  /**
   * Curves over 0, 1, 2, …
   *
   * @typedef {{values: number[], color?: string, width?: number, dash?: number[]}} Curve
   * @param {string} label of the whole, for screen readers
   * @param {() => {curves: Curve[], x: string, y: string, xMax: number, range?: [number, number], cursor?: number}} content
   */
  function chart(label, content) {
    return drawing(label, 1.55, (context, width, height, colors) => {
      const { curves, x, y, xMax, range, cursor } = content();
      const all = curves.flatMap((curve) => curve.values).filter(Number.isFinite);
      let [low, high] = range ?? [Math.min(...all), Math.max(...all)];
      const least = 1e-3 * Math.max(1, Math.abs(high)); // or the labels would need many digits
      if (high - low < least) [low, high] = [(low + high - least) / 2, (low + high + least) / 2];
      const [left, right, top, bottom] = [52, width - 10, 22, height - 34];
      const across = (value) => left + ((right - left) * value) / xMax;
      const up = (value) => bottom - ((bottom - top) * (value - low)) / (high - low);

      context.fillStyle = colors.muted;
      context.strokeStyle = colors.line;
      context.lineWidth = 1;
      context.textAlign = "right";
      context.textBaseline = "middle";
      for (const value of ticks(low, high, 4)) {
        context.fillText(short(value), left - 6, up(value));
        segment(context, left, up(value), right, up(value));
      }
      context.textAlign = "center";
      for (const value of ticks(0, xMax, 5).filter(Number.isInteger)) context.fillText(String(value), across(value), bottom + 11);
      context.fillText(x, (left + right) / 2, bottom + 26);
      context.textAlign = "left";
      context.fillText(y, 4, 9);

      for (const { values, color, width: thickness = 2, dash = [] } of curves) {
        context.strokeStyle = context.fillStyle = color ?? colors.accent;
        context.lineWidth = thickness;
        context.setLineDash(dash);
        context.beginPath();
        values.forEach((value, i) => context.lineTo(across(i), up(value)));
        context.stroke();
        if (values.length < 40 && thickness > 1.5) values.forEach((value, i) => disc(context, across(i), up(value), 2.5));
      }
      context.setLineDash([]);
      if (cursor !== undefined) {
        context.strokeStyle = colors.text;
        context.lineWidth = 1;
        segment(context, across(cursor), top, across(cursor), bottom);
      }
    });
  }

  /** A number in few characters. */
  function short(value) {
    return Math.abs(value) >= 1e5 ? `${Number((value / 1000).toPrecision(4))}k` : String(value).replace("-", "−");
  }

  function segment(context, fromX, fromY, toX, toY) {
    context.beginPath();
    context.moveTo(fromX, fromY);
    context.lineTo(toX, toY);
    context.stroke();
  }

  function disc(context, x, y, radius) {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fill();
  }

  /** An arrow with a head, in the current colors. */
  function arrow(context, fromX, fromY, toX, toY) {
    const angle = Math.atan2(toY - fromY, toX - fromX);
    const size = 3 + 2 * context.lineWidth;
    segment(context, fromX, fromY, toX - 0.8 * size * Math.cos(angle), toY - 0.8 * size * Math.sin(angle));
    context.beginPath();
    context.moveTo(toX, toY);
    for (const side of [-1, 1]) context.lineTo(toX - size * Math.cos(angle + side * 0.45), toY - size * Math.sin(angle + side * 0.45));
    context.fill();
  }

  /**
   * A button that repeats a step until there is nothing left to do, and says "Pause" meanwhile; pressed again at the end,
   * it begins anew. Where the reader prefers little motion, all steps are taken at once.
   *
   * @param {string} text @param {() => boolean} step one step; whether there are more
   * @param {number} interval milliseconds between steps
   * @param {{ended: () => boolean, rewind: () => void}} [end] whether nothing is left, and how to begin anew
   */
  function player(text, step, interval, end) {
    let timer;
    const node = button(text, () => {
      if (timer !== undefined) return stop();
      if (end?.ended()) end.rewind();
      start();
    });
    function start() {
      if (timer !== undefined) return;
      if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
        while (step());
        return;
      }
      node.textContent = "Pause";
      timer = setInterval(() => (node.isConnected && step()) || stop(), interval);
    }
    function stop() {
      clearInterval(timer);
      timer = undefined;
      node.textContent = text;
    }
    return { node, start, stop };
  }

  /**
   * Put a figure in place of its picture. The picture stays if anything is missing.
   *
   * @param {string} id of the element that holds the picture and the data
   * @param {number} patience frames to wait for it: JupyterLab runs a cell's scripts before its output is in the page
   */
  function mount(id, patience = 100) {
    const container = document.getElementById(id);
    if (!container) {
      if (patience > 0) requestAnimationFrame(() => mount(id, patience - 1));
      return;
    }
    const data = JSON.parse(container.querySelector("script").textContent);
    const parts = emalab.figures[container.dataset.figure](data);
    container.replaceChildren(...parts);
    container.dataset.ready = "";
  }

  emalab.mount = mount;
  emalab.figures ??= {};
  emalab.controls = {
    ...{ PALETTE, magma, blend, css, element, button, slider, choice, prompt, status, toolbar, panels, threePanels, panel },
    ...{ positionMap, drawing, chart, segment, disc, arrow, player },
  };
})((globalThis.emalab ??= {}));
