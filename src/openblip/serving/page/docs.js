/** The reference of the API, from the server's OpenAPI document. */

import { ApiError, hasKey, sendJson } from "./api.js";
import { byId, h } from "./dom.js";
import * as key from "./key.js";

const LONGEST_EXAMPLE = 60; // characters of a text in an example
const JSON_TYPE = "application/json";

let schemas = {};

const resolve = (schema) => (schema.$ref ? schemas[schema.$ref.split("/").at(-1)] : schema);
const code = (text) => h("code", {}, text);
/** Return the parts of a text, those between backticks as code. */
const prose = (text) => text.split("`").map((part, index) => (index % 2 ? code(part) : part));

/** Write the type of a schema in words. */
function typeName(schema) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return [...new Set(choices.map(typeName))].filter((name) => name !== "null").join(" or ");
  if (schema.type === "array") return `list of ${schema.items ? typeName(schema.items) : "values"}`;
  return schema.type ?? "any value";
}

/** Return the names of the models in a schema. */
function modelNames(schema) {
  if (schema.$ref) return [schema.$ref.split("/").at(-1)];
  const parts = [...(schema.anyOf ?? []), ...(schema.oneOf ?? []), ...(schema.items ? [schema.items] : [])];
  return parts.flatMap(modelNames);
}

function fieldTable(model, label) {
  const required = new Set(model.required ?? []);
  const rows = Object.entries(model.properties ?? {}).map(([name, field]) => {
    const notes = [];
    if (field.description) notes.push(field.description);
    if (field.default !== undefined && field.default !== null) notes.push(`Default: ${JSON.stringify(field.default)}.`);
    return h("tr", {},
      h("th", { scope: "row" }, code(name), required.has(name) ? h("span", { class: "hidden" }, " (required)") : null),
      h("td", {}, typeName(field)),
      h("td", {}, ...prose(notes.join(" "))));
  });
  return h("div", { class: "table", tabindex: "0", role: "group", "aria-label": label },
    table(["Field", "Type", "Meaning"], rows));
}

const table = (columns, rows) => h("table", {},
  h("thead", {}, h("tr", {}, ...columns.map((name) => h("th", { scope: "col" }, name)))),
  h("tbody", {}, ...rows));

/** Return a table of a model, followed by those of the models in it. */
function modelTables(name, seen = new Set()) {
  if (seen.has(name) || !schemas[name]?.properties) return [];
  seen.add(name);
  const names = Object.values(schemas[name].properties).flatMap(modelNames);
  const nested = names.flatMap((other) => modelTables(other, seen));
  return [h("h4", {}, code(name)), fieldTable(schemas[name], name), ...nested];
}

function exampleOf(content) {
  const example = content?.example ?? Object.values(content?.examples ?? {})[0]?.value;
  if (example === undefined) return null;
  const shorten = (_, value) => (typeof value === "string" && value.length > LONGEST_EXAMPLE
    ? `${value.slice(0, LONGEST_EXAMPLE)}…` : value);
  return h("pre", { tabindex: "0", "aria-label": "Example" }, code(JSON.stringify(example, shorten, 2)));
}

function section(title, ...children) {
  const content = children.flat().filter(Boolean);
  return content.length ? [h("h3", {}, title), ...content] : [];
}

function routeArticle(path, method, route) {
  const body = route.requestBody?.content;
  const request = body?.[JSON_TYPE];
  const response = route.responses[200]?.content?.[JSON_TYPE];
  const tables = response?.schema ? modelNames(response.schema).flatMap((name) => modelTables(name)) : [];
  const parameters = (route.parameters ?? []).map((parameter) =>
    [parameter.name, { ...parameter.schema, description: parameter.description }]);
  return h("article", { id: anchor(path, method), class: "entry" },
    h("h2", {}, h("span", { class: "method" }, method.toUpperCase()), " ", code(path)),
    h("p", {}, ...prose(route.description ?? route.summary ?? "")),
    ...section("Parameters", parameters.length
      ? fieldTable({ properties: Object.fromEntries(parameters) }, `Parameters of ${path}`) : []),
    ...section("Example", exampleOf(request)),
    ...section("Request", request ? fieldTable(resolve(request.schema), `Fields of ${path}`) : []),
    ...(tables.length ? [h("details", {}, h("summary", {}, "Response"), ...tables)] : []));
}

const anchor = (path, method) => `${method}${path.replaceAll(/[^\w]+/g, "-")}`;

/** Return the table of the status codes of a route. */
function statusTable(route) {
  const rows = Object.entries(route.responses).map(([status, { description }]) =>
    h("tr", {}, h("th", { scope: "row" }, code(status)), h("td", {}, ...prose(description))));
  return h("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Status codes" },
    table(["Status", "Meaning"], rows));
}

function show(api) {
  schemas = api.components?.schemas ?? {};
  const routes = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, route]) => ({ path, method, route })));
  routes.sort((a, b) => Number(b.method === "post") - Number(a.method === "post")); // tasks before the server's state
  const withBody = routes.find(({ route }) => route.requestBody)?.route;
  byId("routes").replaceChildren(h("ul", {}, ...routes.map(({ path, method }) =>
    h("li", {}, h("a", { href: `#${anchor(path, method)}` }, path)))));
  byId("reference").replaceChildren(
    h("p", {}, ...prose(api.info.description ?? "")),
    h("p", { class: "hint" }, ...prose("Requests are JSON, or `multipart/form-data` with files in `image` and all "
      + "other fields by their name. Send a key as `Authorization: Bearer KEY`.")),
    ...routes.map(({ path, method, route }) => routeArticle(path, method, route)),
    ...(withBody ? [h("h2", {}, "Status codes"), statusTable(withBody)] : []));
  byId("link-document").hidden = hasKey(); // a link cannot carry the key
  key.showForget();
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

async function start() {
  const banner = byId("banner");
  banner.hidden = true;
  try {
    show(await sendJson("openapi.json"));
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    const again = h("button", { type: "button", onclick: start }, "Try again");
    banner.replaceChildren(h("span", {}, `${error.message} `), again);
    banner.hidden = false;
  }
}

key.connect();
start();
