// PNG to RGB with the results of OpenBLIP, byte for byte.
//
// A canvas cannot do this: it stores colors multiplied by their alpha, and applies gamma and color profiles. Here the
// samples are read as Pillow reads them, and transparent pixels are composited over white by Pillow's integer rule.

import { ImageError } from "./errors.js";
import { readOrientation, turnUpright } from "./exif.js";
import { compositeOverWhite } from "./pixels.js";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const GRAY = 0,
  RGB = 2,
  PALETTE = 3,
  GRAY_ALPHA = 4,
  RGB_ALPHA = 6;
const CHANNELS = { [GRAY]: 1, [RGB]: 3, [PALETTE]: 1, [GRAY_ALPHA]: 2, [RGB_ALPHA]: 4 };
const DEPTHS = {
  [GRAY]: [1, 2, 4, 8, 16],
  [RGB]: [8, 16],
  [PALETTE]: [1, 2, 4, 8],
  [GRAY_ALPHA]: [8, 16],
  [RGB_ALPHA]: [8, 16],
};
// The seven passes of an interlaced image: first column, first row, column step, row step.
const ADAM7 = [
  [0, 0, 8, 8],
  [4, 0, 8, 8],
  [0, 4, 4, 8],
  [2, 0, 4, 4],
  [0, 2, 2, 4],
  [1, 0, 2, 2],
  [0, 1, 1, 2],
];

/**
 * Return whether bytes start like a PNG file.
 *
 * @param {Uint8Array} bytes
 * @returns {boolean}
 */
export function isPng(bytes) {
  return SIGNATURE.every((byte, i) => bytes[i] === byte);
}

/**
 * Decode a PNG file to upright RGB.
 *
 * @param {Uint8Array} bytes The file.
 * @param {number} maxPixels Most pixels to decode.
 * @returns {Promise<import("../openblip.js").Pixels>} Bytes (height, width, 3).
 * @throws {ImageError} The file is damaged or too large.
 */
export async function decodePng(bytes, maxPixels = Infinity) {
  if (!isPng(bytes)) throw new ImageError("not a PNG file");
  const file = readChunks(bytes);
  const { width, height } = file;
  if (width * height > maxPixels) {
    throw new ImageError(`the image is too large: ${width} x ${height} is more than ${maxPixels} pixels`);
  }
  const scanlines = await inflate(file.data);
  const samples = readSamples(scanlines, file);
  const image = { data: toRgb(samples, file), width, height };
  return turnUpright(image, await findOrientation(file));
}

/** Read the chunks of a file: header, palette, transparency, compressed pixels and texts. */
function readChunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const file = { width: 0, height: 0, depth: 0, color: 0, interlaced: false, palette: null, transparency: null };
  const data = [];
  const texts = {};
  let exif = null;
  for (let at = SIGNATURE.length; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const content = bytes.subarray(at + 8, at + 8 + length);
    if (content.length < length) break; // truncated: the pixels so far may suffice
    at += 12 + length;
    if (type === "IHDR") {
      file.width = view.getUint32(at - 4 - length);
      file.height = view.getUint32(at - length);
      [file.depth, file.color] = [content[8], content[9]];
      file.interlaced = content[12] === 1;
    } else if (type === "PLTE") file.palette = content;
    else if (type === "tRNS") file.transparency = content;
    else if (type === "IDAT") data.push(content);
    else if (type === "eXIf") exif = content;
    else if (["tEXt", "zTXt", "iTXt"].includes(type)) {
      const end = content.indexOf(0);
      if (end > 0) texts[decodeLatin1(content.subarray(0, end))] = { type, content: content.subarray(end + 1) };
    } else if (type === "IEND") break;
  }
  if (!file.width || !file.height || !DEPTHS[file.color]?.includes(file.depth)) {
    throw new ImageError("the PNG file is damaged: it has no valid header");
  }
  if (!data.length) throw new ImageError("the PNG file is damaged: it has no pixels");
  return { ...file, data, texts, exif };
}

/** Decompress a zlib stream that is split into parts. */
async function inflate(parts) {
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const chunks = [];
  try {
    for (let reader = stream.getReader(), part = await reader.read(); !part.done; part = await reader.read()) {
      chunks.push(part.value);
    }
  } catch {
    // A stream that was cut off, or that is followed by other bytes: `readSamples` checks whether it has all pixels.
  }
  const bytes = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let at = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, at);
    at += chunk.length;
  }
  return bytes;
}

/** Undo filters, bit packing and interlacing: samples (height, width, channels), as 8-bit or 16-bit numbers. */
function readSamples(scanlines, { width, height, depth, color, interlaced }) {
  const channels = CHANNELS[color];
  const samples = depth === 16 ? new Uint16Array(width * height * channels) : new Uint8Array(width * height * channels);
  const pixelBytes = Math.max(1, (channels * depth) >> 3);
  let at = 0;
  for (const [startX, startY, stepX, stepY] of interlaced ? ADAM7 : [[0, 0, 1, 1]]) {
    const columns = Math.ceil((width - startX) / stepX);
    const rows = Math.ceil((height - startY) / stepY);
    if (columns <= 0 || rows <= 0) continue;
    const rowBytes = Math.ceil((columns * channels * depth) / 8);
    if (at + rows * (rowBytes + 1) > scanlines.length) throw new ImageError("the PNG file is damaged or truncated");
    let previous = new Uint8Array(rowBytes);
    for (let row = 0; row < rows; row++) {
      const line = scanlines.subarray(at + 1, at + 1 + rowBytes);
      undoFilter(scanlines[at], line, previous, pixelBytes);
      at += rowBytes + 1;
      previous = line;
      const target = (startY + row * stepY) * width;
      for (let column = 0; column < columns; column++) {
        const out = (target + startX + column * stepX) * channels;
        for (let channel = 0; channel < channels; channel++) {
          samples[out + channel] = readSample(line, column * channels + channel, depth);
        }
      }
    }
  }
  return samples;
}

function readSample(line, index, depth) {
  if (depth === 8) return line[index];
  if (depth === 16) return (line[2 * index] << 8) | line[2 * index + 1];
  const bit = index * depth;
  return (line[bit >> 3] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
}

/** Undo the filter of a row in place: None, Sub, Up, Average or Paeth. */
function undoFilter(filter, line, previous, pixelBytes) {
  if (filter > 4) throw new ImageError("the PNG file is damaged: it has an unknown filter");
  if (filter === 0) return;
  for (let i = 0; i < line.length; i++) {
    const left = i >= pixelBytes ? line[i - pixelBytes] : 0;
    const up = previous[i];
    if (filter === 1) line[i] += left;
    else if (filter === 2) line[i] += up;
    else if (filter === 3) line[i] += (left + up) >> 1;
    else line[i] += paeth(left, up, i >= pixelBytes ? previous[i - pixelBytes] : 0);
  }
}

function paeth(left, up, corner) {
  const toLeft = Math.abs(up - corner);
  const toUp = Math.abs(left - corner);
  const toCorner = Math.abs(left + up - 2 * corner);
  if (toLeft <= toUp && toLeft <= toCorner) return left;
  return toUp <= toCorner ? up : corner;
}

/** Convert samples to RGB bytes (height, width, 3), with transparent pixels over white. */
function toRgb(samples, { depth, color, palette, transparency }) {
  if (color === GRAY && depth === 16) return scaleGray(samples, transparency);
  const channels = CHANNELS[color];
  const count = samples.length / channels;
  const rgba = new Uint8Array(4 * count);
  if (color === PALETTE) {
    const colors = readPalette(palette, transparency);
    for (let i = 0; i < count; i++) rgba.set(colors.subarray(4 * samples[i], 4 * samples[i] + 4), 4 * i);
    return compositeOverWhite(rgba);
  }
  const shift = depth === 16 ? 8 : 0; // Pillow keeps the upper byte
  const scale = depth < 8 ? 255 / ((1 << depth) - 1) : 1;
  const colorChannels = color === GRAY || color === GRAY_ALPHA ? 1 : 3;
  const hidden = readHiddenColor(color, depth, transparency);
  for (let i = 0, at = 0, out = 0; i < count; i++, at += channels, out += 4) {
    for (let channel = 0; channel < 3; channel++) {
      rgba[out + channel] = (samples[at + (colorChannels === 1 ? 0 : channel)] * scale) >> shift;
    }
    if (channels > colorChannels) rgba[out + 3] = samples[at + colorChannels] >> shift;
    else rgba[out + 3] = hidden !== null && hidden.every((value, channel) => rgba[out + channel] === value) ? 0 : 255;
  }
  return compositeOverWhite(rgba);
}

/** Return 256 colors as red, green, blue and alpha. */
function readPalette(palette, transparency) {
  if (palette === null) throw new ImageError("the PNG file is damaged: it has no palette");
  const colors = new Uint8Array(4 * 256);
  for (let i = 0; i < 256; i++) {
    const known = 3 * i + 2 < palette.length;
    for (let channel = 0; channel < 3; channel++) colors[4 * i + channel] = known ? palette[3 * i + channel] : 0;
    colors[4 * i + 3] = transparency !== null && i < transparency.length ? transparency[i] : 255;
  }
  return colors;
}

/** Return the color of transparent pixels, which Pillow compares in 8 bits; `null` without one. */
function readHiddenColor(color, depth, transparency) {
  if (transparency === null || (color !== GRAY && color !== RGB)) return null;
  const values = new DataView(transparency.buffer, transparency.byteOffset, transparency.byteLength);
  if (transparency.length < (color === RGB ? 6 : 2)) throw new ImageError("the PNG file is damaged: truncated tRNS");
  if (color === RGB) return [0, 2, 4].map((at) => values.getUint16(at) & 0xff);
  const gray = depth === 1 ? (values.getUint16(0) ? 255 : 0) : values.getUint16(0) & 0xff;
  return [gray, gray, gray];
}

/** Scale 16-bit gray to bytes, as `openblip.preprocess` does, and repeat it for red, green and blue. */
function scaleGray(samples, transparency) {
  const hidden = transparency === null ? -1 : (transparency[0] << 8) | transparency[1];
  const rgb = new Uint8Array(samples.length * 3);
  for (let i = 0; i < samples.length; i++) {
    rgb.fill(samples[i] === hidden ? 255 : Math.round(samples[i] * (255 / 65535)), 3 * i, 3 * i + 3);
  }
  return rgb;
}

/** Return the EXIF orientation of a file: from its EXIF chunk, from the text that older programs write, or from XMP. */
async function findOrientation({ exif, texts }) {
  if (exif === null && texts["Raw profile type exif"]) {
    const lines = (await readText(texts["Raw profile type exif"])).split("\n").slice(3);
    exif = Uint8Array.from(lines.join("").match(/[0-9a-f]{2}/gi) ?? [], (digits) => parseInt(digits, 16));
  }
  const orientation = exif === null ? null : readOrientation(exif);
  if (orientation !== null || !texts["XML:com.adobe.xmp"]) return orientation ?? 1;
  const [, digit] = /tiff:Orientation(?:="|>)([1-8])/.exec(await readText(texts["XML:com.adobe.xmp"])) ?? [];
  return digit ? Number(digit) : 1;
}

/** Return the text of a tEXt, zTXt or iTXt chunk, after its keyword. */
async function readText({ type, content }) {
  if (type === "tEXt") return decodeLatin1(content);
  if (type === "zTXt") return decodeLatin1(await inflate([content.subarray(1)]));
  const isCompressed = content[0] === 1;
  const language = content.indexOf(0, 2);
  const text = content.subarray(content.indexOf(0, language + 1) + 1);
  return new TextDecoder().decode(isCompressed ? await inflate([text]) : text);
}

function decodeLatin1(bytes) {
  return Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
}
