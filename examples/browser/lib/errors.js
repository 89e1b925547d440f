// Errors with a message for users. Their names are those of the Python package.

/** The base class of all errors of this module. */
export class OpenBlipError extends Error {
  constructor(message, options) {
    super(message, options);
    this.name = this.constructor.name;
  }
}

/** An image cannot be read. */
export class ImageError extends OpenBlipError {}

/** An argument has a wrong type or value. */
export class InputError extends OpenBlipError {}

/** The exported model is incomplete, damaged or of another version. */
export class ExportError extends OpenBlipError {}
