/** Start the page: ask the server what it offers, then show those tasks. */

import { forgetKey, hasKey, onKeyNeeded, sendJson, storeKey } from "./api.js";
import * as ask from "./ask.js";
import * as caption from "./caption.js";
import * as compare from "./compare.js";
import { byId, count, h } from "./dom.js";
import * as explain from "./explain.js";
import * as ground from "./ground.js";
import * as images from "./images.js";
import * as match from "./match.js";
import * as search from "./search.js";
import { emit, on, state } from "./state.js";

const tabs = [...document.querySelectorAll("[role=tab]")];
const verbOf = (tab) => tab.id.replace("tab-", "");
const shownTabs = () => tabs.filter((tab) => !tab.hidden);

/** Open the panel of a task. */
function open(verb) {
  const tab = shownTabs().find((candidate) => verbOf(candidate) === verb) ?? shownTabs()[0];
  if (!tab) return;
  for (const candidate of tabs) {
    const selected = candidate === tab;
    candidate.setAttribute("aria-selected", String(selected));
    candidate.tabIndex = selected ? 0 : -1;
    byId(`panel-${verbOf(candidate)}`).hidden = !selected;
  }
  tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  state.verb = verbOf(tab);
  document.body.dataset.verb = state.verb;
  emit("verb");
}

function connectTabs() {
  for (const tab of tabs) {
    tab.addEventListener("click", () => { location.hash = verbOf(tab); });
    tab.addEventListener("keydown", (event) => {
      const shown = shownTabs();
      const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -shown.indexOf(tab), End: shown.length - 1 - shown.indexOf(tab) };
      if (!(event.key in steps)) return;
      event.preventDefault();
      const next = shown.at((shown.indexOf(tab) + steps[event.key]) % shown.length);
      next.focus();
      next.click();
    });
  }
  window.addEventListener("hashchange", () => open(location.hash.slice(1)));
}

/** Ask for a key in a dialog. Resolves to whether there is one. */
function askForKey(reason) {
  const dialog = byId("key-dialog");
  const field = byId("key");
  byId("key-reason").textContent = reason;
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const key = field.value.trim();
      field.value = "";
      if (dialog.returnValue === "use" && key) storeKey(key);
      resolve(dialog.returnValue === "use" && key !== "");
    }, { once: true });
  });
}

/** Show what the server offers: its models, tasks and limits. */
function describe(info) {
  const select = byId("model");
  select.replaceChildren(...info.models.map((name) => h("option", { value: name, selected: name === info.model }, name)));
  select.disabled = info.models.length < 2;
  byId("version").textContent = `OpenBLIP ${info.version}`
    + (info.index ? ` · ${count(info.index.images, "image")} in the index` : "");
  byId("link-edit").hidden = !info.edit;
  byId("link-docs").hidden = hasKey(); // a link cannot carry the key
  byId("forget").hidden = !hasKey();
  for (const tab of tabs) tab.hidden = !info.verbs.includes(verbOf(tab));
  for (const choice of document.querySelectorAll("[data-task]")) {
    choice.closest("label").hidden = !info.tasks.includes(choice.dataset.task);
  }
  const { limits } = info;
  const fields = document.querySelectorAll("[role=tabpanel] input:not([type]), [role=tabpanel] input[type=search]");
  for (const field of fields) field.maxLength = limits.max_text_chars;
  const largest = { n: limits.max_n, num_beams: limits.max_num_beams, max_new_tokens: limits.max_new_tokens };
  for (const [name, value] of Object.entries(largest)) {
    for (const field of document.querySelectorAll(`input[name=${name}]`)) field.max = value;
  }
}

async function start() {
  const banner = byId("banner");
  banner.hidden = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    state.info = await sendJson("v1/info");
  } catch (error) {
    banner.replaceChildren(h("span", {}, `${error.message} `),
      h("button", { type: "button", onclick: start }, error.status === 401 ? "Enter a key" : "Try again"));
    banner.hidden = false;
    return;
  } finally {
    document.body.removeAttribute("aria-busy");
  }
  state.model = state.info.model;
  describe(state.info);
  open(location.hash.slice(1));
}

onKeyNeeded(askForKey);
connectTabs();
images.connect();
const panels = [caption.connect(), ask.connect(), ...match.connect(), ground.connect(), explain.connect()];
compare.connect();
search.connect();
byId("model").addEventListener("change", (event) => {
  state.model = event.target.value;
  for (const panel of panels) panel.clear();
  emit("verb"); // caption again with the new model
});
byId("forget").addEventListener("click", () => {
  forgetKey();
  location.reload();
});
on("images", () => { document.body.classList.toggle("with-images", state.images.length > 0); });
start();
