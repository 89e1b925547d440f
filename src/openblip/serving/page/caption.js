/** Captions. New images are captioned at once while the panel is open. */

import { bar, copyButton, decimal, h, percent } from "./dom.js";
import { filled, Panel } from "./panel.js";
import { on, state } from "./state.js";

const DEFAULT_BEAMS = 3; // of the server

function read(form) {
  const fields = [...filled(form, ["prompt", "n", "num_beams", "max_new_tokens", "top_p", "seed"])];
  if (form.elements.method.value === "sample") return [...fields, ["do_sample", true]];
  const beams = fields.find(([name]) => name === "num_beams");
  const wanted = form.elements.n.valueAsNumber || 1;
  if (!beams && wanted > DEFAULT_BEAMS) fields.push(["num_beams", wanted]); // a beam per caption
  return fields;
}

function render(result) {
  const captions = [result, ...result.alternatives];
  const numbers = [`score ${decimal(result.score)}`];
  if (result.confidence !== null) numbers.unshift(`confidence ${percent(result.confidence)}`);
  if (!result.finished) numbers.push("cut off at the longest length");
  if (result.unmet) numbers.push("a wanted word is missing");
  const others = captions.slice(1).map((caption) =>
    bar(caption.text, Math.exp(caption.score), decimal(caption.score)));
  return h("div", {},
    h("p", { class: "caption" }, result.text),
    h("div", { class: "below" }, h("span", { class: "numbers" }, numbers.join(" · ")),
      copyButton("Copy", () => result.text)),
    others.length ? h("details", { class: "alternatives", open: state.images.length === 1 },
      h("summary", {}, "Alternatives"),
      h("ul", { class: "bars small-bars" }, ...others),
      h("p", { class: "hint" }, "Scores are mean log-probabilities per token: closer to 0 is more likely.")) : null);
}

export function connect() {
  const panel = new Panel("caption", { read, render });
  const { form } = panel;
  const missing = () => state.images.filter((image) => !panel.results.has(image.id));
  const captionNew = () => {
    if (state.verb === "caption" && missing().length && state.info) panel.submit(missing());
  };
  on("images", captionNew);
  on("verb", captionNew);
  form.elements.method.addEventListener("change", () => {
    for (const label of form.querySelectorAll("[data-method]")) {
      label.hidden = label.dataset.method !== form.elements.method.value;
    }
  });
  return panel;
}
