/** Elements of the page. Texts only ever become text nodes, never HTML. */

export const byId = (id) => document.getElementById(id);

/**
 * Create an element.
 * @param {string} tag
 * @param {Object} attributes `onclick` and other functions become listeners; `true` is an empty attribute; `false`,
 *   `null` and `undefined` are left out.
 * @param {...(Node|string|number|null)} children Strings become text nodes.
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return a button that copies a text. */
export function copyButton(label, text) {
  const button = h("button", { type: "button", class: "small" }, label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed"; // by the browser; pages without TLS may not copy
    }
    setTimeout(() => { button.textContent = label; }, 1500);
  });
  return button;
}

/** Return a row with a text, a bar and a number, which screen readers read as one sentence. */
export function bar(text, fraction, number, { best = false, note = null, color = null } = {}) {
  const fill = h("span", { class: "fill" });
  fill.style.width = `${Math.max(0, Math.min(1, fraction)) * 100}%`;
  if (color) fill.style.background = color;
  return h("li", { class: best ? "bar best" : "bar" },
    h("span", { class: "bar-text" }, text),
    h("span", { class: "bar-number" }, number),
    h("span", { class: "track", "aria-hidden": "true" }, fill),
    note && h("span", { class: "bar-note" }, note));
}

/** Write a probability in percent. */
export function percent(probability) {
  const value = probability * 100;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  if (value < 100 && value > 99.9) return "> 99.9 %";
  return `${value.toFixed(value < 10 || value > 99 ? 1 : 0)} %`;
}

/** Write a signed number with two digits. */
export const decimal = (value) => value.toFixed(2).replace("-", "−");

/** Write a count with its noun. */
export const count = (number, noun, plural = `${noun}s`) => `${number} ${number === 1 ? noun : plural}`;

/** Write a number of bytes. */
export const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

/** Write a message of the server as a sentence. */
export const asSentence = (message) =>
  message.charAt(0).toUpperCase() + message.slice(1) + (/[.!?]$/.test(message) ? "" : ".");

/** Split a text field into its lines. */
export const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
