/** Requests to the server. The key is kept in sessionStorage and sent as a header, never in an address. */

const STORED_KEY = "openblip-key";
let askForKey = null;
let pendingKey = null;

/** An error of the server, or the sentence that it does not answer. */
export class ApiError extends Error {
  constructor(message, { status = 0, param = null, code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code, retryAfter });
  }
}

export const hasKey = () => sessionStorage.getItem(STORED_KEY) !== null;
export const storeKey = (key) => sessionStorage.setItem(STORED_KEY, key);
export const forgetKey = () => sessionStorage.removeItem(STORED_KEY);

/** Set the function that asks for a key; it receives the server's error and resolves to whether there is one. */
export const onKeyNeeded = (ask) => { askForKey = ask; };

/** Send a request and return the response. Asks for a key when the server wants one, then sends it again. */
export async function send(path, { body, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(STORED_KEY);
    const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
    let response;
    try {
      response = await fetch(path, { method: body ? "POST" : "GET", body, headers, signal, credentials: "omit" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server does not respond. Check that it is running, then try again.");
    }
    if (response.ok) return response;
    const error = await readError(response);
    if (response.status !== 401) throw error;
    pendingKey ??= askForKey(error).finally(() => { pendingKey = null; });
    if (!(await pendingKey)) throw error;
    signal?.throwIfAborted();
  }
}

/** Send a request and return the JSON of the response. */
export const sendJson = async (path, options) => (await send(path, options)).json();

async function readError(response) {
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  let error = {};
  try {
    ({ error } = await response.json());
  } catch {
    // A proxy answered, not the server.
  }
  const message = error?.message ?? `The server answered with status ${response.status}.`;
  return new ApiError(message, { status: response.status, param: error?.param, code: error?.code, retryAfter });
}

/** Build the body of a request from [name, value] pairs and files. */
export function form(fields, files = []) {
  const body = new FormData();
  for (const [name, value] of fields) body.append(name, String(value));
  for (const file of files) body.append("image", file, file.name);
  return body;
}
