"use strict";
// The live contact sheet: saves each caption when its text is left. `fields`, `changed`, `element` and `refresh` are
// those of the sheet, which this script follows.

const saving = new Set();

async function save(field) {
  if (saving.has(field) || !changed(field)) return;
  saving.add(field);
  const text = field.value;
  try {
    const response = await fetch(`edit/captions/${field.dataset.id}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ text, version: field.dataset.version }),
    });
    const body = await response.json();
    if (response.ok) adopt(field, body, text);
    else if (response.status === 409 && body.error.code === "version_conflict") await showConflict(field);
    else report(field, body.error.message);
  } catch (error) {
    report(field, `not saved: ${error.message}`);
  } finally {
    saving.delete(field);
    refresh();
    if (changed(field) && document.activeElement !== field && !field.dataset.problem) save(field);
  }
}

function adopt(field, saved, sent) {
  const untouched = field.value === sent;
  field.defaultValue = saved.text;
  field.dataset.version = saved.version;
  if (untouched) field.value = saved.text;
  report(field, "");
}

async function showConflict(field) {
  const response = await fetch(`edit/captions/${field.dataset.id}`);
  if (!response.ok) return report(field, "changed elsewhere, and cannot be read");
  const theirs = await response.json();
  const note = report(field, `changed elsewhere to: ${theirs.text || "(empty)"}`);
  note.append(" ", button("take it", () => { field.value = theirs.text; adopt(field, theirs, theirs.text); refresh(); }));
  note.append(" ", button("keep mine", () => { field.dataset.version = theirs.version; report(field, ""); save(field); }));
}

function button(text, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", action);
  return made;
}

function report(field, message) {
  let note = field.nextElementSibling;
  if (!note?.classList.contains("error")) {
    note = document.createElement("p");
    note.className = "error";
    note.setAttribute("role", "alert");
    field.after(note);
  }
  note.textContent = message;
  note.hidden = message === "";
  field.dataset.problem = message;
  return note;
}

for (const field of fields) {
  field.addEventListener("input", () => report(field, ""));
  field.addEventListener("change", () => save(field));
}
element("replace").addEventListener("click", () => fields.forEach(save));
window.addEventListener("beforeunload", (event) => { if (fields.some(changed)) event.preventDefault(); });
