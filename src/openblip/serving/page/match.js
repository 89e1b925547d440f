/** Texts ranked by how well they match an image, and labels ranked by probability. */

import { bar, decimal, h, lines, percent } from "./dom.js";
import { filled, Panel } from "./panel.js";
import { InputNeeded } from "./runner.js";

function readTexts(form) {
  const texts = lines(form.elements.texts.value);
  if (!texts.length) throw new InputNeeded("Type a text first.", form.elements.texts);
  return texts.map((text) => ["text", text]);
}

function renderMatches(result) {
  const ranked = [...result.matches].sort((a, b) => b.probability - a.probability);
  return h("div", {},
    h("ul", { class: "bars" }, ...ranked.map((match, index) =>
      bar(match.text, match.probability, percent(match.probability),
        { best: index === 0 && ranked.length > 1, note: `similarity ${decimal(match.similarity)}` }))),
    h("p", { class: "hint" },
      "Probability that text and image match (ITM), and cosine similarity of their embeddings (ITC)."));
}

function readLabels(form) {
  const labels = lines(form.elements.labels.value);
  if (!labels.length) throw new InputNeeded("Type some labels first.", form.elements.labels);
  const n = ["n", labels.length];
  return [...labels.map((label) => ["label", label]), ...filled(form, ["template", "by"]), n];
}

function renderLabels(result) {
  return h("ul", { class: "bars" }, ...result.labels.map((label, index) =>
    bar(label.text, label.probability, percent(label.probability), { best: index === 0 && result.labels.length > 1 })));
}

export function connect() {
  return [
    new Panel("match", { read: readTexts, render: renderMatches }),
    new Panel("classify", { read: readLabels, render: renderLabels }),
  ];
}
