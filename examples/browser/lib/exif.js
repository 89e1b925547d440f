// Orientation of photos: where the camera was turned, and how to turn the pixels back.

const ORIENTATION_TAG = 0x0112;

/**
 * Return the orientation in EXIF data, 1 to 8; `null` without one.
 *
 * @param {Uint8Array} exif A TIFF header and its directory, with or without the "Exif" mark of JPEG before it.
 * @returns {number | null}
 */
export function readOrientation(exif) {
  const start = exif.length > 6 && String.fromCharCode(...exif.subarray(0, 4)) === "Exif" ? 6 : 0;
  const view = new DataView(exif.buffer, exif.byteOffset + start, exif.length - start);
  if (view.byteLength < 8) return null;
  const order = view.getUint16(0);
  if (order !== 0x4949 && order !== 0x4d4d) return null;
  const little = order === 0x4949;
  const directory = view.getUint32(4, little);
  if (directory + 2 > view.byteLength) return null;
  const count = view.getUint16(directory, little);
  for (let i = 0, at = directory + 2; i < count && at + 12 <= view.byteLength; i++, at += 12) {
    if (view.getUint16(at, little) === ORIENTATION_TAG) {
      const orientation = view.getUint16(at + 8, little);
      return orientation >= 1 && orientation <= 8 ? orientation : 1;
    }
  }
  return null;
}

/**
 * Return the upright image.
 *
 * @param {import("../openblip.js").Pixels} image Bytes (height, width, 3).
 * @param {number} orientation EXIF orientation, 1 to 8.
 * @returns {import("../openblip.js").Pixels} A new image, or the same one if it is upright.
 */
export function turnUpright(image, orientation) {
  if (orientation === 1) return image;
  const { data, width, height } = image;
  const swaps = orientation >= 5;
  const [newWidth, newHeight] = swaps ? [height, width] : [width, height];
  const mirrorsX = [2, 3, 7, 8].includes(orientation); // of the source, seen from the upright image
  const mirrorsY = [3, 4, 6, 7].includes(orientation);
  const upright = new Uint8Array(data.length);
  let out = 0;
  for (let y = 0; y < newHeight; y++) {
    for (let x = 0; x < newWidth; x++) {
      const u = swaps ? y : x;
      const v = swaps ? x : y;
      const sourceX = mirrorsX ? width - 1 - u : u;
      const sourceY = mirrorsY ? height - 1 - v : v;
      const at = (sourceY * width + sourceX) * 3;
      upright[out++] = data[at];
      upright[out++] = data[at + 1];
      upright[out++] = data[at + 2];
    }
  }
  return { data: upright, width: newWidth, height: newHeight };
}
