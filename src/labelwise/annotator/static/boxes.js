// Boxes: dragged, clicked at their four extreme points, or made and moved with the keyboard.

import { imagePath } from "./api.js";
import { ClassButtons } from "./classes.js";
import { button, element, isShiftLetter, swatch } from "./dom.js";
import { History } from "./history.js";
import { ImageMode } from "./imagemode.js";

const HANDLES = [[0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1], [0.5, 1], [0, 1], [0, 0.5]];
const SMALLEST = 2; // image pixels that a drag must span; less is a click
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const copy = (boxes) => boxes.map((entry) => ({ ...entry, box: [...entry.box] }));

export class BoxesMode extends ImageMode {
  help = [
    ["drag", "a new box, or moves and resizes the chosen one"], ["Shift-X", "on or off: four clicks on the extreme points"],
    ["Shift-N, n", "a new box in the middle (n where no class has it)"], ["a class's letter", "class of the chosen box, or of the next"],
    ["Tab, Shift-Tab", "next, previous box"], ["arrow keys", "move by a pixel"], ["Shift + arrow keys", "resize by a pixel"],
    ["Delete", "remove the box"], ["Shift-D", "difficult, or not"], ["Ctrl-Z, Ctrl-Y", "undo, redo"], ["Enter", "save, next image"],
    ["Ctrl-S", "save"], ["PageUp, PageDown", "previous, next image"], ["+  −  0", "zoom in, out, back"],
  ];

  constructor(app) {
    super(app, "boxes", "Boxes", "Boxes");
    this.boxes = [];
    this.chosen = -1;
    this.label = this.classList[0]?.number ?? 0;
    this.extremes = null;
    this.drag = null;
    this.history = new History();
    this.classes = new ClassButtons(this.classList, (entry) => this.assign(entry.number), { toggles: true });
    this.listing = element("ul", { class: "listing", "aria-label": "Boxes of this image" });
    this.four = button("Four clicks", () => this.toggleExtremes(), { "aria-pressed": "false" }, "⇧X");
    this.tools.append(
      element("div", { class: "row" }, button("New", () => this.make(), {}, "⇧N"), this.four,
        button("Delete", () => this.remove(), {}, "Del")),
      this.classes.element, this.listing);
    this.viewer.tool = this;
  }

  load(labels, draft) {
    this.boxes = copy(draft ?? labels.boxes);
    this.chosen = -1;
    this.drag = null;
    this.extremes &&= [];
    this.history.clear();
  }

  state() {
    return copy(this.boxes);
  }

  standing() {
    const { length } = this.boxes;
    return length ? `Saved: ${length} box${length > 1 ? "es" : ""}` : "No box yet";
  }

  send(id, answer, seconds, boxes) {
    return this.app.outbox.send(imagePath("boxes", id), () => ({ answer, revision: this.revisions.get(id), boxes, seconds }));
  }

  /** Makes a change that can be undone. */
  change(action) {
    const before = copy(this.boxes);
    action();
    this.history.push({ before, after: copy(this.boxes) });
    this.touch();
  }

  travel(direction) {
    const step = this.drag ? undefined : this.history[direction]();
    if (!step) return;
    this.boxes = copy(direction === "undo" ? step.before : step.after);
    this.chosen = Math.min(this.chosen, this.boxes.length - 1);
    this.touch();
  }

  add(box) {
    this.change(() => this.boxes.push({ box, class: this.label, difficult: false }));
    this.choose(this.boxes.length - 1);
  }

  /** A new box of a quarter of the image's sides in the middle of what is in view. */
  make() {
    if (!this.ready) return;
    const { width, height } = this.labels;
    const [w, h] = [Math.max(Math.round(width / 4), 1), Math.max(Math.round(height / 4), 1)];
    const left = clamp(Math.round(this.viewer.x - w / 2), 0, width - w);
    const top = clamp(Math.round(this.viewer.y - h / 2), 0, height - h);
    this.add([left, top, left + w, top + h]);
  }

  remove() {
    if (this.chosen < 0 || this.drag) return;
    const gone = this.chosen;
    this.chosen = Math.min(gone, this.boxes.length - 2);
    this.change(() => this.boxes.splice(gone, 1));
    this.choose(this.chosen);
  }

  choose(index) {
    this.chosen = index;
    const entry = this.boxes[index];
    if (entry) this.app.say(`Box ${index + 1} of ${this.boxes.length}: ${this.#words(entry)}`);
    this.update();
  }

  #words(entry) {
    return `${this.app.classOf(entry.class).name}, ${entry.box.map(Math.round).join(" ")}${entry.difficult ? ", difficult" : ""}`;
  }

  assign(number) {
    this.label = number;
    if (this.chosen >= 0) this.change(() => (this.boxes[this.chosen].class = number));
    else this.update();
  }

  difficult() {
    if (this.chosen >= 0) this.change(() => (this.boxes[this.chosen].difficult = !this.boxes[this.chosen].difficult));
  }

  toggleExtremes() {
    this.extremes = this.extremes ? null : [];
    this.four.setAttribute("aria-pressed", String(this.extremes !== null));
    this.update();
  }

  search() {
    this.classes.search((entry) => this.assign(entry.number));
  }

  own(event) {
    if (this.drag) return true;
    const step = STEPS[event.key];
    if (event.key === "Tab") return this.#cycle(event);
    if (step && this.chosen >= 0) this.#nudge(step, event.shiftKey);
    else if (event.key === "Delete" || event.key === "Backspace") this.remove();
    else if (event.key === "Escape") this.#escape();
    else if (isShiftLetter(event)) return this.#tool(event.key.toLowerCase());
    else return false;
    return true;
  }

  #tool(letter) {
    const tools = { n: () => this.make(), x: () => this.toggleExtremes(), d: () => this.difficult() };
    tools[letter]?.();
    return letter in tools;
  }

  #escape() {
    if (this.extremes?.length) this.extremes = [];
    else this.chosen = -1;
    this.update();
  }

  /** The next box while the image has the focus; past the last one the focus moves on as everywhere. */
  #cycle(event) {
    const next = this.chosen + (event.shiftKey ? -1 : 1);
    if (document.activeElement !== this.viewer.canvas || next < 0 || next >= this.boxes.length) return false;
    this.choose(next);
    return true;
  }

  #nudge([dx, dy], resize) {
    const { width, height } = this.labels;
    const [left, top, right, bottom] = this.boxes[this.chosen].box;
    const [x, y] = resize ? [0, 0] : [clamp(dx, -left, width - right), clamp(dy, -top, height - bottom)];
    const box = resize
      ? [left, top, clamp(right + dx, left + 1, width), clamp(bottom + dy, top + 1, height)]
      : [left + x, top + y, right + x, bottom + y];
    this.change(() => (this.boxes[this.chosen].box = box));
  }

  letter(key) {
    const entry = this.classes.byKey(key);
    if (entry) this.assign(entry.number);
    else if (key === "n") this.make();
    else return false;
    return true;
  }

  down(x, y, event) {
    if (!this.ready) return;
    const handle = this.chosen < 0 || this.extremes ? null : this.#handle(x, y, this.viewer.reach(event));
    const inside = this.chosen >= 0 && !this.extremes && contains(this.boxes[this.chosen].box, x, y);
    const kind = handle ? "resize" : inside ? "move" : "new";
    this.drag = { kind, handle, from: [x, y], to: [x, y], start: this.boxes[this.chosen]?.box };
  }

  move(x, y) {
    if (!this.drag) return;
    this.drag.to = [x, y];
    this.viewer.request();
  }

  cancel() {
    this.drag = null;
    this.viewer.request();
  }

  up(x, y) {
    const { drag } = this;
    if (!drag) return;
    this.drag = null;
    drag.to = [x, y];
    const box = this.#dragged(drag);
    const moved = Math.hypot(x - drag.from[0], y - drag.from[1]) >= SMALLEST;
    if (this.extremes) this.#extreme(x, y);
    else if (!moved) this.#click(x, y);
    else if (drag.kind === "new") this.add(box);
    else this.change(() => (this.boxes[this.chosen].box = box));
    this.viewer.request();
  }

  #extreme(x, y) {
    const { width, height } = this.labels;
    this.extremes.push([clamp(Math.floor(x), 0, width - 1), clamp(Math.floor(y), 0, height - 1)]);
    if (this.extremes.length < 4) return;
    const [xs, ys] = [this.extremes.map(([px]) => px), this.extremes.map(([, py]) => py)];
    this.extremes = [];
    this.add([Math.min(...xs), Math.min(...ys), Math.max(...xs) + 1, Math.max(...ys) + 1]);
  }

  /** The smallest box at a place; a click beside all boxes lets go of the chosen one. */
  #click(x, y) {
    const hits = this.boxes.map((entry, index) => [area(entry.box), index]).filter(([, index]) => contains(this.boxes[index].box, x, y));
    this.choose(hits.length ? hits.sort((one, other) => one[0] - other[0])[0][1] : -1);
  }

  #handle(x, y, reach) {
    const [left, top, right, bottom] = this.boxes[this.chosen].box;
    const near = Math.min(reach, Math.max((right - left) / 3, 4 / this.viewer.scale));
    return HANDLES.find(([u, v]) => Math.hypot(left + u * (right - left) - x, top + v * (bottom - top) - y) <= near) ?? null;
  }

  /** The box that a drag stands for, in whole pixels within the image. */
  #dragged({ kind, handle, from, to, start }) {
    const { width, height } = this.labels;
    const [dx, dy] = [Math.round(to[0] - from[0]), Math.round(to[1] - from[1])];
    if (kind === "new") return spanned(from, to, width, height);
    const [left, top, right, bottom] = start;
    if (kind === "move") {
      const [x, y] = [clamp(dx, -left, width - right), clamp(dy, -top, height - bottom)];
      return [left + x, top + y, right + x, bottom + y];
    }
    const [u, v] = handle;
    const corner = [left + (u === 0 ? dx : 0), top + (v === 0 ? dy : 0)];
    return spanned(corner, [right + (u === 1 ? dx : 0), bottom + (v === 1 ? dy : 0)], width, height);
  }

  paint(context, viewer) {
    this.boxes.forEach((entry, index) => {
      const dragged = index === this.chosen && this.drag && this.drag.kind !== "new";
      this.#paintBox(context, viewer, dragged ? this.#dragged(this.drag) : entry.box, entry, index === this.chosen);
    });
    if (this.drag?.kind === "new" && !this.extremes) {
      this.#paintBox(context, viewer, this.#dragged(this.drag), { class: this.label }, false);
    }
    for (const [x, y] of this.extremes ?? []) paintCross(context, ...viewer.toScreen(x + 0.5, y + 0.5));
  }

  #paintBox(context, viewer, [x1, y1, x2, y2], entry, chosen) {
    const [left, top] = viewer.toScreen(x1, y1);
    const [right, bottom] = viewer.toScreen(x2, y2);
    const { name, color } = this.app.classOf(entry.class);
    context.setLineDash(entry.difficult ? [8, 5] : []);
    for (const [width, style] of [[chosen ? 6 : 4, "#ffffff"], [chosen ? 3.5 : 2, color === "#ffffff" ? "#000000" : color]]) {
      context.lineWidth = width;
      context.strokeStyle = style;
      context.strokeRect(left, top, right - left, bottom - top);
    }
    context.setLineDash([]);
    context.font = "600 13px system-ui, sans-serif";
    const width = context.measureText(name).width + 10;
    context.fillStyle = "#000000cc";
    context.fillRect(left, Math.max(top - 20, 0), width, 20);
    context.fillStyle = "#ffffff";
    context.fillText(name, left + 5, Math.max(top - 20, 0) + 14);
    if (!chosen) return;
    for (const [u, v] of HANDLES) {
      context.fillStyle = "#ffffff";
      context.fillRect(left + u * (right - left) - 5, top + v * (bottom - top) - 5, 10, 10);
      context.fillStyle = "#1b1f24";
      context.fillRect(left + u * (right - left) - 3, top + v * (bottom - top) - 3, 6, 6);
    }
  }

  render() {
    this.classes.press([this.chosen >= 0 ? this.boxes[this.chosen].class : this.label]);
    this.listing.replaceChildren(...this.boxes.map((entry, index) => {
      const { name, color } = this.app.classOf(entry.class);
      const size = `${Math.round(entry.box[2] - entry.box[0])} × ${Math.round(entry.box[3] - entry.box[1])}`;
      const choose = element("button", { type: "button", "aria-pressed": String(index === this.chosen), click: () => this.choose(index) },
        swatch(color), element("span", { class: "name" }, name), element("span", { class: "quiet" }, size));
      const difficult = element("input", { type: "checkbox", checked: entry.difficult, change: () => {
        this.chosen = index;
        this.difficult();
      } });
      return element("li", {}, choose, element("label", { class: "tick" }, difficult, "difficult"));
    }));
    if (this.extremes) {
      this.listing.append(element("li", { class: "quiet" },
        `Click the topmost, leftmost, lowest and rightmost pixel: ${this.extremes.length} of 4.`));
    }
  }
}

const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
const contains = ([x1, y1, x2, y2], x, y) => x >= x1 && x <= x2 && y >= y1 && y <= y2;

/** The whole pixels that two corners span, at least one, within the image. */
function spanned([x0, y0], [x1, y1], width, height) {
  const left = clamp(Math.floor(Math.min(x0, x1)), 0, width - 1);
  const top = clamp(Math.floor(Math.min(y0, y1)), 0, height - 1);
  const right = clamp(Math.ceil(Math.max(x0, x1)), left + 1, width);
  return [left, top, right, clamp(Math.ceil(Math.max(y0, y1)), top + 1, height)];
}

function paintCross(context, left, top) {
  for (const [width, style] of [[5, "#ffffff"], [2, "#e00000"]]) {
    context.lineWidth = width;
    context.strokeStyle = style;
    context.beginPath();
    context.moveTo(left - 8, top);
    context.lineTo(left + 8, top);
    context.moveTo(left, top - 8);
    context.lineTo(left, top + 8);
    context.stroke();
  }
}
