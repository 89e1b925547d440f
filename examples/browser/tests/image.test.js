import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";

import { ImageError, InputError } from "../lib/errors.js";
import { decodeImage } from "../lib/image.js";
import { compositeOverWhite, normalize } from "../lib/pixels.js";
import { resize } from "../lib/resize.js";
import { countDifferences, makePixels, readBase64, readFixture } from "./fixtures.js";

const resizes = await readFixture("resize");
const pngs = await readFixture("png");

for (const { width, height, formula, size, sha256 } of resizes.cases) {
  test(`resize ${width} x ${height} (${formula}) to ${size} as Pillow ${resizes.pillow}`, () => {
    const pixels = resize(makePixels(width, height, formula), size);
    assert.equal(createHash("sha256").update(pixels).digest("hex"), sha256);
  });
}

for (const { name, file, width, height, rgb } of pngs.cases) {
  test(`decode a PNG file as Pillow ${pngs.pillow}: ${name}`, async () => {
    const image = await decodeImage(readBase64(file));
    assert.deepEqual([image.width, image.height], [width, height]);
    assert.equal(countDifferences(image.data, readBase64(rgb)), 0);
  });
}

test("a resized image does not share the memory of its source", () => {
  const image = makePixels(8, 8, "noise");
  const pixels = resize(image, 8);
  assert.equal(countDifferences(pixels, image.data), 0);
  pixels[0] ^= 1;
  assert.equal(countDifferences(pixels, image.data), 1);
});

test("resize refuses bytes that do not fit the size", () => {
  assert.throws(
    () => resize({ data: new Uint8Array(5), width: 2, height: 1 }, 4),
    /must have width \* height \* 3 = 6 bytes, got 5/,
  );
});

test("pixels with 3 and 4 channels are images", async () => {
  const rgba = Uint8ClampedArray.of(10, 20, 30, 255, 10, 20, 30, 0, 10, 20, 30, 128);
  const image = await decodeImage({ data: rgba, width: 3, height: 1 });
  assert.deepEqual([...image.data], [10, 20, 30, 255, 255, 255, 132, 137, 142]);
  const copy = await decodeImage({ data: image.data, width: 3, height: 1 });
  assert.deepEqual([...copy.data], [...image.data]);
});

test("alpha that hides every pixel is ignored", () => {
  assert.deepEqual([...compositeOverWhite(Uint8Array.of(1, 2, 3, 0, 4, 5, 6, 0))], [1, 2, 3, 4, 5, 6]);
});

test("damaged and foreign files are refused with a reason", async () => {
  const file = readBase64(pngs.cases[0].file);
  await assert.rejects(decodeImage(new Uint8Array()), { name: "ImageError", message: /it is empty/ });
  await assert.rejects(decodeImage(file.subarray(0, 50)), { name: "ImageError", message: /damaged/ });
  await assert.rejects(decodeImage(file.subarray(0, 20)), { name: "ImageError", message: /no valid header/ });
  await assert.rejects(decodeImage(Uint8Array.of(0xff, 0xd8, 0xff)), {
    name: "ImageError",
    message: /pass a PNG file/,
  });
  await assert.rejects(decodeImage("photo.png"), InputError);
  await assert.rejects(decodeImage({ data: new Uint8Array(5), width: 1, height: 1 }), InputError);
  assert.ok(new ImageError("x") instanceof Error);
});

test("an enormous PNG file is refused before it is decoded", async () => {
  const file = readBase64(pngs.cases[0].file).slice();
  new DataView(file.buffer).setUint32(16, 1 << 20);
  new DataView(file.buffer).setUint32(20, 1 << 20);
  await assert.rejects(decodeImage(file), /too large: 1048576 x 1048576/);
});

test("normalized pixels are channel by channel", () => {
  const values = normalize(Uint8Array.of(0, 255, 51, 102, 0, 255), [0.5, 0.25, 0], [0.5, 0.5, 1]);
  assert.deepEqual(
    [...values].map((value) => Math.round(value * 1e6) / 1e6),
    [-1, -0.2, 1.5, -0.5, 0.2, 1],
  );
});
