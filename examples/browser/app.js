// The page: a photo comes in by drop, paste, file dialog or example; the worker describes it.

const MODEL = new URL("model/", document.baseURI).href;
const EXAMPLES = ["astronaut", "cat", "coffee", "grass", "photographer", "rocket"];

const $ = (id) => document.getElementById(id);
const page = {
  drop: $("drop"),
  file: $("file"),
  photo: $("photo"),
  invitation: $("invitation"),
  examples: $("examples"),
  status: $("status"),
  progress: $("progress"),
  caption: $("caption"),
  captionDetails: $("caption-details"),
  ask: $("ask"),
  question: $("question"),
  answer: $("answer"),
  match: $("match"),
  texts: $("texts"),
  matches: $("matches"),
};

// Requests to the worker.

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const requests = new Map();

worker.onmessage = ({ data: { id, result, error, progress } }) => {
  const request = requests.get(id);
  if (progress) return request.onProgress(progress);
  requests.delete(id);
  if (error) request.reject(Object.assign(new Error(error.message), { name: error.name }));
  else request.resolve(result);
};
worker.onerror = (event) => showError(new Error(event.message || "the worker stopped; reload the page"));

function call(method, args = [], onProgress = () => {}) {
  const id = crypto.randomUUID?.() ?? String(Math.random());
  return new Promise((resolve, reject) => {
    requests.set(id, { resolve, reject, onProgress });
    worker.postMessage({ id, method, args });
  });
}

// What the page says.

function showStatus(text) {
  page.status.textContent = text;
  page.status.classList.remove("error");
}

function showError(error) {
  const message = error.message;
  page.status.textContent = message[0].toUpperCase() + message.slice(1);
  page.status.classList.add("error");
  page.progress.hidden = true;
}

function showProgress({ loaded, total }) {
  page.progress.hidden = loaded >= total;
  page.progress.max = total;
  page.progress.value = loaded;
}

const percent = (probability) => `${(100 * probability).toFixed(probability < 0.1 ? 1 : 0)}%`;

/** Download what a task needs, unless it is here. */
const prepared = new Map();
function prepare(task, purpose) {
  if (!prepared.has(task)) {
    const download = loaded.then(() =>
      call("prepare", [task], (progress) => {
        showProgress(progress);
        const megabytes = (bytes) => (bytes / 1e6).toFixed(0);
        showStatus(`Loading the model ${purpose}: ${megabytes(progress.loaded)} of ${megabytes(progress.total)} MB`);
      }),
    );
    prepared.set(task, download);
    download.catch(() => prepared.delete(task));
  }
  return prepared.get(task);
}

// The photo.

let opening = Promise.resolve();
let latest = 0;

async function openPhoto(file) {
  const turn = ++latest;
  URL.revokeObjectURL(page.photo.src);
  page.photo.src = URL.createObjectURL(file);
  page.photo.hidden = false;
  page.invitation.hidden = true;
  page.caption.textContent = "…";
  page.captionDetails.textContent = "";
  page.answer.replaceChildren();
  page.matches.replaceChildren();
  setReady(false);
  // One photo after the other; of several that come while the first is read, only the latest.
  opening = opening.then(() => (turn === latest ? describePhoto(file) : undefined));
  await opening;
}

async function describePhoto(file) {
  try {
    await prepare("caption", "for captions");
    showStatus("Reading the photo");
    const start = performance.now();
    const { width, height } = await call("open", [file]);
    const caption = await call("caption");
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    page.caption.textContent = caption.text;
    page.photo.alt = caption.text;
    const certainty = caption.confidence === null ? "" : `${percent(caption.confidence)} sure · `;
    page.captionDetails.textContent = `${certainty}${width} × ${height} pixels · ${seconds} s on this device`;
    showStatus("");
    setReady(true);
  } catch (error) {
    page.caption.textContent = "";
    showError(error);
  }
}

function setReady(isReady) {
  for (const form of [page.ask, page.match]) form.querySelector("fieldset").disabled = !isReady;
}

// Questions and texts.

page.ask.addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = page.question.value.trim();
  if (!question) return;
  await work(page.ask, async () => {
    await prepare("vqa", "for questions");
    showStatus("Answering");
    const answer = await call("ask", [question]);
    page.answer.replaceChildren(
      ...[answer, ...answer.alternatives].map((each) => makeBar(each.text, each.probability)),
    );
  });
});

for (const button of document.querySelectorAll("[data-question]")) {
  button.addEventListener("click", () => {
    page.question.value = button.dataset.question;
    page.ask.requestSubmit();
  });
}

page.match.addEventListener("submit", async (event) => {
  event.preventDefault();
  const texts = page.texts.value
    .split("\n")
    .map((text) => text.trim())
    .filter(Boolean);
  if (!texts.length) return;
  await work(page.match, async () => {
    await prepare("retrieval", "for matches");
    showStatus("Comparing");
    const matches = await call("match", [texts]);
    const ranked = texts.map((text, i) => ({ text, ...matches[i] })).sort((a, b) => b.probability - a.probability);
    page.matches.replaceChildren(
      ...ranked.map(({ text, probability, similarity }) =>
        makeBar(text, probability, `similarity ${similarity.toFixed(2)}`),
      ),
    );
  });
});

async function work(form, task) {
  const fieldset = form.querySelector("fieldset");
  fieldset.disabled = true;
  const turn = latest;
  try {
    await task();
    showStatus("");
  } catch (error) {
    showError(error);
  }
  if (turn === latest) fieldset.disabled = false;
}

function makeBar(text, probability, note = "") {
  const item = document.createElement("li");
  const label = document.createElement("span");
  label.className = "label";
  label.textContent = text;
  const value = document.createElement("span");
  value.className = "value";
  value.textContent = percent(probability);
  if (note) value.title = note;
  const meter = document.createElement("div");
  meter.className = "bar";
  meter.style.setProperty("--share", probability);
  item.append(label, value, meter);
  return item;
}

// Ways to bring a photo.

page.file.addEventListener("change", () => {
  if (page.file.files[0]) openPhoto(page.file.files[0]);
  page.file.value = "";
});

for (const type of ["dragenter", "dragover"]) {
  addEventListener(type, (event) => {
    event.preventDefault();
    page.drop.classList.add("over");
  });
}
addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) page.drop.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  page.drop.classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) openPhoto(file);
  else showError(new Error("drop a file from this device; pictures of other pages are not fetched"));
});

addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (file) openPhoto(file);
});

for (const name of EXAMPLES) {
  const address = `photos/${name}.jpg`;
  const button = document.createElement("button");
  const image = new Image();
  button.type = "button";
  image.src = address;
  image.alt = `Example: ${name}`;
  image.onerror = () => button.remove();
  button.append(image);
  button.addEventListener("click", async () => {
    try {
      openPhoto(await (await fetch(address)).blob());
    } catch (error) {
      showError(error);
    }
  });
  page.examples.append(button);
}

const loaded = call("load", [MODEL]);
loaded
  .then(({ source, threads }) => {
    $("engine").textContent = `Model: ${source}. WebAssembly, ${threads} ${threads === 1 ? "thread" : "threads"}.`;
    return prepare("caption", "for captions").then(
      () => page.caption.textContent || showStatus("Ready, also without a network"),
    );
  })
  .catch(showError);
