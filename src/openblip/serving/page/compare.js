/** Statements about two images. */

import { form as buildBody, sendJson } from "./api.js";
import { bar, byId, count, h, lines, percent } from "./dom.js";
import { InputNeeded, requireImages, Runner } from "./runner.js";
import { codeOf } from "./snippet.js";
import { findImage, on, state } from "./state.js";

/** Make the panel work; returns an object whose `clear` removes the results. */
export function connect() {
  const panel = byId("panel-compare");
  const form = panel.querySelector("form");
  const runner = new Runner(panel);
  const results = h("div", { class: "results", "aria-live": "polite" });
  const code = h("div");
  panel.append(results, code);

  const clear = () => {
    runner.cancel();
    results.replaceChildren();
    code.replaceChildren();
  };

  on("images", () => {
    for (const [position, select] of [form.elements.left, form.elements.right].entries()) {
      const previous = select.value;
      select.replaceChildren(...state.images.map((image) => h("option", { value: image.id }, image.file.name)));
      const image = findImage(Number(previous)) ?? state.images[position];
      if (image) select.value = image.id;
    }
    clear();
  });

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    try {
      requireImages(state.images, 2);
      const statements = lines(form.elements.statements.value);
      if (!statements.length) throw new InputNeeded("Type a statement first.", form.elements.statements);
      const images = [form.elements.left, form.elements.right].map((select) => findImage(Number(select.value)).file);
      runner.run((signal) => compare(images, statements, signal));
    } catch (error) {
      runner.fail(error);
    }
  });

  async function compare(files, statements, signal) {
    const fields = statements.map((statement) => ["statement", statement]);
    if (state.info.models.length > 1) fields.push(["model", state.model]);
    const response = await sendJson("v1/compare", { body: buildBody(fields, files), signal });
    const rows = response.results[0].comparisons.map(({ statement, label, probability }) =>
      bar(statement, probability, `${label ? "true" : "false"}, ${percent(probability)}`));
    results.replaceChildren(h("article", { class: "entry" },
      h("ul", { class: "bars" }, ...rows),
      h("p", { class: "hint" }, "Probability that the statement is true of the two images.")));
    code.replaceChildren(codeOf("v1/compare", fields, files, response));
    return count(statements.length, "statement");
  }

  return { clear };
}
