/** Start the page: ask the server what it offers, then show those tasks. */

import { ApiError, sendJson } from "./api.js";
import * as ask from "./ask.js";
import * as caption from "./caption.js";
import * as compare from "./compare.js";
import { byId, count, h } from "./dom.js";
import * as explain from "./explain.js";
import * as ground from "./ground.js";
import * as images from "./images.js";
import * as key from "./key.js";
import * as match from "./match.js";
import * as search from "./search.js";
import { emit, state } from "./state.js";

const LOADING_WAIT = 1000; // milliseconds between two questions whether the model is loaded

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
    tab.addEventListener("click", () => {
      // The address may name this task already, while another one is open: a model without it was selected.
      if (location.hash.slice(1) === verbOf(tab)) open(verbOf(tab));
      else location.hash = verbOf(tab);
    });
    tab.addEventListener("keydown", (event) => {
      const shown = shownTabs();
      const position = shown.indexOf(tab);
      const targets = { ArrowRight: (position + 1) % shown.length, ArrowLeft: position - 1, Home: 0, End: -1 };
      if (!(event.key in targets)) return;
      event.preventDefault();
      const next = shown.at(targets[event.key]);
      next.focus();
      next.click();
    });
  }
  window.addEventListener("hashchange", () => open(location.hash.slice(1)));
}

/** Show what the server offers: its models, tasks and limits. */
function describe(info) {
  const select = byId("model");
  select.replaceChildren(...info.models.map((name) => h("option", { value: name }, name)));
  select.value = info.model;
  select.disabled = info.models.length < 2;
  byId("version").textContent = `OpenBLIP ${info.version}`
    + (info.index ? ` · ${count(info.index.images, "image")} in the index` : "");
  byId("link-edit").hidden = !info.edit;
  key.showForget();
  describeModel();
  const { limits } = info;
  const fields = document.querySelectorAll("[role=tabpanel] input:not([type]), [role=tabpanel] input[type=search]");
  for (const field of fields) field.maxLength = limits.max_text_chars;
  const largest = { n: limits.max_n, num_beams: limits.max_num_beams, max_new_tokens: limits.max_new_tokens };
  for (const [name, value] of Object.entries(largest)) {
    for (const field of document.querySelectorAll(`input[name=${name}]`)) field.max = value;
  }
}

/** Show the tasks of the selected model. */
function describeModel() {
  const { tasks, verbs } = state.info.by_model[state.model];
  for (const tab of tabs) tab.hidden = !verbs.includes(verbOf(tab));
  for (const choice of document.querySelectorAll("[data-task]")) {
    choice.closest("label").hidden = !tasks.includes(choice.dataset.task);
  }
}

/** Return the description of the server, once its model is loaded. */
async function readInfo() {
  const loading = byId("loading");
  try {
    for (;;) {
      const info = await sendJson("v1/info");
      if (info.verbs.length) return info;
      loading.hidden = false;
      await new Promise((resolve) => { setTimeout(resolve, LOADING_WAIT); });
    }
  } finally {
    loading.hidden = true;
  }
}

async function start() {
  const banner = byId("banner");
  banner.hidden = true;
  try {
    state.info = await readInfo();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    banner.replaceChildren(h("span", {}, `${error.message} `),
      h("button", { type: "button", onclick: start }, error.status === 401 ? "Enter a key" : "Try again"));
    banner.hidden = false;
    return;
  }
  state.model = state.info.model;
  describe(state.info);
  open(location.hash.slice(1));
}

key.connect();
connectTabs();
images.connect();
const panels = [caption.connect(), ask.connect(), ...match.connect(), ground.connect(), explain.connect(),
  compare.connect()];
search.connect();
byId("model").addEventListener("change", (event) => {
  state.model = event.target.value;
  for (const panel of panels) panel.clear();
  describeModel();
  open(state.verb); // caption again with the new model
});
start();
