/** Questions, with the newest answer first. */

import { bar, h, lines, percent } from "./dom.js";
import { filled, Panel } from "./panel.js";
import { InputNeeded } from "./runner.js";

function read(form) {
  const question = form.elements.question.value.trim();
  if (!question) throw new InputNeeded("Type a question first.", form.elements.question);
  const answers = lines(form.elements.answers.value);
  const most = answers.length || Infinity; // of a closed list
  const numbers = filled(form, ["n"]).map(([name, value]) => [name, Math.min(value, most)]);
  return [["question", question], ...answers.map((answer) => ["answers", answer]), ...numbers];
}

function render(result) {
  return h("div", { class: "answers" }, ...result.answers.map((answer) => {
    const candidates = [answer, ...answer.alternatives];
    return h("section", { class: "answer" },
      h("p", { class: "question" }, answer.question),
      h("ul", { class: "bars" }, ...candidates.map((candidate, index) =>
        bar(candidate.text, candidate.probability, percent(candidate.probability), { best: index === 0 }))));
  }));
}

export function connect() {
  const panel = new Panel("ask", { read, render, keep: true });
  const { question } = panel.form.elements;
  panel.form.addEventListener("submit", () => question.select()); // the next question replaces it
  return panel;
}
