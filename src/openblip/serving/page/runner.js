/** One running request of a form: its button, progress, a way to cancel, and the error. */

import { ApiError } from "./api.js";
import { asSentence, byId, h } from "./dom.js";
import { state } from "./state.js";

/** A field or an image is missing; the sentence says which, and `field` gets the focus. */
export class InputNeeded extends Error {
  constructor(message, field = null) {
    super(message);
    this.field = field;
  }
}

export class Runner {
  #controller = null;

  /** @param {HTMLElement} panel Element with a form that has a submit button and `.actions`. */
  constructor(panel) {
    const form = panel.querySelector("form");
    this.form = form;
    this.cancelButton = h("button", { type: "button", hidden: true }, "Cancel");
    this.cancelButton.addEventListener("click", () => {
      this.cancel();
      form.querySelector("[type=submit]").focus(); // this button is gone
    });
    this.status = h("span", { class: "status", role: "status" });
    this.progress = h("progress", { "aria-label": "Progress", hidden: true });
    this.error = h("p", { class: "error", role: "alert", hidden: true });
    form.querySelector(".actions").append(this.cancelButton, this.status);
    form.append(this.progress, this.error);
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !panel.hidden && !document.querySelector("dialog[open]")) this.cancel();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
  }

  /** Stop the request. The server drops it when the connection closes. */
  cancel() {
    this.#controller?.abort();
  }

  /**
   * Run work, in place of the work that runs.
   * @param {function(AbortSignal, function(number, number)): Promise<string>} work Receives a signal and a function for
   *   the progress; resolves to the sentence to show.
   */
  async run(work) {
    this.cancel();
    const controller = new AbortController();
    this.#controller = controller;
    this.#show({ busy: true });
    const start = performance.now();
    try {
      const sentence = await work(controller.signal, (done, total) => {
        if (this.#controller === controller && total > 1) Object.assign(this.progress, { value: done, max: total });
      });
      const seconds = (performance.now() - start) / 1000;
      if (this.#controller === controller) this.#show({ status: `${sentence} in ${seconds.toFixed(1)} s` });
    } catch (error) {
      if (this.#controller !== controller) return;
      if (error.name === "AbortError") this.#show({ status: "Canceled" });
      else this.fail(error);
    } finally {
      if (this.#controller === controller) this.#controller = null;
    }
  }

  /** Show an error of the server or of the input; anything else is a bug and is thrown again. */
  fail(error) {
    this.#show({ error: "The page failed." });
    if (error instanceof InputNeeded) {
      this.#show({ error: error.message });
      error.field?.focus();
    } else if (error instanceof ApiError) {
      const again = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
      this.#show({ error: `${sentence(error)}${again}` });
    } else {
      throw error;
    }
  }

  #show({ busy = false, status = "", error = "" }) {
    this.form.classList.toggle("busy", busy);
    this.cancelButton.hidden = !busy;
    this.progress.hidden = !busy;
    this.progress.removeAttribute("value");
    this.status.textContent = busy ? "Running" : status;
    this.error.textContent = error;
    this.error.hidden = !error;
  }
}

/** Return the message of an error, with the name of the image that it is about. */
function sentence(error) {
  const position = /^images?\.(\d+)$/.exec(error.param ?? "");
  const image = position && (error.images ?? state.images)[Number(position[1])];
  return image ? `${image.file.name}: ${asSentence(error.message)}` : asSentence(error.message);
}

/** Return the images, or ask for some. */
export function requireImages(images, wanted = 1) {
  if (!state.info) throw new InputNeeded("The server is not ready yet.");
  if (images.length >= wanted) return images;
  const button = document.querySelector(state.images.length ? "#stage .choose" : "#empty .choose");
  throw new InputNeeded(wanted === 1 ? "Add an image first." : `Add ${wanted} images first.`, button ?? byId("files"));
}
