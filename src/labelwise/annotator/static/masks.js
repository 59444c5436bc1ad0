// Masks: polygon, brush and eraser on a mask of the image's own size; a model's prediction can be corrected.

import { get, getBytes, imagePath } from "./api.js";
import { ClassButtons } from "./classes.js";
import { button, element, isShiftLetter } from "./dom.js";
import { History } from "./history.js";
import { ImageMode } from "./imagemode.js";
import { JobPanel } from "./jobs.js";
import { cut, fillPolygon, fillStroke, Overlay, paste, VOID } from "./raster.js";

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const LARGEST = 400;
const FAR = 10;

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export class MasksMode extends ImageMode {
  help = [
    ["Shift-P, Shift-B, Shift-E", "polygon, brush, eraser"], ["a class's letter", "class that is painted"], ["/", "search a class by its name"],
    ["[  ]", "smaller, larger brush"], ["arrow keys", "move the cursor by a pixel, with Shift by ten"],
    ["Space", "paint at the cursor (held: along its way), or a corner of the polygon"], ["Enter", "close the polygon; else save, next image"],
    ["Backspace", "remove the polygon's last corner"], ["Escape", "drop the polygon"], ["Shift-V", "paint void"],
    ["Shift-M", "load the model's mask"], ["Ctrl-Z, Ctrl-Y", "undo, redo"], ["Ctrl-S", "save"],
    ["PageUp, PageDown", "previous, next image"], ["+  −  0", "zoom in, out, back"],
  ];

  constructor(app) {
    super(app, "masks", "Masks", "Masks");
    const { classes, background } = app.session;
    this.rest = background ?? VOID;
    this.shape = "brush";
    this.size = 15;
    this.opacity = 0.55;
    this.label = this.classList[0]?.number ?? 0;
    this.erased = this.rest;
    this.corners = [];
    this.stroke = null;
    this.cursor = null;
    this.history = new History();
    this.overlay = new Overlay(classes.map((entry) => [entry.number, entry.color]), background);
    this.job = new JobPanel(app, (running) => running || this.#predicted());
    this.#controls(classes);
    this.viewer.tool = this;
    this.viewer.canvas.addEventListener("pointermove", (event) => this.#hover(event));
  }

  #controls(classes) {
    const voidClass = { number: VOID, name: "void", color: "#ffffff", key: null, position: null };
    this.classes = new ClassButtons(classes, (entry) => this.pick(entry.number), { toggles: true, extra: [voidClass] });
    const shapes = [["polygon", "Polygon", "⇧P"], ["brush", "Brush", "⇧B"], ["eraser", "Eraser", "⇧E"]];
    this.shapes = new Map(shapes.map(([shape, text, key]) => [shape, button(text, () => this.take(shape), { "aria-pressed": "false" }, key)]));
    this.sizeInput = element("input", { type: "range", min: "1", max: "100", value: String(this.size), input: () => this.#resize(Number(this.sizeInput.value)) });
    this.sizeText = element("output", {});
    const opacity = element("input", { type: "range", min: "0", max: "1", step: "0.05", value: String(this.opacity), input: () => {
      this.opacity = Number(opacity.value);
      this.viewer.request();
    } });
    const erasers = this.rest === VOID ? [["void", VOID]] : [["background", this.rest], ["void", VOID]];
    const erased = element("select", { change: () => (this.erased = Number(erased.value)) },
      ...erasers.map(([text, value]) => element("option", { value }, text)));
    this.model = button("Load the model's mask", () => this.loadPrediction(), {}, "⇧M");
    this.predict = button("Let the model predict masks", () => this.job.start("predict"));
    this.closing = button("Close polygon", () => this.#closePolygon(), { hidden: true }, "Enter");
    this.tools.append(
      element("div", { class: "row", role: "group", "aria-label": "Tools" }, ...this.shapes.values()),
      element("div", { class: "row" }, button("Undo", () => this.travel("undo"), {}, "Ctrl-Z"), button("Redo", () => this.travel("redo"), {}, "Ctrl-Y"), this.closing),
      this.classes.element,
      element("div", { class: "settings" },
        element("label", {}, "Brush ", this.sizeText, this.sizeInput), element("label", {}, "Opacity", opacity),
        element("label", {}, "Eraser leaves", erased)),
      element("div", { class: "row" }, this.model, this.predict), this.job.element);
  }

  async show(id) {
    await super.show(id);
    await this.job.refresh();
  }

  hide() {
    super.hide();
    this.job.rest();
  }

  async load(labels, draft) {
    const { width, height } = labels;
    const loaded = draft ?? (await this.#fetched(labels));
    if (loaded.length !== width * height) throw new Error(`the mask has ${loaded.length} pixels, the image ${width * height}`);
    Object.assign(this, { mask: loaded, width, height, corners: [], stroke: null });
    this.source = draft ? "draft" : labels.mask ? "labels" : labels.prediction ? "prediction" : "none";
    this.cursor = [Math.floor(width / 2), Math.floor(height / 2)];
    this.keyboard = false;
    this.history.clear();
    this.overlay.resize(width, height);
    this.overlay.update(this.mask, [0, 0, width, height]);
  }

  #fetched({ id, width, height, mask, prediction }) {
    if (mask) return getBytes(`${imagePath("mask", id)}?source=labels`);
    if (prediction) return getBytes(`${imagePath("mask", id)}?source=prediction`);
    return new Uint8Array(width * height).fill(this.rest);
  }

  /** Shows the model's new mask where nobody has begun to draw; else offers it. */
  async #predicted() {
    const { id } = this;
    if (!id || !this.ready) return;
    const idle = !this.changed && !this.stroke && !this.corners.length;
    if (idle && this.source !== "labels") return void (await this.open(id));
    const { prediction } = await get(imagePath("labels", id));
    if (this.id !== id || !this.ready) return;
    this.labels.prediction = prediction;
    this.update();
  }

  state() {
    return this.mask.slice();
  }

  standing() {
    const words = { labels: "Saved", prediction: "The model's mask, not saved yet", none: "No mask yet" };
    return words[this.source] ?? "Saved";
  }

  noted() {
    this.source = "labels";
  }

  send(id, answer, seconds, mask) {
    return this.app.outbox.sendMask(() => {
      const query = new URLSearchParams({ answer, revision: this.revisions.get(id), seconds });
      return { path: `${imagePath("mask", id)}?${query}`, mask };
    });
  }

  pick(number) {
    this.label = number;
    if (this.shape === "eraser") this.shape = "brush";
    this.app.say(`Painting ${number === VOID ? "void" : this.app.classOf(number).name}`);
    this.update();
  }

  take(shape) {
    this.shape = shape;
    this.corners = [];
    this.update();
  }

  #resize(size) {
    this.size = clamp(Math.round(size), 1, LARGEST);
    this.update();
  }

  get value() {
    return this.shape === "eraser" ? this.erased : this.label;
  }

  search() {
    this.classes.search((entry) => this.pick(entry.number));
  }

  /** Draws with `fill(mask)`, which gives the rectangle it has touched, as one step that can be undone. */
  #draw(fill) {
    const after = this.mask.slice();
    const area = fill(after);
    this.#replace(area, cut(after, this.width, area));
  }

  #replace(area, after) {
    const before = cut(this.mask, this.width, area);
    if (before.every((value, index) => value === after[index])) return;
    this.history.push({ area, before, after }, before.length * 2);
    this.#put(area, after);
  }

  #put(area, piece) {
    paste(this.mask, this.width, area, piece);
    this.overlay.update(this.mask, area);
    this.touch();
  }

  travel(direction) {
    const step = this.stroke ? undefined : this.history[direction]();
    if (step) this.#put(step.area, direction === "undo" ? step.before : step.after);
  }

  async loadPrediction() {
    const { id } = this;
    if (!this.labels?.prediction) return void this.app.fail("There is no model's mask of this image.");
    const mask = await getBytes(`${imagePath("mask", id)}?source=prediction`).catch((error) => this.app.fail(error.message));
    if (mask && this.id === id && this.ready && !this.stroke && mask.length === this.mask.length) this.#replace([0, 0, this.width, this.height], mask);
  }

  down(x, y, event) {
    if (!this.ready) return;
    this.keyboard = false;
    if (this.shape === "polygon") return void this.#corner(x, y, this.viewer.reach(event));
    const at = this.#center(x, y);
    this.stroke = { before: this.mask.slice(), area: null, last: at };
    this.#dab(at);
  }

  move(x, y) {
    if (this.stroke) this.#dab(this.#center(x, y));
  }

  up() {
    this.#endStroke();
  }

  cancel() {
    if (!this.stroke) return;
    this.mask.set(this.stroke.before);
    this.overlay.update(this.mask, [0, 0, this.width, this.height]);
    this.stroke = null;
    this.viewer.request();
  }

  #center(x, y) {
    return [Math.floor(x) + 0.5, Math.floor(y) + 0.5];
  }

  #dab(at) {
    const area = fillStroke(this.mask, this.width, this.height, this.stroke.last, at, this.size / 2, this.value);
    this.stroke.last = at;
    this.stroke.area = joined(this.stroke.area, area);
    this.overlay.update(this.mask, area);
    this.viewer.request();
  }

  #endStroke() {
    const { stroke } = this;
    this.stroke = null;
    if (!stroke?.area) return;
    const after = cut(this.mask, this.width, stroke.area);
    paste(this.mask, this.width, stroke.area, cut(stroke.before, this.width, stroke.area));
    this.#replace(stroke.area, after);
  }

  #corner(x, y, reach) {
    const [first] = this.corners;
    if (first && this.corners.length > 2 && Math.hypot(first[0] - x, first[1] - y) <= reach) return this.#closePolygon();
    this.corners.push([clamp(x, 0, this.width), clamp(y, 0, this.height)]);
    return this.update();
  }

  #closePolygon() {
    const { corners } = this;
    if (corners.length < 3) return void this.app.fail("A polygon needs three corners.");
    this.corners = [];
    this.#draw((mask) => fillPolygon(mask, this.width, this.height, corners, this.value));
    this.update();
  }

  own(event) {
    const step = STEPS[event.key];
    if (step && !event.ctrlKey && !event.metaKey) this.#walk(step, event.shiftKey ? FAR : 1);
    else if (event.key === " ") this.#space(event);
    else if (event.key === "[" || event.key === "]") this.#resize(event.key === "[" ? this.size / 1.25 - 0.5 : this.size * 1.25 + 0.5);
    else if (this.corners.length && event.key in POLYGON_KEYS) POLYGON_KEYS[event.key](this, () => this.#closePolygon());
    else if (isShiftLetter(event)) return this.#tool(event.key.toLowerCase());
    else return false;
    return true;
  }

  #tool(letter) {
    const tools = {
      p: () => this.take("polygon"), b: () => this.take("brush"), e: () => this.take("eraser"),
      v: () => this.pick(VOID), m: () => this.loadPrediction(),
    };
    tools[letter]?.();
    return letter in tools;
  }

  #space(event) {
    this.keyboard = true;
    const [x, y] = this.cursor;
    if (event.repeat || this.stroke) return;
    if (this.shape === "polygon") return void this.#corner(x, y, 0.1);
    this.stroke = { before: this.mask.slice(), area: null, last: [x + 0.5, y + 0.5] };
    this.#dab(this.stroke.last);
  }

  keyUp(event) {
    if (event.key === " " && this.keyboard) this.#endStroke();
  }

  #walk([dx, dy], far) {
    this.keyboard = true;
    const [x, y] = this.cursor;
    this.cursor = [clamp(x + dx * far, 0, this.width - 1), clamp(y + dy * far, 0, this.height - 1)];
    if (this.stroke) this.#dab([this.cursor[0] + 0.5, this.cursor[1] + 0.5]);
    const value = this.mask[this.cursor[1] * this.width + this.cursor[0]];
    this.app.say(`${this.cursor.join(", ")}: ${value === VOID ? "void" : (this.app.classOf(value)?.name ?? value)}`);
    this.viewer.request();
  }

  letter(key) {
    const entry = this.classes.byKey(key);
    if (entry) this.pick(entry.number);
    return Boolean(entry);
  }

  #hover(event) {
    if (event.pointerType === "touch" || !this.ready) return;
    const frame = this.viewer.canvas.getBoundingClientRect();
    this.pointer = this.viewer.toImage(event.clientX - frame.left, event.clientY - frame.top);
    if (!this.stroke) this.keyboard = false;
    this.viewer.request();
  }

  paint(context, viewer) {
    const [left, top] = viewer.toScreen(0, 0);
    context.imageSmoothingEnabled = false;
    context.globalAlpha = this.opacity;
    context.drawImage(this.overlay.canvas, left, top, this.width * viewer.scale, this.height * viewer.scale);
    context.globalAlpha = 1;
    if (this.corners.length) this.#paintCorners(context, viewer);
    if (this.keyboard) paintCursor(context, ...viewer.toScreen(this.cursor[0] + 0.5, this.cursor[1] + 0.5));
    const at = this.keyboard ? this.cursor : this.pointer;
    if (at && this.shape !== "polygon") {
      const [x, y] = viewer.toScreen(...this.#center(...at));
      ring(context, x, y, (this.size / 2) * viewer.scale);
    }
  }

  #paintCorners(context, viewer) {
    const places = this.corners.map((corner) => viewer.toScreen(...corner));
    outlined(context, () => {
      context.beginPath();
      for (const place of places) context.lineTo(...place);
    });
    for (const [x, y] of places) ring(context, x, y, 5);
  }

  render() {
    for (const [shape, made] of this.shapes) made.setAttribute("aria-pressed", String(shape === this.shape));
    this.classes.press(this.shape === "eraser" ? [] : [this.label]);
    this.sizeText.textContent = `${this.size} px`;
    this.sizeInput.value = String(this.size);
    this.closing.hidden = this.shape !== "polygon";
    this.closing.disabled = this.corners.length < 3;
    this.model.hidden = !this.labels?.prediction;
    this.predict.hidden = Boolean(this.labels?.prediction);
  }
}

const POLYGON_KEYS = {
  Enter: (mode, close) => close(),
  Backspace: (mode) => {
    mode.corners.pop();
    mode.update();
  },
  Escape: (mode) => {
    mode.corners = [];
    mode.update();
  },
};

function joined(one, other) {
  if (!one) return other;
  return [Math.min(one[0], other[0]), Math.min(one[1], other[1]), Math.max(one[2], other[2]), Math.max(one[3], other[3])];
}

/** A line that is seen on light and on dark ground. */
function outlined(context, path) {
  for (const [width, style] of [[3.5, "#ffffff"], [1.5, "#1b1f24"]]) {
    context.lineWidth = width;
    context.strokeStyle = style;
    path();
    context.stroke();
  }
}

function ring(context, x, y, radius) {
  outlined(context, () => {
    context.beginPath();
    context.arc(x, y, Math.max(radius, 1), 0, 2 * Math.PI);
  });
}

function paintCursor(context, x, y) {
  outlined(context, () => {
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + 4 * dx, y + 4 * dy);
      context.lineTo(x + 12 * dx, y + 12 * dy);
    }
  });
}
