/** The dialog that asks for an API key. */

import { forgetKey, hasKey, onKeyNeeded, storeKey } from "./api.js";
import { asSentence, byId, h } from "./dom.js";

/** Ask whenever the server wants a key, and let the button `forget` remove it. */
export function connect() {
  onKeyNeeded(ask);
  byId("forget").addEventListener("click", () => {
    forgetKey();
    location.reload();
  });
}

/** Show the button if there is a key to forget. */
export function showForget() {
  byId("forget").hidden = !hasKey();
}

/** Ask for a key, after an error of the server. Resolves to whether there is one. */
function ask(error) {
  const isFirst = error.code === "missing_api_key";
  const reason = isFirst ? "Ask the operator of the server for one." : asSentence(error.message);
  const field = h("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const dialog = h("dialog", { "aria-labelledby": "key-title" },
    h("form", { method: "dialog" },
      h("h2", { id: "key-title" }, "This server needs a key"),
      h("p", { class: "reason" }, reason),
      h("label", {}, "API key ", field),
      h("p", { class: "hint" }, "The key stays in this tab until you close it."),
      h("div", { class: "actions" },
        h("button", { type: "submit", value: "use", class: "primary" }, "Use key"),
        h("button", { type: "submit", value: "cancel", formnovalidate: true }, "Cancel"))));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const key = field.value.trim();
      const used = dialog.returnValue === "use" && key !== "";
      if (used) storeKey(key);
      dialog.remove();
      resolve(used);
    });
  });
}
