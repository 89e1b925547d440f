/** A task about the images: a form, and results under it, one entry per image. */

import { form as buildBody, sendJson } from "./api.js";
import { asSentence, byId, count, h } from "./dom.js";
import { select, thumbnail } from "./images.js";
import { requireImages, Runner } from "./runner.js";
import { codeOf } from "./snippet.js";
import * as stage from "./stage.js";
import { findImage, on, state } from "./state.js";

export class Panel {
  /**
   * @param {string} verb Name of the route and of the panel's elements.
   * @param {Object} task
   * @param {function(HTMLFormElement): Array} task.read Returns the [name, value] pairs of a request, or throws
   *   InputNeeded.
   * @param {function(Object, Object): Node} task.render Returns the element of a result; receives the result and the
   *   image.
   * @param {function(Object): void} [task.draw] Draws a result over the selected image.
   * @param {function(): Array} [task.targets] Returns the images of a request; by default all.
   * @param {boolean} [task.keep] Whether earlier results stay below a new one.
   * @param {function(Object): number} [task.weight] Returns the texts per image, for the limit of pairs.
   */
  constructor(verb, task) {
    Object.assign(this, { verb, task });
    this.element = byId(`panel-${verb}`);
    this.form = this.element.querySelector("form");
    this.runner = new Runner(this.element);
    this.results = new Map(); // the last result of each image, by its id
    this.list = h("div", { class: "results", "aria-live": "polite" });
    this.code = h("div");
    this.element.append(this.list, this.code);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    on("images", () => this.#dropRemoved());
    on("selected", () => this.#showSelected());
    on("verb", () => this.#showSelected());
  }

  /** Send the form about images, by default those of the task. */
  submit(images = (this.task.targets ?? (() => state.images))()) {
    let fields;
    try {
      requireImages(images);
      fields = this.task.read(this.form);
    } catch (error) {
      this.runner.fail(error);
      return Promise.resolve();
    }
    return this.runner.run(async (signal, progress) => {
      const groups = chunk(images, fields);
      let done = 0;
      for (const group of groups) {
        progress(done, images.length);
        await this.#request(group, fields, signal);
        done += group.length;
      }
      return count(images.length, "image");
    });
  }

  async #request(images, fields, signal) {
    const files = images.map((image) => image.file);
    const all = images.length > 1 ? [...fields, ["on_error", "return"]] : fields;
    const extra = state.info.models.length > 1 ? [["model", state.model]] : [];
    const path = `v1/${this.verb}`;
    let response;
    try {
      response = await sendJson(path, { body: buildBody([...all, ...extra], files), signal });
    } catch (error) {
      error.images = images;
      throw error;
    }
    response.results.forEach((result, index) => this.#add(result, images[index]));
    const open = this.code.querySelector("details")?.open ?? false;
    this.code.replaceChildren(codeOf(path, [...all, ...extra], files, response));
    this.code.querySelector("details").open = open;
  }

  #add(result, image) {
    if (!findImage(image.id)) return; // removed while the request ran
    this.results.set(image.id, result);
    const content = result.error
      ? h("p", { class: "error" }, asSentence(result.error.message))
      : this.task.render(result, image);
    const entry = this.#entry(image);
    const body = entry.querySelector(".entry-body");
    if (this.task.keep) body.prepend(content);
    else body.replaceChildren(content);
    this.#showSelected();
  }

  /** Return the entry of an image, in the order of the images. */
  #entry(image) {
    const found = this.list.querySelector(`[data-entry="${image.id}"]`);
    if (found) return found;
    const entry = h("article", { class: "entry", "data-entry": image.id },
      h("button", { type: "button", class: "entry-image", "aria-label": `Show ${image.file.name}`,
        onclick: () => select(image) }, thumbnail(image)),
      h("div", { class: "entry-body" }));
    const order = state.images.map((other) => other.id);
    const position = order.indexOf(image.id);
    const next = [...this.list.children].find((other) => order.indexOf(Number(other.dataset.entry)) > position);
    this.list.insertBefore(entry, next ?? null);
    return entry;
  }

  #dropRemoved() {
    for (const entry of [...this.list.children]) {
      const id = Number(entry.dataset.entry);
      if (findImage(id)) continue;
      entry.remove();
      this.results.delete(id);
    }
    if (!this.list.children.length) this.code.replaceChildren();
    this.list.classList.toggle("several", state.images.length > 1);
  }

  /** Mark the entry of the selected image, and draw its result. */
  #showSelected() {
    if (state.verb !== this.verb) return;
    for (const entry of this.list.children) {
      entry.classList.toggle("current", Number(entry.dataset.entry) === state.selected?.id);
    }
    stage.clearOverlay();
    const result = this.results.get(state.selected?.id);
    if (result && !result.error) this.task.draw?.(result);
  }

  /** Forget all results, after an option changed. */
  clear() {
    this.runner.cancel();
    this.results.clear();
    this.list.replaceChildren();
    this.code.replaceChildren();
  }
}

/** Split images into requests that keep the server's limits. */
function chunk(images, fields) {
  const { max_images: mostImages, max_pairs: mostPairs, max_body_bytes: mostBytes } = state.info.limits;
  const most = Math.max(1, Math.min(mostImages, Math.floor(mostPairs / Math.max(1, fields.length))));
  const groups = [];
  let bytes = Infinity;
  for (const image of images) {
    if (bytes + image.file.size > mostBytes * 0.95 || groups.at(-1).length === most) {
      groups.push([]);
      bytes = 0;
    }
    groups.at(-1).push(image);
    bytes += image.file.size;
  }
  return groups;
}

/** Return the [name, value] pairs of the named fields of a form that are filled and shown. */
export function filled(form, names) {
  const pairs = [];
  for (const name of names) {
    const field = form.elements[name];
    const text = field.value.trim();
    if (text === "" || field.closest("[hidden]:not([role=tabpanel])")) continue;
    pairs.push([name, field.type === "number" ? Number(text) : text]);
  }
  return pairs;
}

