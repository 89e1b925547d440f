/** Boxes around what expressions name, drawn over the image. */

import { bar, h, lines, percent } from "./dom.js";
import { Panel } from "./panel.js";
import { InputNeeded } from "./runner.js";
import * as stage from "./stage.js";

function read(form) {
  const expressions = lines(form.elements.expressions.value);
  if (!expressions.length) throw new InputNeeded("Type an expression first.", form.elements.expressions);
  return expressions.map((expression) => ["expression", expression]);
}

function render(result) {
  const rows = result.boxes.map((box, index) => {
    const size = `${Math.round(box.right - box.left)} × ${Math.round(box.bottom - box.top)} px`;
    const corner = `at ${Math.round(box.left)}, ${Math.round(box.top)}`;
    // The geometric mean of the four probabilities is easier to read than their product.
    const row = bar(box.expression, Math.exp(box.score), percent(Math.exp(box.score)),
      { note: `${size} ${corner}`, color: stage.COLORS[index % stage.COLORS.length] });
    row.tabIndex = 0;
    for (const type of ["pointerenter", "focus"]) row.addEventListener(type, () => stage.emphasizeBox(index));
    for (const type of ["pointerleave", "blur"]) row.addEventListener(type, () => stage.emphasizeBox(null));
    return row;
  });
  return h("div", {},
    h("ul", { class: "bars" }, ...rows),
    h("p", { class: "hint" }, "Mean probability of the four edges. Every expression gets a box, even if the image does "
      + "not show it."));
}

export const connect = () => new Panel("ground", { read, render, draw: stage.drawBoxes });
