// Pixels with transparency to RGB, and RGB to the input of the model.

/**
 * Composite RGBA over white as Pillow does: in integers, with 7 more bits.
 *
 * A channel that makes every pixel transparent is unused, or has another meaning: it is ignored, as in OpenBLIP.
 *
 * @param {Uint8Array | Uint8ClampedArray} rgba Bytes (pixels, 4).
 * @returns {Uint8Array} Bytes (pixels, 3).
 */
export function compositeOverWhite(rgba) {
  let isVisible = false;
  for (let at = 3; at < rgba.length && !isVisible; at += 4) isVisible = rgba[at] > 0;
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let at = 0, out = 0; at < rgba.length; at += 4) {
    const alpha = isVisible ? rgba[at + 3] : 255;
    const weight = alpha << 7;
    for (let channel = 0; channel < 3; channel++) {
      const sum = rgba[at + channel] * weight + 255 * ((255 << 7) - weight) + (0x80 << 7);
      rgb[out++] = (((sum >> 8) + sum) >> 8) >> 7;
    }
  }
  return rgb;
}

/**
 * Normalize RGB bytes in the 32-bit steps of PyTorch: divide by 255, subtract the mean, divide by the deviation.
 *
 * @param {Uint8Array} rgb Bytes (height, width, 3).
 * @param {number[]} mean Mean of red, green and blue.
 * @param {number[]} std Standard deviation of red, green and blue.
 * @returns {Float32Array} Numbers (3, height, width).
 */
export function normalize(rgb, mean, std) {
  const count = rgb.length / 3;
  const values = new Float32Array(rgb.length);
  for (let channel = 0; channel < 3; channel++) {
    const [center, deviation] = [Math.fround(mean[channel]), Math.fround(std[channel])];
    const table = Float32Array.from(
      { length: 256 },
      (_, byte) => Math.fround(Math.fround(byte / 255) - center) / deviation,
    );
    for (let i = 0; i < count; i++) values[channel * count + i] = table[rgb[3 * i + channel]];
  }
  return values;
}
