// Decoded images: the ones shown last and the ones that come next.

import { getBlob, imagePath } from "./api.js";

const KEPT = 12;

/** Says why an image cannot be shown. */
export class Broken extends Error {}

export class Pictures {
  #kept = new Map();

  /** The decoded image; rejects with Broken. Asking for an image early is how it is fetched ahead. */
  get(id) {
    const known = this.#kept.get(id);
    this.#kept.delete(id);
    const bitmap = known ?? this.#load(id);
    this.#kept.set(id, bitmap);
    if (this.#kept.size > KEPT) this.#drop(this.#kept.keys().next().value);
    return bitmap;
  }

  ahead(ids) {
    for (const id of ids) this.get(id).catch(() => {});
  }

  async #load(id) {
    let blob;
    try {
      blob = await getBlob(imagePath("image", id));
    } catch (error) {
      this.#kept.delete(id);
      throw new Broken(error.message);
    }
    return createImageBitmap(blob).catch(() => {
      throw new Broken("the browser cannot decode the file");
    });
  }

  #drop(id) {
    const bitmap = this.#kept.get(id);
    this.#kept.delete(id);
    bitmap.then((image) => image.close()).catch(() => {});
  }
}
