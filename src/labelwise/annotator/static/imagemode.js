// What tag, box and mask mode share: one image is open, its labels are changed and saved as a whole.

import { get, imagePath, Refused } from "./api.js";
import { button, element, isRedo, isSave, isUndo, notice, plainKey } from "./dom.js";
import { Stopwatch } from "./stopwatch.js";
import { Viewer, zoomKey } from "./viewer.js";

/**
 * A mode adds: `load(labels, draft)` (may be async; draft is what `state()` gave), `state()`, `send(id, answer, seconds,
 * state)` (a promise of the server's reply), `paint(context, viewer)`, `render()`, `letter(key, event)`, `own(event)`.
 */
export class ImageMode {
  constructor(app, name, title, label) {
    this.app = app;
    this.name = name;
    this.title = title;
    this.id = null;
    this.ready = false;
    this.changed = false;
    this.drafts = new Map();
    this.revisions = new Map();
    this.sending = new Map();
    this.watch = new Stopwatch();
    this.#build(label);
  }

  /** How many images have changes that have not been sent. */
  get dirty() {
    return this.drafts.size + Number(this.changed);
  }

  get classList() {
    const { classes, background } = this.app.session;
    return classes.filter((entry) => entry.number !== background);
  }

  #build(label) {
    const canvas = element("canvas", { class: "picture", tabindex: "0", role: "application", "aria-label": "No image" });
    this.viewer = new Viewer(canvas, (context, viewer) => this.ready && this.paint(context, viewer));
    this.prompt = element("h2", { class: "prompt" });
    this.position = element("span", { class: "position" });
    this.chip = element("p", { class: "chip", "data-state": "saved" });
    this.over = element("div", { class: "over", hidden: true });
    this.tools = element("div", { class: "tools" });
    this.zoom = element("div", { class: "zoom" },
      button("+", () => this.viewer.zoomBy(1.5), { "aria-label": "Zoom in" }),
      button("−", () => this.viewer.zoomBy(1 / 1.5), { "aria-label": "Zoom out" }),
      button("⤢", () => this.viewer.fit(), { "aria-label": "Whole image" }));
    const walk = element("div", { class: "row walk" },
      button("‹", () => this.step(-1), { "aria-label": "Previous image" }), this.position,
      button("›", () => this.step(1), { "aria-label": "Next image" }));
    this.saveButton = button("Save, next image", () => this.saveAndNext(), { class: "main" }, "Enter");
    this.foot = element("div", { class: "foot" }, this.chip, this.saveButton);
    this.panel = element("aside", { class: "panel" }, this.prompt, walk, this.tools, this.foot);
    this.element = element("section", { class: "mode", "data-mode": this.name, "aria-label": label },
      element("div", { class: "stage" }, canvas, this.zoom, this.over), this.panel);
  }

  async show(id) {
    const ticket = (this.ticket = Symbol("show"));
    this.viewer.canvas.focus({ preventScroll: true });
    await this.app.list.ready();
    if (this.ticket !== ticket) return undefined;
    const wanted = id ?? this.app.image ?? this.app.list.entries[0]?.id;
    if (wanted === undefined) return this.#nothing();
    return this.open(wanted);
  }

  hide() {
    this.#stash();
    this.watch.pause();
    this.id = null;
    this.ready = false;
    this.ticket = null;
  }

  #nothing() {
    this.#usable(false);
    this.prompt.textContent = "No image";
    const reason = this.app.session.images
      ? "No image fits the filter that is set in Browse."
      : "The data set's split lists no image. Put images into it, or choose another split with --split.";
    this.#cover(notice("There is no image to label", [reason]));
  }

  #stash() {
    if (this.changed) this.drafts.set(this.id, this.state());
    this.changed = false;
  }

  async open(id) {
    this.#stash();
    const ticket = (this.ticket = Symbol(id));
    const current = () => this.ticket === ticket;
    Object.assign(this, { id, ready: false });
    this.app.address(this.name, id);
    this.prompt.textContent = id;
    this.chip.textContent = "loading…";
    this.viewer.show(null, 1, 1);
    await this.app.outbox.settled();
    try {
      const labels = await get(imagePath("labels", id));
      if (!current()) return;
      if (!labels.width) throw new Error(labels.problem ?? "its size is unknown");
      const bitmap = await this.app.pictures.get(id);
      if (!current()) return;
      const draft = this.drafts.get(id);
      await this.load(labels, draft);
      if (!current()) return;
      this.#opened(labels, bitmap, draft);
    } catch (error) {
      if (current()) this.#problem(id, error.message);
    }
  }

  #opened(labels, bitmap, draft) {
    this.labels = labels;
    if (draft === undefined) this.revisions.set(labels.id, labels.revision);
    this.changed = draft !== undefined;
    this.drafts.delete(labels.id);
    this.ready = true;
    this.over.hidden = true;
    this.#usable(true);
    this.app.watch(labels.id, () => this.revisions.get(labels.id));
    if (labels.problem) this.app.notify("problem", labels.problem);
    this.viewer.show(bitmap, labels.width, labels.height);
    this.viewer.canvas.setAttribute("aria-label", `${this.title} of ${labels.id}`);
    this.viewer.canvas.focus({ preventScroll: true });
    this.viewer.draw();
    this.viewer.canvas.dataset.drawn = labels.id;
    this.watch.restart();
    this.update();
    this.#ahead();
  }

  #problem(id, reason) {
    this.app.watch(null);
    this.#usable(false);
    this.update();
    this.#cover(notice("This image cannot be shown", [`${id}: ${reason}.`],
      button("Next image", () => this.step(1), { class: "main" }, "Enter")));
    this.viewer.canvas.dataset.drawn = id;
    this.app.say(`${id} cannot be shown: ${reason}. Enter goes on.`);
  }

  #usable(wanted) {
    for (const part of [this.tools, this.foot, this.zoom]) part.hidden = !wanted;
  }

  #cover(content) {
    this.over.replaceChildren(content);
    this.over.hidden = false;
  }

  #ahead() {
    const at = this.app.list.index(this.id);
    if (at >= 0) this.app.pictures.ahead(this.app.list.entries.slice(at + 1, at + 4).map((entry) => entry.id));
  }

  /** Says that the labels have been changed by hand, and shows them. */
  touch() {
    this.changed = true;
    this.update();
  }

  /** Shows labels, position and state. */
  update() {
    const at = this.app.list.index(this.id);
    const { total } = this.app.list;
    this.position.textContent = at < 0 ? `of ${total}` : `${at + 1} of ${total}`;
    const others = this.drafts.size;
    const [state, text] = this.#standing();
    this.chip.dataset.state = state;
    this.chip.textContent = others ? `${text} · unsaved changes in ${others} other image${others > 1 ? "s" : ""}` : text;
    if (this.ready) this.render();
    this.viewer.request();
  }

  #standing() {
    if (this.changed) return ["changed", "Not saved yet"];
    if (this.sending.get(this.id)) return ["sending", "Saving…"];
    return ["saved", this.standing()];
  }

  /** What stands on disk, in a few words. */
  standing() {
    return "Saved";
  }

  /** Sends the labels; what is changed while they are on their way stays unsaved. */
  save() {
    if (!this.ready) return;
    const { id } = this;
    const state = this.state();
    const seconds = Math.round(this.watch.seconds * 1000) / 1000;
    this.watch.restart();
    this.changed = false;
    this.sending.set(id, (this.sending.get(id) ?? 0) + 1);
    this.app.clear();
    this.send(id, crypto.randomUUID(), seconds, state).then(
      (reply) => this.#accepted(id, reply), (error) => this.#refused(id, state, error));
    this.update();
  }

  #accepted(id, reply) {
    this.#arrived(id);
    this.app.moved(id, this.revisions.get(id), reply.revision);
    if (this.labels?.id === id) this.noted(this.labels);
    if (this.id === id) this.update();
  }

  /** The labels that are shown stand on disk now. */
  noted() {}

  #arrived(id) {
    const left = this.sending.get(id) - 1;
    if (left) this.sending.set(id, left);
    else this.sending.delete(id);
  }

  #refused(id, state, error) {
    this.#arrived(id);
    if (!(error instanceof Refused)) throw error;
    if (this.id === id && this.ready) this.changed = true;
    else this.drafts.set(id, state);
    if (error.status === 409) this.app.conflict(id, () => this.#discard(id), () => this.#overwrite(id, error.revision));
    else this.app.fail(`${id} is not saved: ${error.message}`);
    this.update();
  }

  #discard(id) {
    this.drafts.delete(id);
    if (this.id === id) this.changed = false;
    return this.app.visit(this, id);
  }

  async #overwrite(id, revision) {
    if (this.id !== id) await this.app.visit(this, id);
    this.revisions.set(id, revision);
    if (this.id === id) this.save();
  }

  saveAndNext() {
    if (this.ready) this.save();
    this.step(1);
  }

  step(by) {
    const { entries } = this.app.list;
    const at = this.app.list.index(this.id);
    const next = entries[at < 0 ? 0 : at + by];
    if (next) this.open(next.id);
    else this.app.say(by > 0 ? "This is the last image." : "This is the first image.");
    if (!next) this.app.hint(by > 0 ? "This is the last image of the list." : "This is the first image of the list.");
  }

  key(event) {
    if (isSave(event)) this.save();
    else if (this.ready && (isUndo(event) || isRedo(event))) this.travel?.(isUndo(event) ? "undo" : "redo");
    else if (event.key === "PageDown") this.step(1);
    else if (event.key === "PageUp") this.step(-1);
    else if (this.ready && this.own(event)) return true;
    else if (event.key === "Enter") this.saveAndNext();
    else if (event.key === "ArrowRight") this.step(1);
    else if (event.key === "ArrowLeft") this.step(-1);
    else return this.ready && this.#letter(event);
    return true;
  }

  /** Keys that only this mode knows; true where it has used one. */
  own() {
    return false;
  }

  #letter(event) {
    const key = plainKey(event);
    return (key !== null && this.letter(key, event)) || zoomKey(event, this.viewer);
  }
}
