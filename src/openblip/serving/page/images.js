/** The images: pick, drop or paste them, select and remove them. */

import { ApiError, send } from "./api.js";
import { asSentence, byId, h, megabytes } from "./dom.js";
import { emit, on, state } from "./state.js";
import * as stage from "./stage.js";

const MOST_IMAGES = 64; // previews stay in memory
const THUMBNAIL = 112; // pixels; previews of whole photos would need gigabytes
const EXTENSIONS = /\.(avif|bmp|gif|heic|heif|jfif|jpe?g|jxl|png|tiff?|webp)$/i;
let nextId = 1;

/** Show a sentence for a few seconds at the bottom of the page. */
function notify(sentence) {
  const notice = byId("notice");
  notice.textContent = sentence;
  clearTimeout(notify.timer);
  notify.timer = setTimeout(() => { notice.textContent = ""; }, 5000);
}

/** Add files, select the first of them, and say which could not be added. */
export function addFiles(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/") || EXTENSIONS.test(file.name));
  const skipped = files.length - images.length;
  const limit = state.info?.limits.max_body_bytes ?? Infinity;
  const fitting = images.filter((file) => file.size < limit);
  const added = fitting.slice(0, MOST_IMAGES - state.images.length)
    .map((file) => ({ id: nextId++, file, url: URL.createObjectURL(file), bitmap: null }));
  if (fitting.length < images.length) notify(`Images may have at most ${megabytes(limit)}.`);
  else if (added.length < fitting.length) notify(`This page takes at most ${MOST_IMAGES} images.`);
  else if (skipped) notify(skipped === 1 ? "One file is not an image." : `${skipped} files are not images.`);
  if (!added.length) return;
  state.images.push(...added);
  state.selected = added[0];
  emit("images");
  emit("selected");
}

/** Add an image of the server, named like a file of the user. Resolves to whether the server sent it. */
export async function addFrom(path, name) {
  try {
    const blob = await (await send(path)).blob();
    addFiles([new File([blob], name, { type: blob.type })]);
    return true;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    notify(asSentence(error.message));
    return false;
  }
}

export function select(image) {
  if (image === state.selected) return;
  state.selected = image;
  emit("selected");
}

function remove(image) {
  const index = state.images.indexOf(image);
  if (index < 0) return;
  URL.revokeObjectURL(image.url);
  state.images.splice(index, 1);
  state.selected = state.images[Math.min(index, state.images.length - 1)] ?? null;
  emit("images");
  emit("selected");
}

function clear() {
  for (const image of state.images) URL.revokeObjectURL(image.url);
  state.images.length = 0;
  state.selected = null;
  emit("images");
  emit("selected");
}

function drawStrip() {
  const { images, selected } = state;
  byId("empty").hidden = images.length > 0;
  byId("stage").hidden = images.length === 0;
  byId("clear").hidden = images.length < 2;
  byId("strip").hidden = images.length < 2;
  byId("strip").replaceChildren(...images.map((image) => h("li", {},
    h("button", { type: "button", "data-image": image.id, "aria-pressed": String(image === selected),
      "aria-label": `Show ${image.file.name}`, title: image.file.name, onclick: () => select(image) },
      thumbnail(image)))));
}

/** Return a small preview. Formats that the browser cannot show get their ending instead. */
export function thumbnail(image) {
  const preview = h("canvas", { width: THUMBNAIL, height: THUMBNAIL, class: "thumbnail" });
  image.bitmap ??= createImageBitmap(image.file, { resizeHeight: THUMBNAIL, resizeQuality: "medium" });
  image.bitmap.then((bitmap) => {
    preview.width = bitmap.width;
    preview.getContext("2d").drawImage(bitmap, 0, 0);
  }, () => {
    const ending = image.file.name.split(".").at(-1).slice(0, 5);
    preview.replaceWith(h("span", { class: "thumbnail" }, ending));
  });
  return preview;
}

function markSelected() {
  for (const button of byId("strip").querySelectorAll("button")) {
    const pressed = Number(button.dataset.image) === state.selected?.id;
    button.setAttribute("aria-pressed", String(pressed));
    if (pressed) button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  stage.show(state.selected);
}

function hasFiles(event) {
  return [...(event.dataTransfer?.types ?? [])].includes("Files");
}

/** Connect the buttons, the clipboard and the drop target, which is the whole window. */
export function connect() {
  const input = byId("files");
  for (const button of document.querySelectorAll(".choose")) button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => { addFiles(input.files); input.value = ""; });
  byId("remove").addEventListener("click", () => { remove(state.selected); focusImages(); });
  byId("clear").addEventListener("click", () => { clear(); focusImages(); });
  byId("strip").addEventListener("keydown", (event) => {
    if (event.key !== "Delete" && event.key !== "Backspace") return;
    event.preventDefault();
    remove(state.images.find((image) => image.id === Number(event.target.dataset.image)));
    focusImages();
  });
  for (const button of document.querySelectorAll("[data-example]")) {
    const name = button.dataset.example;
    button.addEventListener("click", () => addFrom(`static/example-${name}.webp`, `${name}.webp`));
  }
  document.addEventListener("paste", (event) => {
    const files = event.clipboardData?.files;
    if (!files?.length || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    addFiles(files);
  });
  connectDrop();
  on("images", drawStrip);
  on("selected", markSelected);
}

/** Keep the keyboard focus near the images after the button that had it is gone. */
function focusImages() {
  if (!state.images.length) byId("empty").querySelector("button").focus();
  else if (state.images.length > 1) byId("strip").querySelector("[aria-pressed=true]").focus();
  else byId("remove").focus();
}

function connectDrop() {
  const cover = byId("dropping");
  window.addEventListener("dragenter", (event) => { if (hasFiles(event)) cover.hidden = false; });
  window.addEventListener("dragover", (event) => event.preventDefault());
  window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) cover.hidden = true; });
  window.addEventListener("drop", (event) => {
    event.preventDefault(); // otherwise the browser opens the file in place of the page
    cover.hidden = true;
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.());
    if (hasFiles(event) && event.dataTransfer.files.length) {
      if (entries.some((entry) => entry?.isDirectory)) notify("Drop the images of a folder, not the folder.");
      else addFiles(event.dataTransfer.files);
    } else if (event.dataTransfer.types.includes("text/uri-list")) {
      notify("Save the image first, then drop the file.");
    }
  });
}
