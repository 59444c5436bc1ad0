// The data set at a glance: thumbnails with their labels, filtered, searched and ordered.

import { imagePath } from "./api.js";
import { element, notice } from "./dom.js";

const BATCH = 60;
const AHEAD = 600; // CSS pixels below the screen that are filled
const FILTERS = [
  ["all", "All images"], ["unlabeled", "Without any label"], ["points", "With points"], ["tags", "With tags"],
  ["boxes", "With boxes"], ["masks", "With masks"], ["broken", "Broken images"],
];
const ORDERS = [["list", "As listed"], ["least_sure", "Least sure first"]];

export class BrowseMode {
  name = "browse";
  title = "Browse";
  dirty = 0;
  help = [
    ["arrow keys", "move between the images"], ["Enter", "open the image in the mode used last"], ["/", "search an image by its name"],
    ["Home, End", "first, last image shown"],
  ];

  constructor(app) {
    this.app = app;
    this.grid = element("div", { class: "grid", role: "group", "aria-label": "Images" });
    this.count = element("p", { class: "quiet count", role: "status" });
    this.end = element("div", { class: "end", "aria-hidden": "true" });
    this.filter = element("select", { change: () => this.reload() }, ...FILTERS.map(([value, text]) => element("option", { value }, text)));
    this.order = element("select", { change: () => this.reload() }, ...ORDERS.map(([value, text]) => element("option", { value }, text)));
    this.field = element("input", { type: "search", placeholder: "Part of the name", autocomplete: "off", spellcheck: "false", input: () => this.#later() });
    this.element = element("section", { class: "browse", "aria-label": "Browse the images" },
      element("div", { class: "filters" }, element("label", {}, "Show", this.filter), element("label", {}, "Order", this.order),
        element("label", {}, "Search ", this.field), this.count),
      this.grid, this.end);
    app.list.addEventListener("grow", () => this.#grown());
    new IntersectionObserver((seen) => seen.some((entry) => entry.isIntersecting) && this.#fill(), { rootMargin: `${AHEAD}px` }).observe(this.end);
  }

  async show() {
    this.app.watch(null);
    this.visible = true;
    const { filter, order, search } = this.app.list.options;
    this.filter.value = filter;
    this.order.value = order;
    this.field.value = search;
    await this.reload();
    this.grid.querySelector("[tabindex='0']")?.focus({ preventScroll: true });
  }

  hide() {
    this.visible = false;
    clearTimeout(this.timer);
  }

  async reload() {
    this.grid.replaceChildren();
    this.stamp = Date.now();
    await this.app.list.load({ filter: this.filter.value, order: this.order.value, search: this.field.value.trim() });
  }

  search() {
    this.field.focus();
  }

  #later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.reload(), 200);
  }

  #grown() {
    if (!this.visible) return;
    const { total } = this.app.list;
    this.count.textContent = `${total} image${total === 1 ? "" : "s"}`;
    if (total === 0) this.#nothing();
    else this.#fill();
  }

  /** Adds thumbnails until they reach beyond the screen, however large it is. */
  #fill() {
    const near = this.visible && this.end.getBoundingClientRect().top < innerHeight + AHEAD;
    if (near && this.#more()) requestAnimationFrame(() => this.#fill());
  }

  #nothing() {
    const text = this.app.session.images
      ? notice("No image fits", ["Choose another filter, or search for less."])
      : notice("There are no images", ["The data set's split lists no image. Put images into it, or choose another split with --split."]);
    this.grid.replaceChildren(text);
  }

  #more() {
    const shown = this.grid.querySelectorAll(".card").length;
    const next = this.app.list.entries.slice(shown, shown + BATCH);
    this.grid.append(...next.map((entry, index) => this.#card(entry, shown + index === 0)));
    return next.length > 0;
  }

  #card(entry, first) {
    const picture = entry.problem
      ? element("span", { class: "broken" }, `Cannot be shown: ${entry.problem}`)
      : element("img", { src: `${imagePath("thumbnail", entry.id)}?labels=1&at=${this.stamp}`, alt: "", loading: "lazy", decoding: "async", width: "240", height: "180" });
    if (!entry.problem) {
      picture.addEventListener("error", () => picture.replaceWith(element("span", { class: "broken" }, "Cannot be shown")), { once: true });
    }
    const kinds = entry.kinds.length ? entry.kinds.join(", ") : "no label";
    const sure = entry.uncertainty === null || entry.uncertainty === undefined ? "" : ` · unsure ${entry.uncertainty.toFixed(2)}`;
    return element("button", { type: "button", class: "card", tabindex: first ? "0" : "-1", click: () => this.app.openLast(entry.id) },
      element("span", { class: "thumb" }, picture),
      element("span", { class: "name" }, entry.id), element("span", { class: "quiet" }, kinds + sure));
  }

  key(event) {
    const cards = [...this.grid.querySelectorAll(".card")];
    const at = cards.indexOf(document.activeElement);
    if (!cards.length) return false;
    const top = cards[0].offsetTop;
    const across = Math.max(cards.findIndex((card) => card.offsetTop !== top), 1);
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -at, End: cards.length - 1 - at };
    if (!(event.key in steps)) return false;
    const target = cards[Math.min(Math.max(at + steps[event.key], 0), cards.length - 1)];
    for (const card of cards) card.tabIndex = card === target ? 0 : -1;
    target.focus();
    return true;
  }
}
