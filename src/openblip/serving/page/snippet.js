/** Code that repeats a request: curl and Python, next to the JSON of the response. */

import { hasKey } from "./api.js";
import { copyButton, h } from "./dom.js";

const LONGEST_RESPONSE = 20000; // characters

const shellQuote = (text) => (/^[\w./:@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
// Inside the double quotes of curl's -F, only quotes and backslashes have a meaning.
const curlFile = (name) => `image=@"${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
const python = (value) => {
  if (typeof value === "boolean") return value ? "True" : "False";
  return typeof value === "number" ? String(value) : JSON.stringify(value);
};

/** Return the curl command of a request. */
export function curlCommand({ url, fields, files }) {
  const parts = [`curl ${shellQuote(url)}`];
  if (hasKey()) parts.push('-H "Authorization: Bearer $OPENBLIP_API_KEY"');
  for (const name of files) parts.push(`-F ${shellQuote(curlFile(name))}`);
  for (const [name, value] of fields) parts.push(`--form-string ${shellQuote(`${name}=${value}`)}`);
  return parts.join(" \\\n  ");
}

/** Return the Python program of a request: a form with files, or JSON. */
export function pythonProgram({ url, fields, files }) {
  const values = new Map();
  for (const [name, value] of fields) {
    const text = files.length && typeof value === "boolean" ? String(value) : value; // forms have texts only
    values.set(name, [...(values.get(name) ?? []), python(text)]);
  }
  const items = [...values].map(([name, list]) =>
    `${python(name)}: ${list.length === 1 ? list[0] : `[${list.join(", ")}]`}`);
  const block = (name, opening, rows, closing) =>
    (rows.length ? [`    ${name}=${opening}`, ...rows.map((row) => `        ${row},`), `    ${closing},`] : []);
  return [
    ...(hasKey() ? ["import os", ""] : []),
    "import requests",
    "",
    "response = requests.post(",
    `    ${python(url)},`,
    ...(hasKey() ? ['    headers={"Authorization": f"Bearer {os.environ[\'OPENBLIP_API_KEY\']}"},'] : []),
    ...block("files", "[", files.map((name) => `("image", open(${python(name)}, "rb"))`), "]"),
    ...block(files.length ? "data" : "json", "{", items, "}"),
    "    timeout=60,",
    ")",
    "response.raise_for_status()",
    'print(response.json()["results"])',
  ].join("\n");
}

/** Return the element with the code of a request. */
export function codeOf(path, fields, files, response) {
  const url = new URL(path, document.baseURI).href.split("#")[0];
  const request = { url, fields, files: files.map((file) => file.name) };
  const texts = {
    curl: curlCommand(request),
    Python: pythonProgram(request),
    JSON: JSON.stringify(response, null, 2).slice(0, LONGEST_RESPONSE),
  };
  const code = h("code", {}, texts.curl);
  const buttons = Object.keys(texts).map((name) =>
    h("button", { type: "button", class: "small", "aria-pressed": String(name === "curl") }, name));
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      code.textContent = texts[button.textContent];
    });
  }
  return h("details", { class: "code" },
    h("summary", {}, "Code for this request"),
    h("div", { class: "code-bar" },
      h("div", { class: "segments", role: "group", "aria-label": "Language" }, ...buttons),
      copyButton("Copy", () => code.textContent)),
    h("pre", { tabindex: "0", "aria-label": "Code" }, code));
}
