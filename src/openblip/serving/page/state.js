/** What the panels share: the server's description, the images, and the selected one. */

export const state = {
  info: null, // the answer of GET v1/info
  model: null, // name of the model that requests name
  images: [], // { id, file, url, bitmap }
  selected: null, // one of the images
  verb: null, // name of the open panel
};

const events = new EventTarget();

/** Events: `images` (added or removed), `selected`, `verb`. */
export const emit = (name) => events.dispatchEvent(new Event(name));
export const on = (name, listener) => events.addEventListener(name, listener);

export const findImage = (id) => state.images.find((image) => image.id === id);
