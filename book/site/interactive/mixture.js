"use strict";
/** EM in the plane: points and bases that can be dragged, and the objective that climbs. */
(function (emalab) {
  const { matrix, row, norm, eStep, iterate, logLikelihood } = emalab.core;
  const { PALETTE, arrow, blend, button, chart, css, disc, drawing } = emalab.controls;
  const { panel, panels, player, prompt, segment, slider, status, toolbar } = emalab.controls;
  const REACH = 1.75; // half of the plane's width
  const RING = [1.5, 1.66]; // radii of the band that shows responsibilities by direction
  const MOST_ITERATIONS = 100;
  const KEYS = { ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };

  /**
   * @param {object} data
   * @param {number[][]} data.points (n, 2)
   * @param {number[]} data.start angles of the bases at the start, in radians
   * @param {number} data.bases how many of them at first
   * @param {{values: number[], start: number}} data.scale values of λ
   */
  emalab.figures.mixture = function (data) {
    let x, bases, objective, selected, held;
    const counts = data.start.map((_, i) => i + 1);
    const line = status();
    const plane = drawing("", 1, draw);
    const climb = chart("The objective L after each iteration", () => ({
      curves: [{ values: objective }],
      x: "iterations since the last change",
      y: "objective L / nats",
      xMax: Math.max(10, objective.length - 1),
    }));
    const run = player("Run", step, 120, { ended: () => !climbs(), rewind: restart });
    const number = slider("bases K", counts, data.bases, restart);
    const scale = slider("concentration λ", data.scale.values, data.scale.start, changed);

    /** Whether another iteration would still climb. */
    function climbs() {
      const [before, after] = objective.slice(-2);
      return objective.length <= MOST_ITERATIONS && !(after - before <= 1e-5);
    }

    /** One iteration; whether another one would still climb. */
    function step() {
      bases = iterate(x, bases, scale.value);
      objective.push(logLikelihood(x, bases, scale.value));
      show();
      return climbs();
    }

    function restart() {
      run.stop();
      bases = matrix(data.start.slice(0, number.value).map((angle) => [Math.cos(angle), Math.sin(angle)]));
      selected = Math.min(selected ?? 0, things().length - 1);
      begin();
    }

    function reset() {
      x = matrix(data.points);
      selected = 0;
      for (const control of [number, scale]) control.reset();
      restart();
    }

    /** The problem has become another one: EM goes on from where the bases are. */
    function changed() {
      begin();
      run.start();
    }

    function begin() {
      objective = [logLikelihood(x, bases, scale.value)];
      show();
    }

    /** What can be moved: bases first, then points; views into their matrices. */
    function things() {
      return [bases, x].flatMap((m) => Array.from({ length: m.rows }, (_, i) => row(m, i)));
    }

    function place(index, [first, second]) {
      const length = Math.hypot(first, second);
      if (index < bases.rows) {
        if (length > 0) things()[index].set([first / length, second / length]); // bases stay on the circle
      } else {
        things()[index].set(length > RING[0] ? [(first / length) * RING[0], (second / length) * RING[0]] : [first, second]);
      }
      changed();
    }

    function show() {
      plane.redraw();
      climb.redraw();
      const t = objective.length - 1;
      const [first, second] = things()[selected];
      const name = selected < bases.rows ? `base ${selected + 1}` : `point ${selected - bases.rows + 1}`;
      const degrees = Math.round(((Math.atan2(second, first) * 180) / Math.PI + 360) % 360);
      const length = norm(things()[selected]).toFixed(2);
      line.textContent = `L = ${objective[t].toFixed(2)} nats after ${t} ${t === 1 ? "iteration" : "iterations"}. Selected: ${name}, at ${degrees}°, length ${length}.`;
    }

    function draw(context, width, height, colors) {
      const toX = (value) => (width * (1 + value / REACH)) / 2;
      const toY = (value) => (height * (1 - value / REACH)) / 2;
      const unit = width / 2 / REACH;
      drawRing(context, toX(0), toY(0), unit);
      context.strokeStyle = colors.line;
      context.lineWidth = 1;
      context.beginPath();
      context.arc(toX(0), toY(0), unit, 0, 2 * Math.PI);
      context.stroke();
      const z = eStep(x, bases, scale.value);
      for (let n = 0; n < x.rows; n++) {
        context.fillStyle = css(blend(row(z, n)));
        disc(context, toX(row(x, n)[0]), toY(row(x, n)[1]), 4.5);
      }
      for (let k = 0; k < bases.rows; k++) {
        context.strokeStyle = context.fillStyle = css(PALETTE[k]);
        context.lineWidth = 3;
        arrow(context, toX(0), toY(0), toX(row(bases, k)[0]), toY(row(bases, k)[1]));
      }
      const [first, second] = things()[selected];
      context.strokeStyle = colors.text;
      context.lineWidth = 1.5;
      context.beginPath();
      context.arc(toX(first), toY(second), 9, 0, 2 * Math.PI);
      context.stroke();
      segment(context, toX(0) - 3, toY(0), toX(0) + 3, toY(0));
      segment(context, toX(0), toY(0) - 3, toX(0), toY(0) + 3);
    }

    /** The responsibilities that a feature of length one would get, direction by direction. */
    function drawRing(context, centerX, centerY, unit) {
      const parts = 240;
      const turn = (2 * Math.PI) / parts;
      const directions = matrix(Array.from({ length: parts }, (_, i) => [Math.cos(i * turn), Math.sin(i * turn)]));
      const z = eStep(directions, bases, scale.value);
      context.lineWidth = (RING[1] - RING[0]) * unit;
      for (let i = 0; i < parts; i++) {
        // Each part reaches below the next one: no seams.
        context.strokeStyle = css(blend(row(z, i)));
        context.beginPath();
        context.arc(centerX, centerY, ((RING[0] + RING[1]) / 2) * unit, -(i + 1) * turn, -(i - 0.5) * turn);
        context.stroke();
      }
    }

    /** Where a pointer is in the plane. @param {PointerEvent} event */
    function at(event) {
      const box = plane.node.getBoundingClientRect();
      const share = (offset, size) => (2 * offset) / size - 1;
      return [REACH * share(event.clientX - box.left, box.width), -REACH * share(event.clientY - box.top, box.height)];
    }

    /** The nearest thing that can be moved, or undefined if none is near. */
    function grasp(event) {
      const [first, second] = at(event);
      const distances = things().map((thing) => Math.hypot(thing[0] - first, thing[1] - second));
      const nearest = distances.indexOf(Math.min(...distances));
      const pixels = (distances[nearest] * plane.node.clientWidth) / 2 / REACH;
      return pixels <= (event.pointerType === "touch" ? 24 : 14) ? nearest : undefined;
    }

    function onPointerDown(event) {
      held = grasp(event);
      if (held === undefined) return;
      plane.node.setPointerCapture(event.pointerId);
      selected = held;
      show();
    }

    function onPointerMove(event) {
      if (held !== undefined) place(held, at(event));
    }

    function onKey(event) {
      const direction = KEYS[event.key];
      const turn = { n: 1, p: -1 }[event.key.toLowerCase()];
      if (direction) {
        const [first, second] = things()[selected];
        place(selected, [first + 0.05 * direction[0], second + 0.05 * direction[1]]);
      } else if (turn) {
        const count = things().length;
        selected = (selected + turn + count) % count;
        show();
      } else return;
      event.preventDefault(); // the page does not scroll
    }

    const help = "Points and bases in the plane. N and P select the next and the previous one, arrow keys move it.";
    const attributes = { tabindex: "0", role: "application", "aria-roledescription": "plane", "aria-label": help };
    for (const [name, value] of Object.entries(attributes)) plane.node.setAttribute(name, value);
    plane.node.addEventListener("pointerdown", onPointerDown);
    plane.node.addEventListener("pointermove", onPointerMove);
    for (const type of ["pointerup", "pointercancel"]) plane.node.addEventListener(type, () => (held = undefined));
    plane.node.addEventListener("keydown", onKey);
    // A finger on a point drags it; anywhere else it scrolls the page.
    plane.node.addEventListener("touchstart", (event) => held !== undefined && event.preventDefault(), { passive: false });

    reset();
    return [
      prompt("which way does a base turn when one of its points moves twice as far out?"),
      toolbar(button("Step", () => (run.stop(), step())), run.node, button("Restart", restart), button("Reset", reset), number.node, scale.node),
      line,
      panels(
        panel("drag points and arrows, or use N, P and the arrow keys", plane.node).node,
        panel("how EM climbs", climb.node).node,
      ),
    ];
  };
})(globalThis.emalab);
