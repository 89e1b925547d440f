/** Heat maps: where the model looked for each word. Hover, focus or tap a word. */

import { h, percent } from "./dom.js";
import { Panel } from "./panel.js";
import { InputNeeded } from "./runner.js";
import * as stage from "./stage.js";
import { state } from "./state.js";

const LABELS = { retrieval: ["Text", "a woman in an orange suit"], vqa: ["Question", "what color is the suit?"] };
const sum = (map) => map.flat().reduce((total, value) => total + value, 0);
const most = (maps) => Math.max(...maps.flat(2));

function read(form) {
  const task = form.elements.task.value;
  if (task === "caption") return [["task", task]];
  const text = form.elements.text.value.trim();
  if (!text) throw new InputNeeded(`Type a ${LABELS[task][0].toLowerCase()} first.`, form.elements.text);
  return [["text", text], ["task", task]];
}

/** The views of an explanation: all words together, then each word. */
function views({ words, maps, overall }) {
  const peak = most(maps);
  return [{ map: overall, peak: most([overall]) }, ...words.map((word, index) => ({ map: maps[index], peak }))];
}

function draw(result) {
  const explanation = result.explanations[0];
  const { map, peak } = views(explanation)[result.pinned ?? 0];
  stage.drawHeat(map, peak);
}

function render(result) {
  const [explanation] = result.explanations;
  const all = views(explanation);
  const total = explanation.maps.reduce((heat, map) => heat + sum(map), 0);
  const shares = explanation.maps.map((map) => (total ? sum(map) / total : 0));
  const largest = Math.max(...shares, Number.EPSILON);
  result.pinned = 0;
  const preview = (index) => { stage.drawHeat(all[index].map, all[index].peak); };
  const buttons = ["All words", ...explanation.words].map((word, index) => {
    const share = index ? shares[index - 1] : 0;
    const button = h("button", { type: "button", class: index ? "word" : "word every",
      "aria-pressed": String(index === 0), title: index ? `${percent(share)} of the heat` : null }, word);
    if (index) {
      const [red, green, blue] = stage.heatColor(0.25 + 0.5 * (share / largest));
      button.style.borderBottomColor = `rgb(${red} ${green} ${blue})`;
      button.append(h("span", { class: "hidden" }, `, ${percent(share)} of the heat`));
    }
    button.addEventListener("click", () => {
      result.pinned = index;
      buttons.forEach((other, position) => other.setAttribute("aria-pressed", String(position === index)));
      preview(index);
    });
    for (const type of ["pointerenter", "focus"]) button.addEventListener(type, () => preview(index));
    for (const type of ["pointerleave", "blur"]) button.addEventListener(type, () => preview(result.pinned));
    return button;
  });
  const answer = explanation.answer ?? null;
  return h("div", {},
    answer === null ? null : h("p", { class: "caption" }, answer),
    h("div", { class: "words", role: "group", "aria-label": "Words" }, ...buttons),
    h("div", { class: "below" },
      h("span", { class: "numbers" },
        `probability${answer === null ? "" : " of the answer"} ${percent(explanation.probability)}`),
      h("span", { class: "scale" }, "less ", h("span", { class: "ramp", "aria-hidden": "true" }), " more heat")),
    h("p", { class: "hint" }, "Point at a word, or tap it, to see where the model looked for it."));
}

export function connect() {
  const panel = new Panel("explain", { read, render, draw, targets: () => (state.selected ? [state.selected] : []) });
  const { form } = panel;
  const field = document.getElementById("explain-label");
  for (const choice of form.elements.task) {
    choice.addEventListener("change", () => {
      field.hidden = choice.value === "caption";
      if (field.hidden) return;
      const [label, example] = LABELS[choice.value];
      field.querySelector("span").textContent = label;
      form.elements.text.placeholder = example;
    });
  }
  return panel;
}
