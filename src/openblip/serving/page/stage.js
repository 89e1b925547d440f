/** The selected image, large, with boxes or a heat map over it. */

import { byId, h } from "./dom.js";

/** Colors of boxes, in turn. White text on them has enough contrast. */
export const COLORS = ["#2f55d4", "#b3261e", "#1b7a3d", "#8e24aa", "#9a5b00", "#00707a"];
const MAP_SIZE = 160; // pixels along a side of a drawn heat map
// Colors of heat from none to most: dark violet, red, orange, pale yellow.
const HEAT = [[20, 11, 52], [101, 21, 110], [188, 55, 84], [237, 105, 37], [251, 180, 26], [252, 255, 190]];

/** Show an image, or nothing. */
export function show(image) {
  const frame = byId("frame");
  byId("image-name").textContent = image?.file.name ?? "";
  if (!image) return frame.replaceChildren();
  const preview = h("img", { src: image.url, alt: image.file.name });
  preview.addEventListener("error", () => {
    preview.replaceWith(h("p", { class: "no-preview" }, "The browser cannot show this format, but the server may be able to read it."));
  });
  return frame.replaceChildren(preview, h("div", { class: "overlay", "aria-hidden": "true" }));
}

const overlay = () => byId("frame").querySelector(".overlay");

/** Remove boxes and heat. */
export function clearOverlay() {
  overlay()?.replaceChildren();
  byId("frame").classList.remove("heated");
  document.body.classList.remove("drawn");
}

/** Draw boxes in pixels of an image of a width and height. */
export function drawBoxes({ boxes, width, height }) {
  clearOverlay();
  document.body.classList.add("drawn");
  const share = (value, size) => `${(value / size) * 100}%`;
  overlay()?.replaceChildren(...boxes.map((box, index) => {
    const label = h("span", { class: "box-label" }, box.expression);
    const element = h("div", { class: "box" }, label);
    element.style.left = share(box.left, width);
    element.style.top = share(box.top, height);
    element.style.width = share(box.right - box.left, width);
    element.style.height = share(box.bottom - box.top, height);
    element.style.color = COLORS[index % COLORS.length];
    if (box.left > width / 2) element.classList.add("right");
    if (box.top < height / 10) element.classList.add("low");
    return element;
  }));
  separate([...(overlay()?.querySelectorAll(".box-label") ?? [])]);
}

/** Move labels down until none covers another. */
function separate(labels) {
  const placed = [];
  for (const label of labels) {
    const { left, right, top, height } = label.getBoundingClientRect();
    const neighbors = placed.filter((other) => left < other.right && other.left < right);
    let y = top;
    while (neighbors.some((other) => Math.abs(y - other.y) < height)) y += 1;
    label.style.transform = `translateY(${y - top}px)`;
    placed.push({ left, right, y });
  }
}

/** Emphasize a box; null for none. */
export function emphasizeBox(index) {
  overlay()?.querySelectorAll(".box").forEach((box, position) => {
    box.classList.toggle("faded", index !== null && position !== index);
  });
}

/**
 * Draw a heat map.
 * @param {number[][]} map Rows of a grid that covers the whole image.
 * @param {number} most Value of the strongest color.
 */
export function drawHeat(map, most) {
  if (!overlay()) return;
  byId("frame").classList.add("heated");
  document.body.classList.add("drawn");
  const canvas = overlay().querySelector("canvas") ?? overlay().appendChild(h("canvas"));
  canvas.width = MAP_SIZE;
  canvas.height = MAP_SIZE;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(MAP_SIZE, MAP_SIZE);
  for (let y = 0; y < MAP_SIZE; y++) {
    for (let x = 0; x < MAP_SIZE; x++) {
      const level = most > 0 ? Math.min(1, interpolate(map, (y + 0.5) / MAP_SIZE, (x + 0.5) / MAP_SIZE) / most) : 0;
      pixels.data.set([...heatColor(level), Math.round(255 * (0.35 + 0.4 * level))], 4 * (y * MAP_SIZE + x));
    }
  }
  context.putImageData(pixels, 0, 0);
}

/** Return the color of a heat from 0 to 1. */
export function heatColor(level) {
  const position = level * (HEAT.length - 1);
  const index = Math.min(Math.floor(position), HEAT.length - 2);
  const weight = position - index;
  return HEAT[index].map((value, channel) => Math.round(value + (HEAT[index + 1][channel] - value) * weight));
}

/** Interpolate a grid smoothly at a point, given as shares of its height and width. */
function interpolate(map, vertical, horizontal) {
  const [top, bottom, down] = between(vertical, map.length);
  const [left, right, across] = between(horizontal, map[0].length);
  const upper = map[top][left] * (1 - across) + map[top][right] * across;
  const lower = map[bottom][left] * (1 - across) + map[bottom][right] * across;
  return upper * (1 - down) + lower * down;
}

/** Return the two cells around a position, and the weight of the second. */
function between(share, cells) {
  const position = Math.max(0, Math.min(cells - 1, share * cells - 0.5));
  const first = Math.floor(position);
  const weight = position - first;
  return [first, Math.min(cells - 1, first + 1), weight * weight * (3 - 2 * weight)];
}
