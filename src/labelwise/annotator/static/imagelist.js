// The images in the order chosen in Browse; the other modes walk along the same list.

import { get } from "./api.js";

const PAGE = 200;

export class ImageList extends EventTarget {
  entries = [];
  total = null;
  options = { filter: "all", search: "", order: "list" };
  #ticket = null;
  #first = null;

  /** Starts a list anew; resolves when its first page is there, further pages follow (event `grow`). */
  load(options = this.options) {
    this.options = { ...this.options, ...options };
    this.entries = [];
    this.total = null;
    const ticket = (this.#ticket = Symbol("list"));
    this.#first = this.#page(ticket).then(() => void this.#rest(ticket));
    return this.#first;
  }

  /** Resolves when there is a first page. */
  ready() {
    return this.#first ?? this.load();
  }

  index(id) {
    return this.entries.findIndex((entry) => entry.id === id);
  }

  async #page(ticket) {
    const query = new URLSearchParams({ ...this.options, offset: this.entries.length, count: PAGE });
    const reply = await get(`/api/images?${query}`);
    if (ticket !== this.#ticket) return false;
    this.total = reply.total;
    this.entries.push(...reply.images);
    this.dispatchEvent(new Event("grow"));
    return reply.images.length > 0 && this.entries.length < reply.total;
  }

  async #rest(ticket) {
    while (ticket === this.#ticket && this.entries.length < this.total && (await this.#page(ticket)));
  }
}
