// Images from any source to upright RGB.

import { ImageError, InputError } from "./errors.js";
import { readOrientation, turnUpright } from "./exif.js";
import { compositeOverWhite } from "./pixels.js";
import { decodePng, isPng } from "./png.js";

const MAX_PIXELS = 100e6;

/**
 * Decode an image, apply its orientation, and convert it to RGB; transparent pixels become white.
 *
 * PNG files are decoded here, exactly as OpenBLIP decodes them, also outside a browser. The browser decodes all other
 * formats: it applies the EXIF orientation, and is asked not to convert colors.
 *
 * @param {import("../openblip.js").ImageSource} source
 * @returns {Promise<import("../openblip.js").Pixels>} Bytes (height, width, 3).
 * @throws {ImageError} The image cannot be read.
 * @throws {InputError} The source has a wrong type.
 */
export async function decodeImage(source) {
  if (isPixels(source)) return fromPixels(source);
  const bytes = await readBytes(source);
  if (!bytes.length) throw new ImageError("cannot read the image: it is empty");
  if (isPng(bytes)) return decodePng(bytes, MAX_PIXELS);
  if (isWebp(bytes)) return decodeWebp(bytes);
  return decodeNatively(bytes);
}

function isPixels(source) {
  return source?.data !== undefined && source.width > 0 && source.height > 0;
}

function fromPixels({ data, width, height }) {
  const channels = data.length / (width * height);
  if (channels === 3) return { data: Uint8Array.from(data), width, height };
  if (channels === 4) return { data: compositeOverWhite(data), width, height };
  throw new InputError(`data must have 3 or 4 bytes per pixel, got ${data.length} for ${width} x ${height}`);
}

async function readBytes(source) {
  if (source instanceof Uint8Array) return source;
  if (source instanceof ArrayBuffer) return new Uint8Array(source);
  if (typeof Blob !== "undefined" && source instanceof Blob) return new Uint8Array(await source.arrayBuffer());
  throw new InputError("an image must be a File, a Blob, bytes, or an object with data, width and height");
}

async function decodeNatively(bytes) {
  if (typeof createImageBitmap === "undefined") {
    throw new ImageError("cannot read the image: outside a browser, pass a PNG file, or decoded pixels");
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([bytes]), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch (error) {
    throw new ImageError("cannot read the image: its format is unknown to this browser, or it is damaged", {
      cause: error,
    });
  }
  const { width, height } = bitmap;
  checkSize(width, height);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { data: compositeOverWhite(context.getImageData(0, 0, width, height).data), width, height };
}

function isWebp(bytes) {
  return decodeAscii(bytes, 0) === "RIFF" && decodeAscii(bytes, 8) === "WEBP";
}

/** Decode WebP. Browsers do not agree on its EXIF orientation, so it is hidden from them and applied here. */
async function decodeWebp(bytes) {
  const { orientation, hidden } = hideWebpExif(bytes);
  const isTransparent =
    decodeAscii(bytes, 12) === "VP8L" || (decodeAscii(bytes, 12) === "VP8X" && (bytes[20] & 0x10) !== 0);
  const decode = isTransparent && typeof ImageDecoder !== "undefined" ? decodeWithoutCanvas : decodeNatively;
  return turnUpright(await decode(hidden), orientation);
}

/** Return the orientation of a WebP file, and the file with another name for its EXIF chunk. */
function hideWebpExif(bytes) {
  const hidden = bytes.slice();
  const view = new DataView(hidden.buffer);
  let orientation = 1;
  for (let at = 12; at + 8 <= hidden.length;) {
    const length = view.getUint32(at + 4, true);
    if (decodeAscii(hidden, at) === "EXIF") {
      orientation = readOrientation(hidden.subarray(at + 8, at + 8 + length)) ?? 1;
      hidden[at] = "X".charCodeAt(0);
    }
    at += 8 + length + (length & 1);
  }
  return { orientation, hidden };
}

/** Decode WebP without a canvas, which would round the colors of transparent pixels. */
async function decodeWithoutCanvas(bytes) {
  const decoder = new ImageDecoder({ data: bytes, type: "image/webp", colorSpaceConversion: "none" });
  try {
    const { image: frame } = await decoder.decode();
    const { displayWidth: width, displayHeight: height } = frame;
    checkSize(width, height);
    const rgba = new Uint8Array(4 * width * height);
    await frame.copyTo(rgba, { format: "RGBA" });
    frame.close();
    return { data: compositeOverWhite(rgba), width, height };
  } catch (error) {
    if (error instanceof ImageError) throw error;
    throw new ImageError("cannot read the image: the WebP file is damaged", { cause: error });
  } finally {
    decoder.close();
  }
}

function decodeAscii(bytes, start) {
  return String.fromCharCode(...bytes.subarray(start, start + 4));
}

function checkSize(width, height) {
  if (width * height > MAX_PIXELS) {
    throw new ImageError(`the image is too large: ${width} x ${height} is more than ${MAX_PIXELS} pixels`);
  }
}
