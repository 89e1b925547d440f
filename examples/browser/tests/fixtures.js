// Reading of what `record_fixtures.py` recorded.

import { readFile } from "node:fs/promises";

/** Return the content of a fixture. */
export async function readFixture(name) {
  return JSON.parse(await readFile(new URL(`./fixtures/${name}.json`, import.meta.url), "utf8"));
}

/** Return the bytes of a text in base 64. */
export function readBase64(text) {
  return new Uint8Array(Buffer.from(text, "base64"));
}

/** Return the number of values in which two arrays differ. */
export function countDifferences(a, b) {
  let count = Math.abs(a.length - b.length);
  for (let i = 0; i < Math.min(a.length, b.length); i++) count += a[i] !== b[i];
  return count;
}

/** Return the image of a formula; `make_pixels` in `record_fixtures.py` computes the same. */
export function makePixels(width, height, formula) {
  const data = new Uint8Array(width * height * 3);
  let out = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let channel = 0; channel < 3; channel++) data[out++] = computeValue(x, y, channel, width, height, formula);
    }
  }
  return { data, width, height };
}

function computeValue(x, y, channel, width, height, formula) {
  if (formula === "gradient") {
    const horizontal = Math.floor((x * 255) / Math.max(1, width - 1));
    return (horizontal + Math.floor((y * 255) / Math.max(1, height - 1)) + channel * 85) & 255;
  }
  if (formula === "checks") return (((x >> 2) ^ (y >> 3) ^ channel) & 1) * 255;
  let mixed = Math.imul(x + 1, 0x9e3779b1) ^ Math.imul(y + 1, 0x85ebca77);
  if (formula === "noise") mixed ^= Math.imul(channel + 1, 0xc2b2ae3d);
  mixed ^= mixed >>> 15;
  mixed = Math.imul(mixed, 0x2c1b3c6d);
  return (mixed ^ (mixed >>> 12)) & 255;
}
