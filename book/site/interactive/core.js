"use strict";
/**
 * EM attention in double precision, as in the package: `emalab.em`, `emalab.bases` and `emalab.inspection`.
 * tests/test_interactive.py compares every function here with its counterpart there.
 *
 * @typedef {{rows: number, columns: number, values: Float64Array}} Matrix  row by row
 */
(function (emalab) {
  const EPSILON = 1e-6; // added to sums and norms, as in the authors' code
  const TINY = 1e-12; // that of torch.nn.functional.normalize

  /** @returns {Matrix} */
  function zeros(rows, columns) {
    return { rows, columns, values: new Float64Array(rows * columns) };
  }

  /** @param {number[][]} lists @returns {Matrix} */
  function matrix(lists) {
    return { rows: lists.length, columns: lists[0].length, values: Float64Array.from(lists.flat()) };
  }

  /** One row, as a view. @param {Matrix} m @returns {Float64Array} */
  function row(m, i) {
    return m.values.subarray(i * m.columns, (i + 1) * m.columns);
  }

  /** The first rows, as a view. @param {Matrix} m @returns {Matrix} */
  function head(m, rows) {
    return { rows, columns: m.columns, values: m.values.subarray(0, rows * m.columns) };
  }

  function dot(a, b) {
    let sum = 0;
    for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
    return sum;
  }

  /** λ a_iᵀ b_j: (n, c), (k, c) → (n, k). @returns {Matrix} */
  function similarity(a, b, scale) {
    const result = zeros(a.rows, b.rows);
    for (let i = 0; i < a.rows; i++) {
      const left = row(a, i);
      for (let j = 0; j < b.rows; j++) result.values[i * b.rows + j] = scale * dot(left, row(b, j));
    }
    return result;
  }

  /** log Σ exp, without overflow. @param {Float64Array} logits */
  function logSumExp(logits) {
    let largest = -Infinity;
    for (const value of logits) largest = Math.max(largest, value);
    let sum = 0;
    for (const value of logits) sum += Math.exp(value - largest);
    return largest + Math.log(sum);
  }

  /** Softmax in place. @param {Float64Array} logits @returns {Float64Array} */
  function softmax(logits) {
    const normalizer = logSumExp(logits);
    for (let i = 0; i < logits.length; i++) logits[i] = Math.exp(logits[i] - normalizer);
    return logits;
  }

  /** `e_step`: x (n, c), bases (k, c) → responsibilities (n, k). @returns {Matrix} */
  function eStep(x, bases, scale = 1) {
    const z = similarity(x, bases, scale);
    for (let n = 0; n < z.rows; n++) softmax(row(z, n));
    return z;
  }

  /** Σ_n z_nk, (n, k) → (k,). @returns {Float64Array} */
  function totals(z) {
    const sums = new Float64Array(z.columns);
    for (let i = 0; i < z.values.length; i++) sums[i % z.columns] += z.values[i];
    return sums;
  }

  /** `m_step`: x (n, c), responsibilities (n, k) → bases (k, c), not normalized. @returns {Matrix} */
  function mStep(x, z) {
    const bases = zeros(z.columns, x.columns);
    for (let n = 0; n < x.rows; n++) {
      const position = row(x, n);
      for (let k = 0; k < z.columns; k++) {
        const base = row(bases, k);
        const weight = z.values[n * z.columns + k];
        for (let c = 0; c < base.length; c++) base[c] += weight * position[c];
      }
    }
    totals(z).forEach((total, k) => scaleInPlace(row(bases, k), 1 / (total + EPSILON)));
    return bases;
  }

  function scaleInPlace(vector, factor) {
    for (let i = 0; i < vector.length; i++) vector[i] *= factor;
  }

  function norm(vector) {
    return Math.sqrt(dot(vector, vector));
  }

  /** `normalize_bases` with norm="l2". @param {Matrix} bases @returns {Matrix} */
  function normalizeBases(bases) {
    const result = { ...bases, values: bases.values.slice() };
    for (let k = 0; k < bases.rows; k++) scaleInPlace(row(result, k), 1 / (norm(row(bases, k)) + EPSILON));
    return result;
  }

  /** One E-step and one M-step: bases (k, c) → bases (k, c). @returns {Matrix} */
  function iterate(x, bases, scale = 1) {
    return normalizeBases(mStep(x, eStep(x, bases, scale)));
  }

  /** `em_attention` on one image: the responsibilities of the last E-step, and the bases after it. */
  function emAttention(x, bases, { iterations = 3, scale = 1 } = {}) {
    for (let t = 1; t < iterations; t++) bases = iterate(x, bases, scale);
    const responsibilities = eStep(x, bases, scale);
    return { responsibilities, bases: normalizeBases(mStep(x, responsibilities)) };
  }

  /** `log_likelihood`: the objective L that EM climbs, in nats. */
  function logLikelihood(x, bases, scale = 1) {
    const logits = similarity(x, bases, scale);
    let sum = 0;
    for (let n = 0; n < x.rows; n++) sum += logSumExp(row(logits, n));
    return sum - x.rows * Math.log(bases.rows);
  }

  /** Row n of non-local attention, softmax over all positions of s x_nᵀ x_j: (n, c) → (n,). */
  function nonLocalRow(x, n, scale) {
    return softmax(similarity({ rows: 1, columns: x.columns, values: row(x, n) }, x, scale).values);
  }

  /** Row n of Z D⁻¹ Zᵀ, the attention that EM implies: responsibilities (n, k) → (n,). */
  function emRow(z, n) {
    const sums = totals(z);
    const weights = row(z, n).map((value, k) => (sums[k] > 0 ? value / sums[k] : 0));
    return Float64Array.from({ length: z.rows }, (_, j) => dot(weights, row(z, j)));
  }

  /**
   * The number of groups that `distinct_bases` finds: two groups unite while all their bases have a cosine of `threshold`
   * or more, the most similar first.
   *
   * @param {Matrix} bases (k, c)
   */
  function countDistinct(bases, threshold = 0.95) {
    const unit = normalizeBases(bases);
    const likeness = similarity(unit, unit, 1).values;
    const groups = Array.from({ length: bases.rows }, (_, k) => [k]);
    const least = (a, b) => Math.min(...a.flatMap((i) => b.map((j) => likeness[i * bases.rows + j])));
    for (;;) {
      let best = [-Infinity];
      groups.forEach((a, i) => groups.slice(0, i).forEach((b, j) => (best = least(a, b) > best[0] ? [least(a, b), i, j] : best)));
      if (best[0] < threshold) return groups.length;
      groups[best[2]].push(...groups.splice(best[1], 1)[0]);
    }
  }

  /** `perplexity`: how many equal parts have the entropy of a distribution. @param {Float64Array} weights */
  function perplexity(weights) {
    return Math.exp(weights.reduce((sum, w) => (w > 0 ? sum - w * Math.log(w) : sum), 0));
  }

  /**
   * `MovingAverage.update`: stored bases (k, c) after a batch whose images have reached other ones.
   *
   * @param {Matrix} bases @param {Matrix[]} reached one (k, c) for each image
   * @param {number} momentum weights the old bases
   * @param {"none" | "batch_mean" | "after_mixing"} renormalize
   */
  function movingAverage(bases, reached, momentum, renormalize) {
    const mean = zeros(bases.rows, bases.columns);
    for (const { values } of reached) values.forEach((value, i) => (mean.values[i] += value / reached.length));
    if (renormalize === "batch_mean") {
      for (let k = 0; k < mean.rows; k++) scaleInPlace(row(mean, k), 1 / Math.max(norm(row(mean, k)), TINY));
    }
    const values = bases.values.map((old, i) => momentum * old + (1 - momentum) * mean.values[i]);
    const mixed = { ...bases, values };
    return renormalize === "after_mixing" ? normalizeBases(mixed) : mixed;
  }

  /**
   * Integers in base64, one step size per column: what `interactive.pack` writes.
   *
   * @param {{shape: [number, number], steps: number[], base64: string}} packed @returns {Matrix}
   */
  function unpack({ shape: [rows, columns], steps, base64 }) {
    const integers = Int8Array.from(atob(base64), (character) => character.charCodeAt(0));
    return { rows, columns, values: Float64Array.from(integers, (value, i) => value * steps[i % columns]) };
  }

  emalab.core = {
    ...{ matrix, row, head, norm, unpack },
    ...{ eStep, mStep, normalizeBases, iterate, emAttention, logLikelihood },
    ...{ nonLocalRow, emRow, perplexity, countDistinct, movingAverage },
  };
})((globalThis.emalab ??= {}));
