// Point labels: the program shows a pixel, a key names its class.

import { get, Refused } from "./api.js";
import { ClassButtons } from "./classes.js";
import { button, duration, element, isShiftLetter, isUndo, notice, plainKey } from "./dom.js";
import { JobPanel } from "./jobs.js";
import { paintInsets, paintMark } from "./mark.js";
import { Stopwatch } from "./stopwatch.js";
import { Viewer, zoomKey } from "./viewer.js";

const AHEAD = 8;
const ZOOM = 3; // a third of the image in view: near enough to name the pixel, wide enough to know where it is

const nameOf = (query) => `${query.x} ${query.y} ${query.id}`;

export class PointsMode {
  name = "points";
  title = "Points";
  help = [
    ["a class's letter", "names the marked pixel"], ["/", "search a class by its name"],
    ["Space", "skip the pixel"], ["Backspace, Ctrl-Z", "take the last answer back"],
    ["+  −  0", "zoom in, out, back"], ["Shift-T", "train on what is labeled, then choose the next pixels"],
    ["Enter", "the same, when all are done"],
  ];

  constructor(app) {
    this.app = app;
    this.queue = [];
    this.pending = new Set();
    this.progress = { done: 0, total: 0 };
    this.statistics = app.session.statistics.points;
    this.batch = null;
    this.last = null;
    this.shown = null;
    this.kept = null; // a pixel that stays in front though the server asks for others first
    this.problem = null;
    this.watch = new Stopwatch();
    this.#build();
  }

  dirty = 0;

  #build() {
    const canvas = element("canvas", { class: "picture", tabindex: "0", role: "img", "aria-label": "No image" });
    this.viewer = new Viewer(canvas, (context, viewer) => this.#paint(context, viewer));
    this.classes = new ClassButtons(this.app.session.classes, (entry) => this.answer(entry.number));
    this.prompt = element("h2", { class: "prompt" });
    this.place = element("p", { class: "place" });
    this.bar = element("progress", { max: "1", value: "0", "aria-label": "Pixels labeled" });
    this.figures = element("dl", { class: "figures" });
    this.over = element("div", { class: "over", hidden: true });
    this.job = new JobPanel(this.app, (running) => this.#jobChanged(running));
    this.train = button("Train on what is labeled, then choose the next pixels", () => this.#train(), { class: "train", hidden: true }, "⇧T");
    this.slot = element("div", { class: "slot" }, this.job.element);
    this.zoom = element("div", { class: "zoom" },
      button("+", () => this.viewer.zoomBy(1.5), { "aria-label": "Zoom in" }),
      button("−", () => this.viewer.zoomBy(1 / 1.5), { "aria-label": "Zoom out" }),
      button("⤢", () => this.#look(ZOOM), { "aria-label": "Zoom back" }));
    this.actions = element("div", { class: "row" },
      button("Skip", () => this.answer(null), {}, "Space"), button("Undo", () => this.undo(), {}, "⌫"));
    this.element = element("section", { class: "mode", "data-mode": "points", "aria-label": "Point labels" },
      element("div", { class: "stage" }, canvas, this.zoom, this.over),
      element("aside", { class: "panel" }, this.prompt, this.place, this.classes.element, this.actions, this.bar, this.figures,
        this.train, this.slot));
  }

  async show() {
    this.active = true;
    this.viewer.canvas.focus({ preventScroll: true });
    clearInterval(this.clock);
    this.clock = setInterval(() => this.#figures(), 500);
    await this.renew();
  }

  hide() {
    this.active = false;
    clearInterval(this.clock);
    this.watch.pause();
    this.job.rest();
    this.shown = null;
  }

  /** Asks the server for the queries and for a running job. */
  async renew() {
    await this.job.refresh();
    this.#accept(await get(`/api/queries?count=${AHEAD}`));
  }

  /** A job has begun or come to its end. */
  async #jobChanged(running) {
    if (running) this.#offer();
    else await this.renew();
  }

  #accept(reply) {
    const replaced = this.progress.total > 0 && this.batch !== reply.batch;
    this.batch = reply.batch;
    this.progress = { done: reply.done, total: reply.total };
    this.statistics = reply.statistics?.points ?? this.statistics;
    this.queue = reply.queries.filter((query) => !this.pending.has(nameOf(query)));
    if (!this.active) return;
    // Somebody is about to name the pixel on the screen: it stays, and its answer counts as any other.
    if (replaced && this.shown) this.kept = this.shown;
    if (this.kept) this.#ahead(this.kept);
    if (replaced) this.app.hint(this.#announced(reply));
    this.#next();
  }

  #ahead(query) {
    const known = this.queue.find((entry) => nameOf(entry) === nameOf(query));
    this.queue = [known ?? query, ...this.queue.filter((entry) => entry !== known)];
  }

  #announced({ strategy, round, total }) {
    const chosen = strategy === "random" ? "New random pixels are" : `Round ${round}: the pixels that the new model has chosen are`;
    return `${chosen} asked for from here on, ${total} in all.`;
  }

  #next() {
    const query = this.queue[0] ?? null;
    this.app.watch(query?.id ?? null);
    this.#figures();
    this.#offer();
    if (!query) return this.#finished();
    this.slot.append(this.job.element);
    this.app.pictures.ahead([...new Set(this.queue.map((entry) => entry.id))]);
    if (this.shown && nameOf(this.shown) === nameOf(query)) return undefined;
    return this.#present(query);
  }

  async #present(query) {
    this.shown = query;
    this.drawn = false;
    this.problem = null;
    this.watch.restart();
    this.watch.pause();
    let bitmap = null;
    try {
      bitmap = await this.app.pictures.get(query.id);
    } catch (error) {
      this.problem = error.message;
    }
    if (this.shown !== query) return;
    this.prompt.textContent = this.problem ? "This image cannot be shown" : "What is at the red mark?";
    this.place.textContent = query.place ? `${query.id} · pixel ${query.place} of ${query.of}` : query.id;
    this.#controls(true);
    if (this.problem) {
      this.viewer.show(null, 1, 1);
      this.viewer.draw();
      this.viewer.canvas.dataset.drawn = nameOf(query);
      this.#cover(notice("This image cannot be shown", [`${query.id}: ${this.problem}.`],
        button("Skip its pixel", () => this.answer(null), { class: "main" }, "Space")));
      this.app.say(`${query.id} cannot be shown: ${this.problem}. Space skips its pixel.`);
      return;
    }
    this.over.hidden = true;
    this.viewer.canvas.setAttribute("aria-label", `${query.id}, marked pixel at column ${query.x}, row ${query.y}`);
    const zoom = this.viewer.bitmap ? this.viewer.zoom : ZOOM;
    this.viewer.bitmap = bitmap;
    this.viewer.width = query.width ?? bitmap.width;
    this.viewer.height = query.height ?? bitmap.height;
    this.#look(zoom);
    this.viewer.draw();
    this.viewer.canvas.dataset.drawn = nameOf(query);
    this.drawn = true;
    this.watch.resume();
  }

  #look(zoom) {
    if (this.shown) this.viewer.look(this.shown.x + 0.5, this.shown.y + 0.5, zoom);
  }

  #paint(context, viewer) {
    if (!this.shown) return;
    paintMark(context, ...viewer.toScreen(this.shown.x + 0.5, this.shown.y + 0.5));
    paintInsets(context, viewer, this.shown);
  }

  /** Names the marked pixel's class; null skips it. */
  answer(label) {
    const query = this.shown;
    if (!query || (!this.drawn && this.problem === null)) return;
    if (this.problem !== null && label !== null) return void this.app.fail("An image that cannot be shown can only be skipped (Space).");
    this.app.clear();
    const seconds = Math.round(this.watch.seconds * 1000) / 1000;
    const { id, x, y } = query;
    const body = { answer: crypto.randomUUID(), id, x, y, class: label, seconds };
    this.last = { seconds, label };
    this.pending.add(nameOf(query));
    this.queue.shift();
    this.kept = null;
    this.app.outbox.send("/api/points", () => body).then(
      (reply) => this.#answered(query, reply), (error) => this.#refused(query, error));
    this.shown = null;
    if (this.queue.length) this.#next();
    else this.#waiting();
  }

  #answered(query, reply) {
    this.pending.delete(nameOf(query));
    this.#accept(reply);
  }

  async #refused(query, error) {
    this.pending.delete(nameOf(query));
    if (!(error instanceof Refused)) throw error;
    if (error.status >= 500) this.kept = query;
    if (error.status === 409) this.app.conflict(query.id, () => this.renew());
    else this.app.fail(`Not saved: ${error.message}`);
    await this.renew();
  }

  undo() {
    this.app.clear();
    const answer = crypto.randomUUID();
    this.app.outbox.send("/api/undo", () => ({ answer })).then((reply) => {
      const { undone } = reply;
      if (!undone) this.app.fail("There is no answer to take back.");
      else this.app.say(`Took back the answer for ${undone.id}.`);
      this.last = null;
      this.kept = undone ?? this.kept;
      this.#accept(reply);
    }, (error) => this.app.fail(`Not undone: ${error.message}`));
  }

  search() {
    if (this.shown) this.classes.search((entry) => this.answer(entry.number));
  }

  key(event) {
    if (isUndo(event) || event.key === "Backspace") this.undo();
    else if (event.key === " ") this.answer(null);
    else if (event.key === "Enter" && !this.shown && !this.over.hidden) this.#begin();
    else if (isShiftLetter(event) && event.key.toLowerCase() === "t") this.#train();
    else return this.#letter(event);
    return true;
  }

  #letter(event) {
    const key = plainKey(event);
    const entry = this.classes.byKey(key);
    if (entry) this.answer(entry.number);
    else if (zoomKey(event, this.viewer, () => this.#look(ZOOM))) return true;
    else if (key === null || !this.shown) return false;
    else this.app.fail(`No class has the key “${event.key}”; the pixel waits for its class.`);
    return true;
  }

  #waiting() {
    if (this.progress.done + this.pending.size >= this.progress.total) return;
    this.prompt.textContent = "Waiting for the server…";
  }

  #cover(content) {
    this.over.replaceChildren(content);
    this.over.hidden = false;
  }

  #controls(wanted) {
    this.actions.hidden = !wanted;
    this.classes.element.hidden = !wanted;
    this.zoom.hidden = !wanted;
  }

  #finished() {
    if (this.pending.size) return;
    this.shown = null;
    this.watch.pause();
    this.viewer.show(null, 1, 1);
    this.viewer.draw();
    this.viewer.canvas.dataset.drawn = "";
    this.#controls(false);
    const { done, total } = this.progress;
    const all = done === total ? "All pixels are labeled" : "No further pixel can be shown";
    this.prompt.textContent = total ? all : "No pixel is asked for yet";
    this.place.textContent = "";
    const card = total ? this.#summary(done, total) : this.#empty();
    card.append(this.job.element);
    this.#cover(card);
    this.app.say(this.prompt.textContent);
  }

  /** What Enter does where no pixel is shown. */
  #begin() {
    if (this.progress.total) this.#train();
    else if (this.app.session.images) this.job.start("select");
  }

  #train() {
    if (this.job.running) return;
    this.viewer.canvas.focus({ preventScroll: true });
    if (this.#labeled) this.job.start("next");
    else this.app.fail("No pixel is labeled yet; there is nothing to train on.");
  }

  get #labeled() {
    return this.statistics.answers + this.pending.size > 0;
  }

  /** The training is offered beside the pixels, for a batch of a large data set never comes to its end. */
  #offer() {
    this.train.hidden = this.job.running || !this.queue.length || !this.#labeled;
  }

  #empty() {
    if (!this.app.session.images) {
      return notice("There are no images", ["The data set's split lists no image. Put images into it, or choose another split with --split."]);
    }
    return notice("No pixel is asked for yet", [
      "Pixels of every image are chosen: by the model, where there is one, else at random.",
    ], button("Choose pixels", () => this.#begin(), { class: "main" }, "Enter"));
  }

  #summary(done, total) {
    const { answers = 0, skipped = 0, seconds_mean: mean, per_minute: pace } = this.statistics;
    const speed = mean ? ` ${duration(mean)} per answer, ${(pace ?? 0).toFixed(0)} labels per minute.` : "";
    const lines = [`${done} of ${total} pixels answered. In all: ${answers} labeled, ${skipped} skipped.${speed}`];
    if (done < total) lines.push(`The other ${total - done} lie in images that cannot be read; Browse shows them (“Broken images”).`);
    return notice("This batch is done", lines,
      button("Train, then choose the next pixels", () => this.#train(), { class: "main" }, "Enter"),
      button("Take the last answer back", () => this.undo(), {}, "⌫"));
  }

  #figures() {
    const { done, total } = this.progress;
    const reached = Math.min(done + this.pending.size, total);
    this.bar.max = Math.max(total, 1);
    this.bar.value = reached;
    const { seconds_mean: mean, per_minute: pace } = this.statistics;
    const rows = [
      ["labeled", `${reached} of ${total}`],
      ["this label", this.shown ? duration(this.watch.seconds) : "–"],
      ["last", this.last ? duration(this.last.seconds) : "–"],
      ["mean", mean ? duration(mean) : "–"],
      ["per minute", pace ? pace.toFixed(0) : "–"],
    ];
    this.figures.replaceChildren(...rows.map(([term, value]) =>
      element("div", {}, element("dt", {}, term), element("dd", {}, value))));
  }
}
