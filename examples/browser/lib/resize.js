// Bicubic resize with the results of Pillow 13, byte for byte.
//
// Pillow resamples 8-bit images with fixed-point weights of 22 bits, and rounds to bytes between its two passes, so the
// order of the passes matters: columns come first if the height shrinks by more than twice as many pixels as the width.

const WEIGHT_BITS = 22;
const HALF = 1 << (WEIGHT_BITS - 1);
const SUPPORT = 2; // of the bicubic kernel, in pixels of the larger grid

/**
 * Resize an RGB image to a square, without keeping the aspect ratio.
 *
 * @param {import("../openblip.js").Pixels} image Bytes (height, width, 3).
 * @param {number} size Side of the square.
 * @returns {Uint8Array} Bytes (size, size, 3).
 */
export function resize({ data, width, height }, size) {
  if (data.length !== width * height * 3) {
    throw new RangeError(`data must have width * height * 3 = ${width * height * 3} bytes, got ${data.length}`);
  }
  const columnsFirst = height > size && height - size > 2 * (width - size);
  const resizeRows = (bytes, rows) => (width === size ? bytes : resampleRows(bytes, width, rows, size));
  const resizeColumns = (bytes, columns) => (height === size ? bytes : resampleColumns(bytes, columns, height, size));
  const pixels = columnsFirst
    ? resizeRows(resizeColumns(data, width), size)
    : resizeColumns(resizeRows(data, height), size);
  return pixels === data ? data.slice() : pixels;
}

/** Return the first source pixel and the fixed-point weights of each pixel of a resized line. */
function computeWeights(sourceSize, targetSize) {
  const scale = sourceSize / targetSize;
  const stretch = Math.max(scale, 1);
  const support = SUPPORT * stretch;
  const taps = [];
  for (let target = 0; target < targetSize; target++) {
    const center = (target + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(sourceSize, Math.trunc(center + support + 0.5));
    const weights = new Float64Array(end - first);
    let total = 0;
    for (let i = 0; i < weights.length; i++) {
      weights[i] = bicubic((i + first - center + 0.5) * (1 / stretch));
      total += weights[i];
    }
    const fixed = new Int32Array(weights.length);
    for (let i = 0; i < weights.length; i++) {
      const weight = total === 0 ? weights[i] : weights[i] / total;
      fixed[i] = Math.trunc((weight < 0 ? -0.5 : 0.5) + weight * (1 << WEIGHT_BITS));
    }
    taps.push({ first, weights: fixed });
  }
  return taps;
}

function bicubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

/** Resample each row (width, 3) to (size, 3). */
function resampleRows(source, width, height, size) {
  const taps = computeWeights(width, size);
  const target = new Uint8ClampedArray(size * height * 3);
  let out = 0;
  for (let y = 0; y < height; y++) {
    const row = y * width * 3;
    for (let x = 0; x < size; x++) {
      const { first, weights } = taps[x];
      let red = HALF,
        green = HALF,
        blue = HALF;
      for (let i = 0, at = row + first * 3; i < weights.length; i++, at += 3) {
        const weight = weights[i];
        red += source[at] * weight;
        green += source[at + 1] * weight;
        blue += source[at + 2] * weight;
      }
      target[out++] = red >> WEIGHT_BITS;
      target[out++] = green >> WEIGHT_BITS;
      target[out++] = blue >> WEIGHT_BITS;
    }
  }
  return new Uint8Array(target.buffer);
}

/** Resample the columns (height, width * 3) to (size, width * 3). */
function resampleColumns(source, width, height, size) {
  const taps = computeWeights(height, size);
  const stride = width * 3;
  const target = new Uint8ClampedArray(stride * size);
  const sums = new Int32Array(stride);
  for (let y = 0; y < size; y++) {
    const { first, weights } = taps[y];
    sums.fill(HALF);
    for (let i = 0; i < weights.length; i++) {
      const weight = weights[i];
      const row = (first + i) * stride;
      for (let x = 0; x < stride; x++) sums[x] += source[row + x] * weight;
    }
    for (let x = 0, out = y * stride; x < stride; x++, out++) target[out] = sums[x] >> WEIGHT_BITS;
  }
  return new Uint8Array(target.buffer);
}
