/** Search in the index of the server, and a gallery of its images. */

import { form as buildBody, send, sendJson } from "./api.js";
import { byId, count, decimal, h, percent } from "./dom.js";
import { addFrom } from "./images.js";
import { filled } from "./panel.js";
import { InputNeeded, Runner } from "./runner.js";
import { codeOf } from "./snippet.js";
import { on, state } from "./state.js";

const FILTERS = ["folder", "after", "before", "caption"];
const RERANKED = 50; // images that are looked at again
const PAGE = 60; // images of the gallery per request
const UNREAD = 5; // names of unreadable images that are listed

export function connect() {
  const panel = byId("panel-search");
  const form = panel.querySelector("form");
  const runner = new Runner(panel);
  const summary = h("p", { class: "summary", "aria-live": "polite" });
  const gallery = h("ul", { class: "gallery" });
  const more = h("button", { type: "button", class: "more", hidden: true }, "Show more");
  const unread = h("p", { class: "error", role: "alert", hidden: true });
  const code = h("div");
  panel.append(summary, unread, gallery, more, code);
  const thumbnails = new Thumbnails();
  const photo = new PhotoDialog(thumbnails, { findSimilar });
  let cursor = null;
  let loaded = false;

  function show(items, append = false) {
    if (!append) {
      thumbnails.clear();
      gallery.replaceChildren();
    }
    gallery.append(...items.map((item) => h("li", {}, tile(item, thumbnails, () => photo.open(item)))));
  }

  /** Name the images that the re-rank could not read. */
  function showUnread(errors) {
    const names = errors.slice(0, UNREAD).map((image) => image.name).join(", ");
    const others = errors.length > UNREAD ? ` and ${errors.length - UNREAD} more` : "";
    unread.textContent = errors.length
      ? `Left out, because ${errors.length === 1 ? "the file" : "their files"} cannot be read: ${names}${others}.`
      : "";
    unread.hidden = !errors.length;
  }

  async function search(signal) {
    const image = form.elements.image.checked ? state.selected : null;
    const fields = [...filled(form, ["text", "minus", ...FILTERS])];
    const cutoff = form.elements.min_probability;
    if (form.elements.rerank.checked) {
      const { text } = form.elements;
      if (!text.value.trim()) throw new InputNeeded("Re-ranking needs a text.", text);
      fields.push(["rerank", RERANKED]);
      if (cutoff.value) fields.push(["min_probability", Number(cutoff.value) / 100]);
    }
    if (form.elements.hide_duplicates.checked) fields.push(["hide_duplicates", true]);
    if (state.info.models.length > 1) fields.push(["model", state.model]);
    fields.push(["n", Number(form.elements.n.value)]);
    const files = image ? [image.file] : [];
    const response = await sendJson("v1/search", { body: buildBody(fields, files), signal });
    show(response.results);
    more.hidden = true;
    const empty = response.nothing_found || !response.results.length;
    summary.textContent = empty ? nothingFound(response) : "";
    showUnread(response.errors);
    code.replaceChildren(codeOf("v1/search", fields, files, response));
    return count(response.results.length, "result");
  }

  /** List the images of the index that pass the filters, newest first. */
  async function browse(signal, append) {
    const query = new URLSearchParams([["n", PAGE], ...filled(form, FILTERS)]);
    if (append) query.set("cursor", cursor);
    const response = await sendJson(`v1/gallery?${query}`, { signal });
    show(response.items, append);
    showUnread([]);
    cursor = response.next;
    more.hidden = cursor === null;
    summary.textContent = response.total ? "" : "No image in the index passes the filters.";
    code.replaceChildren();
    return count(response.total, "image");
  }

  const hasQuery = () => form.elements.text.value.trim() || form.elements.minus.value.trim()
    || (form.elements.image.checked && state.selected);
  const submit = () => runner.run((signal) => (hasQuery() ? search(signal) : browse(signal, false)));

  async function findSimilar(item) {
    if (!(await addFrom(`${address(item)}?size=1024`, fileName(item)))) return;
    form.elements.text.value = "";
    form.elements.image.checked = true;
    submit();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  form.elements.rerank.addEventListener("change", () => {
    form.elements.min_probability.disabled = !form.elements.rerank.checked;
  });
  more.addEventListener("click", () => runner.run((signal) => browse(signal, true)));
  on("verb", () => {
    if (state.verb !== "search" || loaded) return;
    loaded = true;
    submit();
  });
  on("images", () => { if (state.verb === "search" && state.selected) form.elements.image.checked = true; });
  on("selected", () => {
    const image = state.selected;
    form.elements.image.disabled = !image;
    if (!image) form.elements.image.checked = false;
    byId("query-image").hidden = !image;
    if (image) byId("query-image").src = image.url;
    byId("query-image-label").textContent = image ? `With the image ${image.file.name}` : "With an image";
  });
}

/** Say why there are no results. */
function nothingFound({ best_rejected: best }) {
  const reason = "Nothing found. No image in the index matches the query and its filters.";
  return typeof best === "number" ? `${reason} The best one matches with ${percent(best)}.` : reason;
}

const address = (item) => item.thumbnail.replace(/^\//, ""); // the page may be served below a prefix
const fileName = (item) => `${item.name.split("/").at(-1).replace(/\.\w+$/, "")}.jpg`; // thumbnails are JPEG

/** Return the button of an image of the gallery. */
function tile(item, thumbnails, open) {
  const scores = [];
  if (typeof item.probability === "number") scores.push(percent(item.probability));
  else if (typeof item.similarity === "number") scores.push(decimal(item.similarity));
  const image = h("img", { alt: "", width: item.width, height: item.height });
  thumbnails.watch(image, `${address(item)}?size=320`);
  return h("button", { type: "button", class: "tile", onclick: open, title: item.name },
    image,
    h("span", { class: "tile-text" }, item.caption || item.name),
    scores.length ? h("span", { class: "tile-score" }, ...scores) : null);
}

/** Thumbnails that load when they come into view. Their requests carry the key, so `src` alone cannot load them. */
class Thumbnails {
  #observer = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) this.#load(target);
  }, { rootMargin: "300px" });
  #paths = new WeakMap();
  #urls = [];

  watch(image, path) {
    this.#paths.set(image, path);
    this.#observer.observe(image);
  }

  async #load(image) {
    this.#observer.unobserve(image);
    try {
      const blob = await (await send(this.#paths.get(image))).blob();
      const url = URL.createObjectURL(blob);
      this.#urls.push(url);
      image.src = url;
    } catch {
      image.classList.add("gone"); // the file was moved or removed after indexing
    }
  }

  clear() {
    this.#observer.disconnect();
    for (const url of this.#urls.splice(0)) URL.revokeObjectURL(url);
  }
}

/** An image of the index, large, with what is known about it. */
class PhotoDialog {
  constructor(thumbnails, { findSimilar }) {
    this.dialog = byId("photo");
    this.thumbnails = thumbnails;
    byId("photo-similar").addEventListener("click", () => {
      this.dialog.close();
      findSimilar(this.item);
    });
    byId("photo-use").addEventListener("click", async () => {
      this.dialog.close();
      if (await addFrom(`${address(this.item)}?size=1024`, fileName(this.item))) byId("tab-caption").click();
    });
    this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) this.dialog.close(); });
  }

  open(item) {
    this.item = item;
    const image = h("img", { alt: item.caption || item.name, width: item.width, height: item.height });
    this.thumbnails.watch(image, `${address(item)}?size=1024`);
    const facts = [
      ["Caption", item.caption],
      ["Probability", typeof item.probability === "number" ? percent(item.probability) : null],
      ["Similarity", typeof item.similarity === "number" ? decimal(item.similarity) : null],
      ["Date", item.date?.replace("T", " ")],
      ["Size", `${item.width} × ${item.height}`],
      ["Near-duplicates", item.duplicates?.length ? String(item.duplicates.length) : null],
    ];
    byId("photo-name").textContent = item.name;
    byId("photo-body").replaceChildren(image, h("dl", {}, ...facts.filter(([, value]) => value)
      .flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
    this.dialog.showModal();
  }
}
