// The page: which mode is open, keys, what is said to the user, and that nothing unsaved is left behind.

import { connection, get, imagePath, Outbox, post } from "./api.js";
import { BoxesMode } from "./boxes.js";
import { BrowseMode } from "./browse.js";
import { button, element, notice } from "./dom.js";
import { ImageList } from "./imagelist.js";
import { MasksMode } from "./masks.js";
import { Pictures } from "./pictures.js";
import { PointsMode } from "./points.js";
import { TagsMode } from "./tags.js";

const HEARTBEAT = 5000; // ms
const MODES = { points: PointsMode, tags: TagsMode, boxes: BoxesMode, masks: MasksMode, browse: BrowseMode };
const byId = (id) => document.getElementById(id);

const TAB = "labelwise-tab";

/** A name for this tab that a reload keeps, but a duplicated tab does not get: it is stored only while the page changes. */
function tabName() {
  const name = sessionStorage.getItem(TAB) ?? crypto.randomUUID();
  sessionStorage.removeItem(TAB);
  addEventListener("pagehide", () => sessionStorage.setItem(TAB, name));
  addEventListener("pageshow", () => sessionStorage.removeItem(TAB));
  return name;
}

/** A part of the address, which somebody may have typed. */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

class App {
  outbox = new Outbox();
  pictures = new Pictures();
  list = new ImageList();
  tab = tabName();
  image = null;
  lastMode = null;
  #modes = new Map();
  #mode = null;
  #watched = null;

  async start() {
    this.outbox.addEventListener("change", () => this.#saved());
    connection.addEventListener("change", () => this.#connected());
    this.session = await get("/api/session");
    this.#classes = new Map(this.session.classes.map((entry) => [entry.number, entry]));
    const { data, split, images } = this.session;
    const folder = data.split(/[\\/]/).at(-1);
    byId("data").textContent = `${folder} · ${split} · ${images} images`;
    byId("data").title = data;
    document.title = `${folder} · labelwise`;
    this.names = this.session.modes.filter((name) => name in MODES);
    this.#tabs();
    addEventListener("hashchange", () => this.#route());
    addEventListener("beforeunload", (event) => this.unsaved && event.preventDefault());
    addEventListener("keydown", (event) => this.#key(event));
    addEventListener("keyup", (event) => this.#mode?.keyUp?.(event));
    addEventListener("click", (event) => this.#release(event));
    byId("help").addEventListener("click", () => this.#help());
    setInterval(() => this.#beat(), HEARTBEAT);
    await this.#route();
  }

  #classes = new Map();

  classOf(number) {
    return this.#classes.get(number) ?? { number, name: `class ${number}`, color: "#808080" };
  }

  /** Whether something would be lost if the page were closed now. */
  get unsaved() {
    return this.outbox.waiting > 0 || [...this.#modes.values()].some((mode) => mode.dirty > 0);
  }

  #tabs() {
    byId("tabs").replaceChildren(...this.names.map((name) => {
      const title = name[0].toUpperCase() + name.slice(1);
      return element("a", { href: `#${name}`, "data-mode": name }, title);
    }));
  }

  async #route() {
    const [name, ...rest] = location.hash.slice(1).split("/");
    const wanted = this.names.includes(name) ? name : this.session.mode;
    const id = rest.length ? decoded(rest.join("/")) : undefined;
    if (this.#mode?.name === wanted && id !== undefined && this.#mode.id === id) return;
    if (this.#mode?.name === wanted && id !== undefined && this.#mode.open) return void (await this.#mode.open(id));
    this.#mode?.hide();
    if (!this.#modes.has(wanted)) this.#modes.set(wanted, new MODES[wanted](this));
    this.#mode = this.#modes.get(wanted);
    if (wanted !== "browse") this.lastMode = wanted;
    for (const tab of byId("tabs").children) {
      if (tab.dataset.mode === wanted) tab.setAttribute("aria-current", "page");
      else tab.removeAttribute("aria-current");
    }
    this.clear();
    this.dismiss("conflict");
    byId("main").replaceChildren(this.#mode.element);
    await this.#mode.show(id).catch((error) => this.fail(error.message));
  }

  /** Puts mode and image into the address, so that a reload comes back to them. */
  address(name, id) {
    this.image = id;
    const hash = `#${name}/${encodeURIComponent(id)}`;
    if (location.hash !== hash) history.replaceState(null, "", hash);
  }

  /** Opens an image in a mode, whichever is shown now. */
  async visit(mode, id) {
    if (this.#mode === mode) await mode.open(id);
    else location.hash = `#${mode.name}/${encodeURIComponent(id)}`;
  }

  /** Opens an image in the mode used last; points have an order of their own. */
  openLast(id) {
    const fits = this.lastMode && this.lastMode !== "points";
    const name = fits ? this.lastMode : this.names.find((other) => other !== "points" && other !== "browse");
    location.hash = `#${name}/${encodeURIComponent(id)}`;
  }

  /** Says something to a screen reader. */
  say(text) {
    byId("live").textContent = text;
  }

  /** Shows an error until the next action. */
  fail(text) {
    this.#message(text, "error");
  }

  hint(text) {
    this.#message(text, "hint");
  }

  #message(text, kind) {
    Object.assign(byId("message"), { textContent: text, hidden: false });
    byId("message").dataset.kind = kind;
  }

  clear() {
    Object.assign(byId("message"), { textContent: "", hidden: true });
  }

  /** Shows a notice that stays until it is dismissed by its name. */
  notify(name, text, ...actions) {
    this.dismiss(name);
    byId("notices").append(element("div", { class: "notice", role: "alert", "data-name": name }, element("p", {}, text), ...actions));
  }

  dismiss(name) {
    for (const shown of byId("notices").querySelectorAll(`[data-name="${name}"]`)) shown.remove();
  }

  /** Another tab has changed the image: its version can be loaded, or replaced by what is here. */
  conflict(id, reload, overwrite = null) {
    const closing = (action) => () => {
      this.dismiss("conflict");
      action();
    };
    const actions = [button("Load the other version", closing(reload))];
    if (overwrite) actions.push(button("Save mine over it", closing(overwrite), { class: "danger" }));
    this.notify("conflict", `${id} was changed in another tab.`, ...actions);
  }

  /** An image has a new revision by this tab's own doing: drafts of other modes go on from it. */
  moved(id, before, after) {
    for (const mode of this.#modes.values()) {
      if (mode.revisions?.get(id) === before) mode.revisions.set(id, after);
    }
  }

  /** The image that is open from now on, and how to learn the revision that the page knows. */
  watch(id, revision = () => null) {
    if (this.#watched?.id === id) return;
    this.#watched = id === null ? null : { id, revision };
    for (const name of ["others", "conflict", "problem"]) this.dismiss(name);
    clearTimeout(this.soon);
    if (id !== null) this.soon = setTimeout(() => this.#beat(), 400);
  }

  async #beat() {
    const watched = this.#watched;
    if (!watched || document.hidden) return;
    const reply = await post(imagePath("open", watched.id), { tab: this.tab }).catch(() => null);
    if (!reply || watched !== this.#watched) return;
    if (!reply.others) this.dismiss("others");
    else if (!byId("notices").querySelector("[data-name=others]")) {
      this.notify("others", `${watched.id} is open in another tab, too.`);
    }
    const known = watched.revision();
    const changed = known !== null && reply.revision !== known && this.outbox.waiting === 0;
    if (changed && !this.#mode.dirty && this.#mode.open) this.conflict(watched.id, () => this.#mode.open(watched.id));
  }

  #saved() {
    const { waiting, retrying } = this.outbox;
    const state = retrying ? "retrying" : waiting ? "sending" : "saved";
    const words = { saved: "saved", sending: "saving…", retrying: `not saved yet, retrying (${waiting})` };
    byId("saved").dataset.state = state;
    if (byId("saved").textContent !== words[state]) byId("saved").textContent = words[state];
  }

  #connected() {
    this.dismiss("connection");
    if (connection.state === "offline") {
      this.notify("connection", "The server does not answer. Is the program still running? Answers wait here and are sent when it is back; keep this tab open.");
    } else if (connection.state === "unauthorized") {
      this.notify("connection", "The server was started anew. Open the address that it has printed in the terminal in this browser; then this tab goes on, and what waits here is sent.");
    }
  }

  #key(event) {
    const { target } = event;
    if (!this.#mode || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    if (target instanceof Element && target.matches("input:not([type=range]):not([type=checkbox]), select, textarea")) {
      if (event.key === "Escape") target.blur();
      return;
    }
    // A button or link reached with the keyboard is pressed by its own keys.
    if (target instanceof Element && target.matches("button, a, input") && ["Enter", " "].includes(event.key)) return;
    if (target instanceof Element && target.matches("input[type=range]") && event.key.startsWith("Arrow")) return;
    if (event.key === "?") this.#help();
    else if (event.key === "/" && this.#mode.search) this.#mode.search();
    else if (!this.#mode.key(event)) return;
    event.preventDefault();
  }

  /** After a click with the mouse the keys belong to the image again, not to the button. */
  #release(event) {
    const pressed = event.target instanceof Element ? event.target.closest("button, input[type=checkbox], input[type=range]") : null;
    if (event.detail > 0 && pressed && !pressed.closest("dialog")) {
      (this.#mode?.viewer?.canvas ?? byId("main")).focus({ preventScroll: true });
    }
  }

  #help() {
    if (!this.#mode) return;
    const rows = [...this.#mode.help, ["?", "this overview"], ["Tab", "next control of the page"]];
    const table = element("table", {}, ...rows.map(([keys, text]) => element("tr", {}, element("th", { scope: "row" }, element("kbd", {}, keys)), element("td", {}, text))));
    const dialog = element("dialog", { class: "help-dialog", "aria-labelledby": "help-title" },
      element("h2", { id: "help-title" }, `Keys: ${this.#mode.title}`), table,
      element("p", { class: "actions" }, button("Close", () => dialog.close(), { class: "main", autofocus: true }, "Esc")));
    this.#mode.watch?.pause();
    dialog.addEventListener("close", () => {
      dialog.remove();
      this.#mode.watch?.resume();
    });
    document.body.append(dialog);
    dialog.showModal();
  }
}

new App().start().catch((error) => {
  byId("main").replaceChildren(notice("The page cannot start", [`${error.message}.`], button("Try again", () => location.reload(), { class: "main" })));
});
